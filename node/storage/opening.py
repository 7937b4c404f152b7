"""The start-up ladder: from whatever a crash or a bad disk left to a chain that may be used.

    self-tests → block log (cut a torn tail) → a snapshot that was taken in → database
    → replay what it lacks → compare roots

Why a mismatch is never repaired in place: LevelDB's own repair left holes or wrong values nearly
always. The directory is moved aside and made again from genesis, or the snapshot that our block
log stands on, and our block log, each block giving its header's state root; what cannot be made
again is told with its mend. Where bodies were dropped for their age no block before the newest
snapshot can be executed again: the chain then stands on that, or on an older one where evidence
in a later block speaks of what was before it.
What this file does not know: peers. No vote leaves before this is done.
"""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from consensus.certificate import decode_certificate
from consensus.header import Header, decode_header
from consensus.primitives import keys
from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid
from consensus.validators import ValidatorSet, decode_validators, encode_validators
from node.ledger import tree
from node.ledger.genesis import Genesis, decode_genesis, start
from node.ledger.rules.staking import validator_set
from node.ledger.state import State
from node.ledger.wire.blocks import decode_block, decode_payload
from node.storage import keyspace
from node.storage.adopting import DB_NAME, adopt_prepared
from node.storage.batch import Batch
from node.storage.blocklog import BlockLog, BlockRecord
from node.storage.bundlestore import BundleStore
from node.storage.errors import (
    Damaged,
    DatabaseDamaged,
    MissingData,
    StorageError,
    log_is_shorter,
)
from node.storage.executing import (
    NOTHING_KNOWN,
    Parent,
    check_header,
    check_last_commit,
    execute_next,
    named_heights,
)
from node.storage.footing import Footing, decode_footing
from node.storage.headlog import is_head
from node.storage.loading import load
from node.storage.pasts import PASTS_NAME, PastBlocks
from node.storage.segments import Place, decode_place
from node.storage.snapshots import check_chunk, read_chunk, read_manifest, verify_manifest
from node.storage.store import KV, LevelKV, Reader, why_suspected
from node.storage.views import Tip, View, base_of
from node.storage.writing import head_places, write_block, write_state

BLOCKS_NAME: Final = "blocks"
BUNDLES_NAME: Final = "bundles"
SNAPSHOTS_NAME: Final = "snapshots"
ASIDE_NAME: Final = "db.damaged"

PROVED_KEYS: Final = 1_000  # at each start, 0.15 s
CHECKED_HEIGHTS: Final = 100_000  # 0.03 s; more than LevelDB writes between two tables
REPLAY_BLOCKS_MAX: Final = 64  # in one database batch

Tell = Callable[[int, int], None]  # blocks replayed up to this height, of so many


def tell_nobody(height: int, last: int) -> None:
    """For who does not wait."""


@dataclass(slots=True)
class Opened:
    """What the ladder hands to the chain, and a line for each of its steps."""

    genesis: Genesis
    chain_id: bytes
    store: KV
    log: BlockLog
    bundles: BundleStore
    pasts: PastBlocks
    tip: Tip
    steps: tuple[str, ...] = field(default=())


def open_store(
    home: Path,
    genesis_raw: bytes,
    *,
    keep_versions: int,
    cache_bytes: int,
    store: KV | None,
    tell: Tell = tell_nobody,
) -> Opened:
    """Climb the ladder in `home`. Blocks; raises `StorageError` with its mend."""
    steps: list[str] = []
    keys.selftest()
    try:
        genesis, chain_id = decode_genesis(genesis_raw), sha256(genesis_raw)
    except Invalid as error:
        raise StorageError(
            "the genesis file is no genesis",
            why=str(error),
            mend="fetch it again from where the network publishes it",
        ) from error
    log = BlockLog(home / BLOCKS_NAME)
    if log.cut_bytes:
        steps.append(f"block log: a torn tail of {log.cut_bytes} bytes was cut")
    bundles = BundleStore(home / BUNDLES_NAME)
    if bundles.cut_bytes or bundles.damaged_count:
        lost = f"{bundles.cut_bytes} bytes cut, {bundles.damaged_count} places damaged"
        steps.append(f"bundle bodies: {lost}; peers have them by hash")
    try:
        if store is None and (step := adopt_prepared(home, log, chain_id)) is not None:
            steps.append(step)
        ladder = _Ladder(genesis, chain_id, log, bundles, keep_versions, steps, home, tell)
        opened_store, tip = ladder.climb(home, store, cache_bytes)
    except BaseException:
        log.close()
        bundles.close()
        raise
    bundles.height = tip.height
    steps.append(f"chain: height {tip.height}")
    return Opened(genesis, chain_id, opened_store, log, bundles, ladder.pasts, tip, tuple(steps))


