"""One blob on its way in: proven chunks, at their place in a sparse file.

Why a note of every chunk's hash beside the file: an ended process goes on where it was, and
believes of its file only what hashes to the note; so neither has to reach the disk before the
other, and a kill or a power cut costs the chunks that were on their way. Why a sync each 16 chunks:
else the last one, of gigabytes, would hold up every other write to the disk.
What this file does not know: who sends the chunks.
"""

import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Final

from consensus.primitives import merkle
from consensus.primitives.digest import HASH_BYTES
from consensus.primitives.errors import Invalid

CHUNK_BYTES: Final = 1 << 20
LENGTH_MAX: Final = 64 << 30
SYNC_EVERY: Final = 16  # chunks
INDEX_BYTES: Final = 4
NOTE_BYTES: Final = INDEX_BYTES + HASH_BYTES


class BlobInvalid(Invalid):
    """What a peer sent, or what stands on the disk, is not the blob that was asked for."""


def first_leaf(length: int) -> bytes:
    """Leaf 0: binds length and chunk size."""
    return b"olnode/1/blob\0" + length.to_bytes(8, "big") + CHUNK_BYTES.to_bytes(4, "big")


def leaf_count(length: int) -> int:
    """Leaves of a blob: one for the length, one per chunk."""
    return 1 + -(-length // CHUNK_BYTES)


def chunk_of(content: bytes, index: int) -> bytes:
    """A chunk of what is in memory."""
    return content[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]


def leaves_of_bytes(content: bytes) -> list[bytes]:
    """Leaf hashes of what is in memory."""
    chunks = (chunk_of(content, index) for index in range(leaf_count(len(content)) - 1))
    return [merkle.leaf_hash(leaf) for leaf in (first_leaf(len(content)), *chunks)]


def part_paths(target: Path) -> tuple[Path, Path]:
    """The files of a blob that is not whole yet: its chunks, and the notes."""
    return target.with_suffix(".part"), target.with_suffix(".notes")


def prove_chunk(
    blob_id: bytes, length: int, index: int, data: bytes, path: Sequence[bytes]
) -> bytes:
    """The leaf of a chunk that its path proves; raises Invalid `blob.chunk`, `merkle.…`."""
    size = size_of_chunk(length, index)
    if len(data) != size:
        raise BlobInvalid("blob.chunk", bytes=len(data), expected=size)
    leaf = merkle.leaf_hash(data)
    merkle.verify_path(blob_id, leaf, index + 1, leaf_count(length), path)
    return leaf


def size_of_chunk(length: int, index: int) -> int:
    """Bytes of a chunk; the last one is shorter."""
    return min(CHUNK_BYTES, length - index * CHUNK_BYTES)


class BlobPart:
    """A blob of `length` bytes, of which some chunks are here. Methods block.

    `keep` may run in several threads at once, for different chunks.
    """

    def __init__(self, target: Path, blob_id: bytes, length: int) -> None:
        self._blob_id, self._length, self._target = blob_id, length, target
        self._part, self._notes = part_paths(target)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        self._file = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            os.ftruncate(self._file, length)  # the room that it will take is seen by others
            self._noted = os.open(self._notes, flags, 0o600)
        except BaseException:
            os.close(self._file)
            raise
        self._leaves: list[bytes] = [b""] * leaf_count(length)
        self._leaves[0] = merkle.leaf_hash(first_leaf(length))
        self._kept = count(1)

    @property
    def chunks(self) -> int:
        """How many it has in all."""
        return len(self._leaves) - 1

    def size_of(self, index: int) -> int:
        """Bytes of a chunk."""
        return size_of_chunk(self._length, index)

    def missing(self) -> list[int]:
        """Chunks that are not here; reads and hashes all that the notes speak of."""
        notes = os.pread(self._noted, NOTE_BYTES * 2 * self.chunks, 0)
        for start in range(0, len(notes) - NOTE_BYTES + 1, NOTE_BYTES):
            index = int.from_bytes(notes[start : start + INDEX_BYTES], "big")
            leaf = notes[start + INDEX_BYTES : start + NOTE_BYTES]
            if index < self.chunks and merkle.leaf_hash(self._read(index)) == leaf:
                self._leaves[index + 1] = leaf
        # Half a note at the end, of a write that was cut short, would shift all that follow.
        os.ftruncate(self._noted, len(notes) - len(notes) % NOTE_BYTES)
        return [index for index, leaf in enumerate(self._leaves[1:]) if not leaf]

    def _read(self, index: int) -> bytes:
        return os.pread(self._file, self.size_of(index), index * CHUNK_BYTES)

    def keep(self, index: int, data: bytes, path: Sequence[bytes]) -> None:
        """Write a chunk, if it is proven; raises Invalid `blob.chunk`, `merkle.…`."""
        leaf = prove_chunk(self._blob_id, self._length, index, data, path)
        _write_all(self._file, data, index * CHUNK_BYTES)
        os.write(self._noted, index.to_bytes(INDEX_BYTES, "big") + leaf)
        self._leaves[index + 1] = leaf
        if next(self._kept) % SYNC_EVERY == 0:
            os.fdatasync(self._file)

    def finish(self) -> bool:
        """Make the whole blob durable under its id; False if it is not that blob: all is dropped.

        Only a false note, of a disk that rots, can make it so: each chunk was proven as it came.
        """
        if merkle.root_of_hashes(self._leaves) != self._blob_id:
            self.drop()
            return False
        os.fsync(self._file)
        os.replace(self._part, self._target)
        self._notes.unlink(missing_ok=True)
        return True

    def whole(self) -> bytes | None:
        """All of it, to be kept elsewhere; None if it is not that blob: all is dropped."""
        content = b"".join(self._read(index) for index in range(self.chunks))
        if merkle.root_of_hashes(leaves_of_bytes(content)) == self._blob_id:
            return content
        self.drop()
        return None

    def close(self) -> None:
        """Let go of the files; what is not finished waits there to be gone on with."""
        os.close(self._file)
        os.close(self._noted)

    def drop(self) -> None:
        """Forget what came."""
        self._part.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)


def _write_all(descriptor: int, data: bytes, at: int) -> None:
    """A write may take less than it was given, also on a disk."""
    view = memoryview(data)
    while view:
        wrote = os.pwrite(descriptor, view, at)
        view, at = view[wrote:], at + wrote
