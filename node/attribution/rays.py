"""The runner for a Ray cluster: one remote task a shard, for indexes that outgrow one machine.

Ray is an extra of its own (`pip install olnode[ray]`) and imported here only. The task with its
records goes into Ray's store once; folders that it names must be the same on all machines.
What this file does not know: what a shard is.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from node.attribution.runners import RETRIES_MAX, ShardLost, Task

IN_FLIGHT_PER_CPU: Final = 2  # so that a cluster never waits and its store stays small


class RayRunner:
    """Joins the cluster at `address`; without one, a Ray of its own on this machine."""

    def __init__(self, address: str | None = None) -> None:
        import ray

        self._ray: Any = ray
        ray.init(address=address, log_to_driver=False, include_dashboard=False)

    def __enter__(self) -> "RayRunner":
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def map(self, task: Task, shards: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """Raises ShardLost when a shard's worker died three times; a task's own error as it is."""
        ray = self._ray
        run = ray.remote(num_cpus=1, max_retries=RETRIES_MAX)(_run)
        held = ray.put(task)
        window = IN_FLIGHT_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
        queue = list(shards)
        running: dict[Any, int] = {}  # what Ray will give → shard
        while queue or running:
            while queue and len(running) < window:
                shard = queue.pop(0)
                running[run.remote(held, shard)] = shard
            (done, *_), _ = ray.wait(list(running))
            shard = running.pop(done)
            try:
                yield shard, ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from None
            except ray.exceptions.WorkerCrashedError:
                raise ShardLost(f"shard {shard}") from None


def _run(task: Task, shard: int) -> bytes:
    return task(shard)
