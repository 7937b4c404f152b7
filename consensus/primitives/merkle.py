"""RFC 6962 trees: roots, paths, and a frontier that grows by one leaf at a time.

Why this tree: its prefixes (00 leaf, 01 node) keep leaves and nodes apart, an odd node moves up
unchanged, and a path's length follows from index and size alone, so a verifier can refuse
surplus hashes. Used for everything but the state, which needs proofs of absence.
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256 as _sha256
from operator import add
from typing import Final

from consensus.primitives.digest import HASH_BYTES, hash_each, sha256
from consensus.primitives.errors import Invalid

EMPTY_ROOT: Final = sha256()
LARGE_BYTES: Final = 65_536
LEAVES_MAX: Final = 2**63 - 1

Levels = list[list[bytes]]


def leaf_hash(data: bytes) -> bytes:
    """SHA-256(00 ‖ data)."""
    if len(data) < LARGE_BYTES:
        return _sha256(b"\0" + data).digest()
    digest = _sha256(b"\0")
    digest.update(data)  # a copy would cost a fifth of the hash itself
    return digest.digest()


def leaf_hashes(leaves: Iterable[bytes]) -> list[bytes]:
    """The same of many that are short: without a call for each."""
    return hash_each(leaves, b"\0")


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(01 ‖ left ‖ right)."""
    return _sha256(b"\1" + left + right).digest()


def root(leaves: Iterable[bytes]) -> bytes:
    """The root over leaf data; of no leaves, SHA-256 of nothing."""
    return root_of_hashes([leaf_hash(leaf) for leaf in leaves])


def root_of_hashes(hashes: Sequence[bytes]) -> bytes:
    """The root over leaf hashes."""
    if not hashes:
        return EMPTY_ROOT
    level = list(hashes)
    while len(level) > 1:
        level = _parents(level)
    return level[0]


def _parents(level: list[bytes]) -> list[bytes]:
    paired = hash_each(map(add, level[::2], level[1::2]), b"\1")
    return paired + level[-1:] if len(level) % 2 else paired


def prove(leaves: Iterable[bytes], index: int) -> tuple[bytes, ...]:
    """The sibling hashes from leaf `index` up to the root."""
    return prove_hashes([leaf_hash(leaf) for leaf in leaves], index)


def prove_hashes(hashes: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The same over leaf hashes."""
    return path_in(levels_of(hashes), index)


def levels_of(hashes: Sequence[bytes]) -> Levels:
    """A whole tree over one leaf hash or more: the leaves first, the root alone last."""
    levels = [list(hashes)]
    while len(levels[-1]) > 1:
        levels.append(_parents(levels[-1]))
    return levels


def path_in(levels: Levels, index: int) -> tuple[bytes, ...]:
    """The sibling hashes from leaf `index` up to the root of a tree that is held."""
    assert 0 <= index < len(levels[0])
    siblings = ((level, (index >> height) ^ 1) for height, level in enumerate(levels))
    return tuple(level[sibling] for level, sibling in siblings if sibling < len(level))


def path_length(index: int, size: int) -> int:
    """How many hashes the path of leaf `index` in a tree of `size` leaves has."""
    assert 0 <= index < size
    length, last = 0, size - 1
    while last > 0:
        length += (index ^ 1) <= last
        index, last = index // 2, last // 2
    return length


def root_of_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The root that leaf hash `leaf` at `index` of `size` and `path` imply.

    Raises `Invalid` `merkle.index`, `merkle.path_length` or `merkle.hash_length`.
    """
    if not 0 <= index < size <= LEAVES_MAX:
        raise Invalid("merkle.index", index=index, size=size)
    if len(path) != path_length(index, size):
        raise Invalid("merkle.path_length", length=len(path))
    if any(len(item) != HASH_BYTES for item in path):
        raise Invalid("merkle.hash_length")
    here, last, rest = leaf, size - 1, iter(path)
    while last > 0:
        if index & 1:
            here = node_hash(next(rest), here)
        elif index < last:
            here = node_hash(here, next(rest))
        index, last = index // 2, last // 2
    return here


def verify_path(
    expected_root: bytes, leaf: bytes, index: int, size: int, path: Sequence[bytes]
) -> None:
    """Raise `Invalid` unless leaf hash `leaf` stands at `index` of `size` under the root."""
    if root_of_path(leaf, index, size, path) != expected_root:
        raise Invalid("merkle.root")


class Frontier:
    """The right edge of a growing tree: enough to append and to give the root, in O(log n)."""

    __slots__ = ("_peaks", "size")

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        assert len(hashes) == size.bit_count(), "one peak per set bit of the size"
        self.size = size
        self._peaks = list(hashes)  # the largest complete subtree first

    @property
    def hashes(self) -> tuple[bytes, ...]:
        """The peaks, largest first: with `size`, all that must be stored."""
        return tuple(self._peaks)

    def append(self, data: bytes) -> None:
        """Add one leaf."""
        here, size = leaf_hash(data), self.size
        while size & 1:
            here, size = node_hash(self._peaks.pop(), here), size >> 1
        self._peaks.append(here)
        self.size += 1

    def root(self) -> bytes:
        """The RFC 6962 root over all leaves appended so far."""
        if not self._peaks:
            return EMPTY_ROOT
        here = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            here = node_hash(peak, here)
        return here
