"""The payer of a session: the real journal of promises and check of a receipt, and its lies.

What `Payer` and `Buying` do between frames is done here in their order, without streams.
`LyingPayer` is for the villain: it signs what it likes with the spending key.
"""

from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

from bundle_kit import CHAIN
from exchange_kit import PROMPT, SAMPLING, make_order
from ledger_kit import PRICES, PROVIDER, fee_of
from simulation.outcomes import BROKEN, Violation
from simulation.session_ledger import SPENDER, SessionLedger, require
from simulation.session_provider import NO_CREDITS, Reply

from node.ledger.wire import exchange
from node.ledger.wire.exchange import RefusedFrame, Start, Tick, Tokens, unpack_ids
from node.ledger.wire.orders import (
    ZERO_HASH,
    Voucher,
    decode_voucher,
    encode_order,
    encode_sampling,
    encode_voucher,
    order_hash,
    pack_ids,
    prompt_commit,
    voucher_message,
)
from node.wallet.checks import CheckFailed, Purchase, check_receipt
from node.wallet.promises import OwnChannel, PayerLane, PromiseBook

TOKENS_MAX: Final = (8, 8, 8, 60)  # sixty cost a third of a cap
QUANTA: Final = (2, 3, 20, 256)
LIVES_MS: Final = (21 * 60_000, 40 * 60_000, 2 * 3_600_000)  # of vouchers
DEADLINES_MS: Final = (2_000, 60_000, 600_000, 3_500_000)  # of orders, from now
LIFE_LEAST_MS: Final = 20 * 60_000  # that a provider takes
BEHIND_LEAST_MS: Final = 10 * 60_000  # and behind the order's own time


@dataclass(slots=True)
class Wanted:
    """An order that has no receipt yet, and what of its answer came."""

    purchase: Purchase
    named: bytes  # its hash
    start: Start
    hold: int
    granted: int
    expires_ms: int
    received: list[int] = field(default_factory=list)
    came: int = 0  # tokens, in any of its streams

    @property
    def wants_tick(self) -> bool:
        """Whether all that was promised has come, and more may."""
        return len(self.received) >= self.granted < self.purchase.order.max_out

    @property
    def worth(self) -> int:
        """The price of what came; nothing for nothing."""
        return fee_of(len(PROMPT), self.came) if self.came else 0


