"""Payload and block: what a proposer gathers, and what travels and is kept.

Payload = `[[transaction…], [bundle hash…], [evidence…]]`; block = `[header, payload,
last_certificate]`, each part as bytes of its own encoding, for each is hashed by itself. Bundle
bodies travel beside the block. At height 1 there is no last certificate: its bytes are empty.
What this file does not know: headers and certificates (`consensus/`), and the rules.
"""

from typing import Final, NamedTuple

from consensus.primitives.encoding import Bytes, H, ListOf, Record, decode, encode
from consensus.primitives.errors import Invalid
from node.ledger.wire.transactions import TRANSACTION_BYTES_MAX

PAYLOAD_BYTES_MAX: Final = 1 << 20
TRANSACTIONS_MAX: Final = 8_192
BUNDLES_MAX: Final = 256
RECEIPTS_MAX: Final = 50_000  # of all bundles of a payload
BODIES_BYTES_MAX: Final = 16 << 20
EVIDENCE_MAX: Final = 8
EVIDENCE_BYTES_MAX: Final = 65_536
HEADER_BYTES_MAX: Final = 1_024
CERTIFICATE_BYTES_MAX: Final = 8_192
BLOCK_BYTES_MAX: Final = PAYLOAD_BYTES_MAX + HEADER_BYTES_MAX + CERTIFICATE_BYTES_MAX + 64


class Payload(NamedTuple):
    """Transaction bytes in order; hashes of bundle headers; evidence bytes."""

    transactions: tuple[bytes, ...] = ()
    bundles: tuple[bytes, ...] = ()
    evidence: tuple[bytes, ...] = ()


class Block(NamedTuple):
    """The three encodings of a block."""

    header: bytes
    payload: bytes
    last_certificate: bytes


_PAYLOAD: Final = Record(
    ListOf(Bytes(TRANSACTION_BYTES_MAX), TRANSACTIONS_MAX),
    ListOf(H, BUNDLES_MAX),
    ListOf(Bytes(EVIDENCE_BYTES_MAX), EVIDENCE_MAX),
)
_BLOCK: Final = Record(
    Bytes(HEADER_BYTES_MAX), Bytes(PAYLOAD_BYTES_MAX), Bytes(CERTIFICATE_BYTES_MAX)
)


def encode_payload(payload: Payload) -> bytes:
    """Canonical bytes."""
    return encode(payload)


def decode_payload(raw: bytes) -> Payload:
    """Raises `Invalid` `payload.too_large`, `payload.malformed`, `payload.not_canonical` or
    `payload.evidence_size`."""
    payload = Payload(*decode(raw, _PAYLOAD, PAYLOAD_BYTES_MAX, "payload"))
    size = sum(len(piece) for piece in payload.evidence)
    if size > EVIDENCE_BYTES_MAX:
        raise Invalid("payload.evidence_size", bytes=size)
    return payload


def encode_block(block: Block) -> bytes:
    """Canonical bytes."""
    return encode(block)


def decode_block(raw: bytes) -> Block:
    """Raises `Invalid` `block.…`; its parts are not decoded."""
    return Block(*decode(raw, _BLOCK, BLOCK_BYTES_MAX, "block"))
