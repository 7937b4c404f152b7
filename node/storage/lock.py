"""Who holds the home directory: one flock on `node.lock`, taken before anything is opened.

Why not LevelDB's own lock: after any second open or close of its `LOCK` file in the owner,
another process opened the database and both wrote (POSIX record locks belong to the process and
fall with any descriptor). flock belongs to the open file, so reading the pid here is harmless.
"""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from node.storage.errors import HomeInUse, StorageError

LOCK_NAME: Final = "node.lock"
PID_BYTES_MAX: Final = 32


class HomeLock:
    """The held lock; `release()` or the end of the process gives it back."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the directory back; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def lock_home(home: Path) -> HomeLock:
    """Hold `home` for this process, or raise `HomeInUse` with the pid of the one that does."""
    path = home / LOCK_NAME
    try:
        # CLOEXEC is Python's default: a spawned child never inherits the lock.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StorageError(
            f"cannot open {path}", why=error.strerror or "", mend="olnode init"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.pread(descriptor, PID_BYTES_MAX, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise HomeInUse(
            f"another olnode uses this directory: {home} (pid {owner or 'unknown'})",
            mend="olnode stop",
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
    return HomeLock(path, descriptor)
