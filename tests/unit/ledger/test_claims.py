"""Claims on the wire: each list at its limit and one over, and the metadata of a row.

Headers, scores and the rules of statements are tested in test_shares.py, beside their formulas.
"""

from typing import Any

import pytest

from consensus.primitives.encoding import encode
from consensus.primitives.errors import Invalid
from node.ledger.wire import claims
from node.ledger.wire.claims import Span, Statement

EMPTY = Statement(1, b"\1" * 32, (), (), (), ())
TOP32 = 2**32 - 1


def refusal_of(raw: bytes) -> str:
    with pytest.raises(Invalid) as refusal:
        claims.decode_statement(raw)
    return refusal.value.code


def test_a_statement_comes_back_with_its_spans_named() -> None:
    made = EMPTY._replace(
        floors=(0, TOP32), paid=((1, 2, 3),), spans=(Span(0, 9, ((4, 5),)),), retrieved=((6, 7),)
    )
    found = claims.decode_statement(claims.encode_statement(made))
    assert found == made
    assert found.spans[0].holders == ((4, 5),)


@pytest.mark.parametrize(
    ("field", "item", "most"),
    [
        ("floors", 1, claims.PANEL_ROWS),
        ("paid", (1, 1, 1), claims.PAID_MAX),
        ("spans", (1, 1, ((1, 1),)), claims.PAID_MAX),
        ("retrieved", (1, 1), claims.RETRIEVED_MAX),
    ],
)
def test_each_list_ends_where_it_says(field: str, item: Any, most: int) -> None:
    claims.decode_statement(encode(EMPTY._replace(**{field: (item,) * most})))
    over = encode(EMPTY._replace(**{field: (item,) * (most + 1)}))
    assert refusal_of(over) == "statement.malformed"


@pytest.mark.parametrize(("holders", "is_good"), [(0, False), (1, True), (16, True), (17, False)])
def test_a_span_has_one_to_sixteen_holders(holders: int, is_good: bool) -> None:
    raw = encode(EMPTY._replace(spans=((1, 1, ((1, 1),) * holders),)))
    if is_good:
        assert len(claims.decode_statement(raw).spans[0].holders) == holders
    else:
        assert refusal_of(raw) == "statement.malformed"


@pytest.mark.parametrize(
    "change",
    [
        {"floors": (TOP32 + 1,)},
        {"paid": ((TOP32 + 1, 1, 1),)},
        {"paid": ((1, 2**63, 1),)},
        {"paid": ((1, 1),)},
        {"index_root": bytes(31)},
        {"version": 256},
    ],
)
def test_what_does_not_fit_its_field_is_refused(change: dict[str, Any]) -> None:
    assert refusal_of(encode(EMPTY._replace(**change))) == "statement.malformed"


def test_the_greatest_statement_fits_and_a_larger_is_refused_by_its_size() -> None:
    spans = (Span(TOP32, TOP32, ((TOP32, TOP32),)),) * 20
    full = EMPTY._replace(
        floors=(TOP32,) * 127,
        paid=((TOP32, 2**63 - 1, TOP32),) * 64,
        spans=spans,
        retrieved=((TOP32, TOP32),) * 4,
    )
    raw = claims.encode_statement(full)
    assert len(raw) <= claims.STATEMENT_BYTES_MAX
    assert claims.decode_statement(raw) == full
    assert refusal_of(bytes(claims.STATEMENT_BYTES_MAX + 1)) == "statement.too_large"


@pytest.mark.parametrize("meta", [(0, 0, 0), (1, 2, 3), (2**64 - 1, TOP32, TOP32)])
def test_metadata_of_a_row_is_16_bytes_big_endian(meta: tuple[int, int, int]) -> None:
    raw = claims.encode_meta(*meta)
    assert len(raw) == 16
    assert raw[:8] == meta[0].to_bytes(8, "big")
    assert claims.decode_meta(raw) == meta


@pytest.mark.parametrize("size", [0, 1_043, 1_045])
def test_a_row_leaf_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(Invalid, match=r"row_leaf\.length"):
        claims.decode_row_leaf(bytes(size))
