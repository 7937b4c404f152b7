"""Sessions of a payer and a provider of which one lies, or whose messages are lost, in thousands.

The parts that decide about money are the real ones: the payer's journal of promises and its check
of a receipt, the provider's check of an order and its book of receipts, sections, bundles, and the
ledger that settles them. Streams and engines are left out, so that twenty thousand sessions take
seconds (`tests/unit/wallet/test_payer.py` plays fewer with both). A deal is one channel; it ends
when the payer has caught a lie, and is then settled by a provider who tries all that it holds.
"""

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from bundle_kit import CHAIN
from exchange_kit import PROMPT, SALT, SAMPLING, World, make_order
from ledger_kit import NOW_MS, OPEN, PAYER, PRICES, PROVIDER, context, fee_of

from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid
from node.ledger import tables
from node.ledger.admission import admit_bundle
from node.ledger.rules.channels import apply_bundle, lane_of
from node.ledger.wire.bundles import BodyPart, Section, build_bundle, encode_section
from node.ledger.wire.exchange import Finished, Start, Tick
from node.ledger.wire.orders import (
    ZERO_HASH,
    Order,
    Voucher,
    decode_voucher,
    encode_order,
    encode_sampling,
    encode_voucher,
    order_hash,
    pack_ids,
    voucher_message,
)
from node.ledger.wire.receipts import (
    COMPLETE,
    Receipt,
    answer_root,
    attribution_root,
    decode_receipt,
    encode_credits,
    encode_receipt,
    receipt_message,
)
from node.serving.book import ReceiptBook, Served, cut_section
from node.serving.checking import Job, OrderRefused, verify_order
from node.wallet.checks import CheckFailed, Purchase, check_receipt
from node.wallet.promises import PayerLane

VILLAINS: Final = ("payer", "provider", "wire")
EXPIRES_MS: Final = NOW_MS + 3_600_000
NO_CREDITS: Final = encode_credits(())
SESSIONS_PER_DEAL: Final = 25
CAP: Final = OPEN // 50  # some twelve holds
LANES: Final = 3
EVIL: Final = {"payer": 0.25, "provider": 0.12, "wire": 0.25}  # how often a villain is one
RESTARTS: Final = 0.002
NEWEST: Final = 3  # vouchers that a liar tries first; as many of all older ones

T = TypeVar("T")


class Wanted(NamedTuple):
    """An order that has no receipt yet."""

    start: Start
    purchase: Purchase
    hold: int
    lane: PayerLane


class Reply(NamedTuple):
    """What a provider sends for an order."""

    finished: Finished
    ids: tuple[int, ...]


class Exposed(NamedTuple):
    """How a deal ended, in grains."""

    cap: int
    paid: int
    accepted: int  # what the answers are worth whose receipts passed the payer's checks
    served: int  # by the provider: receipts in its book
    hold: int  # of the one order that had no receipt


class StillWorld(World):
    """No clock runs: it is one moment."""

    def now_ms(self) -> int:
        return NOW_MS


