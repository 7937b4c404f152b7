"""One value, one encoding: whatever bytes come, only canonical ones of the right shape pass."""

from collections.abc import Sequence
from functools import partial

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.primitives.encoding import (
    DECODED_TOGETHER_MAX,
    INT_MAX,
    SIG,
    U8,
    U16,
    U32,
    U63,
    Bytes,
    Decoder,
    Either,
    Fixed,
    H,
    Integer,
    ListOf,
    OneOf,
    Record,
    Shape,
    decode,
    encode,
    from_wide,
    wide,
)
from consensus.primitives.errors import Invalid

PAIR = Record(U63, Bytes(8))
MANY = ListOf(PAIR, 4)


def refusal(raw: bytes, shape: Shape, bytes_max: int = 1_000) -> str:
    with pytest.raises(Invalid) as refused:
        decode(raw, shape, bytes_max, "x")
    return refused.value.code


@given(st.lists(st.tuples(st.integers(0, INT_MAX), st.binary(max_size=8)), max_size=4))
def test_what_is_encoded_comes_back(rows: list[tuple[int, bytes]]) -> None:
    value = tuple(rows)
    assert decode(encode(value), MANY, 1_000, "x") == value


@given(st.binary(max_size=64))
def test_any_bytes_are_refused_or_are_their_own_encoding(raw: bytes) -> None:
    for shape in (MANY, PAIR, U63, Bytes(64), Record(H, SIG)):
        try:
            value = decode(raw, shape, 64, "x")
        except Invalid:
            continue
        assert encode(value) == raw


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=3)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=6,
)  # fmt: skip


@given(PLAIN)
def test_any_msgpack_passes_only_in_shape(value: object) -> None:
    raw = msgpack.packb(value, use_bin_type=True)
    try:
        found = decode(raw, PAIR, 1_000, "x")
    except Invalid:
        return
    number, data = found
    assert type(number) is int
    assert type(data) is bytes
    assert encode(found) == raw


@pytest.mark.parametrize(
    ("shape", "top"), [(U8, 2**8 - 1), (U16, 2**16 - 1), (U32, 2**32 - 1), (U63, 2**63 - 1)]
)
def test_integers_end_where_they_say(shape: Shape, top: int) -> None:
    assert decode(encode(top), shape, 16, "x") == top
    assert decode(encode(0), shape, 16, "x") == 0
    assert refusal(msgpack.packb(top + 1), shape) == "x.malformed"
    assert refusal(msgpack.packb(-1), shape) == "x.malformed"


@pytest.mark.parametrize(
    ("shape", "good", "bad"),
    [
        (Bytes(4, 1), [b"a", b"abcd"], [b"", b"abcde"]),
        (Fixed(3), [b"abc"], [b"ab", b"abcd"]),
        (Integer(9, 2), [2, 9], [1, 10]),
        (OneOf(0, 2), [0, 2], [1, 3, True, b""]),
        (Either(0, 2), [b"", b"ab"], [b"a", b"abc"]),
        (ListOf(U8, 3, 1), [(1,), (1, 2, 3)], [(), (1, 2, 3, 4)]),
        (Record(U8, U8), [(1, 2)], [(1,), (1, 2, 3)]),
    ],
)
def test_both_sides_of_each_length(shape: Shape, good: list[object], bad: list[object]) -> None:
    for value in good:
        assert decode(encode(value), shape, 100, "x") == value
    for value in bad:
        assert refusal(encode(value), shape) == "x.malformed"


@pytest.mark.parametrize(
    ("desc", "raw"),
    [
        ("an integer in two bytes", b"\xcc\x01"),
        ("an integer in nine bytes", b"\xcf" + bytes(7) + b"\x01"),
        ("bytes with a long head", b"\xc5\x00\x01a"),
    ],
)
def test_longer_form_of_the_same_value_is_refused(desc: str, raw: bytes) -> None:
    shape = Bytes(8) if raw[0] == 0xC5 else U63
    assert refusal(raw, shape) == "x.not_canonical", desc


@pytest.mark.parametrize(
    "value", [True, False, None, 1.5, "text", {1: 2}, msgpack.ExtType(1, b"x"), [True], -1]
)
def test_other_types_are_refused(value: object) -> None:
    raw = msgpack.packb(value, use_bin_type=True)
    assert refusal(raw, U63) == "x.malformed"
    assert refusal(raw, ListOf(U63, 2)) == "x.malformed"


@given(st.integers(-1, 2**64 - 1) | st.binary(max_size=70) | st.booleans(), st.data())
def test_a_record_passes_exactly_when_each_field_does(one: object, data: st.DataObject) -> None:
    fields = (U8, U16, U32, U63, H, SIG, Bytes(8, 1), Either(0, 64), Record(Either(0, 2)))
    good = (255, 2**16 - 1, 2**32 - 1, INT_MAX, bytes(32), bytes(64), b"12345678", b"", (b"",))
    place = data.draw(st.integers(0, len(fields) - 1))
    raw = encode((*good[:place], one, *good[place + 1 :]))
    assert passes(raw, Record(*fields)) == passes(encode(one), fields[place])
    assert passes(encode(good), Record(*fields))
    assert not passes(encode(good[:-1]), Record(*fields))
    assert passes(encode(()), Record())


def passes(raw: bytes, shape: Shape) -> bool:
    try:
        decode(raw, shape, 1_000, "x")
    except Invalid:
        return False
    return True


