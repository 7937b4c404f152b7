"""One whole node of a simulated network: a real replica, journal and chain, on the mock clock.

Everything blocking is done at once: nothing waits for a real disk, and a run is its seed. Its
files are in a folder on a disk that forgets (`disk.py`), so that a crash is an end without goodbye
and a restart opens what was synced.
What this file does not know: what happens to the network, and when.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from bundle_kit import Party, party
from simulation.disk import PowerLost, SeededKV
from simulation.liars import Mouth
from simulation.lying import LyingNetwork

from consensus.attacks import LightClientAttack, Verdict, encode_attack
from consensus.primitives.digest import signing_bytes
from consensus.primitives.errors import Invalid
from consensus.primitives.keys import sign
from node.ledger.genesis import encode_genesis, start
from node.ledger.pool import BundlePool, TransactionPool
from node.light import trust_options
from node.peering.accusing import Accusing
from node.peering.lightserver import LightServer
from node.peering.pace import LAN
from node.peering.proposer import Proposer
from node.peering.replica import Replica, Settings
from node.peering.snapshotting import SnapshotKeeper
from node.peering.statesync import StateSync
from node.peering.trusting import Named, Root, Trusting
from node.peering.voter import Validator
from node.storage.adopting import take_in
from node.storage.chain import Chain
from node.storage.journal import open_journal
from node.storage.lightfile import LightFile
from node.storage.signer import create_signer
from node.storage.snapshots import SnapshotStore
from node.storage.views import Tip
from p2p.network import Network, PeerId, StatusFacts

if TYPE_CHECKING:
    from simulation.cluster import Cluster

AMNESIA = "amnesia"  # a lie of the files, not of the mouth
EPOCH_MS = 1_700_000_000_000
SETTINGS = Settings(block_interval_ms=250, profile=LAN, doppelganger_wait_s=0.0)


async def at_once(function: Callable[..., Any], *arguments: Any) -> Any:
    """What takes a thread elsewhere happens here and now: a thread has no mock clock."""
    await trio.lowlevel.checkpoint()
    return function(*arguments)


class Node:
    """One node: its folder outlives it, everything else ends with a crash.

    `voter`: whose key it runs, if that is another's: then it is a twin of that node.
    `lies`: what it does to the truth, as in `liars.py`; none for an honest one.
    """

    def __init__(
        self,
        cluster: Cluster,
        number: int,
        home: Path,
        *,
        votes: bool,
        voter: Party | None = None,
        lies: Sequence[str] = (),
    ) -> None:
        self.cluster, self.number, self.home = cluster, number, home
        self.identity = party(f"validator {number}")
        self.voter = voter or self.identity
        self.peer = PeerId(self.identity.key)
        self.votes = votes
        self.has_room = True  # what its disk guard says
        self.lies = tuple(lies)
        self.skew_ms = 0
        self.settings = SETTINGS
        self.run_blocking = at_once
        self.kv: SeededKV | None = SeededKV(cluster.disk, home)
        self.snapshot_every = 10_000
        self.trusted: tuple[Root, int] | None = None  # what a snapshot is believed by, its gap
        self.sync_counters: Counter[str] = Counter()
        self.scope: trio.CancelScope | None = None
        self.ended = trio.Event()
        self.ended.set()
        self.is_up = False
        home.mkdir()
        if votes:
            create_signer(home / "signer", cluster.chain_id, self.voter.key)

    @property
    def is_alive(self) -> bool:
        """Whether it runs and nobody has stopped it."""
        return self.scope is not None and not self.scope.cancel_called

    def now_ms(self) -> int:
        return EPOCH_MS + round(trio.current_time() * 1_000) + self.skew_ms

    def sign(self, tag: bytes, body: bytes) -> bytes:
        """As the keystore does: the one place where our words get their signature."""
        self.cluster.promises.note_signed(self, body)
        return self._signed(tag, body)

    def _signed(self, tag: bytes, body: bytes) -> bytes:
        return sign(self.voter.seed, signing_bytes(tag, self.cluster.chain_id, body))

    def use_disk(self) -> None:
        """A real database, which forgets nothing: one that a snapshot can take the place of."""
        self.kv = None

    def trust(self, other: Node, gap_blocks: int) -> None:
        """Start from a snapshot that the other's newest block vouches for, if far above ours."""
        self.trusted = Named(other.chain.height, other.chain.tip.block_id), gap_blocks

    def trust_genesis(self, gap_blocks: int) -> None:
        """The same by what our genesis leads to."""
        self.trusted = start(self.cluster.genesis).validators, gap_blocks

    # --- its life

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Live until `crash`, or until the power fails, which may be before we are up."""
        self.ended = trio.Event()
        self.is_up = False
        try:
            with trio.CancelScope() as self.scope:
                while await self._live(task_status):
                    pass
        except* PowerLost:
            self.cluster.hub.crash(self.peer)
            if not self.is_up:
                task_status.started()
        finally:
            self.scope = None
            self.ended.set()

    async def _live(self, task_status: Any) -> bool:
        """Until the end; returns whether to begin again, on a snapshot that was taken in."""
        genesis = encode_genesis(self.cluster.genesis)
        with ExitStack() as files:
            self.chain = files.enter_context(closing(Chain.open(self.home, genesis, store=self.kv)))
            snapshots = SnapshotStore(self.home / "snapshots")
            keeper = SnapshotKeeper(
                store=snapshots,
                get_view=lambda: self.chain.view(),
                every=self.snapshot_every,
                run_blocking=at_once,
            )
            self.network = self._join(keeper)
            validator = self._open_validator(files) if self.votes else None
            self.replica = self._make_replica(validator, keeper)
            async with trio.open_nursery() as nursery:
                await nursery.start(self.network.run)
                if await self._sync_state(snapshots):
                    nursery.cancel_scope.cancel()
                    return True
                nursery.start_soon(keeper.run)
                LightServer(
                    get_view=self.chain.view, take_attack=self._take_attack, run_blocking=at_once
                ).serve(self.network)
                await nursery.start(self.replica.run)
                self.is_up = True
                task_status.started()
        return False

    def _join(self, keeper: SnapshotKeeper) -> Network:
        network = self.cluster.hub.network(
            self.identity.key,
            chain_id=self.cluster.chain_id,
            facts=lambda: StatusFacts(
                height=self.chain.height,
                block_id=self.chain.tip.block_id,
                earliest=self.chain.view().earliest_whole,
                snapshot_height=keeper.height,
            ),
            epoch_ms=EPOCH_MS,
        )
        keeper.serve(network)
        return network

    def _open_validator(self, files: ExitStack) -> Validator:
        chain_id, key = self.cluster.chain_id, self.voter.key
        if AMNESIA in self.lies:
            shutil.rmtree(self.home / "journal", ignore_errors=True)
            (self.home / "signer").unlink()
            create_signer(self.home / "signer", chain_id, key)
        self.journal = files.enter_context(closing(open_journal(self.home, chain_id, key)))
        return Validator(key, self.journal, self.sign)

    def _make_replica(self, validator: Validator | None, keeper: SnapshotKeeper) -> Replica:
        chain_id = self.cluster.chain_id
        self.transactions, self.bundles = TransactionPool(chain_id), BundlePool()
        self.accusing = Accusing(
            chain_id=chain_id,
            get_view=self.chain.view,
            on_pooled=lambda: self.replica.wake(),
        )

        def note_commit(tip: Tip) -> None:
            self.cluster.promises.note_committed(self, tip)
            keeper.note(tip)

        def accuse(evidence: bytes) -> None:
            self.cluster.promises.note_accused(self, evidence)
            self.accusing.add(evidence)

        return Replica(
            network=self._mouth_of(self.network),
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
            on_commit=note_commit,
            on_accuse=accuse,
            judge_evidence=self.accusing.judge,
            may_promise=lambda: self.has_room,
            run_blocking=self.run_blocking,
        )

    def _mouth_of(self, network: Network) -> Network:
        """What the replica speaks through: the network itself, if it is honest."""
        spoken = [lie for lie in self.lies if lie != AMNESIA]
        if not spoken:
            return network
        mouth = Mouth(spoken, self.cluster.rng, self._signed)
        return LyingNetwork(network, mouth, [node.peer for node in self.cluster.nodes])

    async def _sync_state(self, store: SnapshotStore) -> bool:
        if self.trusted is None:
            return False
        root, gap_blocks = self.trusted
        if isinstance(root, Named) and root.height - self.chain.height <= gap_blocks:
            return False
        trusting = Trusting(
            network=self.network,
            chain_id=self.cluster.chain_id,
            root=root,
            options=trust_options(self.cluster.genesis),
            file=LightFile(self.home, self.cluster.chain_id),
            evidence=self.home / "evidence",
            now_ms=self.now_ms,
            run_blocking=at_once,
        )
        sync = StateSync(
            network=self.network,
            store=store,
            get_height=lambda: self.chain.height,
            verify_header=trusting.verify,
            take_in=lambda manifest: take_in(self.home, store, manifest),
            gap_blocks=gap_blocks,
            run_blocking=at_once,
        )
        found = await sync.run()
        self.sync_counters += sync.counters + trusting.counters
        return found is not None

    async def _take_attack(self, attack: LightClientAttack, verdict: Verdict) -> None:
        assert verdict.guilty
        await self.replica.accuse(encode_attack(attack))

    async def fetch_bodies(self, names: Any, peers: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return names

    # --- what a script does to it

    def crash(self) -> None:
        """As a power cut: nobody is told, what was not synced may be gone or torn."""
        assert self.scope is not None
        self.cluster.hub.crash(self.peer)
        self.cluster.disk.crash(self.home)
        self.scope.cancel()

    def pay(self, nonce: int) -> None:
        """A transfer into this node's pool, as if gossip had brought it."""
        tx = self.cluster.transfer(nonce, self.now_ms())
        with suppress(Invalid):  # settled already, or too far ahead of what this node knows
            self.transactions.add(self.chain.state(), self.now_ms(), tx)
            self.replica.wake()
