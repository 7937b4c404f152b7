"""Adapters come from disk to RAM to slots behind the engine's back, and stay while needed."""

import json
import random
import shutil
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from node.serving.adapters import write_adapter
from node.serving.client import FetchFailed
from node.serving.engine import (
    AdapterBusy,
    AdapterInfo,
    AdapterRef,
    BadAdapter,
    DeadlinePassed,
    EngineSettings,
    Finish,
    GenRequest,
    GradItem,
    Overloaded,
    Sampling,
    ScoreItem,
    Token,
    UnknownAdapter,
    Unsupported,
    WrongBase,
)
from node.serving.worker import ThreadEngine, WorkerEngine

pytestmark = pytest.mark.ml

MakeAdapter = Callable[..., tuple[bytes, str]]
WAIT_S = 30.0


class Gate:
    """In place of a core's reader: reads nothing until opened, and counts."""

    def __init__(self, core: Any) -> None:
        self.read = core.tiers._loader._read
        self.opened = threading.Event()
        self.reads: list[bytes] = []
        core.tiers._loader._read = self._wait

    def _wait(self, ref: AdapterRef) -> Any:
        self.reads.append(ref.hash)
        assert self.opened.wait(WAIT_S)
        return self.read(ref)


@contextmanager
def open_core(base: Path, **settings: Any) -> Iterator[Any]:
    """A core that is left with nothing live and nothing referred to."""
    from node.serving.slots import SlotCore

    core = SlotCore(EngineSettings(str(base), **{"rows": 4, **settings}))
    yield core
    assert (core.live, core._reserved, core._rows, core._coming) == (0, 0, [], {})
    assert all(packed.refs == packed.rows == 0 for packed in core._bank._packed.values())


def request(number: int, adapter: bytes | None = None, tokens: int = 4, **fields: Any):
    made = GenRequest(
        number.to_bytes(16, "big"), b"t", adapter, (5, 6, number % 200), Sampling(tokens, flags=1)
    )
    return replace(made, **fields)


def answer(core: Any, each: GenRequest) -> list[int]:
    core.submit(each)
    return [event.id for event in finish(core, each.id) if isinstance(event, Token)]


def finish(core: Any, id: bytes) -> list[Token | Finish]:
    """Step until that request has ended: its events."""
    mine: list[Token | Finish] = []
    for _ in range(10_000):
        mine += [event for name, event in core.step() if name == id]
        if mine and isinstance(mine[-1], Finish):
            return mine
    raise AssertionError("it does not end")


def settle(core: Any, count: int) -> list[Any]:
    """Wait for the reader until so many calls were settled."""
    settled: list[Any] = []
    while len(settled) < count:
        core.tiers._loader.wait()
        core.poll()
        settled += core.settled()
    return settled


