"""The provider's side composed: an engine over the held models, the service, bundles, offers.

The engine starts when the base is here: what a node serves is known only from the ledger. Its
loss, also at its start, takes answers, never votes: nothing of it ends the node.
What this file does not know: how a peer is found, how a block is made.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio

from consensus.primitives.errors import Invalid
from node.holdings import HeldModel, Holdings
from node.ledger import tables
from node.ledger.rules.channels import lane_of
from node.ledger.rules.models import has_ended
from node.ledger.rules.staking import is_jailed
from node.ledger.state import State
from node.ledger.wire.bundles import Bundle
from node.ledger.wire.orders import OFFER_MODELS_MAX, Load, Offer, OfferedModel
from node.observe import get_log
from node.peering.blobstore import ADAPTER
from node.serving.attributing import Attributed, Attributor
from node.serving.book import ReceiptBook, Released
from node.serving.bundling import Bundler
from node.serving.checking import ServedModel
from node.serving.client import Fetch, FetchFailed
from node.serving.devices import check_class, choose_class
from node.serving.engine import (
    AdapterInfo,
    AdapterRef,
    BadAdapter,
    EngineError,
    EngineSettings,
    EngineStats,
    HostedEngine,
    NoDevice,
    Unsupported,
    WrongBase,
    WrongDtype,
)
from node.serving.entrusting import Entruster
from node.serving.service import InferenceService
from node.serving.timing import Timed
from node.serving.worker import WorkerEngine
from p2p.errors import NetworkError
from p2p.limits import PENALTIES, PROTOCOLS
from p2p.network import Network, PeerId

LOOK_S: Final = 0.5
DRAIN_LOOK_S: Final = 0.1
ADAPTERS_S: Final = 5.0
RELOAD_S: Final = 60.0  # an adapter that is wrong, all of whose files are read to see it again
OFFER_VERSION: Final = 1
RELEASED_MS: Final = 5 * 60_000  # so that what was served settles before the signature
JAIL_MEND: Final = "olnode query provider ACCOUNT tells until when; then olnode tx unjail"
NO_DEVICE_MEND: Final = (
    'device = "auto" or "cpu" under [engine] in config.toml, or a driver and a torch that see it; '
    "then olnode stop, olnode start"
)
DTYPE_MEND: Final = 'dtype = "float32" under [engine] in config.toml serves both classes'
DOWN_MEND: Final = "see memory and the worker's last words above; then olnode stop, olnode start"

log = get_log("shop")


@dataclass(frozen=True, slots=True)
class Counter:
    """What the shop needs of the node around it."""

    chain_id: bytes
    provider: bytes
    peer_key: bytes
    signer: Callable[[bytes], Callable[[bytes], bytes]]  # tag → signs whole messages
    get_state: Callable[[], State]
    offer_bundle: Callable[[Bundle], Awaitable[None]]
    hand_bundle: Callable[[Bundle], Awaitable[int]]  # to others who keep it; how many do
    note_change: Callable[[], None]
    addresses: Callable[[], tuple[str, ...]]
    is_current: Callable[[], bool]  # whether our ledger is as far as the others'
    has_room: Callable[[], bool]  # whether the disk takes what we promise
    now_ms: Callable[[], int]


class Release(NamedTuple):
    """Of a channel on which nothing more is served: grains, and how many answers are under way."""

    paid: int
    unsettled: int
    in_flight: int


class Takings(NamedTuple):
    """Of one version since the start: answers, grains of fees, and where its adapter lies."""

    requests: int
    fees: int
    tier: str
    bytes: int


NOTHING: Final = Takings(0, 0, "none", 0)

MakeEngine = Callable[[EngineSettings, Fetch], HostedEngine]


class Work(NamedTuple):
    """What the engine and the service behind it count; all zero before there is one."""

    is_up: bool
    engine: EngineStats
    receipt_delay: Timed
    counters: Mapping[str, int]


class Shop:
    """Serves what `holdings` holds; `wish` are the engine's settings but for its base."""

    def __init__(
        self,
        counter: Counter,
        network: Network,
        holdings: Holdings,
        folder: Path,
        wish: EngineSettings,
        make_engine: MakeEngine = WorkerEngine,
    ) -> None:
        self._counter, self._network, self._holdings = counter, network, holdings
        self._wish, self._make_engine = wish, make_engine
        self.book = ReceiptBook(folder, counter.get_state, now_ms=counter.now_ms())
        self._engine: HostedEngine | None = None
        self._service: InferenceService | None = None
        self._attributor: Attributor | None = None
        self._has_failed = False
        self.left_out = 0  # ready versions that the newest offer had no room for

    @property
    def engine_word(self) -> str:
        """`starting`, `ready`, `restarting`, `down`, `closed`, or `failed` to start."""
        if self._has_failed:
            return "failed"
        return "starting" if self._engine is None else str(self._engine.state)

    @property
    def is_well(self) -> bool:
        """Whether a worker serves; also where nothing is held yet that it could serve."""
        return self.engine_word == "ready" or (self._engine is None and not self._has_failed)

    async def release(self, channel: bytes) -> Release:
        """Serve nothing more on a channel, for its coop close is about to be signed.

        Raises Invalid `channel.not_found` for one that is not ours.
        """
        state, now_ms = self._counter.get_state(), self._counter.now_ms()
        record = state.find(tables.CHANNEL, channel)
        if record is None or record.provider != self._counter.provider:
            raise Invalid("channel.not_found", channel=channel)
        released = Released(channel, record.paid, now_ms + RELEASED_MS)
        await trio.to_thread.run_sync(self.book.release, released)
        lanes = [lane for lane in self.book.lanes() if lane.channel == channel]
        unsettled = 0
        for lane in lanes:
            settled = lane_of(state, channel, lane.number).seq
            unsettled += sum(x.receipt.fee for x in lane.unsettled if x.receipt.seq > settled)
        return Release(record.paid, unsettled, sum(lane.is_busy for lane in lanes))

    async def attribute(
        self,
        model: int,
        version: int,
        prompt: Sequence[int],
        answers: Sequence[Sequence[int]],
        max_out: int,
    ) -> Attributed:
        """Sketch and credits of token ids, as of an answer of ours, after all answers under way.

        `max_out`: of the order; with the prompt it decides which records stood before it.

        Raises Invalid `engine.not_ready` while no worker serves.
        """
        if self._attributor is None or self.engine_word != "ready":
            raise Invalid("engine.not_ready", state=self.engine_word)
        found = await self._attributor.retrieve(model, version, prompt, max_out)
        return await self._attributor.attribute(model, version, prompt, answers, found.rows)

    async def takings(self) -> dict[tuple[int, int], Takings]:
        """By (model, version), of what is held."""
        adapters = await self._adapters()
        served, earned = {}, {}
        if self._service is not None:
            served, earned = dict(self._service.served), dict(self._service.earned)
        found = {}
        for held in self._holdings.all():
            which = held.model, held.version
            info = adapters.get(held.manifest.adapter)
            place = ("none", 0) if info is None else (info.tier, info.bytes)
            found[which] = Takings(served.get(which, 0), earned.get(which, 0), *place)
        return found

    def work(self) -> Work:
        """What a scrape tells of this part."""
        engine, service = self._engine, self._service
        if engine is None or service is None:
            return Work(False, EngineStats(), Timed(), {})
        is_up = engine.state == "ready"
        return Work(is_up, engine.stats(), service.receipt_delay.view(), service.counters)

    def attributed(self) -> Mapping[str, int]:
        """How many answers were attributed, and how many were not, by why (`without.…`)."""
        return {} if self._attributor is None else self._attributor.counters

    async def _fetch(self, adapter: bytes) -> str:
        """Its folder, mended or fetched anew from a peer, for an engine that lacks it."""
        try:
            return str(await self._holdings.fetch(ADAPTER, adapter))
        except (NetworkError, Invalid, OSError) as error:
            log.warning("an adapter is lost", adapter=adapter.hex(), why=str(error))
            raise FetchFailed(str(error)) from None

    async def _adapters(self) -> dict[bytes, AdapterInfo]:
        """What the engine knows; nothing while it is away."""
        if self._engine is None or self._engine.state != "ready":
            return {}
        try:
            with trio.fail_after(ADAPTERS_S):
                return {info.hash: info for info in await self._engine.adapters()}
        except (EngineError, trio.TooSlowError):
            return {}

    async def drain(self, seconds: float) -> None:
        """Take no new order, and wait for the receipts of those under way, so long at most: what is
        cut was delivered and is never paid."""
        service = self._service
        if service is None:
            return
        service.drain()
        with trio.move_on_after(seconds):
            while service.under_way:  # noqa: ASYNC110  # a look a while is enough at an end
                await trio.sleep(DRAIN_LOOK_S)
        if service.under_way:
            log.warning(
                "answers are cut", number=service.under_way, mend="a larger shutdown.drain_s"
            )

    def close(self) -> None:
        """Let go of the receipts' files."""
        self.book.close()

    async def run(self) -> None:
        """Settle; wait for a base, start the engine, serve until cancelled."""
        bundler = self._make_bundler()
        async with trio.open_nursery() as nursery:
            # Before the base, which may be lost or no longer wanted: what was answered is owed.
            nursery.start_soon(bundler.run)
            nursery.start_soon(self._make_entruster().run)
            nursery.start_soon(self._watch_jail)
            base = await self._wait_base()
            self._engine = engine = self._make_engine(self._settings_for(base), self._fetch)
            self._service = service = self._make_service(engine, bundler)
            self._network.accept("infer", service.serve, PROTOCOLS["infer"])
            start: Any = nursery.start
            try:
                await start(engine.run)
            except EngineError as error:
                self._has_failed = True
                mend = NO_DEVICE_MEND if isinstance(error, NoDevice) else "olnode start, again"
                log.error("the engine does not start", why=str(error), mend=mend)
                return
            nursery.start_soon(_watch, engine)
            await self._load_models(engine, base)

    def _is_jailed(self) -> bool:
        return is_jailed(self._counter.get_state(), tables.ROLE_PROVIDER, self._counter.provider)

    async def _watch_jail(self) -> None:
        """Tell the operator when the ledger jails this provider, and when it is free again."""
        was_jailed = False
        while True:
            if self._is_jailed() is not was_jailed:
                was_jailed = not was_jailed
                if was_jailed:
                    log.error(
                        "this provider is jailed: it serves and settles nothing", mend=JAIL_MEND
                    )
                else:
                    log.info("this provider is free again")
            await trio.sleep(LOOK_S)

    def _make_bundler(self) -> Bundler:
        counter = self._counter
        return Bundler(
            book=self.book,
            chain_id=counter.chain_id,
            provider=counter.provider,
            sign=counter.signer(b"bundle"),
            get_state=counter.get_state,
            offer_bundle=counter.offer_bundle,
            now_ms=counter.now_ms,
        )

    def _make_entruster(self) -> Entruster:
        counter = self._counter
        return Entruster(
            book=self.book,
            chain_id=counter.chain_id,
            provider=counter.provider,
            sign=counter.signer(b"bundle"),
            get_state=counter.get_state,
            hand=counter.hand_bundle,
            now_ms=counter.now_ms,
        )

    def _make_service(self, engine: HostedEngine, bundler: Bundler) -> InferenceService:
        counter = self._counter
        self._attributor = Attributor(engine=engine, find_index=self._holdings.find_index)
        return InferenceService(
            chain_id=counter.chain_id,
            provider=counter.provider,
            sign=counter.signer(b"receipt"),
            engine=engine,
            retrieve=self._attributor.retrieve,
            attribute=self._attributor.attribute,
            book=self.book,
            find_model=self._find_model,
            get_state=counter.get_state,
            is_current=counter.is_current,
            has_engine=lambda: engine.state == "ready",
            has_room=counter.has_room,
            note_receipt=bundler.note_receipt,
            blame=self._blame,
            stream_errors=(NetworkError,),
            now_ms=counter.now_ms,
        )

    def _blame(self, peer: bytes) -> None:
        self._network.penalise(PeerId(peer), PENALTIES["malformed"], "malformed")

    async def _wait_base(self) -> Path:
        while True:
            for held in self._holdings.all():
                if held.base is not None:
                    return held.base
            await trio.sleep(LOOK_S)

    def _settings_for(self, base: Path) -> EngineSettings:
        """In what numbers is known once versions are here: those that it will have to serve."""
        pinned = [held.manifest.dtype_word for held in self._holdings.all() if held.base == base]
        numbers = choose_class(self._wish.dtype_class, pinned)
        return replace(self._wish, base_folder=str(base), dtype_class=numbers)

    async def _load_models(self, engine: HostedEngine, base: Path) -> None:
        """Make models ready as they come to be held; tell of the change."""
        waits: dict[str, float] = {}  # label → when to try again what did not load
        loaded: set[bytes] = set()
        while True:
            await engine.wait_ready()
            await self._unload_dropped(engine, loaded)
            for held in self._holdings.all():
                is_early = trio.current_time() < waits.get(held.label, 0.0)
                if held.is_ready or held.base is None or is_early:
                    continue
                try:
                    await _load(engine, held, base)
                except EngineError as error:
                    if held.label not in waits:  # tried again for ever, told once
                        mend = DTYPE_MEND if isinstance(error, WrongDtype) else None
                        told = {"mend": mend} if mend else {}
                        log.warning(
                            "a model does not load", model=held.label, why=str(error), **told
                        )
                    is_lasting = isinstance(error, (BadAdapter, WrongBase, WrongDtype, Unsupported))
                    pause_s = RELOAD_S if is_lasting else LOOK_S
                    waits[held.label] = trio.current_time() + pause_s
                    continue
                loaded.update(held.manifest.adapters)
                self._holdings.note_ready(held)
                self._counter.note_change()
                log.info("serves", model=held.label)
            await trio.sleep(LOOK_S)

    async def _unload_dropped(self, engine: HostedEngine, loaded: set[bytes]) -> None:
        """Have the engine forget the adapters that no version held needs any more."""
        needed = {hash for held in self._holdings.all() for hash in held.manifest.adapters}
        for hash in sorted(loaded - needed):
            try:
                await engine.unload_adapter(hash, drain=True)
            except EngineError as error:
                log.warning("an adapter is not unloaded", adapter=hash.hex(), why=str(error))
            loaded.discard(hash)

    def _find_model(self, model: int, version: int) -> ServedModel | None:
        held = self._holdings.find(model, version)
        if held is None:
            return None
        adapter = held.manifest.adapter or None
        indexed = held.index is not None
        return ServedModel(adapter, held.is_ready, 0, indexed, held.manifest.dtype_word)

    def make_offer(self, seq: int, expires_ms: int) -> Offer | None:
        """What to tell the network, or None while nothing is ready."""
        state, now_ms = self._counter.get_state(), self._counter.now_ms()
        ready = [
            held
            for held in self._holdings.all()
            if held.is_ready and not has_ended(state, (held.model, held.version), now_ms)
        ]
        if not ready or self.engine_word != "ready" or self._is_jailed():
            return None
        models = _choose_offered([(held.model, held.version) for held in ready])
        self.left_out = len(ready) - len(models)
        addresses = tuple(address.encode() for address in self._counter.addresses()[:8])
        return Offer(
            OFFER_VERSION,
            self._counter.provider,
            self._counter.peer_key,
            seq,
            addresses,
            tuple(OfferedModel(model, version, 1, 0) for model, version in models),
            self._load(),
            expires_ms,
        )

    def _load(self) -> Load:
        """What payers choose a provider by; the median is of first tokens since the start."""
        assert self._engine is not None
        stats = self._engine.stats()
        first = stats.times.get("time_to_first_token", Timed())
        return Load(self._engine.info.rows, stats.waiting, first.median_ms())


