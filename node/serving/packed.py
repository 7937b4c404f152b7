"""The disk tier: adapters as they are copied into a slot, one file each, under their hash.

Why: reading an adapter's own folder means checking, converting and scaling every tensor; what was
packed once is one read and one digest, two to four times as quick (page 50 §4, ARCHITECTURE §6).
Why a digest of its own: the adapter's hash is of the folder's bytes, so the packed form cannot be
held against it. It is a copy and no more: whatever is wrong with it, it goes, and the folder is
read instead. Written once, under another name first; the longest unused go when the budget ends.
What this file does not know: torch, the base, what the numbers mean.
"""

import hashlib
import os
import shutil
import struct
import threading
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from consensus.primitives.encoding import (
    U8,
    Bytes,
    Fixed,
    ListOf,
    Record,
    decode,
    encode,
)
from consensus.primitives.errors import Invalid

VERSION: Final = 1
SUFFIX: Final = ".packed"
PART: Final = ".part"
DIGEST_BYTES: Final = 32
LENGTH_BYTES: Final = 4
HEAD_BYTES_MAX: Final = 2**20
MODULES_MAX: Final = 16_384
_MODULE: Final = Record(Bytes(512), U8, Fixed(8))
_HEAD: Final = Record(U8, Fixed(32), Fixed(32), U8, U8, ListOf(_MODULE, MODULES_MAX))

Raw = npt.NDArray[np.uint8]


class Copy(NamedTuple):
    """A packed adapter: what a bank must know of it, and its flat numbers as bytes."""

    rank: int
    bucket: int
    modules: Mapping[str, tuple[int, float]]
    raw: Raw


class PackedShelf:
    """Files of one folder, at most `bytes_max` together. Any thread may call.

    `layout`: digest of how the numbers lie; a copy of another layout is as none.
    `free_bytes_min`: nothing is written that would leave the disk with less.
    """

    def __init__(
        self, folder: str | os.PathLike[str], layout: bytes, bytes_max: int, free_bytes_min: int
    ) -> None:
        self._folder, self._layout = Path(folder), layout
        self._bytes_max, self._free_bytes_min = bytes_max, free_bytes_min
        self._lock = threading.Lock()
        self._sizes: OrderedDict[bytes, int] = OrderedDict()  # the longest unused first
        self.bytes = 0
        self.evicted = 0
        self.rotten = 0  # copies that were not as they were written
        self.unwritten = 0  # for want of room, or since the disk refused
        self._folder.mkdir(parents=True, exist_ok=True)
        self._look()

    @property
    def count(self) -> int:
        """How many copies there are."""
        return len(self._sizes)

    def read(self, hash: bytes) -> Copy | None:
        """The copy, or None where there is none that can be believed. Blocks."""
        with self._lock:
            if hash not in self._sizes:
                return None
        path = self._path(hash)
        try:
            copy = self._read(hash, path)
            os.utime(path)  # the order of use outlives a restart
        except OSError:  # another worker's eviction, or a disk that fails: as if it were not here
            self._forget(hash)
            return None
        except Invalid:
            self.rotten += 1
            self._delete(hash)
            return None
        with self._lock:
            if hash in self._sizes:
                self._sizes.move_to_end(hash)
        return copy

    def write(self, hash: bytes, copy: Copy) -> None:
        """Keep a copy, once; others make room for it. Blocks until it is durable."""
        with self._lock:
            if hash in self._sizes:
                return
        head = _encode_head(hash, self._layout, copy)
        size = DIGEST_BYTES + LENGTH_BYTES + len(head) + copy.raw.nbytes
        part = self._path(hash).with_suffix(f"{PART}{os.getpid()}")
        try:
            free = shutil.disk_usage(self._folder).free
            if size > self._bytes_max or free - size < self._free_bytes_min:
                self.unwritten += 1
                return
            self._make_room(size)
            with open(part, "wb") as file:
                file.write(_digest(head, copy.raw))
                file.write(struct.pack(">I", len(head)) + head)
                file.write(copy.raw.data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self._path(hash))
        except OSError:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            self.unwritten += 1
            return
        with self._lock:
            self._sizes[hash] = size
            self.bytes += size

    def _look(self) -> None:
        """What earlier runs have left; halves of theirs go."""
        found = []
        for path in self._folder.iterdir():
            if path.suffix.startswith(PART):
                path.unlink(missing_ok=True)
            elif path.suffix == SUFFIX and len(path.stem) == 64:
                stat = path.stat()
                found.append((stat.st_mtime_ns, path.stem, stat.st_size))
        for _, name, size in sorted(found):
            self._sizes[bytes.fromhex(name)] = size
            self.bytes += size
        self._make_room(0)  # the budget may be a smaller one now

    def _make_room(self, wanted: int) -> None:
        while self.bytes + wanted > self._bytes_max:
            with self._lock:
                oldest = next(iter(self._sizes), None)
            if oldest is None:
                return
            self._delete(oldest)
            self.evicted += 1

    def _read(self, hash: bytes, path: Path) -> Copy:
        """Raises Invalid for what is not as it was written, OSError."""
        with open(path, "rb") as file:
            digest = file.read(DIGEST_BYTES)
            length = int.from_bytes(file.read(LENGTH_BYTES), "big")
            if length > HEAD_BYTES_MAX:
                raise Invalid("packed.too_large")
            head = file.read(length)
            raw = np.empty(max(0, os.fstat(file.fileno()).st_size - file.tell()), np.uint8)
            file.readinto(raw.data)
        if _digest(head, raw) != digest:
            raise Invalid("packed.digest")
        return _decode_head(hash, self._layout, head)._replace(raw=raw)

    def _path(self, hash: bytes) -> Path:
        return self._folder / (hash.hex() + SUFFIX)

    def _delete(self, hash: bytes) -> None:
        """A disk that does not let it go is told of elsewhere; here it is as gone."""
        with suppress(OSError):
            self._path(hash).unlink(missing_ok=True)
        self._forget(hash)

    def _forget(self, hash: bytes) -> None:
        with self._lock:
            self.bytes -= self._sizes.pop(hash, 0)


def _digest(head: bytes, raw: Raw) -> bytes:
    found = hashlib.sha256(head)
    found.update(raw.data)
    return found.digest()


def _encode_head(hash: bytes, layout: bytes, copy: Copy) -> bytes:
    modules = [
        (name.encode(), rank, struct.pack(">d", scale))
        for name, (rank, scale) in sorted(copy.modules.items())
    ]
    return encode((VERSION, hash, layout, copy.rank, copy.bucket, modules))


def _decode_head(hash: bytes, layout: bytes, head: bytes) -> Copy:
    """Raises Invalid for another adapter's, another layout's or another version's."""
    version, whose, lies, rank, bucket, modules = decode(head, _HEAD, HEAD_BYTES_MAX, "packed")
    if (version, whose, lies) != (VERSION, hash, layout):
        raise Invalid("packed.another")
    found = {name.decode(): (r, struct.unpack(">d", scale)[0]) for name, r, scale in modules}
    return Copy(rank, bucket, found, np.empty(0, np.uint8))
