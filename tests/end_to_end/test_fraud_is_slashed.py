"""A real node and a lying provider: its credits settle while nobody holds the index, and cost it
when the node does; after that they are refused.

The provider is a peer of this test's own, with libp2p and the product's answers to `audit`; the
node is a process of `olnode start` that alone decides.
"""

import random
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from attribution_kit import mix_rows, open_unchecked, sound_rows, write_index
from bundle_kit import LaneSession, Party, party
from chain_kit import BASE_HASH, PRICES, TERMS
from fraud_kit import FEE, OWNERS, ROWS, Lie, leave_out, pay_a_friend, raise_score
from network_kit import wait_until

from consensus.primitives.digest import sha256
from node.attribution.attribute import Version, attribute
from node.devnet.children import Child, read, stop_all, wait_answering
from node.devnet.market import Market
from node.devnet.people import Person
from node.devnet.ports import free_ports
from node.home import make_home
from node.ledger import tables
from node.ledger.addresses import account_text
from node.ledger.genesis import Genesis, devnet_genesis, encode_genesis
from node.ledger.rules import shares
from node.ledger.wire import claims
from node.ledger.wire import transactions as wire
from node.ledger.wire.bundles import Bundle, build_bundle
from node.ledger.wire.orders import channel_id
from node.ledger.wire.receipts import receipt_id
from node.peering import topics
from node.peering.audits import Audits, StatedClaim
from node.refuter import HALF_WRITTEN
from node.serving.manifest import Manifest, encode_manifest, manifest_hash
from node.web.ask import Refusal
from p2p.limits import TOPICS
from p2p.network import Libp2pNetwork, Verdict
from p2p.peers import peer_id_text

pytestmark = pytest.mark.slow

OPEN = 10**9
WINDOW_MS = 3_600_000  # so that a slow machine is in time
STEP_S = 60.0
NODE, VALIDATOR = party("fraud node"), party("fraud validator")
PROVIDER, PAYER, STEWARD, CREATOR = (party(f"fraud {name}") for name in ("provider", "payer",
                                     "steward", "creator"))  # fmt: skip
GIVERS = tuple(party(f"fraud giver {number}") for number in range(3))
MODEL = "facts-1"


def genesis() -> Genesis:
    people = (NODE, PROVIDER, PAYER, STEWARD, CREATOR, *GIVERS)
    made = devnet_genesis(
        name="fraud", time_ms=time.time_ns() // 1_000_000 - 1_000,
        accounts={who.key: 1_000 * OPEN for who in people}, validators={VALIDATOR.key: 20 * OPEN},
    )  # fmt: skip
    changed = dict(made.parameters) | {b"challenge_window_ms": (WINDOW_MS,)}
    return made._replace(parameters=tuple(sorted(changed.items())))