class Sessions:
    """Deals of one pair, one after another; `villain` is one of VILLAINS."""

    def __init__(self, folder: Path, seed: int, villain: str) -> None:
        self.rng = random.Random(f"{villain}/{seed}")
        self.villain = villain
        self.world = StillWorld(folder, seed)
        self.bundle_seq = 0
        self.count = 0
        self.lies_caught = self.refused = 0
        self._start_deal()

    def close(self) -> None:
        self.world.book.close()
        self.world.promises.close()

    def _start_deal(self) -> None:
        self.channel = self.world.own_channel(CAP)
        self.wanted: Wanted | None = None
        self.accepted = 0
        self.is_over = False
        self.starts: list[Start] = []  # all that ever went over the wire, for replays
        self.ticks: list[Tick] = []
        self.replies: list[Reply] = []
        self.vouchers: list[tuple[bytes, bytes]] = []  # that the provider saw, in order

    def deal(self) -> Exposed:
        """Sessions until a lie is caught or the channel is full, then all that can be settled."""
        for _ in range(SESSIONS_PER_DEAL):
            if self.is_over:
                break
            self.count += 1
            self._session()
            if self.rng.random() < RESTARTS:
                self._restart()
        self._settle_all()
        record = self.world.state.get(tables.CHANNEL, self.channel)
        served = sum(x.cumulative for x in self.world.book.lanes() if x.channel == self.channel)
        hold = 0 if self.wanted is None else self.wanted.hold
        ended = Exposed(CAP, record.paid, self.accepted, served, hold)
        self._start_deal()
        return ended

    def _is_evil(self, who: str) -> bool:
        return who == self.villain and self.rng.random() < EVIL[who]

    def _restart(self) -> None:
        """Both sides know afterwards what their disks say."""
        self.close()
        self.world.promises = self.world.open_promises()
        self.world.book = ReceiptBook(self.world.folder / "provider", lambda: self.world.state)
        self.world.service = self.world.new_service()
        if self.wanted is not None:
            lane = self.world.promises.lane(self.channel, self.wanted.lane.number)
            self.wanted = self.wanted._replace(lane=lane)

    # ---- one session: order, answer, acknowledgement; the wire may end it at any step

    def _session(self) -> None:
        start = self._ask()
        if start is None:
            return
        reply = self._carried(self._provider_takes(start))
        tick = None if reply is None else self._payer_takes(reply)
        tick = self._carried(tick)
        if tick is not None:
            self._provider_takes_tick(tick)

    def _carried(self, message: T | None) -> T | None:
        return None if message is None or self._is_evil("wire") else message

    # ---- the payer

    def _ask(self) -> Start | None:
        """The next order, or the last one again while it has no receipt."""
        wanted = self.wanted or self._new_order()
        if wanted is None:
            self.is_over = True
            return None
        self.wanted = wanted
        self.starts.append(wanted.start)
        start: Start | None = wanted.start
        if self._is_evil("payer"):
            start = self.rng.choice(PAYER_LIES)(self, wanted)
        elif self._is_evil("wire"):
            start = self.rng.choice((None, self.rng.choice(self.starts), self._torn(wanted.start)))
        return start

    def _new_order(self) -> Wanted | None:
        promises, sampling = self.world.promises, SAMPLING
        sampling = sampling._replace(max_tokens=self.rng.randrange(1, 9))
        order = make_order(sampling=sampling, deadline_ms=NOW_MS + self.rng.randrange(1, 60_000))
        hold = fee_of(len(PROMPT), order.max_out)
        if self.villain != "payer" and promises.promised(self.channel) + hold > CAP:
            return None
        lane = promises.lane(self.channel, self.rng.randrange(LANES))
        raw = encode_order(order)
        promise = promises.promise(
            lane, hold=hold, order_hash=order_hash(raw), expires_ms=EXPIRES_MS
        )
        sampling_raw = encode_sampling(sampling)
        start = Start(raw, pack_ids(PROMPT), sampling_raw, b"", promise.raw, promise.signature)
        purchase = Purchase(
            CHAIN, order, raw, PROMPT, sampling, ZERO_HASH, PRICES, self.channel, lane.number,
            lane.seq + 1,
        )  # fmt: skip
        return Wanted(start, purchase, hold, lane)

    def _payer_takes(self, reply: Reply) -> Tick | None:
        """Check, accept, acknowledge; after a lie nothing more is ordered."""
        wanted, promises = self.wanted, self.world.promises
        assert wanted is not None
        try:
            receipt = check_receipt(
                wanted.purchase, reply.finished, [reply.ids],
                provider_nonce=ZERO_HASH, hold=wanted.hold, key=PROVIDER.key,
            )  # fmt: skip
        except CheckFailed:
            self.lies_caught += 1
            promises.leave(wanted.lane)
            self.is_over = True
            return None
        promises.accept(reply.finished.receipt, reply.finished.signature, NO_CREDITS)
        self.accepted += min(receipt.fee, fee_of(len(PROMPT), len(reply.ids)))  # what it is worth
        self.wanted = None
        promise = promises.promise(wanted.lane, hold=0, expires_ms=EXPIRES_MS)
        tick = Tick(promise.raw, promise.signature)
        self.ticks.append(tick)
        if not self._is_evil("payer"):
            return tick
        lies = (None, self.rng.choice(self.ticks), self._misstated(promise.voucher))
        return self.rng.choice(lies)

    def _misstated(self, voucher: Voucher) -> Tick:
        """Really signed, but of something else."""
        changed = self._changed(voucher)
        return Tick(*signed(changed))

    def _changed(self, voucher: Voucher) -> Voucher:
        rng = self.rng
        change = rng.choice((
            {"cumulative": voucher.cumulative - rng.randrange(1 + voucher.cumulative)},
            {"cumulative": voucher.cumulative + 1}, {"accumulator": rng.randbytes(32)},
            {"seq": voucher.seq + rng.choice((-1, 1))}, {"sub": 0}, {"sub": voucher.sub + 1},
            {"hold": rng.randrange(voucher.hold + 1)}, {"hold": CAP * 2}, {"order_hash": ZERO_HASH},
            {"expires_ms": NOW_MS}, {"lane": voucher.lane + 1}, {"channel": rng.randbytes(32)},
        ))  # fmt: skip
        return voucher._replace(**change)

    def _torn(self, start: Start) -> Start:
        """One bit of one field is another."""
        field = self.rng.choice(("order", "prompt", "sampling", "voucher", "signature"))
        raw = bytearray(getattr(start, field))
        raw[self.rng.randrange(len(raw))] ^= 1 << self.rng.randrange(8)
        return start._replace(**{field: bytes(raw)})

    # ---- the provider

    def _provider_takes(self, start: Start | None) -> Reply | None:
        """As `InferenceService` does: a stored answer again, or check, serve, keep, send."""
        if start is None:
            return None
        if self._is_evil("provider"):
            return self._lie(start)
        stored = self.world.service._find_stored(start)
        if stored is not None:
            return reply_of(stored)
        try:
            job = verify_order(
                start, chain_id=CHAIN, provider=PROVIDER.key, state=self.world.state,
                book=self.world.book, find_model=lambda *_: self.world.model, now_ms=NOW_MS,
            )  # fmt: skip
        except OrderRefused:
            self.refused += 1
            return None
        self.world.book.take_voucher(job.lane, job.voucher_raw, job.voucher_sig)
        self.vouchers.append((job.voucher_raw, job.voucher_sig))
        served = self._serve(job)
        self.world.book.keep(served)
        reply = reply_of(served)
        self.replies.append(reply)
        return reply

    def _serve(self, job: Job) -> Served:
        ids = tuple(range(100, 100 + self.rng.randrange(1, 1 + job.order.max_out)))
        receipt = receipt_for(job.order, job.order_hash, job.voucher, ids)
        return served_of(receipt, ids, job.voucher_raw, job.voucher_sig)

    def _lie(self, start: Start) -> Reply | None:
        """Silence, an old answer, or a receipt that is not the one it owes; the voucher it has."""
        self.vouchers.append((start.voucher, start.signature))
        voucher = decode_voucher(start.voucher)
        wanted = self.wanted
        assert wanted is not None
        true = receipt_for(wanted.purchase.order, voucher.order_hash, voucher, (100,))
        lies: list[Reply | None] = [None, None, None, None, *self.replies[-2:]]
        changes: tuple[dict[str, object], ...] = (
            {"fee": true.fee + 1}, {"fee": voucher.hold + 1}, {"tokens_out": 2},
            {"seq": true.seq + 1}, {"order_hash": bytes(32)}, {"answer_root": bytes(32)},
            {"lane": true.lane + 1}, {"model_version": 2}, {"attribution_root": bytes(32)},
            {"sketch_hash": b"\1" * 32},
        )  # fmt: skip
        forged = true._replace(**self.rng.choice(changes))  # type: ignore[arg-type]
        lies.append(reply_of(served_of(forged, (100,), *self.vouchers[-1])))
        unsigned = reply_of(served_of(true, (100,), *self.vouchers[-1]))
        lies.append(unsigned._replace(finished=unsigned.finished._replace(signature=bytes(64))))
        return self.rng.choice(lies)

    def _provider_takes_tick(self, tick: Tick) -> None:
        self.vouchers.append((tick.voucher, tick.signature))
        with suppress(Invalid):
            number = decode_voucher(tick.voucher).lane
            lane = self.world.book.lane(self.channel, number)
            self.world.service.take_bare_voucher(tick, lane)

    # ---- settling

    def _settle_all(self) -> None:
        """An honest provider settles its book; a lying one tries whatever it can put together."""
        if self.villain == "provider":
            for number in range(LANES):
                self._try_all(number)
        for lane in self.world.book.lanes():
            if lane.channel == self.channel:
                settled = lane_of(self.world.state, lane.channel, lane.number)
                self.world.book.settle(lane, settled)
                part = cut_section(lane, may_claim=True)
                if part is not None:
                    is_settled = self._settle([part])
                    assert is_settled or self.villain == "provider"
                    lane.cut_seq = lane.seq

    def _settle(self, parts: list[BodyPart]) -> bool:
        self.bundle_seq += 1
        bundle = build_bundle(
            chain_id=CHAIN, provider=PROVIDER.key, bundle_seq=self.bundle_seq, parts=parts,
            sign=PROVIDER.sign,
        )  # fmt: skip
        try:
            admitted = admit_bundle(self.world.state, CHAIN, bundle)
            with self.world.state.trial():
                apply_bundle(self.world.state, context(), admitted.bundle)
        except Invalid:
            return False
        return True

    def _try_all(self, number: int) -> None:
        """The newest vouchers of a lane and some older ones, each with the receipts it has and
        one of the liar's own making."""
        state, lane = self.world.state, self.world.book.lane(self.channel, number)
        for raw, signature in self._candidates(number):
            voucher = decode_voucher(raw)
            first = lane_of(state, self.channel, number).seq + 1
            kept = [item.raw for item in lane.unsettled if first <= item.receipt.seq]
            before = [raw for raw in kept if decode_receipt(raw).seq < voucher.seq]
            if before:
                self._settle([section_of(voucher, raw, signature, before, claims=False)])
            for fee in (voucher.hold + 1, voucher.hold) if voucher.hold else ():
                order = self.wanted.purchase.order if self.wanted else make_order()
                made = receipt_for(order, voucher.order_hash, voucher, (100,))
                claim = made._replace(fee=fee, tokens_out=2**16)  # no price is in its way
                claimed = [*before, encode_receipt(claim)]
                self._settle([section_of(voucher, raw, signature, claimed, claims=True)])

    def _candidates(self, number: int) -> list[tuple[bytes, bytes]]:
        own = [
            (raw, signature)
            for raw, signature in self.vouchers
            if decode_voucher(raw)[1:3] == (self.channel, number)
        ]
        older = own[:-NEWEST]
        return [*reversed(own[-NEWEST:]), *self.rng.sample(older, min(NEWEST, len(older)))]


