"""Who runs the shards of an index: this process, or several spawned ones.

A task is a pure function of a shard number, so a runner may repeat a shard, give results in any
order, and forget a worker that died. Spawned, not forked: torch's threads do not survive a fork.
What this file does not know: what a shard is.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Final, Protocol

Task = Callable[[int], bytes]  # picklable for more than one worker

RETRIES_MAX: Final = 2


class ShardLost(Exception):
    """Workers died over a shard three times; what was finished is kept on disk by the builder."""


class Runner(Protocol):
    """Runs `task` for each shard."""

    def map(self, task: Task, shards: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """(shard, bytes) in any order; a shard may come twice."""
        ...


class LocalRunner:
    """One worker: in this process. More: spawned processes with one thread of computing each."""

    def __init__(self, workers: int = 1) -> None:
        assert workers >= 1
        self._workers = workers

    def map(self, task: Task, shards: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """Raises ShardLost when a shard's worker died three times; a task's own error as it is."""
        if self._workers == 1 or len(shards) == 1:
            for shard in shards:
                yield shard, task(shard)
            return
        left = dict.fromkeys(shards, 0)  # shard → deaths so far
        while left:
            yield from self._one_pool(task, left)

    def _one_pool(self, task: Task, left: dict[int, int]) -> Iterator[tuple[int, bytes]]:
        """Until nothing is left or a worker dies; takes out of `left` what it has yielded."""
        running: dict[Future[bytes], int] = {}
        with ProcessPoolExecutor(
            min(self._workers, len(left)),
            multiprocessing.get_context("spawn"),
            initializer=_set_up_worker,
            initargs=(task,),
        ) as pool:
            queue = list(left)
            try:
                while queue or running:
                    # No more in flight than workers: a death then taints only those few.
                    while queue and len(running) < self._workers:
                        shard = queue.pop(0)
                        running[pool.submit(_run_shard, shard)] = shard
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        result = future.result()
                        shard = running.pop(future)
                        del left[shard]
                        yield shard, result
            except BrokenProcessPool:
                for shard in running.values():
                    left[shard] += 1
                    if left[shard] > RETRIES_MAX:
                        raise ShardLost(f"shard {shard}") from None


_task: Task | None = None  # of this worker process, set once before its first shard


def _set_up_worker(task: Task) -> None:
    global _task
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, by the first shard
    _task = task


def _run_shard(shard: int) -> bytes:
    assert _task is not None
    return _task(shard)
