"""A version that is published is fetched, checked, loaded and sold by a provider that runs.

Three nodes on one simulated network and one ledger: the creator's, which has the goods, the
provider's and the payer's. Storage, blobs, engine, service, wallet and rules are the product's.
"""

import re
import socket
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from bundle_kit import CHAIN, Party, party
from ledger_kit import (
    BALANCE,
    CREATOR,
    OPEN,
    PAYER,
    PROVIDER,
    context,
    new_state,
    transaction,
)
from release_kit import make_release
from unit.web.behind import STATUS

from consensus.primitives.digest import sha256
from node.holdings import Holdings
from node.ledger import tables
from node.ledger.amounts import part_bps
from node.ledger.execute import RULES_1
from node.ledger.state import State
from node.ledger.wire.transactions import PublishVersion, decode_transaction
from node.metrics import Metrics
from node.peering.blobs import Blobs
from node.peering.blobstore import BlobStore
from node.peering.directory import Directory
from node.purse import Purse, Question
from node.serving.adapters import WEIGHTS, base_hash
from node.serving.basefacts import read_facts
from node.serving.engine import AUTO, EngineSettings
from node.serving.judging import Finding, Vocabulary, check_answer
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
from node.web.metrics import run_metrics
from p2p.memory import MemoryHub

pytestmark = pytest.mark.ml

WAIT_S = 60.0  # of each wait; all of them together take a few seconds on an idle machine
LIMITS = Limits(channel_cap=10 * OPEN, total_locked_max=100 * OPEN, fee_max=OPEN)
P_CALL = 1_000_000


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    pytest.importorskip("torch").set_num_threads(1)
    made = make_release(tmp_path_factory.mktemp("release"))
    return replace(made, p_in=20 * OPEN, p_out=60 * OPEN, p_call=P_CALL)


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

    def __init__(self, name: str, hub: MemoryHub, ledger: Ledger, home: Path) -> None:
        self.key, self.home, self.ledger = party(f"{name}'s peer").key, home / name, ledger
        self.network = hub.network(self.key)
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

    def __init__(self, home: Path, release: Release, **wish: Any) -> None:
        hub = MemoryHub(seed=1)
        self.ledger = Ledger(base_hash(release.base_folder), party("provider's peer").key)
        self.creator, self.provider, self.payer = (
            Node(name, hub, self.ledger, home) for name in ("creator", "provider", "payer")
        )
        self.engines: list[ThreadEngine] = []
        self.shop = self._make_shop(home, EngineSettings("", rows=4, threads=1, **wish))
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
            folder=home / "purse", evidence=home / "evidence", limits=LIMITS, network=at.network,
            directory=at.directory, holdings=at.holdings, get_state=lambda: ledger.state,
            find_code=ledger.codes.get,
            next_nonce=lambda account: ledger.state.account(account).nonce,
            submit=ledger.submit, now_ms=ledger.now_ms,
        )  # fmt: skip

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

    async def ask(self, label: str) -> Answer:
        async def tell(text: str) -> None:
            await trio.lowlevel.checkpoint()

        with trio.fail_after(WAIT_S):
            return await self.purse.ask(Question(label, "What is thing 3?", 8), tell)

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
async def land_of(home: Path, release: Release, **wish: Any) -> AsyncIterator[Land]:
    land = Land(home, release, **wish)
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


async def test_new_version_is_sold_by_a_provider_that_was_not_started_again(
    tmp_path: Path, release: Release
) -> None:
    async with land_of(tmp_path, release, disk_folder=str(tmp_path / "packed")) as land:
        await land.publish_base(release)
        await land.wait_offered(1)
        first = await land.ask("facts")
        await land.publish(release)
        await land.wait_offered(2)
        answers = [await land.ask("facts") for _ in range(2)]
        assert (first.receipt.model_version, first.receipt.fee > P_CALL) == (1, True)
        assert {answer.receipt.model_version for answer in answers} == {2}
        fees = sum(answer.receipt.fee for answer in answers)
        (engine,) = land.engines
        assert engine.stats().restarts == 0

        rows = await land.models()
        assert {label: row.requests for label, row in rows.items()} == {"facts@1": 1, "facts@2": 2}
        row = rows["facts@2"]
        assert (row.tier, row.ready, row.fees) == ("slot", True, fees)
        ours_bps = land.ledger.state.parameter_values("split_bps")[0]
        assert row.earned == part_bps(fees, ours_bps) < fees
        assert row.adapter == release.adapter.final
        assert land.ledger.state.account(PAYER.key).balance <= BALANCE - 10 * OPEN

        # The engine tells its counters twice a second.
        await until(lambda: engine.stats().finished == 3 and engine.stats().gradients_done == 2)
        seen = await scrape(land)
        assert seen["olnode_inference_engine_up"] == 1
        assert sum(v for k, v in seen.items() if "request_success_total" in k) == 3
        assert seen["olnode_inference_time_to_first_token_seconds_count"] == 3
        assert seen["olnode_inference_receipt_delay_seconds_count"] == 3
        assert seen["olnode_inference_gradient_seconds_count"] == 2, "a sketch for each"
        assert seen["olnode_adapter_registered"] == 3
        assert seen['olnode_adapter_load_seconds_count{tier="folder"}'] == 3
        assert seen["olnode_adapter_ram_bytes"] == 3 * packed_bytes(release)


