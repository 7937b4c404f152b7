"""A campaign in batches, each with a seed of its own, on so many processes."""

import multiprocessing
from collections.abc import Callable
from typing import Final, TypeVar

SEEDS_APART: Final = 10**6  # so that no two campaigns of small seeds share a batch

F = TypeVar("F")


def run_batches(
    run_batch: Callable[[tuple[int, int]], F],
    total: int,
    *,
    batch: int,
    seed: int,
    processes: int,
    tell: Callable[[list[F]], None],
) -> list[F]:
    """What `run_batch((seed, count))` found, in the order they end; `tell` hears after each."""
    tasks = [
        (seed * SEEDS_APART + number, min(batch, total - number * batch))
        for number in range(-(-total // batch))
    ]
    found: list[F] = []
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for one in pool.imap_unordered(run_batch, tasks):
            found.append(one)
            tell(found)
    return found
