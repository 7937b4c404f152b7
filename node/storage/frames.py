"""Frames on the disk: how a log knows which of its bytes were written whole.

    magic 4 ‖ len u32 ‖ kind u8 ‖ [height u64] ‖ payload ‖ first 8 bytes of SHA-256 of the rest

Why a scan for the magic: a bad frame at the very end is what a crash leaves (never acknowledged:
it may be cut), and a bad frame with a good one after it is damage (acknowledged bytes are gone:
it may not). Only looking for a later good frame tells the two apart.
What this file does not know: what a payload means, and in which order files are read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, NamedTuple

CHECK_BYTES: Final = 8
LEN_BYTES: Final = 4
KIND_BYTES: Final = 1
HEIGHT_BYTES: Final = 8

# A payload from a peer may hold bytes that look like frames; each costs a hash to refuse.
# Beyond this many the answer is "damage", which stops the node: the safe one of the two.
CANDIDATES_MAX: Final = 10_000


class Frame(NamedTuple):
    """One record: where it starts in its file, and what it holds. `height` is 0 without one."""

    offset: int
    kind: int
    height: int
    payload: bytes


class Gap(NamedTuple):
    """Bytes start..stop that are in no good frame although a good one follows: damage."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class FrameFormat:
    """One family of logs: its magic, whether frames carry a height, the largest payload."""

    magic: bytes
    has_height: bool
    payload_bytes_max: int

    def __post_init__(self) -> None:
        assert len(self.magic) == 4

    @property
    def head_bytes(self) -> int:
        """Bytes before the payload."""
        return len(self.magic) + LEN_BYTES + KIND_BYTES + HEIGHT_BYTES * self.has_height

    @property
    def overhead_bytes(self) -> int:
        """Bytes of a frame beside its payload."""
        return self.head_bytes + CHECK_BYTES

    def encode(self, kind: int, payload: bytes, height: int = 0) -> bytes:
        """The frame's bytes."""
        assert 0 <= kind < 256
        assert len(payload) <= self.payload_bytes_max, "our own record is too large"
        assert self.has_height or height == 0
        head = self.magic + len(payload).to_bytes(LEN_BYTES, "big") + bytes([kind])
        if self.has_height:
            head += height.to_bytes(HEIGHT_BYTES, "big")
        body = head + payload
        return body + sha256(body).digest()[:CHECK_BYTES]

    def payload_length(self, head: bytes) -> int | None:
        """The payload's length that a frame's head tells, or None if it is no head."""
        if len(head) < self.head_bytes or not head.startswith(self.magic):
            return None
        length = int.from_bytes(head[4 : 4 + LEN_BYTES], "big")
        return length if length <= self.payload_bytes_max else None

    def read(self, data: bytes, offset: int) -> Frame | None:
        """The good frame at `offset` of `data`, or None."""
        start = offset + self.head_bytes
        length = self.payload_length(data[offset:start])
        if length is None or start + length + CHECK_BYTES > len(data):
            return None
        end = start + length
        check = sha256(memoryview(data)[offset:end]).digest()[:CHECK_BYTES]
        if check != data[end : end + CHECK_BYTES]:
            return None
        kind = data[offset + 4 + LEN_BYTES]
        height = int.from_bytes(data[start - HEIGHT_BYTES : start], "big") if self.has_height else 0
        return Frame(offset, kind, height, data[start:end])

    def size(self, frame: Frame) -> int:
        """Bytes of `frame` on the disk."""
        return self.overhead_bytes + len(frame.payload)

    def scan(self, data: bytes) -> Iterator[Frame | Gap]:
        """Good frames in order, and the gaps between them. A bad tail is not reported.

        The good part ends where the last frame ends, 0 if there is none.
        """
        offset = 0
        while offset < len(data):
            frame = self.read(data, offset)
            if frame is not None:
                yield frame
                offset += self.size(frame)
                continue
            found = self._next_good(data, offset + 1)
            if found is None:
                return
            yield Gap(offset, found)
            if self.read(data, found) is None:  # too many candidates to go on
                return
            offset = found

    def _next_good(self, data: bytes, offset: int) -> int | None:
        for _ in range(CANDIDATES_MAX):
            offset = data.find(self.magic, offset)
            if offset < 0:
                return None
            if self.read(data, offset) is not None:
                return offset
            offset += 1
        return offset


def read_all(log: FrameFormat, data: bytes) -> tuple[list[Frame], list[Gap], int]:
    """All good frames of `data`, the damage between them, and where the good part ends."""
    frames: list[Frame] = []
    gaps: list[Gap] = []
    end = 0
    for item in log.scan(data):
        if isinstance(item, Gap):
            gaps.append(item)
        else:
            frames.append(item)
            end = item.offset + log.size(item)
    return frames, gaps, end