def signed(voucher: Voucher) -> tuple[bytes, bytes]:
    raw = encode_voucher(voucher)
    return raw, PAYER.sign(voucher_message(CHAIN, raw))


def receipt_for(order: Order, named: bytes, voucher: Voucher, ids: tuple[int, ...]) -> Receipt:
    """What an honest provider signs for these tokens."""
    return Receipt(
        version=1, channel=voucher.channel, lane=voucher.lane, seq=voucher.seq, order_hash=named,
        model=order.model, model_version=order.model_version, tokens_in=len(PROMPT),
        tokens_out=len(ids), fee=min(fee_of(len(PROMPT), len(ids)), voucher.hold),
        answer_root=answer_root(SALT, ZERO_HASH, ZERO_HASH, [ids]),
        attribution_root=attribution_root(NO_CREDITS), sketch_hash=ZERO_HASH,
        fingerprint_hash=sha256(b"evidence"), started_ms=NOW_MS, finished_ms=NOW_MS,
        status=COMPLETE,
    )  # fmt: skip


def served_of(receipt: Receipt, ids: tuple[int, ...], voucher: bytes, voucher_sig: bytes) -> Served:
    raw = encode_receipt(receipt)
    return Served(
        receipt=raw, signature=PROVIDER.sign(receipt_message(CHAIN, raw)), credits=NO_CREDITS,
        sketch=b"", statement=b"", logprobs=b"", provider_nonce=ZERO_HASH, ids=(pack_ids(ids),),
        text=(b"",), evidence=b"evidence", voucher=voucher, voucher_sig=voucher_sig,
    )  # fmt: skip


