"""Which blocks above ours are asked of whom, which have come, and which come next.

Why a window: several peers send at once, the chain takes blocks in order, and what waits in
between is bounded: 256 blocks, in answers of at most 4 MiB. Why ranges end at certain heights: a
range is committed as one, and a snapshot is made of the state at exactly those heights.
What this file does not know: the network, and what a block is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

from p2p.network import PeerId

RANGE_BLOCKS_MAX: Final = 64  # in one answer, and under one sync
WINDOW_BLOCKS: Final = 256  # asked for or waiting, above our height
END_EVERY: Final = 10_000  # no range reaches over a multiple of this

T = TypeVar("T")  # a decided block


class Range(NamedTuple):
    """Heights start..stop, both included."""

    start: int
    stop: int


@dataclass(slots=True)
class _Piece(Generic[T]):
    stop: int
    peer: PeerId
    blocks: Sequence[T] | None = None  # None: asked for


class Window(Generic[T]):
    """Ranges of heights, each free, asked for, or here."""

    def __init__(self, end_every: int = END_EVERY) -> None:
        self._end_every = end_every
        self._pieces: dict[int, _Piece[T]] = {}  # start → range; they never overlap

    def claim(self, peer: PeerId, height: int, first: int, top: int) -> Range | None:
        """The lowest free range above `height` that a peer with blocks `first`..`top` may give."""
        self._forget(height)
        start = height + 1
        for begun, piece in sorted(self._pieces.items()):
            if begun > start:
                break
            start = piece.stop + 1
        stop = min(start + RANGE_BLOCKS_MAX - 1, top, height + WINDOW_BLOCKS)
        stop = min(stop, -(-start // self._end_every) * self._end_every)
        stop = min([stop, *(other - 1 for other in self._pieces if other > start)])
        if start < first or stop < start:
            return None
        self._pieces[start] = _Piece(stop, peer)
        return Range(start, stop)

    def release(self, claimed: Range) -> None:
        """Nothing came: others may be asked."""
        self._pieces.pop(claimed.start, None)

    def hold(self, claimed: Range, blocks: Sequence[T]) -> None:
        """What came for a range, from its start on; what is missing at its end is free again."""
        piece = self._pieces.get(claimed.start)
        if piece is not None:  # else the chain has passed it meanwhile
            piece.stop = claimed.start + len(blocks) - 1
            piece.blocks = blocks

    def pop(self, height: int) -> tuple[PeerId, Sequence[T]] | None:
        """Who sent the blocks that follow `height`, and those blocks; None if they are not here."""
        self._forget(height)
        for start, piece in self._pieces.items():
            if start <= height + 1 <= piece.stop and piece.blocks is not None:
                del self._pieces[start]
                return piece.peer, piece.blocks[height + 1 - start :]
        return None

    def drop(self, peer: PeerId) -> None:
        """Forget what a peer sent."""
        here = [s for s, piece in self._pieces.items() if piece.peer == peer and piece.blocks]
        for start in here:
            del self._pieces[start]

    def _forget(self, height: int) -> None:
        for start in [s for s, piece in self._pieces.items() if piece.stop <= height]:
            del self._pieces[start]
