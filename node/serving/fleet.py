"""Several workers as one engine: one for each device, each with its own tiers and queue.

Why a worker each: a fault of one device ends the answers of one worker, and the others go on. Why
an adapter has a home: loaded everywhere it would fill every device's slots; so it is checked and
kept at one worker, known at all, and read elsewhere only when its home has twice the others' work.
What this file does not know: torch, links, what a device is.
"""

import dataclasses
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from consensus.primitives.digest import sha256
from node.observe import get_log
from node.serving.client import EngineClient, Fetch
from node.serving.devices import share_out
from node.serving.engine import (
    AdapterBusy,
    AdapterInfo,
    AdapterRef,
    EngineError,
    EngineInfo,
    EngineLost,
    EngineSettings,
    EngineStats,
    GenRequest,
    GradItem,
    HostedEngine,
    Score,
    ScoreItem,
    Sketch,
    State,
    Stream,
    TaskStatus,
    TierStats,
    UnknownAdapter,
)
from node.serving.packed import SUFFIX
from node.serving.servers import choose
from node.serving.timing import Timed
from node.serving.worker import WorkerEngine

STATES: Final[tuple[State, ...]] = ("ready", "starting", "restarting", "down", "closed")
TIERS: Final = ("slot", "ram", "disk")  # the nearest first
GREATEST: Final = {"batch_adapters", "batch_adapters_max", "registered"}  # not summed
MEANS: Final = {"rows_used"}
FOLDER: Final = re.compile(r"cpu|cuda\d{1,2}")  # of one device's copies, as `share_out` names it

log = get_log("engine")


def make_workers(
    settings: EngineSettings, fetch: Fetch, *, devices: Sequence[str], stall_s: float
) -> HostedEngine:
    """A worker for each device, or the one that `settings` name."""
    each = share_out(settings, devices, os.cpu_count() or 2)
    _clear_folders(settings.disk_folder, {one.disk_folder for one in each})
    workers = [WorkerEngine(one, fetch, stall_s) for one in each]
    if len(workers) == 1:
        return workers[0]
    return Fleet({one.device: worker for one, worker in zip(each, workers, strict=True)})


def _clear_folders(folder: str, used: set[str]) -> None:
    """Remove copies that workers of other devices have left: no budget counts them any more.

    Blocks, for a moment, in the life after `devices` was changed.
    """
    for path in Path(folder).glob("*") if folder else ():
        is_copy = path.suffix == SUFFIX and folder not in used
        is_others = FOLDER.fullmatch(path.name) is not None and str(path) not in used
        try:
            if is_copy:
                path.unlink()
            elif is_others:
                shutil.rmtree(path)
        except OSError as error:
            log.warning("a copy that nobody needs stays", path=str(path), why=str(error))


@dataclass(slots=True, eq=False)
class Member:
    """One worker; `running` counts what we have asked of it, `url` is its name to `choose`."""

    url: str
    engine: EngineClient
    running: int = 0

    @property
    def is_alive(self) -> bool:
        """Whether it may be asked."""
        return self.engine.state == "ready"


