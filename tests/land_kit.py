"""A creator's, a provider's and a payer's node on one ledger, in one process.

Storage, blobs, engine, service, wallet and rules are the product's; the ledger is one state that
all three see. They speak over the simulated network, or over sockets on loopback.
"""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import trio
from bundle_kit import CHAIN, Party, party
from ledger_kit import CREATOR, OPEN, PAYER, PROVIDER, context, new_state, transaction

from consensus.primitives.digest import sha256
from node.attribution.datanets import Record, contribution_root, encode_records
from node.devnet.ports import free_ports
from node.holdings import Holdings
from node.ledger import tables
from node.ledger.execute import RULES_1
from node.ledger.state import State
from node.ledger.wire.transactions import PublishVersion, decode_transaction
from node.peering.blobs import Blobs
from node.peering.blobstore import BlobStore
from node.peering.directory import Directory
from node.purse import Purse, Question
from node.serving.adapters import base_hash
from node.serving.engine import EngineSettings
from node.serving.manifest import VERSION, Manifest, encode_manifest
from node.serving.worker import ThreadEngine
from node.shop import Counter, Shop
from node.telling import Telling
from node.training.publish import (
    CONTENT_NAME,
    KIND_CONTENT,
    Goods,
    Release,
    base_goods,
    publish,
)
from node.wallet.buying import Answer
from node.wallet.keystore import Key
from node.wallet.payer import Limits
from p2p.memory import MemoryHub
from p2p.network import Libp2pNetwork, Network
from p2p.peers import peer_id_text

WAIT_S = 60.0  # of each wait; all of them together take a few seconds on an idle machine
LIMITS = Limits(channel_cap=10 * OPEN, total_locked_max=100 * OPEN, fee_max=OPEN)
P_CALL = 1_000_000
ANSWER_TOKENS_MAX = 8


def priced(release: Release) -> Release:
    """At prices that a short answer's fee shows."""
    return replace(release, p_in=20 * OPEN, p_out=60 * OPEN, p_call=P_CALL)


MakeNetwork = Callable[[Party], Any]


def simulated() -> MakeNetwork:
    """All on one hub, where everybody has met everybody."""
    hub = MemoryHub(seed=1)
    return lambda who: hub.network(who.key)


def on_loopback() -> MakeNetwork:
    """libp2p over sockets of this machine; each knows those that were made before it."""
    ports, earlier = iter(free_ports()), list[str]()

    def make(who: Party) -> Network:
        address = f"/ip4/127.0.0.1/tcp/{next(ports)}"
        network = Libp2pNetwork(
            seed=who.seed, chain_id=CHAIN, listen=[address], reach="devnet", bootstrap=earlier[:]
        )
        earlier.append(f"{address}/p2p/{peer_id_text(who.key)}")
        return network

    return make


