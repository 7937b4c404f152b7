"""Frames and the codec: one form of each value, named bounds, and only the named error."""

import random

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p import framing
from p2p.errors import Misbehaving
from p2p.framing import INT_MAX, decode, encode, fields, frame, frame_length, part

VALUES = st.recursive(
    st.integers(0, INT_MAX) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=5).map(tuple),
    max_leaves=12,
)


@given(VALUES)
def test_what_we_encode_we_decode(value):
    try:
        raw = encode(value)
    except AssertionError:
        return  # deeper than we ever nest
    assert decode(raw, len(raw)) == value


@pytest.mark.parametrize(
    ("raw", "desc"),
    [
        (b"\xcc\x01", "an integer not in its shortest form"),
        (b"\xff", "a negative integer"),
        (b"\xcf" + b"\xff" * 8, "an integer above 2^63-1"),
        (b"\xc3", "a truth value"),
        (b"\xc0", "nil"),
        (b"\xcb" + bytes(8), "a float"),
        (b"\xa1a", "text"),
        (b"\x80", "a map"),
        (b"\xd4\x01\x00", "an extension"),
        (b"\xc5\x00\x01a", "bytes with a longer head than needed"),
        (b"\xdc\x00\x01\x01", "an array with a longer head than needed"),
        (b"\x01\x02", "a second value behind"),
        (b"\x92\x01", "an array cut off"),
        (b"", "nothing"),
        (b"\x91" * 7 + b"\x01", "arrays too deep"),
        (msgpack.packb([0] * 129), "an array too long"),
        (b"\xdd\xff\xff\xff\xff", "an array said to be huge"),
        (b"\xc6\xff\xff\xff\xff", "bytes said to be huge"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_any_other_form_is_refused(raw, desc):
    with pytest.raises(Misbehaving):
        decode(raw, 1_000)


def test_more_bytes_than_allowed_are_refused():
    raw = encode(bytes(10))
    assert decode(raw, len(raw)) == bytes(10)
    with pytest.raises(Misbehaving):
        decode(raw, len(raw) - 1)


def test_flipped_bits_and_random_bytes_raise_only_misbehaving():
    rng = random.Random("framing")
    good = encode((1, b"key" * 11, (b"/ip4/1.2.3.4/tcp/1", 70_000), INT_MAX))
    for turn in range(20_000):
        if turn % 2:
            raw = bytearray(good)
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        else:
            raw = bytearray(rng.randbytes(rng.randrange(40)))
        try:
            value = decode(bytes(raw), 1_000)
        except Misbehaving:
            continue
        assert encode(value) == bytes(raw)


def test_fields_tells_integers_from_truth_and_counts_them():
    assert fields((1, b"x"), int, bytes, what="x") == (1, b"x")
    for wrong in ((True, b"x"), (1,), (1, b"x", 2), b"x", 7):
        with pytest.raises(Misbehaving):
            fields(wrong, int, bytes, what="x")


def test_frame_length_holds_its_bounds():
    assert frame_length(frame(bytes(5))[:4], 5) == 5
    for head in (b"\0\0\0\0", b"\0\0\0\x06", b"\xff\xff\xff\xff"):
        with pytest.raises(Misbehaving):
            frame_length(head, 5)


class Talkative:
    """Its other side has frames of `size` bytes to say, without end."""

    def __init__(self, size):
        self.size, self.asked, self.is_closed, self.is_reset = size, [], False, False

    async def read(self, bytes_max, timeout_s):
        self.asked.append(bytes_max)
        if self.size > bytes_max:
            raise Misbehaving("too long")
        return bytes(self.size)

    async def close(self):
        self.is_closed = True

    async def reset(self):
        self.is_reset = True


@pytest.mark.parametrize(
    ("size", "asked"), [(30, [64, 34, 4]), (32, [64, 32]), (64, [64]), (65, [64])]
)
async def test_who_parts_takes_no_more_than_was_under_way(size, asked):
    """What is thrown away costs as much as what is read: 12 ms a refused question, it was."""
    stream = Talkative(size)
    await part(stream, 64)
    assert stream.asked == asked
    assert stream.is_closed
    assert stream.is_reset


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_535, 65_536, 1 << 20])
def test_a_reply_is_the_canonical_array_of_its_three_fields(size):
    body = b"b" * size
    for code, retry_ms in ((0, 0), (5, 1_000), (300, 2**40)):
        raw = framing.encode_reply(code, retry_ms, body)
        assert raw == framing.encode((code, retry_ms, body))
        assert framing.decode_reply(raw) == (code, retry_ms, body)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x93\x00\x00",
        b"\x93\x00\x00\xc5\x00\x01x",  # the body's length in more bytes than it needs
        b"\x93\xcc\x00\x00\xc4\x01x",  # the code in more bytes than it needs
        b"\xdc\x00\x03\x00\x00\xc4\x01x",
        b"\x93\x00\x00\xc4\x01xy",
        b"\x93\x00\x00\xa1x",
        b"\x93\xff\x00\xc4\x01x",
        b"\x93\x00\x00\x00",
        b"\x92\x00\x00",
        b"\x94\x00\x00\xc4\x01x\x00",
        b"\x93\xcf\x80\x00\x00\x00\x00\x00\x00\x00\x00\xc4\x01x",
        b"\x93\xc3\x00\xc4\x01x",
    ],
)
def test_any_other_form_of_a_reply_is_misbehaving(raw):
    with pytest.raises(Misbehaving):
        framing.decode_reply(raw)
