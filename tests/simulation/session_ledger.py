"""The ledger that sessions are settled on, and a referee who follows it by plain sums.

Blocks are the real rules in the real order, without a tree, with the money of one pair. The referee
knows what each side signed and keeps its own few numbers; whatever the ledger settles, returns or
takes beside them is a `Violation`. It imports no rule.
"""

from collections import Counter
from typing import Any, Final, NamedTuple

from bundle_kit import CHAIN, party
from ledger_kit import NOW_MS, PAYER, PROVIDER, context, new_state, transaction
from simulation.outcomes import BROKEN, Violation

from consensus.primitives.errors import Invalid
from node.ledger import tables
from node.ledger.admission import admit_bundle
from node.ledger.execute import RULES_1, apply_due, check_supply
from node.ledger.rules import payout
from node.ledger.rules.channels import BundleFees, apply_bundle
from node.ledger.wire.bundles import Bundle, Section, decode_body, decode_header, decode_section
from node.ledger.wire.codes import OK, effect_code
from node.ledger.wire.orders import Voucher, channel_id, decode_voucher
from node.ledger.wire.receipts import Receipt, decode_receipt
from node.ledger.wire.transactions import CloseChannel, CoopClose, OpenChannel, TopUpChannel

SPENDER: Final = party("spender")
CLOSE_MS: Final = 2 * 3_600_000  # longer than any request may run
FORGET_MS: Final = 3_600_000  # so that a run's first channels are forgotten before its end
ABOVE_CAP: Final = "paid above the cap"
MIN_FEE: Final = 100_000  # of a receipt, on average over its bundle


class LaneFacts(NamedTuple):
    """What is settled of a lane."""

    seq: int = 0
    cumulative: int = 0
    last: Receipt | None = None