async def test_adapter_that_rots_on_the_provider_comes_from_the_creator_again(
    tmp_path: Path, release: Release
) -> None:
    """There is memory for two adapters: each sketch, of two checkpoints, evicts the served one."""
    async with land_of(tmp_path, release, ram_bytes=2 * packed_bytes(release)) as land:
        await land.publish(release)
        await land.wait_offered(1)
        expected = await land.ask("facts")
        weights = land.provider.home / "adapters" / release.adapter.final.hex() / WEIGHTS
        raw = bytearray(weights.read_bytes())
        raw[-1] ^= 1
        weights.write_bytes(raw)
        again = await land.ask("facts")
        assert again.ids == expected.ids
        (engine,) = land.engines
        await until(lambda: sum(engine.stats().tiers.load_times["peers"].counts) == 1)
        assert engine.stats().tiers.evictions["ram"] >= 2
        assert land.provider.holdings.counters["rotted"] == 1


def packed_bytes(release: Release) -> int:
    from node.serving.lora import LoraStack
    from node.serving.model import load_base

    stack = LoraStack(load_base(release.base_folder), 1)
    return 4 * stack.layouts[8].elements


async def scrape(land: Land) -> dict[str, float]:
    """What Prometheus would read of the provider, over a socket; no label tells of whom."""
    pool = SimpleNamespace(statistics=lambda: SimpleNamespace(bytes=0))
    telling: Any = SimpleNamespace(
        status=lambda: STATUS, network=land.provider.network, transactions=pool, bundles=pool,
        replica=SimpleNamespace(statistics=lambda: SimpleNamespace(round=0)),
        disk=SimpleNamespace(free_bytes=1), shop=land.shop,
    )  # fmt: skip
    text = Metrics(telling, {"blobs": land.provider.blobs.statistics}).text
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    found = ""
    async with trio.open_nursery() as nursery:
        run = partial(run_metrics, text, "127.0.0.1", port, wait_for_stop=trio.sleep_forever)
        nursery.start_soon(run)
        with trio.fail_after(WAIT_S):
            while not found:
                try:
                    found = await trio.to_thread.run_sync(read, port)
                except OSError:
                    await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    own = [line for line in found.splitlines() if re.match("olnode_(inference|adapter)_", line)]
    assert not re.search(r'="[^"]{17,}"', "\n".join(own)), "labels are words"
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in own}


def read(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text: str = answer.read().decode()
        return text


async def test_version_that_pins_bf16_is_served_told_and_judged_in_it(
    tmp_path: Path, release: Release
) -> None:
    """`dtype = "auto"`: the engine computes in what the only version held pins. An answer of it is
    no FAIL by the bf16 table, and not even looked at as one of fp32."""
    async with land_of(tmp_path, release, dtype_class=AUTO, device=AUTO) as land:
        await land.publish(replace(release, dtype_class="bf16"))
        await land.wait_offered(1)
        answer = await land.ask("facts")
        (engine,) = land.engines
        assert engine.info.dtype_class == "bf16"
        held = land.provider.holdings.find(1, 1)
        receipt = answer.receipt
        served = land.shop.book.find(receipt.channel, receipt.lane, receipt.seq, receipt.order_hash)
        assert held is not None
        assert served is not None
        facts = read_facts(release.base_folder)
        words = Vocabulary(facts.pieces, facts.ends)
        judge = partial(check_answer, receipt, served.evidence)
        found = await judge(held.manifest, words, engine.score)
        assert found.finding is not Finding.FAIL
        assert found.measures is not None
        as_fp32 = await judge(held.manifest._replace(dtype_class=0), words, engine.score)
        assert as_fp32.why == ("answer.weights",)
        await until(lambda: engine.stats().gradients_done == 1)