@given(st.lists(st.sampled_from([b"", b"a", b"ab", b"abc"]), max_size=4))
def test_each_of_a_list_has_one_of_the_lengths(values: list[bytes]) -> None:
    fit = all(len(value) in (0, 2) for value in values)
    assert passes(encode(values), ListOf(Either(0, 2), 4)) == fit
    rows = [(value, 1) for value in values]
    assert passes(encode(rows), ListOf(Record(Either(0, 2), U8), 4)) == fit


def test_true_is_not_one() -> None:
    """To isinstance it is; its bytes are others."""
    assert refusal(b"\xc3", U8) == "x.malformed"


@pytest.mark.parametrize("raw", [b"", b"\x92\x01", b"\x01\x01", b"\xc1"])
def test_torn_or_surplus_bytes_are_refused(raw: bytes) -> None:
    assert refusal(raw, Record(U8, U8)) == "x.malformed"


def test_size_is_looked_at_before_anything_else() -> None:
    raw = encode((1, b"abc"))
    assert decode(raw, PAIR, len(raw), "x") == (1, b"abc")
    assert refusal(raw, PAIR, len(raw) - 1) == "x.too_large"


def test_arrays_are_bounded_before_they_are_built() -> None:
    """10 MB of empty arrays would become 650 MB of objects."""
    raw = b"\xdd" + (1_000_000).to_bytes(4, "big") + b"\x90" * 1_000_000
    assert refusal(raw, ListOf(ListOf(U8, 2), 4), 2_000_000) == "x.malformed"
    assert refusal(b"\x91" * 900 + b"\x01", MANY, 2_000) == "x.malformed"
    for head in (b"\xdd", b"\xc6"):  # four thousand million items, or bytes, that do not come
        assert refusal(head + b"\xff" * 4, ListOf(Bytes(2**33), 2**33), 100) == "x.malformed"


def one_by_one(raws: Sequence[bytes], shape: Shape) -> list[object] | str:
    try:
        return [decode(raw, shape, 40, "x") for raw in raws]
    except Invalid as refused:
        return refused.code


def many_at_once(raws: Sequence[bytes], shape: Shape) -> list[object] | str:
    try:
        decoder = Decoder(shape, 40, list, lambda raw: decode(raw, shape, 40, "x"))
        return decoder.decode(raws)
    except Invalid as refused:
        return refused.code


SHAPES = (PAIR, MANY, U63, Record(PAIR, U8), ListOf(MANY, 3), ListOf(U8, 3, 1))
GOOD_OR_BAD = st.sampled_from(
    [
        *map(encode, [(7, b"x"), (8, b""), ((7, b"x"),), (), ((), ()), 3, (3,), ((1, b""), 2)]),
        *map(encode, [(7, b"x" * 9), ((7, b"x"),) * 5, (-1, b""), (True, b""), b"ab", (b"ab",)]),
        *[b"", b"\x92\x07", b"\x92\xcc\x07\xc4\x00", b"\xc1", b"\x01\x01", b"\x90" * 41],
    ]
)


@given(st.sampled_from(SHAPES), st.lists(GOOD_OR_BAD | st.binary(max_size=6), max_size=6))
def test_many_at_once_are_what_each_is_alone(shape: Shape, raws: list[bytes]) -> None:
    assert many_at_once(raws, shape) == one_by_one(raws, shape)


@given(st.lists(st.tuples(st.integers(0, INT_MAX), st.binary(max_size=8)), max_size=200))
def test_more_than_are_decoded_together_come_back_in_order(rows: list[tuple[int, bytes]]) -> None:
    assert many_at_once([encode(row) for row in rows], PAIR) == rows


def test_many_that_are_cut_elsewhere_are_refused() -> None:
    """The joined bytes are those of two good records; the byte strings are not."""
    joined = encode((1, b"abc")) + encode((2, b"def"))
    for at in range(len(joined) + 1):
        raws = [joined[:at], joined[at:]]
        expected = [(1, b"abc"), (2, b"def")] if at * 2 == len(joined) else "x.malformed"
        assert many_at_once(raws, PAIR) == expected


def test_first_bad_one_of_many_gives_the_reason() -> None:
    raws = [encode((1, b""))] * (DECODED_TOGETHER_MAX + 3)
    raws[-2:] = [b"\x92\xcc\x07\xc4\x00", b"\xc1"]
    assert many_at_once(raws, PAIR) == "x.not_canonical"


def test_what_a_narrower_shape_misses_is_decoded_alone() -> None:
    """So it may still pass, or be refused for a reason that the narrow shape does not know."""

    def alone(raw: bytes) -> str:
        number: int = decode(raw, U8, 40, "x")
        if number == 2:
            raise Invalid("x.two")
        return f"alone {number}"

    decoder = Decoder(OneOf(1, 3), 40, partial(map, "together {}".format), alone)
    assert decoder.decode([b"\1", b"\3"]) == ["together 1", "together 3"]
    assert decoder.decode([b"\1", b"\4"]) == ["alone 1", "alone 4"]
    with pytest.raises(Invalid, match=r"x\.two"):
        decoder.decode([b"\1", b"\2"])


def test_wide_amounts_keep_their_order_as_bytes() -> None:
    values = [0, 1, 2**63, 2**64 + 1, 2**128 - 1]
    assert sorted(wide(value) for value in values) == [wide(value) for value in values]
    assert [from_wide(wide(value)) for value in values] == values
    with pytest.raises(AssertionError):
        wide(2**128)


def test_refusal_tells_its_facts_in_one_line() -> None:
    assert str(Invalid("a.b")) == "a.b"
    assert str(Invalid("a.b", n=1, key=b"\1\2")) == "a.b (n=1, key=0102)"
    assert "…" in str(Invalid("a.b", raw=bytes(100)))