class Referee:
    """One channel as both sides' signatures and the clock make it."""

    def __init__(self, channel: bytes, cap: int, villain: str) -> None:
        self.channel, self.cap, self.villain = channel, cap, villain
        self.paid = 0
        self.lanes: dict[int, LaneFacts] = {}
        self.closes_ms: int | None = None
        self.is_closed = False
        self.signed: set[bytes] = set()  # vouchers, by whoever holds the spending key
        self.accepted: dict[tuple[int, int], bytes] = {}  # lane, seq → receipt
        self.sums: dict[int, int] = {}  # lane → fees of what was accepted
        self.served: dict[tuple[int, int], bytes] = {}  # that left the provider
        self.holds: dict[tuple[int, int], dict[bytes, int]] = {}  # lane, seq → order → its hold
        self.consents: set[tuple[bytes, int]] = set()  # who, to which sum
        self._newest: dict[int, Voucher] = {}

    # ---- what the sides sign

    def note_voucher(self, raw: bytes) -> None:
        """A voucher leaves the payer, who is honest or not."""
        voucher = decode_voucher(raw)
        is_order = voucher.order_hash not in self.holds.get((voucher.lane, voucher.seq), {})
        self.signed.add(raw)
        at_risk = self.holds.setdefault((voucher.lane, voucher.seq), {})
        at_risk[voucher.order_hash] = max(voucher.hold, at_risk.get(voucher.order_hash, 0))
        if self.villain != "payer":
            self._check_voucher(voucher)
            if is_order and voucher.hold:
                self._check_promised(voucher)
            self._newest[voucher.lane] = voucher

    def _check_voucher(self, voucher: Voucher) -> None:
        """Above what was said, of what was accepted."""
        before = self._newest.get(voucher.lane)
        is_new = before is None or (voucher.seq, voucher.sub) > (before.seq, before.sub)
        require(is_new, "a voucher's number is used twice")
        sum_of = self.sums.get(voucher.lane, 0)
        count = self.accepted_in(voucher.lane)
        require(voucher.seq == count + 1, "a voucher beside the receipts that were accepted")
        require(voucher.cumulative == sum_of, "a voucher of a sum that was not accepted")

    def _check_promised(self, voucher: Voucher) -> None:
        """An order is within the cap; ticks are not held to it, the provider refuses those."""
        others = sum(
            max(x.cumulative + x.hold, self.sums.get(lane, 0))
            for lane, x in self._newest.items()
            if lane != voucher.lane
        )
        promised = others + voucher.cumulative + voucher.hold
        require(promised <= self.cap, "more than the cap is promised")

    def note_durable(self, voucher: Voucher) -> None:
        """A journal holds a voucher that the power kept from leaving: its number is used."""
        known = self._newest.get(voucher.lane)
        if known is None or (voucher.seq, voucher.sub) > (known.seq, known.sub):
            self._newest[voucher.lane] = voucher

    def accepted_in(self, lane: int) -> int:
        """How many receipts of a lane were accepted."""
        return sum(number == lane for number, _ in self.accepted)

    def note_accepted(self, raw: bytes, worth: int) -> None:
        """The payer takes a receipt for what it received."""
        receipt = decode_receipt(raw)
        place = (receipt.lane, receipt.seq)
        held = max(self.holds[place].values())
        require(place not in self.accepted, "a receipt is accepted twice")
        require(receipt.fee <= min(worth, held), "a receipt above its answer's price is accepted")
        self.accepted[place] = raw
        self.sums[receipt.lane] = self.sums.get(receipt.lane, 0) + receipt.fee

    def note_served(self, raw: bytes, worth: int) -> None:
        """A receipt leaves the honest provider: one for each number, for all that it delivered."""
        receipt = decode_receipt(raw)
        if receipt.channel != self.channel:
            return  # an answer of long ago, asked for again
        first = self.served.setdefault((receipt.lane, receipt.seq), raw)
        require(first == raw, "a receipt's number is used twice")
        require(receipt.fee == worth, "an answer is given away")

    def unpaid(self) -> int:
        """Fees of what the provider served and the ledger did not settle."""
        receipts = [decode_receipt(raw) for raw in self.served.values()]
        return sum(x.fee for x in receipts if x.seq > self.lanes.get(x.lane, LaneFacts()).seq)

    def note_consent(self, who: bytes, paid: int) -> None:
        """A side agrees to an end at this sum."""
        self.consents.add((who, paid))

    # ---- what the ledger does

    def begin_block(self, now_ms: int) -> None:
        """The waiting time may be over."""
        if self.closes_ms is not None and self.closes_ms <= now_ms:
            self.is_closed = True

    def note_bundle(self, bundle: Bundle, now_ms: int) -> None:
        """The ledger took it: every section must have been owed."""
        header = decode_header(bundle.header)
        require(header.fee_total >= MIN_FEE * header.count, "fees below the minimum are settled")
        for part in decode_body(bundle.body):
            section = decode_section(part.section)
            if section.channel == self.channel:
                self._settle(section, part.receipts, now_ms)

    def _settle(self, section: Section, raws: tuple[bytes, ...], now_ms: int) -> None:
        require(not self.is_closed, "a closed channel pays")
        require(section.voucher in self.signed, "a voucher that nobody signed pays")
        voucher = decode_voucher(section.voucher)
        receipts = [decode_receipt(raw) for raw in raws]
        lane = self.lanes.get(section.lane, LaneFacts())
        numbers = [(receipt.lane, receipt.seq) for receipt in receipts]
        expected = [(section.lane, lane.seq + 1 + i) for i in range(len(receipts))]
        require(numbers == expected, "a receipt is settled twice or out of order")
        require((voucher.channel, voucher.lane) == (self.channel, section.lane), "another's lane")
        require(voucher.expires_ms > now_ms, "an expired voucher pays")
        is_claim = voucher.seq == section.to_seq
        require(is_claim or voucher.seq == section.to_seq + 1, "a voucher of another number pays")
        last = receipts[-1]
        if is_claim:
            require(voucher.order_hash == last.order_hash, "an answer that was not ordered is paid")
            require(last.fee <= voucher.hold, "more than the hold is paid")
        for place, raw in list(zip(numbers, raws, strict=True))[: len(raws) - is_claim]:
            truth = self.served if self.villain == "payer" else self.accepted
            require(truth.get(place) == raw, "another receipt than was acknowledged is settled")
        amount = sum(receipt.fee for receipt in receipts)
        self.paid += amount
        require(self.paid <= self.cap, ABOVE_CAP)
        self.lanes[section.lane] = LaneFacts(last.seq, lane.cumulative + amount, last)

    def note_transaction(self, sender: bytes, payload: Any, now_ms: int) -> None:
        """The ledger took it."""
        require(not self.is_closed, "a closed channel changes")
        match payload:
            case TopUpChannel(_, amount):
                require(self.closes_ms is None, "a closing channel is topped up")
                self.cap += amount
            case CloseChannel() if sender == PROVIDER.key:
                self.is_closed = True
            case CloseChannel():
                require(self.closes_ms is None, "a closing channel is closed again")
                self.closes_ms = now_ms + CLOSE_MS
            case CoopClose():
                both = {(PAYER.key, self.paid), (PROVIDER.key, self.paid)}
                require(both <= self.consents, "a channel is closed against a side's will")
                self.is_closed = True

    def compare(self, record: tables.Channel | None, spent: int) -> None:
        """After a block: the channel as the ledger has it, if it has, and what the payer misses."""
        is_closed = record is None or record.state == tables.CHANNEL_CLOSED
        require(is_closed == self.is_closed, "open or closed?")
        require(record is None or record.paid == self.paid, "paid beside the bundles")
        kept = self.paid if self.is_closed else self.cap
        require(spent == kept, "the payer's money is not where it should be")


