"""One order with one provider: its stream, resumed when it breaks, up to its checked receipt.

Why a broken stream costs nothing more: the same order is asked again, the provider gives what it
gave, and the caller hears only what is new. Why a tick a quantum: whoever vanishes has one hold.
Why an order outlives its caller: who hangs up has had something, so its receipt is collected later.
What this file does not know: how a provider is chosen, lanes, channels, other orders.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from consensus.primitives.errors import Invalid
from node.ledger.amounts import price
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
    PAYER_SEEDED,
    ZERO_HASH,
    Offer,
    encode_sampling,
    order_hash,
    pack_ids,
)
from node.ledger.wire.receipts import Receipt
from node.wallet.checks import CheckFailed, Purchase, check_receipt
from node.wallet.disclosure import Disclosure
from node.wallet.promises import PayerLane, Promise
from p2p.errors import NetworkError
from p2p.network import FrameStream, part

WRITE_S: Final = 5.0
RESUMES_MAX: Final = 2  # of a stream that broke, with the same order
FINISH_S: Final = 15.0  # after our deadline, for the receipt of what was delivered
ATTRIBUTE_S: Final = 120.0  # from the last token to the receipt, while it says it is alive
GRAINS_FREE: Final = 0


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
    logprobs: bytes
    ids: tuple[tuple[int, ...], ...]
    text: tuple[bytes, ...]
    disclosure: Disclosure


class OrderRefused(Exception):
    """The provider does no work for this order; `frame` says why."""

    def __init__(self, frame: RefusedFrame) -> None:
        super().__init__(frame.code)
        self.frame = frame


Deliver = Callable[[Piece], None]


class Wallet(Protocol):
    """What a purchase needs of the wallet that makes it."""

    counters: Counter[str]

    async def promise(self, lane: PayerLane, hold: int, order: bytes = ZERO_HASH) -> Promise:
        """A durable voucher of this lane."""
        ...

    def see(self, finished: Finished, provider: bytes, channel: bytes) -> None:
        """Remember what the provider has signed of our channel, whatever it is worth."""
        ...

    async def accept(self, finished: Finished) -> None:
        """Keep a checked receipt."""
        ...

    async def open_stream(self, offer: Offer) -> FrameStream:
        """A stream to the offer's peer."""
        ...

    def provider_key(self, provider: bytes) -> bytes:
        """The key a receipt must be signed with."""
        ...

    def now_ms(self) -> int:
        """The wallet's clock."""
        ...


class Delivered:
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


class Buying:
    """An order in a lane that nothing else uses meanwhile."""

    def __init__(
        self,
        payer: Wallet,
        offer: Offer,
        lane: PayerLane,
        purchase: Purchase,
        delivered: Delivered,
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
        self.is_accepted = False  # by the provider: older orders of this number are void
        self.is_open = False  # a receipt may come that we do not have
        self._reset()

    @property
    def seq(self) -> int:
        """Its number in its lane."""
        return self._purchase.seq

    def _reset(self) -> None:
        n = self._purchase.sampling.n
        self._ids: list[list[int]] = [[] for _ in range(n)]
        self._text: list[bytearray] = [bytearray() for _ in range(n)]
        self._provider_nonce: bytes | None = None

    async def run(self, deadline_ms: int) -> Answer:
        """Buy it. Raises PaymentFailed `payer.lost`, OrderRefused, CheckFailed."""
        purchase = self._purchase
        hold = price(len(purchase.prompt), self._granted, *purchase.prices)
        self._promise = await self._payer.promise(self._lane, hold, self._hash)
        failure: NetworkError | None = None
        for attempt in range(1 + RESUMES_MAX):
            if attempt:
                self._payer.counters["resumed"] += 1
            self._reset()
            try:
                return await self._try(self._start(), deadline_ms)
            except NetworkError as error:
                failure = error
            except OrderRefused:
                self.is_open = attempt > 0  # an earlier stream's work may be under way still
                raise
        raise lost(failure)

    async def collect(self, offer: Offer) -> Receipt | None:
        """Take and acknowledge the receipt of what was served; None where there is none yet.

        Asked without its prompt: an answer that is kept comes back, and no new work can begin.
        Raises NetworkError, CheckFailed, PaymentFailed `payer.lost`.
        """
        self._offer = offer
        self._delivered = Delivered(lambda piece: None)
        self._is_cancelled = True
        self._reset()
        start = self._start()._replace(prompt=b"", sampling=b"", payer_nonce=b"")
        try:
            answer = await self._try(start, self._payer.now_ms())
        except OrderRefused:
            return None
        return answer.receipt

    def _start(self) -> Start:
        assert self._promise is not None
        purchase = self._purchase
        is_payer_seeded = bool(purchase.order.flags & PAYER_SEEDED)
        return Start(
            order=purchase.order_raw,
            prompt=pack_ids(purchase.prompt),
            sampling=encode_sampling(purchase.sampling),
            payer_nonce=purchase.payer_nonce if is_payer_seeded else b"",
            voucher=self._promise.raw,
            signature=self._promise.signature,
        )

    async def _try(self, start: Start, deadline_ms: int) -> Answer:
        """One stream."""
        stream = await self._payer.open_stream(self._offer)
        try:
            return await self._exchange(stream, start, deadline_ms)
        finally:
            with trio.move_on_after(WRITE_S) as scope:
                scope.shield = True
                await part(stream, exchange.FRAME_BYTES_MAX)

    async def _exchange(self, stream: FrameStream, start: Start, deadline_ms: int) -> Answer:
        self.is_open = True
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
                    raise OrderRefused(frame)
            await self._keep_deadline(stream, deadline_ms)

    async def _take_accepted(self, stream: FrameStream, frame: Accepted) -> None:
        if frame.order_hash != self._hash or self._provider_nonce is not None:
            raise CheckFailed("accepted")
        self._provider_nonce = frame.provider_nonce
        self.is_accepted = True
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
        self._payer.see(frame, self._offer.provider, self._purchase.channel)
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
        self.is_open = False
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
            logprobs=frame.logprobs,
            ids=answers,
            text=tuple(bytes(text) for text in self._text),
            disclosure=Disclosure(
                order=self._purchase.order_raw,
                payer_nonce=self._purchase.payer_nonce,
                provider_nonce=self._provider_nonce or ZERO_HASH,
                prompt=self._purchase.prompt,
                answers=answers,
                sketch=frame.sketch,
                statement=frame.statement,
            ),
        )


def lost(error: NetworkError | None) -> PaymentFailed:
    """The provider's side is gone or silent."""
    return PaymentFailed("payer.lost", why=str(error) or type(error).__name__)


async def _write(stream: FrameStream, frame: exchange.Frame) -> None:
    await stream.write(exchange.encode_frame(frame), WRITE_S)
