"""Blocks found and executed beside the replica's task: others' before a vote, ours in our turn.

Why beside it: a vote must not wait for a big block. Why one at a time: a block is executed on the
state of its parent, and the chain has one writer. A refusal that other bytes could turn into a
valid block is told as such; missing bodies, a missing past and our own failures are no verdict at
all.
What this file does not know: who proposed when, and what the engine makes of a verdict.
"""

from collections.abc import Awaitable, Callable, Sequence

import trio

from consensus.certificate import Certificate
from consensus.header import decode_header
from consensus.primitives.errors import Invalid
from node.ledger.wire.blocks import Block
from node.observe import get_log
from node.peering.catchup import Catchup
from node.peering.inbox import Executed, Fetched, Means, OwnBlock
from node.peering.proposer import Built, Proposer
from node.peering.undecided import Undecided
from node.storage.chain import Verdict
from node.storage.errors import MissingData
from p2p.network import PeerId

FetchBodies = Callable[[Sequence[bytes], Sequence[PeerId]], Awaitable[Sequence[bytes]]]
FetchPast = Callable[[Sequence[int]], Awaitable[Sequence[int]]]

log = get_log("consensus")


class Execution:
    """Works on blocks of the next height; what comes of it arrives in the replica's inbox.

    `writer` is held by whoever executes or commits, in one thread at a time. `find_validators`
    gives the peers that other validators run on. `fetch_past(heights)` gets blocks from before our
    snapshot and returns the heights that nobody showed.
    """

    def __init__(
        self,
        means: Means,
        *,
        undecided: Undecided,
        proposer: Proposer,
        catchup: Catchup,
        fetch_bodies: FetchBodies,
        fetch_past: FetchPast,
        find_validators: Callable[[], list[PeerId]],
    ) -> None:
        self._means, self._chain = means, means.chain
        self._undecided = undecided
        self._proposer = proposer
        self._catchup = catchup
        self._fetch_bodies = fetch_bodies
        self._fetch_past = fetch_past
        self._find_validators = find_validators
        self.writer = trio.Lock()

    # --- others' blocks

    def seek(self, block_id: bytes) -> None:
        """Execute a block, or fetch it first; one task per id."""
        if block_id in self._undecided.at_work or self._undecided.verdict(block_id) is not None:
            return
        block = self._undecided.find(block_id)
        if block is not None:
            self.start(block_id, block, None)
            return
        self._undecided.at_work.add(block_id)
        peers = [PeerId(peer) for peer in self._undecided.sources(block_id)]
        self._means.spawn(self._fetch, self._chain.height + 1, block_id, peers)

    def start(self, block_id: bytes, block: Block, source: PeerId | None) -> None:
        """Execute a block whose bytes are here; `source` may have its bodies."""
        if block_id in self._undecided.at_work:
            return
        self._undecided.at_work.add(block_id)
        self._means.spawn(self._execute, block_id, block, source)

    async def _fetch(self, height: int, block_id: bytes, peers: list[PeerId]) -> None:
        others = self._find_validators()
        # From another one each time: few are asked at once, and the first may all be down.
        turn = self._means.counters["block_fetches"] % max(1, len(others))
        self._means.counters["block_fetches"] += 1
        peers += others[turn:] + others[:turn]
        block = await self._catchup.fetch_block(block_id, peers)
        self._means.inbox.put(Fetched(height, block_id, block))

    async def _execute(self, block_id: bytes, block: Block, source: PeerId | None) -> None:
        height = decode_header(block.header).height
        verdict: Verdict | None = None
        try:
            if await self._has_all(block, source):
                verdict = await self.execute_now(block)
        except Invalid as refusal:  # the payload is none: other bytes may stand under this id
            verdict = Verdict(block_id, is_valid=False, is_final=False, code=refusal.code)
        self._means.inbox.put(Executed(height, block_id, block, verdict))

    async def _has_all(self, block: Block, source: PeerId | None) -> bool:
        """Fetch what executing a block needs and we lack; False while some of it is missing."""
        bodies: Sequence[bytes] = self._chain.missing_bodies(block)
        if bodies:
            peers = ([source] if source is not None else []) + self._find_validators()
            bodies = await self._fetch_bodies(bodies, peers)
        past: Sequence[int] = self._chain.missing_past(block)
        if past:
            past = await self._fetch_past(past)
        return not bodies and not past

    async def execute_now(self, block: Block) -> Verdict | None:
        """The verdict; None when something is missing, or when we failed ourselves."""
        height = decode_header(block.header).height
        async with self.writer:
            if height != self._chain.height + 1:
                return None
            try:
                verdict: Verdict = await self._means.run_blocking(
                    self._chain.execute, block, self._proposer.known()
                )
            except MissingData:
                self._means.counters["data_missing"] += 1
                return None
            except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
                # Our own failure on a proposal is no verdict: we do not vote for it, and if it
                # is decided all the same, committing it fails again and ends the process.
                self._means.counters["own_failures"] += 1
                log.error(
                    "a proposed block could not be executed",
                    height=height,
                    exc_info=error,
                    mend="report this as a bug",
                )
                return None
        return verdict

    async def execute_again(self, block_id: bytes) -> None:
        """A block found valid before, and pushed out of the chain's memory by others since."""
        block = self._undecided.find(block_id)
        assert block is not None, "told valid, so it was here"
        await self.execute_now(block)

    # --- our blocks

    def begin_build(
        self, height: int, round: int, get_last_certificate: Callable[[], Certificate | None]
    ) -> None:
        """Make the block of (height, round); the last certificate is asked for when it is made."""
        self._means.spawn(self._build, height, round, get_last_certificate)

    async def _build(
        self, height: int, round: int, get_last_certificate: Callable[[], Certificate | None]
    ) -> None:
        tip = self._chain.tip
        if tip.height + 1 != height:
            return
        # Our clock may be behind the parent's: wait until it is past it.
        await trio.sleep(max(0, tip.time_ms + 1 - self._means.now_ms()) / 1_000)
        picked = self._proposer.pick()
        certificate = get_last_certificate()
        async with self.writer:
            if self._chain.height + 1 != height:
                return
            time_ms = max(self._means.now_ms(), tip.time_ms + 1)
            run_blocking = self._means.run_blocking
            try:
                built: Built = await run_blocking(
                    self._proposer.build, picked, time_ms, certificate
                )
            except (Invalid, MissingData) as refusal:
                self._means.counters["own_refused"] += 1
                log.error("own payload refused", why=str(refusal), mend="report this as a bug")
                built = await run_blocking(self._proposer.build_empty, time_ms, certificate)
        self._means.inbox.put(OwnBlock(height, round, built))
