"""One canonical encoding: msgpack arrays of unsigned integers, byte strings and arrays.

Why so strict: a hash or a signature is of bytes, so each value has exactly one encoding. A
message is believed only when its own re-encoding equals it. Size and array limits come before
decoding, since 10 MB of empty arrays would otherwise become 650 MB of objects.
Shapes are data, one per wire object; there are no hand-written decoders. A record of integers and
byte strings only is tried by one expression made of its fields, and so is a list of such records:
a call for each field took two thirds of a receipt's decoding. What does not pass is looked at
again, field by field, for the reason.
What this file does not know: what any object means.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Final

import msgpack

from consensus.primitives.errors import Invalid

INT_MAX: Final = 2**63 - 1
WIDE_BYTES: Final = 16
ARRAY_ITEMS_MAX: Final = 65_536  # of any one array, before its shape is known
DECODED_TOGETHER_MAX: Final = 64  # so that hostile bytes make few objects before they are refused

Checker = Callable[[Any], str | None]  # None when the value fits, else what is wrong


class Shape:
    """What a decoded value must look like; `check` returns what is wrong with it, or None.

    `test` says the same of an integer or a byte string as an expression over `{0}`, "" for others.
    `all_fit` says whether many values fit: of such, of a record of such, and of lists of either.
    """

    __slots__ = ("all_fit", "check", "items_max", "test")

    def __init__(
        self,
        check: Checker,
        items_max: int = 0,
        test: str = "",
        all_fit: Callable[[Sequence[Any]], bool] | None = None,
    ) -> None:
        self.check = check
        self.items_max = items_max  # the longest array anywhere inside
        self.test = test
        self.all_fit = all_fit or _all_values_test(test)


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
    items_fit, lengths = item.all_fit, range(min, max + 1)

    def check(value: Any) -> str | None:
        if type(value) is not tuple:
            return "not an array"
        if not min <= len(value) <= max:
            return "array length out of range"
        if items_fit is not None and items_fit(value):
            return None
        inner = item.check
        for member in value:
            wrong = inner(member)
            if wrong is not None:
                return wrong
        return None

    def all_fit(values: Sequence[Any]) -> bool:
        if {*map(type, values)} != {tuple}:
            return False
        if not all(length in lengths for length in {*map(len, values)}):
            return False
        return items_fit is not None and items_fit([*chain.from_iterable(values)])

    return Shape(check, _longest(max, item), all_fit=None if items_fit is None else all_fit)


def Record(*fields: Shape) -> Shape:
    """A positional array with exactly one value per field."""
    checks = tuple(field.check for field in fields)
    arity = len(checks)
    test = _row_test(fields)
    passes = _one_test(test, arity)

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

    return Shape(check, _longest(arity, *fields), all_fit=_all_test(test, arity))


# The expressions below are made of our own words only.


def _row_test(fields: tuple[Shape, ...]) -> str:
    """Whether v0, v1, … fit these fields, as one expression; "" if a field is an array."""
    if not all(field.test for field in fields):
        return ""
    tests = [field.test.format(f"v{place}") for place, field in enumerate(fields)]
    return " and ".join(tests)


def _names(arity: int) -> str:
    return "".join(f"v{place}, " for place in range(arity))


def _one_test(test: str, arity: int) -> Callable[..., bool] | None:
    """A function of the fields of a flat record."""
    return eval(f"lambda {_names(arity)}: {test}") if test else None


def _all_test(test: str, arity: int) -> Callable[[Sequence[Any]], bool] | None:
    """A function of a sequence of flat records; their types first, since bytes unpack as well."""
    if not test:
        return None
    are_rows = f"{{*map(type, rows)}} <= {{tuple}} and {{*map(len, rows)}} <= {{{arity}}}"
    all_fit: Callable[[Sequence[Any]], bool] = eval(
        f"lambda rows: {are_rows} and all([{test} for {_names(arity)} in rows])"
    )
    return all_fit


def _all_values_test(test: str) -> Callable[[Sequence[Any]], bool] | None:
    """A function of a sequence of integers or byte strings."""
    if not test:
        return None
    all_fit: Callable[[Sequence[Any]], bool] = eval(
        f"lambda values: all([{test.format('v')} for v in values])"
    )
    return all_fit


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


class Decoder:
    """Decodes many byte strings of one shape, each as `decode` does, at half its cost.

    They are unpacked as one array, and each is packed again alone: equal bytes show that the
    array's members begin and end where the byte strings do.
    """

    def __init__(self, shape: Shape, bytes_max: int, what: str) -> None:
        self._shape = shape
        self._bytes_max = bytes_max
        self._what = what
        self._items_max = max(shape.items_max, DECODED_TOGETHER_MAX)

    def decode(self, raws: Sequence[bytes]) -> list[Any]:
        """The values in order. Raises `Invalid` as `decode` does, for the first that is none."""
        found: list[Any] = []
        for start in range(0, len(raws), DECODED_TOGETHER_MAX):
            some = raws[start : start + DECODED_TOGETHER_MAX]
            values = self._together(some)
            if values is None:  # one by one, for the reason
                values = [decode(raw, self._shape, self._bytes_max, self._what) for raw in some]
            found += values
        return found

    def _together(self, raws: Sequence[bytes]) -> Sequence[Any] | None:
        if max(map(len, raws)) > self._bytes_max:
            return None
        header = b"\xdd" + len(raws).to_bytes(4, "big")  # an array of so many
        try:
            values = msgpack.unpackb(
                header + b"".join(raws),
                use_list=False,
                raw=False,
                strict_map_key=True,
                max_array_len=self._items_max,
                max_map_len=0,
                max_ext_len=0,
                max_str_len=0,
                max_bin_len=self._bytes_max,
            )
        except (ValueError, msgpack.exceptions.UnpackException, RecursionError):
            return None
        if [*map(_packer.pack, values)] != [*raws] or not self._fit(values):
            return None
        return values  # type: ignore[no-any-return]

    def _fit(self, values: Sequence[Any]) -> bool:
        if self._shape.all_fit is not None:
            return self._shape.all_fit(values)
        return {*map(self._shape.check, values)} <= {None}


def wide(value: int) -> bytes:
    """16 big-endian bytes of an amount that may pass 2^63 (weights, stake indices)."""
    assert 0 <= value < 2 ** (8 * WIDE_BYTES)
    return value.to_bytes(WIDE_BYTES, "big")


def from_wide(raw: bytes) -> int:
    """The integer of 16 big-endian bytes."""
    assert len(raw) == WIDE_BYTES
    return int.from_bytes(raw, "big")
