"""One order from start to receipt: verify, generate, stream, attribute, sign, keep, send.

Why the request and not the stream is billed: a payer that goes away has had what was delivered, so
its receipt is signed and kept, and comes back when the same order is asked again. The receipt is
durable before it leaves (page 30 §7, page 50 §7, page 70 §7).
What this file does not know: libp2p, the ledger's rules, how credits are computed.
"""

import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import trio

from consensus.primitives.errors import Invalid
from node.attribution.citing import Retrieved
from node.ledger.amounts import BPS, price
from node.ledger.rules.channels import find_spender_key
from node.ledger.state import State
from node.ledger.wire import exchange
from node.ledger.wire.exchange import (
    Accepted,
    Alive,
    Finished,
    RefusedFrame,
    Reveal,
    Start,
    Tick,
    Tokens,
)
from node.ledger.wire.orders import (
    PRIVATE,
    REMOTE_OK,
    VERSION,
    ZERO_HASH,
    decode_order,
    decode_voucher,
    order_hash,
    pack_ids,
    seed_commit,
    verify_voucher,
)
from node.ledger.wire.receipts import (
    COMPLETE,
    PARTIAL,
    Receipt,
    answer_root,
    attribution_root,
    decode_receipt,
    encode_credits,
    encode_receipt,
    receipt_message,
)
from node.serving import verify
from node.serving.attributing import UNATTRIBUTED, Attributed
from node.serving.book import ProviderLane, ReceiptBook, Served
from node.serving.checking import (
    RETRY_MS,
    FindModel,
    Job,
    OrderRefused,
    check_expiry,
    check_step,
    engine_sampling,
    verify_order,
)
from node.serving.delivering import (
    IDS_PER_FRAME,
    Answer,
    flush,
    gather,
    note_event,
    pump,
    send_tails,
)
from node.serving.engine import (
    BadAdapter,
    DeadlinePassed,
    Engine,
    EngineError,
    EngineLost,
    GenRequest,
    Overloaded,
    Stream,
    Token,
    TooLong,
    UnknownAdapter,
    Unsupported,
    WrongBase,
    logprob_bytes,
)
from node.serving.line import Event, FrameStream, Line, Lost
from node.serving.sampling import joint_seed
from node.serving.timing import Timing

ACK_S: Final = 5.0
LOADING_S: Final = 0.8 * exchange.SILENCE_S  # then the payer is told, before it gives us up
CLOSE_S: Final = 2.0
FRAMES_WAITING: Final = 64
REFUSE_FAULT: Final = ((Overloaded, exchange.OVERLOADED), (TooLong, exchange.OVER_LIMITS),
                       (UnknownAdapter, exchange.ADAPTER_LOADING),
                       (BadAdapter, exchange.NOT_SERVED), (WrongBase, exchange.NOT_SERVED),
                       (DeadlinePassed, exchange.DEADLINE),
                       (EngineLost, exchange.GENERATION_FAILED),
                       (Unsupported, exchange.NOT_SERVED))  # fmt: skip

Attribute = Callable[
    [int, int, Sequence[int], Sequence[Sequence[int]], Sequence[int]], Awaitable[Attributed]
]
Retrieve = Callable[[int, int, Sequence[int], int], Awaitable[Retrieved]]
Version = tuple[int, int]  # model, model version
RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread


class InferenceService:
    """Serves `infer` streams for one provider.

    `stream_errors`: what reading or writing a stream may raise. `sign`: with the provider's key.
    `retrieve` puts records before a prompt, where a version's answers cite them. `is_current`:
    whether our ledger is as far as the others'; prices and promises are judged by it.
    `has_engine`: whether a worker serves now. `has_room`: whether a receipt can be kept. `blame`
    is told of a peer that sent what is no frame, or began with another than a start.
    """

    def __init__(
        self,
        *,
        chain_id: bytes,
        provider: bytes,
        sign: Callable[[bytes], bytes],
        engine: Engine,
        retrieve: Retrieve,
        attribute: Attribute,
        book: ReceiptBook,
        find_model: FindModel,
        get_state: Callable[[], State],
        is_current: Callable[[], bool],
        has_engine: Callable[[], bool],
        has_room: Callable[[], bool],
        note_receipt: Callable[[], None],
        blame: Callable[[bytes], None],
        stream_errors: tuple[type[Exception], ...],
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        self._chain_id = chain_id
        self._provider = provider
        self._sign = sign
        self._engine = engine
        self._retrieve = retrieve
        self._attribute = attribute
        self._book = book
        self._find_model = find_model
        self._get_state = get_state
        self._is_current = is_current
        self._has_engine = has_engine
        self._has_room = has_room
        self._note_receipt = note_receipt
        self._blame = blame
        self._stream_errors = stream_errors
        self._now_ms = now_ms
        self._random = random_bytes
        self._run_blocking = run_blocking
        self.counters: Counter[str] = Counter()
        self.served: Counter[Version] = Counter()  # answers signed since the start
        self.earned: Counter[Version] = Counter()  # and their fees, in grains
        self.receipt_delay = Timing()  # from the last token until the receipt was sent
        self.under_way = 0  # orders that are being served
        self._is_draining = False

    def drain(self) -> None:
        """Take no new order from now on; those under way go on to their receipts."""
        self._is_draining = True

    async def serve(self, peer: bytes, stream: FrameStream) -> None:
        """One stream, to its end. A cancel leaves no receipt for what was not signed yet."""
        send, receive = trio.open_memory_channel[Event](FRAMES_WAITING)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read, peer, stream, send)
            line = Line(stream, receive, self._stream_errors)
            try:
                await self._conduct(peer, line, send)
            except OrderRefused as refused:
                self.counters[f"refused.{refused.code}"] += 1
                await self._refuse(line, refused)
            nursery.cancel_scope.cancel()

    async def _read(
        self, peer: bytes, stream: FrameStream, send: "trio.MemorySendChannel[Event]"
    ) -> None:
        """Payer's frames into the request's queue; a false frame ends the stream like a loss."""
        while True:
            try:
                raw = await stream.read(exchange.FRAME_BYTES_MAX, float("inf"))
                frame = exchange.decode_payer_frame(raw)
            except Invalid:
                self.counters["malformed"] += 1
                self._blame(peer)
                await send.send(Lost())
                return
            except self._stream_errors:
                await send.send(Lost())
                return
            await send.send(frame)

    async def _conduct(
        self, peer: bytes, line: Line, send: "trio.MemorySendChannel[Event]"
    ) -> None:
        start = await line.next(exchange.START_WITHIN_S)
        if not isinstance(start, Start):
            if start is not None:
                self._blame(peer)
            raise OrderRefused(exchange.MALFORMED, "no start")
        stored = self._find_stored(start)
        if stored is not None:
            await self._send_again(line, start, stored)
            return
        if self._is_draining:
            raise OrderRefused(exchange.BUSY, "this node is about to stop", RETRY_MS)
        if not self._is_current():
            raise OrderRefused(exchange.BUSY, "our ledger is behind", RETRY_MS)
        if not self._has_room():
            raise OrderRefused(exchange.BUSY, "too little disk space", RETRY_MS)
        if not self._has_engine():
            raise OrderRefused(exchange.OUR_FAILURE, "no worker serves", RETRY_MS)
        job = verify_order(
            start,
            chain_id=self._chain_id,
            provider=self._provider,
            state=self._get_state(),
            book=self._book,
            find_model=self._find_model,
            now_ms=self._now_ms(),
        )
        self._check_drawing(job)
        job.lane.is_busy = True
        self.under_way += 1
        try:
            self._book.take_voucher(job.lane, job.voucher_raw, job.voucher_sig)
            await self._fulfil(peer, line, send, job)
        finally:
            job.lane.is_busy = False
            self.under_way -= 1

    def _check_drawing(self, job: Job) -> None:
        """An engine that cannot draw with the joint seed serves who allows that, or greedily."""
        can_draw = "exact_sampling" in self._engine.info.can
        if job.is_seeded and not can_draw and not job.order.flags & REMOTE_OK:
            raise OrderRefused(exchange.NOT_SERVED, "temperature: a remote engine")

    # --- a request that will be served

    async def _fulfil(
        self, peer: bytes, line: Line, send: "trio.MemorySendChannel[Event]", job: Job
    ) -> None:
        started_ms = self._now_ms()
        provider_nonce = ZERO_HASH
        if job.is_seeded and not job.is_payer_seeded:
            provider_nonce = self._random(32)
        answer = Answer(job.sampling.n)
        retrieved = await self._retrieved(job)
        request = GenRequest(
            id=self._random(16),
            tenant=job.channel.payer,
            adapter=job.model.adapter,
            prompt=retrieved.prompt,
            sampling=engine_sampling(job.sampling),
            seed=self._early_seed(job),
            deadline_ms=job.order.deadline_ms,
        )
        try:
            async with self._submitted(request) as stream:
                await line.write(Accepted(job.order_hash, provider_nonce, 0, 0))
                job = await self._reveal(line, stream, job, provider_nonce)
                job = await self._stream(line, send, stream, job, answer)
        except EngineError as error:
            code, retry_ms = _code_of(error)
            raise OrderRefused(code, error.code, retry_ms) from None
        if answer.delivered == 0 and not answer.is_complete:
            raise OrderRefused(exchange.GENERATION_FAILED, "nothing was delivered")
        delivered_s = trio.current_time()
        attributed = await self._attributed(line, job, answer.ids(), retrieved.rows)
        served = await self._sign_receipt(job, answer, attributed, provider_nonce, started_ms)
        await line.write(_finished(served))
        self.receipt_delay.note(trio.current_time() - delivered_s)
        self.counters["served"] += 1
        self._note_receipt()
        await self._take_acknowledgement(line, job)

    @asynccontextmanager
    async def _submitted(self, request: GenRequest) -> AsyncIterator[Stream]:
        """The engine's stream. A load that takes too long goes on, for when it is asked again."""
        async with AsyncExitStack() as stack:
            stream: Stream | None = None
            with trio.move_on_after(LOADING_S):
                stream = await stack.enter_async_context(self._engine.submit(request))
            if stream is None:
                raise OrderRefused(exchange.ADAPTER_LOADING, "the adapter loads", RETRY_MS)
            yield stream

    def _early_seed(self, job: Job) -> bytes | None:
        if not job.is_seeded:
            return ZERO_HASH  # greedy: never used, and there is nothing to wait for
        if job.is_payer_seeded:
            return joint_seed(job.order_hash, job.payer_nonce, ZERO_HASH)
        return None

    async def _reveal(self, line: Line, stream: Stream, job: Job, provider_nonce: bytes) -> Job:
        """Wait for the payer's part of the seed, where there is one to wait for."""
        if not job.is_seeded:
            return job._replace(payer_nonce=ZERO_HASH)
        if job.is_payer_seeded:
            return job
        frame = await line.next(exchange.REVEAL_WITHIN_S)
        if not isinstance(frame, Reveal) or seed_commit(frame.payer_nonce) != job.order.seed_commit:
            raise OrderRefused(exchange.REVEAL_BAD, "reveal")
        stream.reveal(joint_seed(job.order_hash, frame.payer_nonce, provider_nonce))
        return job._replace(payer_nonce=frame.payer_nonce)

    async def _stream(
        self,
        line: Line,
        send: "trio.MemorySendChannel[Event]",
        stream: Stream,
        job: Job,
        answer: Answer,
    ) -> Job:
        """Deliver what is generated, within what is promised; returns the job as last paid for."""
        granted = min(job.order.quantum, job.order.max_out)
        tick_until: float | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump, stream, send)
            while not answer.is_cut:
                limit_s: float = exchange.ALIVE_EVERY_S
                if tick_until is not None:
                    limit_s = min(limit_s, tick_until - trio.current_time())
                event = await line.next_event(limit_s)
                if isinstance(event, Tick):
                    job, granted = self._take_tick(job, event, granted)
                    tick_until = None
                elif event is None and tick_until is not None:
                    answer.is_cut = trio.current_time() >= tick_until
                    self.counters["ticks_late"] += answer.is_cut
                elif event is None:
                    await line.write(Alive())
                else:
                    note_event(answer, event)
                if isinstance(event, Token) and not answer.is_lost:
                    await gather(line, answer)
                await flush(line, answer, granted)
                is_waiting = not answer.is_all_sent and answer.delivered >= granted
                if is_waiting and tick_until is None:
                    tick_until = trio.current_time() + exchange.TICK_WITHIN_S
                if answer.finish is not None and answer.is_all_sent:
                    break
            nursery.cancel_scope.cancel()
        if answer.finish is not None and answer.is_all_sent:
            await send_tails(line, answer)
        return job

    def _take_tick(self, job: Job, tick: Tick, granted: int) -> tuple[Job, int]:
        """A voucher for the next quantum; a bad one is as none, the time goes on running."""
        try:
            voucher = decode_voucher(tick.voucher)
            verify_voucher(self._chain_id, tick.voucher, tick.signature, job.channel.spender)
            check_step(job.lane, voucher)
            check_expiry(voucher, self._now_ms(), job.order.deadline_ms)
        except (Invalid, OrderRefused):
            self.counters["ticks_bad"] += 1
            return job, granted
        wanted = min(job.order.max_out, granted + job.order.quantum)
        others = self._book.promised(voucher.channel, but=job.lane)
        is_covered = (
            voucher.order_hash == job.order_hash
            and voucher.hold >= price(len(job.prompt), wanted, *job.prices)
            and others + voucher.cumulative + voucher.hold <= job.channel.cap
        )
        if not is_covered:
            self.counters["ticks_bad"] += 1
            return job, granted
        self._book.take_voucher(job.lane, tick.voucher, tick.signature)
        paid = job._replace(voucher=voucher, voucher_raw=tick.voucher, voucher_sig=tick.signature)
        return paid, wanted

    # --- the receipt

    async def _sign_receipt(
        self,
        job: Job,
        answer: Answer,
        attributed: Attributed,
        provider_nonce: bytes,
        started_ms: int,
    ) -> Served:
        """Sign and keep. What it returns is durable and may be sent."""
        ids = answer.ids()
        credits = encode_credits(attributed.credits)
        evidence = self._evidence(job, answer, ids, provider_nonce)
        # A whole answer without a sketch is a finding (page 60 §5), unless its worker was lost.
        is_complete = answer.is_complete and not attributed.is_passing
        tokens_out = answer.delivered
        list_fee = price(len(job.prompt), tokens_out, *job.prices)
        fee = min(-(-list_fee * (BPS - job.model.discount_bps) // BPS), job.voucher.hold)
        receipt = Receipt(
            version=VERSION,
            channel=job.voucher.channel,
            lane=job.voucher.lane,
            seq=job.voucher.seq,
            order_hash=job.order_hash,
            model=job.order.model,
            model_version=job.order.model_version,
            tokens_in=len(job.prompt),
            tokens_out=tokens_out,
            fee=fee,
            answer_root=answer_root(job.order.salt16, job.payer_nonce, provider_nonce, ids),
            attribution_root=attribution_root(credits),
            sketch_hash=attributed.sketch_hash,
            fingerprint_hash=verify.fingerprint_hash(evidence),
            started_ms=started_ms,
            finished_ms=self._now_ms(),
            status=COMPLETE if is_complete else PARTIAL,
        )
        raw = encode_receipt(receipt)
        served = Served(
            receipt=raw,
            signature=self._sign(receipt_message(self._chain_id, raw)),
            credits=credits,
            sketch=attributed.sketch,
            statement=attributed.statement,
            logprobs=b"".join(
                logprob_bytes(t.logprob)
                for tokens, sent in zip(answer.tokens, answer.sent, strict=True)
                for t in tokens[:sent]
            ),
            provider_nonce=provider_nonce,
            ids=tuple(pack_ids(choice) for choice in ids),
            text=tuple(bytes(text) for text in answer.text),
            evidence=evidence,
            voucher=job.voucher_raw,
            voucher_sig=job.voucher_sig,
        )
        await self._run_blocking(self._book.keep, served)
        which = receipt.model, receipt.model_version
        self.served[which] += 1
        self.earned[which] += fee
        return served

    async def _retrieved(self, job: Job) -> Retrieved:
        """What the engine reads. The payer's own prompt alone is counted, paid for and signed.

        By the order's length, of all choices: whoever looks again has the order, and not always
        what its sampling's hash is of.
        """
        if not job.model.has_index:
            return Retrieved((), job.prompt)
        which = job.order.model, job.order.model_version
        return await self._retrieve(*which, job.prompt, job.order.max_out)

    async def _attributed(
        self, line: Line, job: Job, ids: Sequence[Sequence[int]], retrieved: Sequence[int]
    ) -> Attributed:
        """Credits of the answer; meanwhile the payer hears that we live."""
        if job.order.flags & PRIVATE or not job.model.has_index:
            return UNATTRIBUTED
        found = UNATTRIBUTED
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.stay_alive)
            which = job.order.model, job.order.model_version
            found = await self._attribute(*which, job.prompt, ids, retrieved)
            nursery.cancel_scope.cancel()
        return found

    def _evidence(
        self, job: Job, answer: Answer, ids: Sequence[Sequence[int]], provider_nonce: bytes
    ) -> bytes:
        info = self._engine.info
        choices = []
        for choice, tokens in enumerate(answer.tokens):
            kept = tokens[: answer.sent[choice]]
            reason = "cancelled"
            if answer.finish is not None and answer.is_complete:
                reason = answer.finish.choices[choice].reason
            logprobs = b"".join(logprob_bytes(token.logprob) for token in kept)
            prints = b"".join(token.fingerprint for token in kept)
            choices.append(verify.choice_evidence(ids[choice], logprobs, prints, reason))
        return verify.encode_evidence(
            verify.Evidence(
                version=verify.VERSION,
                base=info.base,
                adapter=job.model.adapter or b"",
                dtype_class=job.model.dtype_class.encode(),
                build=info.build,
                order=job.order_raw,
                payer_nonce=job.payer_nonce,
                provider_nonce=provider_nonce,
                sampling=job.sampling_raw,
                prompt=pack_ids(job.prompt),
                choices=tuple(choices),
            )
        )

    async def _take_acknowledgement(self, line: Line, job: Job) -> None:
        """The bare voucher that ends a request; without it the receipt is claimed later."""
        frame = await line.next(ACK_S)
        if not isinstance(frame, Tick):
            self.counters["unacknowledged"] += 1
            return
        self.take_bare_voucher(frame, job.lane)
        await line.wait_end(CLOSE_S)

    def take_bare_voucher(self, tick: Tick, lane: ProviderLane) -> None:
        """Hold a voucher that only acknowledges; one that does not is counted and left."""
        try:
            voucher = decode_voucher(tick.voucher)
            spender = self._spender(lane.channel)
            verify_voucher(self._chain_id, tick.voucher, tick.signature, spender)
            check_step(lane, voucher)
            check_expiry(voucher, self._now_ms())
        except (Invalid, OrderRefused):
            self.counters["acknowledgements_bad"] += 1
            return
        self._book.take_voucher(lane, tick.voucher, tick.signature)

    def _spender(self, channel: bytes) -> bytes:
        return find_spender_key(self._get_state(), channel) or b""

    # --- asked again, refused

    def _find_stored(self, start: Start) -> Served | None:
        """The answer already given to this very order, for whoever can name it."""
        try:
            order = decode_order(start.order)
            voucher = decode_voucher(start.voucher)
            spender = self._spender(voucher.channel)
            verify_voucher(self._chain_id, start.voucher, start.signature, spender)
        except Invalid:
            return None
        assert order is not None
        return self._book.find(voucher.channel, voucher.lane, voucher.seq, order_hash(start.order))

    async def _send_again(self, line: Line, start: Start, stored: Served) -> None:
        self.counters["sent_again"] += 1
        await line.write(Accepted(order_hash(start.order), stored.provider_nonce, 0, 0))
        for choice, (ids, text) in enumerate(zip(stored.ids, stored.text, strict=True)):
            step = 4 * IDS_PER_FRAME
            for at in range(0, max(len(ids), 1), step):
                some = text if at == 0 else b""
                await line.write(Tokens(choice, at // 4, ids[at : at + step], some))
        await line.write(_finished(stored))
        receipt = decode_receipt(stored.receipt)
        lane = self._book.lane(receipt.channel, receipt.lane)
        while True:
            frame = await line.next(ACK_S)
            if isinstance(frame, Reveal):
                continue  # as in the first exchange; it is known by now
            if isinstance(frame, Tick) and lane.seq == receipt.seq:
                self._acknowledge_late(frame, lane)
            break
        await line.wait_end(CLOSE_S)

    def _acknowledge_late(self, tick: Tick, lane: ProviderLane) -> None:
        """An acknowledgement beside the lane's own request, which it must not disturb.

        While the next order runs, its voucher acknowledges as much, and its hold covers our work:
        a bare one in its place would let other lanes promise that hold once more.
        """
        if lane.is_busy:
            self.counters["acknowledgements_late"] += 1
            return
        self.take_bare_voucher(tick, lane)

    async def _refuse(self, line: Line, refused: OrderRefused) -> None:
        voucher, signature = b"", b""
        if refused.code == exchange.OUT_OF_STEP and isinstance(line.start, Start):
            try:
                asked = decode_voucher(line.start.voucher)
                lane = self._book.lane(asked.channel, asked.lane)
                voucher, signature = lane.voucher_raw, lane.voucher_sig
            except Invalid:
                self.counters["malformed"] += 1
        await line.write(RefusedFrame(refused.code, refused.retry_ms, voucher, signature))
        await line.wait_end(CLOSE_S)


def _finished(served: Served) -> Finished:
    return Finished(
        served.receipt,
        served.signature,
        served.credits,
        served.sketch,
        served.statement,
        served.logprobs,
    )


def _code_of(error: EngineError) -> tuple[int, int]:
    """Page 70's code of an engine's refusal, and when to ask again."""
    retry_ms = error.retry_after_s * 1_000 if isinstance(error, Overloaded) else 0
    if isinstance(error, UnknownAdapter):
        retry_ms = RETRY_MS
    for kind, code in REFUSE_FAULT:
        if isinstance(error, kind):
            return code, retry_ms
    return exchange.MALFORMED, 0
