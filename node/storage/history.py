"""The history of block ids as a stored RFC 6962 tree: one header proves any older block.

Why every complete subtree is kept: `history_root` of a header is over the ids of all blocks
before it, so a proof may need the tree as it was at any later height. A block adds two hashes on
average (80 bytes), and a path of 10^6 blocks reads at most 40 of them.
Leaf i is the id of block i + 1; node (level, i) covers the leaves i·2^level up to (i+1)·2^level.
"""

from collections.abc import Callable, Iterator, Sequence

from consensus.primitives.merkle import EMPTY_ROOT, Frontier, leaf_hash, node_hash
from node.storage import keyspace
from node.storage.store import Reader


def _key(level: int, index: int) -> bytes:
    return keyspace.HISTORY + bytes([level]) + keyspace.u64(index)


def appended(reader: Reader, size: int, block_id: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The puts that add `block_id` as leaf number `size` (from 0)."""
    return _appended(reader.get, size, block_id)


def _appended(
    get: Callable[[bytes], bytes | None], size: int, block_id: bytes
) -> Iterator[tuple[bytes, bytes]]:
    level, index, here = 0, size, leaf_hash(block_id)
    yield _key(level, index), here
    while index & 1:
        left = get(_key(level, index - 1))
        assert left is not None, "the history has a hole"
        level, index, here = level + 1, index >> 1, node_hash(left, here)
        yield _key(level, index), here


def frontier(reader: Reader, size: int) -> Frontier:
    """The growing edge over the first `size` ids."""
    peaks, start = [], 0
    for level in reversed(range(size.bit_length())):
        if size >> level & 1:
            peaks.append(_node(reader, level, start >> level, size))
            start += 1 << level
    return Frontier(size, peaks)


def seeded(edge: Frontier, block_id: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The puts that begin a history with the block behind an edge: it goes on from there, but
    proves nothing older by itself (`extended`)."""
    peaks, start = {}, 0
    levels = [level for level in reversed(range(edge.size.bit_length())) if edge.size >> level & 1]
    for level, peak in zip(levels, edge.hashes, strict=True):
        peaks[_key(level, start >> level)] = peak
        start += 1 << level
    yield from peaks.items()
    yield from _appended(peaks.get, edge.size, block_id)


def root(reader: Reader, size: int) -> bytes:
    """`history_root` of the header of height `size` + 1."""
    return frontier(reader, size).root() if size else EMPTY_ROOT


def prove(reader: Reader, index: int, size: int) -> tuple[bytes, ...]:
    """The path of leaf `index` in the tree of `size` leaves, leaf's sibling first."""
    assert 0 <= index < size
    path, level, last = [], 0, size - 1
    while last > 0:
        sibling = index ^ 1
        if sibling <= last:
            path.append(_node(reader, level, sibling, size))
        level, index, last = level + 1, index >> 1, last >> 1
    return tuple(path)


def extended(
    reader: Reader, path: Sequence[bytes], index: int, old: int, size: int
) -> tuple[bytes, ...] | None:
    """The path of leaf `index` in the tree of `size` leaves, by its path in that of `old` leaves.

    For a history that began with leaf `old` (`seeded`), of which no path is needed. What was
    complete before it comes from the path; all else has leaves from `old` on, and is ours. None
    where an older version of this program kept too little of the edge.
    """
    assert 0 <= index <= old < size
    if reader.get(_key(0, old)) is None:
        return None
    if index == old:
        return prove(reader, index, size)
    known, longer, level = iter(path), [], 0
    old_last, last = old - 1, size - 1
    while last > 0:
        sibling = index ^ 1
        told = next(known) if sibling <= old_last else b""
        if (sibling + 1) << level <= old:
            longer.append(told)
        elif sibling <= last:
            longer.append(_node(reader, level, sibling, size))
        level, index, old_last, last = level + 1, index >> 1, old_last >> 1, last >> 1
    return tuple(longer)


def _node(reader: Reader, level: int, index: int, size: int) -> bytes:
    """The hash of a node in the tree of `size` leaves; on the right edge made from its parts."""
    if (index + 1) << level <= size:
        stored = reader.get(_key(level, index))
        assert stored is not None, "the history has a hole"
        return stored
    left = _node(reader, level - 1, 2 * index, size)
    if (2 * index + 1) << (level - 1) >= size:
        return left  # an odd node moves up
    return node_hash(left, _node(reader, level - 1, 2 * index + 1, size))