class PayerSide:
    """A wallet with one channel at a time, on a disk of its own."""

    def __init__(self, folder: Path, ledger: SessionLedger, rng: Random, lanes: int) -> None:
        self.folder, self.ledger, self.rng, self.lanes = folder, ledger, rng, lanes
        self.channel = b""
        self.wanted: dict[int, Wanted] = {}
        self.lost: dict[tuple[int, int], list[Wanted]] = {}  # lane, seq → given up or forgotten
        self.left: set[int] = set()
        self.lies_caught = 0
        self._accepting = (b"", 0)  # a receipt and what it is worth: the power may fail meanwhile
        self.open()

    def open(self) -> None:
        """What the disk says, which must be all that was promised, accepted or left."""
        self.promises = PromiseBook(
            self.folder, chain_id=CHAIN, spender=SPENDER.key, sign=SPENDER.sign
        )
        if not self.channel:
            return
        for number in range(self.lanes):
            lane, referee = self.lane(number), self.ledger.referee
            require(lane.is_left or number not in self.left, "a lane that was left is forgotten")
            count = referee.accepted_in(number)
            require(lane.seq >= count, "a receipt that was accepted is forgotten")
            if lane.seq > count:
                referee.note_accepted(*self._accepting)  # durable before the power failed
            if lane.last is not None:
                referee.note_durable(lane.last)

    def close(self) -> None:
        """Let go of the disk."""
        self.promises.close()

    def start_deal(self, channel: bytes, cap: int) -> None:
        """A new channel."""
        self.channel = channel
        self.wanted, self.lost, self.left = {}, {}, set()
        self.promises.note_channel(OwnChannel(channel, PROVIDER.key, cap))

    def forget_orders(self) -> None:
        """Orders are in memory only: after a restart nobody asks for them again."""
        for number in list(self.wanted):
            self.give_up(number)

    def give_up(self, number: int) -> None:
        """The order is dropped; its hold stays at risk."""
        wanted = self.wanted.pop(number)
        self.lost.setdefault((number, wanted.purchase.seq), []).append(wanted)

    def lane(self, number: int) -> PayerLane:
        """A lane of the channel."""
        return self.promises.lane(self.channel, number)

    # ---- an order

    def order(self, number: int) -> Start | None:
        """The next order of a lane, if the cap has room for it."""
        lane = self.lane(number)
        if lane.is_left:
            return None
        purchase, sampling_raw = self._purchase(lane)
        order = purchase.order
        granted = min(order.quantum, order.max_out)
        hold = fee_of(len(PROMPT), granted)
        if not self._has_room(hold):
            return None
        expires_ms = self.ledger.now_ms + self._life_ms(order.deadline_ms)
        voucher, signature = self._promise(lane, hold, purchase, expires_ms)
        start = Start(purchase.order_raw, pack_ids(PROMPT), sampling_raw, b"", voucher, signature)
        named = order_hash(purchase.order_raw)
        self.wanted[number] = Wanted(purchase, named, start, hold, granted, expires_ms)
        return start

    def again(self, number: int) -> Start:
        """The same order in a new stream, under its newest promise."""
        self.wanted[number].received.clear()
        return self.wanted[number].start

    def _has_room(self, hold: int) -> bool:
        return self.promises.promised(self.channel) + hold <= self.ledger.referee.cap

    def _life_ms(self, deadline_ms: int) -> int:
        """Long enough for the order's own time and what a provider wants behind it."""
        ahead_ms = deadline_ms - self.ledger.now_ms
        return ahead_ms + self.rng.choice(LIVES_MS)

    def _purchase(self, lane: PayerLane) -> tuple[Purchase, bytes]:
        rng = self.rng
        sampling = SAMPLING._replace(max_tokens=rng.randrange(1, 1 + rng.choice(TOKENS_MAX)))
        order = make_order(
            sampling=sampling, quantum=rng.choice(QUANTA), salt16=rng.randbytes(16),
            deadline_ms=self.ledger.now_ms + rng.choice(DEADLINES_MS),
        )  # fmt: skip
        order = order._replace(prompt_commit=prompt_commit(order.salt16, PROMPT))
        purchase = Purchase(
            CHAIN, order, encode_order(order), PROMPT, sampling, ZERO_HASH, PRICES, self.channel,
            lane.number, lane.seq + 1,
        )  # fmt: skip
        return purchase, encode_sampling(sampling)

    def _promise(
        self, lane: PayerLane, hold: int, purchase: Purchase | None, expires_ms: int
    ) -> tuple[bytes, bytes]:
        named = ZERO_HASH if purchase is None else order_hash(purchase.order_raw)
        made = self.promises.promise(lane, hold=hold, order_hash=named, expires_ms=expires_ms)
        self.ledger.referee.note_voucher(made.raw)
        return made.raw, made.signature

    # ---- what comes back

    def take_tokens(self, number: int, frames: list[Tokens]) -> None:
        """More of the answer; beyond what was promised is a lie."""
        wanted = self.wanted[number]
        for frame in frames:
            ids = unpack_ids(frame.ids)
            require(frame.start == len(wanted.received), "tokens are lost in a stream that lives")
            wanted.received += ids
            require(len(wanted.received) <= wanted.granted, "more than was promised is shown")
        wanted.came = max(wanted.came, len(wanted.received))

    def tick(self, number: int) -> Tick:
        """A promise for the next quantum."""
        wanted = self.wanted[number]
        order = wanted.purchase.order
        wanted.granted = min(order.max_out, wanted.granted + order.quantum)
        wanted.hold = fee_of(len(PROMPT), wanted.granted)
        voucher, signature = self._promise(
            self.lane(number), wanted.hold, wanted.purchase, wanted.expires_ms
        )
        wanted.start = wanted.start._replace(voucher=voucher, signature=signature)
        return Tick(voucher, signature)

    def take_reply(self, number: int, reply: Reply) -> Tick | None:
        """Check, accept, acknowledge; None: a lie, after which the lane is left."""
        wanted, lane = self.wanted[number], self.lane(number)
        try:
            receipt = check_receipt(
                wanted.purchase, reply.finished, [reply.ids], provider_nonce=ZERO_HASH,
                hold=wanted.hold, key=PROVIDER.key,
            )  # fmt: skip
        except CheckFailed:
            self.lies_caught += 1
            self._leave(number)
            return None
        if reply.is_lie:
            raise Violation(BROKEN, "a lie is accepted")
        finished = reply.finished
        self._accepting = (finished.receipt, fee_of(len(PROMPT), len(reply.ids)))
        self.promises.accept(finished.receipt, finished.signature, NO_CREDITS)
        self.ledger.referee.note_accepted(*self._accepting)
        del self.wanted[number]
        assert receipt.seq == lane.seq
        return self.acknowledge(number)

    def acknowledge(self, number: int) -> Tick:
        """A bare voucher."""
        lane = self.lane(number)
        return Tick(*self._promise(lane, 0, None, self.ledger.now_ms + self.rng.choice(LIVES_MS)))

    def take_refusal(self, number: int, frame: RefusedFrame) -> None:
        """Out of step: nothing helps this lane. Expired: the order is of no more use."""
        if frame.code == exchange.OUT_OF_STEP:
            if frame.voucher:
                self.promises.saw(frame.voucher, frame.signature)
            self._leave(number)
        elif frame.code != exchange.BUSY:
            self.give_up(number)

    def _leave(self, number: int) -> None:
        lane = self.lane(number)
        if not lane.is_left:
            self.promises.leave(lane)
        self.left.add(number)
        self.give_up(number)

    # ---- what it has lost

    def loss(self, number: int) -> tuple[int, int]:
        """(grains, the most that was at risk for one stretch) of what the ledger took in a lane
        beyond what was accepted and what came."""
        referee = self.ledger.referee
        settled = referee.lanes.get(number)
        count = referee.accepted_in(number)
        if settled is None or settled.seq <= count:
            return 0, 0
        require(settled.seq == count + 1, "two answers are paid that were not accepted")
        last = settled.last
        assert last is not None
        orders = [*self.lost.get((number, settled.seq), ())]
        if number in self.wanted:
            orders.append(self.wanted[number])
        found = next((x for x in orders if x.named == last.order_hash), None)
        if found is None:
            raise Violation(BROKEN, "an order is paid that was not made")
        order = found.purchase.order
        stretch = fee_of(len(PROMPT), min(order.quantum, order.max_out))
        return last.fee - found.worth, stretch


