"""The keys of the database: one prefix byte per table, big-endian numbers, so order is meaning.

Why all of it may be lost: everything here is rebuilt from the block log and the bundle bodies;
`a`, `c` and `o` are only indices for those who ask.
"""

from typing import Final

from consensus.primitives.encoding import U32, U63, Record, decode, encode

STATE: Final = b"s"  # flat state key → value
NODE: Final = b"n"  # tree node key (version u64 ‖ a byte per nibble) → stored node
STALE: Final = b"t"  # since height u64 ‖ tree node key → empty
ROOT: Final = b"r"  # height u64 → root record of the tree
BLOCK: Final = b"h"  # height u64 → place in the block log
BLOCK_ID: Final = b"i"  # block id → height u64
TRANSACTION: Final = b"x"  # tx id → [height, index, code]
BUNDLE: Final = b"b"  # bundle hash → [height, index in the payload]
RECEIPT: Final = b"c"  # receipt id → bundle hash ‖ index u32
ACTIVITY: Final = b"a"  # account ‖ falling height u64 ‖ index u32 → what happened to it
OUTCOME: Final = b"o"  # height u64 → [codes of the transactions, payout leaves]
VALIDATORS: Final = b"v"  # falling height u64 → the set that signs from that height on
HISTORY: Final = b"f"  # level u8 ‖ index u64 → full subtree of the history of block ids
META: Final = b"m"  # name → value

FORMAT: Final = META + b"format"
CHAIN_ID: Final = META + b"chain_id"
HEIGHT: Final = META + b"height"
FOOTING: Final = META + b"footing"  # of a database that was loaded from a snapshot

FORMAT_VERSION: Final = 1
HEIGHT_TOP: Final = 2**64 - 1

TRANSACTION_PLACE: Final = Record(U63, U32, U32)  # height, index, code
BUNDLE_PLACE: Final = Record(U63, U32)  # height, index


def u64(number: int) -> bytes:
    """Eight big-endian bytes."""
    return number.to_bytes(8, "big")


def from_u64(raw: bytes) -> int:
    """The number of eight big-endian bytes."""
    assert len(raw) == 8
    return int.from_bytes(raw, "big")


def falling(height: int) -> bytes:
    """Eight bytes that sort the greater height first: a scan finds the newest at once."""
    return u64(HEIGHT_TOP - height)


def from_falling(raw: bytes) -> int:
    """The height of eight falling bytes."""
    return HEIGHT_TOP - from_u64(raw)


def u32(number: int) -> bytes:
    """Four big-endian bytes."""
    return number.to_bytes(4, "big")


def after(prefix: bytes) -> bytes:
    """The first key behind all that begin with `prefix` (whose last byte is below 255)."""
    assert prefix
    assert prefix[-1] < 255
    return prefix[:-1] + bytes([prefix[-1] + 1])


def activity_key(account: bytes, height: int, index: int) -> bytes:
    """Key of one entry of an account's activity; entries of a block are counted from 0."""
    return ACTIVITY + account + falling(height) + u32(index)


def encode_transaction_place(height: int, index: int, code: int) -> bytes:
    """Where transaction is, and how it ended."""
    return encode((height, index, code))


def decode_transaction_place(raw: bytes) -> tuple[int, int, int]:
    """Height, index in the payload, effect code."""
    height, index, code = decode(raw, TRANSACTION_PLACE, 32, "store.transaction_place")
    return height, index, code


def encode_bundle_place(height: int, index: int) -> bytes:
    """Where a bundle was settled."""
    return encode((height, index))


def decode_bundle_place(raw: bytes) -> tuple[int, int]:
    """Height and index in the payload's bundle hashes."""
    height, index = decode(raw, BUNDLE_PLACE, 32, "store.bundle_place")
    return height, index
