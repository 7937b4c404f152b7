"""Row audits: some rows of an index made again from records and checkpoints, and compared.

Why some: whoever inflates or swaps rows must do it to many to gain by it, and 300 drawn rows find
one bad row in a hundred with p = 0.95 (page 60 §9). Why the folders are hashed first: a row made
with another base or checkpoint says nothing about the index.
What this file does not know: who drew the rows, what a bad index costs its creator.
Needs torch where rows are made: imported only then.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from consensus.primitives.errors import Invalid
from node.attribution.attribute import Place
from node.attribution.building import IndexSpec, Source
from node.attribution.datanets import Record, RecordIds, Tokenizer, encode_record
from node.attribution.index import BASIS_FILE, Index
from node.attribution.spans import tokens_of
from node.attribution.tolerance import PPM, ROW_MILLE, cosine_ppm, halves, is_alike
from node.ledger.rules.shares import draw_rows
from node.ledger.wire.claims import ROW_BYTES

ROWS: Final = 300


@dataclass(frozen=True, slots=True)
class Folders:
    """Where base and checkpoints lie, whose hashes the caller has compared with the header's."""

    base: str
    early: str
    middle: str


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is not what its record gives; cosines in millionths, 0 for a zero half."""

    row: int
    contribution: int
    position: int
    early_ppm: int
    middle_ppm: int
    why: str  # "cosine", "tokens" (their number), or "spans": its text is not the record's


@dataclass(frozen=True, slots=True)
class RowAudit:
    """What was looked at. `least_ppm`: the lowest cosine of a half; `missing`: rows whose record
    was not given, which says nothing of them."""

    rows: int
    missing: int
    least_ppm: int
    bad: tuple[BadRow, ...]


def draw(seed: bytes, index: Index, count: int = ROWS) -> tuple[int, ...]:
    """The rows to make again, ascending: the same for all who use the seed."""
    return tuple(sorted(draw_rows(seed, index.header.rows, count)))


def audit_rows(
    index: Index,
    rows: Sequence[int],
    records: Mapping[Place, Record],
    folders: Folders,
    tokenizer: Tokenizer,
) -> RowAudit:
    """Make `rows` again and compare; raises Invalid `index.basis` without the index's basis.

    Takes two passes forward and backward a record, one for each checkpoint.
    """
    if not index.has_basis:
        raise Invalid("index.basis", why="rows cannot be made without it")
    coded: dict[int, RecordIds] = {}
    for row in rows:
        record = records.get(index.place_of(row))
        if record is not None:
            coded[row] = encode_record(tokenizer, record.prompt, record.completion)
    # A record without a completion token has no gradient, so it can have no row.
    spoken = [row for row, ids in coded.items() if ids.kept_tokens]
    made = dict(zip(spoken, make_rows(index, folders, [coded[r] for r in spoken]), strict=True))
    bad, least = [], PPM
    for row, ids in coded.items():
        ppm, found = _compare(index, row, made.get(row, bytes(ROW_BYTES)), ids)
        least = min(least, *ppm)
        if found is not None:
            bad.append(found)
    return RowAudit(len(coded), len(rows) - len(coded), least, tuple(bad))


def make_rows(index: Index, folders: Folders, coded: Sequence[RecordIds]) -> list[bytes]:
    """1,024 bytes for each record, zeros where it gives no row, by the index's basis."""
    if not coded:
        return []
    spec = spec_of(index, folders)
    task = Source(spec, coded).task("rows", tuple(range(len(coded))), index.folder / BASIS_FILE)
    shards = -(-len(coded) // task.size)
    made = b"".join(task(shard) for shard in range(shards))
    return [made[at : at + ROW_BYTES] for at in range(0, len(made), ROW_BYTES)]


def spec_of(index: Index, folders: Folders) -> IndexSpec:
    """What an index was built of, as far as it decides rows and basis."""
    header = index.header
    return IndexSpec(
        base_folder=folders.base,
        early_folder=folders.early,
        middle_folder=folders.middle,
        base=header.base,
        adapter=header.adapter,
        early=header.early,
        middle=header.middle,
        snapshot_root=header.snapshot_root,
        narrow=header.narrow,
        min_span=header.min_span,
    )


def _compare(
    index: Index, row: int, own: bytes, ids: RecordIds
) -> tuple[tuple[int, int], BadRow | None]:
    leaf = index.leaf(row)
    pairs = list(zip(halves(own), halves(leaf.row), strict=True))
    early, middle = (cosine_ppm(*pair) for pair in pairs)
    why = ""
    said = list(ids.ids[ids.prompt_tokens :])
    if leaf.kept_tokens != ids.kept_tokens:
        why = "tokens"
    elif index.spans is not None and tokens_of(index.spans, row) != said:
        why = "spans"
    elif not all(is_alike(*pair, ROW_MILLE) for pair in pairs):
        why = "cosine"
    found = BadRow(row, leaf.contribution, leaf.position, early, middle, why) if why else None
    return (early, middle), found