def set_aside(home: Path) -> bool:
    """Move the database away, in place of one moved before: the next opening makes it again.

    Returns whether there was one.
    """
    if not (home / DB_NAME).exists():
        return False
    shutil.rmtree(home / ASIDE_NAME, ignore_errors=True)
    (home / DB_NAME).rename(home / ASIDE_NAME)
    return True


class _Ladder:
    def __init__(
        self,
        genesis: Genesis,
        chain_id: bytes,
        log: BlockLog,
        bundles: BundleStore,
        keep_versions: int,
        steps: list[str],
        home: Path,
        tell: Tell,
    ) -> None:
        self._tell = tell
        self._genesis = genesis
        self._chain_id = chain_id
        self._log = log
        self._bundles = bundles
        self._keep_versions = keep_versions
        self._steps = steps
        self._snapshots = home / SNAPSHOTS_NAME
        self._pasts_folder = home / PASTS_NAME
        self._stand_on_log()

    def _stand_on_log(self) -> None:
        self._stand_on(decode_footing(self._log.footing) if self._log.footing else None)

    def _stand_on(self, footing: Footing | None) -> None:
        """Blocks up to this one are known by it alone; None: all from genesis on."""
        self._footing = footing
        self.pasts = PastBlocks(self._pasts_folder, footing and footing.header)

    def climb(self, home: Path, given: KV | None, cache_bytes: int) -> tuple[KV, Tip]:
        """The database at the block log's height, made again if it is damaged."""
        if given is not None:
            return given, self._bring_up(given)
        path = home / DB_NAME
        if why := why_suspected(path):
            damage = DatabaseDamaged("it failed while in use", why=why)
            return self._make_again(home, damage, cache_bytes)
        try:
            store = LevelKV(path, cache_bytes)
        except Damaged as error:
            return self._make_again(home, error, cache_bytes)
        try:
            return store, self._bring_up(store)
        except (Damaged, tree.MissingNode) as error:
            store.close()
            return self._make_again(home, error, cache_bytes)
        except BaseException:
            store.close()
            raise

    def _make_again(self, home: Path, error: Exception, cache_bytes: int) -> tuple[KV, Tip]:
        set_aside(home)
        self._stand_on_log()  # what this database stood on goes with it
        why = error.told if isinstance(error, StorageError) else str(error)
        self._steps.append(f"database: {why}; moved to {ASIDE_NAME} and made again")
        store = LevelKV(home / DB_NAME, cache_bytes)
        try:
            return store, self._bring_up(store)
        except BaseException:
            store.close()
            raise

    def _bring_up(self, store: KV) -> Tip:
        """Compare database and block log, and replay what the database lacks."""
        self._check_meta(store)
        tip = self._tip(store)
        self._check_heights(store, tip)
        self._check_tree(store, tip)
        if tip.height < self._log.height:
            first = tip.height + 1
            tip = self._replay(store, tip)
            self._steps.append(f"database: replayed blocks {first} to {tip.height}")
        self._check_heads(store)
        return tip

    def _check_heads(self, store: KV) -> None:
        """Have the database name what was moved to the heads, before their old place is dropped."""
        heads, first = self._log.heads, 1 if self._footing is None else self._footing.height + 1
        if heads.height < first:
            return
        raw = store.get(keyspace.BLOCK + keyspace.u64(heads.height))
        if raw is None or not is_head(decode_place(raw)):
            store.write(head_places(pair for pair in heads.places() if pair[0] >= first))
        self._log.drop_pruned()

    def _check_meta(self, store: KV) -> None:
        version = store.get(keyspace.FORMAT)
        if version is None:
            has_dropped = self._bundles.has_dropped or self._log.has_dropped
            if has_dropped and (own := self._newest_snapshot()) is not None:
                self._stand_on(own)
            if self._footing is None:
                self._found(store)
            else:
                self._load(store, self._footing)
            return
        if keyspace.from_u64(version) != keyspace.FORMAT_VERSION:
            raise StorageError(
                f"the database has format {keyspace.from_u64(version)}",
                why=f"this olnode reads format {keyspace.FORMAT_VERSION}",
                mend="use the olnode that wrote it",
            )
        chain_id = store.get(keyspace.CHAIN_ID)
        if chain_id != self._chain_id:
            raise StorageError(
                "the database is of another chain than the genesis",
                why=f"{(chain_id or b'').hex()[:16]}, not {self._chain_id.hex()[:16]}",
                mend="put the right genesis file into the home, or use another home",
            )
        raw = store.get(keyspace.FOOTING)
        if raw is not None and raw != self._log.footing:  # it was made from a snapshot of ours
            self._stand_on(decode_footing(raw))

    def _newest_snapshot(self) -> Footing | None:
        """What our newest snapshot stands on that is whole, of a block of our log, and enough."""
        names = [path.name for path in self._snapshots.glob("*") if path.name.isdigit()]
        for height in sorted(map(int, names), reverse=True):
            folder = self._snapshots / str(height)
            manifest = read_manifest(folder)
            header = None if manifest is None else self._header_in_log(height)
            if manifest is None or header is None:
                continue
            try:
                verify_manifest(manifest, header)
                for index, mark in enumerate(manifest.chunks):
                    check_chunk(mark, read_chunk(folder, index) or b"")
                self._check_enough(manifest.footing)
            except Invalid:
                continue
            return manifest.footing
        return None

    def _check_enough(self, footing: Footing) -> None:
        """Raise `Invalid` if evidence behind it is of a height before it that nothing here proves.

        That block could not be executed again: it was judged by blocks that are then as never held.
        """
        pasts = PastBlocks(self._pasts_folder, footing.header)
        for _, record in self._log.records_from(footing.height + 1):
            evidence = decode_payload(decode_block(record.block).payload).evidence
            if missing := pasts.missing(named_heights(evidence)):
                raise Invalid("snapshot.past", height=footing.height, missing=missing)

    def _header_in_log(self, height: int) -> Header | None:
        if not self._log.first <= height <= self._log.height:
            return None
        for _, record in self._log.records_from(height):
            return decode_header(decode_block(record.block).header)
        return None

    def _found(self, store: KV) -> None:
        """Write the state of height 0."""
        first = start(self._genesis)
        batch = Batch(store)
        write_state(batch, 0, first.changes, first.tree)
        batch.put(keyspace.VALIDATORS + keyspace.falling(1), encode_validators(first.validators))
        batch.put(keyspace.FORMAT, keyspace.u64(keyspace.FORMAT_VERSION))
        batch.put(keyspace.CHAIN_ID, self._chain_id)
        batch.put(keyspace.HEIGHT, keyspace.u64(0))
        batch.write_to(store)

    def _load(self, store: KV, footing: Footing) -> None:
        """The state that our log stands on, from the snapshot that it came with."""
        folder = self._snapshots / str(footing.height)
        manifest = read_manifest(folder)
        try:
            if manifest is None:
                raise Invalid("snapshot.missing", height=footing.height)
            verify_manifest(manifest, footing.header)
            load(store, manifest, lambda index: read_chunk(folder, index))
        except Invalid as error:
            raise StorageError(
                f"the chain stands on the snapshot of block {footing.height}, which is not usable",
                why=str(error),
                mend="start a fresh home that syncs from its peers; keep this one for its keys",
            ) from error
        self._steps.append(f"database: loaded from the snapshot of block {footing.height}")

    def _tip(self, store: KV) -> Tip:
        height = keyspace.from_u64(store.get(keyspace.HEIGHT) or bytes(8))
        if self._footing is not None and height < self._footing.height:
            raise Damaged(f"the database ends at {height}, below what the block log stands on")
        validators = validator_set(State(base_of(store, height)))
        if height == 0:
            return Tip(0, self._chain_id, self._genesis.time_ms, None, None, None, validators)
        if height > self._log.height:
            raise log_is_shorter(self._log.height, height)
        if self._footing is not None and height == self._footing.height:
            return _standing_on(self._footing, validators)
        raw = store.get(keyspace.BLOCK + keyspace.u64(height))
        if raw is None:
            raise Damaged(f"block {height} is missing in the database")
        record = self._record_of(raw, height)
        header = decode_header(decode_block(record.block).header)
        return Tip(
            height=height,
            block_id=header.block_id(),
            time_ms=header.time_ms,
            header=header,
            certificate=decode_certificate(record.certificate),
            signers=_signers(store, height),
            validators=validators,
        )

    def _record_of(self, raw: bytes, height: int) -> BlockRecord:
        for place, record in self._log.records_from(height):
            if place.encode() != raw:
                raise Damaged(f"block {height} is elsewhere than the database says")
            return record
        raise Damaged(f"block {height} is not in the block log")

    def _check_heights(self, store: KV, tip: Tip) -> None:
        """LevelDB opens without a word where its MANIFEST lost a table: a hole of some blocks."""
        first = 1 if self._footing is None else self._footing.height + 1
        expected = max(first, tip.height - CHECKED_HEIGHTS + 1)
        start_key = keyspace.BLOCK + keyspace.u64(expected)
        for key, _ in store.scan(start_key, keyspace.after(keyspace.BLOCK)):
            if key != keyspace.BLOCK + keyspace.u64(expected):
                break
            expected += 1
        if expected <= tip.height:
            raise Damaged(f"block {expected} is missing in the database")

    def _check_tree(self, store: KV, tip: Tip) -> None:
        """The stored root is the header's, and a thousand keys are in its tree."""
        base = base_of(store, tip.height)
        expected = tip.header.state_root if tip.header else tree.root_hash(base.tree_root)
        if tree.root_hash(base.tree_root) != expected:
            raise Damaged(f"the state root of height {tip.height} differs from its header's")
        checker = tree.Checker(base.read_node, base.tree_root)
        for key, value in _some_of_state(store):
            try:
                checker.check(key, value)
            except Invalid as error:
                raise Damaged(f"a record of the state is not in its tree ({error})") from error

    def _replay(self, store: KV, tip: Tip) -> Tip:
        batch = Batch(store)
        for place, record in self._log.records_from(tip.height + 1):
            tip = self._replay_one(batch, tip, place, record)
            if tip.height % REPLAY_BLOCKS_MAX == 0:
                batch.write_to(store)
                batch = Batch(store)
                self._tell(tip.height, self._log.height)
        batch.write_to(store)
        return tip

    def _replay_one(self, batch: Batch, tip: Tip, place: Place, record: BlockRecord) -> Tip:
        try:
            block = decode_block(record.block)
            certificate = decode_certificate(record.certificate)
            header = decode_header(block.header)
            past = View(batch, tip, self._log, self._bundles, self.pasts)
            parent = Parent(self._chain_id, self._genesis.app_version, batch, tip, past.find_past)
            check_header(parent, header)
            check_last_commit(parent, block, header)
            executed = execute_next(parent, self._bundles, NOTHING_KNOWN, block, header)
            if certificate.block_id != executed.block_id:
                raise Invalid("certificate.block_id")
        except (Invalid, MissingData) as error:
            raise StorageError(
                f"block {record.height} of our own log cannot be replayed",
                why=str(error),
                mend="start a fresh home that syncs from its peers; keep this one for its keys",
            ) from error
        return write_block(batch, tip, executed, certificate, place, self._keep_versions)


