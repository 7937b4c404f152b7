"""An answer's shares checked by some opened rows in place of an index, whoever gives them.

Why these rows: every paid one, so all that was paid is proven; some of the panel, whose median is
the threshold; some that the client draws itself, each at most at the threshold or listed, so that
where a share f of what should be paid is left out, 16 rows show it with p = 1 − (1 − f)^16. One row
left out of many is found by a rescan alone (page 60 §10).
What this file does not know: the network, the index, how the receipt was shown to be settled.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from consensus.primitives.errors import Invalid
from node.ledger.rules import refuting
from node.ledger.rules.refuting import Claim, Release
from node.ledger.rules.reversals import Answer
from node.ledger.wire import claims, openings
from node.ledger.wire.openings import NormOpened, Opened, RawRows, RowOpened, SharesOpened

PANEL_ROWS: Final = 3
OWN_ROWS: Final = 16

AskRows = Callable[[Sequence[int]], Awaitable[RawRows]]  # each row of its answer is checked here
Pick = Callable[[Sequence[int], int], Sequence[int]]  # so many of these, by the client's own chance


class Lie(Exception):
    """The shares are false; `kind` and `opened` show it to every validator."""

    def __init__(self, word: str, kind: int, opened: Opened) -> None:
        super().__init__(word)
        self.word, self.kind, self.opened = word, kind, opened


class CheckedShares(NamedTuple):
    """What held: rows of the index, and how many of each sort were opened. None: no claim."""

    index_rows: int = 0
    paid: int = 0
    panel: int = 0
    drawn: int = 0


async def check_shares(
    release: Release, answer: Answer, claim: Claim, ask: AskRows, pick: Pick
) -> CheckedShares:
    """Check a settled answer's credits; raises Lie, or Invalid where the claim is not what the
    receipt binds, or a row not of the version's index: then whoever gave it is to blame.

    A wrong answer of `ask` proves nothing; another peer may be asked.
    """
    receipt = answer.receipt
    if receipt.sketch_hash == refuting.NO_CLAIM or not release.index_root:
        if answer.credits:
            raise Lie("credits.unbound", openings.SHARES, SharesOpened(b"", b"", b""))
        return CheckedShares()
    refuting.check_bound(receipt.sketch_hash, claim)
    raw_header = (await ask((0,))).header
    header = refuting.open_header(release.index_root, raw_header)
    word = refuting.find_false_shares(claim, header, release.index_root, answer.credits)
    if word:
        raise Lie(word, openings.SHARES, SharesOpened(*claim, raw_header))
    listed = [row for row, _, _ in claims.decode_statement(claim.statement).paid]
    panel = pick(release.panel(header.rows), PANEL_ROWS)
    drawn = pick(range(header.rows), OWN_ROWS)
    wanted = tuple(sorted({*listed, *panel, *drawn}))
    rows = await ask(wanted)
    if len(rows.rows) != len(wanted):
        raise Invalid("opening.rows", rows=len(rows.rows), asked=len(wanted))
    for number, (leaf, path) in zip(wanted, rows.rows, strict=True):
        row = refuting.open_row(release.index_root, rows.header, leaf, path)
        if row.leaf.number != number:
            raise Invalid("opening.row", row=row.leaf.number, asked=number)
        if refuting.is_inflated(row):
            opened = NormOpened(rows.header, leaf, path)
            raise Lie("row.inflated", openings.NORM, opened)
        word = refuting.find_false_row(release, claim, row)
        if word:
            raise Lie(word, openings.ROW, RowOpened(*claim, rows.header, leaf, path))
    return CheckedShares(header.rows, len(listed), len(panel), len(drawn))
