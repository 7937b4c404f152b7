"""A sorted map from bytes to bytes whose writes are all or nothing: over LevelDB, or in memory.

Why the checks are on everywhere: LevelDB with default options answered flipped bits with silent
holes and silently wrong values; paranoid, and with checksums on every read, it always refused or
the flip was harmless. `repair_db` is never called: it "succeeds" with holes nearly always.
Why a synced transaction per batch: kill -9 at any moment then splits none and loses none that
was acknowledged. What a cut log takes away silently, the block log gives back (`chain.py`).
Why a failure is noted beside the data: the start-up ladder looks at a part of the keys, and what
failed may be among the others; without the note a node would fail at it again and again.
Threads: writes from several wait for each other; snapshots may be read from any.
What this file does not know: what the keys mean.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, Final, Protocol

import plyvel

from node.storage.errors import DatabaseDamaged, StorageError, find_refusal, words_of

WRITE_BUFFER_BYTES: Final = 32 << 20
CACHE_BYTES: Final = 64 << 20
BLOOM_BITS: Final = 10
OPEN_FILES_MAX: Final = 256
SUSPECT_NAME: Final = "SUSPECT"  # in a database's folder; LevelDB leaves strange names alone


class Reader(Protocol):
    """What can be asked; the answers of one snapshot never change."""

    def get(self, key: bytes) -> bytes | None: ...
    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]: ...


class Snapshot(Reader, Protocol):
    """The map as it was; `close` it, for it holds old data on the disk."""

    def close(self) -> None: ...


class KV(Reader, Protocol):
    """A durable sorted map. Every call may raise `StorageError`; `write` blocks for an fsync."""

    def write(self, puts: Iterable[tuple[bytes, bytes]], deletes: Iterable[bytes] = ()) -> None:
        """All deletes, then all puts, at once and durable when this returns, or none of them."""
        ...

    def snapshot(self) -> Snapshot: ...
    def compact(self) -> None: ...
    def close(self) -> None: ...

    @property
    def damage(self) -> DatabaseDamaged | None:
        """The first failure of any reader or writer; then no answer is to be trusted."""
        ...


class _Health:
    """What all readers of one database know of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.damage: DatabaseDamaged | None = None

    def failed(self, error: Exception) -> StorageError:
        """What to raise; noted unless the system only refused."""
        what = f"the database {self._folder} failed"
        refusal = find_refusal(what, error)
        if refusal is not None:
            return refusal
        damage = DatabaseDamaged(what, why=words_of(error))
        self.damage = self.damage or damage
        suspect(self._folder, damage.told)
        return damage


