"""The database made again because its operator asks: higher than before or as high, or not at all.

Why it may refuse: a database that can be read may stand above a block log that was lost or cut,
and the chain would silently fall back to where that ends. Why what failed is undone: blocks whose
bodies are gone cannot be executed again, and a database is better than none.
What this file does not know: how it is made; `opening.py` does.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from node.storage import keyspace
from node.storage.adopting import DB_NAME
from node.storage.blocklog import BlockLog
from node.storage.checking import copied_database
from node.storage.errors import Damaged, StorageError, log_is_shorter
from node.storage.lock import lock_home
from node.storage.opening import ASIDE_NAME, BLOCKS_NAME, set_aside
from node.storage.segments import segment_names


@contextmanager
def rebuilding(home: Path, *, may_fall_back: bool) -> Iterator[Path | None]:
    """Open the home within: its database is made again. Gives where the old one lies, if any did.

    Raises `StorageError` where the log ends below the database, unless that may be. One from within
    puts the old one back. An end of the process leaves less of an index: the next opening goes on.
    """
    with lock_home(home):
        if not may_fall_back:
            _check_heights(home)
        has_moved = set_aside(home)
    try:
        yield home / ASIDE_NAME if has_moved else None
    except StorageError:
        with lock_home(home):
            if has_moved:
                _put_back(home)
        raise


def _check_heights(home: Path) -> None:
    held, height = _log_height(home), _database_height(home)
    if held < height:
        raise log_is_shorter(held, height)


def _log_height(home: Path) -> int:
    if not segment_names(home / BLOCKS_NAME):
        return 0  # and nothing is made where a lost folder may be put back
    log = BlockLog(home / BLOCKS_NAME)
    log.close()
    return log.height


def _database_height(home: Path) -> int:
    """0 where there is none, or none that can be read."""
    if not (home / DB_NAME / "CURRENT").exists():
        return 0
    try:
        with copied_database(home) as store:
            return keyspace.from_u64(store.get(keyspace.HEIGHT) or bytes(8))
    except Damaged:
        return 0


def _put_back(home: Path) -> None:
    shutil.rmtree(home / DB_NAME, ignore_errors=True)
    (home / ASIDE_NAME).rename(home / DB_NAME)
