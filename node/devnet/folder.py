"""The devnet's folder: only one that is ours is used or emptied, and by one devnet at a time.

Why so strict: `--reset` removes keys, and `--home` may name anything, a real node's home too. So a
folder must be empty or known as ours, and no daemon may run in it that an earlier devnet left.
What this file does not know: what is kept in the folder, how a person is asked.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from node.devnet.people import PEOPLE_FILE, settled
from node.home import HomeError
from node.storage.errors import HomeInUse
from node.storage.lock import LOCK_NAME, lock_home

MARK_FILE: Final = "devnet.mark"
MARK: Final = "This folder is of `olnode devnet`: its option --reset removes all that lies here.\n"
OURS: Final = frozenset({MARK_FILE, LOCK_NAME})  # what stays when it is emptied


def is_empty(folder: Path) -> bool:
    """Whether nothing would be lost: it is absent, or holds at most our mark and lock."""
    if not folder.exists():
        return True
    return folder.is_dir() and all(entry.name in OURS for entry in folder.iterdir())


def check_ours(folder: Path) -> None:
    """Raises HomeError unless it is empty, or of a devnet, also of a half-made one."""
    if is_empty(folder) or (folder / MARK_FILE).is_file():
        return
    if (folder / PEOPLE_FILE).is_file():
        settled(folder)
        return
    what = f"{folder} is not empty and not a devnet's"
    raise HomeError(what, mend="olnode --home ANOTHER-FOLDER devnet")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Mark the folder as ours and hold it; HomeError, or HomeInUse where another devnet or a
    daemon of an earlier one still runs in it.
    """
    check_ours(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / MARK_FILE).write_text(MARK, "utf-8")
    try:
        lock = lock_home(folder)
    except HomeInUse as error:
        mend = "end that devnet with Ctrl-C, or take another --home"
        raise HomeInUse(error.what, mend=mend) from None
    with lock:
        for path in sorted(folder.glob(f"*/{LOCK_NAME}")):
            _check_free(path.parent)
        yield


def clear(folder: Path) -> None:
    """Remove all but our mark and lock; the people first: a kill midway leaves no devnet."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name != PEOPLE_FILE):
        if entry.name in OURS:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _check_free(home: Path) -> None:
    try:
        lock_home(home).release()
    except HomeInUse as error:
        raise HomeInUse(error.what, mend=f"olnode --home {home} stop") from None
