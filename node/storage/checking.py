"""Reads everything that a home stores and tells what is not as it was written. Changes nothing.

Why read what nobody asks for: a disk loses bytes without a word, and what is found while peers
still have the rest is fetched again. Why the database is opened as a copy: opening LevelDB writes;
its tables are never changed in place, so hard links to them cost nothing.
Why so little is verified by signatures: each block names the one before it, so the certificate of
the newest vouches for all.
Why bodies by the blocks that name them: one that is gone stands in no file that is here.
What this file does not know: how to mend; `opening.py` does, at the next start.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from consensus.certificate import PRECOMMIT, decode_certificate
from consensus.header import Header, decode_header
from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid
from node.ledger import tree
from node.ledger.state import State
from node.ledger.wire.blocks import decode_block, decode_payload
from node.ledger.wire.bundles import check_bytes
from node.storage import blocklog, bundlestore, keyspace
from node.storage.adopting import DB_NAME
from node.storage.blocklog import BlockRecord
from node.storage.errors import FRESH_HOME, Damaged, StorageError, log_is_shorter
from node.storage.executing import NO_COMMIT
from node.storage.footing import decode_footing
from node.storage.frames import Frame, FrameFormat, read_all
from node.storage.headlog import HEADS_NAME
from node.storage.opening import BLOCKS_NAME, BUNDLES_NAME, SNAPSHOTS_NAME
from node.storage.pasts import PASTS_NAME, read_past
from node.storage.segments import scratch_folder, segment_names
from node.storage.snapshots import SnapshotStore, check_chunk, verify_manifest
from node.storage.store import LevelKV, Reader, why_suspected
from node.storage.views import base_of

COPY_NAME: Final = "db.check"
SCRUB_NAME: Final = "scrub"  # how far the running node's own reading is
REBUILD: Final = "olnode db rebuild"
FETCHED: Final = "nothing: the node fetches it from its peers when it is asked for"
NEEDED: Final = "keep db/ as it is: making it again would need this height"
TOLD_KEYS: Final = 100_000
TOLD_BODIES: Final = 20  # that are missing; the others are counted

Tell = Callable[[str, int], None]  # what is being read, how many records so far


class Finding(NamedTuple):
    """Something that is not as it was written."""

    part: str  # blocks, bundles, database, snapshots, past, and those of `node/belongings.py`
    what: str
    mend: str


class Named(NamedTuple):
    """The bundles of one block."""

    height: int
    time_ms: int
    bundles: tuple[bytes, ...]


@dataclass(slots=True)
class Checked:
    """What was read, and what was found."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what may be as it should, or was not read
    counts: Counter[str] = field(default_factory=Counter)  # blocks, bundles, keys, snapshots, bytes
    height: int = 0
    headers: dict[int, Header] = field(default_factory=dict)  # of the heights of snapshots
    footing: Header | None = None  # of a ledger that does not begin with block 1
    log_footing: Header | None = None  # the same of its block log; the database may have a newer
    stands_on: int = 0  # height up to which blocks are not held whole, and some of them not at all
    newest_ms: int = 0  # when the newest block was
    window_ms: int | None = None  # for challenges; None: the database cannot tell
    named: list[Named] = field(default_factory=list)  # by blocks that are held whole

    def add(self, part: str, what: str, mend: str) -> None:
        """One more finding."""
        self.findings.append(Finding(part, what, mend))


