"""An append-only log in segments of 64 MiB: the block log and the log of bundle bodies.

Why segments: what is too old is dropped by removing a file, and a start has to read through the
newest one only. A segment is closed by an fsync before the next is made, and the directory is
synced when one is made, so only the newest can end in a torn frame.
Why a failed write or sync ends the use of the object: after a failed fsync the kernel may have
dropped the pages, and a second one would say "done".
What this file does not know: what the records are, and which of them matter.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from node.storage.errors import FRESH_HOME, Damaged, StorageError
from node.storage.frames import Frame, FrameFormat, Gap, read_all

SEGMENT_BYTES: Final = 64 << 20
ENDED_FOLDER: Final = "ended"
ENDED_FILES_MAX: Final = 1_000  # that people may still want to read
SEGMENTS_MAX: Final = 999_999
NAME_DIGITS: Final = 6


class Place(NamedTuple):
    """Where a frame is: segment number (from 1), byte offset, bytes of the whole frame."""

    segment: int
    offset: int
    frame_bytes: int

    def encode(self) -> bytes:
        """16 bytes: u32, u64, u32."""
        return (
            self.segment.to_bytes(4, "big")
            + self.offset.to_bytes(8, "big")
            + self.frame_bytes.to_bytes(4, "big")
        )


def decode_place(raw: bytes) -> Place:
    """The place in 16 bytes of our own database."""
    assert len(raw) == 16
    return Place(
        int.from_bytes(raw[:4], "big"),
        int.from_bytes(raw[4:12], "big"),
        int.from_bytes(raw[12:], "big"),
    )


class SegmentLog:
    """One directory of numbered segment files. One writer; `read` from any thread."""

    def __init__(
        self, directory: Path, frames: FrameFormat, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        """Open or make the log, cutting a torn tail of the newest segment. Blocks for its read.

        `damage` then holds the gaps in the newest segment; what they mean is the caller's.
        """
        self.directory = directory
        self.format = frames
        self.cut_bytes = 0  # of a torn tail, at this opening
        self.damage: list[Gap] = []
        self._segment_bytes = segment_bytes
        self._readers: dict[int, int] = {}
        self._is_failed = False
        self._is_unsynced = False
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._segments = self._list_segments()
        if not self._segments:
            self._make_segment(1)
        self._newest_frames = self._open_newest()

    # -- opening

    def _list_segments(self) -> list[int]:
        found = [int(name) for name in segment_names(self.directory)]
        if found and found != list(range(found[0], found[0] + len(found))):
            raise Damaged(
                f"a segment is missing in {self.directory}",
                why=f"there are {len(found)} from {found[0]} to {found[-1]}",
                mend=FRESH_HOME,
            )
        return found

    def _path(self, segment: int) -> Path:
        return self.directory / f"{segment:0{NAME_DIGITS}d}"

    def _make_segment(self, number: int) -> None:
        assert number <= SEGMENTS_MAX
        try:
            descriptor = os.open(self._path(number), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            os.close(descriptor)
            sync_directory(self.directory)
        except OSError as error:
            raise self._failed("make a segment of", error) from error
        self._segments.append(number)

    def _open_newest(self) -> list[Frame]:
        newest = self._segments[-1]
        self._writer = os.open(self._path(newest), os.O_RDWR)
        data = read_file(self._writer)
        frames, self.damage, self._end = read_all(self.format, data)
        self.cut_bytes = len(data) - self._end
        if self.cut_bytes:
            os.ftruncate(self._writer, self._end)
        if data:
            # A killed process may not have synced what we read; others will rely on it now.
            os.fsync(self._writer)
        return frames

    def cut(self, offset: int) -> None:
        """Cut the newest segment at `offset`, for an owner who knows that no sync covered more."""
        self.cut_bytes += self._end - offset
        self._end = offset
        self.damage = [gap for gap in self.damage if gap.start < offset]
        os.ftruncate(self._writer, offset)
        os.fsync(self._writer)

    # -- reading

    @property
    def segments(self) -> tuple[int, ...]:
        """Numbers of the segment files, oldest first."""
        return tuple(self._segments)

    def newest_frames(self) -> list[tuple[Place, Frame]]:
        """What the newest segment held at opening, handed out once to keep it out of memory."""
        frames, self._newest_frames = self._newest_frames, []
        newest = self._segments[-1]
        return [(self._place(newest, frame), frame) for frame in frames]

    def segment_frames(self, segment: int) -> tuple[list[tuple[Place, Frame]], list[Gap]]:
        """All good frames of one segment and the gaps between them. Reads up to 64 MiB."""
        data = read_file(self._reader(segment))
        frames, gaps, end = read_all(self.format, data)
        if end < len(data):
            gaps.append(Gap(end, len(data)))
        return [(self._place(segment, frame), frame) for frame in frames], gaps

    def segment_heads(self, segment: int, peek_bytes: int) -> Iterator[tuple[Place, bytes]]:
        """Places and the first bytes of each payload, by heads alone: nothing is verified.

        Stops at the first head that is none. A later `read` of a place checks its frame.
        """
        descriptor, offset = self._reader(segment), 0
        while True:
            head = os.pread(descriptor, self.format.head_bytes + peek_bytes, offset)
            length = self.format.payload_length(head)
            if length is None:
                return
            size = self.format.overhead_bytes + length
            yield Place(segment, offset, size), head[self.format.head_bytes :]
            offset += size

    def segment_size(self, segment: int) -> int:
        """Bytes in the file of one segment."""
        return os.fstat(self._reader(segment)).st_size

    def read(self, place: Place) -> Frame:
        """The frame at `place`, verified. Raises `Damaged` if it is not there whole."""
        why = f"at byte {place.offset}"
        try:
            data = os.pread(self._reader(place.segment), place.frame_bytes, place.offset)
        except OSError as error:
            data, why = b"", f"{why}: {error.strerror}"
        frame = self.format.read(data, 0)
        if frame is None or self.format.size(frame) != place.frame_bytes:
            what = f"a record of {self._path(place.segment)} is damaged"
            raise Damaged(what, why=why, mend=FRESH_HOME)
        return frame._replace(offset=place.offset)

    def _reader(self, segment: int) -> int:
        descriptor = self._readers.get(segment)
        if descriptor is None:
            try:
                descriptor = os.open(self._path(segment), os.O_RDONLY)
            except OSError as error:
                raise Damaged(
                    f"cannot read {self._path(segment)}",
                    why=error.strerror or "",
                    mend=FRESH_HOME,
                ) from error
            self._readers[segment] = descriptor
        return descriptor

    def _place(self, segment: int, frame: Frame) -> Place:
        return Place(segment, frame.offset, self.format.size(frame))

    # -- writing

    def append(self, kind: int, payload: bytes, height: int = 0) -> Place:
        """Write one frame; it is durable only after `sync`. Raises `StorageError` if it failed."""
        self._check_usable()
        frame = self.format.encode(kind, payload, height)
        if self._end and self._end + len(frame) > self._segment_bytes:
            self.next_segment()
        place = Place(self._segments[-1], self._end, len(frame))
        try:
            write_at(self._writer, frame, self._end)
        except OSError as error:
            raise self._failed("write to", error) from error
        self._end += len(frame)
        self._is_unsynced = True
        return place

    def sync(self) -> None:
        """Make all appended frames durable. Blocks for an fsync (0.2–100 ms)."""
        self._check_usable()
        if not self._is_unsynced:
            return
        self._is_unsynced = False  # before: what is appended meanwhile may not be covered
        try:
            os.fdatasync(self._writer)
        except OSError as error:
            raise self._failed("sync", error) from error

    def drop(self, segment: int) -> None:
        """Remove the oldest segment; the newest is never removed."""
        assert segment == self._segments[0]
        assert len(self._segments) > 1
        descriptor = self._readers.pop(segment, None)
        if descriptor is not None:
            os.close(descriptor)
        os.unlink(self._path(segment))
        sync_directory(self.directory)
        self._segments.pop(0)

    def close(self) -> None:
        """Sync what is not, and let go of the files."""
        if not self._is_failed:
            self.sync()
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1
        for descriptor in self._readers.values():
            os.close(descriptor)
        self._readers.clear()
        self._is_failed = True

    @property
    def is_synced(self) -> bool:
        """Whether every appended frame is durable."""
        return not self._is_unsynced

    def next_segment(self) -> None:
        """Sync the newest segment and go on in a new one."""
        self.sync()
        os.close(self._writer)
        self._writer = -1
        self._make_segment(self._segments[-1] + 1)
        self._writer = os.open(self._path(self._segments[-1]), os.O_RDWR)
        self._end = 0

    def _check_usable(self) -> None:
        if self._is_failed:
            raise StorageError(f"{self.directory} is closed after a failure", mend="restart olnode")

    def _failed(self, doing: str, error: OSError) -> StorageError:
        self._is_failed = True
        return StorageError(
            f"cannot {doing} {self.directory}",
            why=error.strerror or "",
            mend="free space on the disk, then restart olnode",
        )


def segment_names(directory: Path) -> list[str]:
    """The segment files of a directory, oldest first; there may be none, or no directory."""
    names = os.listdir(directory) if directory.is_dir() else []
    return sorted(
        name for name in names if len(name) == NAME_DIGITS and name.isascii() and name.isdigit()
    )


def read_file(descriptor: int) -> bytes:
    """The whole file behind `descriptor`."""
    size, parts, offset = os.fstat(descriptor).st_size, [], 0
    while offset < size:
        part = os.pread(descriptor, size - offset, offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`: the system may take less than it is given."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_away(path: Path) -> None:
    """Move a file that is done with into `ended/` beside it, where nothing reads it again.

    The newest ENDED_FILES_MAX stay there.
    """
    if path.exists():
        ended = path.parent / ENDED_FOLDER
        ended.mkdir(mode=0o700, exist_ok=True)
        path.rename(ended / path.name)
        newest_first = sorted(ended.iterdir(), key=lambda file: -file.stat().st_mtime_ns)
        for old in newest_first[ENDED_FILES_MAX:]:
            old.unlink(missing_ok=True)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """An empty folder for copies, gone when the block ends; what an earlier end left goes first."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def write_durably(path: Path, raw: bytes) -> None:
    """A small file of its own: it is there whole or not at all. Its name is for the caller to
    sync."""
    making = path.with_name(path.name + ".new")
    with making.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    os.replace(making, path)
