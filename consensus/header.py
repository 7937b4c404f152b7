"""The header of a block: eighteen commitments, each of them provable alone.

Why the block id is a tree and not one hash: a light client proves one field (a root of payouts,
the history) with two or five hashes, and never needs the other seventeen.
What this file does not know: how any root came about, and who signed.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from consensus.params import HEADER_BYTES_MAX
from consensus.primitives import merkle
from consensus.primitives.digest import HASH_BYTES
from consensus.primitives.encoding import INT_MAX, U8, U32, U63, H, Record, decode, encode
from consensus.primitives.errors import Invalid

HEADER_VERSION: Final = 1
NIL: Final = bytes(HASH_BYTES)  # the id of no block


class Header(NamedTuple):
    """The commitment of one block. Hashes are 32 bytes; `supply` in grains; order is the wire's."""

    version: int
    app_version: int
    chain_id: bytes
    height: int
    time_ms: int
    parent_id: bytes  # of height 1: the chain id
    proposer: bytes
    validators_hash: bytes
    next_validators_hash: bytes
    params_hash: bytes
    state_root: bytes  # after this block
    txs_root: bytes
    bundles_root: bytes
    payouts_root: bytes
    evidence_root: bytes
    last_commit_hash: bytes  # SHA-256 of the encoded last certificate; zeroes at height 1
    history_root: bytes  # over the ids of the blocks 1..height−1
    supply: int

    def leaves(self) -> tuple[bytes, ...]:
        """What the tree of the block id is built over: `field number u8 ‖ value`."""
        return tuple(field_leaf(number, value) for number, value in enumerate(self))

    def block_id(self) -> bytes:
        """RFC 6962 root over the leaves; about 30 µs, so keep it."""
        return merkle.root(self.leaves())

    def prove(self, field: str) -> tuple[bytes, ...]:
        """The path of one field: 5 hashes, 2 for `history_root` and `supply`."""
        return merkle.prove(self.leaves(), field_number(field))


FIELDS: Final = Header._fields

SHAPE: Final = Record(U8, U32, H, U63, U63, H, H, H, H, H, H, H, H, H, H, H, H, U63)


def field_number(field: str) -> int:
    """The place of a field in the header, from 0; `Invalid("header.field")` if there is none."""
    if field not in FIELDS:
        raise Invalid("header.field", field=field)
    return FIELDS.index(field)


def field_leaf(number: int, value: object) -> bytes:
    """Leaf data of one field: its number, then 8 big-endian bytes or the 32 bytes of a hash."""
    if isinstance(value, int):
        return bytes([number]) + value.to_bytes(8, "big")
    assert isinstance(value, bytes)
    return bytes([number]) + value


def verify_field(block_id: bytes, field: str, value: int | bytes, path: Sequence[bytes]) -> None:
    """Raise `Invalid` unless the header with `block_id` holds `value` in `field`."""
    number = field_number(field)
    if type(value) is int:
        if not 0 <= value <= INT_MAX:
            raise Invalid("header.value", field=field)
    elif type(value) is not bytes or len(value) != HASH_BYTES:
        raise Invalid("header.value", field=field)
    leaf = merkle.leaf_hash(field_leaf(number, value))
    merkle.verify_path(block_id, leaf, number, len(FIELDS), path)


def encode_header(header: Header) -> bytes:
    """About 470 bytes."""
    return encode(header)


def decode_header(raw: bytes) -> Header:
    """The header; `Invalid` `header.…` unless well-formed, of a known version, of height ≥ 1."""
    header = Header(*decode(raw, SHAPE, HEADER_BYTES_MAX, "header"))
    if header.version != HEADER_VERSION:
        raise Invalid("header.version", version=header.version)
    if header.height < 1:
        raise Invalid("header.height", height=header.height)
    return header
