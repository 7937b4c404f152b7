"""A home is spoiled, opened and read as a node does: whatever comes of it, nothing untrue is told.

equal    all that can be read is as it was: the bytes were in nothing, or a copy stood beside
mended   so it is, and the start said what it made again or cut
told     what cannot be read any more fails by name, or is gone and said to be
refused  the start ends with what happened and what to do
silent   something reads otherwise, or is gone without a word: a defect
failed   an error that nobody foresaw: a defect
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from crashes.homes import Loud, Reading, begun, lived, pruned, read_home
from crashes.story import CHAIN_ID

from node.storage.checking import check_home
from node.storage.errors import StorageError

EQUAL, MENDED, TOLD, REFUSED = "equal", "mended", "told", "refused"
SILENT, FAILED = "silent", "failed"
ENDS: Final = (EQUAL, MENDED, TOLD, REFUSED, SILENT, FAILED)
DEFECTS: Final = (SILENT, FAILED)
HOMES: Final = {"lived": lived, "pruned": pruned, "begun": begun}

Spoil = Callable[[Path], None]  # changes files of the home that it is given
End = tuple[str, str]  # one of ENDS, and why


class Judge:
    """Makes the homes under `folder` once; each case is a copy."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.homes = {name: make(folder) for name, make in HOMES.items()}
        self._whole = {name: read_home(self._copied(name)).parts for name in self.homes}

    def judge(self, name: str, spoil: Spoil) -> End:
        """What comes of a home that is spoiled so."""
        home = self._copied(name)
        spoil(home)
        try:
            return self._compare(name, spoil, read_home(home))
        except StorageError as error:
            return (REFUSED, str(error)) if error.mend else (FAILED, f"without a mend: {error}")
        except Exception as error:  # noqa: BLE001  # what nobody foresaw is what we look for
            return FAILED, f"{type(error).__name__}: {error}"

    def _compare(self, name: str, spoil: Spoil, read: Reading) -> End:
        whole = self._whole[name]
        differing = _differing(whole, read)
        if not differing:
            return (MENDED, read.said[0]) if read.said else (EQUAL, "")
        if isinstance(read.parts["database"], Loud):
            return self._start_again(whole, str(read.parts["database"]))
        for part in differing:
            value = read.parts.get(part)
            if not isinstance(value, Loud) and value is not None and value != ():
                return SILENT, f"{part} reads otherwise"
        if read.said or all(isinstance(read.parts[part], Loud) for part in differing):
            return TOLD, str(differing)
        return self._check(name, spoil, differing)

    def _start_again(self, whole: dict[str, Any], why: str) -> End:
        """A node whose database failed while it ran has ended, and is started again."""
        differing = _differing(whole, read_home(self._folder / "copy"))
        return (SILENT, f"{why}, and again: {differing}") if differing else (MENDED, why)

    def _check(self, name: str, spoil: Spoil, differing: list[str]) -> End:
        """What is gone without a word must at least be found by a check."""
        home = self._copied(name)
        spoil(home)
        findings = check_home(home, CHAIN_ID).findings
        return (TOLD, findings[0].what) if findings else (SILENT, f"gone: {differing}")

    def _copied(self, name: str) -> Path:
        copy = self._folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        return Path(shutil.copytree(self.homes[name], copy))


def _differing(whole: dict[str, Any], read: Reading) -> list[str]:
    return [name for name in whole if read.parts.get(name) != whole[name]]
