"""What the operator must hear when the disk is not as it should be: a sentence and its mend.

Why full is not damaged: what is damaged is made again from the block log, which a full disk would
only spoil once more; room made by the operator is all that it needs.
Why one class: `cli/main.py` prints any of these as one sentence, the safest remedy as a command
to paste, and the exit status of its kind. A fault of the disk is nobody's bad bytes (`Invalid`)
and no bug of ours (an assertion).
"""

import errno
import os
from typing import Final

REFUSALS: Final = {
    errno.ENOSPC: "free some space there, then start again: nothing is lost",
    errno.EDQUOT: "raise the quota or free some space, then start again: nothing is lost",
    errno.EROFS: "mount the file system for writing, then start again",
    errno.EACCES: "give the files to the user that runs olnode",
    errno.EPERM: "give the files to the user that runs olnode",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs: the system has no file handles left",
}
MAKE_AGAIN: Final = "restart olnode: it rebuilds the database from its block log"
FRESH_HOME: Final = "start a fresh home that syncs from its peers; keep this one for its keys"


class StorageError(Exception):
    """The home directory cannot be used as it is. `mend` tells the operator what to do first."""

    exit_status = 1

    def __init__(self, what: str, *, mend: str = "", why: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.mend = mend
        self.why = why

    @property
    def told(self) -> str:
        """What happened and why, without the mend."""
        return f"{self.what} ({self.why})" if self.why else self.what

    def __str__(self) -> str:
        return f"{self.told}; mend: {self.mend}" if self.mend else self.told


class HomeInUse(StorageError):
    """Another process holds the directory."""


class DiskRefused(StorageError):
    """The system refuses to read or write: full, read-only, not ours. The data are as they were."""


class MissingData(Exception):
    """Something that a block needs and we lack. Never a verdict on it: fetch, then ask again."""


class Damaged(StorageError):
    """Bytes on the disk are not those that were written."""

    exit_status = 7


class DatabaseDamaged(Damaged):
    """The database is not what was written. It is an index: the next start makes it again.

    So its status is one that a service manager starts again after.
    """

    exit_status = 1

    def __init__(self, what: str, *, why: str = "") -> None:
        super().__init__(what, why=why, mend=MAKE_AGAIN)


def log_is_shorter(held: int, height: int) -> StorageError:
    """The block log ends at `held`, below the database: blocks of it were lost. Never `Damaged`,
    or the database would be made again from what is left."""
    return StorageError(
        f"the block log ends at {held}, the database at {height}",
        why="the newest blocks of blocks/ were lost",
        mend=f"put blocks/ back, or olnode db rebuild --force: the chain then stands at {held} "
        "and has the rest from its peers",
    )


def find_refusal(what: str, error: Exception) -> DiskRefused | None:
    """The system's refusal that an error tells of, by number or, as LevelDB's, in words only."""
    why, number = words_of(error), getattr(error, "errno", None)
    if number is None:  # the longest first: one is a part of another
        told = [known for known in REFUSALS if os.strerror(known) in why]
        number = max(told, key=lambda known: len(os.strerror(known)), default=None)
    mend = REFUSALS.get(number) if number is not None else None
    return None if mend is None else DiskRefused(what, why=why, mend=mend)


def words_of(error: Exception) -> str:
    """What an error says; LevelDB's words come as bytes."""
    said = error.args[0] if error.args else ""
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else str(error)
