"""Receipts into bundles, each second or at 256, offered until the ledger has them.

Why acknowledged receipts first: a claim from the hold costs every checker a second signature, so
the last receipt of a lane waits some seconds for its acknowledgement. Why a bundle that does not
settle is cut anew under a higher number: lanes settle in order, so one that was lost or refused
would hold up all behind it; a number is never used twice. Why its lanes then go apart: one section
that the ledger never takes would sink the others with it, again and again.
What this file does not know: gossip, pools, how an answer came about.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import trio

from node.ledger import tables
from node.ledger.rules.channels import find_provider_key, lane_of
from node.ledger.state import State
from node.ledger.wire.bundles import (
    SECTIONS_MAX,
    TOTALS_MAX,
    BodyPart,
    Bundle,
    build_bundle,
    decode_section,
)
from node.ledger.wire.orders import decode_voucher
from node.serving.book import KEEP_MS, UNSETTLED_MAX, ProviderLane, ReceiptBook, cut_section

CUT_EVERY_S: Final = 1.0
RECEIPTS_MAX: Final = 256  # of one bundle
BYTES_MAX: Final = 384 << 10
OPEN_MAX: Final = 8
CLAIM_AFTER_MS: Final = 10_000
EXPIRY_MARGIN_MS: Final = 10_000  # what a block's time may be ahead of our clock, and its gossip
CLAIM_EXPIRY_MS: Final = 10 * 60_000  # of the voucher that pays
RECUT_MS: Final = 30_000

RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread


@dataclass(frozen=True, slots=True)
class OpenBundle:
    """A bundle offered and not settled; `ends`: (channel, lane) → its last receipt there."""

    bundle: Bundle
    bundle_seq: int
    offered_ms: int
    ends: dict[tuple[bytes, int], int]


class Packing:
    """Sections for one bundle: within its limits, and all of one base."""

    def __init__(self, receipts_max: int, bytes_max: int) -> None:
        self._receipts_left, self._bytes_left = receipts_max, bytes_max
        self._base = b""
        self._versions: set[tuple[int, int]] = set()
        self.parts: list[BodyPart] = []

    def take(self, state: State, lane: ProviderLane, part: BodyPart) -> bool:
        """Take a section of `lane`, if it may stand beside the others; the first always may."""
        base = state.get(tables.MODEL, lane.unsettled[-1].receipt.model).base
        length = sum(map(len, (*part.receipts, *part.credits, part.section))) + 16
        served = {(item.receipt.model, item.receipt.model_version) for item in lane.unsettled}
        fits = (
            len(part.receipts) <= self._receipts_left
            and length <= self._bytes_left
            and len(self._versions | served) <= TOTALS_MAX
            and len(self.parts) < SECTIONS_MAX
        )
        if self._base not in (b"", base) or (self.parts and not fits):
            return False
        self._base = base
        self._versions |= served
        self._receipts_left -= len(part.receipts)
        self._bytes_left -= length
        self.parts.append(part)
        return True


class Bundler:
    """Cuts and offers the bundles of one provider. Run `run` in a nursery."""

    def __init__(
        self,
        *,
        book: ReceiptBook,
        chain_id: bytes,
        provider: bytes,
        sign: Callable[[bytes], bytes],
        get_state: Callable[[], State],
        offer_bundle: Callable[[Bundle], Awaitable[None]],
        now_ms: Callable[[], int],
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        self._book = book
        self._chain_id = chain_id
        self._provider = provider
        self._sign = sign
        self._get_state = get_state
        self._offer_bundle = offer_bundle
        self._now_ms = now_ms
        self._run_blocking = run_blocking
        self._open: list[OpenBundle] = []
        self._failures: Counter[tuple[bytes, int]] = Counter()  # of a lane's bundles, in a row
        self._full = trio.Event()
        self._since_prune = 0
        self.counters: Counter[str] = Counter()

    async def run(self) -> None:
        """Forever: look at the ledger, cut, offer."""
        while True:
            with trio.move_on_after(CUT_EVERY_S):
                await self._full.wait()
            self._full = trio.Event()
            await self.turn()

    def note_receipt(self) -> None:
        """A receipt was signed: wakes the bundler when there are enough for a bundle."""
        if sum(lane.uncut for lane in self._book.lanes()) >= RECEIPTS_MAX:
            self._full.set()

    async def turn(self) -> None:
        """One look: settle what the ledger has, give up what it will not take, cut the rest."""
        state, now_ms = self._get_state(), self._now_ms()
        if find_provider_key(state, self._provider) is None:
            return  # not registered yet, or jailed: nothing of ours can be settled
        self._settle(state)
        self._give_up(state, now_ms)
        while len(self._open) < OPEN_MAX:
            parts, lanes = self._gather(state, now_ms)
            if not parts:
                break
            await self._offer(state, parts, lanes, now_ms)
        self._since_prune += 1
        if self._since_prune >= 3_600:
            self._since_prune = 0
            await self._run_blocking(self._book.prune, now_ms - KEEP_MS)

    @property
    def open_count(self) -> int:
        """Bundles offered and not settled."""
        return len(self._open)

    def _settle(self, state: State) -> None:
        for lane in self._book.lanes():
            if lane.unsettled:
                before = len(lane.unsettled)
                self._book.settle(lane, lane_of(state, lane.channel, lane.number))
                self.counters["settled"] += before - len(lane.unsettled)
        for open_ in self._open:
            if _is_settled(state, open_):
                for place in open_.ends:
                    self._failures.pop(place, None)
        self._open = [open_ for open_ in self._open if not _is_settled(state, open_)]

    def _give_up(self, state: State, now_ms: int) -> None:
        """Cut all open bundles anew once one of them has waited too long or was passed by."""
        settled = state.get(tables.PROVIDER, self._provider).bundle_seq
        late = [open_ for open_ in self._open if now_ms - open_.offered_ms > RECUT_MS]
        is_passed = any(open_.bundle_seq <= settled for open_ in self._open)
        if not late and not is_passed:
            return
        for open_ in late:
            self._failures.update(open_.ends.keys())
        self.counters["recut"] += len(self._open)
        self._open = []
        for lane in self._book.lanes():
            lane.cut_seq = lane_of(state, lane.channel, lane.number).seq

    def _gather(
        self, state: State, now_ms: int
    ) -> tuple[list[BodyPart], list[tuple[ProviderLane, int]]]:
        """Sections for one bundle within its limits, all of one base; and where they end.

        A lane whose last bundle failed comes behind the others, in a bundle of its own.
        """
        packing, ends = Packing(RECEIPTS_MAX, BYTES_MAX), []
        for lane in sorted(self._book.lanes(), key=self._failures_of):
            is_apart = self._failures_of(lane) > 0
            if is_apart and packing.parts:
                break
            part = self._cut(state, lane, now_ms)
            if part is not None and packing.take(state, lane, part):
                ends.append((lane, decode_section(part.section).to_seq))
                if is_apart:
                    break
        return packing.parts, ends

    def _failures_of(self, lane: ProviderLane) -> int:
        return self._failures[lane.channel, lane.number]

    def _cut(self, state: State, lane: ProviderLane, now_ms: int) -> BodyPart | None:
        if not lane.unsettled:
            return None
        channel = state.find(tables.CHANNEL, lane.channel)
        if channel is None or channel.state == tables.CHANNEL_CLOSED:
            self.counters["lost"] += len(lane.unsettled)
            lane.unsettled.clear()  # nothing can be settled any more
            self._failures.pop((lane.channel, lane.number), None)
            return None
        assert lane.voucher is not None
        last = lane.unsettled[-1].receipt
        is_urgent = (
            channel.state == tables.CHANNEL_CLOSING
            or lane.voucher.expires_ms - now_ms < CLAIM_EXPIRY_MS
        )
        may_claim = is_urgent or now_ms - last.finished_ms > CLAIM_AFTER_MS
        part = cut_section(lane, may_claim=may_claim, after_seq=lane.cut_seq)
        if part is not None and expires_ms(part) < now_ms + EXPIRY_MARGIN_MS:
            # One void section would sink the whole bundle. It waits for the payer's next voucher.
            self.counters["expired"] += 1
            return None
        return part

    async def _offer(
        self,
        state: State,
        parts: list[BodyPart],
        ends: list[tuple[ProviderLane, int]],
        now_ms: int,
    ) -> None:
        settled = state.get(tables.PROVIDER, self._provider).bundle_seq
        number = self._book.next_bundle_seq(settled)
        bundle = build_bundle(
            chain_id=self._chain_id,
            provider=self._provider,
            bundle_seq=number,
            parts=parts,
            sign=self._sign,
        )
        await self._run_blocking(self._book.note_bundle, bundle.header)
        for lane, to_seq in ends:
            lane.cut_seq = to_seq
        places = {(lane.channel, lane.number): to_seq for lane, to_seq in ends}
        self._open.append(OpenBundle(bundle, number, now_ms, places))
        self.counters["bundles"] += 1
        await self._offer_bundle(bundle)


def expires_ms(part: BodyPart) -> int:
    """Until when a section's voucher is good."""
    return decode_voucher(decode_section(part.section).voucher).expires_ms


def _is_settled(state: State, open_: OpenBundle) -> bool:
    return all(
        lane_of(state, channel, number).seq >= to_seq
        for (channel, number), to_seq in open_.ends.items()
    )


assert UNSETTLED_MAX <= RECEIPTS_MAX, "a lane's section must fit into a bundle"
