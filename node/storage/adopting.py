"""A snapshot becomes this node's chain: loaded beside the old database, then put in its place.

    db.part loaded, root compared → db.new → block log begins again above it, synced → db

Why beside it: nothing of a snapshot is used before its root matches, and until then the node has
its old chain. Why the log comes before the swap: it is the truth, and a start that finds it ahead
of the database finishes what an ended process had begun.
What this file does not know: peers, and who vouched for the header.
"""

import shutil
from pathlib import Path
from typing import Final

from node.storage import keyspace
from node.storage.blocklog import BlockLog
from node.storage.errors import Damaged
from node.storage.footing import decode_footing
from node.storage.loading import load
from node.storage.pasts import PASTS_NAME
from node.storage.segments import sync_directory
from node.storage.snapshots import Manifest, SnapshotStore, read_chunk
from node.storage.store import LevelKV

DB_NAME: Final = "db"
LOADING_NAME: Final = "db.part"
PREPARED_NAME: Final = "db.new"  # whole, and its root compared
LOAD_CACHE_BYTES: Final = 8 << 20  # a load writes and hardly reads


def take_in(home: Path, snapshots: SnapshotStore, manifest: Manifest) -> None:
    """Load the snapshot in `snapshots.part` for the next start to adopt. Blocks as `load` does.

    The manifest is verified and stands beside the chunks. Raises `Invalid` when they are not what
    its header says; then nothing is used. The snapshot is kept: the chain will stand on it.
    """
    loading, prepared = home / LOADING_NAME, home / PREPARED_NAME
    shutil.rmtree(loading, ignore_errors=True)
    shutil.rmtree(prepared, ignore_errors=True)
    folder = snapshots.part(manifest.height)
    store = LevelKV(loading, LOAD_CACHE_BYTES)
    try:
        load(store, manifest, lambda index: read_chunk(folder, index))
    except BaseException:
        store.close()
        shutil.rmtree(loading, ignore_errors=True)
        raise
    store.close()
    snapshots.adopt(folder, manifest)  # before the rename: who stands on it must have it
    loading.rename(prepared)
    sync_directory(home)


def adopt_prepared(home: Path, log: BlockLog, chain_id: bytes) -> str | None:
    """Put a prepared database in its place; gives the line for the log, or None if there is none.

    One that cannot be read, is of another chain, or no newer than our blocks, is removed.
    """
    shutil.rmtree(home / LOADING_NAME, ignore_errors=True)
    path = home / PREPARED_NAME
    if not path.exists():
        return None
    raw = _footing_of(path, chain_id)
    if raw is None:
        shutil.rmtree(path)
        return "snapshot: one that cannot be read, or is of another chain, was removed"
    footing = decode_footing(raw)
    if footing.height <= log.height and raw != log.footing:
        shutil.rmtree(path)
        return "snapshot: one that is no newer than our blocks was removed"
    if raw != log.footing:
        shutil.rmtree(home / PASTS_NAME, ignore_errors=True)  # of the block it stood on before
        log.rebase(footing.height, raw)
    shutil.rmtree(home / DB_NAME, ignore_errors=True)
    path.rename(home / DB_NAME)
    sync_directory(home)
    return f"snapshot: the chain now stands on block {footing.height}"


def _footing_of(path: Path, chain_id: bytes) -> bytes | None:
    try:
        store = LevelKV(path, LOAD_CACHE_BYTES)
    except Damaged:
        return None
    try:
        is_whole = store.get(keyspace.HEIGHT) is not None
        is_ours = store.get(keyspace.CHAIN_ID) == chain_id
        return store.get(keyspace.FOOTING) if is_whole and is_ours else None
    except Damaged:
        return None
    finally:
        store.close()
