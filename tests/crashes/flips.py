"""One flipped bit in one file of a home: whatever comes of it, nobody is told anything untrue.

equal    all that can be read is as it was: the bit was in nothing, or a copy stood beside it
mended   so it is, and the start said what it made again or cut
told     what cannot be read any more fails by name, or is gone and said to be
refused  the start ends with what happened and what to do
silent   something reads otherwise, or is gone without a word: a defect
failed   an error that nobody foresaw: a defect
"""

import random
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from crashes.homes import KINDS, Loud, Reading, begun, lived, read_home
from crashes.story import CHAIN_ID

from node.storage.checking import check_home
from node.storage.errors import StorageError

EQUAL, MENDED, TOLD, REFUSED = "equal", "mended", "told", "refused"
SILENT, FAILED = "silent", "failed"
ENDS: Final = (EQUAL, MENDED, TOLD, REFUSED, SILENT, FAILED)
HOMES: Final = {"lived": lived, "begun": begun}


class Flip(NamedTuple):
    """Which bit: home, kind of file, path from the home, byte, bit."""

    home: str
    kind: str
    path: str
    byte: int
    bit: int


@dataclass
class FoundFlips:
    """What flips came to, by kind of file, and the defects in words."""

    ends: Counter[tuple[str, str]] = field(default_factory=Counter)  # (kind, end)
    defects: list[str] = field(default_factory=list)

    @property
    def flips(self) -> int:
        """How many."""
        return self.ends.total()

    def count(self, end: str) -> int:
        """How many ended so."""
        return sum(number for (_, each), number in self.ends.items() if each == end)


class Flipper:
    """Makes both homes under `folder` once, then flips bits in copies of them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._chance = random.Random(seed)
        self._homes = {name: make(folder) for name, make in HOMES.items()}
        self._whole = {name: read_home(self._copied(name)).parts for name in self._homes}
        self._places = {
            (name, kind): files
            for name, home in self._homes.items()
            for kind, pattern in KINDS.items()
            if (files := [path for path in sorted(home.glob(pattern)) if path.stat().st_size])
        }
        assert {kind for _, kind in self._places} == set(KINDS), "a kind of file is in no home"

    def run(self, flips: int) -> FoundFlips:
        """So many, all kinds alike often."""
        found = FoundFlips()
        kinds = sorted(KINDS)
        for number in range(flips):
            flip = self._choose(kinds[number % len(kinds)])
            end, why = self.judge(flip)
            found.ends[flip.kind, end] += 1
            if end in (SILENT, FAILED):
                found.defects.append(f"{end}: {why}: {flip}")
        return found

    def _choose(self, kind: str) -> Flip:
        name, _ = self._chance.choice([place for place in self._places if place[1] == kind])
        files = self._places[name, kind]
        path = self._chance.choices(files, [file.stat().st_size for file in files])[0]
        byte = self._chance.randrange(path.stat().st_size)
        relative = path.relative_to(self._homes[name]).as_posix()
        return Flip(name, kind, relative, byte, self._chance.randrange(8))

    def judge(self, flip: Flip) -> tuple[str, str]:
        """How it ended, and why."""
        home = self._flipped(flip)
        try:
            return self._compare(home, flip)
        except StorageError as error:
            return (REFUSED, str(error)) if error.mend else (FAILED, f"without a mend: {error}")
        except Exception as error:  # noqa: BLE001  # what nobody foresaw is what we look for
            return FAILED, f"{type(error).__name__}: {error}"

    def _compare(self, home: Path, flip: Flip) -> tuple[str, str]:
        whole, read = self._whole[flip.home], read_home(home)
        differing = _differing(whole, read)
        if not differing:
            return (MENDED, read.said[0]) if read.said else (EQUAL, "")
        if "database" in differing and isinstance(read.parts["database"], Loud):
            return self._start_again(home, whole, str(read.parts["database"]))
        for name in differing:
            value = read.parts.get(name)
            if not isinstance(value, Loud) and value is not None and value != ():
                return SILENT, f"{name} reads otherwise"
        if read.said or all(isinstance(read.parts[name], Loud) for name in differing):
            return TOLD, str(differing)
        return self._check(flip, differing)

    def _start_again(self, home: Path, whole: dict[str, Any], why: str) -> tuple[str, str]:
        """A node whose database failed while it ran has ended, and is started again."""
        differing = _differing(whole, read_home(home))
        return (SILENT, f"{why}, and again: {differing}") if differing else (MENDED, why)

    def _check(self, flip: Flip, differing: list[str]) -> tuple[str, str]:
        """What is gone without a word must at least be found by a check."""
        findings = check_home(self._flipped(flip), CHAIN_ID).findings
        return (TOLD, findings[0].what) if findings else (SILENT, f"gone: {differing}")

    def _flipped(self, flip: Flip) -> Path:
        path = self._copied(flip.home) / flip.path
        raw = bytearray(path.read_bytes())
        raw[flip.byte] ^= 1 << flip.bit
        path.write_bytes(bytes(raw))
        return self._folder / "copy"

    def _copied(self, name: str) -> Path:
        copy = self._folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        return Path(shutil.copytree(self._homes[name], copy))


def _differing(whole: dict[str, Any], read: Reading) -> list[str]:
    return [name for name in whole if read.parts.get(name) != whole[name]]