def copies(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.packed"))


def written(core: Any) -> None:
    """Wait until the disk tier has what was packed."""
    core.tiers._loader._read.__self__._writes.submit(int).result(WAIT_S)


# --- loading


def test_request_whose_adapter_is_on_its_way_holds_nobody_up(tiny_base, make_adapter) -> None:
    hash, folder = make_adapter(1)
    with open_core(tiny_base) as core:
        gate = Gate(core)
        core.register(AdapterRef(hash, folder))
        cold, warm = request(1, hash), request(2)
        assert core.submit(cold, call=7) is False
        assert core.submit(warm, call=8) is True
        finish(core, warm.id)
        stats = core.stats()
        assert (stats.waiting, stats.waiting_adapter, core.settled()) == (1, 1, [])
        gate.opened.set()
        assert settle(core, 1) == [(7, None)]
        assert len(finish(core, cold.id)) == 5


def test_two_requests_and_a_load_share_one_reading(tiny_base, make_adapter) -> None:
    hash, folder = make_adapter(1)
    with open_core(tiny_base) as core:
        gate = Gate(core)
        core.tiers.begin_load(1, AdapterRef(hash, folder), False)
        core.submit(request(1, hash), call=2)
        core.submit(request(2, hash), call=3)
        gate.opened.set()
        (load, info), *others = settle(core, 3)
        assert (load, info.hash, others) == (1, hash, [(2, None), (3, None)])
        assert gate.reads == [hash]
        for number in (1, 2):
            core.cancel(request(number).id)


def test_adapter_that_does_not_come_refuses_its_requests_alone(tiny_base, make_adapter) -> None:
    good, folder = make_adapter(1)
    false = bytes(32)
    with open_core(tiny_base) as core:
        core.register(AdapterRef(false, folder))
        core.register(AdapterRef(good, folder))
        core.submit(request(1, false), call=1)
        core.submit(request(2, good), call=2)
        (call, error), other = settle(core, 2)
        assert (call, type(error), other) == (1, BadAdapter, (2, None))
        assert finish(core, request(2).id)[-1].reasons == ("length",)
        assert core.stats().rejections == {"bad_adapter": 1}
        with pytest.raises(BadAdapter):
            core.submit(request(3, false))


def test_cost_of_a_request_is_known_once_its_adapter_was_read(tiny_base, make_adapter) -> None:
    hash, folder = make_adapter(1, 20)
    with open_core(tiny_base) as core:
        gate = Gate(core)
        core.register(AdapterRef(hash, folder))
        core.submit(request(1, hash), call=1)
        before = core._scheduler._queued_cost
        gate.opened.set()
        settle(core, 1)
        assert core._scheduler._queued_cost == 4 * before, "bucket 32 is four times bucket 8"
        finish(core, request(1).id)
        assert core._scheduler._queued_cost == 0


@pytest.mark.parametrize("end", ["cancel", "deadline"])
def test_waiting_for_an_adapter_ends_as_any_waiting(tiny_base, make_adapter, end) -> None:
    hash, folder = make_adapter(1)
    now = [1_000]
    with open_core(tiny_base) as core:
        core._now_ms = lambda: now[0]
        gate = Gate(core)
        core.register(AdapterRef(hash, folder))
        core.submit(request(1, hash, deadline_ms=2_000), call=1)
        if end == "cancel":
            core.cancel(request(1).id)
        else:
            now[0] = 2_000
            core.step()
            ((call, error),) = core.settled()
            assert (call, type(error)) == (1, DeadlinePassed)
        assert core.live == 0
        gate.opened.set()
        core.tiers._loader.wait()
        core.poll()
        assert core._bank.in_ram == 1, "what was begun is there for the next one"


def test_load_in_flight_is_unloaded_by_draining_alone(tiny_base, make_adapter) -> None:
    hash, folder = make_adapter(1)
    with open_core(tiny_base) as core:
        gate = Gate(core)
        core.register(AdapterRef(hash, folder))
        core.submit(request(1, hash), call=1)
        with pytest.raises(AdapterBusy):
            core.unload(hash)
        core.unload(hash, drain=True)
        gate.opened.set()
        assert settle(core, 1) == [(1, None)]
        assert len(finish(core, request(1).id)) == 5
        assert (core.adapters(), core._bank.in_ram, core._bank.ram_bytes) == ([], 0, 0)


def test_unloaded_while_it_is_fetched_it_is_not_known_again(
    tiny_base, make_adapter, tmp_path
) -> None:
    hash, folder = make_adapter(1)
    with open_core(tiny_base, can_fetch=True) as core:
        core.register(AdapterRef(hash, str(tmp_path / "gone")))
        core.submit(request(1, hash), call=1)
        core.tiers._loader.wait()
        core.poll()
        assert core.tiers.bank.wanted() == [hash]
        core.unload(hash, drain=True)
        core.tiers.bank.found(AdapterRef(hash, folder))
        assert settle(core, 1) == [(1, None)]
        assert len(finish(core, request(1).id)) == 5
        assert (core.adapters(), core._bank.in_ram, core._bank.ram_bytes) == ([], 0, 0)


class Ones:
    """In place of an index's projector."""

    def rows(self, half: int, gradients: Any) -> Any:
        import torch

        return torch.ones((len(next(iter(gradients.values()))), 512), dtype=torch.int8)


def gradient(early: bytes, middle: bytes) -> GradItem:
    return GradItem((early, middle), (1, 2), ((3, 4),), "index")


def test_sketch_waits_for_its_checkpoints_and_holds_nobody_up(tiny_base, make_adapter) -> None:
    """What came later and has its adapters is made first; the oldest is next when it can be."""
    (cold, folder), warm = make_adapter(1), make_adapter(2)
    with open_core(tiny_base) as core:
        core._background._load_projector = lambda index: Ones()
        core.load(AdapterRef(*warm))
        gate = Gate(core)
        core.register(AdapterRef(cold, folder))
        core.add_gradients(1, [gradient(cold, warm[0]), gradient(warm[0], warm[0])])
        core.add_scores(2, [ScoreItem(warm[0], (1, 2), (3,), Sampling(1))])
        for _ in range(4):
            core.step()
        assert [(call, place) for call, place, _ in core.made()] == [(1, 1), (2, 0)]
        assert core.stats().gradients_waiting == 1
        gate.opened.set()
        core.tiers._loader.wait()
        core.step()
        ((call, place, sketch),) = core.made()
        assert (call, place, len(sketch.data)) == (1, 0, 1_024)


def test_sketches_whose_checkpoint_does_not_come_fail_as_a_call(tiny_base, make_adapter) -> None:
    warm, false = make_adapter(2), bytes(32)
    with open_core(tiny_base) as core:
        core._background._load_projector = lambda index: Ones()
        core.load(AdapterRef(*warm))
        core.register(AdapterRef(false, warm[1]))
        core.add_gradients(1, [gradient(false, warm[0]), gradient(warm[0], warm[0])])
        core.add_gradients(2, [gradient(warm[0], warm[0])])
        core.tiers._loader.wait()
        core.step()
        first, second = core.made()
        assert (first[0], type(first[2])) == (1, BadAdapter)
        assert (second[0], len(second[2].data)) == (2, 1_024)
        assert core.stats().gradients_waiting == 0


# --- the disk tier


def test_answers_from_the_disk_tier_are_those_from_the_folder(
    tiny_base, make_adapter, tmp_path
) -> None:
    made = [make_adapter(number, (8, 20)[number % 2]) for number in range(3)]
    answers = []
    for run in range(2):
        with open_core(tiny_base, disk_folder=str(tmp_path)) as core:
            for hash, folder in made:  # the second run has nothing else than the copies
                core.register(AdapterRef(hash, folder if run == 0 else "/nowhere"))
            answers.append([answer(core, request(n, made[n][0])) for n in range(3)])
            written(core)
            times = core.stats().tiers.load_times
            assert sum(times["folder" if run == 0 else "disk"].counts) == 3
            assert core.stats().tiers.disk_bytes == sum(p.stat().st_size for p in copies(tmp_path))
            assert {info.targets for info in core.adapters()} == {tuple(sorted(TARGETS))}
    assert answers[0] == answers[1]
    assert len(copies(tmp_path)) == 3


TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def test_rotten_copy_costs_one_reading_of_the_folder(tiny_base, make_adapter, tmp_path) -> None:
    hash, folder = make_adapter(1)
    with open_core(tiny_base, disk_folder=str(tmp_path)) as core:
        core.register(AdapterRef(hash, folder))
        expected = answer(core, request(1, hash))
        written(core)
    (path,) = copies(tmp_path)
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)
    with open_core(tiny_base, disk_folder=str(tmp_path)) as core:
        core.register(AdapterRef(hash, folder))
        assert answer(core, request(1, hash)) == expected
        written(core)
        assert core.stats().tiers.copies_rotten == 1
    path.write_bytes(raw)
    with open_core(tiny_base, disk_folder=str(tmp_path)) as core:
        core.register(AdapterRef(hash, "/nowhere"))
        with pytest.raises(BadAdapter):
            core.submit(request(1, hash))
        assert copies(tmp_path) == []