def check_home(
    home: Path,
    chain_id: bytes,
    tell: Tell = lambda part, done: None,
    *,
    bodies_kept_ms: int | None = None,
) -> Checked:
    """Read all of the ledger in `home`, whose lock the caller holds and whose database nobody has
    open. `bodies_kept_ms`: beyond the challenge window; None: bodies are kept for ever.

    Blocks: 100 MB/s and 50,000 keys/s.
    """
    if not (home / DB_NAME / "CURRENT").exists() and not segment_names(home / BLOCKS_NAME):
        raise StorageError(f"{home} has no ledger yet", mend="olnode start")
    checked, snapshots = Checked(), SnapshotStore(home / SNAPSHOTS_NAME)
    wanted = {manifest.height for manifest in snapshots.manifests()}
    for header in _check_blocks(home / BLOCKS_NAME, chain_id, checked, tell):
        if header.height in wanted:
            checked.headers[header.height] = header
    bodies = _check_bundles(home / BUNDLES_NAME, checked, tell)
    if _check_database(home, checked, tell):
        checked.stands_on = checked.footing.height if checked.footing else 0
    else:
        checked.stands_on = max(wanted, default=0)  # it will be loaded from there
    _check_bodies(home, bodies, bodies_kept_ms, checked)
    for _ in _check_blocks(home / HEADS_NAME, chain_id, checked, tell):
        pass  # those of snapshots are younger
    _check_snapshots(snapshots, checked, tell)
    _check_pasts(home / PASTS_NAME, checked)
    return checked


# ---- the logs


def good_frames(
    directory: Path, log: FrameFormat, part: str, mend: str, checked: Checked
) -> Iterator[Frame]:
    """Every good frame of a log; gaps and missing files become findings, a torn tail of the newest
    a note: nobody can tell what a crash left from a record that rotted."""
    names = segment_names(directory)
    if names and int(names[-1]) - int(names[0]) != len(names) - 1:
        checked.add(part, f"a file between {names[0]} and {names[-1]} is missing", mend)
    for name in names:
        data = (directory / name).read_bytes()
        frames, gaps, end = read_all(log, data)
        checked.counts["bytes"] += len(data)
        bounds = [(gap.start, gap.stop) for gap in gaps]
        if name != names[-1] and (end < len(data) or not data):  # none but the newest may be empty
            bounds.append((end, len(data)))
        elif end < len(data):
            tail = f"the last {len(data) - end} bytes of {directory.name}/{name}"
            checked.notes.append(
                f"{tail} are no whole record; a start takes them for a crash's, and cuts"
            )
        for start, stop in bounds:
            checked.add(
                part, f"bytes {start} to {stop} of {directory.name}/{name} are damaged", mend
            )
        yield from frames


def _check_blocks(
    directory: Path, chain_id: bytes, checked: Checked, tell: Tell
) -> Iterator[Header]:
    """The header of each good block, and of the one that the log stands on."""
    before: Header | None = None
    for frame in good_frames(directory, blocklog.FORMAT, "blocks", FRESH_HOME, checked):
        if before and before.height + 1 < frame.height <= checked.stands_on + 1:
            before = None  # what is between was never held, or went with an old database
        try:
            before = _check_block(frame, before, chain_id)
            if frame.kind == blocklog.KIND_FOOTING:
                checked.footing = checked.log_footing = before
            else:
                _note_bundles(frame, before, checked)
            yield before
        except Invalid as refusal:
            checked.add("blocks", f"block {frame.height}: {refusal}", FRESH_HOME)
            before = None
        checked.counts["blocks"] += frame.kind != blocklog.KIND_FOOTING
        checked.height = max(checked.height, frame.height)
        tell("blocks", checked.counts["blocks"])


def _check_block(frame: Frame, before: Header | None, chain_id: bytes) -> Header:
    """The header in a frame."""
    if frame.kind == blocklog.KIND_FOOTING:
        return decode_footing(frame.payload).header
    return check_record(blocklog.decode_record(frame), before, chain_id)