class LevelKV:
    """LevelDB. One object per directory and process, opened once, under the home's lock."""

    def __init__(self, path: Path, cache_bytes: int = CACHE_BYTES) -> None:
        self._health = _Health(path)
        self._writing = Lock()
        try:
            self._db: Any = plyvel.DB(
                str(path),
                create_if_missing=True,
                paranoid_checks=True,
                write_buffer_size=WRITE_BUFFER_BYTES,
                lru_cache_size=cache_bytes,
                bloom_filter_bits=BLOOM_BITS,
                max_open_files=OPEN_FILES_MAX,
            )
        except (plyvel.Error, OSError) as error:
            raise self._health.failed(error) from error

    @property
    def damage(self) -> DatabaseDamaged | None:
        """The first failure of any reader or writer."""
        return self._health.damage

    def get(self, key: bytes) -> bytes | None:
        try:
            value: bytes | None = self._db.get(key, verify_checksums=True)
        except plyvel.Error as error:
            raise self._health.failed(error) from error
        return value

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start ≤ key < stop in order; use it up, or close it, in the same thread."""
        yield from _scan(self._db, start, stop, self._health)

    def write(self, puts: Iterable[tuple[bytes, bytes]], deletes: Iterable[bytes] = ()) -> None:
        try:
            with self._writing, self._db.write_batch(transaction=True, sync=True) as batch:
                for key in deletes:
                    batch.delete(key)
                for key, value in puts:
                    batch.put(key, value)
        except plyvel.Error as error:
            raise self._health.failed(error) from error

    def compact(self) -> None:
        """Give back the room of what was deleted. Blocks: rewrites the tables."""
        self._db.compact_range()

    def snapshot(self) -> "LevelSnapshot":
        """The map as it is now; costs 0.2 µs."""
        return LevelSnapshot(self._db.snapshot(), self._health)

    def close(self) -> None:
        self._db.close()


class LevelSnapshot:
    """LevelDB as it was at one moment."""

    def __init__(self, snapshot: Any, health: _Health) -> None:
        self._snapshot = snapshot
        self._health = health

    def get(self, key: bytes) -> bytes | None:
        try:
            value: bytes | None = self._snapshot.get(key, verify_checksums=True)
        except plyvel.Error as error:
            raise self._health.failed(error) from error
        return value

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        yield from _scan(self._snapshot, start, stop, self._health)

    def close(self) -> None:
        self._snapshot.close()


def _scan(source: Any, start: bytes, stop: bytes, health: _Health) -> Iterator[tuple[bytes, bytes]]:
    if start >= stop:  # LevelDB would crash on a reversed range in some versions
        return
    try:
        with source.iterator(start=start, stop=stop, verify_checksums=True) as pairs:
            yield from pairs
    except plyvel.Error as error:
        raise health.failed(error) from error


def suspect(folder: Path, why: str) -> None:
    """Have the next start make the database of a folder again."""
    with suppress(OSError):  # what cannot be noted will fail again
        (folder / SUSPECT_NAME).write_text(why)


def why_suspected(folder: Path) -> str:
    """Why the database of a folder is to be made again; "" if it is not."""
    path = folder / SUSPECT_NAME
    return path.read_text(errors="replace") or "damaged" if path.exists() else ""


class MemoryKV:
    """The same map without a disk, for tests and simulations. A snapshot shares until a write."""

    damage = None  # memory does not rot

    def __init__(self) -> None:
        self._data = _Sorted({}, [])
        self._is_shared = False

    def get(self, key: bytes) -> bytes | None:
        return self._data.values.get(key)

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        yield from self._data.scan(start, stop)

    def write(self, puts: Iterable[tuple[bytes, bytes]], deletes: Iterable[bytes] = ()) -> None:
        puts, deletes = list(puts), list(deletes)  # a failing iterable must change nothing
        if self._is_shared:
            self._data, self._is_shared = self._data.copied(), False
        for key in deletes:
            self._data.delete(key)
        for key, value in puts:
            self._data.put(key, value)

    def compact(self) -> None:
        """Nothing to give back."""

    def snapshot(self) -> "MemorySnapshot":
        self._is_shared = True
        return MemorySnapshot(self._data)

    def close(self) -> None:
        """Nothing to give back."""


class MemorySnapshot:
    """A `MemoryKV` as it was at one moment."""

    def __init__(self, data: "_Sorted") -> None:
        self._data = data

    def get(self, key: bytes) -> bytes | None:
        return self._data.values.get(key)

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        yield from self._data.scan(start, stop)

    def close(self) -> None:
        """Nothing to give back."""


class _Sorted:
    __slots__ = ("keys", "values")

    def __init__(self, values: dict[bytes, bytes], keys: list[bytes]) -> None:
        self.values = values
        self.keys = keys  # sorted

    def copied(self) -> "_Sorted":
        return _Sorted(dict(self.values), list(self.keys))

    def put(self, key: bytes, value: bytes) -> None:
        if key not in self.values:
            insort(self.keys, key)
        self.values[key] = value

    def delete(self, key: bytes) -> None:
        if self.values.pop(key, None) is not None:
            del self.keys[bisect_left(self.keys, key)]

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        # A copied slice: as with LevelDB, a write during a scan does not show in it.
        found = self.keys[bisect_left(self.keys, start) : bisect_left(self.keys, stop)]
        values = [self.values[key] for key in found]
        return iter(zip(found, values, strict=True))