def test_without_a_budget_the_copies_of_earlier_runs_go(tiny_base, make_adapter, tmp_path) -> None:
    """`disk_budget_gb = 0` is how an operator asks for the room."""
    ref = AdapterRef(*make_adapter(1))
    for budget, count in ((10**9, 1), (0, 0)):
        with open_core(tiny_base, disk_folder=str(tmp_path), disk_bytes=budget) as core:
            core.load(ref)
            written(core)
        assert len(copies(tmp_path)) == count
    assert core.stats().tiers.copies_unwritten == 0


# --- budgets


def size_of(base: Path, made: tuple[bytes, str]) -> int:
    with open_core(base) as core:
        size: int = core.load(AdapterRef(*made)).bytes
        return size


def test_checkpoints_of_a_queued_gradient_and_the_pinned_are_not_evicted(
    tiny_base, make_adapter
) -> None:
    made = [make_adapter(number) for number in range(6)]
    size = size_of(tiny_base, made[0])
    with open_core(tiny_base, ram_bytes=4 * size) as core:
        core.load(AdapterRef(*made[0]), pin=True)
        for one in made[1:3]:
            core.load(AdapterRef(*one))
        core._background._load_projector = lambda folder: None
        item = GradItem((made[1][0], made[2][0]), (1, 2), ((3,),), "index")
        core.add_gradients(1, [item])
        core.load(AdapterRef(*made[3]))
        core.load(AdapterRef(*made[4]))
        assert {info.hash: info.tier for info in core.adapters()} == {
            made[0][0]: "ram", made[1][0]: "ram", made[2][0]: "ram", made[3][0]: "disk",
            made[4][0]: "ram",
        }  # fmt: skip
        tiers = core.stats().tiers
        assert (tiers.evictions["ram"], tiers.ram_bytes) == (1, 4 * size)
        core.submit(request(1, made[4][0]))
        with pytest.raises(Overloaded):
            core.load(AdapterRef(*made[5]))
        assert made[5][0] not in {info.hash for info in core.adapters()}
        core.cancel(request(1).id)
        for entry in list(core._background._queue):
            core._background._give_back(entry)
        core._background._queue.clear()


