"""The provider's side composed: an engine over the held models, the service, bundles, offers.

The engine starts when the base is here: what a node serves is known only from the ledger. Its
loss takes answers, never votes.
What this file does not know: how a peer is found, how a block is made.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from node.holdings import HeldModel, Holdings
from node.ledger.state import State
from node.ledger.wire.bundles import Bundle
from node.ledger.wire.orders import Load, Offer, OfferedModel
from node.observe import get_log
from node.serving.attributing import Attributor
from node.serving.book import ReceiptBook
from node.serving.bundling import Bundler
from node.serving.checking import ServedModel
from node.serving.engine import AdapterRef, EngineError, EngineSettings
from node.serving.service import InferenceService
from node.serving.worker import WorkerEngine
from p2p.errors import NetworkError
from p2p.limits import PROTOCOLS
from p2p.network import Network

LOOK_S: Final = 0.5
OFFER_VERSION: Final = 1

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
    note_change: Callable[[], None]
    addresses: Callable[[], tuple[str, ...]]
    now_ms: Callable[[], int]


class Shop:
    """Serves what `holdings` holds."""

    def __init__(
        self, counter: Counter, network: Network, holdings: Holdings, folder: Path, threads: int
    ) -> None:
        self._counter, self._network, self._holdings = counter, network, holdings
        self._threads = threads
        self.book = ReceiptBook(folder, counter.get_state)
        self._engine: WorkerEngine | None = None

    @property
    def engine_word(self) -> str:
        """`starting`, `ready`, `restarting`, `down` or `closed`."""
        return "starting" if self._engine is None else str(self._engine.state)

    async def run(self) -> None:
        """Wait for a base, start the engine, serve until cancelled."""
        base = await self._wait_base()
        self._engine = engine = WorkerEngine(
            EngineSettings(base_folder=str(base), threads=self._threads)
        )
        counter = self._counter
        bundler = Bundler(
            book=self.book,
            chain_id=counter.chain_id,
            provider=counter.provider,
            sign=counter.signer(b"bundle"),
            get_state=counter.get_state,
            offer_bundle=counter.offer_bundle,
            now_ms=counter.now_ms,
        )
        attributor = Attributor(engine=engine, find_index=self._holdings.find_index)
        service = InferenceService(
            chain_id=counter.chain_id,
            provider=counter.provider,
            sign=counter.signer(b"receipt"),
            engine=engine,
            attribute=attributor.attribute,
            book=self.book,
            find_model=self._find_model,
            get_state=counter.get_state,
            is_ready=lambda: engine.state == "ready",
            note_receipt=bundler.note_receipt,
            stream_errors=(NetworkError,),
            now_ms=counter.now_ms,
        )
        self._network.accept("infer", service.serve, PROTOCOLS["infer"])
        async with trio.open_nursery() as nursery:
            start: Any = nursery.start
            await start(engine.run)
            nursery.start_soon(bundler.run)
            await self._load_models(engine)

    async def _wait_base(self) -> Path:
        while True:
            for held in self._holdings.all():
                if held.base is not None:
                    return held.base
            await trio.sleep(LOOK_S)

    async def _load_models(self, engine: WorkerEngine) -> None:
        """Load adapters as models come to be held; tell of the change."""
        while True:
            await engine.wait_ready()
            for held in self._holdings.all():
                if held.is_ready or held.adapter is None:
                    continue
                try:
                    await _load(engine, held)
                except EngineError as error:
                    log.warning("a model does not load", model=held.label, why=str(error))
                    continue
                self._holdings.note_ready(held)
                self._counter.note_change()
                log.info("serves", model=held.label)
            await trio.sleep(LOOK_S)

    def _find_model(self, model: int, version: int) -> ServedModel | None:
        held = self._holdings.find(model, version)
        if held is None:
            return None
        adapter = held.manifest.adapter or None
        return ServedModel(adapter, held.is_ready, 0, held.index is not None)

    def make_offer(self, seq: int, expires_ms: int) -> Offer | None:
        """What to tell the network, or None before anything is ready."""
        ready = [held for held in self._holdings.all() if held.is_ready]
        if not ready or self._engine is None:
            return None
        models = sorted((held.model, held.version) for held in ready)
        addresses = tuple(address.encode() for address in self._counter.addresses()[:8])
        return Offer(
            OFFER_VERSION,
            self._counter.provider,
            self._counter.peer_key,
            seq,
            addresses,
            tuple(OfferedModel(model, version, 1, 0) for model, version in models),
            Load(32, 0, 0),
            expires_ms,
        )


async def _load(engine: WorkerEngine, held: HeldModel) -> None:
    manifest = held.manifest
    assert held.adapter is not None
    await engine.load_adapter(AdapterRef(manifest.adapter, str(held.adapter)))
    if held.checkpoints is not None:
        early, middle = held.checkpoints
        await engine.load_adapter(AdapterRef(manifest.early, str(early)))
        await engine.load_adapter(AdapterRef(manifest.middle, str(middle)))