class Fleet:
    """An Engine over workers of one base, by name. Start `run` in a nursery."""

    def __init__(self, workers: dict[str, EngineClient]) -> None:
        self._members = [Member(name, engine) for name, engine in workers.items()]
        self._refs: dict[bytes, AdapterRef] = {}

    @property
    def state(self) -> State:
        """The best of the workers': while one is ready, answers are made."""
        return min((member.engine.state for member in self._members), key=STATES.index)

    @property
    def info(self) -> EngineInfo:
        """All rows together; `build` is of every worker, where they differ."""
        infos = [member.engine.info for member in self._members]
        builds = sorted({info.build for info in infos})
        return dataclasses.replace(
            infos[0],
            device=",".join(info.device for info in infos),
            rows=sum(info.rows for info in infos),
            max_model_len=min(info.max_model_len for info in infos),
            build=builds[0] if len(builds) == 1 else sha256(*builds),
        )

    # --- their lives

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Keep all alive until `aclose`; if one fails its first start, raises its reason."""
        failed: EngineError | None = None
        async with trio.open_nursery() as nursery:
            start: Any = nursery.start  # libp2p brings old types for trio
            try:
                for member in self._members:
                    await start(member.engine.run)
                task_status.started()
            except EngineError as error:  # caught inside: a nursery wraps in groups
                failed = error
                nursery.cancel_scope.cancel()
        if failed is not None:
            raise failed

    async def wait_ready(self) -> None:
        """Until one serves; for ever when all are down: give it a deadline."""
        async with trio.open_nursery() as nursery:

            async def wait(engine: EngineClient) -> None:
                await engine.wait_ready()
                nursery.cancel_scope.cancel()

            for member in self._members:
                nursery.start_soon(wait, member.engine)

    async def aclose(self, drain_s: float = 10.0) -> None:
        """Stop all: live streams get up to `drain_s` to end."""
        async with trio.open_nursery() as nursery:
            for member in self._members:
                nursery.start_soon(member.engine.aclose, drain_s)

    # --- adapters

    async def load_adapter(self, ref: AdapterRef, pin: bool = False) -> AdapterInfo:
        """Check and keep an adapter at its home; the others know of it."""
        with self._asked(ref.hash) as home:
            info = await home.engine.load_adapter(ref, pin)
        for member in self._members:
            if member is not home:
                member.engine.register(ref)
        self._refs[ref.hash] = ref
        return info

    async def unload_adapter(self, adapter: bytes, drain: bool = False) -> None:
        """Have all forget an adapter, or none: raises UnknownAdapter, AdapterBusy."""
        ref = self._refs.get(adapter)
        if ref is None:
            raise UnknownAdapter(adapter=adapter.hex())
        gone: list[Member] = []
        for member in self._members:
            try:
                await member.engine.unload_adapter(adapter, drain)
            except AdapterBusy:
                for other in gone:
                    other.engine.register(ref)
                raise
            except EngineLost:  # the next worker there need not know it
                member.engine.forget(adapter)
            gone.append(member)
        del self._refs[adapter]

    async def adapters(self) -> list[AdapterInfo]:
        """Every adapter, as it lies where it is nearest to a batch."""
        found: dict[bytes, AdapterInfo] = {}
        for member in self._alive():
            for info in await member.engine.adapters():
                known = found.get(info.hash)
                if known is None or TIERS.index(info.tier) < TIERS.index(known.tier):
                    found[info.hash] = info
        return list(found.values())

    # --- work

    @asynccontextmanager
    async def submit(self, request: GenRequest) -> AsyncIterator[Stream]:
        """Ask the worker that holds the adapter, or of the base's the least busy one."""
        with self._asked(request.adapter) as member:
            async with member.engine.submit(request) as stream:
                yield stream

    async def gradients(self, items: Sequence[GradItem]) -> list[Sketch]:
        """The sketches of answers, in order, from one worker."""
        with self._asked(items[0].checkpoints[0] if items else None) as member:
            return await member.engine.gradients(items)

    async def score(self, items: Sequence[ScoreItem]) -> list[Score]:
        """Others' answers run again, in order, by one worker."""
        with self._asked(items[0].adapter if items else None) as member:
            return await member.engine.score(items)

    def stats(self) -> EngineStats:
        """Of all workers."""
        total: EngineStats = _sum([member.engine.stats() for member in self._members])
        return total

    def _alive(self) -> list[Member]:
        return [member for member in self._members if member.is_alive]

    @contextmanager
    def _asked(self, adapter: bytes | None) -> Iterator[Member]:
        """The worker for one more question; it counts as busy until that is answered."""
        alive = self._alive()
        if not alive:
            raise EngineLost(state=self.state)
        home = choose(alive, adapter) if adapter is not None else None
        member = home or min(alive, key=lambda one: one.running)
        member.running += 1
        try:
            yield member
        finally:
            member.running -= 1


def _sum(every: Sequence[Any]) -> Any:
    """Dataclasses of counters as one: numbers and times add up, by name where they have names."""
    first = every[0]
    if isinstance(first, Timed):
        counts = tuple(map(sum, zip(*(one.counts for one in every), strict=True)))
        return Timed(counts, sum(one.sum_s for one in every))
    made = {}
    for field in dataclasses.fields(first):
        values = [getattr(one, field.name) for one in every]
        if isinstance(values[0], dict):
            made[field.name] = _sum_named(values)
        elif isinstance(values[0], TierStats):
            made[field.name] = _sum(values)
        elif field.name in GREATEST:
            made[field.name] = max(values)
        elif field.name in MEANS:
            made[field.name] = sum(values) / len(values)
        else:
            made[field.name] = sum(values)
    return type(first)(**made)


def _sum_named(every: Iterable[dict[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for one in every:
        for name, value in one.items():
            if isinstance(value, Timed):
                total[name] = _sum([total.get(name, Timed()), value])
            else:
                total[name] = total.get(name, 0) + value
    return dict(total)
