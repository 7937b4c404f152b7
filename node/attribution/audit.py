"""Checking what others stated: any node with the index recomputes an answer's credits to the bit.

Why all of it and not a sample: a full rescan costs milliseconds, and a row left out shows in no
other way. A node that finds a difference neither relays nor proposes the bundle, and keeps the
finding. Cheapest check first: hashes, then shape, then arithmetic, then the scan.
What this file does not know: who is asked for sketch and statement, what a finding costs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from consensus.primitives.errors import Invalid
from node.attribution.attribute import (
    NO_SKETCH,
    Version,
    attribute,
    attribute_all,
    credits_of,
)
from node.attribution.index import Index
from node.attribution.kernels import kernel_for
from node.attribution.score import Kernel, scan
from node.attribution.scorers import SCORERS, Answer
from node.ledger.rules import refuting, shares
from node.ledger.rules.shares import Credits
from node.ledger.wire import claims, openings
from node.ledger.wire.claims import Statement
from node.ledger.wire.openings import Opened, RowOpened, SharesOpened


class Claim(NamedTuple):
    """What a provider committed to for one receipt; both empty where it states no sketch."""

    sketch_hash: bytes
    credits: Credits
    sketch: bytes
    statement: bytes


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim that is not true. `code` is a stable word `claim.reason`, `why` the difference."""

    code: str
    why: str


def recheck(
    index: Index,
    version: Version,
    claim: Claim,
    kernel: Kernel | None = None,
    answer: Answer | None = None,
) -> Finding | None:
    """None when the claim is what the index gives for its sketch, else the first difference.

    Codes: `claim.no_sketch` (credits without a sketch), `claim.hash`, `sketch.malformed`,
    `statement.…`, `claim.credits` (not what the statement pays), `claim.scores` (not what the
    index gives), `claim.records` (what is stated of records is not so). Spans and citations are
    found again only by who has the `answer`. Whether the sketch is honest is not asked here:
    design page 60 §9.
    """
    stated = _read(index, claim)
    if not isinstance(stated, Statement):
        return stated
    true = attribute(index, claim.sketch, version, kernel, answer).statement
    return _compare(stated if answer else _without_texts(stated), true)


def recheck_all(
    index: Index, version: Version, told: Sequence[Claim], kernel: Kernel | None = None
) -> list[Finding | None]:
    """The same of many claims, without their answers: one scan for many."""
    read = [_read(index, claim) for claim in told]
    sketches = [
        claim.sketch
        for claim, found in zip(told, read, strict=True)
        if isinstance(found, Statement)
    ]
    made = attribute_all(index, sketches, version, kernel)
    return [
        _compare(_without_texts(found), next(made).statement)
        if isinstance(found, Statement)
        else found
        for found in read
    ]


def _read(index: Index, claim: Claim) -> Statement | Finding | None:
    """The statement, where the claim holds by itself and something is claimed; else the finding."""
    if claim.sketch_hash == NO_SKETCH:
        return Finding("claim.no_sketch", "credits without a sketch") if claim.credits else None
    if claims.sketch_hash(claim.sketch, claim.statement) != claim.sketch_hash:
        return Finding("claim.hash", "sketch and statement are not those committed to")
    try:
        shares.check_sketch(claim.sketch)
        statement = claims.decode_statement(claim.statement)
        shares.check_statement(statement, index.header, index.root)
    except Invalid as refusal:
        return Finding(refusal.code, str(refusal))
    if credits_of(index, statement) != claim.credits:
        return Finding("claim.credits", "the statement pays otherwise")
    for number, _ in index.header.mix:
        why = SCORERS[number].refute(index, statement)
        if why is not None:
            return Finding("claim.records", why)
    return statement


def _without_texts(statement: Statement) -> Statement:
    return statement._replace(spans=(), retrieved=())


def _compare(stated: Statement, true: Statement) -> Finding | None:
    return None if true == stated else Finding("claim.scores", _first_difference(stated, true))


def find_fraud(
    index: Index, version: Version, claim: Claim, kernel: Kernel | None = None
) -> tuple[int, Opened] | None:
    """Kind and opening that show every validator that a claim is false; None: none of it does.

    `recheck` finds the same lies and needs the whole index; here is the one row that is enough.
    A claim that the receipt does not bind shows nothing: whoever gave it may have invented it.
    """
    told = refuting.Claim(claim.sketch, claim.statement)
    header = claims.encode_header(index.header)
    if claim.sketch_hash == NO_SKETCH:
        return (openings.SHARES, SharesOpened(b"", b"", b"")) if claim.credits else None
    if claims.sketch_hash(*told) != claim.sketch_hash:
        return None
    if refuting.find_false_shares(told, index.header, index.root, claim.credits):
        return openings.SHARES, SharesOpened(*told, header)
    row = _find_false_row(index, version, told, kernel)
    if row is None:
        return None
    opened = RowOpened(*told, header, claims.encode_row_leaf(index.leaf(row)), index.prove_row(row))
    return openings.ROW, opened


def _find_false_row(
    index: Index, version: Version, told: refuting.Claim, kernel: Kernel | None
) -> int | None:
    """The first row that refutes a claim which holds by itself: of the panel, of those listed,
    or the best of those left out."""
    release = release_of(index, version)
    statement = claims.decode_statement(told.statement)
    scores = scan(index.rows, told.sketch, kernel or kernel_for(index.header.rows))
    seats = zip(release.panel(len(scores)), statement.floors, strict=True)
    suspects = [row for row, floor in seats if abs(int(scores[row])) != floor]
    suspects += [
        row
        for row, owner, score in statement.paid
        if (owner, score) != (index.contribution_of(row), int(scores[row]))
    ]
    tau = shares.threshold(statement.floors, len(scores))
    above = np.flatnonzero(scores > tau // shares.SCALE).tolist()
    left_out = set(above) - {row for row, _, _ in statement.paid}
    suspects += sorted(left_out, key=lambda row: (-int(scores[row]), row))[:1]
    for row in suspects:
        opened = refuting.OpenedRow(index.header, index.leaf(row))
        if refuting.find_false_row(release, told, opened):
            return row
    return None


def release_of(index: Index, version: Version) -> refuting.Release:
    """The version as openings are judged by."""
    return refuting.Release(**version._asdict(), index_root=index.root)


def _first_difference(stated: Statement, true: Statement) -> str:
    for seat, (said, found) in enumerate(zip(stated.floors, true.floors, strict=True)):
        if said != found:
            return f"floor {seat} is {found}, not {said}"
    for listed, right in zip(stated.paid, true.paid, strict=False):
        if listed != right:
            return f"(row, contribution, score) is {right}, not {listed}"
    if stated.paid != true.paid:
        return f"{len(true.paid)} rows are paid, not {len(stated.paid)}"
    return "the answer holds other spans or citations"
