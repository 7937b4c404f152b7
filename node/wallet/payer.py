"""Who to buy an answer from, with which lane of which channel, and what to do when it fails.

Why the payer can be calm: a provider that vanishes or lies can take one hold, never more; every
voucher is durable before it leaves (`promises.py`), and nothing is acknowledged that fails a check.
A receipt that fails is never acknowledged: its lane is left and its channel closed.
Why an order that ended early is remembered: its receipt moved the provider's lane, so the lane's
next use collects it first. Why that lane comes before fresh ones: a silent provider has one hold.
What this file does not know: how a channel reaches the ledger, tokenizers, who asks.
"""

import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import trio

from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid
from node.ledger import tables
from node.ledger.amounts import GRAINS_PER_OPEN, price
from node.ledger.rules.accounts import current_key
from node.ledger.rules.models import prices_at
from node.ledger.rules.staking import is_active_provider
from node.ledger.state import State
from node.ledger.wire import exchange
from node.ledger.wire.exchange import Finished, RefusedFrame
from node.ledger.wire.orders import (
    LANES,
    PAYER_SEEDED,
    SALT_BYTES,
    VERSION,
    ZERO_HASH,
    Offer,
    Order,
    OrderSampling,
    encode_order,
    encode_sampling,
    prompt_commit,
    seed_commit,
)
from node.ledger.wire.receipts import decode_receipt, verify_receipt
from node.wallet.buying import (
    WRITE_S,
    Answer,
    Buying,
    Deliver,
    Delivered,
    OrderRefused,
    PaymentFailed,
    Piece,
    lost,
)
from node.wallet.checks import CheckFailed, Purchase
from node.wallet.promises import Opening, OwnChannel, PayerLane, Promise, PromiseBook
from p2p.errors import NetworkError
from p2p.network import FrameStream

VOUCHER_LIFE_MS: Final = 2 * 3_600_000  # a provider wants 20 minutes at least
QUANTUM: Final = 256
LANES_TRIED_MAX: Final = 4  # of one provider that says a lane is out of step, or busy with an order
OPEN_ORDERS_MAX: Final = 4  # of one lane, remembered
BUSY_WAIT_S: Final = 1.0  # while the provider ends an order whose caller hung up
FORGET_AFTER_MS: Final = 60_000  # of an expired transaction: blocks that we have not seen yet

