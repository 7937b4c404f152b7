"""A flipped bit in any file is harmless, mended or told of: never a wrong answer, never silence."""

from pathlib import Path

from crashes.flips import EQUAL, MENDED, REFUSED, TOLD, Flipper
from crashes.homes import KINDS

FLIPS = 17 * len(KINDS)


def test_flipped_bit_is_never_silent(tmp_path: Path) -> None:
    found = Flipper(tmp_path, seed=1).run(FLIPS)
    assert found.defects == []
    assert found.flips == FLIPS >= 200
    assert sum(map(found.count, (EQUAL, MENDED, TOLD, REFUSED))) == FLIPS
    assert {kind for kind, end in found.ends if end == MENDED} >= {"table", "log", "manifest"}
    assert found.ends["genesis", REFUSED] == found.ends["light", TOLD] == 17
