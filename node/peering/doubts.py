"""Whose fault it is that a decided block is refused here: of who gave the bytes, or our own.

Why it is not plain: a header binds its payload through what execution gives, so who hands us a
decided block may have put a false payload under it. But bytes that members with more than a third
of the power give alike are given by an honest one: then our disk or our rules are wrong.
What this file does not know: what follows from it (`catchup.py` blames, `replica.py` stops).
"""

from consensus.primitives.digest import sha256
from node.ledger.wire.blocks import Block, encode_block
from p2p.network import PeerId


class Doubts:
    """Who gave which bytes of decided blocks that were refused; of one height at a time."""

    def __init__(self) -> None:
        self._height = 0
        self._givers: dict[bytes, set[PeerId]] = {}  # as many as peers that were not ignored yet

    def note(self, height: int, block: Block, giver: PeerId) -> frozenset[PeerId]:
        """Everyone who gave exactly these bytes for block `height`, `giver` among them."""
        if height != self._height:
            self._height, self._givers = height, {}
        givers = self._givers.setdefault(sha256(encode_block(block)), set())
        givers.add(giver)
        return frozenset(givers)