class Crime:
    """The node, the lying provider, and what it has stated."""

    def __init__(self, folder: Path, made: Genesis, inflated: int | None) -> None:
        self.chain_id, self.home = made.chain_id, folder / "n0"
        rows = sound_rows(ROWS)
        if inflated is not None:  # it scores three times as much
            rows[inflated] = np.where(rows[inflated] < 0, -127, 127)
        self.index = open_unchecked(*write_index(folder, rows, OWNERS))
        self.manifest = encode_manifest(
            Manifest(
                1, BASE_HASH, b"\2" * 32, b"\3" * 32, b"\4" * 32, 16, (b"q_proj",), b"\5" * 32,
                self.index.root, b"", 0, 0, 512, (), b"",
            )
        )  # fmt: skip
        port = free_ports()[0]
        chosen: dict[str, Any] = {
            "profile": "devnet", "name": "n0", "roles": ["validator", "auditor"],
            "p2p.listen": [f"/ip4/127.0.0.1/tcp/{port}"], "engine.kind": "none",
            "audit.models": [MODEL], "consensus.block_interval_ms": 250, "log.format": "json",
        }  # fmt: skip
        seeds = {"node": NODE.seed, "validator": VALIDATOR.seed}
        make_home(
            self.home, genesis=encode_genesis(made), chosen=chosen, password=None, seeds=seeds
        )
        self.child = Child("n0", self.home, ("validator",))
        self.market = Market(self.child, self.chain_id)
        address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer_id_text(NODE.key)}"
        self.network = Libp2pNetwork(
            seed=PROVIDER.seed, chain_id=self.chain_id, listen=["/ip4/127.0.0.1/tcp/0"],
            reach="devnet", bootstrap=[address],
        )  # fmt: skip
        self.network.subscribe(topics.BUNDLES, lambda *_: Verdict.ACCEPT, TOPICS[topics.BUNDLES])
        self.bundles: dict[bytes, Bundle] = {}
        self.stated: dict[bytes, StatedClaim] = {}
        nothing: Any = None
        Audits(
            network=self.network, get_state=lambda: nothing, find_bundle=self.bundles.get,
            find_stated=self.stated.get, may_see_sketch=lambda *_: True,
            open_rows=lambda *_: None,
        ).serve()  # fmt: skip

    async def do(self, who: Party, *payloads: wire.Payload) -> None:
        for payload in payloads:
            await self.market.do(Person("somebody", who.seed), payload)

    async def tell_story(self) -> None:
        """Provider, Datanet, three contributions, model 1 with its index."""
        await self.do(
            PROVIDER,
            wire.RegisterProvider(PROVIDER.key, PROVIDER.key),
            wire.Bond(tables.ROLE_PROVIDER, PROVIDER.key, 2 * OPEN),
        )
        await self.do(STEWARD, wire.CreateDatanet(b"facts", TERMS))
        for number, who in enumerate(GIVERS, start=1):
            given = wire.Contribute(1, 0, sha256(who.key), sha256(who.seed), 10, 9, 1, 0, b"")
            await self.do(who, given)
            await self.do(STEWARD, wire.Curate(number, 1, bytes(32)))
        await self.do(STEWARD, wire.Snapshot(1, b"\1" * 32, 3, 30))
        release = wire.PublishVersion(
            1, b"\2" * 32, 1, self.index.root, manifest_hash(self.manifest), b"", *PRICES, ()
        )
        await self.do(CREATOR, wire.RegisterModel(MODEL.encode(), BASE_HASH, 7, 1, 1_000), release)
        told = await read(self.child, "/ledger/models")
        height = (await read(self.child, "/status"))["height"]
        self.version = Version(self.chain_id, 1, 1, await self.published_ms(height))
        assert told["models"][0]["version"] == 1

    async def published_ms(self, height: int) -> int:
        """The time of the block that made the version: the last with a transaction."""
        for at in range(height, 0, -1):
            block = await read(self.child, f"/ledger/blocks/{at}")
            if block["transactions"]:
                return int(block["time_ms"])
        raise AssertionError("no block has a transaction")

    async def open_channel(self) -> None:
        told = await read(self.child, f"/ledger/accounts/{account_text(PAYER.key)}")
        channel = channel_id(self.chain_id, PAYER.key, PROVIDER.key, int(told["next_nonce"]))
        await self.do(PAYER, wire.OpenChannel(PROVIDER.key, PAYER.key, 10 * OPEN, 0))
        self.lane = LaneSession(channel, 0, PAYER, PROVIDER, random.Random(1), self.chain_id)

    async def bring_index(self) -> None:
        """Into the node's home; it looks for it each second."""
        content = self.home / "manifests" / manifest_hash(self.manifest).hex()
        content.mkdir(parents=True)
        (content / "content").write_bytes(self.manifest)
        part = self.home / "indexes" / "part"
        shutil.copytree(self.index.folder, part)
        part.rename(self.home / "indexes" / self.index.root.hex())

    async def answer(self, lie: Lie | None) -> bytes:
        """One more answer, told to the network as a bundle of its own; the receipt's id."""
        number = len(self.bundles)
        rows = self.index.rows
        sketch = mix_rows([(1.0, rows[9 + number]), (0.6, rows[150 - number])], seed=number)
        statement = attribute(self.index, sketch, self.version).statement
        statement = lie(statement) if lie else statement
        raw = claims.encode_statement(statement)
        receipt = self.lane.serve(
            shares.credits_of(statement, ROWS), model=1, model_version=1, tokens_in=812,
            tokens_out=143, fee=FEE, sketch_hash=claims.sketch_hash(sketch, raw),
        )  # fmt: skip
        bundle = build_bundle(
            chain_id=self.chain_id, provider=PROVIDER.key, bundle_seq=number + 1,
            parts=[self.lane.cut()], sign=PROVIDER.sign,
        )  # fmt: skip
        self.bundles[bundle.hash] = bundle
        self.stated[receipt_id(receipt)] = StatedClaim(raw, sketch)
        await self.network.publish(topics.BUNDLES, topics.encode_bundle_message(bundle))
        return receipt_id(receipt)

    async def is_settled(self, receipt: bytes) -> bool:
        route = f"/ledger/receipts/{receipt.hex()}"
        try:
            await trio.to_thread.run_sync(self.child.node.get, route)
        except Refusal:
            return False
        return True

    async def wait_settled(self, receipt: bytes) -> None:
        await until(lambda: self.is_settled(receipt))

    async def bonded(self) -> int:
        told = await read(self.child, f"/ledger/providers/{account_text(PROVIDER.key)}")
        return int(told["bonded"])

    async def balance(self, who: Party) -> int:
        told = await read(self.child, f"/ledger/accounts/{account_text(who.key)}")
        return int(told["balance"])

    def proofs(self) -> set[str]:
        """Each once, also one that is being written, or put away, while we look."""
        found = (self.home / "evidence").rglob("fraud-*")
        return {path.name for path in found if path.suffix != HALF_WRITTEN}


