"""Buying answers: choose a provider, promise, stream, check, acknowledge.

Why the payer can be calm: a provider that vanishes or lies can take one hold, never more; every
voucher is durable before it leaves (`promises.py`), and nothing is acknowledged that fails a check.
A receipt that fails is never acknowledged: its lane is left and its channel closed.
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
from node.ledger.amounts import price
from node.ledger.rules.channels import find_provider_key
from node.ledger.rules.staking import is_active_provider
from node.ledger.state import State
from node.ledger.wire import exchange
from node.ledger.wire.exchange import (
    Accepted,
    Alive,
    Cancel,
    Finished,
    RefusedFrame,
    Reveal,
    Start,
    Tick,
    Tokens,
)
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
    order_hash,
    pack_ids,
    prompt_commit,
    seed_commit,
)
from node.ledger.wire.receipts import Receipt
from node.wallet.checks import CheckFailed, Purchase, check_receipt
from node.wallet.promises import Opening, OwnChannel, PayerLane, Promise, PromiseBook
from p2p.errors import NetworkError
from p2p.network import FrameStream

VOUCHER_LIFE_MS: Final = 2 * 3_600_000  # a provider wants 20 minutes at least
QUANTUM: Final = 256
WRITE_S: Final = 5.0
RESUMES_MAX: Final = 2  # of a stream that broke, with the same order
LANES_TRIED_MAX: Final = 4  # of one provider that says a lane is out of step
FINISH_S: Final = 15.0  # after our deadline, for the receipt of what was delivered
ATTRIBUTE_S: Final = 120.0  # from the last token to the receipt, while it says it is alive
GRAINS_FREE: Final = 0
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


class PaymentFailed(Exception):
    """An answer could not be bought; `code` is a stable `payer.…` word, `number` a refusal's."""

    def __init__(self, code: str, number: int = 0, **facts: object) -> None:
        super().__init__(code, number, facts)
        self.code = code
        self.number = number
        self.facts = facts

    def __str__(self) -> str:
        told = ", ".join(f"{name}={value}" for name, value in self.facts.items())
        return f"{self.code} ({told})" if told else self.code


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


@dataclass(frozen=True, slots=True)
class Piece:
    """Token ids of one choice from position `start` on, and the text they add."""

    choice: int
    start: int
    ids: tuple[int, ...]
    text: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """A checked and acknowledged answer; `ids` and `text` per choice."""

    provider: bytes
    order: bytes
    receipt: Receipt
    receipt_raw: bytes
    signature: bytes
    credits: bytes
    sketch: bytes
    statement: bytes
    logprobs: bytes
    ids: tuple[tuple[int, ...], ...]
    text: tuple[bytes, ...]


class _Refused(Exception):
    def __init__(self, frame: RefusedFrame) -> None:
        super().__init__(frame.code)
        self.frame = frame


Deliver = Callable[[Piece], None]
NoteOpening = Callable[[Opening], Awaitable[None]]
RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread


