"""What a block tells its rules beside its payload, and nothing more.

Why no round, block id or certificate: no rule of money may read them (page 20 §11); time is the
block's own, and the signers are those of the block before. Why the past heights come along: a
rule that punishes must know who voted then and when that was, and a pure rule looks nothing up.
"""

from typing import NamedTuple

from consensus.attacks import Decided
from consensus.validators import ValidatorSet


class PastHeight(NamedTuple):
    """A decided height that evidence speaks of: its header's time, and the set that signed it.

    `decided`: our own block there, with the commit that the next block carries; None until that
    is decided too.
    """

    height: int
    time_ms: int
    validators: ValidatorSet
    decided: Decided | None = None


class Context(NamedTuple):
    """Of the block that is executed. `last_signers` are keys; at height 1 there are none.

    `past`: every decided height that the payload's evidence speaks of.
    """

    chain_id: bytes
    height: int
    time_ms: int
    proposer: bytes
    last_signers: tuple[bytes, ...]
    parent_id: bytes
    past: tuple[PastHeight, ...] = ()

    def find_past(self, height: int) -> PastHeight | None:
        """What was handed along of a height; None if it is not decided yet."""
        return next((past for past in self.past if past.height == height), None)
