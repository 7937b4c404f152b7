"""How far two honest machines may differ: cosines of int8 rows, and shares that moved, as integers.

Why tolerance at all: rows and sketches are made by floats, once each, and two machines round in
other ways; what is committed stays what all compute on, and only whether it was honest is judged
so. Why in integers: two who judge the same bytes must say the same (page 60 §9).
What this file does not know: how a row or a sketch is made, what a finding costs.
"""

from enum import Enum
from math import isqrt
from typing import Final, NamedTuple

from node.ledger.rules.shares import Credits
from node.ledger.wire.claims import HALF_BYTES, ROW_BYTES
from node.ledger.wire.receipts import BPS, NO_CONTRIBUTION

MILLE: Final = 1_000
PPM: Final = 10**6
ROW_MILLE: Final = 995  # a row of an index, recomputed
FAIL_MILLE: Final = 900  # a sketch below this is of another text or another model
FAIL_BPS: Final = 1_500


class Tolerance(NamedTuple):
    """A sketch passes with each half at least so alike, with so little of the shares moved, and
    with so little more or less of the gradient's part paid."""

    mille: int
    moved_bps: int
    swing_bps: int  # 99 of 100 honest pairs keep it, at cosines of .9993 and .994


TOLERANCES: Final = {  # by gradient_dtype
    "fp32": Tolerance(995, 50, 1_500),
    "bf16": Tolerance(980, 300, 3_000),
}


class Verdict(Enum):
    """Of a sketch audit; SUSPECT counts over many receipts (page 40 §11)."""

    PASS = 1
    SUSPECT = 2
    FAIL = 3


def is_alike(one: bytes, other: bytes, mille: int) -> bool:
    """Whether the cosine of two halves (512 signed bytes each) is at least `mille` ÷ 1,000."""
    dot, norms = _products(one, other)
    return dot > 0 and MILLE**2 * dot * dot >= mille * mille * norms


def cosine_ppm(one: bytes, other: bytes) -> int:
    """The cosine of two halves in millionths, towards zero; 0 where one is all zero."""
    dot, norms = _products(one, other)
    if not norms:
        return 0
    size = isqrt(PPM * PPM * dot * dot // norms)
    return size if dot > 0 else -size


def halves(row: bytes) -> tuple[bytes, bytes]:
    """The early and the middle half of 1,024 bytes."""
    assert len(row) == ROW_BYTES
    return row[:HALF_BYTES], row[HALF_BYTES:]


def moved_bps(one: Credits, other: Credits) -> int:
    """Basis points that go to somebody else; no credits are all the fund's."""
    mine, theirs = (dict(credits or ((NO_CONTRIBUTION, BPS),)) for credits in (one, other))
    return sum(abs(mine.get(n, 0) - theirs.get(n, 0)) for n in mine.keys() | theirs.keys()) // 2


def judge_sketch(
    own: bytes, committed: bytes, moved: int, swing: int, gradient_dtype: str
) -> Verdict:
    """What a recomputed sketch says of the committed one; `moved`: basis points of the shares that
    follow; `swing`: by how many more or less is paid."""
    pairs = list(zip(halves(own), halves(committed), strict=True))
    if moved > FAIL_BPS or not all(is_alike(*pair, FAIL_MILLE) for pair in pairs):
        return Verdict.FAIL
    allowed = TOLERANCES[gradient_dtype]
    is_little = moved <= allowed.moved_bps and swing <= allowed.swing_bps
    if is_little and all(is_alike(*pair, allowed.mille) for pair in pairs):
        return Verdict.PASS
    return Verdict.SUSPECT


def _products(one: bytes, other: bytes) -> tuple[int, int]:
    """The product of two halves, and that of their squared norms."""
    a, b = (memoryview(half).cast("b") for half in (one, other))
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot, sum(x * x for x in a) * sum(y * y for y in b)
