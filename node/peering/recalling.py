"""Asking peers for the past: blocks from before our snapshot, when evidence speaks of one.

Why only then: evidence is rare and names a height, while all that it may name is millions of
headers. Why a block waits for it: whether evidence holds must be judged alike everywhere, so a node
that lacks the height neither votes for the block nor takes it; it asks again. Why everybody is
asked: who began with a snapshot, too, keeps and shows the heights that blocks have spoken of.
What this file does not know: evidence, and what a past block is judged for.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

import trio

from consensus.primitives.errors import Invalid
from node.following import Unanswered
from node.observe import get_log
from node.peering.lightsource import PeerSource
from node.storage.pasts import PastBlocks
from p2p.network import Network, PeerId

SOURCES_MAX: Final = 8  # peers asked for one height, in turn
FETCH_S: Final = 30.0  # for all heights of one call; the caller comes again

log = get_log("consensus")


class Recalling:
    """Fetches past blocks into `pasts`; `counters` are the replica's."""

    def __init__(self, *, network: Network, pasts: PastBlocks, counters: Counter[str]) -> None:
        self._network = network
        self._pasts = pasts
        self._counters = counters
        self._turn = 0

    async def fetch(self, heights: Sequence[int]) -> tuple[int, ...]:
        """Ask for what is missing of these heights; returns what is missing still."""
        with trio.move_on_after(FETCH_S):
            for height in self._pasts.missing(heights):
                await self._fetch(height)
        lacking = self._pasts.missing(heights)
        if lacking:
            self._counters["past_missing"] += 1
            log.warning("nobody shows a height that evidence names", heights=lacking)
        return lacking

    async def _fetch(self, height: int) -> None:
        footing = self._pasts.footing
        assert footing is not None, "nothing is missing to a node that has all blocks"
        for peer in self._peers(height):
            source = PeerSource(self._network, peer)
            self._counters["past_asked"] += 1
            try:
                past = await source.ask_past(height, footing.height)
                self._pasts.add(past, height)
            except Unanswered as error:
                log.debug("no past block from a peer", peer=source.name, why=str(error))
            except Invalid as refusal:
                self._counters["past_false"] += 1
                log.warning("a peer sent a false past", peer=source.name, code=refusal.code)
                source.blame(refusal)
            else:
                self._counters["past_found"] += 1
                log.info("past block found", height=height)
                return

    def _peers(self, height: int) -> list[PeerId]:
        """Who says it has the block behind `height`, and others, another one first each time.

        Others, too, may have kept it: blocks spoke of it since their own snapshots.
        """
        views = [view for view in self._network.peers() if view.admitted]
        having = self._turned([view.peer for view in views if view.facts.earliest <= height + 1])
        others = self._turned([view.peer for view in views if view.facts.earliest > height + 1])
        self._turn += 1
        half = max(SOURCES_MAX // 2, SOURCES_MAX - len(others))
        return (having[:half] + others)[:SOURCES_MAX]

    def _turned(self, peers: list[PeerId]) -> list[PeerId]:
        turn = self._turn % max(1, len(peers))
        return peers[turn:] + peers[:turn]
