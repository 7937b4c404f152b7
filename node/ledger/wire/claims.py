"""Wire shapes of attribution: index header, row leaf, statement, and the hash that binds a sketch.

Why in the ledger: a fraud proof is settled from these bytes alone, by every validator, so their
one encoding belongs beside the other wire objects. Field orders: design page 60 §3 and §5.
What this file does not know: what a score means, or which statement is true (rules/shares.py).
"""

from typing import Final, NamedTuple

from consensus.primitives import merkle
from consensus.primitives.digest import HASH_BYTES, sha256
from consensus.primitives.encoding import (
    U8,
    U16,
    U32,
    U63,
    Fixed,
    H,
    ListOf,
    Record,
    decode,
    encode,
)
from consensus.primitives.errors import Invalid

HEADER_VERSION: Final = 1
STATEMENT_VERSION: Final = 1
RULE_ATTR_V1: Final = 1

HALF_BYTES: Final = 512  # one checkpoint's int8 row
ROW_BYTES: Final = 2 * HALF_BYTES  # early ‖ middle
META_BYTES: Final = 16  # contribution u64, position u32, kept tokens u32
LEAF_BYTES: Final = 4 + META_BYTES + ROW_BYTES
ROWS_MAX: Final = 2**23
HEADER_BYTES_MAX: Final = 4_096
STATEMENT_BYTES_MAX: Final = 4_096
PANEL_ROWS: Final = 127  # floors in a statement, at most
PAID_MAX: Final = 64

GRADIENT: Final = 0  # the scorers that a mix may name
SPAN: Final = 1
RETRIEVAL: Final = 2
GRADIENT_ONLY: Final = ((GRADIENT, 10_000),)
MIX_TOTAL_BPS: Final = 10_000
GRADIENT_BPS_MIN: Final = 4_000
SPAN_BPS_MAX: Final = 3_000
RETRIEVAL_BPS_MAX: Final = 3_000
SPANS_PAID_MAX: Final = 20
RETRIEVED_MAX: Final = 4
SPAN_HOLDERS_MAX: Final = 16
MIN_SPAN_LOW: Final = 4
MIN_SPAN_HIGH: Final = 64
NARROW_LOW: Final = 8
NARROW_HIGH: Final = 4_096
NO_SPANS: Final = bytes(HASH_BYTES)


class IndexHeader(NamedTuple):
    """What an index root is the SHA-256 of. `mix` is ((scorer, bps), …), ascending by scorer."""

    version: int
    base: bytes
    adapter: bytes
    early: bytes
    middle: bytes
    snapshot_root: bytes
    basis_hash: bytes
    rows: int
    records: int
    rule: int
    narrow: int
    mix: tuple[tuple[int, int], ...]
    min_span: int
    rows_root: bytes
    clusters_root: bytes
    spans_root: bytes


class RowLeaf(NamedTuple):
    """One row as it stands under the rows root; `row` is 1,024 signed bytes."""

    number: int
    contribution: int
    position: int
    kept_tokens: int
    row: bytes


class Span(NamedTuple):
    """A verbatim stretch of the answer, in tokens, and who holds it: ((row, offset), …)."""

    start: int
    length: int
    holders: tuple[tuple[int, int], ...]


class Statement(NamedTuple):
    """What a provider states of one answer; the credits follow from it (rules/shares.py).

    `floors`: |score| of the panel's rows in draw order. `paid`: ((row, contribution, score), …)
    by row. `retrieved`: ((row, tokens), …) by row.
    """

    version: int
    index_root: bytes
    floors: tuple[int, ...]
    paid: tuple[tuple[int, int, int], ...]
    spans: tuple[Span, ...]
    retrieved: tuple[tuple[int, int], ...]


_HEADER: Final = Record(
    U8,
    H,
    H,
    H,
    H,
    H,
    H,
    U32,
    U32,
    U8,
    U16,
    ListOf(Record(U8, U16), 3, 1),
    U8,
    H,
    H,
    Fixed(HASH_BYTES),
)
_SPAN: Final = Record(U32, U32, ListOf(Record(U32, U32), SPAN_HOLDERS_MAX, 1))
_STATEMENT: Final = Record(
    U8,
    H,
    ListOf(U32, PANEL_ROWS),
    ListOf(Record(U32, U63, U32), PAID_MAX),
    ListOf(_SPAN, PAID_MAX),
    ListOf(Record(U32, U32), RETRIEVED_MAX),
)


