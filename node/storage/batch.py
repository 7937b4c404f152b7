"""The writes of one or more blocks, readable as if they were done, before they go to the disk.

Why: catching up commits up to 64 blocks with one sync, and each must see what the one before it
wrote. What this file does not know: what the keys mean.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from heapq import merge

from node.storage.store import KV, Reader


class Batch:
    """Puts and deletes over a reader. The later write of a key stands."""

    def __init__(self, base: Reader) -> None:
        self._base = base
        self._writes: dict[bytes, bytes | None] = {}
        self._keys: list[bytes] = []  # sorted

    def __len__(self) -> int:
        return len(self._writes)

    def put(self, key: bytes, value: bytes) -> None:
        """Write a value."""
        self._note(key, value)

    def delete(self, key: bytes) -> None:
        """Remove a key, whether it is there or not."""
        self._note(key, None)

    def get(self, key: bytes) -> bytes | None:
        """The value as it will be."""
        if key in self._writes:
            return self._writes[key]
        return self._base.get(key)

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start ≤ key < stop as they will be, in order."""
        keys = self._keys[bisect_left(self._keys, start) : bisect_left(self._keys, stop)]
        ours = [(key, self._writes[key]) for key in keys]
        hidden = set(keys)  # looked up only, never iterated
        below = (pair for pair in self._base.scan(start, stop) if pair[0] not in hidden)
        yield from _present(merge(ours, below, key=_first))

    def write_to(self, store: KV) -> None:
        """All of it, at once and durable. Blocks for an fsync."""
        puts = [(key, value) for key, value in self._writes.items() if value is not None]
        store.write(puts, [key for key, value in self._writes.items() if value is None])

    def _note(self, key: bytes, value: bytes | None) -> None:
        if key not in self._writes:
            insort(self._keys, key)
        self._writes[key] = value


def _first(pair: tuple[bytes, bytes | None]) -> bytes:
    return pair[0]


def _present(
    pairs: Iterable[tuple[bytes, bytes | None]],
) -> Iterator[tuple[bytes, bytes]]:
    for key, value in pairs:
        if value is not None:
            yield key, value