_ELSEWHERE: Final = frozenset(
    {
        exchange.BUSY,
        exchange.RATE_EXCEEDED,
        exchange.OUR_FAILURE,
        exchange.CLOSING,
        exchange.UNKNOWN_CHANNEL,
        exchange.NOT_SERVED,
        exchange.OVER_LIMITS,
        exchange.ADAPTER_LOADING,
        exchange.OVERLOADED,
        exchange.DEADLINE,
        exchange.GENERATION_FAILED,
        exchange.OUT_OF_STEP,
    }
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator lets this wallet spend; grains."""

    channel_cap: int
    total_locked_max: int
    fee_max: int
    providers_tried: int = 2
    lanes: int = 8

    def __post_init__(self) -> None:
        assert 1 <= self.lanes <= LANES


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `seed`: 32 bytes of the caller's own, then the answer is repeatable."""

    model: int
    version: int
    prompt: tuple[int, ...]
    sampling: OrderSampling
    seed: bytes | None = None
    provider: bytes | None = None
    flags: int = 0
    fee_max: int | None = None
    quantum: int = QUANTUM
    timeout_s: float = 120.0


NoteOpening = Callable[[Opening], Awaitable[None]]
RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread


class Payer:
    """A wallet that buys answers for one account. All methods from one trio task tree.

    `get_state` gives the ledger as of the newest block, `get_offers` what providers told,
    `open_stream` an `infer` stream to the peer of an offer. `open_channel(provider, cap, note)`
    awaits `note` before anything of the channel leaves, which may refuse it, and returns the
    channel's id once a block holds it; `close_channel` may return before. `note_signed` gets
    each receipt that a provider has signed, with the signature, also one that fails our checks.
    """

    def __init__(
        self,
        *,
        account: bytes,
        book: PromiseBook,
        limits: Limits,
        get_state: Callable[[], State],
        get_offers: Callable[[], Sequence[Offer]],
        open_stream: Callable[[Offer], Awaitable[FrameStream]],
        open_channel: Callable[[bytes, int, NoteOpening], Awaitable[bytes]],
        close_channel: Callable[[bytes], Awaitable[None]],
        note_signed: Callable[[bytes, bytes], None],
        chain_id: bytes,
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        self._account = account
        self._book = book
        self._limits = limits
        self._get_state = get_state
        self._get_offers = get_offers
        self._open_stream = open_stream
        self._open_channel = open_channel
        self._close_channel = close_channel
        self._note_signed = note_signed
        self._chain_id = chain_id
        self._now_ms = now_ms
        self._random = random_bytes
        self._run_blocking = run_blocking
        self._opening: dict[bytes, trio.Lock] = {}
        self._noting = trio.Lock()  # from the look at the limit until the opening counts
        self._closing: set[bytes] = set()
        self._ended_early: dict[tuple[bytes, int], list[Buying]] = {}
        self.counters: Counter[str] = Counter()

    # --- asking

    async def ask(self, ask: Ask, deliver: Deliver = lambda piece: None) -> Answer:
        """Buy one answer. `deliver` gets each piece at once and must not wait.

        Raises PaymentFailed: `payer.no_provider`, `payer.fee_max`, `payer.locked_max`,
        `payer.refused` (number = the provider's code), `payer.lost`, `payer.check_failed`.
        A cancel leaves the promise standing: at most its hold may be settled.
        """
        tried: list[PaymentFailed] = []
        for offer in self.choose_offers(ask)[: self._limits.providers_tried]:
            delivered = Delivered(deliver)
            try:
                answer = await self._buy(offer, ask, delivered)
            except PaymentFailed as failure:
                self.counters[failure.code] += 1
                tried.append(failure)
                if delivered.count or not _may_try_another(failure):
                    raise
                continue
            self.counters["answers"] += 1
            self.counters["spent_grains"] += answer.receipt.fee
            return answer
        if tried:
            raise tried[-1]
        mend = (
            "after a start ask again in half a minute, as often as offers come; olnode query "
            "models tells how many providers there are, olnode peers list who is here"
        )
        raise PaymentFailed("payer.no_provider", model=ask.model, version=ask.version, mend=mend)

    @asynccontextmanager
    async def infer(self, ask: Ask) -> AsyncIterator[AsyncIterator[Piece | Answer]]:
        """The same as a stream: pieces, then exactly one Answer. Leaving it early cancels."""
        room = ask.sampling.n * ask.sampling.max_tokens + 2 * ask.sampling.n + 2
        send, receive = trio.open_memory_channel[Piece | Answer | PaymentFailed](room)

        async def work() -> None:
            try:
                send.send_nowait(await self.ask(ask, send.send_nowait))
            except PaymentFailed as failure:
                send.send_nowait(failure)
            finally:
                send.close()

        async def items() -> AsyncIterator[Piece | Answer]:
            async for item in receive:
                if isinstance(item, PaymentFailed):
                    raise item
                yield item

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            yield items()
            nursery.cancel_scope.cancel()

    # --- choosing

    def choose_offers(self, ask: Ask) -> list[Offer]:
        """Offers of active providers for the version, best first: loaded, open channel, cheap."""
        state, now_ms = self._get_state(), self._now_ms()
        open_with = {own.provider for own in self._usable(state)}
        found = []
        for offer in self._get_offers():
            if ask.provider not in (None, offer.provider) or offer.expires_ms <= now_ms:
                continue
            if not is_active_provider(state, offer.provider):
                continue
            for model in offer.models:
                if (model.model, model.model_version) == (ask.model, ask.version):
                    rank = (
                        not model.ready,
                        offer.provider not in open_with,
                        -model.discount_bps,
                        offer.load.waiting,
                        offer.load.p50_ms,
                        offer.provider,
                    )
                    found.append((rank, offer))
        return [offer for _, offer in sorted(found, key=lambda item: item[0])]

    # --- one provider

    async def _buy(self, offer: Offer, ask: Ask, delivered: "Delivered") -> Answer:
        for _ in range(LANES_TRIED_MAX):
            prices = self._prices(ask)
            top = self._within_limits(ask, prices)
            lane = await self._take_lane(offer.provider, top)
            try:
                answer = await self._buy_in_step(offer, ask, lane, prices, delivered)
                if answer is not None:
                    return answer
            except OrderRefused as refused:
                frame = refused.frame
                word = exchange.CODE_NAMES.get(frame.code, "unknown")
                raise PaymentFailed(
                    "payer.refused", frame.code, why=word, retry_ms=frame.retry_ms
                ) from None
            except CheckFailed as failed:
                await self._run_blocking(self._book.leave, lane)
                self.counters[f"check.{failed.check}"] += 1
                with trio.move_on_after(WRITE_S):
                    await self._retire(lane.channel)
                raise PaymentFailed("payer.check_failed", check=failed.check) from None
            finally:
                lane.is_busy = False
        raise PaymentFailed("payer.refused", exchange.OUT_OF_STEP, why="voucher out of step")

    async def _buy_in_step(
        self,
        offer: Offer,
        ask: Ask,
        lane: PayerLane,
        prices: tuple[int, int, int],
        delivered: "Delivered",
    ) -> Answer | None:
        """Buy it behind what ended early in the lane; None: nothing was bought, try again."""
        has_collected = await self._collect(offer, lane)
        earlier = self._open_orders(lane)
        try:
            return await self._buy_in_lane(offer, ask, lane, prices, delivered)
        except OrderRefused as refused:
            frame = refused.frame
            if frame.code == exchange.OUT_OF_STEP:
                await self._put_in_step(offer, lane, frame)
            elif (
                frame.code == exchange.BUSY  # with an earlier order, not with this one
                and (earlier or has_collected)
                and earlier == self._open_orders(lane)
            ):
                await trio.sleep(BUSY_WAIT_S)
            else:
                raise
            if delivered.count:  # another answer must not follow the beginning of this one
                raise
            return None

    def _open_orders(self, lane: PayerLane) -> list[Buying]:
        """Orders of the lane's next number that ended before their receipt came, oldest first."""
        orders = self._ended_early.get((lane.channel, lane.number), [])
        return [x for x in orders if x.seq == lane.seq + 1 and not lane.is_left]

    async def _collect(self, offer: Offer, lane: PayerLane) -> bool:
        """Take the receipt of what ended early in this lane; whether there was one."""
        for buying in reversed(self._open_orders(lane)):
            try:
                receipt = await buying.collect(offer)
            except NetworkError as error:
                raise lost(error) from None
            if receipt is not None:
                self._ended_early.pop((lane.channel, lane.number), None)
                self.counters["receipts_late"] += 1
                self.counters["spent_grains"] += receipt.fee
                return True
        return False

    async def _put_in_step(self, offer: Offer, lane: PayerLane, frame: RefusedFrame) -> None:
        """Behind a receipt that we lack, the lane goes on; otherwise it is of no more use.

        The voucher that is shown may be above what we know, then nothing helps.
        """
        if frame.voucher:
            try:
                await self._run_blocking(self._book.saw, frame.voucher, frame.signature)
            except Invalid:
                self.counters["vouchers_not_ours"] += 1
        if not lane.is_left and await self._collect(offer, lane):
            return
        self.counters["lanes_left"] += 1
        if not lane.is_left:
            await self._run_blocking(self._book.leave, lane)

    def _prices(self, ask: Ask) -> tuple[int, int, int]:
        found = self._get_state().find(tables.PRICE, ask.model, ask.version)
        if found is None:
            raise PaymentFailed("payer.no_provider", model=ask.model, version=ask.version)
        return prices_at(found, self._now_ms())

    def _within_limits(self, ask: Ask, prices: tuple[int, int, int]) -> int:
        """The whole price, if the caller and the operator let us pay it."""
        top = price(len(ask.prompt), ask.sampling.n * ask.sampling.max_tokens, *prices)
        ours = self._limits.fee_max
        fee_max = ours if ask.fee_max is None else min(ours, ask.fee_max)
        if top > fee_max:
            setting = "max_fee_open under [payer] in config.toml"
            limit = setting if fee_max == ours else "the max_fee of this request"
            mend = f"it may cost {_in_open(top)} OPEN; raise {limit} ({_in_open(fee_max)})"
            raise PaymentFailed("payer.fee_max", fee=top, fee_max=fee_max, mend=mend)
        return top

    async def _buy_in_lane(
        self,
        offer: Offer,
        ask: Ask,
        lane: PayerLane,
        prices: tuple[int, int, int],
        delivered: "Delivered",
    ) -> Answer:
        deadline_ms = self._now_ms() + int(ask.timeout_s * 1_000)
        salt, nonce = self._random(SALT_BYTES), ask.seed or self._random(32)
        is_seeded = ask.sampling.temperature_milli > 0
        order = Order(
            version=VERSION,
            model=ask.model,
            model_version=ask.version,
            max_in=len(ask.prompt),
            max_out=ask.sampling.n * ask.sampling.max_tokens,
            prompt_commit=prompt_commit(salt, ask.prompt),
            sampling_hash=sha256(encode_sampling(ask.sampling)),
            seed_commit=seed_commit(nonce) if is_seeded else ZERO_HASH,
            quantum=ask.quantum,
            deadline_ms=deadline_ms,
            flags=ask.flags | (PAYER_SEEDED if ask.seed and is_seeded else 0),
            salt16=salt,
        )
        purchase = Purchase(
            chain_id=self._chain_id,
            order=order,
            order_raw=encode_order(order),
            prompt=ask.prompt,
            sampling=ask.sampling,
            payer_nonce=nonce if is_seeded else ZERO_HASH,
            prices=prices,
            channel=lane.channel,
            lane=lane.number,
            seq=lane.seq + 1,
        )
        buying = Buying(self, offer, lane, purchase, delivered)
        try:
            return await buying.run(deadline_ms)
        finally:
            orders = [] if buying.is_accepted else self._open_orders(lane)
            orders += [buying] * buying.is_open
            self._ended_early[lane.channel, lane.number] = orders[-OPEN_ORDERS_MAX:]

    # --- lanes and channels

    async def _take_lane(self, provider: bytes, hold: int) -> PayerLane:
        lock = self._opening.setdefault(provider, trio.Lock())
        async with lock:
            lane = self._find_lane(provider, hold)
            if lane is None:
                for channel in self._useless(provider, hold):
                    await self._retire(channel)
                await self._open(provider, hold)
                lane = self._find_lane(provider, hold)
            if lane is None:
                raise PaymentFailed("payer.channel", why="the new channel cannot be used yet")
            lane.is_busy = True
            return lane

    def _find_lane(self, provider: bytes, hold: int) -> PayerLane | None:
        """A lane that is free, one with an order to collect before a fresh one."""
        fresh: PayerLane | None = None
        for own in self._usable(self._get_state()):
            if own.provider != provider or self._book.promised(own.channel) + hold > own.cap:
                continue
            for lane in self._lanes(own.channel):
                if lane.is_busy or lane.is_left:
                    continue
                if self._open_orders(lane):
                    return lane
                fresh = fresh or lane
        return fresh

    def _lanes(self, channel: bytes) -> list[PayerLane]:
        return [self._book.lane(channel, number) for number in range(self._limits.lanes)]

    def _usable(self, state: State) -> list[OwnChannel]:
        """Our channels that are open, with the cap that the ledger knows."""
        usable = []
        for own in self._book.channels():
            record = state.find(tables.CHANNEL, own.channel)
            if record is None or record.state != tables.CHANNEL_OPEN:
                continue
            if own.channel not in self._closing:
                usable.append(own._replace(cap=record.cap))
        return usable

    def _useless(self, provider: bytes, hold: int) -> list[bytes]:
        """Channels that lock money for nothing: all lanes left, full, or its provider is gone."""
        state, useless = self._get_state(), []
        for own in self._usable(state):
            lanes = self._lanes(own.channel)
            if any(lane.is_busy for lane in lanes):
                continue
            is_full = (
                own.provider == provider
                and self._book.promised(own.channel) + hold > own.cap
                and not any(self._open_orders(lane) for lane in lanes)
            )
            is_dead = all(lane.is_left for lane in lanes)
            if is_full or is_dead or not is_active_provider(state, own.provider):
                useless.append(own.channel)
        return useless

    async def _retire(self, channel: bytes) -> None:
        """Close it, once; a close that the ledger does not take is tried again at another time."""
        if channel in self._closing:
            return
        self._closing.add(channel)
        is_closed = False
        try:
            await self._close_channel(channel)
            is_closed = True
            self.counters["channels_closed"] += 1
        except Invalid:
            self.counters["closes_failed"] += 1
        finally:
            if not is_closed:
                self._closing.discard(channel)

    async def _open(self, provider: bytes, hold: int) -> None:
        cap = max(self._limits.channel_cap, hold)
        channel = await self._open_channel(provider, cap, self._note_opening)
        self.counters["channels_opened"] += 1
        await self._run_blocking(self._book.note_channel, OwnChannel(channel, provider, cap))

    async def _note_opening(self, opening: Opening) -> None:
        """Journal a channel that is about to be opened, if the operator lets us lock its cap."""
        async with self._noting:
            locked, most = self._locked(but=opening.channel), self._limits.total_locked_max
            if locked + opening.cap > most:
                mend = (
                    f"{_in_open(locked)} OPEN lie in channels and this one takes "
                    f"{_in_open(opening.cap)}; raise total_locked_open ({_in_open(most)}) under "
                    "[payer] in config.toml, or wait until closed channels have returned theirs"
                )
                raise PaymentFailed("payer.locked_max", locked=locked, cap=opening.cap, mend=mend)
            await self._run_blocking(self._book.note_opening, opening)

    def _locked(self, but: bytes) -> int:
        """What lies in our channels but one, and in those that a block may still open.

        A channel that is closing holds its money until the ledger has given it back.
        """
        state = self._get_state()
        caps = {}
        for own in self._book.channels():
            record = state.find(tables.CHANNEL, own.channel)
            if record is not None and record.state != tables.CHANNEL_CLOSED:
                caps[own.channel] = record.cap - record.paid
        nonce, now_ms = state.account(self._account).nonce, self._now_ms()
        for opening in self._book.openings():
            may_come = opening.nonce >= nonce and now_ms < opening.until_ms + FORGET_AFTER_MS
            if may_come and not state.has(tables.CHANNEL, opening.channel):
                caps[opening.channel] = opening.cap
        return sum(cap for channel, cap in caps.items() if channel != but)

    # --- what a purchase needs of us

    async def promise(self, lane: PayerLane, hold: int, order: bytes = ZERO_HASH) -> Promise:
        """A durable voucher of this lane."""
        expires_ms = self._now_ms() + VOUCHER_LIFE_MS
        promise: Promise = await self._run_blocking(
            lambda: self._book.promise(lane, hold=hold, order_hash=order, expires_ms=expires_ms)
        )
        return promise

    def see(self, finished: Finished, provider: bytes, channel: bytes) -> None:
        """Remember what the provider has signed of our channel, whatever it is worth."""
        try:
            receipt = decode_receipt(finished.receipt)
            key = self.provider_key(provider)
            verify_receipt(self._chain_id, finished.receipt, finished.signature, key)
        except Invalid:
            return
        if receipt.channel == channel:
            self._note_signed(finished.receipt, finished.signature)

    async def accept(self, finished: Finished) -> None:
        """Keep a checked receipt."""
        await self._run_blocking(
            self._book.accept, finished.receipt, finished.signature, finished.credits
        )

    async def open_stream(self, offer: Offer) -> FrameStream:
        """A stream to the offer's peer."""
        return await self._open_stream(offer)

    def provider_key(self, provider: bytes) -> bytes:
        """The key a receipt must be signed with."""
        return current_key(self._get_state(), provider)

    def now_ms(self) -> int:
        """The wallet's clock."""
        return self._now_ms()


def _in_open(grains: int) -> str:
    """Grains as OPEN, exactly and without needless zeros."""
    whole, part = divmod(grains, GRAINS_PER_OPEN)
    return f"{whole}.{part:09d}".rstrip("0").rstrip(".")


def _may_try_another(failure: PaymentFailed) -> bool:
    return failure.code == "payer.lost" or failure.number in _ELSEWHERE
