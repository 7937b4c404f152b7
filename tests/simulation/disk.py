"""A disk that forgets: what was written and not synced may be gone after a crash, or torn.

Real files, so that real code reads and writes them; but a sync costs nothing, and each write keeps
what it wrote over until it is synced. A crash undoes unsynced writes from the last one back, file
by file, as far as the seed says, and may leave half of one. Power can also fail in the middle of
an operation. What it does not model: later writes that survive earlier ones of the same file.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from unittest import mock

from node.storage.store import MemoryKV

_pwrite, _ftruncate = os.pwrite, os.ftruncate


class PowerLost(BaseException):
    """The machine of `home` is off: nothing after this instruction happens on it."""

    def __init__(self, home: Path) -> None:
        super().__init__(str(home))
        self.home = home


class _Write(NamedTuple):
    offset: int
    data: bytes
    before: bytes  # what stood there
    size: int  # of the file before


class SeededDisk:
    """The files of all homes below `root`."""

    def __init__(self, root: Path, rng: Random) -> None:
        self._root = root
        self._rng = rng
        self._unsynced: dict[Path, list[_Write]] = {}
        self._off: set[Path] = set()
        self._operations_left: dict[Path, int] = {}
        self._places: dict[str, tuple[Path, Path] | None] = {}

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """All of this process's writes and syncs go through here."""
        with (
            mock.patch.multiple("os", pwrite=self._write, fdatasync=self._sync, fsync=self._sync),
            mock.patch("node.storage.journal.ThreadPoolExecutor", _AtOnce),
        ):
            yield

    def fail_after(self, home: Path, operations: int) -> None:
        """Let the power of a home fail in the middle of its next operations."""
        self._operations_left[home] = operations

    def repair(self) -> None:
        """No power failure is due any more."""
        self._operations_left.clear()

    def crash(self, home: Path) -> None:
        """Power is off now: lose of the unsynced writes what the seed says."""
        if home in self._off:
            return
        self._off.add(home)
        self._operations_left.pop(home, None)
        for path in sorted(self._unsynced):
            if path.is_relative_to(home):
                writes = self._unsynced.pop(path)
                if path.exists():
                    self._lose(path, writes)

    def revive(self, home: Path) -> None:
        """Power is on again."""
        self._off.discard(home)

    def operation(self, home: Path) -> None:
        """Count one operation of a home; raises PowerLost when it is the last."""
        left = self._operations_left.get(home)
        if left is None:
            return
        self._operations_left[home] = left - 1
        if left <= 0:
            self.crash(home)
            raise PowerLost(home)

    def _lose(self, path: Path, writes: list[_Write]) -> None:
        kept = self._rng.randint(0, len(writes))
        descriptor = os.open(path, os.O_RDWR)
        try:
            for write in reversed(writes[kept:]):
                _pwrite(descriptor, write.before, write.offset)
                _ftruncate(descriptor, write.size)
            if kept < len(writes) and self._rng.random() < 0.5:
                torn = writes[kept]
                _pwrite(descriptor, torn.data[: self._rng.randrange(len(torn.data))], torn.offset)
        finally:
            os.close(descriptor)

    def _place(self, descriptor: int) -> tuple[Path, Path] | None:
        """(home, file) behind a descriptor; None for a file of nobody here."""
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if name not in self._places:
            path = Path(name)
            is_ours = path.is_relative_to(self._root)
            home = self._root / path.relative_to(self._root).parts[0] if is_ours else None
            self._places[name] = None if home is None else (home, path)
        return self._places[name]

    def _write(self, descriptor: int, data: Any, offset: int) -> int:
        place = self._place(descriptor)
        if place is None:
            return _pwrite(descriptor, data, offset)
        home, path = place
        if home in self._off:
            return len(data)
        before = os.pread(descriptor, len(data), offset)
        size = os.fstat(descriptor).st_size
        self._unsynced.setdefault(path, []).append(_Write(offset, bytes(data), before, size))
        self.operation(home)
        return _pwrite(descriptor, data, offset)

    def _sync(self, descriptor: int) -> None:
        place = self._place(descriptor)
        if place is not None and place[0] not in self._off:
            self.operation(place[0])
            self._unsynced.pop(place[1], None)


class SeededKV(MemoryKV):
    """The database of a home: each batch is durable, or not there."""

    def __init__(self, disk: SeededDisk, home: Path) -> None:
        super().__init__()
        self._disk, self._home = disk, home

    def write(self, puts: Any, deletes: Any = ()) -> None:
        """A synced batch; not at all when the power fails before it."""
        self._disk.operation(self._home)
        super().write(puts, deletes)


class _AtOnce:
    """An executor without a thread: what is submitted is done before `submit` returns."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._error: BaseException | None = None

    def submit(self, function: Callable[..., Any], *arguments: Any) -> "_AtOnce":
        try:
            function(*arguments)
        except BaseException as error:  # noqa: BLE001  # told by `result`, as a future does
            self._error = error
        return self

    def result(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def shutdown(self) -> None:
        """Nothing runs."""