class LyingPayer(PayerSide):
    """The villain: any number, sum, order or time, under a good signature or a torn one."""

    def __init__(self, folder: Path, ledger: SessionLedger, rng: Random, lanes: int) -> None:
        super().__init__(folder, ledger, rng, lanes)
        self.starts: list[Start] = []  # all that ever went over the wire, for replays
        self.ticks: list[Tick] = []

    def _has_room(self, hold: int) -> bool:
        return True

    def _life_ms(self, deadline_ms: int) -> int:
        """The least that is taken, and seldom less."""
        ahead_ms = deadline_ms - self.ledger.now_ms + BEHIND_LEAST_MS
        least_ms = self.rng.choice((LIFE_LEAST_MS, *[max(ahead_ms, LIFE_LEAST_MS)] * 3))
        return least_ms + self.rng.choice((0, 0, 0, 1_000, -1))

    def lie(self, start: Start) -> Start:
        """In place of an order."""
        rng = self.rng
        choices = [self.resigned(start), self.resigned(start), torn(rng, start)]
        return rng.choice([*choices, *rng.sample(self.starts, min(2, len(self.starts)))])

    def misstated(self, tick: Tick) -> Tick | None:
        """In place of a tick or an acknowledgement."""
        voucher = decode_voucher(tick.voucher)
        changed = self.signed(self._changed(voucher))
        return self.rng.choice((None, changed, changed, self.rng.choice([tick, *self.ticks])))

    def resigned(self, start: Start) -> Start:
        """Really signed, but of something else."""
        changed = self.signed(self._changed(decode_voucher(start.voucher)))
        return start._replace(voucher=changed.voucher, signature=changed.signature)

    def signed(self, voucher: Voucher) -> Tick:
        """Whatever it says."""
        raw = encode_voucher(voucher)
        self.ledger.referee.note_voucher(raw)
        return Tick(raw, SPENDER.sign(voucher_message(CHAIN, raw)))

    def _changed(self, voucher: Voucher) -> Voucher:
        rng, now_ms = self.rng, self.ledger.now_ms
        smaller = voucher.cumulative - rng.randrange(1 + voucher.cumulative)
        changes: list[dict[str, Any]] = [
            {"cumulative": smaller}, {"cumulative": voucher.cumulative + 1},
            {"accumulator": rng.randbytes(32)}, {"seq": max(1, voucher.seq + rng.choice((-1, 1)))},
            {"sub": 0}, {"sub": voucher.sub + 1}, {"hold": rng.randrange(voucher.hold + 1)},
            {"hold": voucher.hold // 2}, {"hold": self.ledger.referee.cap * 2},
            {"order_hash": ZERO_HASH}, {"order_hash": rng.randbytes(32)},
            {"expires_ms": now_ms + rng.choice((-1, 1_000, 600_000))},
            {"expires_ms": now_ms + 1_100_000}, {"lane": voucher.lane + 1},
            {"channel": rng.randbytes(32)},
        ]  # fmt: skip
        return voucher._replace(**rng.choice(changes))


def torn(rng: Random, start: Start) -> Start:
    """One bit of one field is another."""
    field_name = rng.choice(("order", "prompt", "sampling", "voucher", "signature"))
    raw = bytearray(getattr(start, field_name))
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return start._replace(**{field_name: bytes(raw)})