def test_pins_take_half_of_the_memory_and_no_more(tiny_base, make_adapter) -> None:
    made = [make_adapter(number) for number in range(3)]
    size = size_of(tiny_base, made[0])
    with open_core(tiny_base, ram_bytes=4 * size) as core:
        for one in made[:2]:
            core.load(AdapterRef(*one), pin=True)
        core.load(AdapterRef(*made[1]), pin=True)
        with pytest.raises(Overloaded):
            core.load(AdapterRef(*made[2]), pin=True)


def test_slots_that_nobody_counted_are_bounded_by_what_a_gpu_has_left(
    tiny_base, make_adapter, monkeypatch
) -> None:
    size = size_of(tiny_base, make_adapter(1, 8))
    monkeypatch.setattr("node.serving.slots.free_bytes", lambda device: 2 * 4 * 10 * size)
    with open_core(tiny_base, slots=0) as core:
        assert core._stack.slots == {8: 10, 16: 5, 32: 2, 64: 1}
    with open_core(tiny_base, slots=12) as core:
        assert set(core._stack.slots.values()) == {12}


def test_bucket_that_has_no_room_in_its_slots_is_refused(tiny_base, make_adapter) -> None:
    small, large = make_adapter(1, 8), make_adapter(2, 64)
    size = size_of(tiny_base, small)
    with open_core(tiny_base, slot_bytes=3 * size) as core:
        assert core._stack.slots[8] == 3
        core.load(AdapterRef(*small))
        with pytest.raises(Unsupported):
            core.load(AdapterRef(*large))


def test_copy_of_a_bucket_without_slots_is_refused_as_its_folder_is(
    tiny_base, make_adapter, tmp_path
) -> None:
    """After a start with a smaller budget; a request for it waited for a slot for ever."""
    small, large = make_adapter(1, 8), make_adapter(2, 64)
    with open_core(tiny_base, disk_folder=str(tmp_path)) as core:
        core.load(AdapterRef(*large))
        written(core)
    size = size_of(tiny_base, small)
    with open_core(tiny_base, slot_bytes=3 * size, disk_folder=str(tmp_path)) as core:
        core.register(AdapterRef(*large))
        with pytest.raises(Unsupported):
            core.submit(request(1, large[0]))


def test_rows_are_as_many_as_their_keys_and_values_may_take(tiny_base) -> None:
    """Two layers of four heads of eight numbers, 256 positions, four bytes: 128 KiB a row."""
    row = 2 * 2 * 4 * 8 * 256 * 4
    for kv_bytes, rows in ((0, 4), (row - 1, 1), (3 * row - 1, 2), (3 * row, 3), (99 * row, 4)):
        with open_core(tiny_base, kv_bytes=kv_bytes) as core:
            assert core.info.rows == rows
            assert len(answer(core, request(1))) == 4


