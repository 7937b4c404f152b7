"""What a block tells its rules beside its payload, and nothing more.

Why no round, block id or certificate: no rule of money may read them (page 20 §11); time is the
block's own, and the signers are those of the block before.
"""

from typing import NamedTuple


class Context(NamedTuple):
    """Of the block that is executed. `last_signers` are keys; at height 1 there are none."""

    chain_id: bytes
    height: int
    time_ms: int
    proposer: bytes
    last_signers: tuple[bytes, ...]
    parent_id: bytes
