"""Headers and certificates of blocks whose payloads were dropped: files of their own, kept always.

Why not cut out of the block log: places in the database name bytes of its files, and both cannot
change at once. What is moved here is durable first, then the database names it here, and only a
later opening drops the old file, when nobody can still look for it there.
Why the last certificate is kept too: it proves a block of long ago to whom evidence speaks of one.
What this file does not know: when a payload may go.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from consensus.params import CERTIFICATE_BYTES_MAX, HEADER_BYTES_MAX
from consensus.primitives.encoding import encode
from node.ledger.wire.blocks import decode_block, encode_block
from node.storage.errors import FRESH_HOME, Damaged
from node.storage.frames import Frame, FrameFormat
from node.storage.segments import SEGMENT_BYTES, SEGMENTS_MAX, Place, SegmentLog

HEADS_NAME: Final = "heads"
KIND_HEAD: Final = 4
RECORD_BYTES_MAX: Final = HEADER_BYTES_MAX + 2 * CERTIFICATE_BYTES_MAX + 64
FORMAT: Final = FrameFormat(b"OLBF", has_height=True, payload_bytes_max=RECORD_BYTES_MAX)


class HeadLog:
    """Pruned blocks in order of height. There is no folder before the first. One writer."""

    def __init__(self, directory: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._log: SegmentLog | None = None
        self.height = 0
        """Of the newest one; 0: none."""
        if directory.is_dir():
            log = self._open()
            self.height = self._last_height(log)

    def append(self, height: int, block: bytes, certificate: bytes) -> Place:
        """Keep a block's head; durable only after `sync`. Heights only rise."""
        assert height > self.height
        pruned = encode_block(decode_block(block)._replace(payload=b""))
        place = self._open().append(KIND_HEAD, encode((pruned, certificate)), height)
        self.height = height
        return _marked(place)

    def sync(self) -> None:
        """Make all appended heads durable. Blocks for an fsync."""
        if self._log is not None:
            self._log.sync()

    def read(self, place: Place) -> Frame:
        """The frame at a place that `append` gave. Raises `Damaged` unless it is whole."""
        return self._open().read(place._replace(segment=place.segment - SEGMENTS_MAX))

    def places(self) -> Iterator[tuple[int, Place]]:
        """Height and place of every head, in order. Reads all of them."""
        log = self._open()
        for segment in log.segments:
            for place, frame in log.segment_frames(segment)[0]:
                yield frame.height, _marked(place)

    def close(self) -> None:
        """Sync, and let go of the files."""
        if self._log is not None:
            self._log.close()

    def _open(self) -> SegmentLog:
        if self._log is None:
            self._log = SegmentLog(self._directory, FORMAT, self._segment_bytes)
        return self._log

    def _last_height(self, log: SegmentLog) -> int:
        for segment in reversed(log.segments):
            frames, gaps = log.segment_frames(segment)
            if gaps:
                why = f"segment {segment:06d}, byte {gaps[0].start}"
                raise Damaged(f"{self._directory} is damaged", why=why, mend=FRESH_HOME)
            if frames:
                return frames[-1][1].height
        return 0


def is_head(place: Place) -> bool:
    """Whether a place is of this log, not of the block log."""
    return place.segment > SEGMENTS_MAX


def _marked(place: Place) -> Place:
    return place._replace(segment=place.segment + SEGMENTS_MAX)
