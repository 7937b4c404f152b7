"""A whole network in one thread: real replicas, journals and chains over a simulated network.

Everything blocking is done at once, on the mock clock: nothing waits for a real disk, and a run
is its seed. Each node keeps its files in a folder, so that a crash is an end without goodbye and a
restart opens what is there.
"""

import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio
import trio.testing
from bundle_kit import Party, party

from consensus.header import Header
from consensus.primitives.digest import signing_bytes
from consensus.primitives.errors import Invalid
from consensus.primitives.keys import sign
from node.ledger.genesis import Genesis, devnet_genesis, encode_genesis
from node.ledger.pool import BundlePool, TransactionPool
from node.ledger.wire.transactions import Transfer, encode_body, sign_transaction
from node.peering.accusing import Accusing
from node.peering.pace import LAN
from node.peering.proposer import Proposer
from node.peering.replica import Replica, Settings
from node.peering.snapshotting import SnapshotKeeper
from node.peering.statesync import StateSync
from node.peering.voter import Validator
from node.peering.vouching import TrustedBlock
from node.storage.adopting import take_in
from node.storage.chain import Chain
from node.storage.journal import open_journal
from node.storage.signer import create_signer
from node.storage.snapshots import SnapshotStore
from node.storage.store import MemoryKV
from p2p.memory import Link, MemoryHub
from p2p.network import PeerId, StatusFacts

OPEN = 10**9
EPOCH_MS = 1_700_000_000_000
FAUCET = party("faucet")
SETTINGS = Settings(block_interval_ms=250, profile=LAN, doppelganger_wait_s=0.0)


async def at_once(function: Callable[..., Any], *arguments: Any) -> Any:
    """What takes a thread elsewhere happens here and now: a thread has no mock clock."""
    await trio.lowlevel.checkpoint()
    return function(*arguments)


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """trio shuffles runnable tasks; here by a seed (private to trio 0.35, which is pinned)."""
    run = trio._core._run
    before = run._ALLOW_DETERMINISTIC_SCHEDULING, run._r.getstate()
    run._ALLOW_DETERMINISTIC_SCHEDULING = True
    run._r.seed(seed)
    try:
        yield
    finally:
        run._ALLOW_DETERMINISTIC_SCHEDULING = before[0]
        run._r.setstate(before[1])


class Node:
    """One node: its folder outlives it, everything else ends with a crash."""

    def __init__(
        self,
        cluster: "Cluster",
        number: int,
        home: Path,
        *,
        votes: bool,
        voter: Party | None = None,
    ) -> None:
        self.cluster, self.number, self.home = cluster, number, home
        self.identity = party(f"validator {number}")
        self.voter = voter or self.identity  # another's key: a twin of that node
        self.peer = PeerId(self.identity.key)
        self.votes = votes
        self.skew_ms = 0
        self.settings = SETTINGS
        self.run_blocking = at_once
        self.kv: MemoryKV | None = MemoryKV()  # as a crash leaves it: a batch is there or not
        self.snapshot_every = 10_000
        self.trusted: tuple[int, bytes, int] | None = None  # height, block id, gap in blocks
        self.sync_counters: Counter[str] = Counter()
        self.scope: trio.CancelScope | None = None
        home.mkdir()
        if votes:
            create_signer(home / "signer", cluster.chain_id, self.voter.key)

    def now_ms(self) -> int:
        return EPOCH_MS + round(trio.current_time() * 1_000) + self.skew_ms

    def sign(self, tag: bytes, body: bytes) -> bytes:
        return sign(self.voter.seed, signing_bytes(tag, self.cluster.chain_id, body))

    def use_disk(self) -> None:
        """A real database: one that a snapshot can take the place of."""
        self.kv = None

    def trust(self, other: "Node", gap_blocks: int) -> None:
        """Start from a snapshot at or below the other's newest block, if that is far above ours."""
        self.trusted = other.chain.height, other.chain.tip.block_id, gap_blocks

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Live until `crash`."""
        while await self._live(task_status):
            pass

    async def _sync_state(self, store: SnapshotStore) -> bool:
        if self.trusted is None or self.trusted[0] - self.chain.height <= self.trusted[2]:
            return False
        height, block_id, gap_blocks = self.trusted
        trusted = TrustedBlock(network=self.network, height=height, block_id=block_id)
        sync = StateSync(
            network=self.network,
            store=store,
            get_height=lambda: self.chain.height,
            verify_header=trusted.verify,
            take_in=lambda manifest: take_in(self.home, store, manifest),
            gap_blocks=gap_blocks,
            run_blocking=at_once,
        )
        found = await sync.run()
        self.sync_counters = sync.counters
        return found is not None

    async def _live(self, task_status: Any) -> bool:
        cluster = self.cluster
        self.chain = Chain.open(self.home, encode_genesis(cluster.genesis), store=self.kv)
        snapshots = SnapshotStore(self.home / "snapshots")
        keeper = SnapshotKeeper(
            store=snapshots,
            get_view=lambda: self.chain.view(),
            every=self.snapshot_every,
            run_blocking=at_once,
        )
        self.network = cluster.hub.network(
            self.identity.key,
            chain_id=cluster.chain_id,
            facts=lambda: StatusFacts(
                height=self.chain.height,
                block_id=self.chain.tip.block_id,
                earliest=self.chain.view().earliest,
                snapshot_height=keeper.height,
            ),
            epoch_ms=EPOCH_MS,
        )
        keeper.serve(self.network)
        self.transactions, self.bundles = TransactionPool(cluster.chain_id), BundlePool()
        self.accusing = Accusing(
            chain_id=cluster.chain_id,
            get_view=self.chain.view,
            on_pooled=lambda: self.replica.wake(),
        )
        validator = None
        if self.votes:
            self.journal = open_journal(self.home, cluster.chain_id, self.voter.key)
            validator = Validator(self.voter.key, self.journal, self.sign)
        self.replica = Replica(
            network=self.network,
            chain=self.chain,
            proposer=Proposer(
                chain=self.chain,
                transactions=self.transactions,
                bundles=self.bundles,
                me=self.voter.key,
                accusing=self.accusing,
            ),
            validator=validator,
            find_peer=PeerId,  # a validator's key is its node's here
            fetch_bodies=self.fetch_bodies,
            now_ms=self.now_ms,
            settings=replace(self.settings, snapshot_every=self.snapshot_every),
            on_commit=keeper.note,
            on_accuse=self.accusing.add,
            judge_evidence=self.accusing.judge,
            run_blocking=self.run_blocking,
        )
        try:
            with trio.CancelScope() as self.scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(self.network.run)
                    if await self._sync_state(snapshots):
                        nursery.cancel_scope.cancel()
                        return True
                    nursery.start_soon(keeper.run)
                    await nursery.start(self.replica.run)
                    task_status.started()
            return False
        finally:
            if validator is not None:
                validator.journal.close()
            self.chain.close()

    async def fetch_bodies(self, names: Any, peers: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return names

    def crash(self) -> None:
        """As kill -9: nobody is told, what was not synced may be gone."""
        assert self.scope is not None
        self.cluster.hub.crash(self.peer)
        self.scope.cancel()

    def pay(self, nonce: int) -> None:
        """A transfer into this node's pool, as if gossip had brought it."""
        tx = self.cluster.transfer(nonce, self.now_ms())
        with suppress(Invalid):  # settled already, or too far ahead of what this node knows
            self.transactions.add(self.chain.state(), self.now_ms(), tx)
            self.replica.wake()


