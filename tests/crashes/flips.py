"""One flipped bit in one file of a home, of each kind in turn."""

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from crashes.homes import KINDS
from crashes.spoiling import DEFECTS, Judge


class Flip(NamedTuple):
    """Which bit: home, kind of file, path from the home, byte, bit."""

    home: str
    kind: str
    path: str
    byte: int
    bit: int

    def spoil(self, home: Path) -> None:
        """Flip it."""
        path = home / self.path
        raw = bytearray(path.read_bytes())
        raw[self.byte] ^= 1 << self.bit
        path.write_bytes(bytes(raw))


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
    """Flips bits in copies of the homes of `judge`."""

    def __init__(self, judge: Judge, seed: int) -> None:
        self._judge = judge
        self._chance = random.Random(seed)
        self._places = {
            (name, kind): files
            for name, home in judge.homes.items()
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
            end, why = self._judge.judge(flip.home, flip.spoil)
            found.ends[flip.kind, end] += 1
            if end in DEFECTS:
                found.defects.append(f"{end}: {why}: {flip}")
        return found

    def _choose(self, kind: str) -> Flip:
        name, _ = self._chance.choice([place for place in self._places if place[1] == kind])
        files = self._places[name, kind]
        path = self._chance.choices(files, [file.stat().st_size for file in files])[0]
        byte = self._chance.randrange(path.stat().st_size)
        relative = path.relative_to(self._judge.homes[name]).as_posix()
        return Flip(name, kind, relative, byte, self._chance.randrange(8))