def require(is_so: bool, why: str) -> None:
    """Raise the violation `why` unless it is so."""
    if not is_so:
        raise Violation(BROKEN, why)


class SessionLedger:
    """The state, its clock, what waits for the next block, and the referee of the one channel."""

    def __init__(self, villain: str) -> None:
        self.state = new_state(channel_close_ms=CLOSE_MS, channel_forget_ms=FORGET_MS)
        self.now_ms = NOW_MS
        self.villain = villain
        self.referee: Referee
        self.bundle_seq = 0  # the last that was settled
        self.counts: Counter[str] = Counter()  # of all that happens in a run
        self._height, self._nonce, self._spent = 2, 0, 0
        self._pool: list[tuple[int, Bundle]] = []  # when it is here
        self._transactions: list[tuple[Any, Any]] = []
        self._fees: list[BundleFees] = []  # of bundles since the last block

    def open_channel(self, cap: int) -> bytes:
        """A block with a new channel, and a new referee for it."""
        channel = channel_id(CHAIN, PAYER.key, PROVIDER.key, self._nonce)
        self.referee = Referee(channel, cap, self.villain)
        self._spent = self.state.account(PAYER.key).balance
        opening = OpenChannel(PROVIDER.key, SPENDER.key, cap, 0)
        assert self._apply(PAYER, opening) == OK
        return channel

    def offer(self, bundle: Bundle, delay_ms: int = 0) -> None:
        """A bundle on its way into a block."""
        self._pool.append((self.now_ms + delay_ms, bundle))

    def send(self, who: Any, payload: Any) -> None:
        """A transaction of `who` for the next block."""
        self._transactions.append((who, payload))

    def block(self) -> None:
        """Due, bundles, transactions, settlement, the sums; then the referee compares."""
        self._height += 1
        now, referee = context(self.now_ms, height=self._height), self.referee
        apply_due(RULES_1, self.state, now)
        referee.begin_block(self.now_ms)
        here = [bundle for due_ms, bundle in self._pool if due_ms <= self.now_ms]
        self._pool = [item for item in self._pool if item[0] > self.now_ms]
        here.sort(key=lambda bundle: decode_header(bundle.header).bundle_seq)
        for bundle in here:
            self.settle_now(bundle)
        for who, payload in self._transactions:
            if self._apply(who, payload) == OK:
                self.counts[type(payload).__name__] += 1
                referee.note_transaction(who.key, payload, self.now_ms)
        self._transactions.clear()
        payout.settle_fees(self.state, now, self._fees)
        self._fees.clear()
        check_supply(self.state)
        record = self.state.find(tables.CHANNEL, referee.channel)
        referee.compare(record, self._spent - self.state.account(PAYER.key).balance)

    def settle_now(self, bundle: Bundle) -> bool:
        """A bundle at once, before the next block's; whether the ledger took it."""
        fees = self._settle(bundle)
        self._fees += [] if fees is None else [fees]
        return fees is not None

    def _settle(self, bundle: Bundle) -> BundleFees | None:
        now = context(self.now_ms, height=self._height)
        try:
            with self.state.trial():
                checked = admit_bundle(self.state, CHAIN, bundle).bundle
                fees = apply_bundle(self.state, now, checked)
        except Invalid:
            self.counts["bundles refused"] += 1
            return None
        number = checked.header.bundle_seq
        require(number > self.bundle_seq, "a bundle's number is settled twice")
        self.bundle_seq = number
        self.referee.note_bundle(bundle, self.now_ms)
        return fees

    def _apply(self, who: Any, payload: Any) -> int:
        now = context(self.now_ms, height=self._height)
        tx = transaction(who, payload, self._nonce)
        self._nonce += isinstance(payload, OpenChannel)
        try:
            with self.state.trial():
                RULES_1.transactions[type(payload)](self.state, now, tx, payload)
        except Invalid as refusal:
            return effect_code(refusal)
        return OK
