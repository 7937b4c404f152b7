"""One answer's sketch → its statement and credits, and the reasons in words that people can check.

The whole exact part: scan the index, take the panel's median, pay what stands above the
threshold. Whoever holds the index gets the same bytes (audit.py does just that).
What this file does not know: how the sketch was made, who the contributors are, money.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from consensus.primitives.digest import HASH_BYTES
from node.attribution.datanets import Record
from node.attribution.index import Index
from node.attribution.kernels import kernel_for
from node.attribution.score import Kernel, Scores, scan, scan_each
from node.attribution.scorers import SCORERS, Answer, Asked
from node.ledger.rules import shares
from node.ledger.rules.shares import Credits
from node.ledger.wire import claims
from node.ledger.wire.claims import Statement

NO_SKETCH: Final = bytes(HASH_BYTES)  # a receipt's sketch_hash where there is none: page 60 §5
SNIPPET_CHARS_MAX: Final = 160

Place = tuple[int, int]  # contribution, position in it


class Version(NamedTuple):
    """The model version as the ledger knows it: what the panel is drawn from, with the root."""

    chain_id: bytes
    model: int
    version: int
    published_ms: int


@dataclass(frozen=True, slots=True)
class Attribution:
    """What a receipt commits to, and the bundle carries: see design page 60 §5."""

    sketch: bytes
    statement: Statement
    statement_bytes: bytes
    sketch_hash: bytes
    credits: Credits


@dataclass(frozen=True, slots=True)
class PaidRow:
    """One line of an explanation. `score_bps` is the score over the threshold's, in bps; both
    scores are 0 where other scorers of the mix alone pay the row."""

    rank: int
    row: int
    contribution: int
    position: int
    bps: int
    parts: tuple[int, ...]  # of them the gradient's, the spans', the citations', by number
    score: int
    score_bps: int
    snippet: str | None  # None where the record is not held


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an answer paid whom: rows by share, the noise floor, tau in sixteenths, rows N."""

    rows: tuple[PaidRow, ...]
    floor: int
    tau: int
    index_rows: int


def attribute(
    index: Index,
    sketch: bytes,
    version: Version,
    kernel: Kernel | None = None,
    answer: Answer | None = None,
) -> Attribution:
    """The statement and credits of one answer; 0.1 ms and a scan, by default with `kernel_for`.

    The scorers of the index's mix find their parts in turn; all but the gradient's need `answer`.
    Raises `Invalid` `sketch.malformed`. Empty credits: nothing stood out.
    """
    shares.check_sketch(sketch)
    scores = scan(index.rows, sketch, kernel or kernel_for(index.header.rows))
    return _conclude(index, sketch, scores, version, answer)


def attribute_all(
    index: Index, sketches: Sequence[bytes], version: Version, kernel: Kernel | None = None
) -> Iterator[Attribution]:
    """The same of many answers, of whose texts nothing is known: the rows are read once for many.

    The sketches have passed `shares.check_sketch`.
    """
    scores = scan_each(index.rows, sketches, kernel or kernel_for(index.header.rows))
    scored = zip(sketches, scores, strict=True)
    return (_conclude(index, sketch, scores, version, None) for sketch, scores in scored)


def _conclude(
    index: Index, sketch: bytes, scores: Scores, version: Version, answer: Answer | None
) -> Attribution:
    seed = shares.panel_seed(index_root=index.root, **version._asdict())
    asked = Asked(scores, seed, answer)
    statement = Statement(claims.STATEMENT_VERSION, index.root, (), (), (), ())
    for number, _ in index.header.mix:
        statement = SCORERS[number].add(index, asked, statement)
    encoded = claims.encode_statement(statement)
    return Attribution(
        sketch=sketch,
        statement=statement,
        statement_bytes=encoded,
        sketch_hash=claims.sketch_hash(sketch, encoded),
        credits=credits_of(index, statement),
    )


def credits_of(index: Index, statement: Statement, standing: int | None = None) -> Credits:
    """What a checked statement pays, by the index's mix; the gradient's rows as it names them.

    `standing`: `shares.row_shares`.
    """
    header = index.header
    is_plain = header.mix == claims.GRADIENT_ONLY
    owner_of = None if is_plain else index.contribution_of
    return shares.credits_of(statement, header.rows, header.mix, owner_of, standing)


def explain(
    statement: Statement, index: Index, records: Mapping[Place, Record] | None = None
) -> Explanation:
    """The paid rows of a checked statement by share, with text where `records` holds it.

    Rows of an answer whose highest score does not stand out have no share: 0 bps.
    """
    n = index.header.rows
    tau = shares.threshold(statement.floors, n)
    scores = {row: s for row, _, s in statement.paid}
    parts = {row: [0] * len(SCORERS) for row in scores}
    for scorer, row, bps in shares.scorer_shares(statement, n, index.header.mix):
        parts.setdefault(row, [0] * len(SCORERS))[scorer] += bps
    ranked = sorted(parts, key=lambda row: (-sum(parts[row]), row))
    rows = []
    for rank, row in enumerate(ranked, start=1):
        place = index.place_of(row)
        record = (records or {}).get(place)
        rows.append(
            PaidRow(
                rank=rank,
                row=row,
                contribution=place[0],
                position=place[1],
                bps=sum(parts[row]),
                parts=tuple(parts[row]),
                score=scores.get(row, 0),
                score_bps=scores.get(row, 0) * shares.SCALE * 10_000 // max(1, tau),
                snippet=None if record is None else snippet(record),
            )
        )
    floor = sorted(statement.floors)[(len(statement.floors) - 1) // 2]
    return Explanation(tuple(rows), floor, tau, n)


def snippet(record: Record) -> str:
    """At most 160 characters of a record, on one line."""
    text = " ".join(f"{record.prompt} {record.completion}".split())
    return text if len(text) <= SNIPPET_CHARS_MAX else text[: SNIPPET_CHARS_MAX - 1] + "…"
