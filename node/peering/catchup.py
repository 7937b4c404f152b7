"""Fetching what we lack: decided blocks by height, and one block by its id.

Why a told height steers nothing: it only makes us ask. What comes back is believed because each
block carries its certificate, and who promises blocks and has none is not asked again for a while.
Why one range at a time: the chain takes 64 blocks under one sync, and executes them in order.
What this file does not know: whether a block is good. The replica, the one writer, judges it.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

import trio

from consensus.certificate import Certificate, decode_certificate
from consensus.header import decode_header
from consensus.params import BLOCK_BYTES_MAX, CERTIFICATE_BYTES_MAX
from consensus.primitives.encoding import Bytes, ListOf, Record, decode, encode
from consensus.primitives.errors import Invalid
from node.ledger.wire.blocks import Block, decode_block
from node.observe import get_log
from p2p.errors import NetworkError
from p2p.limits import PENALTIES
from p2p.network import Network, PeerId

PROTOCOL: Final = "blocks"
BY_HEIGHT: Final = 0
BY_ID: Final = 1
BLOCKS_MAX: Final = 64  # in one answer
REPLY_BYTES_MAX: Final = 4 << 20
REQUEST_S: Final = 10.0
LOOK_EVERY_S: Final = 1.0
EMPTY_PROMISES_MAX: Final = 3
IGNORED_S: Final = 60.0
PEERS_ASKED_MAX: Final = 4  # for one block by id
HINTS_MAX: Final = 256

RANGE_REPLY: Final = ListOf(
    Record(Bytes(BLOCK_BYTES_MAX, 1), Bytes(CERTIFICATE_BYTES_MAX, 1)), BLOCKS_MAX
)
ID_REPLY: Final = Record(Bytes(BLOCK_BYTES_MAX, 1))

log = get_log("catchup")

Decided = tuple[Block, Certificate]
Take = Callable[[Sequence[Decided]], Awaitable[None]]  # raises Invalid at the first bad block


class Catchup:
    """Asks peers for blocks above ours. `take` is the replica's door."""

    def __init__(self, *, network: Network, get_height: Callable[[], int], take: Take) -> None:
        self._network = network
        self._get_height = get_height
        self._take = take
        self._hints: dict[PeerId, int] = {}  # peer → the height it let us believe
        self._empty: Counter[PeerId] = Counter()
        self._ignored_until_s: dict[PeerId, float] = {}
        self._hinted = trio.Event()
        self.counters: Counter[str] = Counter()

    def hint(self, peer: PeerId, height: int) -> None:
        """A peer spoke as one that has committed `height`."""
        if peer not in self._hints and len(self._hints) >= HINTS_MAX:
            return
        if height > self._hints.get(peer, 0):
            self._hints[peer] = height
            if height > self._get_height():
                self._hinted.set()

    async def run(self) -> None:
        """Catch up whenever somebody is ahead, for ever."""
        while True:
            with trio.move_on_after(LOOK_EVERY_S):
                await self._hinted.wait()
            self._hinted = trio.Event()
            while (peer := self._find_ahead()) is not None:
                if not await self._fetch_from(peer):
                    break

    def _find_ahead(self) -> PeerId | None:
        """The connected peer of the greatest promise above our height."""
        now_s, height = trio.current_time(), self._get_height()
        best: tuple[int, PeerId] | None = None
        connected = self._network.peers()
        for view in connected:
            told = max(view.facts.height, self._hints.get(view.peer, 0))
            if not view.admitted or told <= height:
                continue
            if self._ignored_until_s.get(view.peer, 0.0) > now_s:
                continue
            if best is None or (told, view.peer) > best:
                best = told, view.peer
        here = {view.peer for view in connected}
        for peer in [peer for peer in self._hints if peer not in here]:
            del self._hints[peer]
        return None if best is None else best[1]

    async def _fetch_from(self, peer: PeerId) -> bool:
        """One range; True when it brought us forward."""
        height = self._get_height()
        try:
            blocks = await self._ask_range(peer, height + 1)
        except NetworkError as error:
            self.counters["failed"] += 1
            log.debug("no blocks from a peer", peer=peer, why=str(error))
            self._break_promise(peer)
            return False
        except Invalid as refusal:
            self._blame(peer, refusal)
            return False
        if not blocks:
            self.counters["empty"] += 1
            self._break_promise(peer)
            return False
        try:
            await self._take(blocks)
        except Invalid as refusal:
            self._blame(peer, refusal)
        self._empty[peer] = 0
        self.counters["blocks"] += max(0, self._get_height() - height)
        return self._get_height() > height

    def _break_promise(self, peer: PeerId) -> None:
        """Forget what the peer let us believe; after three times do not listen for a while."""
        self._hints.pop(peer, None)
        self._empty[peer] += 1
        if self._empty[peer] >= EMPTY_PROMISES_MAX:
            self._empty[peer] = 0
            self._ignored_until_s[peer] = trio.current_time() + IGNORED_S
            self._network.penalise(peer, PENALTIES["empty_promise"], "empty_promise")

    def _blame(self, peer: PeerId, refusal: Invalid) -> None:
        self.counters["bad"] += 1
        log.warning("a peer sent a bad block", peer=peer, code=refusal.code)
        self._network.penalise(peer, PENALTIES["forged"], "forged")
        self._hints.pop(peer, None)
        self._ignored_until_s[peer] = trio.current_time() + IGNORED_S

    async def _ask_range(self, peer: PeerId, start: int) -> list[Decided]:
        raw = await self._network.request(
            peer,
            PROTOCOL,
            encode((BY_HEIGHT, start, BLOCKS_MAX)),
            timeout_s=REQUEST_S,
            bytes_max=REPLY_BYTES_MAX,
        )
        pairs = decode(raw, RANGE_REPLY, REPLY_BYTES_MAX, "blocks.reply")
        blocks = [(decode_block(block), decode_certificate(proof)) for block, proof in pairs]
        # Old blocks are true too: who promised most and told those would be asked for ever.
        for height, (block, _) in enumerate(blocks, start):
            told = decode_header(block.header).height
            if told != height:
                raise Invalid("blocks.other_height", asked=height, told=told)
        return blocks

    async def fetch_block(self, block_id: bytes, peers: Iterable[PeerId]) -> Block | None:
        """The block with this id from the first of a few peers that has it, or None."""
        for peer in list(dict.fromkeys(peers))[:PEERS_ASKED_MAX]:
            try:
                raw = await self._network.request(
                    peer,
                    PROTOCOL,
                    encode((BY_ID, block_id)),
                    timeout_s=REQUEST_S,
                    bytes_max=REPLY_BYTES_MAX,
                )
                (encoded,) = decode(raw, ID_REPLY, REPLY_BYTES_MAX, "blocks.reply")
                block = decode_block(encoded)
                if decode_header(block.header).block_id() != block_id:
                    raise Invalid("blocks.other", block_id=block_id)
            except NetworkError:
                self.counters["failed"] += 1
            except Invalid as refusal:
                self._blame(peer, refusal)
            else:
                return block
        return None
