"""What a validator must remember of its last word, so that a restart never contradicts it.

Why the locks are in it: a vote alone keeps us from signing twice in a round; the lock keeps the
next round from undoing what this one may have decided.
"""

from dataclasses import dataclass
from typing import Final

from consensus.header import NIL

NO_ROUND: Final = -1

Point = tuple[int, bytes]  # (round, block id)
NOWHERE: Final[Point] = (NO_ROUND, NIL)

SIGNED_PROPOSAL: Final = 0  # 1 and 2 are the kinds of votes


@dataclass(frozen=True, slots=True)
class SignerRecord:
    """Our last signed body, and what we were locked on when we signed it."""

    kind: int  # 0 proposal, 1 prevote, 2 precommit
    height: int
    round: int
    body: bytes  # 48 bytes of a proposal, 45 of a vote
    locked: Point = NOWHERE
    valid: Point = NOWHERE

    def place(self) -> tuple[int, int, int]:
        """(height, round, kind): a validator's words only ever go up."""
        return self.height, self.round, self.kind