def reply_of(served: Served) -> Reply:
    finished = Finished(served.receipt, served.signature, served.credits, b"", b"", b"")
    raw = served.ids[0]
    ids = tuple(int.from_bytes(raw[at : at + 4], "big") for at in range(0, len(raw), 4))
    return Reply(finished, ids)


def section_of(
    voucher: Voucher, raw: bytes, signature: bytes, receipts: list[bytes], *, claims: bool
) -> BodyPart:
    """A section as a liar would make it: numbers and sums fit, the rest is for others to judge."""
    decoded = [decode_receipt(each) for each in receipts]
    last = PROVIDER.sign(receipt_message(CHAIN, receipts[-1])) if claims else b""
    section = Section(
        channel=voucher.channel, lane=voucher.lane, from_seq=decoded[0].seq,
        to_seq=decoded[-1].seq, amount=sum(each.fee for each in decoded), voucher=raw,
        voucher_sig=signature, last_receipt_sig=last,
    )  # fmt: skip
    return BodyPart(encode_section(section), tuple(receipts), (NO_CREDITS,) * len(receipts))


def _resigned(sessions: Sessions, wanted: Wanted) -> Start:
    raw, signature = signed(sessions._changed(decode_voucher(wanted.start.voucher)))
    return wanted.start._replace(voucher=raw, signature=signature)


PAYER_LIES: Final[tuple[Callable[[Sessions, Wanted], Start | None], ...]] = (
    lambda sessions, wanted: None,
    lambda sessions, wanted: sessions.rng.choice(sessions.starts),
    lambda sessions, wanted: sessions._torn(wanted.start),
    _resigned,
    _resigned,
)
