"""Several workers as one engine: each adapter has a home, and one that is lost costs its own."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from node.config import parse
from node.serving.engine import (
    AdapterBusy,
    AdapterRef,
    EngineLost,
    EngineSettings,
    EngineStats,
    Finish,
    GenRequest,
    GradItem,
    NoDevice,
    Sampling,
    TierStats,
    UnknownAdapter,
)
from node.serving.fleet import Fleet, make_workers
from node.serving.timing import Timed
from node.serving.worker import ThreadEngine, WorkerEngine
from node.wishes import engine_maker, engine_settings

NAMES = ("one", "two")


def request(number: int, adapter: bytes | None, tokens: int = 4) -> GenRequest:
    sampling = Sampling(tokens, temperature_milli=700, flags=1)
    return GenRequest(
        number.to_bytes(4, "big"), b"t", adapter, (65, 66, 67), sampling, number.to_bytes(32, "big")
    )


@asynccontextmanager
async def running(fleet: Fleet) -> AsyncIterator[Fleet]:
    async with trio.open_nursery() as nursery:
        await nursery.start(fleet.run)
        yield fleet
        await fleet.aclose(drain_s=0)


async def ids_of(fleet: Any, each: GenRequest) -> list[int]:
    async with fleet.submit(each) as stream:
        return [event.id async for event in stream if not isinstance(event, Finish)]


# --- who is asked: no worker at all


class Silent:
    """A worker that only notes what it is asked."""

    def __init__(self) -> None:
        self.state = "ready"
        self.asked: list[Any] = []
        self.registered: list[bytes] = []
        self.forgotten: list[bytes] = []
        self.unload_error: Exception | None = None
        self.counted = EngineStats()

    @asynccontextmanager
    async def submit(self, each: GenRequest) -> AsyncIterator[object]:
        self.asked.append(each.adapter)
        yield object()

    async def load_adapter(self, ref: AdapterRef, pin: bool) -> str:
        await trio.lowlevel.checkpoint()
        self.asked.append(ref.hash)
        return "info"

    async def unload_adapter(self, adapter: bytes, drain: bool) -> None:
        await trio.lowlevel.checkpoint()
        if self.unload_error is not None:
            raise self.unload_error

    async def gradients(self, items: Any) -> list[Any]:
        await trio.lowlevel.checkpoint()
        self.asked.append(items[0].checkpoints[0])
        return []

    def register(self, ref: AdapterRef) -> None:
        self.registered.append(ref.hash)

    def forget(self, adapter: bytes) -> None:
        self.forgotten.append(adapter)

    def stats(self) -> EngineStats:
        return self.counted


def silent() -> tuple[Any, tuple[Silent, Silent]]:
    workers = Silent(), Silent()
    made: Any = dict(zip(NAMES, workers, strict=True))
    return Fleet(made), workers


def hash_of(number: int) -> bytes:
    return bytes([number]) * 32


async def test_adapter_is_loaded_and_asked_of_at_its_home_and_known_elsewhere() -> None:
    fleet, workers = silent()
    for number in range(16):
        assert await fleet.load_adapter(AdapterRef(hash_of(number), "")) == "info"
        async with fleet.submit(request(number, hash_of(number))):
            pass
        await fleet.gradients([GradItem((hash_of(number), b""), (1,), ((1,),), "")])
    for mine, other in (workers, workers[::-1]):
        assert len(mine.asked) >= 9, "both are used"
        assert mine.asked[::3] == mine.asked[1::3] == mine.asked[2::3] == other.registered


async def test_famous_adapter_is_asked_of_both_and_the_base_of_the_less_busy() -> None:
    for adapter in (hash_of(1), None):
        fleet, workers = silent()
        first, second, third = (fleet.submit(request(number, adapter)) for number in (1, 2, 3))
        async with first, second, third:
            pass
        assert all(worker.asked for worker in workers)
        assert [member.running for member in fleet._members] == [0, 0]


async def test_worker_that_is_away_is_asked_nothing() -> None:
    fleet, (one, two) = silent()
    one.state = "restarting"
    assert fleet.state == "ready"
    for number in range(8):
        async with fleet.submit(request(number, hash_of(number))):
            pass
    assert (len(one.asked), len(two.asked)) == (0, 8)
    two.state = "down"
    assert fleet.state == "restarting"
    with pytest.raises(EngineLost):
        async with fleet.submit(request(9, None)):
            pass


async def test_adapter_is_unloaded_everywhere_or_nowhere() -> None:
    fleet, (one, two) = silent()
    ref = AdapterRef(hash_of(1), "")
    await fleet.load_adapter(ref)
    one.registered.clear()
    two.unload_error = AdapterBusy()
    with pytest.raises(AdapterBusy):
        await fleet.unload_adapter(ref.hash)
    assert one.registered == [ref.hash], "known again"
    two.unload_error = EngineLost()
    await fleet.unload_adapter(ref.hash)
    assert two.forgotten == [ref.hash]
    with pytest.raises(UnknownAdapter):
        await fleet.unload_adapter(ref.hash)


def test_counters_are_of_all_workers() -> None:
    fleet, (one, two) = silent()
    counts = (1, *[0] * 16)
    one.counted = EngineStats(
        running=2, batch_adapters_max=3, rows_used=0.5, endings={"stop": 1},
        times={"queue": Timed(counts, 0.25)}, tiers=TierStats(registered=4, ram_bytes=10),
    )  # fmt: skip
    two.counted = replace(one.counted, running=3, rows_used=0.0, endings={"length": 2})
    total = fleet.stats()
    assert (total.running, total.batch_adapters_max, total.rows_used) == (5, 3, 0.25)
    assert total.endings == {"stop": 1, "length": 2}
    assert total.times == {"queue": Timed((2, *[0] * 16), 0.5)}
    assert (total.tiers.registered, total.tiers.ram_bytes) == (4, 20)


async def no_fetch(adapter: bytes) -> str:
    raise AssertionError("nothing is lost")


def test_a_worker_is_made_for_each_device_and_one_where_none_is_named() -> None:
    make = partial(make_workers, EngineSettings("base"), no_fetch, stall_s=7.0)
    single = make(devices=())
    assert isinstance(single, WorkerEngine)
    fleet = make(devices=("cpu", "cuda:1"))
    assert isinstance(fleet, Fleet)
    assert [member.engine.settings.device for member in fleet._members] == ["cpu", "cuda:1"]


@pytest.mark.parametrize(
    ("devices", "left"),
    [
        ((), {"1.packed", "notes"}),
        (("cuda:0",), {"notes", "cuda0"}),
        (("cpu", "cuda:1"), {"notes", "cpu", "cuda1"}),
    ],
)
def test_copies_of_devices_that_are_named_no_more_go(
    tmp_path: Path, devices: tuple[str, ...], left: set[str]
) -> None:
    """They may be half of what is allowed, and no worker would ever count them."""
    for name in ("cpu", "cuda0", "cuda1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "2.packed").touch()
    for name in ("1.packed", "notes"):
        (tmp_path / name).touch()
    settings = EngineSettings("base", disk_folder=str(tmp_path), disk_bytes=1)
    make_workers(settings, no_fetch, devices=devices, stall_s=7.0)
    assert {path.name for path in tmp_path.iterdir()} == left
    assert all((tmp_path / name / "2.packed").exists() for name in left - {"1.packed", "notes"})


# --- real workers


@pytest.mark.ml
async def test_two_workers_answer_as_one_does_and_one_may_be_killed(tiny_base, make_adapter):
    settings = EngineSettings(str(tiny_base), rows=4, threads=1)
    made = [make_adapter(60 + number) for number in range(4)]
    asked = [request(number, made[number % 4][0]) for number in range(8)]
    alone = ThreadEngine(settings)
    async with trio.open_nursery() as nursery:
        await nursery.start(alone.run)
        for ref in made:
            await alone.load_adapter(AdapterRef(*ref))
        expected = [await ids_of(alone, each) for each in asked]
        await alone.aclose(drain_s=0)
    workers: Any = {name: WorkerEngine(settings) for name in NAMES}
    async with running(Fleet(workers)) as fleet:
        for ref in made:
            await fleet.load_adapter(AdapterRef(*ref))
        assert (fleet.info.rows, fleet.info.device) == (8, "cpu,cpu")
        assert fleet.info.build == workers["one"].info.build
        assert [await ids_of(fleet, each) for each in asked] == expected
        assert {info.hash for info in await fleet.adapters()} == {hash for hash, _ in made}
        os.kill(workers["one"]._link.pid, signal.SIGKILL)
        with trio.fail_after(60):
            while workers["one"].state == "ready":  # noqa: ASYNC110  # it is told to nobody
                await trio.sleep(0.01)
        assert fleet.state == "ready"
        later = [replace(each, id=b"later" + each.id) for each in asked]
        assert [await ids_of(fleet, each) for each in later] == expected


@pytest.mark.ml
async def test_fleet_whose_device_is_not_there_does_not_start(tiny_base: Path) -> None:
    """In words that come through the worker's frames."""
    if gpus():
        pytest.skip("this machine has the device")
    workers: Any = {
        device: WorkerEngine(EngineSettings(str(tiny_base), threads=1, device=device))
        for device in ("cpu", "cuda:0")
    }
    fleet = Fleet(workers)
    with pytest.raises(NoDevice) as refusal:
        await fleet.run()
    assert refusal.value.facts == {"asked": "cuda:0", "found": "cpu"}


def gpus() -> int:
    from node.serving.model import count_gpus

    return count_gpus()


@pytest.mark.ml
async def test_what_the_config_says_is_what_the_daemons_worker_computes_in(tiny_base) -> None:
    """From the words under [engine] to the child process that `olnode start` spawns."""
    said = parse('[engine]\ndevice = "cpu"\ndtype = "bfloat16"\nthreads = 1').config.engine
    wish = engine_settings(said, packed_folder="", free_bytes=0)
    engine: Any = engine_maker(said)(replace(wish, base_folder=str(tiny_base)), no_fetch)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        assert (engine.info.dtype_class, engine.info.device, engine.info.rows) == (
            "bf16",
            "cpu",
            32,
        )
        assert len(await ids_of(engine, request(1, None))) == 4
        await engine.aclose(drain_s=0)
        nursery.cancel_scope.cancel()