class Payer:
    """A wallet that buys answers for one account. All methods from one trio task tree.

    `get_state` gives the ledger as of the newest block, `get_offers` what providers told,
    `open_stream` an `infer` stream to the peer of an offer. `open_channel(provider, cap, note)`
    awaits `note` before anything of the channel leaves, which may refuse it, and returns the
    channel's id once a block holds it; `close_channel` may return before.
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
        self._chain_id = chain_id
        self._now_ms = now_ms
        self._random = random_bytes
        self._run_blocking = run_blocking
        self._opening: dict[bytes, trio.Lock] = {}
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
            delivered = _Delivered(deliver)
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
        raise PaymentFailed("payer.no_provider", model=ask.model, version=ask.version)

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

    async def _buy(self, offer: Offer, ask: Ask, delivered: "_Delivered") -> Answer:
        for _ in range(LANES_TRIED_MAX):
            prices = self._prices(ask)
            top = self._within_limits(ask, prices)
            lane = await self._take_lane(offer.provider, top)
            try:
                return await self._buy_in_lane(offer, ask, lane, prices, delivered)
            except _Refused as refused:
                frame = refused.frame
                if frame.code == exchange.OUT_OF_STEP:
                    await self._leave_out_of_step(lane, frame)
                    continue
                word = exchange.CODE_NAMES.get(frame.code, "unknown")
                raise PaymentFailed(
                    "payer.refused", frame.code, why=word, retry_ms=frame.retry_ms
                ) from None
            except CheckFailed as failed:
                await self._run_blocking(self._book.leave, lane)
                self.counters[f"check.{failed.check}"] += 1
                with trio.move_on_after(WRITE_S):
                    await self._close_channel(lane.channel)
                raise PaymentFailed("payer.check_failed", check=failed.check) from None
            finally:
                lane.is_busy = False
        raise PaymentFailed("payer.refused", exchange.OUT_OF_STEP, why="voucher out of step")

    async def _leave_out_of_step(self, lane: PayerLane, frame: RefusedFrame) -> None:
        """What it shows may be above what we know; either way this lane is of no more use."""
        self.counters["lanes_left"] += 1
        if frame.voucher:
            try:
                await self._run_blocking(self._book.saw, frame.voucher, frame.signature)
            except Invalid:
                self.counters["vouchers_not_ours"] += 1
        if not lane.is_left:
            await self._run_blocking(self._book.leave, lane)

    def _prices(self, ask: Ask) -> tuple[int, int, int]:
        found = self._get_state().find(tables.PRICE, ask.model, ask.version)
        if found is None:
            raise PaymentFailed("payer.no_provider", model=ask.model, version=ask.version)
        new, old = found[:3], found[3:6]
        return old if self._now_ms() < found.changed_ms else new

    def _within_limits(self, ask: Ask, prices: tuple[int, int, int]) -> int:
        """The whole price, if the caller and the operator let us pay it."""
        top = price(len(ask.prompt), ask.sampling.n * ask.sampling.max_tokens, *prices)
        fee_max = self._limits.fee_max if ask.fee_max is None else ask.fee_max
        if top > min(fee_max, self._limits.fee_max):
            raise PaymentFailed("payer.fee_max", fee=top, fee_max=fee_max)
        return top

    async def _buy_in_lane(
        self,
        offer: Offer,
        ask: Ask,
        lane: PayerLane,
        prices: tuple[int, int, int],
        delivered: "_Delivered",
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
        buying = _Buying(self, offer, lane, purchase, delivered)
        return await buying.run(deadline_ms)

    # --- lanes and channels

    async def _take_lane(self, provider: bytes, hold: int) -> PayerLane:
        lock = self._opening.setdefault(provider, trio.Lock())
        async with lock:
            lane = self._find_lane(provider, hold)
            if lane is None:
                await self._open(provider, hold)
                lane = self._find_lane(provider, hold)
            if lane is None:
                raise PaymentFailed("payer.channel", why="the new channel cannot be used yet")
            lane.is_busy = True
            return lane

    def _find_lane(self, provider: bytes, hold: int) -> PayerLane | None:
        for own in self._usable(self._get_state()):
            if own.provider != provider or self._book.promised(own.channel) + hold > own.cap:
                continue
            for number in range(self._limits.lanes):
                lane = self._book.lane(own.channel, number)
                if not lane.is_busy and not lane.is_left:
                    return lane
        return None

    def _usable(self, state: State) -> list[OwnChannel]:
        """Our channels that are open, with the cap that the ledger knows."""
        usable = []
        for own in self._book.channels():
            record = state.find(tables.CHANNEL, own.channel)
            if record is not None and record.state == tables.CHANNEL_OPEN:
                usable.append(own._replace(cap=record.cap))
        return usable

    async def _open(self, provider: bytes, hold: int) -> None:
        cap = max(self._limits.channel_cap, hold)
        channel = await self._open_channel(provider, cap, self._note_opening)
        self.counters["channels_opened"] += 1
        await self._run_blocking(self._book.note_channel, OwnChannel(channel, provider, cap))

    async def _note_opening(self, opening: Opening) -> None:
        """Journal a channel that is about to be opened, if the operator lets us lock its cap."""
        locked = self._locked(but=opening.channel)
        if locked + opening.cap > self._limits.total_locked_max:
            raise PaymentFailed("payer.locked_max", locked=locked, cap=opening.cap)
        await self._run_blocking(self._book.note_opening, opening)

    def _locked(self, but: bytes) -> int:
        """What lies in our channels but one, and in those that a block may still open."""
        state = self._get_state()
        caps = {own.channel: own.cap for own in self._usable(state)}
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
        return find_provider_key(self._get_state(), provider) or provider

    def now_ms(self) -> int:
        """The wallet's clock."""
        return self._now_ms()