def _choose_offered(ready: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """As many (model, version) as an offer may tell, in order: a model's newest before older."""
    newest = dict(sorted(ready))
    ranked = sorted(ready, key=lambda which: (newest[which[0]] != which[1], which))
    return sorted(ranked[:OFFER_MODELS_MAX])


async def _watch(engine: HostedEngine) -> None:
    """Tell the operator when the worker is lost, serves again, or is given up."""
    known = engine.state
    while True:
        await trio.sleep(LOOK_S)
        if engine.state == known:
            continue
        known = engine.state
        if known == "restarting":
            log.warning("the engine's worker was lost; another one starts")
        elif known == "down":
            log.error("the engine is down: it lost its workers too often", mend=DOWN_MEND)
        elif known == "ready":
            log.info("the engine serves again")


async def _load(engine: HostedEngine, held: HeldModel, base: Path) -> None:
    """Load what a version needs beside the base; raises EngineError.

    A folder is named by its content: another one is another base, though its shapes may fit.
    """
    manifest = held.manifest
    if held.index is not None and "gradients" not in engine.info.can:
        raise Unsupported(what="gradients, which its attribution needs")
    check_class(engine.info.dtype_class, manifest.dtype_word)
    if held.base != base:
        raise WrongBase(engine=base.name, model=manifest.base.hex())
    if held.adapter is not None:
        await engine.load_adapter(AdapterRef(manifest.adapter, str(held.adapter)))
    if held.checkpoints is not None:
        early, middle = held.checkpoints
        await engine.load_adapter(AdapterRef(manifest.early, str(early)))
        await engine.load_adapter(AdapterRef(manifest.middle, str(middle)))
