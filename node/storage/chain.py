"""The chain of this node: executes blocks once, and makes decided ones durable in a fixed order.

    bodies synced → (vote) → block log, fsync → one database batch, fsync → the new tip is seen

Why this order: the database is an index that can be made again from block log and bodies, so the
log is always at or ahead of it; a start replays what the database has not seen.
Why executed blocks are remembered by id: a block is executed before our prevote, and committing
it then is only writing (page 20 §5). Four are enough: a height seldom has more proposals.
Threads: `build`, `execute`, `commit`, `commit_many` block (execution, fsync) and are for one
writer thread at a time; `tip`, `view()` and what is asked through them are for any thread.
What this file does not know: the network, the clock, and who voted why.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from consensus.certificate import Certificate, encode_certificate
from consensus.header import Header, decode_header
from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid
from consensus.validators import ValidatorSet
from node.ledger.genesis import Genesis
from node.ledger.state import State
from node.ledger.wire.blocks import Block, Payload, decode_payload, encode_block
from node.storage.batch import Batch
from node.storage.blocklog import BlockLog
from node.storage.bundlestore import BundleStore
from node.storage.errors import DatabaseDamaged, MissingData
from node.storage.executing import (
    NOTHING_KNOWN,
    DoubtfulBytes,
    Executed,
    FinalRefusal,
    Known,
    Parent,
    build_block,
    check_header,
    check_last_commit,
    execute_next,
    named_heights,
    verify_decided,
)
from node.storage.opening import Opened, Tell, open_store, tell_nobody
from node.storage.pasts import PastBlocks
from node.storage.scrubbing import Progress, Scrub
from node.storage.segments import Place
from node.storage.store import CACHE_BYTES, KV, Reader
from node.storage.views import Tip, View
from node.storage.writing import (
    PRUNED_PER_BLOCK_MAX,
    head_places,
    prune_roots,
    prune_tree,
    write_block,
)

EXECUTED_MAX: Final = 4  # block ids whose outcome is kept
SYNC_BLOCKS_MAX: Final = 64  # under one fsync while catching up
BODIES_KEPT_MS: Final = 7 * 86_400_000  # beyond the challenge window, for proofs and replays
HEADS_MOVED_MAX: Final = 10_000  # at once: some megabytes
KEEP_VERSIONS: Final = 1_000  # of the state tree, for proofs at older heights


@dataclass(frozen=True, slots=True)
class Verdict:
    """What execution says of a block; `code` is the word of the refusal, "" when valid.

    `is_final`: no other bytes under this block id can be judged otherwise. A refusal of the
    payload mostly is not: the header commits to [transaction, code] leaves, so whoever hands us
    a block may put a false payload under a true header. Tell the engine final verdicts only; for
    others ask another peer, and let the timeout speak meanwhile.
    """

    block_id: bytes
    is_valid: bool
    is_final: bool = True
    code: str = ""


@dataclass(frozen=True, slots=True)
class ChainStatistics:
    """Counters since the start, and sizes."""

    height: int
    executed: int
    refused: int
    committed: int
    bodies_damaged: int


class Chain:
    """Blocks, state and indices of one home. Made by `Chain.open`."""

    def __init__(self, opened: Opened, *, keep_versions: int = KEEP_VERSIONS) -> None:
        self.genesis: Genesis = opened.genesis
        self.chain_id: bytes = opened.chain_id
        self.bundles: BundleStore = opened.bundles
        """Bodies of bundles: `append` when admitted, `sync` before our precommit."""
        self.pasts: PastBlocks = opened.pasts
        """Blocks from before our snapshot that evidence names: `add` what peers tell."""
        self.steps: tuple[str, ...] = opened.steps
        """What the start-up ladder did, a line each, for the log."""
        self._store: KV = opened.store
        self._log: BlockLog = opened.log
        self._keep_versions = keep_versions
        self._executed: OrderedDict[bytes, Executed] = OrderedDict()
        self._refused: OrderedDict[tuple[bytes, bytes], Verdict] = OrderedDict()
        self._counts = dict.fromkeys(("executed", "refused", "committed"), 0)
        self._snapshot = self._store.snapshot()
        self._view = View(self._snapshot, opened.tip, self._log, self.bundles, self.pasts)

    @classmethod
    def open(
        cls,
        home: Path,
        genesis: bytes,
        *,
        keep_versions: int = KEEP_VERSIONS,
        cache_bytes: int = CACHE_BYTES,
        store: KV | None = None,
        tell: Tell = tell_nobody,
    ) -> Self:
        """Open the chain in `home`, climbing the start-up ladder. Blocks; may replay blocks.

        The caller holds `lock_home(home)`. `genesis`: its canonical bytes. `store`: another map
        than LevelDB, for tests. `tell` hears how far a replay is. Raises `StorageError`
        (`Damaged`: exit status 7) with its mend.
        """
        opened = open_store(
            home,
            genesis,
            keep_versions=keep_versions,
            cache_bytes=cache_bytes,
            store=store,
            tell=tell,
        )
        return cls(opened, keep_versions=keep_versions)

    # -- looking, any thread

    @property
    def damage(self) -> DatabaseDamaged | None:
        """Why nothing that this chain tells is to be trusted any more: it must be closed."""
        return self._store.damage

    @property
    def tip(self) -> Tip:
        """The newest block, and the validators of the next."""
        return self._view.tip

    @property
    def height(self) -> int:
        """Height of the newest block; 0 before the first."""
        return self._view.tip.height

    def view(self) -> View:
        """Everything as of the newest block; stays as it is while the chain goes on."""
        return self._view

    def state(self) -> State:
        """A fresh typed view of the newest state; one user each."""
        return self._view.state()

    def header(self, height: int) -> Header | None:
        """The header of a committed block."""
        return self._view.header(height)

    def block(self, height: int) -> Block | None:
        """The three encodings of a committed block."""
        return self._view.block(height)

    def certificate(self, height: int) -> Certificate | None:
        """The certificate that decided a committed block."""
        return self._view.certificate(height)

    def validators(self, height: int) -> ValidatorSet | None:
        """The set that signs `height`, up to the tip's next."""
        return self._view.validators(height)

    def statistics(self) -> ChainStatistics:
        """Counters since the start."""
        return ChainStatistics(
            height=self.height, bodies_damaged=self.bundles.damaged_count, **self._counts
        )

    # -- executing, the writer thread

    def missing_bodies(self, block: Block) -> tuple[bytes, ...]:
        """Hashes of bundles that a block names and we lack: fetch them before `execute`.

        Raises `Invalid` `payload.…` when its payload is none.
        """
        payload = decode_payload(block.payload)
        return tuple(name for name in payload.bundles if name not in self.bundles)

    def missing_past(self, block: Block) -> tuple[int, ...]:
        """Heights before our snapshot that a block's evidence names: fetch them before `execute`.

        Raises `Invalid` `payload.…`, `evidence.…`.
        """
        missing = self.pasts.missing(named_heights(decode_payload(block.payload).evidence))
        return () if missing and self._view.has_outlived_snapshot() else missing

    def build(
        self,
        *,
        proposer: bytes,
        time_ms: int,
        payload: Payload,
        last_certificate: Certificate | None,
        known: Known = NOTHING_KNOWN,
    ) -> Block:
        """The next block with `payload`, executed and remembered. Blocks for the execution.

        `time_ms` is past the parent's. Raises `Invalid` when the payload breaks a rule: the
        caller drops what it names, and tries again or with nothing. `known`: bundles that were
        checked when they came in (`BundlePool.known`), so that their signatures are not again.
        """
        executed = build_block(
            self._parent(self._store, self.tip),
            self.bundles,
            known,
            proposer=proposer,
            time_ms=time_ms,
            payload=payload,
            last_certificate=last_certificate,
        )
        self._remember(executed)
        return executed.block

    def execute(self, block: Block, known: Known = NOTHING_KNOWN) -> Verdict:
        """Whether `block` keeps every rule as the next one; executed once per id.

        Raises `MissingData` when not all that it names is held: fetch that, then ask again.
        Any exception but this and those of the disk is our own failure, not the block's.
        """
        header = decode_header(block.header)
        block_id = header.block_id()
        if block_id in self._executed:
            return Verdict(block_id, is_valid=True)
        bytes_hash = sha256(block.payload, block.last_certificate)
        refused = self._refused.get((block_id, bytes_hash))
        if refused is not None:
            return refused
        parent = self._parent(self._store, self.tip)
        try:
            check_header(parent, header)
            check_last_commit(parent, block, header)
            executed = execute_next(parent, self.bundles, known, block, header)
        except Invalid as refusal:
            self._counts["refused"] += 1
            is_final = isinstance(refusal, FinalRefusal)
            verdict = Verdict(block_id, is_valid=False, is_final=is_final, code=refusal.code)
            self._refused[block_id, bytes_hash] = verdict
            while len(self._refused) > EXECUTED_MAX:
                self._refused.popitem(last=False)
            return verdict
        self._remember(executed)
        return Verdict(block_id, is_valid=True)

    def executed_block(self, block_id: bytes) -> Block | None:
        """A block that was found valid as the next one and can be committed, or None."""
        executed = self._executed.get(block_id)
        return None if executed is None else executed.block

    def commit(self, block_id: bytes, certificate: Certificate) -> Tip:
        """Make an executed block durable and the tip. Blocks for two fsyncs.

        The caller has verified `certificate`. A `StorageError` must end the process: the next
        start finds the block in the log, or not at all.
        """
        executed = self._executed.get(block_id)
        assert executed is not None, "a block is executed before it is committed"
        batch = Batch(self._store)
        tip = self._append(batch, self.tip, executed, certificate)
        self._finish(batch, tip)
        return tip

    def commit_many(self, blocks: Sequence[tuple[Block, Certificate]]) -> Tip:
        """Execute and commit decided blocks in order, with one sync of log and database.

        For catching up: the caller has checked nothing but shapes. Each certificate is verified
        against the set of its height. Raises `Invalid` at the first bad certificate,
        `DoubtfulBytes` and `FinalRefusal` at the first decided block that is refused here, and
        `MissingData` at the first that names what we lack; what came before it is committed then.
        """
        assert len(blocks) <= SYNC_BLOCKS_MAX
        batch, tip = Batch(self._store), self.tip
        try:
            for block, certificate in blocks:
                executed = self._decided(batch, tip, block, certificate)
                tip = self._append(batch, tip, executed, certificate)
        except (Invalid, MissingData):
            if tip.height > self.height:
                self._finish(batch, tip)
            raise
        if tip.height > self.height:
            self._finish(batch, tip)
        return tip

    def bodies_from(self) -> int:
        """Height of the first block whose bodies every node keeps: those of older ones may go once
        the challenge window and BODIES_KEPT_MS are over. Reads some twenty headers."""
        kept_ms = self.state().parameter("challenge_window_ms") + BODIES_KEPT_MS
        return self._view.height_at(self.tip.time_ms - kept_ms)

    def prune_bodies(self, snapshot: int) -> int:
        """Drop bodies that need not be kept; returns how many.

        For a node that is no archive. `snapshot`: height of an own one; what came after it stays,
        for the database is made again from there on. 0: all stays. Blocks for directory syncs.
        """
        return self.bundles.prune(min(self.bodies_from(), snapshot), self._view.settled_at)

    def prune_payloads(self, snapshot: int) -> int:
        """Drop payloads that need not be kept, as bodies; returns how many. For any one thread.

        Their room is free after the next opening: views of now may still read them.
        """
        view, moved = self._view, list[tuple[int, Place]]()
        last = min(self.bodies_from(), snapshot) - 1
        first = max(view.earliest, self._log.heads.height + 1)
        for height in range(first, min(last, first + HEADS_MOVED_MAX - 1) + 1):
            record = view.record(height)
            if record is None:
                raise DatabaseDamaged(f"block {height} is missing in the database")
            moved.append((height, self._log.heads.append(height, record.block, record.certificate)))
        self._log.heads.sync()  # before the database names them
        if moved:
            self._store.write(head_places(moved))
        return len(moved)

    def prune_tree(self) -> int:
        """Drop all nodes of the state tree that no kept version needs; returns how many.

        Each block does so by itself, up to a limit: this is for after `keep_versions` was lowered.
        For the writer thread; blocks for seconds in a large database.
        """
        dropped = 0
        while True:
            batch = Batch(self._store)
            gone = prune_tree(batch, self.height, self._keep_versions)
            prune_roots(batch, self.height, self._keep_versions)
            batch.write_to(self._store)
            dropped += gone
            if gone < PRUNED_PER_BLOCK_MAX:
                self._store.compact()
                return dropped

    def scrub(self, progress: Progress, *, is_archive: bool) -> Scrub:
        """A pass over blocks, bodies and keys, from there on; its steps may run in a thread."""
        bodies_from = (lambda: 0) if is_archive else self.bodies_from
        return Scrub(self.view, self.bundles, self.chain_id, bodies_from, progress)

    def close(self) -> None:
        """Sync and let go of all files. Views must not be used any more."""
        self._executed.clear()
        self._snapshot.close()
        self._log.close()
        self.bundles.close()
        self._store.close()

    # -- inside

    def _parent(self, reader: Reader, tip: Tip) -> Parent:
        past = View(reader, tip, self._log, self.bundles, self.pasts)
        return Parent(self.chain_id, self.genesis.app_version, reader, tip, past.find_past)

    def _remember(self, executed: Executed) -> None:
        self._counts["executed"] += 1
        self._keep_past(executed)
        self._executed[executed.block_id] = executed
        while len(self._executed) > EXECUTED_MAX:
            self._executed.popitem(last=False)

    def _decided(self, batch: Batch, tip: Tip, block: Block, certificate: Certificate) -> Executed:
        header = decode_header(block.header)
        parent = self._parent(batch, tip)
        verify_decided(parent, header, certificate)
        executed = self._executed.get(header.block_id())
        if executed is not None:
            return executed
        check_header(parent, header)
        try:
            check_last_commit(parent, block, header)
            executed = execute_next(parent, self.bundles, NOTHING_KNOWN, block, header)
        except FinalRefusal:
            raise
        except Invalid as refusal:
            raise DoubtfulBytes(refusal, block) from refusal
        self._keep_past(executed)
        return executed

    def _keep_past(self, executed: Executed) -> None:
        """Durable before our vote, and before the block is: a start may have to judge it again."""
        if executed.payload.evidence:
            self.pasts.keep(named_heights(executed.payload.evidence))

    def _append(self, batch: Batch, tip: Tip, executed: Executed, certificate: Certificate) -> Tip:
        raw = encode_block(executed.block)
        height = executed.header.height
        place = self._log.append(height, raw, encode_certificate(certificate))
        return write_block(batch, tip, executed, certificate, place, self._keep_versions)

    def _finish(self, batch: Batch, tip: Tip) -> None:
        self.bundles.sync()
        self._log.sync()
        batch.write_to(self._store)
        self._counts["committed"] += tip.height - self.height
        self._executed.clear()
        self._refused.clear()
        self.bundles.height = tip.height
        # Readers of the old view keep its snapshot alive until they let go of it.
        self._snapshot = self._store.snapshot()
        self._view = View(self._snapshot, tip, self._log, self.bundles, self.pasts)
