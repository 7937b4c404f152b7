"""The block log: every decided block with its certificate, in order. The truth; the rest is index.

Why it is written before the database: LevelDB may silently reopen at an older whole batch when
its log was cut, and these records then bring it forward again.
Why a frame says whether it was appended behind unsynced ones: up to 64 blocks share one sync, and
a power cut before it may leave the later of them whole and an earlier one torn. Such a hole was
never acknowledged and may be cut; a hole before a frame that followed a sync is damage.
Why a log may begin with a footing: a node that started from a snapshot holds no older blocks, and
this log, not the index beside it, must say what its first block stands on.
What this file does not know: what a block contains, or whether its certificate is good.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from consensus.primitives.encoding import Bytes, Record, decode, encode
from consensus.primitives.errors import Invalid
from node.storage.errors import FRESH_HOME, Damaged
from node.storage.frames import Frame, FrameFormat
from node.storage.headlog import HEADS_NAME, HeadLog, is_head
from node.storage.segments import SEGMENT_BYTES, Place, SegmentLog

BLOCK_BYTES_MAX: Final = 2 << 20  # header, payload of 1 MiB, last certificate
CERTIFICATE_BYTES_MAX: Final = 8 << 10
RECORD_BYTES_MAX: Final = BLOCK_BYTES_MAX + CERTIFICATE_BYTES_MAX + 16

MAGIC: Final = b"OLBF"
KIND_BLOCK: Final = 1  # all before it was synced
KIND_FOLLOWING: Final = 2  # what is before it may not have been
KIND_FOOTING: Final = 3  # the first frame of a log that does not begin at height 1

FORMAT: Final = FrameFormat(MAGIC, has_height=True, payload_bytes_max=RECORD_BYTES_MAX)
_RECORD: Final = Record(Bytes(BLOCK_BYTES_MAX), Bytes(CERTIFICATE_BYTES_MAX))


class BlockRecord(NamedTuple):
    """What one frame holds: the encoded block and the certificate that decided it."""

    height: int
    block: bytes
    certificate: bytes


class BlockLog:
    """Blocks in order of height, without holes. One writer; reads from any thread."""

    def __init__(self, directory: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Open or make the log. Raises `Damaged` for a bad frame that is not a torn tail."""
        self._log = SegmentLog(directory, FORMAT, segment_bytes)
        self.heads = HeadLog(directory.with_name(HEADS_NAME), segment_bytes)
        """Blocks whose payloads were dropped."""
        newest = self._without_unsynced(self._log.newest_frames())
        self.footing = b""
        """What the first block stands on, as `rebase` was given it; empty: on genesis."""
        self._drop_before_footing()
        if newest != list(range(newest[0], newest[0] + len(newest)) if newest else ()):
            raise self._damaged(self._log.segments[-1], 0)
        self.height = newest[-1] if newest else self._last_of_older()
        """Height of the newest block, 0 if there is none."""

    @property
    def cut_bytes(self) -> int:
        """Bytes of a torn tail that this opening cut."""
        return self._log.cut_bytes

    def append(self, height: int, block: bytes, certificate: bytes) -> Place:
        """Write the next block; durable only after `sync`."""
        assert self.height in (0, height - 1), "a block log has no holes"
        kind = KIND_BLOCK if self._log.is_synced else KIND_FOLLOWING
        place = self._log.append(kind, encode((block, certificate)), height)
        self.height = height
        return place

    def rebase(self, height: int, footing: bytes) -> None:
        """Begin again above `height`, on `footing`. Durable when this returns.

        All blocks held go: they are below, and peers have them. An end of the process leaves the
        old log or the new one.
        """
        assert height > self.height, "a log stands on newer ground or not at all"
        assert footing
        self._log.next_segment()
        self._log.append(KIND_FOOTING, footing, height)
        self._log.sync()
        self.height = height
        self._drop_before_footing()

    def _drop_before_footing(self) -> None:
        """Read the footing, and drop segments that an ended process left before it."""
        segments = self._log.segments
        for segment in (segments[-1], segments[0]):
            frame = self._first_frame(segment)
            if frame is not None and frame.kind == KIND_FOOTING:
                while self._log.segments[0] < segment:
                    self._log.drop(self._log.segments[0])
                self.footing, self._footing_height = frame.payload, frame.height
                return

    @property
    def first(self) -> int:
        """Height of the first block that this log holds or will hold."""
        return self._footing_height + 1 if self.footing else 1

    def sync(self) -> None:
        """Make all appended blocks durable. Blocks for an fsync."""
        self._log.sync()

    def read(self, place: Place) -> BlockRecord:
        """The block at `place`, one of `heads` without payload. Raises `Damaged` unless whole."""
        return self._record(self.heads.read(place) if is_head(place) else self._log.read(place))

    def drop_pruned(self) -> None:
        """Remove the segments of which `heads` holds every block."""
        segments = self._log.segments
        for segment, behind in pairwise(segments):
            first = self._first_height(behind)
            if first is None or first > self.heads.height + 1:
                return
            self._log.drop(segment)

    @property
    def has_dropped(self) -> bool:
        """Whether the oldest block here stands on blocks that were dropped."""
        frame = self._first_frame(self._log.segments[0])
        return frame is not None and frame.kind != KIND_FOOTING and frame.height > 1

    def records_from(self, height: int) -> Iterator[tuple[Place, BlockRecord]]:
        """All blocks from `height` on, in order. Raises `Damaged` at a hole or a bad frame."""
        expected = height
        for segment in self._log.segments[self._segment_of(height) :]:
            frames, gaps = self._log.segment_frames(segment)
            if gaps:
                raise self._damaged(segment, gaps[0].start)
            for place, frame in frames:
                if frame.height < height or frame.kind == KIND_FOOTING:
                    continue
                if frame.height != expected:
                    raise self._damaged(segment, frame.offset)
                expected += 1
                yield place, self._record(frame)

    def close(self) -> None:
        """Sync, and let go of the files."""
        self._log.close()
        self.heads.close()

    def _without_unsynced(self, frames: list[tuple[Place, Frame]]) -> list[int]:
        """Heights of the newest segment, cut at a hole that no sync stood behind."""
        if not self._log.damage:
            return [frame.height for _, frame in frames]
        hole = self._log.damage[0].start
        behind = [frame for _, frame in frames if frame.offset > hole]
        if not behind or any(frame.kind != KIND_FOLLOWING for frame in behind):
            raise self._damaged(self._log.segments[-1], hole)
        self._log.cut(hole)
        return [frame.height for _, frame in frames if frame.offset < hole]

    def _segment_of(self, height: int) -> int:
        """Index of the last segment that begins at or below `height`; 0 if none does."""
        for index in reversed(range(len(self._log.segments))):
            first = self._first_height(self._log.segments[index])
            if first is not None and first <= height:
                return index
        return 0

    def _first_height(self, segment: int) -> int | None:
        frame = self._first_frame(segment)
        return None if frame is None else frame.height

    def _first_frame(self, segment: int) -> Frame | None:
        for place, _ in self._log.segment_heads(segment, 0):
            return self._log.read(place)
        return None

    def _last_of_older(self) -> int:
        # A crash just after a segment was made leaves it empty.
        for segment in reversed(self._log.segments[:-1]):
            frames, gaps = self._log.segment_frames(segment)
            if gaps:
                raise self._damaged(segment, gaps[0].start)
            if frames:
                return frames[-1][1].height
        return 0

    def _record(self, frame: Frame) -> BlockRecord:
        try:
            return decode_record(frame)
        except Invalid as error:
            raise Damaged(
                f"block {frame.height} in {self._log.directory} is not a record of ours",
                why=str(error),
                mend=FRESH_HOME,
            ) from error

    def _damaged(self, segment: int, offset: int) -> Damaged:
        return Damaged(
            f"the block log {self._log.directory} is damaged",
            why=f"segment {segment:06d}, byte {offset}",
            mend=FRESH_HOME,
        )


def decode_record(frame: Frame) -> BlockRecord:
    """What a frame of this log holds; raises `Invalid` `blocklog.record…`."""
    block, certificate = decode(frame.payload, _RECORD, RECORD_BYTES_MAX, "blocklog.record")
    return BlockRecord(frame.height, block, certificate)
