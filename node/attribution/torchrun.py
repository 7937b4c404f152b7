"""The runner for several machines under `torchrun`: rank 0 builds, every rank computes shards.

The group speaks gloo, in rounds of one shard a rank, so what a killed round loses is one shard
each. Folders that the task names (base, checkpoints, the build's own) must be the same on all
machines: a shared file system. What travels is pickled, between processes of one operator.
What this file does not know: what a shard is.
"""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, Final

import torch.distributed as group

from node.attribution.runners import Task

ROUND_MAX: Final = timedelta(days=1)  # the slowest shard's time; a lost rank is noticed at once


class ShardFailed(Exception):
    """A shard's own error on another rank, told in its words."""


class TorchrunRunner:
    """Rank 0's side. Enter it on rank 0 while every other rank runs `serve`."""

    def __enter__(self) -> "TorchrunRunner":
        _join()
        assert group.get_rank() == 0, "other ranks serve"
        return self

    def __exit__(self, *_: object) -> None:
        if _ is not None and not any(_):
            _tell(None)  # after a fault the others learn of it by the closed connection
        group.destroy_process_group()

    def map(self, task: Task, shards: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """(shard, bytes) round by round. Raises ShardFailed for an error on another rank."""
        _tell((task, list(shards)))
        for numbers in _rounds(shards):
            for shard, data, fault in _share(task, numbers):
                if fault:
                    raise ShardFailed(f"shard {shard}: {fault}")
                yield shard, data


def serve() -> None:
    """What every rank but 0 does: computes its part of each stage until rank 0 has finished."""
    _join()
    while (told := _tell(None)) is not None:
        task, shards = told
        for numbers in _rounds(shards):
            _share(task, numbers)
    group.destroy_process_group()


def _join() -> None:
    group.init_process_group("gloo", timeout=ROUND_MAX)


def _tell(message: Any) -> Any:
    """Rank 0's message, on every rank."""
    box = [message]
    group.broadcast_object_list(box, src=0)
    return box[0]


def _rounds(shards: Sequence[int]) -> Iterator[Sequence[int]]:
    """Shards in rounds: rank r takes the r-th of each."""
    size = group.get_world_size()
    for start in range(0, len(shards), size):
        yield shards[start : start + size]


def _share(task: Task, numbers: Sequence[int]) -> list[tuple[int, bytes, str]]:
    """One round; on rank 0: (shard, bytes, fault) of each of its shards."""
    rank = group.get_rank()
    mine = _run(task, numbers[rank]) if rank < len(numbers) else None
    if rank != 0:
        group.gather_object(mine, None, dst=0)
        return []
    all_: list[Any] = [None] * group.get_world_size()
    group.gather_object(mine, all_, dst=0)
    return [one for one in all_ if one is not None]


def _run(task: Task, shard: int) -> tuple[int, bytes, str]:
    try:
        return shard, task(shard), ""
    except Exception as error:  # noqa: BLE001  # a silent rank would leave the others waiting
        return shard, b"", repr(error)
