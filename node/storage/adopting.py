"""A snapshot becomes this node's chain: loaded beside the old database, then put in its place.

    db.new loaded, root compared → block log begins again above it, synced → db.new becomes db

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
from node.storage.loading import ReadChunk, load
from node.storage.segments import sync_directory
from node.storage.snapshots import Manifest
from node.storage.store import LevelKV

DB_NAME: Final = "db"
PREPARED_NAME: Final = "db.new"
LOAD_CACHE_BYTES: Final = 8 << 20  # a load writes and hardly reads


def prepare(home: Path, manifest: Manifest, read_chunk: ReadChunk) -> None:
    """Load a snapshot beside the database, for the next start to adopt. Blocks as `load` does.

    Raises `Invalid` when it is not what its header says; nothing is left of it then.
    """
    path = home / PREPARED_NAME
    shutil.rmtree(path, ignore_errors=True)
    store = LevelKV(path, LOAD_CACHE_BYTES)
    try:
        load(store, manifest, read_chunk)
    except BaseException:
        store.close()
        shutil.rmtree(path, ignore_errors=True)
        raise
    store.close()
    sync_directory(home)


def adopt_prepared(home: Path, log: BlockLog, chain_id: bytes) -> str | None:
    """Put a prepared database in its place; gives the line for the log, or None if there is none.

    One that is of another chain, unfinished, or no newer than our blocks is removed.
    """
    path = home / PREPARED_NAME
    if not path.exists():
        return None
    raw = _footing_of(path, chain_id)
    footing = None if raw is None else decode_footing(raw)
    if raw is None or footing is None or (footing.height <= log.height and raw != log.footing):
        shutil.rmtree(path)
        return "snapshot: an unfinished or older one was removed"
    if raw != log.footing:
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
