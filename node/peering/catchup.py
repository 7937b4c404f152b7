"""Fetching what we lack: decided blocks by height, and one block by its id.

Why a told height steers nothing: it only makes us ask. What comes back is believed because each
block carries its certificate, and who promises blocks and has none is not asked again for a while.
Why several peers at once: the next ranges travel while the chain takes the one before them, 64
blocks under one sync, in order.
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
from node.peering.doubts import Doubts
from node.peering.window import END_EVERY, RANGE_BLOCKS_MAX, Range, Window
from node.storage.errors import MissingData
from node.storage.executing import DoubtfulBytes
from p2p.errors import Code, NetworkError, Refused
from p2p.limits import PENALTIES
from p2p.network import Network, PeerId

PROTOCOL: Final = "blocks"
BY_HEIGHT: Final = 0
BY_ID: Final = 1
BLOCKS_MAX: Final = RANGE_BLOCKS_MAX
REPLY_BYTES_MAX: Final = 4 << 20
REQUEST_S: Final = 10.0
LOOK_EVERY_S: Final = 1.0
EMPTY_PROMISES_MAX: Final = 3
IGNORED_S: Final = 60.0
LACKED_MAX: Final = 6  # doublings of that
PEERS_ASKED_MAX: Final = 4  # at once for ranges, in turn for one block by id
REST_MIN_S: Final = 0.05  # of a peer that is busy, when it does not say for how long
REST_MAX_S: Final = 2.0
HINTS_MAX: Final = 256

RANGE_REPLY: Final = ListOf(
    Record(Bytes(BLOCK_BYTES_MAX, 1), Bytes(CERTIFICATE_BYTES_MAX, 1)), BLOCKS_MAX
)
ID_REPLY: Final = Record(Bytes(BLOCK_BYTES_MAX, 1))

log = get_log("catchup")

Decided = tuple[Block, Certificate]
Take = Callable[[Sequence[Decided]], Awaitable[None]]  # raises Invalid at the first bad block
OnDoubt = Callable[[frozenset[PeerId]], None]  # all who gave the same refused bytes


class Catchup:
    """Asks peers for blocks above ours. `take` is the replica's door.

    `end_every`: blocks are taken so that our height stops at each multiple of it. `on_doubt` is
    told, each time that a decided block is refused, who gave just these bytes.
    """

    def __init__(
        self,
        *,
        network: Network,
        get_height: Callable[[], int],
        take: Take,
        end_every: int = END_EVERY,
        on_doubt: OnDoubt = lambda givers: None,
    ) -> None:
        self._on_doubt = on_doubt
        self._doubts = Doubts()
        self._lacked: dict[PeerId, int] = {}  # peer → how often in a row
        self._network = network
        self._get_height = get_height
        self._take = take
        self._window: Window[Decided] = Window(end_every)
        self._hints: dict[PeerId, int] = {}  # peer → the height it let us believe
        self._asked: set[PeerId] = set()  # a question at a time
        self._empty: Counter[PeerId] = Counter()
        self._ignored_until_s: dict[PeerId, float] = {}
        self._news = trio.Event()
        self.counters: Counter[str] = Counter()

    def hint(self, peer: PeerId, height: int) -> None:
        """A peer spoke as one that has committed `height`."""
        if peer not in self._hints and len(self._hints) >= HINTS_MAX:
            return
        if height > self._hints.get(peer, 0):
            self._hints[peer] = height
            if height > self._get_height():
                self._news.set()

    async def run(self) -> None:
        """Catch up whenever somebody is ahead, for ever."""
        async with trio.open_nursery() as nursery:
            while True:
                news = self._news = trio.Event()
                self._ask_whoever_is_ahead(nursery)
                if await self._take_next():
                    continue
                with trio.move_on_after(LOOK_EVERY_S):
                    await news.wait()

    def _ask_whoever_is_ahead(self, nursery: trio.Nursery) -> None:
        height = self._get_height()
        for peer, earliest, told in self._find_ahead(height):
            if len(self._asked) >= PEERS_ASKED_MAX:
                return
            claimed = self._window.claim(peer, height, earliest, told)
            if claimed is not None:
                self._asked.add(peer)
                nursery.start_soon(self._ask, peer, claimed)

    def _find_ahead(self, height: int) -> list[tuple[PeerId, int, int]]:
        """(peer, its first height, what it lets us believe), the most reliable peer first."""
        now_s, found = trio.current_time(), []
        connected = self._network.peers()
        for view in connected:
            told = max(view.facts.height, self._hints.get(view.peer, 0))
            if not view.admitted or told <= height or view.peer in self._asked:
                continue
            if self._ignored_until_s.get(view.peer, 0.0) <= now_s:
                found.append((view.peer, view.facts.earliest, told))
        here = {view.peer for view in connected}
        for noted in (self._hints, self._lacked):
            for peer in [peer for peer in noted if peer not in here]:
                del noted[peer]
        if len(self._ignored_until_s) > HINTS_MAX:
            late = self._ignored_until_s.items()
            self._ignored_until_s = {peer: until_s for peer, until_s in late if until_s > now_s}
        return sorted(found, key=lambda row: (self._empty[row[0]], -row[2], row[0]))

    async def _ask(self, peer: PeerId, claimed: Range) -> None:
        """One range of one peer, into the window."""
        try:
            blocks = await self._ask_range(peer, claimed)
            if blocks:
                self._window.hold(claimed, blocks)
                return
            self._window.release(claimed)
            self.counters["empty"] += 1
            await self._break_promise(peer)
        except Refused as refused:
            self._window.release(claimed)
            if refused.code in (Code.RATE_EXCEEDED, Code.BUSY):
                self.counters["waited"] += 1
                await trio.sleep(min(REST_MAX_S, max(REST_MIN_S, refused.retry_ms / 1_000)))
            else:
                await self._fail(peer, refused)
        except NetworkError as error:
            self._window.release(claimed)
            await self._fail(peer, error)
        except Invalid as refusal:
            self._window.release(claimed)
            self._blame(peer, refusal)
        finally:
            self._asked.discard(peer)
            self._news.set()

    async def _take_next(self) -> bool:
        """Hand on what follows our height; True when it brought us forward."""
        height = self._get_height()
        found = self._window.pop(height)
        if found is None:
            return False
        peer, blocks = found
        try:
            await self._take(blocks)
            self._empty[peer] = 0
            self._lacked.pop(peer, None)
        except MissingData as lacking:
            self._lack(peer, lacking)
        except DoubtfulBytes as refusal:
            self._doubt(peer, refusal)
        except Invalid as refusal:
            self._blame(peer, refusal)
        self.counters["blocks"] += max(0, self._get_height() - height)
        return self._get_height() > height

    async def _fail(self, peer: PeerId, error: NetworkError) -> None:
        self.counters["failed"] += 1
        log.debug("no blocks from a peer", peer=peer, why=str(error))
        await self._break_promise(peer)

    async def _break_promise(self, peer: PeerId) -> None:
        """Forget what the peer let us believe; after three times do not listen for a while."""
        self._hints.pop(peer, None)
        self._empty[peer] += 1
        if self._empty[peer] >= EMPTY_PROMISES_MAX:
            self._empty[peer] = 0
            self._ignored_until_s[peer] = trio.current_time() + IGNORED_S
            self._network.penalise(peer, PENALTIES["empty_promise"], "empty_promise")
        await trio.sleep(LOOK_EVERY_S)  # it is not asked again at once

    def _lack(self, peer: PeerId, lacking: MissingData) -> None:
        """What its blocks name may not exist, or nobody shows it now: others first, for longer
        each time. No blame: an honest peer's blocks may name what only it and the absent hold."""
        self.counters["lacking"] += 1
        times = self._lacked[peer] = min(self._lacked.get(peer, 0) + 1, LACKED_MAX)
        log.warning("what a peer's blocks name is not to be had", peer=peer, why=str(lacking))
        self._ignore(peer, IGNORED_S * 2 ** (times - 1))

    def _doubt(self, peer: PeerId, refusal: DoubtfulBytes) -> None:
        """The first to give such bytes is blamed; with a second the fault is more likely ours."""
        givers = self._doubts.note(self._get_height() + 1, refusal.block, peer)
        if len(givers) == 1:
            self._blame(peer, refusal)
        else:
            self.counters["doubtful"] += 1
            log.error(
                "peers agree on a decided block that is refused here",
                peers=len(givers),
                why=str(refusal),
                mend="compare this node's version and disk with others'",
            )
            self._ignore(peer)
        self._on_doubt(givers)

    def _blame(self, peer: PeerId, refusal: Invalid) -> None:
        self.counters["bad"] += 1
        log.warning("a peer sent a bad block", peer=peer, code=refusal.code)
        self._network.penalise(peer, PENALTIES["forged"], "forged")
        self._ignore(peer)

    def _ignore(self, peer: PeerId, seconds: float = IGNORED_S) -> None:
        self._hints.pop(peer, None)
        self._window.drop(peer)
        self._ignored_until_s[peer] = trio.current_time() + seconds

    async def _ask_range(self, peer: PeerId, claimed: Range) -> list[Decided]:
        count = claimed.stop - claimed.start + 1
        raw = await self._network.request(
            peer,
            PROTOCOL,
            encode((BY_HEIGHT, claimed.start, count)),
            timeout_s=REQUEST_S,
            bytes_max=REPLY_BYTES_MAX,
        )
        pairs = decode(raw, RANGE_REPLY, REPLY_BYTES_MAX, "blocks.reply")
        found = [(decode_block(block), decode_certificate(proof)) for block, proof in pairs]
        heights = [decode_header(block.header).height for block, _ in found]
        if heights != list(range(claimed.start, claimed.stop + 1))[: len(found)]:
            raise Invalid("blocks.other", start=claimed.start, count=count)
        return found

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
