"""Who is paid for an answer, in whole numbers: panel, threshold, apportioning, credits.

The rule attr-v1 of design page 60 §4. A score is a product of two committed byte rows. The median
|score| of a panel, drawn only after the index root stood on the ledger, is the noise floor; `Z`
lifts it to what the largest of N noise scores would reach; only rows above are paid, by the
square of how far above. How much they get together grows with the highest score, from 7/4 of the
threshold, where no record knows what was asked, to 13/4; what they do not get is the model's
maintenance fund's.
Rounding is per row, before rows are grouped, so no way of splitting data over contributions or
accounts moves one basis point.
Why here and not in attribution/: every validator settles disputes with these functions, and a
light client checks shares with them. No step uses a float.
What this file does not know: how a row or a sketch was made, or how rows are scanned fast.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import starmap
from operator import mul
from typing import Final

from consensus.primitives.digest import domain_hash, sha256
from consensus.primitives.errors import Invalid
from node.ledger.wire.claims import (
    GRADIENT,
    GRADIENT_ONLY,
    HALF_BYTES,
    PAID_MAX,
    PANEL_ROWS,
    RETRIEVAL,
    ROW_BYTES,
    ROWS_MAX,
    SPAN,
    SPANS_PAID_MAX,
    IndexHeader,
    Statement,
)
from node.ledger.wire.claims import RETRIEVED_MAX as CITED_MAX
from node.ledger.wire.receipts import NO_CONTRIBUTION

TOTAL_BPS: Final = 10_000
SCALE: Final = 16  # scores are compared in sixteenths, so that Z is a table of integers
NORM_MIN: Final = 464_000  # of a half: 0.90 × 512·(127/4)²
NORM_MAX: Final = 521_300  # 1.01 × 512·(127/4)²
SCORE_MAX: Final = 127 * 127 * ROW_BYTES  # 16,516,096 < 2^24

# Z[b] = round(16·√(2 ln 2^b)/0.6745) for b = bit_length(N): the expected maximum of N draws of
# noise over its median magnitude. Index 0 is never asked for: an index has a row.
# fmt: off
Z: Final = (
    0, 28, 39, 48, 56, 62, 68, 74, 79, 84, 88, 93, 97,
    101, 105, 108, 112, 115, 118, 122, 125, 128, 131, 134, 137,
)
# fmt: on

# An answer about what no record knows leans on a few rows by chance of words, not far above tau.
# No number tells it from one that a record does know, and two machines round a score differently:
# so pay has no step, but grows with the highest score, from none to all. Measured: ARCHITECTURE.md
# §6, "Silence".
QUARTERS: Final = 4
PAID_FROM: Final = 7  # quarters of tau
PAID_WHOLE: Final = 13

PANELS_KEPT: Final = 256  # of versions: each answer of one has the same

SPAN_PARTS: Final = 720_720  # the least common multiple of 1 to 16

Mix = tuple[tuple[int, int], ...]  # ((scorer, bps), …) as in the index header
# ((contribution, bps), …) ascending, summing to 10,000; empty where NO_CONTRIBUTION has all.
Credits = tuple[tuple[int, int], ...]


def panel_seed(
    chain_id: bytes, index_root: bytes, model: int, version: int, published_ms: int
) -> bytes:
    """32 bytes that exist only after the root is on the ledger: rows cannot be fitted to it."""
    numbers = (number.to_bytes(8) for number in (model, version, published_ms))
    return domain_hash(b"panel", chain_id, index_root, *numbers)


@lru_cache(PANELS_KEPT)
def draw_panel(seed: bytes, rows: int) -> tuple[int, ...]:
    """The rows whose scores set the floor, in draw order: all of `rows` ≤ 127, else 127."""
    return draw_rows(seed, rows, PANEL_ROWS)


def draw_rows(seed: bytes, rows: int, count: int) -> tuple[int, ...]:
    """`count` distinct rows in draw order, or all of them ascending if there are no more."""
    assert 1 <= rows <= ROWS_MAX
    if rows <= count:
        return tuple(range(rows))
    drawn: dict[int, None] = {}
    draw = 0
    while len(drawn) < count:  # repeats are skipped; to draw all but one takes rows × ln(rows)
        drawn[int.from_bytes(sha256(seed, draw.to_bytes(4))[:8]) % rows] = None
        draw += 1
    return tuple(drawn)


def score(row: bytes, sketch: bytes) -> int:
    """Σ q·x over 1,024 signed bytes each: the definition that every fast kernel must equal."""
    assert len(row) == len(sketch) == ROW_BYTES
    signed = zip(memoryview(row).cast("b"), memoryview(sketch).cast("b"), strict=True)
    return sum(starmap(mul, signed))


def half_norm(half: bytes) -> int:
    """Σ x² of 512 signed bytes."""
    signed = memoryview(half).cast("b")
    return sum(map(mul, signed, signed))


def is_sound_row(row: bytes) -> bool:
    """Whether `row` has 1,024 bytes, no −128, and both halves' norms within bounds."""
    if len(row) != ROW_BYTES or 0x80 in row:
        return False
    return all(
        NORM_MIN <= half_norm(half) <= NORM_MAX for half in (row[:HALF_BYTES], row[HALF_BYTES:])
    )


