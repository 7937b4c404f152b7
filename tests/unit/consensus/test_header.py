"""The block id: eighteen leaves, worked out here by hand, and nothing that two headers share.

`test_messages.py` proves single fields and refuses bad ones.
"""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulation.engines import header

from consensus.header import (
    FIELDS,
    NIL,
    Header,
    decode_header,
    encode_header,
    field_leaf,
    field_number,
    verify_field,
)
from consensus.params import HEADER_BYTES_MAX
from consensus.primitives.encoding import encode
from consensus.primitives.errors import Invalid

HEADER = header(b"p" * 32, height=7, mark=1)
HASHES = st.binary(min_size=32, max_size=32)
NUMBERS = st.integers(0, 2**63 - 1)
HEADERS = st.builds(
    Header,
    st.just(1), st.integers(0, 2**32 - 1), HASHES, st.integers(1, 2**63 - 1), NUMBERS,
    *[HASHES] * 12, NUMBERS,
)  # fmt: skip


def refused(raw: bytes) -> str:
    with pytest.raises(Invalid) as refusal:
        decode_header(raw)
    return refusal.value.code


def tree_by_hand(leaves: list[bytes]) -> bytes:
    """RFC 6962 §2.1, as the text has it."""
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    left, right = tree_by_hand(leaves[:split]), tree_by_hand(leaves[split:])
    return hashlib.sha256(b"\1" + left + right).digest()


def test_block_id_is_the_tree_of_numbered_fields() -> None:
    leaves = [
        bytes([number]) + (value.to_bytes(8, "big") if isinstance(value, int) else value)
        for number, value in enumerate(HEADER)
    ]
    assert list(HEADER.leaves()) == leaves
    assert HEADER.block_id() == tree_by_hand(leaves)


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_changes_the_block_id(field: str) -> None:
    value = getattr(HEADER, field)
    other = value + 1 if isinstance(value, int) else bytes(31) + b"\x07"
    assert HEADER._replace(**{field: other}).block_id() != HEADER.block_id()


@given(HEADERS)
def test_any_header_survives_its_encoding_and_fits(made: Header) -> None:
    raw = encode_header(made)
    assert decode_header(raw) == made
    assert len(raw) <= HEADER_BYTES_MAX


def test_header_has_one_encoding() -> None:
    raw = encode_header(HEADER)
    assert refused(raw + b"\0") == "header.malformed"
    assert refused(raw[:-1]) == "header.malformed"
    assert refused(raw + bytes(HEADER_BYTES_MAX)) == "header.too_large"
    assert refused(encode(tuple(HEADER)[:-1])) == "header.malformed"


def test_no_block_has_the_id_of_no_block() -> None:
    assert bytes(32) == NIL
    assert HEADER.block_id() != NIL


def test_number_of_a_field_is_its_place() -> None:
    assert [field_number(field) for field in FIELDS] == list(range(18))
    assert field_leaf(3, 7) == b"\3" + bytes(7) + b"\7"
    assert field_leaf(16, b"h" * 32) == b"\x10" + b"h" * 32


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("height", True),  # an int to `isinstance`
        ("height", 2**63),
        ("height", -1),
        ("height", 7.0),
        ("height", (7).to_bytes(8, "big")),  # the leaf's bytes, but no 32
        ("state_root", b"h" * 31),
        ("state_root", b"h" * 33),
        ("state_root", bytearray(32)),
        ("state_root", None),
    ],
)
def test_value_of_another_type_or_size_proves_nothing(field: str, value: object) -> None:
    with pytest.raises(Invalid) as refusal:
        verify_field(HEADER.block_id(), field, value, HEADER.prove(field))  # type: ignore[arg-type]
    assert refusal.value.code == "header.value"


def test_greatest_number_is_proven_too() -> None:
    rich = HEADER._replace(supply=2**63 - 1)
    verify_field(rich.block_id(), "supply", 2**63 - 1, rich.prove("supply"))


def test_path_proves_its_own_field_only() -> None:
    same = HEADER._replace(height=9, time_ms=9)
    verify_field(same.block_id(), "time_ms", 9, same.prove("time_ms"))
    with pytest.raises(Invalid) as refusal:
        verify_field(same.block_id(), "time_ms", 9, same.prove("height"))
    assert refusal.value.code == "merkle.root"
