"""The provider of a session: the real door, book, receipts and bundler, and the lies it may tell.

What `InferenceService` does between frames is called here in its order, without streams: so the
checks, the book and the bundler are the product's, and thousands of sessions take seconds.
`LyingProvider` is for the villain: it serves as the honest one does, then claims whatever it can
put together.
"""

from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple, TypeVar

from bundle_kit import CHAIN
from exchange_kit import PROMPT, FakeEngine
from ledger_kit import PROVIDER, fee_of
from simulation.session_ledger import SessionLedger, require

from consensus.primitives.errors import Invalid
from node.attribution.citing import Retrieved
from node.ledger import tables
from node.ledger.rules.channels import lane_of
from node.ledger.wire import exchange
from node.ledger.wire.bundles import BodyPart, Bundle, Section, build_bundle, encode_section
from node.ledger.wire.exchange import Finished, RefusedFrame, Start, Tick, Tokens, unpack_ids
from node.ledger.wire.orders import ZERO_HASH, Voucher, decode_voucher
from node.ledger.wire.receipts import (
    Receipt,
    answer_root,
    attribution_root,
    decode_receipt,
    encode_credits,
    encode_receipt,
    receipt_message,
)
from node.serving.attributing import UNATTRIBUTED
from node.serving.book import ReceiptBook, Served
from node.serving.bundling import Bundler
from node.serving.checking import Job, OrderRefused, ServedModel, verify_order
from node.serving.delivering import Answer, flush, note_event
from node.serving.engine import Ending, Finish, Token
from node.serving.service import InferenceService, _finished
from p2p.errors import NetworkError

SEGMENT_BYTES: Final = 16 << 10  # so that a book has some to drop
NO_CREDITS: Final = encode_credits(())
OTHER_CREDITS: Final = encode_credits(((1, 10_000),))
NEWEST: Final = 2  # vouchers of a lane that a liar tries first
OLDER: Final = 1  # of those before, by chance

T = TypeVar("T")