def check_record(record: BlockRecord, before: Header | None, chain_id: bytes) -> Header:
    """The header of a block that is decided, whole, and follows `before`; else raises Invalid."""
    block, certificate = decode_block(record.block), decode_certificate(record.certificate)
    header = decode_header(block.header)
    last = sha256(block.last_certificate) if block.last_certificate else NO_COMMIT
    parent_id = before.block_id() if before else chain_id
    if header.height != record.height or header.chain_id != chain_id:
        raise Invalid("block.height", height=header.height)
    if header.last_commit_hash != last:
        raise Invalid("block.last_commit_hash")
    if (before or header.height == 1) and header.parent_id != parent_id:
        raise Invalid("block.parent_id")
    if before and header.height != before.height + 1:
        raise Invalid("block.height", height=header.height, before=before.height)
    decided = (PRECOMMIT, header.height, header.block_id())
    if (certificate.kind, certificate.height, certificate.block_id) != decided:
        raise Invalid("certificate.block", height=certificate.height)
    return header


def _note_bundles(frame: Frame, header: Header, checked: Checked) -> None:
    """Which bodies a block asks for; of a pruned one, none."""
    checked.newest_ms = max(checked.newest_ms, header.time_ms)
    payload = decode_block(blocklog.decode_record(frame).block).payload
    if payload and (bundles := decode_payload(payload).bundles):
        checked.named.append(Named(header.height, header.time_ms, bundles))


def _check_bundles(directory: Path, checked: Checked, tell: Tell) -> Set[bytes]:
    """The bodies that are whole."""
    whole = set[bytes]()
    for frame in good_frames(directory, bundlestore.FORMAT, "bundles", FETCHED, checked):
        try:
            name, bundle = bundlestore.decode_record(frame)
            check_bytes(bundle)
            if bundle.hash != name:
                raise Invalid("bundle.hash")
            whole.add(name)
        except Invalid as refusal:
            checked.add("bundles", f"a bundle at byte {frame.offset}: {refusal}", FETCHED)
        checked.counts["bundles"] += 1
        tell("bundles", checked.counts["bundles"])
    return whole


def _check_bodies(home: Path, whole: Set[bytes], kept_ms: int | None, checked: Checked) -> None:
    """Bodies that no pruning may have dropped, by the blocks that name them."""
    first = checked.footing.height + 1 if checked.footing else 1
    if kept_ms is None:
        from_ms = 0
    elif checked.window_ms is None:
        checked.notes.append("which bodies are missing, only a whole database could tell")
        return
    else:
        from_ms = checked.newest_ms - checked.window_ms - kept_ms
    missing = [
        (block.height, name)
        for block in checked.named
        if block.height >= first and block.time_ms > from_ms
        for name in block.bundles
        if name not in whole
    ]
    mend = f"rm -f {home / SCRUB_NAME}, then olnode start: its scrub fetches bodies from peers"
    for height, name in missing[:TOLD_BODIES]:
        checked.add("bundles", f"the body of bundle {name.hex()} of block {height} is gone", mend)
    if (more := len(missing) - TOLD_BODIES) > 0:
        checked.add("bundles", f"{more:,} more bodies are gone", mend)


# ---- the database


def _check_database(home: Path, checked: Checked, tell: Tell) -> bool:
    """Whether it can be read, whatever it holds."""
    if not (home / DB_NAME / "CURRENT").exists():
        checked.add("database", "there is none", REBUILD)
        return False
    if why := why_suspected(home / DB_NAME):
        checked.add("database", f"it failed while in use: {why}", REBUILD)
    try:
        with copied_database(home) as store:
            _check_keys(store, checked, tell)
    except Damaged as error:
        told = error.told.replace(str(home / COPY_NAME), str(home / DB_NAME))
        checked.add("database", told, REBUILD)
        return False
    return True


@contextmanager
def copied_database(home: Path) -> Iterator[LevelKV]:
    """The database over links to its tables and copies of the little that is rewritten: to read."""
    with scratch_folder(home / COPY_NAME) as copy:
        for path in sorted((home / DB_NAME).iterdir()):
            if path.suffix in (".ldb", ".sst"):
                os.link(path, copy / path.name)
            elif path.name != "LOCK":
                shutil.copyfile(path, copy / path.name)
        store = LevelKV(copy)
        try:
            yield store
        finally:
            store.close()


