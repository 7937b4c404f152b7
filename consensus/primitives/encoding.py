"""One canonical encoding: msgpack arrays of unsigned integers, byte strings and arrays.

Why so strict: a hash or a signature is of bytes, so each value has exactly one encoding. A
message is believed only when its own re-encoding equals it.
Shapes are data, one per wire object; there are no hand-written decoders. msgspec tests types,
ranges and lengths while it unpacks, so hostile bytes make no object that does not fit: otherwise
10 MB of empty arrays would become 650 MB.
What this file does not know: what any object means.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import eq
from typing import Annotated, Any, Final, Generic, Literal, TypeVar

import msgspec

from consensus.primitives.errors import Invalid

INT_MAX: Final = 2**63 - 1
WIDE_BYTES: Final = 16
DECODED_TOGETHER_MAX: Final = 64  # so that hostile bytes make few objects before they are refused

Fits = Callable[[Any], bool]
T = TypeVar("T")


class Shape:
    """What a decoded value must look like.

    `kind` is msgspec's type; `fits` tells the rest of a value of that type, where there is any.
    """

    __slots__ = ("_decoder", "fits", "kind")

    def __init__(self, kind: Any, fits: Fits | None = None) -> None:
        self.kind = kind
        self.fits = fits
        self._decoder: msgspec.msgpack.Decoder[Any] | None = None

    def unpack(self, raw: bytes) -> Any:
        """The value of this shape in `raw`, canonical or not; raises ValueError, its reason."""
        if self._decoder is None:  # most shapes are never met by a short command
            self._decoder = msgspec.msgpack.Decoder(self.kind)
        value = self._decoder.decode(raw)
        if self.fits is not None and not self.fits(value):
            raise ValueError("length out of range")
        return value


def Integer(max: int, min: int = 0) -> Shape:
    """An integer of `min`..`max`."""
    return Shape(Annotated[int, msgspec.Meta(ge=min, le=max)])


def OneOf(*numbers: int) -> Shape:
    """An integer that is one of `numbers`."""
    return Shape(Literal[numbers])


def Bytes(max: int, min: int = 0) -> Shape:
    """A byte string of `min`..`max` bytes."""
    return Shape(Annotated[bytes, msgspec.Meta(min_length=min, max_length=max)])


def Fixed(size: int) -> Shape:
    """A byte string of exactly `size` bytes."""
    return Bytes(size, size)


def Either(*sizes: int) -> Shape:
    """A byte string whose length is one of `sizes`, e.g. a hash or empty."""
    return Shape(Bytes(max(sizes), min(sizes)).kind, lambda value: len(value) in sizes)


def ListOf(item: Shape, max: int, min: int = 0) -> Shape:
    """An array of `min`..`max` values of one shape."""
    many: Any = tuple[item.kind, ...]  # type: ignore[name-defined]  # a type made here
    kind = Annotated[many, msgspec.Meta(min_length=min, max_length=max)]
    one_fits = item.fits
    return Shape(kind, None if one_fits is None else lambda value: all(map(one_fits, value)))


def Record(*fields: Shape) -> Shape:
    """A positional array with exactly one value per field."""
    kind: Any = tuple[tuple(field.kind for field in fields)]  # type: ignore[misc]  # made here
    rest = [(place, field.fits) for place, field in enumerate(fields) if field.fits is not None]

    def rest_fits(value: Any) -> bool:
        for at, fits in rest:  # noqa: SIM110  # half the cost of `all` over a generator
            if not fits(value[at]):
                return False
        return True

    return Shape(kind, rest_fits if rest else None)


U8: Final = Integer(2**8 - 1)
U16: Final = Integer(2**16 - 1)
U32: Final = Integer(2**32 - 1)
U63: Final = Integer(INT_MAX)
H: Final = Fixed(32)
SIG: Final = Fixed(64)
WIDE: Final = Fixed(WIDE_BYTES)

_encode: Final = msgspec.msgpack.Encoder().encode


def encode(value: Any) -> bytes:
    """Canonical bytes of nested tuples or lists of int 0..2^63-1 and bytes."""
    return _encode(value)


def decode(raw: bytes, shape: Shape, bytes_max: int, what: str) -> Any:
    """The value in `raw` as tuples, believed only if it fits `shape` and is canonical.

    Raises `Invalid` with code `{what}.too_large`, `{what}.malformed` or `{what}.not_canonical`;
    nothing else escapes, whatever the bytes.
    """
    if len(raw) > bytes_max:
        raise Invalid(f"{what}.too_large", bytes=len(raw), bytes_max=bytes_max)
    try:
        value = shape.unpack(raw)
    except ValueError as error:  # msgspec's own are such
        raise Invalid(f"{what}.malformed", why=str(error)) from None
    if _encode(value) != raw:
        raise Invalid(f"{what}.not_canonical")
    return value


def makes_each(kind: type[T]) -> Callable[[Iterable[Any]], Iterable[T]]:
    """What makes many named tuples as `kind._make` makes one, without a call for each.

    The values must have as many fields as `kind`: its shape has told so.
    """
    return partial(map, partial(tuple.__new__, kind))


class Decoder(Generic[T]):
    """Decodes many byte strings as `alone` decodes each, at half its cost.

    They are unpacked as one array, and each is packed again alone: equal bytes show that the
    array's members begin and end where the byte strings do. `shape` may be narrower than what
    `alone` takes, never wider; `make_all` gives the values of many that fit it.
    """

    def __init__(
        self,
        shape: Shape,
        bytes_max: int,
        make_all: Callable[[Sequence[Any]], Iterable[T]],
        alone: Callable[[bytes], T],
    ) -> None:
        self._many = ListOf(shape, DECODED_TOGETHER_MAX)
        self._bytes_max = bytes_max
        self._make_all = make_all
        self._alone = alone

    def decode(self, raws: Sequence[bytes]) -> list[T]:
        """The values in order. Raises what `alone` raises, for the first that is none."""
        found: list[T] = []
        for start in range(0, len(raws), DECODED_TOGETHER_MAX):
            some = raws[start : start + DECODED_TOGETHER_MAX]
            values = self._together(some)
            found += map(self._alone, some) if values is None else self._make_all(values)
        return found

    def _together(self, raws: Sequence[bytes]) -> Sequence[Any] | None:
        if max(map(len, raws)) > self._bytes_max:
            return None
        header = b"\xdd" + len(raws).to_bytes(4, "big")  # an array of so many
        try:
            values = self._many.unpack(header + b"".join(raws))
        except ValueError:
            return None
        if not all(map(eq, map(_encode, values), raws)):  # as many as the header says
            return None
        return values  # type: ignore[no-any-return]


def wide(value: int) -> bytes:
    """16 big-endian bytes of an amount that may pass 2^63 (weights, stake indices)."""
    assert 0 <= value < 2 ** (8 * WIDE_BYTES)
    return value.to_bytes(WIDE_BYTES, "big")


def from_wide(raw: bytes) -> int:
    """The integer of 16 big-endian bytes."""
    assert len(raw) == WIDE_BYTES
    return int.from_bytes(raw, "big")
