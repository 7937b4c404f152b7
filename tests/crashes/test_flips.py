"""A flipped bit in any file is harmless, mended or told of: never a wrong answer, never silence."""

from crashes.flips import Flipper
from crashes.homes import KINDS
from crashes.spoiling import EQUAL, MENDED, REFUSED, TOLD, Judge

EACH = 16
FLIPS = EACH * len(KINDS)


def test_flipped_bit_is_never_silent(judge: Judge) -> None:
    found = Flipper(judge, seed=1).run(FLIPS)
    assert found.defects == []
    assert found.flips == FLIPS >= 200
    assert sum(map(found.count, (EQUAL, MENDED, TOLD, REFUSED))) == FLIPS
    assert {kind for kind, end in found.ends if end == MENDED} >= {"table", "log", "manifest"}
    assert found.ends["genesis", REFUSED] == found.ends["light", TOLD] == EACH
