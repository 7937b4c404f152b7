"""One canonical encoding: msgpack arrays of unsigned integers, byte strings and arrays.

Why so strict: a hash or a signature is of bytes, so each value has exactly one encoding. A
message is believed only when its own re-encoding equals it. Size and array limits come before
decoding, since 10 MB of empty arrays would otherwise become 650 MB of objects.
Shapes are data, one per wire object; there are no hand-written decoders. A record of integers and
byte strings only is tried by one expression made of its fields: a call for each field took two
thirds of a receipt's decoding. What does not pass is looked at again, field by field, for the
reason.
What this file does not know: what any object means.
"""

from collections.abc import Callable
from typing import Any, Final

import msgpack

from consensus.primitives.errors import Invalid

INT_MAX: Final = 2**63 - 1
WIDE_BYTES: Final = 16
ARRAY_ITEMS_MAX: Final = 65_536  # of any one array, before its shape is known

Checker = Callable[[Any], str | None]  # None when the value fits, else what is wrong


class Shape:
    """What a decoded value must look like; `check` returns what is wrong with it, or None.

    `test` says the same of an integer or a byte string as an expression over `{0}`; "" for others.
    """

    __slots__ = ("check", "items_max", "test")

    def __init__(self, check: Checker, items_max: int = 0, test: str = "") -> None:
        self.check = check
        self.items_max = items_max  # the longest array anywhere inside
        self.test = test


def _integer(top: int) -> Shape:
    def check(value: Any) -> str | None:
        # `type is` and not isinstance: True is an int to isinstance and packs as another byte.
        if type(value) is not int:
            return "not an integer"
        return None if 0 <= value <= top else "integer out of range"

    return Shape(check, test=f"type({{0}}) is int and 0 <= {{0}} <= {top}")


def Bytes(max: int, min: int = 0) -> Shape:
    """A byte string of `min`..`max` bytes."""

    def check(value: Any) -> str | None:
        if type(value) is not bytes:
            return "not bytes"
        return None if min <= len(value) <= max else "length out of range"

    return Shape(check, test=f"type({{0}}) is bytes and {min} <= len({{0}}) <= {max}")


def Fixed(size: int) -> Shape:
    """A byte string of exactly `size` bytes."""
    return Bytes(size, size)


def Either(*sizes: int) -> Shape:
    """A byte string whose length is one of `sizes`, e.g. a hash or empty."""

    def check(value: Any) -> str | None:
        if type(value) is not bytes:
            return "not bytes"
        return None if len(value) in sizes else "length out of range"

    return Shape(check, test=f"type({{0}}) is bytes and len({{0}}) in {sizes}")


def ListOf(item: Shape, max: int, min: int = 0) -> Shape:
    """An array of `min`..`max` values of one shape."""

    def check(value: Any) -> str | None:
        if type(value) is not tuple:
            return "not an array"
        if not min <= len(value) <= max:
            return "array length out of range"
        inner = item.check
        for member in value:
            wrong = inner(member)
            if wrong is not None:
                return wrong
        return None

    return Shape(check, _longest(max, item))


def Record(*fields: Shape) -> Shape:
    """A positional array with exactly one value per field."""
    checks = tuple(field.check for field in fields)
    arity = len(checks)
    passes = _one_test(fields)

    def check(value: Any) -> str | None:
        if passes is not None and type(value) is tuple and len(value) == arity and passes(*value):
            return None
        if type(value) is not tuple:
            return "not an array"
        if len(value) != arity:
            return "wrong number of fields"
        for inner, member in zip(checks, value, strict=True):
            wrong = inner(member)
            if wrong is not None:
                return wrong
        return None

    return Shape(check, _longest(arity, *fields))


def _one_test(fields: tuple[Shape, ...]) -> Callable[..., bool] | None:
    """Whether values fit these fields, as one expression; None if a field is an array."""
    if not all(field.test for field in fields):
        return None
    names = [f"v{place}" for place in range(len(fields))]
    tests = [field.test.format(name) for field, name in zip(fields, names, strict=True)]
    passes: Callable[..., bool] = eval(
        f"lambda {', '.join(names)}: {' and '.join(tests) or True}"  # our own words only
    )
    return passes


def _longest(own: int, *inner: Shape) -> int:
    longest = own
    for shape in inner:
        if shape.items_max > longest:
            longest = shape.items_max
    return longest


U8: Final = _integer(2**8 - 1)
U16: Final = _integer(2**16 - 1)
U32: Final = _integer(2**32 - 1)
U63: Final = _integer(INT_MAX)
H: Final = Fixed(32)
SIG: Final = Fixed(64)
WIDE: Final = Fixed(WIDE_BYTES)

_packer = msgpack.Packer(use_bin_type=True)


def encode(value: Any) -> bytes:
    """Canonical bytes of nested tuples or lists of int 0..2^63-1 and bytes."""
    packed: bytes = _packer.pack(value)
    return packed


def decode(raw: bytes, shape: Shape, bytes_max: int, what: str) -> Any:
    """The value in `raw` as tuples, believed only if it fits `shape` and is canonical.

    Raises `Invalid` with code `{what}.too_large`, `{what}.malformed` or `{what}.not_canonical`;
    nothing else escapes, whatever the bytes.
    """
    if len(raw) > bytes_max:
        raise Invalid(f"{what}.too_large", bytes=len(raw), bytes_max=bytes_max)
    items_max = min(ARRAY_ITEMS_MAX, shape.items_max)
    try:
        value = msgpack.unpackb(
            raw,
            use_list=False,
            raw=False,
            strict_map_key=True,
            max_array_len=items_max,
            max_map_len=0,
            max_ext_len=0,
            max_str_len=0,
            max_bin_len=bytes_max,
        )
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise Invalid(f"{what}.malformed", why=type(error).__name__) from None
    wrong = shape.check(value)
    if wrong is not None:
        raise Invalid(f"{what}.malformed", why=wrong)
    if _packer.pack(value) != raw:
        raise Invalid(f"{what}.not_canonical")
    return value


def wide(value: int) -> bytes:
    """16 big-endian bytes of an amount that may pass 2^63 (weights, stake indices)."""
    assert 0 <= value < 2 ** (8 * WIDE_BYTES)
    return value.to_bytes(WIDE_BYTES, "big")


def from_wide(raw: bytes) -> int:
    """The integer of 16 big-endian bytes."""
    assert len(raw) == WIDE_BYTES
    return int.from_bytes(raw, "big")
