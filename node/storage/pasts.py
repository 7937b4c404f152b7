"""Blocks from before our snapshot, of which evidence spoke: proved, and kept beside the block log.

    past/<height>      only of evidence that held

Why single blocks and not all of them: evidence may be three weeks old, which is 1.8 million headers
at one a second, while an offence names one. Why a file for each that was used: blocks of our log
that hold such evidence must be executed again when the database is lost, with no peer to ask.
Why files are believed: each proves itself against the block that our log stands on, and they go
when it goes; one that does not, of a bad disk, is as none. It stays: while the database stands on a
snapshot of our own, the log may still need it.
What this file does not know: peers, and what evidence is.
"""

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from typing import Final

from consensus.header import Header
from consensus.pastblocks import (
    PastBlock,
    decode_past_block,
    encode_past_block,
    verify_past_block,
)
from consensus.primitives.errors import Invalid
from node.storage.errors import MissingData
from node.storage.segments import sync_directory, write_durably

PASTS_NAME: Final = "past"
HELD_MAX: Final = 64  # proved and not yet used, in memory: evidence of 8 payloads


class MissingPast(MissingData):
    """Heights from before our snapshot that evidence names, and of which we hold nothing."""

    def __init__(self, heights: tuple[int, ...]) -> None:
        super().__init__(f"heights before our snapshot are not known: {heights}")
        self.heights = heights


class PastBlocks:
    """What one home knows of the blocks before `footing`, the one its log stands on. Any thread.

    None: the log begins with block 1, and nothing is ever missing.
    """

    def __init__(self, folder: Path, footing: Header | None) -> None:
        self._folder = folder
        self._lock = Lock()  # of what is held
        self._held: OrderedDict[int, PastBlock] = OrderedDict()  # proved
        self.footing = footing

    def is_before(self, height: int) -> bool:
        """Whether a height is one of those that our block log has not seen."""
        return self.footing is not None and 1 <= height < self.footing.height

    def missing(self, heights: Iterable[int]) -> tuple[int, ...]:
        """Those of `heights` that must be fetched. May read small files."""
        return tuple(
            height for height in heights if self.is_before(height) and self.find(height) is None
        )

    def find(self, height: int) -> PastBlock | None:
        """The block of a height before our snapshot, if it is here and proves itself."""
        with self._lock:
            past = self._held.get(height)
        return self._read(height) if past is None else past

    def add(self, past: PastBlock, height: int) -> None:
        """Hold what a peer told of `height`. Raises `Invalid` unless it is true."""
        assert self.footing is not None
        verify_past_block(past, height, self.footing)
        self._hold(past)

    def keep(self, heights: Iterable[int]) -> None:
        """Make these durable: a block that needs them will be voted for. Blocks for fsyncs.

        Raises `MissingPast` for one that is held no more: others came since it was looked at.
        """
        for height in heights:
            if not self.is_before(height) or self._read(height) is not None:
                continue
            past = self.find(height)
            if past is None:
                raise MissingPast((height,))
            self._folder.mkdir(mode=0o700, exist_ok=True)
            write_durably(self._path(height), encode_past_block(past))
            sync_directory(self._folder)
            sync_directory(self._folder.parent)

    def _hold(self, past: PastBlock) -> None:
        with self._lock:
            self._held[past.height] = past
            while len(self._held) > HELD_MAX:
                self._held.popitem(last=False)

    def _read(self, height: int) -> PastBlock | None:
        if self.footing is None:
            return None
        try:
            return read_past(self._path(height), self.footing)
        except (FileNotFoundError, Invalid):
            return None

    def _path(self, height: int) -> Path:
        return self._folder / str(height)


def read_past(path: Path, footing: Header) -> PastBlock:
    """What one of the files holds; raises `Invalid` unless it proves itself under `footing`."""
    past = decode_past_block(path.read_bytes())
    if str(past.height) != path.name or past.height >= footing.height:
        raise Invalid("past.name", height=past.height)
    verify_past_block(past, past.height, footing)
    return past
