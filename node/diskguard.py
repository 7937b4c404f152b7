"""Keeps the disk from filling: below a floor of free space the node takes on nothing new.

Why before the disk is full: a vote must be durable before it leaves, a paid answer too; a node
that stops promising while it can still write keeps all that it has promised, and goes on as a
full node. Why it opens again only well above the floor: at the edge it would flutter.
What this file does not know: who asks. Voting, proposing and serving each look at `is_low`.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from node.observe import get_log

LOOK_EVERY_S: Final = 5.0
OPENS_AT_PERCENT: Final = 120  # of the floor

log = get_log("disk")


class DiskGuard:
    """Free space below `home` against a floor in bytes; 0: never low. Run `run` in a nursery."""

    def __init__(
        self,
        home: Path,
        floor_bytes: int,
        *,
        on_change: Callable[[], None] = lambda: None,  # told by `run`
        measure: Callable[[Path], int] = lambda home: shutil.disk_usage(home).free,
    ) -> None:
        self._home = home
        self._floor_bytes = floor_bytes
        self._on_change = on_change
        self._measure = measure
        self.is_low = False
        self.free_bytes = 0  # at the last look
        self.look()

    async def run(self) -> None:
        """Forever: look."""
        while True:
            await trio.sleep(LOOK_EVERY_S)
            if self.look():
                self._on_change()

    def look(self) -> bool:
        """Measure once; whether the answer has changed."""
        free_bytes = self.free_bytes = self._measure(self._home)
        floor_bytes = self._floor_bytes * (OPENS_AT_PERCENT if self.is_low else 100) // 100
        is_low = free_bytes < floor_bytes
        if is_low == self.is_low:
            return False
        self.is_low = is_low
        if is_low:
            log.error(
                "too little free space: this node neither votes, proposes nor serves",
                free_bytes=free_bytes,
                floor_bytes=self._floor_bytes,
                mend=f"free some space where {self._home} lies, or lower storage.min_free_gb",
            )
        else:
            log.info("enough free space again", free_bytes=free_bytes)
        return True

    @property
    def why_low(self) -> str:
        """For who asks why nothing is signed or served; "" while there is room."""
        if not self.is_low:
            return ""
        return (
            f"less than {self._floor_bytes / 2**30:.0f} GiB were free where {self._home} lies; "
            f"it takes {OPENS_AT_PERCENT} % of that to go on"
        )