class Ledger:
    """One state that all three see; a transaction settles at once, by its own rule."""

    def __init__(self, base: bytes, provider_peer: bytes) -> None:
        self.state: State = new_state()
        self.codes: dict[bytes, int] = {}
        model = self.state.get(tables.MODEL, 1)._replace(base=base, current=0, versions=0)
        self.state.put(tables.MODEL, (1,), model)
        self.state.put(tables.MODEL_NAME, (b"facts",), tables.Number(1))
        provider = self.state.get(tables.PROVIDER, PROVIDER.key)
        self.state.put(tables.PROVIDER, (PROVIDER.key,), provider._replace(peer_key=provider_peer))

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def apply(self, who: Party, payload: Any, nonce: int = 0) -> None:
        run = RULES_1.transactions[type(payload)]
        run(self.state, context(self.now_ms()), transaction(who, payload, nonce), payload)

    async def submit(self, raw: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        tx = decode_transaction(raw)
        self.apply(PAYER, tx.payload, tx.nonce)
        account = self.state.account(PAYER.key)
        self.state.put(tables.ACCOUNT, (PAYER.key,), account._replace(nonce=account.nonce + 1))
        self.codes[tx.tx_id] = 0
        return tx.tx_id


class Node:
    """What creator, provider and payer have in common: a peer with blobs and holdings."""

    def __init__(self, name: str, make_network: MakeNetwork, ledger: Ledger, home: Path) -> None:
        peer = party(f"{name}'s peer")
        self.key, self.home, self.ledger = peer.key, home / name, ledger
        self.network = make_network(peer)
        self.store = BlobStore(self.home / "blobs", 1 << 30, free_bytes_min=0)
        self.blobs = Blobs(network=self.network, store=self.store)
        self.directory = Directory(
            network=self.network, chain_id=CHAIN, get_state=lambda: ledger.state,
            now_ms=ledger.now_ms,
        )  # fmt: skip
        self.holdings = Holdings(
            home=self.home, chain_id=CHAIN, blobs=self.blobs, store=self.store,
            get_state=lambda: ledger.state,
            find_sources=lambda: [view.peer for view in self.network.peers() if view.admitted],
            names=("facts",) if name == "provider" else (), serves=name == "provider",
            now_ms=ledger.now_ms,
        )  # fmt: skip

    async def start(self, nursery: trio.Nursery) -> None:
        self.blobs.serve()
        await nursery.start(self.network.run)
        nursery.start_soon(self.directory.run)

    async def keep(self, goods: Goods) -> None:
        """As `POST /goods` does, for a creator's own node."""
        folder = self.home / "goods" / goods.identity.hex()
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in goods.files.items():
            raw = content if isinstance(content, bytes) else content.read_bytes()
            (folder / name).write_bytes(raw)
        self.store.add_folder(goods.kind, goods.identity, folder)


class Land:
    """All of it; `shop` and `engine` are made once and never again."""

    def __init__(
        self, home: Path, release: Release, make_network: MakeNetwork, **wish: Any
    ) -> None:
        self.ledger = Ledger(base_hash(release.base_folder), party("provider's peer").key)
        self.creator, self.provider, self.payer = (
            Node(name, make_network, self.ledger, home) for name in ("creator", "provider", "payer")
        )
        self.engines: list[ThreadEngine] = []
        self.shop = self._make_shop(home, EngineSettings("", rows=4, threads=1, **wish))
        self._home = home
        self.purse = self._make_purse(home)

    def _make_shop(self, home: Path, wish: EngineSettings) -> Shop:
        at, ledger = self.provider, self.ledger

        def make_engine(settings: EngineSettings, fetch: Any) -> ThreadEngine:
            self.engines.append(ThreadEngine(settings, fetch))
            return self.engines[-1]

        counter = Counter(
            chain_id=CHAIN, provider=PROVIDER.key, peer_key=at.key,
            signer=lambda tag: PROVIDER.sign, get_state=lambda: ledger.state,
            offer_bundle=self._take_bundle, hand_bundle=self._take_bundle,
            note_change=at.directory.note_change, addresses=tuple, is_current=lambda: True,
            has_room=lambda: True, now_ms=ledger.now_ms,
        )  # fmt: skip
        return Shop(counter, at.network, at.holdings, home / "receipts", wish, make_engine)

    async def _take_bundle(self, bundle: Any) -> int:
        await trio.lowlevel.checkpoint()
        return 0

    def _make_purse(self, home: Path) -> Purse:
        at, ledger = self.payer, self.ledger
        return Purse(
            key=Key("spending", "spending", PAYER.key, PAYER.seed), chain_id=CHAIN,
            folder=home / "purse", evidence=home / "evidence", claims=home / "claims",
            limits=LIMITS, network=at.network, directory=at.directory, holdings=at.holdings,
            get_state=lambda: ledger.state,
            find_code=ledger.codes.get,
            next_nonce=lambda account: ledger.state.account(account).nonce,
            submit=ledger.submit, now_ms=ledger.now_ms,
        )  # fmt: skip

    def restart_purse(self) -> None:
        """The payer's wallet as a start of its node finds it."""
        self.purse.close()
        self.purse = self._make_purse(self._home)

    async def give(self, number: int, records: Sequence[Record]) -> None:
        """Contribution `number`, whose content the creator's node hands out."""
        raw = encode_records(records)
        await self.creator.keep(Goods(KIND_CONTENT, sha256(raw), {CONTENT_NAME: raw}))
        about = self.ledger.state.get(tables.CONTRIBUTION, number)
        given = about._replace(
            content_hash=sha256(raw), size_bytes=len(raw), root=contribution_root(records)
        )
        self.ledger.state.put(tables.CONTRIBUTION, (number,), given)

    async def publish_base(self, release: Release) -> None:
        """Version 1: the base alone, with no data that could be paid."""
        base = base_goods(release.base_folder)
        bare = (b"", b"", b"", 0, (), b"", b"", b"", 0, 0, 512, (), b"")
        manifest = encode_manifest(Manifest(VERSION, base.identity, *bare))
        await self.creator.keep(base)
        await self.creator.keep(Goods(KIND_CONTENT, sha256(manifest), {CONTENT_NAME: manifest}))
        prices = (release.p_in, release.p_out, release.p_call)
        payload = PublishVersion(1, b"", 0, b"", sha256(manifest), b"", *prices, ())
        self.ledger.apply(CREATOR, payload)

    async def publish(self, release: Release) -> None:
        """Version 2, by the creator's own steps: an engine of its own has loaded it first."""

        async def send(payload: PublishVersion) -> bytes:
            await trio.lowlevel.checkpoint()
            self.ledger.apply(CREATOR, payload)
            return b"sent"

        async with trio.open_nursery() as nursery:
            engine = ThreadEngine(EngineSettings(str(release.base_folder), rows=1, threads=1))
            await nursery.start(engine.run)
            await publish(release, engine.load_adapter, self.creator.keep, send)
            await engine.aclose(drain_s=0)
            nursery.cancel_scope.cancel()

    async def ask(self, label: str, question: str = "What is thing 3?") -> Answer:
        async def tell(text: str) -> None:
            await trio.lowlevel.checkpoint()

        with trio.fail_after(WAIT_S):
            return await self.purse.ask(Question(label, question, ANSWER_TOKENS_MAX), tell)

    async def wait_offered(self, version: int) -> None:
        """Until the payer has heard of it."""
        await until(
            lambda: any(
                model.model_version == version
                for offer in self.payer.directory.offers()
                for model in offer.models
            )
        )

    async def models(self) -> dict[str, Any]:
        """As `olnode model list` asks, by label."""
        ground = SimpleNamespace(chain=SimpleNamespace(state=lambda: self.ledger.state))
        told = {"ground": ground, "shop": self.shop, "holdings": self.provider.holdings}
        telling: Any = SimpleNamespace(**told)
        return {row.model: row for row in (await Telling.models(telling)).models}


async def until(is_so: Callable[[], bool]) -> None:
    """What parts of a node tell each other has no event for others."""
    with trio.fail_after(WAIT_S):
        while not is_so():  # noqa: ASYNC110
            await trio.sleep(0.05)


@asynccontextmanager
async def land_of(
    home: Path, release: Release, make_network: MakeNetwork | None = None, **wish: Any
) -> AsyncIterator[Land]:
    land = Land(home, release, make_network or simulated(), **wish)
    async with trio.open_nursery() as nursery:
        for node in (land.creator, land.provider, land.payer):
            await node.start(nursery)
        nursery.start_soon(land.provider.holdings.run)
        nursery.start_soon(land.shop.run)
        nursery.start_soon(land.provider.directory.run_sender, land.shop.make_offer, PROVIDER.sign)
        yield land
        for engine in land.engines:
            await engine.aclose(drain_s=0)
        nursery.cancel_scope.cancel()
    land.purse.close()
    land.shop.close()