def test_oldest_that_waits_gets_the_next_slot_however_much_the_others_want_it(
    tiny_base, make_adapter
) -> None:
    """Two slots, both in use by adapters whose requests never stop coming."""
    made = [make_adapter(number) for number in range(3)]
    with open_core(tiny_base, slots=2, aging_ms=0) as core:
        for one in made:
            core.load(AdapterRef(*one))
        adapter_of = {}

        def more(number: int, adapter: bytes, tokens: int = 12) -> None:
            adapter_of[request(number).id] = adapter
            core.submit(request(number, adapter, tokens))

        for number in range(4):  # two of each, half an answer apart
            more(100 + number, made[number % 2][0], (6, 12)[number // 2])
        core.step()
        waits = request(1, made[2][0])
        core.submit(waits)
        has_begun, number = False, 200
        for _ in range(30):
            for id, event in core.step():
                has_begun |= id == waits.id
                if isinstance(event, Finish) and id in adapter_of:
                    more(number, adapter_of[id])
                    number += 1
            if has_begun:
                break
        assert has_begun, "it starved"
        for id in list(core._live):
            core.cancel(id)
        assert core.stats().tiers.evictions["slot"] == 1


def test_ten_thousand_are_registered_in_a_few_megabytes() -> None:
    """Also once each of them was read and has gone again."""
    from node.serving.bank import AdapterBank

    nothing: Any = None
    bank = AdapterBank(nothing, nothing, 0)
    names = [number.to_bytes(32, "big") for number in range(10_000)]
    tracemalloc.start()
    for name in names:
        folder = f"/home/somebody/olnode/adapters/{name.hex()}"
        bank.register(AdapterRef(bytes(bytearray(name)), folder))
        facts = AdapterInfo(name, 8, 8, tuple(map(sys.intern, TARGETS)), int(1e6), "disk")
        bank._facts[name] = facts
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 10 * 2**20
    assert (bank.registered, len(bank.infos())) == (10_000, 10_000)


# --- all together


def traffic(made: list[tuple[bytes, str]], count: int) -> list[GenRequest]:
    rng = random.Random(7)
    popular = [1 / (place + 1) for place in range(len(made))]
    return [
        request(
            number,
            rng.choices(made, popular)[0][0],
            rng.randrange(1, 7),
            tenant=bytes([rng.randrange(5)]),
        )
        for number in range(count)
    ]


def test_tokens_are_those_of_an_engine_that_has_room_for_all(
    tiny_base, make_adapter, tmp_path
) -> None:
    """Twenty adapters in three buckets; memory for six small ones, two slots, a disk for ten.

    Some are cancelled, some unloaded while others wait for them. Nothing is over its budget.
    """
    made = [make_adapter(number, (8, 8, 16, 20)[number % 4]) for number in range(20)]
    requests = traffic(made, 90)
    with open_core(tiny_base, rows=8) as core:
        for one in made:
            core.load(AdapterRef(*one))
        expected = {each.id: answer(core, each) for each in requests}
    size, rng = size_of(tiny_base, made[0]), random.Random(8)
    budgets = {"ram_bytes": 9 * size, "slots": 2, "disk_bytes": 12 * size, "queue_requests": 40}
    with open_core(tiny_base, rows=8, disk_folder=str(tmp_path), **budgets) as core:
        for one in made:
            core.register(AdapterRef(*one))
        waiting, calls = list(requests), {}
        got: dict[bytes, list[Token | Finish]] = {}
        refused: set[bytes] = set()
        for _ in range(200_000):  # most of them while adapters are read
            if waiting and core.live < 25:
                each = waiting.pop()
                calls[int.from_bytes(each.id, "big")] = each.id
                try:
                    core.submit(each, call=int.from_bytes(each.id, "big"))
                except (Overloaded, UnknownAdapter):
                    refused.add(each.id)
            # Chance counts steps of work, not waits for the loader: their number is the machine's.
            if core.made_progress and rng.random() < 0.02 and core._live:
                core.cancel(rng.choice(list(core._live)))
            if core.made_progress and rng.random() < 0.05:
                one = rng.choice(made)
                if one[0] in core._bank._known:
                    core.unload(one[0], drain=True)
                core.register(AdapterRef(*one))
            for id, event in core.step():
                got.setdefault(id, []).append(event)
            refused |= {
                calls[call] for call, error in core.settled() if isinstance(error, Exception)
            }
            tiers = core.stats().tiers
            assert tiers.ram_bytes <= budgets["ram_bytes"]
            assert tiers.disk_bytes <= budgets["disk_bytes"]
            assert all(len(slots) <= 2 for slots in core._bank._slots.values())
            if not waiting and not core.live:
                break
        written(core)
        finished = {id for id, events in got.items() if isinstance(events[-1], Finish)}
        whole = {id for id in finished if got[id][-1].reasons == ("length",)}
        for id in whole:
            assert [event.id for event in got[id][:-1]] == expected[id]
        assert len(whole) >= 40
        assert not waiting
        tiers = core.stats().tiers
        assert min(tiers.evictions["slot"], tiers.evictions["ram"], tiers.evictions["disk"]) > 0
        assert sum(tiers.load_times["disk"].counts) > 0


# --- from elsewhere


def lost_and_found(made: tuple[bytes, str], tmp_path: Path) -> tuple[AdapterRef, Path]:
    """A reference to a folder of its own, and that folder."""
    folder = tmp_path / "adapter"
    shutil.copytree(made[1], folder)
    return AdapterRef(made[0], str(folder)), folder


@pytest.mark.parametrize("harm", ["gone", "rotten"])
async def test_files_that_are_lost_are_fetched_while_the_request_waits(
    tiny_base, make_adapter, tmp_path, harm
) -> None:
    made = make_adapter(1)
    ref, folder = lost_and_found(made, tmp_path)
    asked: list[bytes] = []

    async def fetch(hash: bytes) -> str:
        asked.append(hash)
        await trio.sleep(0.01)
        if len(asked) > 1:
            raise FetchFailed("nobody has it")
        return made[1]

    size = size_of(tiny_base, made)
    settings = EngineSettings(str(tiny_base), rows=4, threads=1, ram_bytes=size)
    engine = ThreadEngine(settings, fetch)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        await engine.load_adapter(ref)
        await engine.load_adapter(AdapterRef(*make_adapter(2)))  # there is room for one alone
        if harm == "gone":
            shutil.rmtree(folder)
        else:
            weights = folder / "adapter_model.safetensors"
            raw = bytearray(weights.read_bytes())
            raw[-1] ^= 1
            weights.write_bytes(raw)
        with trio.fail_after(WAIT_S):
            async with engine.submit(request(1, ref.hash)) as stream:
                events = [event async for event in stream]
        assert (len(events), asked) == (5, [ref.hash])
        nowhere = AdapterRef(b"n" * 32, str(folder))
        with trio.fail_after(WAIT_S), pytest.raises(UnknownAdapter) as refused:
            await engine.load_adapter(nowhere)
        assert refused.value.facts["why"] == "nobody has it"
        assert ref.hash in {info.hash for info in await engine.adapters()}
        await engine.aclose(drain_s=0)
        nursery.cancel_scope.cancel()


async def test_adapter_whose_names_no_frame_can_hold_costs_no_worker(tiny_base, tmp_path) -> None:
    """Its files are in order, so its publisher's peers hold it and their engines are to load it."""
    header, data = {}, bytes(64)
    for number, side in enumerate(("A", "B")):
        name = f"base_model.model.\ud800.lora_{side}.weight"
        place = [32 * number, 32 * number + 32]
        header[name] = {"dtype": "F32", "shape": [[8, 1], [1, 8]][number], "data_offsets": place}
    text = json.dumps(header).encode()
    raw = len(text).to_bytes(8, "little") + text + data
    strange = write_adapter(tmp_path / "strange", {"r": 8, "lora_alpha": 8}, raw)
    engine = WorkerEngine(EngineSettings(str(tiny_base), rows=4, threads=1))
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        with trio.fail_after(WAIT_S), pytest.raises(WrongBase):
            await engine.load_adapter(AdapterRef(strange, str(tmp_path / "strange")))
        await engine.aclose(drain_s=0)
        nursery.cancel_scope.cancel()