def check_sketch(sketch: bytes) -> None:
    """Raise `Invalid` `sketch.malformed` unless length, entries and norms are in bounds."""
    if not is_sound_row(sketch):
        raise Invalid("sketch.malformed", bytes=len(sketch))


def threshold(floors: Sequence[int], rows: int) -> int:
    """tau, in sixteenths of a score: Z[bit_length(rows)] × lower median of `floors`."""
    assert floors
    return Z[rows.bit_length()] * sorted(floors)[(len(floors) - 1) // 2]


def paid_cap(mix: Mix) -> int:
    """How many rows the gradient part may pay, so that all parts keep within 64 credits."""
    parts = dict(mix)
    return PAID_MAX - SPANS_PAID_MAX * (SPAN in parts) - CITED_MAX * (RETRIEVAL in parts)


def choose_paid(scores: Iterable[tuple[int, int]], tau: int, cap: int) -> list[tuple[int, int]]:
    """Of (row, score) those above tau; at most `cap`, the highest (ties: lower row). By row."""
    above = [(row, s) for row, s in scores if SCALE * s > tau]
    above.sort(key=lambda pair: (-pair[1], pair[0]))
    return sorted(above[:cap])


def apportion(weights: Sequence[tuple[int, int]], total: int) -> list[tuple[int, int]]:
    """(row, part) by largest remainder (ties: lower row); parts sum to `total`, some may be 0.

    `weights` are (row, weight ≥ 1); of none, nothing.
    """
    whole = sum(weight for _, weight in weights)
    if whole == 0:
        return []
    parts = {row: weight * total // whole for row, weight in weights}
    assert len(parts) == len(weights)
    by_remainder = sorted((-(weight * total % whole), row) for row, weight in weights)
    for _, row in by_remainder[: total - sum(parts.values())]:
        parts[row] += 1
    return sorted(parts.items())


def standing_bps(statement: Statement, rows: int) -> int:
    """How much of the gradient's part is paid, in basis points, by the highest score: none up to
    7/4 of tau, all from 13/4 on, linear between. `rows` is the index's N.
    """
    tau = threshold(statement.floors, rows)
    highest = max((QUARTERS * SCALE * s for _, _, s in statement.paid), default=0)
    if highest >= PAID_WHOLE * tau:  # tau may be 0
        return TOTAL_BPS if highest else 0
    above = max(0, highest - PAID_FROM * tau)
    return above * TOTAL_BPS // ((PAID_WHOLE - PAID_FROM) * tau)


def gradient_weights(statement: Statement, rows: int) -> list[tuple[int, int]]:
    """(row, weight) by the square of the excess over tau.

    Squared: who rewords another's record scores above tau too, but less far above than the
    record that was there first.
    """
    tau = threshold(statement.floors, rows)
    return [(row, (SCALE * s - tau) ** 2) for row, _, s in statement.paid]


def span_weights(statement: Statement, rows: int) -> list[tuple[int, int]]:
    """(row, weight) of the 20 heaviest rows that hold spans (ties: lower row), by row.

    A span weighs its length times its rarity, 16·(bit_length(N // holders) − 1), split equally
    over its holders; 720,720 is divided by every number of them up to 16.
    """
    weights: dict[int, int] = {}
    for span in statement.spans:
        holders = len(span.holders)
        rarity = SCALE * ((rows // holders).bit_length() - 1)
        for row, _ in span.holders:
            part = span.length * rarity * SPAN_PARTS // holders
            weights[row] = weights.get(row, 0) + part
    heavy = sorted(weights.items(), key=lambda pair: (-pair[1], pair[0]))
    return sorted((row, weight) for row, weight in heavy[:SPANS_PAID_MAX] if weight > 0)


def row_shares(
    statement: Statement, rows: int, mix: Mix = GRADIENT_ONLY, standing: int | None = None
) -> list[tuple[int, int]]:
    """(row, bps) of the paid rows, summing to at most 10,000: `scorer_shares`, added up."""
    sums: dict[int, int] = {}
    for _, row, bps in scorer_shares(statement, rows, mix, standing):
        sums[row] = sums.get(row, 0) + bps
    return sorted(sums.items())


def scorer_shares(
    statement: Statement, rows: int, mix: Mix = GRADIENT_ONLY, standing: int | None = None
) -> list[tuple[int, int, int]]:
    """(scorer, row, bps), summing to at most 10,000. `rows` is the index's N.

    A scorer of the mix that finds nothing drops out: its part goes to the others by theirs. The
    gradient is paid its `standing` of its part (default: as `standing_bps` tells); the rest goes to
    the others by theirs, and is left over where there are none.
    """
    if standing is None:
        standing = standing_bps(statement, rows)
    found = {
        GRADIENT: gradient_weights(statement, rows),
        SPAN: span_weights(statement, rows),
        RETRIEVAL: list(statement.retrieved),
    }
    finders = [(scorer, bps) for scorer, bps in mix if found[scorer]]
    parts = dict(apportion(finders, TOTAL_BPS))
    if GRADIENT in parts:
        kept = parts[GRADIENT] * standing // TOTAL_BPS
        others = [(scorer, bps) for scorer, bps in finders if scorer != GRADIENT]
        for scorer, more in apportion(others, parts[GRADIENT] - kept):
            parts[scorer] += more
        parts[GRADIENT] = kept
    return [
        (scorer, row, bps)
        for scorer, part in parts.items()
        if part
        for row, bps in apportion(found[scorer], part)
    ]


def credits_of(
    statement: Statement,
    rows: int,
    mix: Mix = GRADIENT_ONLY,
    contribution_of: Callable[[int], int] | None = None,
    standing: int | None = None,
) -> Credits:
    """What each contribution earns: the sum of its rows, ascending, zeros left out.

    What no row is paid stands under NO_CONTRIBUTION; where that is everything the credits are
    empty. The statement has passed `check_statement`; it names the contributions of its gradient
    part alone: other mixes need `contribution_of`, of who holds the index. `standing` as in
    `row_shares`.
    """
    assert contribution_of or mix == GRADIENT_ONLY
    owners = {row: contribution for row, contribution, _ in statement.paid}
    sums: dict[int, int] = {}
    for row, bps in row_shares(statement, rows, mix, standing):
        owner = contribution_of(row) if contribution_of else owners[row]
        sums[owner] = sums.get(owner, 0) + bps
    left = TOTAL_BPS - sum(sums.values())
    sums[NO_CONTRIBUTION] = sums.get(NO_CONTRIBUTION, 0) + left
    if sums[NO_CONTRIBUTION] == TOTAL_BPS:
        return ()
    return tuple(sorted((contribution, bps) for contribution, bps in sums.items() if bps))


def check_statement(statement: Statement, header: IndexHeader, index_root: bytes) -> None:
    """Raise `Invalid` `statement.…` where the statement breaks a rule that needs no row opened.

    `index_root`, `floors` (their number, or one too large), `rows` (not ascending, or not in the
    index), `cap`, `unpaid_row` (a score not above tau), `scorer` (a part the mix does not have),
    `spans` and `retrieved` (not ascending, too short, a row not in the index).
    """
    if statement.index_root != index_root:
        raise Invalid("statement.index_root")
    if len(statement.floors) != min(header.rows, PANEL_ROWS):
        raise Invalid("statement.floors", floors=len(statement.floors))
    if max(statement.floors) > SCORE_MAX:
        raise Invalid("statement.floors", floor=max(statement.floors))
    numbers = [row for row, _, _ in statement.paid]
    if not _are_rows(numbers, header.rows):
        raise Invalid("statement.rows")
    if len(numbers) > paid_cap(header.mix):
        raise Invalid("statement.cap", paid=len(numbers))
    tau = threshold(statement.floors, header.rows)
    for row, _, s in statement.paid:
        if not tau < SCALE * s <= SCALE * SCORE_MAX:
            raise Invalid("statement.unpaid_row", row=row)
    mix = dict(header.mix)
    if (statement.spans and SPAN not in mix) or (statement.retrieved and RETRIEVAL not in mix):
        raise Invalid("statement.scorer")
    if statement.spans != tuple(sorted(statement.spans)) or not all(
        span.length >= header.min_span and _are_rows([row for row, _ in span.holders], header.rows)
        for span in statement.spans
    ):
        raise Invalid("statement.spans")
    cited = [row for row, _ in statement.retrieved]
    if not _are_rows(cited, header.rows) or any(words < 1 for _, words in statement.retrieved):
        raise Invalid("statement.retrieved")


def _are_rows(numbers: list[int], rows: int) -> bool:
    """Whether they are rows of an index of `rows`, ascending, none twice."""
    return numbers == sorted(set(numbers)) and (not numbers or numbers[-1] < rows)
