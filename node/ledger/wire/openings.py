"""What a fraud proof shows: its subject, and what is opened under hashes that stand settled.

Why few bytes are enough: a receipt's `sketch_hash` binds sketch and statement, a version's index
root binds every row, so one row and its path refute one score; a whole index is never posted
(page 40 §11, page 60 §10). Why so much room for sketch and statement: what is malformed or too
long must fit into the proof that shows just that.
What this file does not know: which opening shows a lie (`rules/refuting.py`).
"""

from typing import Any, Final, NamedTuple

from consensus.primitives import merkle
from consensus.primitives.encoding import U32, U63, Bytes, H, ListOf, Record, decode, encode
from node.ledger.wire.bundles import Bundle, check_bytes
from node.ledger.wire.claims import HEADER_BYTES_MAX, LEAF_BYTES
from node.ledger.wire.receipts import CREDITS_BYTES_MAX, RECEIPT_BYTES_MAX

SHARES: Final = 1  # a claim that does not hold by itself, or pays otherwise than its receipt
ROW: Final = 2  # a score, an owner or a left-out row, against the row itself
NORM: Final = 3  # a row of an index that no honest builder makes
AT_ONCE: Final = (SHARES, ROW, NORM)  # settled in the block of the proof; later ones ask people
KINDS_MAX: Final = 6

PATH_MAX: Final = 32
OPENING_BYTES_MAX: Final = 60_000
_CLAIM_BYTES_MAX: Final = 32_768  # of a sketch or a statement, honest ones are far shorter


class ReceiptSubject(NamedTuple):
    """The receipt at `place` of a settled bundle, with its credits and the path to its root."""

    bundle: bytes
    place: int
    receipt: bytes
    credits: bytes
    path: tuple[bytes, ...]


class VersionSubject(NamedTuple):
    """A model version whose index holds what is shown."""

    model: int
    version: int


class SharesOpened(NamedTuple):
    """Kind 1: the claim and the index's header; empty where a receipt can have none."""

    sketch: bytes
    statement: bytes
    header: bytes


class RowOpened(NamedTuple):
    """Kind 2: the claim, and one row under the index's root."""

    sketch: bytes
    statement: bytes
    header: bytes
    leaf: bytes
    path: tuple[bytes, ...]


class NormOpened(NamedTuple):
    """Kind 3: one row under the index's root."""

    header: bytes
    leaf: bytes
    path: tuple[bytes, ...]


class RawRows(NamedTuple):
    """Rows of an index as they travel between nodes: its header, then (leaf, path) of each."""

    header: bytes
    rows: tuple[tuple[bytes, tuple[bytes, ...]], ...]


Subject = ReceiptSubject | VersionSubject
Opened = SharesOpened | RowOpened | NormOpened

_PATH: Final = ListOf(H, PATH_MAX)
_RECEIPT_SUBJECT: Final = Record(H, U32, Bytes(RECEIPT_BYTES_MAX), Bytes(CREDITS_BYTES_MAX), _PATH)
_CLAIM: Final = (Bytes(_CLAIM_BYTES_MAX), Bytes(_CLAIM_BYTES_MAX))
_HEADER: Final = Bytes(HEADER_BYTES_MAX)
_ROW: Final = (_HEADER, Bytes(LEAF_BYTES, LEAF_BYTES), _PATH)
_SHAPES: Final[dict[int, tuple[Any, Any, Any, Any]]] = {
    SHARES: (ReceiptSubject, _RECEIPT_SUBJECT, SharesOpened, Record(*_CLAIM, _HEADER)),
    ROW: (ReceiptSubject, _RECEIPT_SUBJECT, RowOpened, Record(*_CLAIM, *_ROW)),
    NORM: (VersionSubject, Record(U63, U32), NormOpened, Record(*_ROW)),
}


def open_receipt(bundle: Bundle, place: int) -> ReceiptSubject:
    """The subject of the receipt at `place` of a bundle; raises Invalid `bundle.…` for one that
    is none, IndexError for a place that it does not have."""
    _, parts = check_bytes(bundle)
    receipts = [raw for part in parts for raw in part.receipts]
    credits = [raw for part in parts for raw in part.credits]
    path = merkle.prove(receipts, place) if place < len(receipts) else ()
    return ReceiptSubject(bundle.hash, place, receipts[place], credits[place], path)


def encode_opening(value: Subject | Opened) -> bytes:
    """Canonical bytes of a subject, or of what is opened."""
    return encode(value)


def decode_subject(kind: int, raw: bytes) -> Subject:
    """Of a kind that is settled at once; raises Invalid `opening.…`."""
    make, shape, _, _ = _SHAPES[kind]
    subject: Subject = make(*decode(raw, shape, OPENING_BYTES_MAX, "opening"))
    return subject


def decode_opened(kind: int, raw: bytes) -> Opened:
    """The same of what is opened."""
    _, _, make, shape = _SHAPES[kind]
    opened: Opened = make(*decode(raw, shape, OPENING_BYTES_MAX, "opening"))
    return opened