class Cluster:
    """Nodes 0..validators−1 vote; the rest follow."""

    def __init__(
        self, folder: Path, *, seed: int, validators: int = 4, followers: int = 0, **link: Any
    ) -> None:
        powers = {party(f"validator {i}").key: 20 * OPEN for i in range(validators)}
        self.genesis: Genesis = devnet_genesis(
            name="simulation",
            time_ms=EPOCH_MS - 1_000,
            accounts={FAUCET.key: 1_000_000 * OPEN},
            validators=powers,
        )
        self.chain_id = self.genesis.chain_id
        self.hub = MemoryHub(seed, Link(**link))
        self.rng = random.Random(seed)
        self.nodes = [
            Node(self, i, folder / str(i), votes=i < validators)
            for i in range(validators + followers)
        ]
        self.late: set[int] = set()  # nodes that a script starts itself
        self.nursery: trio.Nursery
        self.payer = FAUCET.key
        self.nonce = 0
        self.seen_headers: list[Header] = []  # of the first node, when the script has ended

    async def start(self, node: Node) -> None:
        """Bring a node up, for the first time or again."""
        await self.nursery.start(node.run)

    def transfer(self, nonce: int, now_ms: int) -> bytes:
        body = encode_body(
            sender=FAUCET.key,
            nonce=nonce,
            max_fee=OPEN,
            valid_until_ms=now_ms + 60_000,
            payload=Transfer(party("payee").key, OPEN, b""),
        )
        return sign_transaction(self.chain_id, FAUCET.seed, body)

    def pay_everywhere(self) -> None:
        """One more transfer, known to every living node."""
        for node in self.alive():
            node.pay(self.nonce)
        self.nonce += 1

    def alive(self) -> list[Node]:
        return [node for node in self.nodes if node.scope is not None and not self._is_gone(node)]

    @staticmethod
    def _is_gone(node: Node) -> bool:
        return node.scope is None or node.scope.cancel_called

    async def wait_all(self, height: int, timeout_s: float = 60.0) -> None:
        """Until every living node has committed `height`."""
        with trio.fail_after(timeout_s):
            for node in self.alive():
                await node.replica.wait_height(height)

    def assert_agreed(self) -> None:
        """No two nodes have different blocks at one height."""
        for height in range(1, min(node.chain.height for node in self.alive()) + 1):
            ids = {node.chain.header(height).block_id() for node in self.alive()}
            assert len(ids) == 1, f"fork at height {height}"


@asynccontextmanager
async def network_of(cluster: Cluster) -> AsyncIterator[Cluster]:
    """All nodes running, from one seed; ended at the end."""
    async with trio.open_nursery() as nursery:
        cluster.nursery = nursery
        for node in cluster.nodes:
            if node.number not in cluster.late:
                await cluster.start(node)
        yield cluster
        for node in cluster.alive():
            assert node.scope is not None
            node.scope.cancel()


Script = Callable[[Cluster], Awaitable[None]]


def run_script(cluster: Cluster, seed: int, script: Script) -> bytes:
    """Run `script` on a mock clock from a seed; returns the hash of everything delivered."""

    async def main() -> None:
        async with network_of(cluster):
            await script(cluster)
            chain = cluster.nodes[0].chain
            found = [chain.header(height) for height in range(1, chain.height + 1)]
            cluster.seen_headers = [header for header in found if header is not None]

    with deterministic(seed):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return cluster.hub.trace_hash()