def encode_header(header: IndexHeader) -> bytes:
    """Canonical bytes; about 0.4 KB."""
    return encode(header)


def decode_header(raw: bytes) -> IndexHeader:
    """Raises `Invalid` `index_header.…` for bytes, version, rule, counts or mix out of bounds."""
    header = IndexHeader(*decode(raw, _HEADER, HEADER_BYTES_MAX, "index_header"))
    if header.version != HEADER_VERSION:
        raise Invalid("index_header.version", version=header.version)
    if header.rule != RULE_ATTR_V1:
        raise Invalid("index_header.rule", rule=header.rule)
    if not 1 <= header.rows <= min(ROWS_MAX, header.records):
        raise Invalid("index_header.rows", rows=header.rows, records=header.records)
    if not NARROW_LOW <= header.narrow <= NARROW_HIGH:
        raise Invalid("index_header.narrow", narrow=header.narrow)
    check_mix(header.mix)
    if not MIN_SPAN_LOW <= header.min_span <= MIN_SPAN_HIGH:
        raise Invalid("index_header.min_span", min_span=header.min_span)
    if (header.spans_root != NO_SPANS) != (SPAN in dict(header.mix)):
        raise Invalid("index_header.spans_root")
    return header


def check_mix(mix: tuple[tuple[int, int], ...]) -> None:
    """Raise `Invalid` `index_header.mix` unless the parts are ascending, bounded, and 10,000."""
    parts = dict(mix)
    is_sound = (
        list(parts) == sorted(parts)
        and len(parts) == len(mix)
        and parts.keys() <= {GRADIENT, SPAN, RETRIEVAL}
        and sum(parts.values()) == MIX_TOTAL_BPS
        and min(parts.values(), default=0) >= 1
        and parts.get(GRADIENT, 0) >= GRADIENT_BPS_MIN
        and parts.get(SPAN, 0) <= SPAN_BPS_MAX
        and parts.get(RETRIEVAL, 0) <= RETRIEVAL_BPS_MAX
    )
    if not is_sound:
        raise Invalid("index_header.mix", mix=mix)


def index_root(header: bytes) -> bytes:
    """The identity of an index: SHA-256 of its encoded header, which holds the three roots."""
    return sha256(header)


def encode_meta(contribution: int, position: int, kept_tokens: int) -> bytes:
    """16 bytes, big-endian: contribution u64, position u32, kept tokens u32."""
    return contribution.to_bytes(8) + position.to_bytes(4) + kept_tokens.to_bytes(4)


def decode_meta(raw: bytes) -> tuple[int, int, int]:
    """(contribution, position, kept tokens) of 16 bytes."""
    assert len(raw) == META_BYTES
    return int.from_bytes(raw[:8]), int.from_bytes(raw[8:12]), int.from_bytes(raw[12:])


def encode_row_leaf(leaf: RowLeaf) -> bytes:
    """1,044 bytes: row number u32 ‖ meta 16 ‖ row 1,024."""
    assert len(leaf.row) == ROW_BYTES
    meta = encode_meta(leaf.contribution, leaf.position, leaf.kept_tokens)
    return leaf.number.to_bytes(4) + meta + leaf.row


def decode_row_leaf(raw: bytes) -> RowLeaf:
    """Raises `Invalid` `row_leaf.length`."""
    if len(raw) != LEAF_BYTES:
        raise Invalid("row_leaf.length", bytes=len(raw))
    meta = decode_meta(raw[4 : 4 + META_BYTES])
    return RowLeaf(int.from_bytes(raw[:4]), *meta, raw[4 + META_BYTES :])


def encode_statement(statement: Statement) -> bytes:
    """Canonical bytes; typically 0.7 KB."""
    return encode(statement)


def decode_statement(raw: bytes) -> Statement:
    """Raises `Invalid` `statement.…`; only shape and size, the rules are in rules/shares.py."""
    fields = decode(raw, _STATEMENT, STATEMENT_BYTES_MAX, "statement")
    statement = Statement(*fields)
    if statement.version != STATEMENT_VERSION:
        raise Invalid("statement.version", version=statement.version)
    return statement._replace(spans=tuple(Span(*span) for span in statement.spans))


def sketch_hash(sketch: bytes, statement: bytes) -> bytes:
    """The receipt's `sketch_hash`: RFC 6962 root over (sketch, encoded statement)."""
    return merkle.root((sketch, statement))
