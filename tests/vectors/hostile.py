"""Bytes that nobody honest sends: chance, damaged vectors, and msgpack that promises too much."""

import random
from collections.abc import Iterator, Sequence

import msgpack

BOMBS = (
    b"\x91" * 10 + b"\xc0",
    b"\x91" * 400 + b"\x90",
    b"\x91" * 20_000,  # deeper than any stack
    b"\xdd\xff\xff\xff\xff",  # an array of 4 G items that are not there
    b"\xdc\xff\xff" + b"\x90" * 65_535,  # ten times its size in objects
    b"\xdc\xff\xff" + b"\x00" * 65_535,
    b"\xc6\xff\xff\xff\xff",  # 4 GB of bytes that are not there
    b"\xdb\xff\xff\xff\xff",  # the same as text
    b"\xdf\xff\xff\xff\xff",  # the same as a map
    b"\xc9\xff\xff\xff\xff\x01",  # the same as an extension
    b"\xd6\xff" + bytes(4),  # a timestamp
    b"\xc7\x00\xff",  # a timestamp of no bytes
    b"\x80",
    b"\x81\x01\x02",
    b"\x82\x01\x02\x01\x02",  # one key twice
    b"\x81\x90\x01",  # a key that cannot be hashed as a list
    b"\xa3abc",
    b"\xa1\xff",  # text that is no UTF-8
    b"\xc0",
    b"\xc1",  # never used in msgpack
    b"\xc2",
    b"\xc3",
    b"\xca\x7f\xc0\x00\x00",  # not a number
    b"\xcb" + bytes(8),
    b"\xff",  # −1
    b"\xd3" + b"\xff" * 8,
    b"\xcf" + b"\xff" * 8,  # above 2^63−1
    b"\xcf\x80" + bytes(7),
    b"\xcd\x00\x05",  # 5 in a longer form
    b"\xd9\x00",
    b"\xc5\x00\x01\x05",
    b"\x90",
    b"",
)
SMALL = tuple(bomb for bomb in BOMBS if len(bomb) < 64)


def hostile(rng: random.Random, goods: Sequence[bytes], count: int) -> Iterator[bytes]:
    """`count` inputs: the bombs first, then a mixture made from good ones."""
    yield from BOMBS[:count]
    spoils = (flipped, flipped, flipped, cut, lengthened, spliced, pierced, refilled, refilled)
    for number in range(count - len(BOMBS)):
        good = goods[number % len(goods)]
        if rng.random() < 0.1:
            yield rng.randbytes(rng.randrange(300))
        else:
            yield rng.choice(spoils)(rng, good, goods)


def flipped(rng: random.Random, good: bytes, goods: Sequence[bytes]) -> bytes:
    """One to four bits; mostly in the first 64 bytes, where heads and numbers are."""
    bad = bytearray(good or b"\0")
    for _ in range(rng.randrange(1, 5)):
        reach = len(bad) if rng.random() < 0.5 else min(64, len(bad))
        bad[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    return bytes(bad)


def cut(rng: random.Random, good: bytes, goods: Sequence[bytes]) -> bytes:
    return good[: rng.randrange(len(good) + 1)]


def lengthened(rng: random.Random, good: bytes, goods: Sequence[bytes]) -> bytes:
    return good + rng.randbytes(rng.randrange(1, 9))


def spliced(rng: random.Random, good: bytes, goods: Sequence[bytes]) -> bytes:
    """The front of one and the back of another."""
    other = rng.choice(goods)
    return good[: rng.randrange(len(good) + 1)] + other[rng.randrange(len(other) + 1) :]


def pierced(rng: random.Random, good: bytes, goods: Sequence[bytes]) -> bytes:
    """A bomb in place of some bytes."""
    start = rng.randrange(len(good) + 1)
    return good[:start] + rng.choice(SMALL) + good[start + rng.randrange(40) :]


def refilled(rng: random.Random, good: bytes, goods: Sequence[bytes]) -> bytes:
    """Well-formed msgpack with one item, at any depth, replaced, doubled or left out."""
    try:
        value = msgpack.unpackb(good)
    except (ValueError, msgpack.exceptions.UnpackException):
        return flipped(rng, good, goods)
    return replaced(rng, value)


def replaced(rng: random.Random, value: object) -> bytes:
    if not isinstance(value, list) or not value or rng.random() < 0.1:
        return other_item(rng, value)
    packed = [msgpack.packb(item) for item in value]
    place, chance = rng.randrange(len(packed)), rng.random()
    if chance < 0.05:
        del packed[place]
    elif chance < 0.1:
        packed.insert(place, packed[place])
    elif chance < 0.15:
        packed.reverse()
    else:
        packed[place] = replaced(rng, value[place])
    return msgpack.Packer().pack_array_header(len(packed)) + b"".join(packed)


def other_item(rng: random.Random, value: object) -> bytes:
    """An item of the same kind that differs, or a bomb."""
    if rng.random() < 0.1:
        return rng.choice(SMALL)
    if isinstance(value, int):
        near = (value + 1, abs(value - 1), 0, 1, 2, 2**8, 2**16, 2**31, 2**32, 2**63 - 1, 2**63)
        return bytes(msgpack.packb(rng.choice(near)))
    if isinstance(value, bytes) and value:
        others = (
            flipped(rng, value, ()), value + b"\0", value[:-1], b"", rng.randbytes(len(value)),
            bytes(len(value)), refilled(rng, value, ()),
        )  # fmt: skip
        return bytes(msgpack.packb(rng.choice(others)))
    return bytes(msgpack.packb(rng.randbytes(rng.randrange(40))))
