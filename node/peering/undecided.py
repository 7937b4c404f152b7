"""Blocks of the height being decided, what we found about them, and who waits for that.

Why messages wait: the engine is told a message together with the verdict on its block, and missing
data is never a verdict. Why only named blocks are kept: a block costs nothing to invent, so bytes
are taken only when a checked message or a quorum names their id.
What this file does not know: how a block is fetched or executed.
"""

from collections import Counter, OrderedDict
from typing import Final, NamedTuple

from consensus.certificate import Certificate
from consensus.messages import Proposal
from node.ledger.wire.blocks import Block

BLOCKS_MAX: Final = 16  # of one height; the oldest that nobody waits for goes first
WAITING_MAX: Final = 256  # messages
LACKING_MAX: Final = 3  # tries with the same bytes that name what nobody shows


class Waiting(NamedTuple):
    """A checked message that needs the verdict on its block."""

    message: Proposal | Certificate
    timely: bool
    source: bytes  # the peer that told it: it should have the block


class Undecided:
    """Bytes and verdicts by block id, for one height."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()
        self._verdicts: dict[bytes, bool] = {}
        self._waiting: dict[bytes, list[Waiting]] = {}
        self._lacking: Counter[bytes] = Counter()
        self.at_work: set[bytes] = set()  # ids being fetched or executed

    def clear(self) -> None:
        """A new height: nothing of this matters any more."""
        self._blocks.clear()
        self._verdicts.clear()
        self._waiting.clear()
        self._lacking.clear()
        self.at_work = set()

    def find(self, block_id: bytes) -> Block | None:
        """The bytes of a block, if we hold them."""
        return self._blocks.get(block_id)

    def verdict(self, block_id: bytes) -> bool | None:
        """What execution said, or None while it has not."""
        return self._verdicts.get(block_id)

    def is_waited_for(self, block_id: bytes) -> bool:
        """Whether a message waits for the verdict on this block."""
        return block_id in self._waiting

    def ids_without_bytes(self) -> list[bytes]:
        """Blocks that messages wait for and nobody has given us."""
        return [block_id for block_id in self._waiting if block_id not in self._blocks]

    def ids_without_verdict(self) -> list[bytes]:
        """Blocks we hold, that messages wait for, and that were not executed to the end."""
        return [block_id for block_id in self._waiting if block_id in self._blocks]

    def sources(self, block_id: bytes) -> list[bytes]:
        """The peers that named a block."""
        return [waiting.source for waiting in self._waiting.get(block_id, ())]

    def wait(self, block_id: bytes, waiting: Waiting) -> bool:
        """Keep a message until its verdict; False when too many wait already."""
        if sum(map(len, self._waiting.values())) >= WAITING_MAX:
            return False
        self._waiting.setdefault(block_id, []).append(waiting)
        return True

    def put(self, block_id: bytes, block: Block) -> None:
        """Keep the bytes of a block that somebody named."""
        self._blocks[block_id] = block
        for old in list(self._blocks):
            if len(self._blocks) <= BLOCKS_MAX:
                break
            if old not in self._waiting and old != block_id:
                del self._blocks[old]

    def forget(self, block_id: bytes) -> None:
        """These bytes are not what the id stands for: others must give us better ones."""
        self._blocks.pop(block_id, None)

    def lack(self, block_id: bytes) -> bool:
        """No verdict, since something that the bytes name is not to be had.

        After LACKING_MAX times they are forgotten, and True is returned: they may be false, and
        name what does not exist.
        """
        self._lacking[block_id] += 1
        if self._lacking[block_id] < LACKING_MAX:
            return False
        del self._lacking[block_id]
        self.forget(block_id)
        return True

    def judge(self, block_id: bytes, is_valid: bool) -> list[Waiting]:
        """Note the verdict; returns the messages that waited for it."""
        self._verdicts[block_id] = is_valid
        return self._waiting.pop(block_id, [])
