"""Payout leaves on the wire, and the one figure that a leaf proves of itself."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.primitives.encoding import encode, wide
from consensus.primitives.errors import Invalid
from node.ledger.amounts import SUPPLY_GRAINS, split
from node.ledger.wire.payouts import (
    LEAF_BYTES_MAX,
    PayoutLeaf,
    check_amount,
    decode_payout,
    encode_payout,
)

LEAF = PayoutLeaf(2, (7).to_bytes(8, "big"), 3, 2, 2_500, 10_000, 500, 125, 99)


def raw_of(**fields: Any) -> bytes:
    values = LEAF._asdict() | {"weight": wide(2_500), "weight_total": wide(10_000)} | fields
    return encode(tuple(values.values()))


def refusal_of(raw: bytes) -> str:
    with pytest.raises(Invalid) as refusal:
        decode_payout(raw)
    return refusal.value.code


@pytest.mark.parametrize("payee", [b"", bytes(8), bytes(32)])
@pytest.mark.parametrize("weight", [0, 1, 2**64, 2**128 - 1])
def test_a_leaf_comes_back_with_weights_beyond_63_bits(payee: bytes, weight: int) -> None:
    """A weight is a sum of fee × bps: more than 2^63 for a fee of a million OPEN."""
    leaf = LEAF._replace(payee=payee, weight=weight, weight_total=2**128 - 1)
    assert decode_payout(encode_payout(leaf)) == leaf


def test_weights_travel_as_16_bytes() -> None:
    assert encode_payout(LEAF) == raw_of()


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": 256},
        {"payee": bytes(1)},
        {"payee": bytes(7)},
        {"payee": bytes(33)},
        {"version": 2**32},
        {"weight": bytes(15)},
        {"weight": 2_500},
        {"weight_total": bytes(17)},
        {"amount": 2**63},
        {"matures_ms": b""},
    ],
)
def test_what_does_not_fit_its_field_is_refused(fields: dict[str, Any]) -> None:
    assert refusal_of(raw_of(**fields)) == "payout.malformed"


def test_the_greatest_leaf_fits_and_one_byte_more_is_refused() -> None:
    top = 2**63 - 1
    greatest = PayoutLeaf(255, bytes(32), top, 2**32 - 1, 2**128 - 1, 2**128 - 1, top, top, top)
    assert len(encode_payout(greatest)) <= LEAF_BYTES_MAX
    assert refusal_of(bytes(LEAF_BYTES_MAX + 1)) == "payout.too_large"
    assert refusal_of(encode_payout(LEAF) + b"\0") == "payout.malformed"


@pytest.mark.parametrize(
    ("desc", "fields", "is_good"),
    [
        ("the exact part", {}, True),
        ("a grain more, which the largest remainder may give", {"amount": 126}, True),
        ("a grain less", {"amount": 124}, False),
        ("two grains more", {"amount": 127}, False),
        ("everything to the only one", {"weight": 10_000, "amount": 500}, True),
        ("a grain more than there is", {"weight": 10_000, "amount": 501}, False),
        ("a weight above the total", {"weight": 10_001, "amount": 500}, False),
        ("no weight", {"weight": 0, "amount": 0}, False),
        ("no weight at all", {"weight": 0, "weight_total": 0, "amount": 0}, False),
        ("nothing of nothing", {"part": 0, "amount": 0}, True),
    ],
)
def test_the_amount_is_the_floor_or_a_grain_more(
    desc: str, fields: dict[str, Any], is_good: bool
) -> None:
    leaf = LEAF._replace(**fields)
    if is_good:
        check_amount(leaf)
    else:
        with pytest.raises(Invalid, match=r"payout\.amount"):
            check_amount(leaf)


@given(
    st.integers(0, SUPPLY_GRAINS),
    st.lists(st.integers(1, 10**22), min_size=1, max_size=12),
)
def test_every_leaf_of_an_honest_split_passes(part: int, weights: list[int]) -> None:
    total = sum(weights)
    for weight, amount in zip(weights, split(part, list(enumerate(weights))), strict=True):
        check_amount(LEAF._replace(weight=weight, weight_total=total, part=part, amount=amount))
