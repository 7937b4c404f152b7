"""All that no block has settled, as one bundle for others to keep: they tell it when we are gone.

Why the last receipts are claimed from their holds: it is told only when a channel closes, and then
no acknowledgement comes any more. Why it is made anew each minute, and sooner when something of it
has settled: a bundle settles whole or not at all, so one lane that went on makes all of it void.
Why a number far above those that we tell meanwhile: the ledger takes only greater ones, so a kept
bundle would be void with the next that settles; told after all, it costs us the open ones below,
and `bundling.py` cuts what it left anew.
What this file does not know: who keeps it, and how they are reached.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from node.ledger import tables
from node.ledger.rules.channels import find_provider_key, lane_of
from node.ledger.state import State
from node.ledger.wire import bundles
from node.ledger.wire.bundles import Bundle, build_bundle, decode_section
from node.serving.book import ProviderLane, ReceiptBook, cut_section
from node.serving.bundling import Packing, expires_ms

LOOK_S: Final = 1.0
REFRESH_S: Final = 60.0
SOON_S: Final = 10.0  # between two, also where the first is void
WAITED_MS: Final = 5_000  # a receipt that gossip and a block have not settled by then
VOUCHER_LEFT_MS: Final = 10 * 60_000  # a void section would sink the others; it is settled by then
BYTES_MAX: Final = bundles.BODY_BYTES_MAX - 64 * 1_024  # the heads of its arrays

RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread


class Entruster:
    """Hands over what is not settled. Run `run` in a nursery.

    `hand` gives a bundle to others; returns how many keep it.
    """

    def __init__(
        self,
        *,
        book: ReceiptBook,
        chain_id: bytes,
        provider: bytes,
        sign: Callable[[bytes], bytes],
        get_state: Callable[[], State],
        hand: Callable[[Bundle], Awaitable[int]],
        now_ms: Callable[[], int],
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        self._book = book
        self._chain_id = chain_id
        self._provider = provider
        self._sign = sign
        self._get_state = get_state
        self._hand = hand
        self._now_ms = now_ms
        self._run_blocking = run_blocking
        self._handed_s = float("-inf")
        self._number = 0  # of the bundle handed last
        self._begins: dict[tuple[bytes, int], int] = {}  # its lanes, from which receipt on
        self.counters: Counter[str] = Counter()

    async def run(self) -> None:
        """Forever: look once a second."""
        while True:
            await self.look()
            await trio.sleep(LOOK_S)

    async def look(self) -> None:
        """Hand over what waits to be settled, where that is due."""
        state = self._get_state()
        if find_provider_key(state, self._provider) is None or not self._is_due(state):
            return
        packing, begins = self._gather(state)
        self._handed_s = trio.current_time()  # also where nothing fits: gathering costs as much
        if packing.parts:
            await self._entrust(state, packing, begins)

    def _is_due(self, state: State) -> bool:
        waited_s = trio.current_time() - self._handed_s
        if waited_s < (SOON_S if self._is_void(state) else REFRESH_S):
            return False
        before_ms = self._now_ms() - WAITED_MS
        lanes = self._book.lanes()
        return any(
            lane.unsettled and lane.unsettled[0].receipt.finished_ms <= before_ms for lane in lanes
        )

    def _is_void(self, state: State) -> bool:
        """Whether the ledger would not take any more what was handed last."""
        if state.get(tables.PROVIDER, self._provider).bundle_seq >= self._number:
            return True
        return any(
            lane_of(state, channel, number).seq >= from_seq
            for (channel, number), from_seq in self._begins.items()
        )

    def _gather(self, state: State) -> tuple[Packing, dict[tuple[bytes, int], int]]:
        packing, begins = Packing(bundles.RECEIPTS_MAX, BYTES_MAX), {}
        for lane in self._book.lanes():
            part = self._cut(state, lane)
            if part is not None and packing.take(state, lane, part):
                begins[lane.channel, lane.number] = decode_section(part.section).from_seq
        return packing, begins

    def _cut(self, state: State, lane: ProviderLane) -> bundles.BodyPart | None:
        channel = state.find(tables.CHANNEL, lane.channel)
        if not lane.unsettled or channel is None or channel.state == tables.CHANNEL_CLOSED:
            return None
        settled = lane_of(state, lane.channel, lane.number)
        part = cut_section(lane, may_claim=True, after_seq=settled.seq)
        if part is not None and expires_ms(part) < self._now_ms() + VOUCHER_LEFT_MS:
            return None
        return part

    async def _entrust(
        self, state: State, packing: Packing, begins: dict[tuple[bytes, int], int]
    ) -> None:
        settled = state.get(tables.PROVIDER, self._provider).bundle_seq
        number = self._book.next_reserved_seq(settled)
        bundle = await self._run_blocking(self._build, number, packing.parts)
        self._number, self._begins = number, begins
        keepers = await self._hand(bundle)
        self.counters["bundles"] += 1
        self.counters["kept"] += keepers
        self.counters["unkept"] += not keepers

    def _build(self, number: int, parts: list[bundles.BodyPart]) -> Bundle:
        """In a thread: one of 4,096 receipts takes some 30 ms. Its number is noted durably."""
        bundle = build_bundle(
            chain_id=self._chain_id,
            provider=self._provider,
            bundle_seq=number,
            parts=parts,
            sign=self._sign,
        )
        self._book.note_bundle(bundle.header)
        return bundle