async def until(is_true: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(STEP_S):
        while not await is_true():  # noqa: ASYNC110  # another process gives us no event
            await trio.sleep(0.1)


@asynccontextmanager
async def committed(folder: Path, inflated: int | None = None) -> AsyncIterator[Crime]:
    crime = Crime(folder, genesis(), inflated)
    try:
        crime.child.start()
        await wait_answering(crime.child)
        await crime.tell_story()
        async with trio.open_nursery() as nursery:
            await nursery.start(crime.network.run)
            await wait_until(
                lambda: crime.network.statistics().mesh_peers.get("bundles", 0) > 0, 30
            )
            await crime.open_channel()
            yield crime
            nursery.cancel_scope.cancel()
    finally:
        await stop_all([crime.child])


async def test_lies_that_settled_are_slashed_and_later_ones_refused(tmp_path: Path) -> None:
    async with committed(tmp_path) as crime:
        for lie in (raise_score, None, leave_out):
            await crime.wait_settled(await crime.answer(lie))
        assert await crime.bonded() == 2 * OPEN, "nobody could know"
        payer, slashed = await crime.balance(PAYER), 2 * OPEN * 99 // 100 * 95 // 100

        async def is_slashed_twice() -> bool:
            return await crime.bonded() <= slashed

        async def is_refused() -> bool:
            return len(crime.proofs()) == 3

        await crime.bring_index()
        await until(is_slashed_twice)
        assert await crime.bonded() == slashed
        assert await crime.balance(PAYER) == payer + 2 * FEE, "the honest answer is paid"
        refused = await crime.answer(pay_a_friend)
        await until(is_refused)
        assert not await crime.is_settled(refused)
        log = crime.child.log_path.read_text("utf-8")
        assert "credits are false" in log
        assert "a provider credits falsely" in log
        assert crime.child.process is not None
        assert crime.child.process.poll() is None


async def test_inflated_row_costs_its_creator_the_deposit(tmp_path: Path) -> None:
    """The node refuses to hold such an index, so it could recompute nothing: it accuses it."""
    async with committed(tmp_path, inflated=9) as crime:
        await crime.wait_settled(await crime.answer(None))
        node = await crime.balance(NODE)
        await crime.bring_index()

        async def is_paid_for_it() -> bool:
            return await crime.balance(NODE) > node

        async def is_told() -> bool:
            text = crime.child.log_path.read_text("utf-8")
            return "a version's index has an inflated row" in text

        await until(is_paid_for_it)
        await until(is_told)  # once the node has seen the block, after its balance
        assert crime.child.process is not None
        assert crime.child.process.poll() is None