def _standing_on(footing: Footing, validators: ValidatorSet) -> Tip:
    header = footing.header
    return Tip(
        height=header.height,
        block_id=header.block_id(),
        time_ms=header.time_ms,
        header=header,
        certificate=footing.certificate,
        signers=footing.signers,
        validators=validators,
    )


def _signers(reader: Reader, height: int) -> ValidatorSet:
    start_key = keyspace.VALIDATORS + keyspace.falling(height)
    for _, raw in reader.scan(start_key, keyspace.after(keyspace.VALIDATORS)):
        return decode_validators(raw)
    raise Damaged(f"the validators of height {height} are missing in the database")


def _some_of_state(reader: Reader) -> list[tuple[bytes, bytes]]:
    """Up to PROVED_KEYS records of the state, from random places when there are more."""
    stop = keyspace.after(keyspace.STATE)
    first: list[tuple[bytes, bytes]] = []
    for key, value in reader.scan(keyspace.STATE, stop):
        first.append((key[1:], value))
        if len(first) > PROVED_KEYS:
            break
    else:
        return first
    chance = random.SystemRandom()
    found: dict[bytes, bytes] = {}
    for _ in range(PROVED_KEYS):
        table = chance.choice(first)[0][:1] if chance.random() < 0.5 else chance.randbytes(1)
        start = keyspace.STATE + table + chance.randbytes(8)
        for key, value in reader.scan(start, stop):
            found[key[1:]] = value
            break
    return list(found.items())
