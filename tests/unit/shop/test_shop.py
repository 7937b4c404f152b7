"""The provider's side composed: it offers what is ready; a lost engine ends nothing else."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from bundle_kit import CHAIN, some_receipt
from ledger_kit import NOW_MS, PROVIDER, fee_of, new_state, open_channel
from structlog.testing import capture_logs

from consensus.primitives.errors import Invalid
from node.holdings import HeldModel
from node.ledger import tables
from node.ledger.state import State
from node.ledger.wire.orders import OFFER_MODELS_MAX, Load, decode_offer, encode_offer
from node.ledger.wire.receipts import encode_receipt
from node.peering.blobstore import ADAPTER
from node.serving.book import ReceiptBook, Served
from node.serving.bundling import Bundler
from node.serving.client import FetchFailed
from node.serving.engine import (
    AdapterInfo,
    AdapterRef,
    BadAdapter,
    EngineError,
    EngineLost,
    EngineSettings,
    EngineStats,
    NoDevice,
    Overloaded,
    Unsupported,
    WrongBase,
)
from node.serving.manifest import Manifest
from node.serving.timing import Timed
from node.shop import LOOK_S, NOTHING, RELEASED_MS, RELOAD_S, Counter, Shop, Takings
from p2p.errors import Unreachable

FEE = fee_of(3, 5)
BASE = Path("/models/base")
MANIFEST = Manifest(
    1, b"b" * 32, b"a" * 32, b"e" * 32, b"m" * 32, 8, (b"q_proj",), b"s" * 32, b"i" * 32, b"",
    0, 0, 512, (), b"",
)  # fmt: skip
BARE = MANIFEST._replace(adapter=b"", early=b"", middle=b"", rank=0, targets=(), index_root=b"")


def held(model: int = 1, version: int = 1, base: Path | None = BASE, **fields: Any) -> HeldModel:
    made = HeldModel(
        f"model-{model}", model, version, MANIFEST, base, Path("/a"), (Path("/e"), Path("/m")), None
    )
    return replace(made, **fields)


class Engine:
    """An engine that loads what it is told, and fails as it is told."""

    def __init__(self) -> None:
        self.state = "starting"
        self.info: Any = SimpleNamespace(can=("gradients",), dtype_class="fp32", rows=16)
        self.loaded: list[AdapterRef] = []
        self.start_error: EngineError | None = None
        self.load_error: EngineError | None = None
        self.ready = trio.Event()
        self.may_start = trio.Event()

    async def run(self, *, task_status: Any) -> None:
        try:
            await self.may_start.wait()
            if self.start_error is not None:
                raise self.start_error
            self.state = "ready"
            self.ready.set()
            task_status.started()
            await trio.sleep_forever()
        finally:
            self.state = "closed" if self.state == "starting" else self.state

    async def wait_ready(self) -> None:
        await self.ready.wait()

    def lose(self, state: str) -> None:
        """As `EngineClient` after a loss: not ready until a new worker is."""
        self.state, self.ready = state, trio.Event()
        self.load_error = EngineLost(state=state)

    def recover(self) -> None:
        self.state, self.load_error = "ready", None
        self.ready.set()

    def stats(self) -> EngineStats:
        first = Timed((*(0,) * 9, 3, 1, *(0,) * 6), 3.5)
        return EngineStats(running=3, waiting=5, times={"time_to_first_token": first})

    async def adapters(self) -> list[AdapterInfo]:
        await trio.lowlevel.checkpoint()
        if self.load_error is not None:
            raise self.load_error
        return [AdapterInfo(ref.hash, 8, 8, (), 640, "ram") for ref in self.loaded]

    async def load_adapter(self, ref: AdapterRef, pin: bool = False) -> None:
        await trio.lowlevel.checkpoint()
        if self.load_error is not None:
            raise self.load_error
        self.loaded.append(ref)

    async def unload_adapter(self, adapter: bytes, drain: bool = False) -> None:
        await trio.lowlevel.checkpoint()
        assert drain, "answers in flight go on"
        self.loaded = [ref for ref in self.loaded if ref.hash != adapter]


@dataclass
class Around:
    """What a shop asks of its node."""

    engine: Engine
    models: dict[tuple[int, int], HeldModel] = field(default_factory=dict)
    state: State = field(default_factory=new_state)
    changes: int = 0
    protocols: list[str] = field(default_factory=list)
    settings: Any = None
    fetch_adapter: Any = None
    fetch_error: Exception | None = None
    votes: int = 0

    def hold(self, *models: HeldModel) -> None:
        self.models |= {(one.model, one.version): one for one in models}

    def all(self) -> tuple[HeldModel, ...]:
        return tuple(self.models.values())

    def find(self, model: int, version: int) -> HeldModel | None:
        return self.models.get((model, version))

    def find_index(self, model: int, version: int) -> None:
        return None

    def note_ready(self, one: HeldModel) -> None:
        self.hold(replace(one, is_ready=True))

    def accept(self, protocol: str, handler: Any, limits: Any) -> None:
        self.protocols.append(protocol)

    def note_change(self) -> None:
        self.changes += 1

    def make_engine(self, settings: Any, fetch: Any) -> Any:
        self.settings, self.fetch_adapter = settings, fetch
        return self.engine

    async def fetch(self, kind: int, identity: bytes) -> Path:
        await trio.lowlevel.checkpoint()
        if self.fetch_error is not None:
            raise self.fetch_error
        return Path(f"/adapters/{kind}/{identity.hex()}")

    async def vote(self) -> None:
        """The rest of the node."""
        while True:
            await trio.sleep(1)
            self.votes += 1


async def offer_bundle(bundle: Any) -> None:
    raise AssertionError("nothing was answered")


@asynccontextmanager
async def open_shop(folder: Path) -> AsyncIterator[tuple[Shop, Around]]:
    around = Around(Engine())
    state = around.state
    counter = Counter(
        chain_id=CHAIN, provider=PROVIDER.key, peer_key=bytes(32), signer=lambda tag: PROVIDER.sign,
        get_state=lambda: state, offer_bundle=offer_bundle, hand_bundle=offer_bundle,
        note_change=around.note_change,
        addresses=lambda: tuple(f"/ip4/10.0.0.{i}/tcp/1" for i in range(12)),
        is_current=lambda: True, has_room=lambda: True, now_ms=lambda: NOW_MS,
    )  # fmt: skip
    there: Any = around
    wish = EngineSettings("", threads=3, slots=7)
    shop = Shop(counter, there, there, folder / "receipts", wish, around.make_engine)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(around.vote)
        nursery.start_soon(shop.run)
        yield shop, around
        nursery.cancel_scope.cancel()
    shop.close()


@pytest.mark.parametrize("is_busy", [False, True])
async def test_released_channel_is_told_with_what_is_not_settled(tmp_path, is_busy) -> None:
    async with open_shop(tmp_path) as (shop, around):
        channel, answers = open_channel(around.state), 3
        fill(shop.book, channel, answers)
        lane = shop.book.lane(channel, 0)
        lane.is_busy = is_busy
        assert await shop.release(channel) == (0, answers * FEE, int(is_busy))
        assert shop.book.is_released(channel, 0, NOW_MS + RELEASED_MS)
        assert shop.book.is_released(channel, 1, NOW_MS + RELEASED_MS - 1)
        assert not shop.book.is_released(channel, 1, NOW_MS + RELEASED_MS)
        settled = tables.Lane(2, 2 * FEE, bytes(32))
        around.state.put(tables.LANE, (channel, 0), settled)
        assert (await shop.release(channel)).unsettled == FEE


async def test_takings_are_told_by_version_also_while_the_engine_is_away(
    tmp_path, autojump_clock
) -> None:
    async with open_shop(tmp_path) as (shop, around):
        around.hold(held())
        assert await shop.takings() == {(1, 1): NOTHING}
        around.engine.may_start.set()
        await look()
        service: Any = shop._service
        service.served[1, 1] += 2
        service.earned[1, 1] += 70
        assert await shop.takings() == {(1, 1): Takings(2, 70, "ram", 640)}
        around.engine.lose("restarting")
        assert await shop.takings() == {(1, 1): Takings(2, 70, "none", 0)}


async def test_adapter_that_the_engine_lacks_is_fetched_by_its_hash(
    tmp_path, autojump_clock
) -> None:
    async with open_shop(tmp_path) as (_, around):
        around.hold(held())
        await look()
        assert await around.fetch_adapter(b"a" * 32) == f"/adapters/{ADAPTER}/{(b'a' * 32).hex()}"
        for error in (Unreachable("nobody"), Invalid("holdings.identity"), OSError(28, "full")):
            around.fetch_error = error
            with pytest.raises(FetchFailed):
                await around.fetch_adapter(b"a" * 32)


async def test_answers_without_a_sketch_are_counted_by_why(tmp_path, autojump_clock) -> None:
    async with open_shop(tmp_path) as (shop, around):
        assert shop.attributed() == {}
        around.hold(held())
        around.engine.may_start.set()
        await look()
        await shop.attribute(1, 1, (5,), ((6,),), 4)
        assert shop.attributed() == {"without.no_index": 1}


async def test_work_is_counted_from_before_there_is_any(tmp_path, autojump_clock) -> None:
    async with open_shop(tmp_path) as (shop, around):
        assert (shop.work().is_up, shop.work().engine) == (False, EngineStats())
        around.hold(held())
        await look()
        assert (shop.work().is_up, shop.work().engine.running) == (False, 3)
        around.engine.may_start.set()
        await look()
        assert shop.work().is_up


@pytest.mark.parametrize(("left_s", "waited_s", "left"), [(3, 3, 0), (60, 10, 1)])
async def test_stop_waits_for_answers_under_way_as_long_as_it_may(
    tmp_path: Path, autojump_clock: object, left_s: int, waited_s: int, left: int
) -> None:
    async with open_shop(tmp_path) as (shop, around):
        await shop.drain(10)
        around.hold(held())
        around.engine.may_start.set()
        await look()
        service: Any = shop._service
        service.under_way = 1

        async def end() -> None:
            await trio.sleep(left_s)
            service.under_way = 0

        async with trio.open_nursery() as nursery:
            nursery.start_soon(end)
            began_s = trio.current_time()
            await shop.drain(10)
            assert trio.current_time() - began_s == pytest.approx(waited_s, abs=0.2)
            assert service.under_way == left
            nursery.cancel_scope.cancel()


async def test_version_whose_sketches_cannot_be_made_is_not_served(
    tmp_path, autojump_clock
) -> None:
    async with open_shop(tmp_path) as (_, around):
        around.engine.info = SimpleNamespace(can=(), dtype_class="fp32", rows=16)
        around.engine.may_start.set()
        index: Any = object()
        around.hold(held(index=index), held(model=2))
        await look()
        assert [one.is_ready for one in around.all()] == [False, True]
        around.engine.info = SimpleNamespace(can=("gradients",), dtype_class="fp32", rows=16)
        await trio.sleep(RELOAD_S)
        assert all(one.is_ready for one in around.all())


IN_BF16 = MANIFEST._replace(dtype_class=1)


@pytest.mark.parametrize(
    ("asked", "manifests", "numbers"),
    [
        ("auto", [MANIFEST, IN_BF16], "fp32"),
        ("auto", [IN_BF16], "bf16"),
        ("bf16", [MANIFEST], "bf16"),
    ],
)
async def test_engine_computes_in_what_the_versions_held_pin(
    tmp_path, autojump_clock, asked, manifests, numbers
) -> None:
    async with open_shop(tmp_path) as (shop, around):
        shop._wish = replace(shop._wish, dtype_class=asked)
        around.hold(*(held(model=n, manifest=one) for n, one in enumerate(manifests)))
        await look()
        assert around.settings.dtype_class == numbers


async def test_version_whose_numbers_the_engine_does_not_have_is_not_served(
    tmp_path, autojump_clock
) -> None:
    """Its answers would be told and judged as what they are not."""
    async with open_shop(tmp_path) as (shop, around):
        around.engine.info = SimpleNamespace(can=("gradients",), dtype_class="bf16", rows=16)
        around.engine.may_start.set()
        around.hold(held(), held(model=2, manifest=IN_BF16))
        with capture_logs() as logs:
            await look()
        assert [one.is_ready for one in around.all()] == [False, True]
        (told,) = [log for log in logs if log["event"] == "a model does not load"]
        assert "engine.wrong_dtype" in told["why"]
        assert "float32" in told["mend"]
        served = shop._find_model(2, 1)
        assert served is not None
        assert served.dtype_class == "bf16"


async def test_device_that_is_not_there_is_told_with_its_mend(tmp_path, autojump_clock) -> None:
    async with open_shop(tmp_path) as (shop, around):
        around.engine.start_error = NoDevice(asked="cuda", found="cpu")
        around.engine.may_start.set()
        around.hold(held())
        with capture_logs() as logs:
            await look()
        assert (shop.engine_word, shop.is_well) == ("failed", False)
        (told,) = [log for log in logs if log["event"] == "the engine does not start"]
        assert "asked='cuda'" in told["why"]
        assert "device" in told["mend"]


async def test_channel_of_another_provider_is_not_released(tmp_path) -> None:
    async with open_shop(tmp_path) as (shop, around):
        channel = open_channel(around.state, provider=bytes(32))
        for name in (channel, b"x" * 32):
            with pytest.raises(Invalid) as refused:
                await shop.release(name)
            assert refused.value.code == "channel.not_found"


async def test_jail_is_told_once_and_nothing_is_offered_in_it(tmp_path, autojump_clock) -> None:
    async with open_shop(tmp_path) as (shop, around):
        around.engine.may_start.set()
        around.hold(held(is_ready=True))
        key = (tables.ROLE_PROVIDER, PROVIDER.key)
        with capture_logs() as logs:
            await look()
            offer = shop.make_offer(1, NOW_MS + 1)
            assert offer is not None
            assert offer.load == Load(slots=16, waiting=5, p50_ms=500), "what payers choose by"
            around.state.put(tables.CONDUCT, key, tables.Conduct(jailed_until_ms=1))
            await look()
            await look()
            assert shop.make_offer(2, NOW_MS + 1) is None
            around.state.put(tables.CONDUCT, key, tables.Conduct())
            await look()
            assert shop.make_offer(3, NOW_MS + 1) is not None
        told = [line["event"] for line in logs if line["event"].startswith("this provider")]
        assert told == [
            "this provider is jailed: it serves and settles nothing", "this provider is free again"
        ]  # fmt: skip


def fill(book: ReceiptBook, channel: bytes, answers: int) -> None:
    """Answers of FEE that no block has."""
    for seq in range(1, answers + 1):
        fields = {"channel": channel, "lane": 0, "seq": seq, "fee": FEE}
        receipt = encode_receipt(some_receipt(random.Random(seq), b"", **fields))
        empty = (b"", b"", b"", bytes(32), (b"",), (b"",), b"", b"", b"")
        book.keep(Served(receipt, bytes(64), b"\x90", *empty))


async def look() -> None:
    await trio.sleep(2 * LOOK_S + 0.01)


async def test_engine_waits_for_a_base_and_starts_with_it(tmp_path, autojump_clock) -> None:
    async with open_shop(tmp_path) as (shop, around):
        around.hold(held(base=None))
        await look()
        assert (shop.engine_word, around.settings) == ("starting", None)
        around.hold(held(2))
        await look()
        assert around.settings == EngineSettings(str(BASE), threads=3, slots=7)
        assert around.protocols == ["infer"]


async def test_what_was_answered_is_settled_before_any_base_is_here(
    tmp_path, autojump_clock, monkeypatch
) -> None:
    """A base may have rotted, and models may be wanted no more: receipts expire all the same."""
    turns = []

    async def turn(bundler: Bundler) -> None:
        turns.append(trio.current_time())

    monkeypatch.setattr(Bundler, "turn", turn)
    async with open_shop(tmp_path) as (shop, around):
        await trio.sleep(3.5)
        assert (len(turns), around.settings) == (3, None)
        around.engine.may_start.set()
        around.hold(held())
        await trio.sleep(3)
        assert shop.engine_word == "ready"
        assert len(turns) in (6, 7), "and by the same bundler afterwards"


async def test_node_is_well_while_there_is_nothing_to_serve_or_a_worker_serves(
    tmp_path, autojump_clock
) -> None:
    async with open_shop(tmp_path) as (shop, around):
        assert shop.is_well
        around.hold(held())
        await look()
        assert not shop.is_well, "the engine starts"
        around.engine.may_start.set()
        await look()
        assert shop.is_well
        for state in ("restarting", "down"):
            around.engine.lose(state)
            assert not shop.is_well


async def test_operator_is_told_of_a_lost_worker_and_of_an_engine_that_is_down(
    tmp_path, autojump_clock
) -> None:
    with capture_logs() as logs:
        async with open_shop(tmp_path) as (_, around):
            around.engine.may_start.set()
            around.hold(held())
            await look()
            around.engine.lose("restarting")
            await look()
            around.engine.recover()
            await look()
            around.engine.lose("down")
            await trio.sleep(10)
    told = [(entry["log_level"], "mend" in entry) for entry in logs if "engine" in entry["event"]]
    assert told == [("warning", False), ("info", False), ("error", True)]


async def test_adapters_of_a_version_that_is_dropped_leave_the_engine(
    tmp_path, autojump_clock
) -> None:
    async with open_shop(tmp_path) as (_, around):
        around.engine.may_start.set()
        newer = MANIFEST._replace(adapter=b"n" * 32)
        around.hold(held(1, 1), held(1, 2, manifest=newer))
        await look()
        del around.models[1, 1]
        await look()
        assert {ref.hash for ref in around.engine.loaded} == {b"n" * 32, b"e" * 32, b"m" * 32}


@pytest.mark.parametrize(("count", "left_out"), [(OFFER_MODELS_MAX, 0), (OFFER_MODELS_MAX + 1, 1)])
async def test_offer_tells_no_more_than_it_may_and_newest_versions_first(
    tmp_path, autojump_clock, count, left_out
) -> None:
    """One above the limit is no offer at all: every peer would refuse it."""
    async with open_shop(tmp_path) as (shop, around):
        around.engine.may_start.set()
        around.hold(held(1, 1), *(held(1 + i, 2) for i in range(count - 1)))
        await look()
        offer = shop.make_offer(1, NOW_MS)
        assert (len(offer.models), shop.left_out) == (OFFER_MODELS_MAX, left_out)
        decode_offer(encode_offer(offer))
        assert ((1, 1) in [(m.model, m.model_version) for m in offer.models]) == (not left_out)


async def test_model_that_has_ended_is_offered_no_more(tmp_path, autojump_clock) -> None:
    async with open_shop(tmp_path) as (shop, around):
        around.engine.may_start.set()
        around.hold(held(1), held(2))
        await look()
        record = around.state.get(tables.MODEL, 1)
        around.state.put(tables.MODEL, (1,), record._replace(retired_ms=NOW_MS))
        assert [m.model for m in shop.make_offer(1, NOW_MS).models] == [2]


async def test_nothing_is_offered_before_engine_and_adapters_are_ready(
    tmp_path, autojump_clock
) -> None:
    async with open_shop(tmp_path) as (shop, around):
        assert shop.make_offer(1, NOW_MS) is None
        around.hold(held())
        await look()
        assert shop.make_offer(1, NOW_MS) is None, "the engine starts"
        assert not shop._find_model(1, 1).is_ready
        around.engine.may_start.set()
        await look()
        offer = shop.make_offer(7, NOW_MS + 5)
        assert (offer.provider, offer.seq, offer.expires_ms) == (PROVIDER.key, 7, NOW_MS + 5)
        assert [(m.model, m.model_version, m.ready) for m in offer.models] == [(1, 1, 1)]
        assert len(offer.addresses) == 8, "as many as an offer may tell"
        assert around.changes == 1
        assert {ref.hash for ref in around.engine.loaded} == {b"a" * 32, b"e" * 32, b"m" * 32}


async def test_only_ready_models_are_offered_in_their_order(tmp_path, autojump_clock) -> None:
    async with open_shop(tmp_path) as (shop, around):
        around.engine.may_start.set()
        around.hold(held(3), held(2, 2), held(2, 1))
        await look()
        around.engine.load_error = BadAdapter(key="x")
        around.hold(held(1))
        await look()
        offer = shop.make_offer(1, NOW_MS)
        assert [(m.model, m.model_version) for m in offer.models] == [(2, 1), (2, 2), (3, 1)]
        around.engine.load_error = None
        await trio.sleep(RELOAD_S)
        assert len(shop.make_offer(2, NOW_MS).models) == 4, "it was tried again"


async def test_model_without_an_adapter_is_served_by_the_base(tmp_path, autojump_clock) -> None:
    async with open_shop(tmp_path) as (shop, around):
        around.engine.may_start.set()
        around.hold(held(manifest=BARE, adapter=None, checkpoints=None))
        await look()
        served = shop._find_model(1, 1)
        assert (served.adapter, served.is_ready, served.has_index) == (None, True, False)
        assert around.engine.loaded == []


async def test_model_of_another_base_is_not_served_by_this_one(tmp_path, autojump_clock) -> None:
    """Its adapter may fit by its shapes; the answers would be of another model than was bought."""
    async with open_shop(tmp_path) as (shop, around):
        around.engine.may_start.set()
        around.hold(held(1), held(2, base=Path("/models/other")))
        await look()
        assert [m.model for m in shop.make_offer(1, NOW_MS).models] == [1]
        assert len(around.engine.loaded) == 3


@pytest.mark.parametrize(
    ("error", "tries"), [(WrongBase(key="x"), 2), (BadAdapter(key="x"), 2), (Overloaded(), 100)]
)
async def test_adapter_that_is_wrong_is_read_again_seldom(
    tmp_path, autojump_clock, error: EngineError, tries: int
) -> None:
    """Each try reads and hashes up to 2 GiB; one that lacked memory comes as soon as it can."""
    tried = 0

    async def load_adapter(ref: AdapterRef, pin: bool = False) -> None:
        nonlocal tried
        await trio.lowlevel.checkpoint()
        tried += 1
        raise error

    async with open_shop(tmp_path) as (shop, around):
        around.engine.load_adapter = load_adapter
        around.engine.may_start.set()
        around.hold(held(1))
        with capture_logs() as logs:
            await trio.sleep(1.5 * RELOAD_S)
        assert tried == tries if tries < 10 else tried > tries
        assert [one["model"] for one in logs] == ["model-1@1"]
        del around.engine.load_adapter
        await trio.sleep(RELOAD_S)
        assert shop._find_model(1, 1).is_ready


async def test_version_that_is_not_held_is_not_served(tmp_path, autojump_clock) -> None:
    async with open_shop(tmp_path) as (shop, around):
        around.hold(held())
        assert shop._find_model(1, 2) is None


@pytest.mark.parametrize("state", ["restarting", "down"])
async def test_lost_engine_is_not_offered_and_the_node_lives(
    tmp_path, autojump_clock, state
) -> None:
    async with open_shop(tmp_path) as (shop, around):
        around.engine.may_start.set()
        around.hold(held())
        await look()
        around.engine.lose(state)
        around.hold(held(2))
        await trio.sleep(10)
        assert (shop.engine_word, shop.make_offer(1, NOW_MS)) == (state, None)
        assert around.votes >= 10
        around.engine.recover()
        await look()
        assert len(shop.make_offer(2, NOW_MS).models) == 2


async def test_engine_that_does_not_start_leaves_the_node_alive(tmp_path, autojump_clock) -> None:
    """A provider that also votes must go on voting without torch, or with a base it cannot read."""
    async with open_shop(tmp_path) as (shop, around):
        around.engine.start_error = Unsupported(what="torch is not installed")
        around.engine.may_start.set()
        around.hold(held())
        await trio.sleep(10)
        assert (shop.engine_word, shop.make_offer(1, NOW_MS)) == ("failed", None)
        assert around.votes >= 9
