"""What the operator must hear when the disk is not as it should be: a sentence and its mend.

Why one class: `cli/main.py` prints any of these as one sentence, the safest remedy as a command
to paste, and the exit status of its kind. A fault of the disk is nobody's bad bytes (`Invalid`)
and no bug of ours (an assertion).
"""

from typing import Final

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


class Damaged(StorageError):
    """Bytes on the disk are not those that were written."""

    exit_status = 7