def _may_try_another(failure: PaymentFailed) -> bool:
    return failure.code == "payer.lost" or failure.number in _ELSEWHERE


class _Delivered:
    """What the caller has seen of each choice: a resumed stream repeats itself, we do not."""

    def __init__(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._ids: dict[int, int] = {}
        self._text: dict[int, int] = {}
        self.count = 0

    def tell(self, choice: int, ids: Sequence[int], text: bytes) -> None:
        """Hand over what is new of a choice's ids and text so far."""
        seen_ids, seen_text = self._ids.get(choice, 0), self._text.get(choice, 0)
        if len(ids) <= seen_ids and len(text) <= seen_text:
            return
        self._ids[choice] = max(seen_ids, len(ids))
        self._text[choice] = max(seen_text, len(text))
        self.count += 1
        self._deliver(Piece(choice, seen_ids, tuple(ids[seen_ids:]), text[seen_text:]))


class _Buying:
    """One order with one provider: its stream, resumed when it breaks, up to its receipt."""

    def __init__(
        self,
        payer: Payer,
        offer: Offer,
        lane: PayerLane,
        purchase: Purchase,
        delivered: _Delivered,
    ) -> None:
        self._payer = payer
        self._offer = offer
        self._lane = lane
        self._purchase = purchase
        self._delivered = delivered
        self._hash = order_hash(purchase.order_raw)
        self._promise: Promise | None = None
        self._granted = min(purchase.order.quantum, purchase.order.max_out)
        self._is_cancelled = False
        self._reset()

    def _reset(self) -> None:
        n = self._purchase.sampling.n
        self._ids: list[list[int]] = [[] for _ in range(n)]
        self._text: list[bytearray] = [bytearray() for _ in range(n)]
        self._provider_nonce: bytes | None = None

    async def run(self, deadline_ms: int) -> Answer:
        purchase = self._purchase
        hold = price(len(purchase.prompt), self._granted, *purchase.prices)
        self._promise = await self._payer.promise(self._lane, hold, self._hash)
        failure: NetworkError | None = None
        for attempt in range(1 + RESUMES_MAX):
            if attempt:
                self._payer.counters["resumed"] += 1
            self._reset()
            try:
                stream = await self._payer.open_stream(self._offer)
                try:
                    return await self._exchange(stream, deadline_ms)
                finally:
                    with trio.move_on_after(WRITE_S) as scope:
                        scope.shield = True
                        await stream.close()
            except NetworkError as error:
                failure = error
        raise PaymentFailed("payer.lost", why=str(failure) or type(failure).__name__)

    async def _exchange(self, stream: FrameStream, deadline_ms: int) -> Answer:
        assert self._promise is not None
        purchase = self._purchase
        is_payer_seeded = bool(purchase.order.flags & PAYER_SEEDED)
        start = Start(
            order=purchase.order_raw,
            prompt=pack_ids(purchase.prompt),
            sampling=encode_sampling(purchase.sampling),
            payer_nonce=purchase.payer_nonce if is_payer_seeded else b"",
            voucher=self._promise.raw,
            signature=self._promise.signature,
        )
        await _write(stream, start)
        last_news_s = trio.current_time()
        while True:
            raw = await stream.read(exchange.FRAME_BYTES_MAX, exchange.SILENCE_S)
            try:
                frame = exchange.decode_provider_frame(raw)
            except Invalid as error:
                raise CheckFailed(f"frame {error.code}") from None
            if not isinstance(frame, Alive):
                last_news_s = trio.current_time()
            match frame:
                case Accepted():
                    await self._take_accepted(stream, frame)
                case Tokens():
                    await self._take_tokens(stream, frame)
                case Alive():
                    if trio.current_time() - last_news_s > ATTRIBUTE_S:
                        raise CheckFailed("no progress")
                case Finished():
                    return await self._finish(stream, frame)
                case RefusedFrame():
                    raise _Refused(frame)
            await self._keep_deadline(stream, deadline_ms)

    async def _take_accepted(self, stream: FrameStream, frame: Accepted) -> None:
        if frame.order_hash != self._hash or self._provider_nonce is not None:
            raise CheckFailed("accepted")
        self._provider_nonce = frame.provider_nonce
        order = self._purchase.order
        if order.seed_commit != ZERO_HASH and not order.flags & PAYER_SEEDED:
            await _write(stream, Reveal(self._purchase.payer_nonce))

    async def _take_tokens(self, stream: FrameStream, frame: Tokens) -> None:
        if self._provider_nonce is None or frame.choice >= len(self._ids):
            raise CheckFailed("tokens")
        mine = self._ids[frame.choice]
        try:
            ids = exchange.unpack_ids(frame.ids)
        except Invalid:
            raise CheckFailed("tokens") from None
        if frame.start != len(mine) or self._count() + len(ids) > self._granted:
            raise CheckFailed("tokens")
        mine.extend(ids)
        self._text[frame.choice] += frame.text
        self._delivered.tell(frame.choice, mine, bytes(self._text[frame.choice]))
        order = self._purchase.order
        while self._count() >= self._granted < order.max_out and not self._is_cancelled:
            self._granted = min(order.max_out, self._granted + order.quantum)
            await self._tick(stream)

    async def _tick(self, stream: FrameStream) -> None:
        purchase = self._purchase
        hold = price(len(purchase.prompt), self._granted, *purchase.prices)
        self._promise = await self._payer.promise(self._lane, hold, self._hash)
        self._payer.counters["ticks"] += 1
        await _write(stream, Tick(self._promise.raw, self._promise.signature))

    def _count(self) -> int:
        return sum(len(ids) for ids in self._ids)

    async def _keep_deadline(self, stream: FrameStream, deadline_ms: int) -> None:
        """Late: ask for the receipt of what we have; later still: give up."""
        late_ms = self._payer.now_ms() - deadline_ms
        if late_ms > FINISH_S * 1_000:
            raise PaymentFailed("payer.lost", why="deadline")
        if late_ms > 0 and not self._is_cancelled:
            self._is_cancelled = True
            await _write(stream, Cancel(b"deadline"))

    async def _finish(self, stream: FrameStream, frame: Finished) -> Answer:
        assert self._promise is not None
        answers = tuple(tuple(ids) for ids in self._ids)
        receipt = check_receipt(
            self._purchase,
            frame,
            answers,
            provider_nonce=self._provider_nonce or ZERO_HASH,
            hold=self._promise.voucher.hold,
            key=self._payer.provider_key(self._offer.provider),
        )
        await self._payer.accept(frame)
        bare = await self._payer.promise(self._lane, GRAINS_FREE)
        try:
            await _write(stream, Tick(bare.raw, bare.signature))
        except NetworkError:  # the lane's next voucher says the same
            self._payer.counters["acknowledgements_unsent"] += 1
        return Answer(
            provider=self._offer.provider,
            order=self._purchase.order_raw,
            receipt=receipt,
            receipt_raw=frame.receipt,
            signature=frame.signature,
            credits=frame.credits,
            sketch=frame.sketch,
            statement=frame.statement,
            logprobs=frame.logprobs,
            ids=answers,
            text=tuple(bytes(text) for text in self._text),
        )


async def _write(stream: FrameStream, frame: exchange.Frame) -> None:
    await stream.write(exchange.encode_frame(frame), WRITE_S)
