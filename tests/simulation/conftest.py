"""Simulated runs on all cores: each comes from its seed alone, so where it is played is free."""

import multiprocessing
from collections.abc import Iterator

import pytest
from simulation.campaign import play_one
from simulation.outcomes import Outcome, Play

CHUNKS = 16  # of one call, so that no core idles at its end


@pytest.fixture(scope="module")
def play() -> Iterator[Play]:
    """`play(kind, seeds)`: how the runs ended, by seed. Its processes take a second to begin."""
    with multiprocessing.get_context("spawn").Pool() as pool:

        def on_all_cores(kind: str, seeds: range) -> dict[int, Outcome]:
            chunk = max(1, len(seeds) // CHUNKS)
            tasks = [(kind, seed) for seed in seeds]
            return dict(zip(seeds, pool.starmap(play_one, tasks, chunk), strict=True))

        yield on_all_cores
