"""Which openings show that an answer's credits are a lie, in whole numbers alone.

Why a claim falls to one opening: credits follow from the statement, each number of the statement
is a product of two committed byte rows, and a row left out is one that stands above the statement's
own threshold. So whoever doubts opens one row, never the index (page 60 §10, page 40 §11).
Why one file for everybody: blocks settle fraud proofs by it, nodes look for lies with it before
they send one, light clients check opened rows with it. All give the same verdict.
What this file does not know: receipts and bundles, what a lie costs, who looked for it.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from consensus.primitives import merkle
from consensus.primitives.errors import Invalid
from node.ledger.rules import shares
from node.ledger.rules.shares import SCALE, Credits
from node.ledger.wire import claims
from node.ledger.wire.claims import IndexHeader, RowLeaf, Statement

NO_CLAIM: Final = bytes(32)  # a receipt's sketch_hash where nothing may be credited


class Release(NamedTuple):
    """A model version as the ledger knows it; `index_root` is empty where it has no index."""

    chain_id: bytes
    model: int
    version: int
    published_ms: int
    index_root: bytes

    def panel(self, rows: int) -> tuple[int, ...]:
        """The rows whose scores set the floor of an index of `rows`, in draw order."""
        seed = shares.panel_seed(
            self.chain_id, self.index_root, self.model, self.version, self.published_ms
        )
        return shares.draw_panel(seed, rows)


class Claim(NamedTuple):
    """What a provider committed to for one answer; both empty where it states nothing."""

    sketch: bytes
    statement: bytes


class OpenedRow(NamedTuple):
    """One row of an index that a root commits to."""

    header: IndexHeader
    leaf: RowLeaf


def open_row(index_root: bytes, header: bytes, leaf: bytes, path: Sequence[bytes]) -> OpenedRow:
    """The row, if the root commits to it; raises Invalid `opening.root`, `index_header.…`,
    `row_leaf.…` or `merkle.…`."""
    about = open_header(index_root, header)
    row = claims.decode_row_leaf(leaf)
    merkle.verify_path(about.rows_root, merkle.leaf_hash(leaf), row.number, about.rows, path)
    return OpenedRow(about, row)


def open_header(index_root: bytes, header: bytes) -> IndexHeader:
    """The header that a root is of; raises Invalid `opening.root` or `index_header.…`."""
    if claims.index_root(header) != index_root:
        raise Invalid("opening.root")
    return claims.decode_header(header)


def check_bound(sketch_hash: bytes, claim: Claim) -> None:
    """Raise Invalid `opening.claim` unless the receipt's `sketch_hash` is of this claim."""
    if claims.sketch_hash(claim.sketch, claim.statement) != sketch_hash:
        raise Invalid("opening.claim")


def find_false_shares(claim: Claim, header: IndexHeader, root: bytes, credits: Credits) -> str:
    """Kind 1: what is wrong with a claim by itself, or beside the credits; empty: nothing."""
    try:
        shares.check_sketch(claim.sketch)
        statement = claims.decode_statement(claim.statement)
        shares.check_statement(statement, header, root)
    except Invalid as refusal:
        return refusal.code
    # What spans and citations pay follows from texts, which no opening shows.
    is_decided = header.mix == claims.GRADIENT_ONLY
    if is_decided and shares.credits_of(statement, header.rows) != credits:
        return "claim.credits"
    return ""


def find_false_row(release: Release, claim: Claim, opened: OpenedRow) -> str:
    """Kind 2: what one row shows of a claim that holds by itself; empty: nothing.

    Raises Invalid `sketch.…` or `statement.…` for a claim that does not, which kind 1 shows.
    """
    shares.check_sketch(claim.sketch)
    statement = claims.decode_statement(claim.statement)
    header, leaf = opened
    shares.check_statement(statement, header, release.index_root)
    score = shares.score(leaf.row, claim.sketch)
    seats = release.panel(header.rows)
    if leaf.number in seats and statement.floors[seats.index(leaf.number)] != abs(score):
        return "row.floor"
    for row, contribution, stated in statement.paid:
        if row == leaf.number:
            is_true = (contribution, stated) == (leaf.contribution, score)
            return "" if is_true else "row.paid"
    return "row.left_out" if _is_left_out(statement, header, leaf.number, score) else ""


def _is_left_out(statement: Statement, header: IndexHeader, row: int, score: int) -> bool:
    """Whether an unlisted row should be paid: above tau, with room or better than the least."""
    if SCALE * score <= shares.threshold(statement.floors, header.rows):
        return False
    if len(statement.paid) < shares.paid_cap(header.mix):
        return True
    return (score, -row) > min((stated, -paid) for paid, _, stated in statement.paid)


def is_inflated(opened: OpenedRow) -> bool:
    """Kind 3: a row of an index that no honest builder makes."""
    return not shares.is_sound_row(opened.leaf.row)
