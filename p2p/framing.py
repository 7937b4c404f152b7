"""Length frames on a stream, and the strict codec of this floor's own few messages.

Why a codec of its own: this floor imports nothing of ours, and its messages (ping, status, peers,
address records, the reply envelope) need the same rule as all others: arrays, integers of
0..2^63-1 and bytes, each in its one shortest form, or refused.
What this file does not know: libp2p, and what any body means.
"""

import struct
from typing import Any, Final, Protocol

import msgpack
import trio

from p2p.errors import Misbehaving, NetworkError
from p2p.limits import CLOSE_S, DEPTH_MAX, ITEMS_MAX

INT_MAX: Final = 2**63 - 1
LENGTH_BYTES: Final = 4

Value = int | bytes | tuple["Value", ...]

_LENGTH = struct.Struct(">I")


class FrameStream(Protocol):
    """A duplex stream of whole frames to one peer.

    One task may read while another writes; two readers or two writers are a caller's bug. A cancel
    inside `read` or `write` resets the stream, since half a frame is gone; the connection stays.
    Read without pausing: a writer whose bytes nobody takes for 5 s loses its stream. Whoever opened
    one ends it with `part` or `reset`: closed only, it is held as long as the connection.
    `has_stalled`: a frame was begun and did not end in time, or before we gave up the first one.
    `has_broken_rules`: a frame had a length that none may have, or ended before its end.
    """

    has_stalled: bool
    has_broken_rules: bool

    async def read(self, bytes_max: int, timeout_s: float) -> bytes:
        """The next frame. `timeout_s` may be infinite: it bounds the wait for the frame's start.

        EndOfStream in order, Unreachable if it broke, TooSlow, Misbehaving above `bytes_max`.
        """
        ...

    async def write(self, body: bytes, timeout_s: float) -> None:
        """Send one frame of 1 byte or more. Unreachable if it broke, TooSlow: then it is reset."""
        ...

    async def close(self) -> None:
        """No more frames from us; what was written still arrives. Never raises."""
        ...

    async def reset(self) -> None:
        """Drop the stream both ways at once. Never raises."""
        ...


async def part(stream: FrameStream, bytes_max: int) -> None:
    """Close our side, give the peer a moment to take the rest and close its own; then drop it.

    `bytes_max`: what it may have sent before it heard us. More is not waited for: what is thrown
    away has cost us as much as what is read.
    """
    try:
        await stream.close()
        with trio.move_on_after(CLOSE_S):
            while bytes_max > 0:
                bytes_max -= len(await stream.read(bytes_max, CLOSE_S))
    except NetworkError:
        pass
    finally:
        await stream.reset()


def frame(body: bytes) -> bytes:
    """`body` with its length before it; an empty body is our own bug."""
    return frame_head(body) + body


def frame_head(body: bytes) -> bytes:
    """What stands before `body` in its frame."""
    assert body
    return _LENGTH.pack(len(body))


def frame_length(head: bytes, bytes_max: int) -> int:
    """The body's length from the 4 bytes before it; Misbehaving at 0 or above `bytes_max`."""
    length: int = _LENGTH.unpack(head)[0]
    if length == 0 or length > bytes_max:
        raise Misbehaving(f"a frame of {length} bytes, {bytes_max} allowed")
    return length


def encode(value: Value) -> bytes:
    """Canonical bytes of arrays, integers and bytes; anything else is our own bug."""
    _check(value, DEPTH_MAX, AssertionError)
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def decode(raw: bytes, bytes_max: int, items_max: int = ITEMS_MAX) -> Value:
    """The value of canonical bytes; Misbehaving for anything that does not re-encode to `raw`."""
    if len(raw) > bytes_max:
        raise Misbehaving(f"{len(raw)} bytes, {bytes_max} allowed")
    try:
        value = msgpack.unpackb(
            raw,
            use_list=False,
            raw=False,
            max_array_len=items_max,
            max_map_len=0,
            max_str_len=0,
            max_ext_len=0,
            max_bin_len=bytes_max,
        )
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise Misbehaving(f"not canonical: {type(error).__name__}") from None
    _check(value, DEPTH_MAX, Misbehaving)
    if msgpack.packb(value, use_bin_type=True) != raw:
        raise Misbehaving("not canonical: another form of the same value")
    return value  # type: ignore[no-any-return]  # _check has just looked at every part


def _check(value: object, depth: int, wrong: type[Exception]) -> None:
    kind = type(value)
    if kind is bytes:
        return
    if kind is int:
        if not 0 <= value <= INT_MAX:  # type: ignore[operator]  # kind is int
            raise wrong("an integer outside 0..2^63-1")
        return
    if kind is tuple:
        if depth == 0:
            raise wrong("arrays too deep")
        for part in value:  # type: ignore[attr-defined]  # kind is tuple
            _check(part, depth - 1, wrong)
        return
    raise wrong(f"neither integer, bytes nor array: {kind.__name__}")


def encode_reply(code: int, retry_ms: int, body: bytes) -> bytes:
    """`encode((code, retry_ms, body))`; msgpack would copy a large body three times more."""
    return _reply_head(code, retry_ms, len(body)) + body


def decode_reply(raw: bytes) -> tuple[int, int, bytes]:
    """(code, retry_ms, body) of what `encode_reply` made; Misbehaving for anything else.

    The body comes last, so that the form is canonical if all before it is.
    """
    try:
        value = msgpack.unpackb(
            raw, use_list=False, raw=False, max_array_len=3, max_map_len=0, max_str_len=0,
            max_ext_len=0, max_bin_len=len(raw),
        )  # fmt: skip
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise Misbehaving(f"not canonical: {type(error).__name__}") from None
    code, retry_ms, body = fields(value, int, int, bytes, what="reply")
    if not (0 <= code <= INT_MAX and 0 <= retry_ms <= INT_MAX):
        raise Misbehaving("an integer outside 0..2^63-1")
    if not raw.startswith(_reply_head(code, retry_ms, len(body))):
        raise Misbehaving("not canonical: another form of the same value")
    return code, retry_ms, body


def _reply_head(code: int, retry_ms: int, size: int) -> bytes:
    for byte, width in ((b"\xc4", 1), (b"\xc5", 2), (b"\xc6", 4)):
        if size < 1 << 8 * width:
            return encode((code, retry_ms, b""))[:-2] + byte + size.to_bytes(width, "big")
    raise AssertionError("a body above 4 GiB")


def fields(value: Value, *kinds: type, what: str) -> tuple[Any, ...]:
    """The fields of an array with exactly these kinds (int, bytes, tuple); else Misbehaving."""
    if type(value) is not tuple or tuple(type(part) for part in value) != kinds:
        raise Misbehaving(f"{what}: wrong shape")
    return value