def run_now(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that has nothing to wait for."""
    try:
        work.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    raise AssertionError("it waits")


class Reply(NamedTuple):
    """Tokens and receipt as they reach the payer; `is_lie`: it must not be accepted."""

    finished: Finished
    ids: tuple[int, ...]
    is_lie: bool = False


@dataclass(slots=True)
class Running:
    """A request that the engine works on; `total` tokens, unless something ends it before."""

    job: Job
    answer: Answer
    granted: int
    total: int
    started_ms: int
    tick_until_ms: int | None = None

    @property
    def is_all_said(self) -> bool:
        """Whether the answer ended by itself."""
        return self.answer.delivered == self.total


class _Line:
    """Takes frames for the payer."""

    def __init__(self) -> None:
        self.frames: list[Any] = []

    async def write(self, frame: Any) -> bool:
        """It is not lost here: the wire is the session's."""
        self.frames.append(frame)
        return True


class ProviderSide:
    """A provider as the product makes it, on a disk of its own."""

    def __init__(self, folder: Path, ledger: SessionLedger, rng: Random) -> None:
        self.folder, self.ledger, self.rng = folder, ledger, rng
        self.running: dict[int, Running] = {}
        self.offered: list[Bundle] = []  # what the bundler hands over, for the wire to take
        self.engine = FakeEngine()
        self.model = ServedModel(None, True, 0, False)
        self.open()

    def open(self) -> None:
        """What the disk says."""
        self.running.clear()
        self.offered.clear()
        self.book = ReceiptBook(
            self.folder, lambda: self.ledger.state, SEGMENT_BYTES, now_ms=self._now_ms()
        )
        self.service = InferenceService(
            chain_id=CHAIN, provider=PROVIDER.key, sign=PROVIDER.sign, engine=self.engine,
            retrieve=self._retrieve, attribute=self._attribute, book=self.book,
            find_model=lambda *_: self.model,
            get_state=lambda: self.ledger.state, is_current=lambda: True, has_engine=lambda: True,
            has_room=lambda: True, note_receipt=lambda: None, blame=lambda peer: None,
            stream_errors=(NetworkError,), now_ms=self._now_ms, random_bytes=self.rng.randbytes,
            run_blocking=self._at_once,
        )  # fmt: skip
        self.bundler = Bundler(
            book=self.book, chain_id=CHAIN, provider=PROVIDER.key, sign=PROVIDER.sign,
            get_state=lambda: self.ledger.state, offer_bundle=self._offer, now_ms=self._now_ms,
            run_blocking=self._at_once,
        )  # fmt: skip

    def close(self) -> None:
        """Let go of the disk."""
        self.book.close()

    def _now_ms(self) -> int:
        return self.ledger.now_ms

    async def _at_once(self, function: Any, *arguments: Any) -> Any:
        return function(*arguments)

    async def _retrieve(self, _: int, __: int, prompt: Sequence[int], ___: int) -> Retrieved:
        return Retrieved((), tuple(prompt))

    async def _attribute(self, *_: Any) -> Any:
        return UNATTRIBUTED

    async def _offer(self, bundle: Bundle) -> None:
        self.offered.append(bundle)

    # ---- a request

    def take_start(self, start: Start) -> Reply | RefusedFrame | Running:
        """A stored answer again, a refusal, or the request that runs from now on."""
        stored = self.service._find_stored(start)
        if stored is not None:
            return self.reply_of(stored)
        try:
            job = verify_order(
                start, chain_id=CHAIN, provider=PROVIDER.key, state=self.ledger.state,
                book=self.book, find_model=lambda *_: self.model, now_ms=self.ledger.now_ms,
            )  # fmt: skip
        except OrderRefused as refused:
            return self._refusal(start, refused)
        require(job.lane.number not in self.running, "two requests run in one lane")
        job.lane.is_busy = True
        self.book.take_voucher(job.lane, job.voucher_raw, job.voucher_sig)
        job = job._replace(payer_nonce=ZERO_HASH)
        total = self.rng.randrange(1, 1 + job.order.max_out)
        granted = min(job.order.quantum, job.order.max_out)
        running = Running(job, Answer(1), granted, total, self.ledger.now_ms)
        self.running[job.lane.number] = running
        return running

    def _refusal(self, start: Start, refused: OrderRefused) -> RefusedFrame:
        voucher, signature = b"", b""
        if refused.code == exchange.OUT_OF_STEP:
            asked = decode_voucher(start.voucher)
            lane = self.book.lane(asked.channel, asked.lane)
            voucher, signature = lane.voucher_raw, lane.voucher_sig
        return RefusedFrame(refused.code, refused.retry_ms, voucher, signature)

    def deliver(self, running: Running) -> list[Tokens]:
        """What is said next, within what is promised; then a tick is waited for, or all is said."""
        answer, line = running.answer, _Line()
        for position in range(len(answer.tokens[0]), min(running.total, running.granted + 1)):
            note_event(answer, Token(0, position, 100 + position, b"", 0.0))
        run_now(flush(line, answer, running.granted))  # type: ignore[arg-type]
        if not running.is_all_said and answer.delivered >= running.granted:
            running.tick_until_ms = self.ledger.now_ms + 1_000 * exchange.TICK_WITHIN_S
        return line.frames

    def take_tick(self, number: int, tick: Tick) -> list[Tokens]:
        """A promise for the next quantum, if it is one; what it brings."""
        running = self.running[number]
        job, granted = self.service._take_tick(running.job, tick, running.granted)
        if granted == running.granted:
            return []
        running.job, running.granted, running.tick_until_ms = job, granted, None
        return self.deliver(running)

    def finish(self, number: int) -> Reply | None:
        """The receipt of what was delivered, durable; None when nothing was."""
        running = self.running.pop(number)
        job, answer = running.job, running.answer
        if running.is_all_said:
            ending = Ending("stop", running.total, b"", bytes(4 * running.total), b"")
            answer.finish = Finish(len(job.prompt), (ending,))
        else:
            answer.is_cut = True
        job.lane.is_busy = False
        if answer.delivered == 0:
            return None
        signing = self.service._sign_receipt(
            job, answer, UNATTRIBUTED, ZERO_HASH, running.started_ms
        )
        return self.reply_of(run_now(signing))

    def overdue(self) -> list[int]:
        """Lanes whose request has no more time: its deadline, or that of a tick."""
        now_ms = self.ledger.now_ms
        return [
            number for number, running in self.running.items() if now_ms >= self._ends_ms(running)
        ]

    def next_end_ms(self) -> int | None:
        """When the first of the requests runs out of time."""
        return min(map(self._ends_ms, self.running.values()), default=None)

    def _ends_ms(self, running: Running) -> int:
        deadline_ms = running.job.order.deadline_ms
        return min(deadline_ms, running.tick_until_ms or deadline_ms)

    def take_bare(self, channel: bytes, tick: Tick) -> None:
        """An acknowledgement, in the stream of its answer or a later one."""
        try:
            number = decode_voucher(tick.voucher).lane
        except Invalid:
            return
        self.service._acknowledge_late(tick, self.book.lane(channel, number))

    def reply_of(self, served: Served) -> Reply:
        """As it goes over the wire; the referee hears of it."""
        receipt = decode_receipt(served.receipt)
        worth = fee_of(receipt.tokens_in, receipt.tokens_out)
        self.ledger.referee.note_served(served.receipt, worth)
        return Reply(_finished(served), unpack_ids(served.ids[0]))

    # ---- settling

    def turn(self) -> list[Bundle]:
        """The bundler's look at the ledger; what it offers."""
        run_now(self.bundler.turn())
        offered, self.offered = self.offered, []
        return offered

    @property
    def is_waiting(self) -> bool:
        """Whether anything is served and not settled."""
        return bool(self.running) or any(lane.unsettled for lane in self.book.lanes())


def _changes(true: Receipt, hold: int) -> list[dict[str, Any]]:
    """One field each, of which the payer must see every one."""
    changes: list[dict[str, Any]] = [
        {"fee": true.fee + 1}, {"fee": hold + 1}, {"fee": true.fee * 2},
        {"tokens_out": true.tokens_out + 1}, {"tokens_in": true.tokens_in + 1},
        {"seq": true.seq + 1}, {"lane": true.lane + 1}, {"channel": bytes(32)},
        {"order_hash": bytes(32)}, {"model_version": 2}, {"answer_root": bytes(32)},
        {"attribution_root": bytes(32)}, {"sketch_hash": b"\1" * 32},
    ]  # fmt: skip
    return changes if hold == true.fee else [*changes, {"fee": hold}, {"fee": hold}]


class LyingProvider(ProviderSide):
    """The villain: it keeps every voucher it saw, and every bundle."""

    def __init__(self, folder: Path, ledger: SessionLedger, rng: Random) -> None:
        super().__init__(folder, ledger, rng)
        self.vouchers: list[tuple[Voucher, Tick]] = []
        self.replies: list[Reply] = []
        self.bundles: list[Bundle] = []

    def saw(self, raw: bytes, signature: bytes) -> None:
        """Whatever the payer sends."""
        self.vouchers.append((decode_voucher(raw), Tick(raw, signature)))

    def forge(self, running: Running, reply: Reply | None) -> Reply | None:
        """An old answer, silence, or a receipt that is not the one it owes."""
        job, rng = running.job, self.rng
        forged: list[Reply | None] = [None, None]
        forged += [old._replace(is_lie=True) for old in self.replies[-3:] if old != reply]
        if reply is not None:
            true, ids = decode_receipt(reply.finished.receipt), reply.ids
            changed = true._replace(**rng.choice(_changes(true, job.voucher.hold)))
            forged += [self._signed(changed, ids)] * 3
            forged.append(self._longer(job, true))
            torn = reply.finished._replace(signature=bytes(64))
            forged.append(Reply(torn, ids, is_lie=True))
        return rng.choice(forged)

    def _longer(self, job: Job, true: Receipt) -> Reply:
        """More than was promised, at its price."""
        ids = tuple(range(100, 100 + len(PROMPT) + job.order.max_out))
        longer = true._replace(
            tokens_out=len(ids),
            fee=fee_of(len(PROMPT), len(ids)),
            answer_root=answer_root(job.order.salt16, ZERO_HASH, ZERO_HASH, [ids]),
        )
        return self._signed(longer, ids)

    def _made(self, voucher: Voucher, named: bytes, tokens_out: int) -> Receipt:
        return Receipt(
            version=1, channel=voucher.channel, lane=voucher.lane, seq=voucher.seq,
            order_hash=named, model=1, model_version=1, tokens_in=len(PROMPT),
            tokens_out=tokens_out, fee=min(fee_of(len(PROMPT), tokens_out), voucher.hold),
            answer_root=bytes(32), attribution_root=attribution_root(NO_CREDITS),
            sketch_hash=ZERO_HASH, fingerprint_hash=bytes(32), started_ms=self.ledger.now_ms,
            finished_ms=self.ledger.now_ms, status=0,
        )  # fmt: skip

    def _signed(self, receipt: Receipt, ids: tuple[int, ...]) -> Reply:
        raw = encode_receipt(receipt)
        signature = PROVIDER.sign(receipt_message(CHAIN, raw))
        return Reply(Finished(raw, signature, NO_CREDITS, b"", b"", b""), ids, is_lie=True)

    # ---- whatever it can put together

    def try_all(self, channel: bytes, lanes: list[int]) -> None:
        """Old bundles again; the newest vouchers of some lanes and some older ones, each with the
        receipts it has and ones of its own making."""
        for bundle in self.rng.sample(self.bundles, min(2, len(self.bundles))):
            self._try_bundle(bundle)
        for number in lanes:
            for tick in self._candidates(channel, number):
                self._try_voucher(channel, tick)

    def _candidates(self, channel: bytes, number: int) -> list[Tick]:
        own = [
            tick
            for voucher, tick in self.vouchers
            if (voucher.channel, voucher.lane) == (channel, number)
        ]
        older = own[:-NEWEST]
        return [*reversed(own[-NEWEST:]), *self.rng.sample(older, min(OLDER, len(older)))]

    def _try_voucher(self, channel: bytes, tick: Tick) -> None:
        voucher, rng = decode_voucher(tick.voucher), self.rng
        settled = lane_of(self.ledger.state, channel, voucher.lane)
        kept = self.book.lane(channel, voucher.lane).unsettled
        first = settled.seq + 1 if rng.random() < 0.9 else max(1, settled.seq)
        before = [item.raw for item in kept if first <= item.receipt.seq < voucher.seq]
        if before:
            if rng.random() < 0.5:
                other = {"attribution_root": attribution_root(OTHER_CREDITS)}
                swapped = encode_receipt(decode_receipt(before[-1])._replace(**other))
                self._try_section(voucher, tick, [*before[:-1], swapped])
            self._try_section(voucher, tick, before)
        if voucher.hold:
            true: dict[str, Any] = {"fee": voucher.hold}
            lies = [{"fee": voucher.hold + 1}, {"fee": 1}, {**true, "order_hash": bytes(32)}]
            made = self._made(voucher, voucher.order_hash, 2**16)  # no price is in its way
            for fields in (rng.choice(lies), true):
                claim = encode_receipt(made._replace(**fields))
                self._try_section(voucher, tick, [*before, claim], claims=True)

    def _try_section(
        self, voucher: Voucher, tick: Tick, receipts: list[bytes], *, claims: bool = False
    ) -> None:
        """Numbers and sums fit, the rest is for others to judge."""
        self.ledger.counts["expired claims"] += voucher.expires_ms <= self.ledger.now_ms
        decoded = [decode_receipt(each) for each in receipts]
        last = PROVIDER.sign(receipt_message(CHAIN, receipts[-1])) if claims else b""
        section = Section(
            channel=voucher.channel, lane=voucher.lane, from_seq=decoded[0].seq,
            to_seq=decoded[-1].seq, amount=sum(each.fee for each in decoded),
            voucher=tick.voucher, voucher_sig=tick.signature, last_receipt_sig=last,
        )  # fmt: skip
        roots = {attribution_root(each): each for each in (NO_CREDITS, OTHER_CREDITS)}
        credits = tuple(roots[each.attribution_root] for each in decoded)
        self._try_parts([BodyPart(encode_section(section), tuple(receipts), credits)])

    def _try_parts(self, parts: list[BodyPart]) -> None:
        settled = self.ledger.state.get(tables.PROVIDER, PROVIDER.key).bundle_seq
        number = self.book.next_bundle_seq(settled) - self.rng.choice((0, 0, 0, 0, 1))
        bundle = build_bundle(
            chain_id=CHAIN, provider=PROVIDER.key, bundle_seq=number, parts=parts,
            sign=PROVIDER.sign,
        )  # fmt: skip
        self._try_bundle(bundle)
        self.bundles.append(bundle)

    def _try_bundle(self, bundle: Bundle) -> None:
        self.ledger.counts["claims"] += 1
        self.ledger.settle_now(bundle)