def _check_keys(store: LevelKV, checked: Checked, tell: Tell) -> None:
    """Every key by its checksum; the state's root made anew from every record of the state."""
    height = keyspace.from_u64(store.get(keyspace.HEIGHT) or bytes(8))
    builder = tree.Builder(height)
    for key, value in store.scan(b"\x00", b"\xff"):
        if key.startswith(keyspace.STATE):
            builder.add(key[len(keyspace.STATE) :], value)
        checked.counts["keys"] += 1
        checked.counts["bytes"] += len(key) + len(value)
        if checked.counts["keys"] % TOLD_KEYS == 0:
            tell("keys", checked.counts["keys"])
    for _ in builder.nodes():
        pass  # only the root is wanted
    assert builder.record is not None
    if raw := store.get(keyspace.FOOTING):
        checked.footing = decode_footing(raw).header
    told = store.get(keyspace.ROOT + keyspace.u64(height)) or b""
    if not told or tree.root_hash(builder.record) != tree.root_hash(told):
        checked.add("database", f"the state of height {height} is not its root's", REBUILD)
    else:
        checked.window_ms = State(base_of(store, height)).parameter("challenge_window_ms")
    if height > checked.height:
        shorter = log_is_shorter(checked.height, height)
        checked.add("blocks", shorter.what, shorter.mend)
    _check_nodes(store, told, checked)


def _check_nodes(reader: Reader, record: bytes, checked: Checked) -> None:
    """The stored nodes prove every record of the state, as a client will ask for it."""
    checker = tree.Checker(lambda node: reader.get(keyspace.NODE + node), record)
    for key, value in reader.scan(keyspace.STATE, keyspace.after(keyspace.STATE)):
        flat = key[len(keyspace.STATE) :]
        try:
            checker.check(flat, value)
        except (Invalid, tree.MissingNode) as error:
            checked.add("database", f"a record of the state is not in its tree: {error}", REBUILD)
            return


# ---- snapshots


def _check_snapshots(store: SnapshotStore, checked: Checked, tell: Tell) -> None:
    for height in store.unreadable:
        mend = f"rm -r {store.folder(height)}: the next one is made by itself"
        checked.add("snapshots", f"of block {height}: its manifest cannot be read", mend)
    for manifest in store.manifests():
        mend = f"rm -r {store.folder(manifest.height)}: the next one is made by itself"
        header = checked.headers.get(manifest.height, manifest.footing.header)
        try:
            verify_manifest(manifest, header)
            for index, mark in enumerate(manifest.chunks):
                raw = store.chunk(manifest.height, index)
                if raw is None:
                    raise Invalid("snapshot.chunk_missing", index=index)
                check_chunk(mark, raw)
                checked.counts["bytes"] += len(raw)
        except (Invalid, StorageError, OSError) as error:
            checked.add("snapshots", f"of block {manifest.height}: {error}", mend)
        checked.counts["snapshots"] += 1
        tell("snapshots", checked.counts["snapshots"])


# ---- what evidence needed from before the snapshot


def _check_pasts(folder: Path, checked: Checked) -> None:
    """Each proves itself under the block that the ledger stands on, or its log."""
    footings = [one for one in (checked.log_footing, checked.footing) if one is not None]
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not path.name.isdigit():  # a crash's half of one, made anew when it is needed
            continue
        try:
            _check_past(path, footings)
        except (Invalid, OSError) as error:
            checked.add("past", f"{path.name}: {error}", NEEDED)
        checked.counts["bytes"] += path.stat().st_size


def _check_past(path: Path, footings: Sequence[Header]) -> None:
    refusal = Invalid("past.footing")
    for footing in footings:
        try:
            read_past(path, footing)
        except Invalid as error:
            refusal = error
        else:
            return
    raise refusal
