"""The provider's lanes: which promise it holds, which receipts it signed, what it can settle.

Why a receipt is durable before it is sent: a payer who has it may acknowledge it, and the next
voucher then counts it, so it must outlive a crash of ours. Acknowledgements may be lost: the last
receipt is then claimed from the hold.
Why a book knows when it was made: a payer may hold receipts that were in another one, lost with its
disk. A second one for the same place costs the provider's bond, so channels of before get none.
Why a channel can be released: who signs a CoopClose gives up all that was served and not settled,
so nothing more is served on it while that signature is good.
Why whole answers are kept: asked again for (channel, lane, seq, order), the provider returns what
it gave and charges nothing; and an auditor may ask for the evidence (page 30 §7, page 50 §8).
What this file does not know: streams, engines, when bundles are cut.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Final, NamedTuple, TypeVar

from consensus.primitives.encoding import SIG, U63, Bytes, Either, H, ListOf, Record, decode, encode
from consensus.primitives.keys import SIGNATURE_BYTES
from node.ledger import tables
from node.ledger.rules.channels import lane_of
from node.ledger.state import State
from node.ledger.tables import Lane
from node.ledger.wire.bundles import (
    HEADER_BYTES_MAX,
    BodyPart,
    Section,
    decode_header,
    encode_section,
)
from node.ledger.wire.exchange import (
    LOGPROBS_BYTES_MAX,
    PROMPT_BYTES_MAX,
    SKETCH_BYTES,
    STATEMENT_BYTES_MAX,
)
from node.ledger.wire.orders import VOUCHER_BYTES_MAX, Voucher, decode_voucher
from node.ledger.wire.receipts import (
    CREDITS_BYTES_MAX,
    RECEIPT_BYTES_MAX,
    Receipt,
    accumulate_receipt,
    decode_receipt,
    receipt_id,
)
from node.serving.verify import EVIDENCE_BYTES_MAX
from node.storage.errors import Damaged
from node.storage.frames import FrameFormat
from node.storage.segments import SEGMENT_BYTES, Place, SegmentLog, segment_names

MAGIC: Final = b"OLRB"
RECORD_BYTES_MAX: Final = EVIDENCE_BYTES_MAX + 6 * PROMPT_BYTES_MAX
UNSETTLED_MAX: Final = 256  # of one lane: a lane is settled whole, so it must fit into one bundle
RESERVED_EVERY: Final = 1_024  # its multiples number what others keep for us, none that we tell
RESERVED_ROOM: Final = 512  # told within a minute at most, so that none passes a kept one by
DAMAGED_MEND: Final = (
    "close the provider's channels (olnode tx close-channel), then move the folder aside: what was "
    "not settled is lost, and channels of before are not served"
)
KEEP_MS: Final = 24 * 3_600_000  # answers, for whoever asks again and for auditors
FORMAT: Final = FrameFormat(MAGIC, has_height=False, payload_bytes_max=RECORD_BYTES_MAX)

_SERVED, _VOUCHER, _BUNDLE, _RELEASED, _BEGUN = 1, 2, 3, 4, 5
_BEGUN_SHAPE: Final = Record(U63)
_VOUCHER_SHAPE: Final = Record(Bytes(VOUCHER_BYTES_MAX), SIG)
_RELEASED_SHAPE: Final = Record(H, U63, U63)
_BUNDLE_SHAPE: Final = Record(Bytes(HEADER_BYTES_MAX))
_SERVED_SHAPE: Final = Record(
    Bytes(RECEIPT_BYTES_MAX),
    SIG,
    Bytes(CREDITS_BYTES_MAX),
    Either(0, SKETCH_BYTES),
    Bytes(STATEMENT_BYTES_MAX),
    Bytes(LOGPROBS_BYTES_MAX),
    H,
    ListOf(Bytes(PROMPT_BYTES_MAX), 8, 1),
    ListOf(Bytes(PROMPT_BYTES_MAX), 8, 1),
    Bytes(EVIDENCE_BYTES_MAX),
    Bytes(VOUCHER_BYTES_MAX),
    Either(0, SIGNATURE_BYTES),
)


class Served(NamedTuple):
    """One answer with all that was sent for it; `ids` u32 and `text` per choice.

    `voucher`: the promise whose hold pays it until it is acknowledged.
    """

    receipt: bytes
    signature: bytes
    credits: bytes
    sketch: bytes
    statement: bytes
    logprobs: bytes
    provider_nonce: bytes
    ids: tuple[bytes, ...]
    text: tuple[bytes, ...]
    evidence: bytes
    voucher: bytes
    voucher_sig: bytes


class Released(NamedTuple):
    """A channel on which nothing is served: before `until_ms`, and while `paid` is what is paid."""

    channel: bytes
    paid: int
    until_ms: int


class Unsettled(NamedTuple):
    """A receipt that is not on the ledger yet."""

    receipt: Receipt
    raw: bytes
    signature: bytes
    credits: bytes


@dataclass(slots=True)
class ProviderLane:
    """`seq`, `cumulative`, `accumulator`: of our last receipt. `voucher`: the newest we hold.

    `claim`: the voucher whose hold pays the last receipt. `cut_seq`: the last receipt that is in
    a bundle which may still settle.
    """

    channel: bytes
    number: int
    seq: int
    cumulative: int
    accumulator: bytes
    voucher: Voucher | None = None
    voucher_raw: bytes = b""
    voucher_sig: bytes = b""
    claim_raw: bytes = b""
    claim_sig: bytes = b""
    cut_seq: int = 0
    is_busy: bool = False
    unsettled: list[Unsettled] = field(default_factory=list)

    @property
    def promised(self) -> int:
        """What can be settled in this lane, with the newest hold."""
        held = 0 if self.voucher is None else self.voucher.cumulative + self.voucher.hold
        return max(self.cumulative, held)

    @property
    def uncut(self) -> int:
        """How many receipts are in no bundle yet."""
        return min(len(self.unsettled), self.seq - self.cut_seq)

    @property
    def is_acknowledged(self) -> bool:
        """Whether the payer's newest voucher covers our last receipt."""
        return self.voucher is not None and self.voucher.seq == self.seq + 1


class ReceiptBook:
    """Durable lanes and answers of one provider. Methods that write block for an fsync."""

    def __init__(
        self,
        directory: Path,
        get_state: Callable[[], State],
        segment_bytes: int = SEGMENT_BYTES,
        *,
        now_ms: int,
    ) -> None:
        """Open or make the book, at `now_ms`, and read it back; raises `Damaged`."""
        self._get_state = get_state
        self._lock = Lock()
        self._lanes: dict[tuple[bytes, int], ProviderLane] = {}
        self._places: dict[tuple[bytes, int, int], Place] = {}  # channel, lane, seq
        self._by_id: dict[bytes, Place] = {}
        self._newest_ms: dict[int, int] = {}  # segment → its latest receipt
        self._released: dict[bytes, Released] = {}
        self.bundle_seq = self.reserved_seq = 0  # the last number of either kind
        self._begun_ms = 0  # of a book that was made before books noted it
        self._log = SegmentLog(directory, FORMAT, segment_bytes)
        state, is_new = get_state(), True
        for segment in self._log.segments:
            frames, gaps = self._log.segment_frames(segment)
            if gaps:
                raise Damaged(
                    f"the receipts in {directory} are damaged",
                    why=f"at byte {gaps[0].start} of segment {segment}",
                    mend=DAMAGED_MEND,
                )
            for place, frame in frames:
                is_new = False
                self._replay(state, place, frame.kind, frame.payload)
        if is_new:
            self._begun_ms = now_ms
            self._log.append(_BEGUN, encode((now_ms,)))
            self._log.sync()

    def close(self) -> None:
        """Let go of the files."""
        with self._lock:
            self._log.close()

    # -- lanes

    def lane(self, channel: bytes, number: int) -> ProviderLane:
        """The lane; one we know nothing of stands where the ledger has it."""
        place = (channel, number)
        lane = self._lanes.get(place)
        if lane is None:
            settled = lane_of(self._get_state(), channel, number)
            lane = self._lanes[place] = _lane_at(channel, number, settled)
        return lane

    def lanes(self) -> list[ProviderLane]:
        """All lanes in use, by channel and number."""
        return [self._lanes[place] for place in sorted(self._lanes)]

    def promised(self, channel: bytes, but: ProviderLane | None = None) -> int:
        """What can be settled against a channel, over its lanes but one.

        Counted from what the ledger has paid: a book that was pruned and opened again does not
        know every lane that has drawn on the cap.
        """
        state = self._get_state()
        record = state.find(tables.CHANNEL, channel)
        total = 0 if record is None else record.paid
        for lane in self._lanes.values():
            if lane.channel == channel:
                total -= lane_of(state, channel, lane.number).cumulative
                total += 0 if lane is but else lane.promised
        return total

    def take_voucher(self, lane: ProviderLane, raw: bytes, signature: bytes) -> None:
        """Hold a checked voucher. One that acknowledges is written down, unsynced."""
        lane.voucher, lane.voucher_raw, lane.voucher_sig = decode_voucher(raw), raw, signature
        if lane.unsettled:
            with self._lock:
                self._log.append(_VOUCHER, encode((raw, signature)))

    # -- receipts

    def keep(self, served: Served) -> None:
        """Make an answer durable; only then may its receipt leave. Moves its lane."""
        with self._lock:
            place = self._log.append(_SERVED, encode(served))
            self._log.sync()
        self._take(self.lane(*_lane_place(served)), place, served)

    def find(self, channel: bytes, lane: int, seq: int, order_hash: bytes) -> Served | None:
        """The answer that was given to this very request."""
        place = self._places.get((channel, lane, seq))
        served = None if place is None else self._read(place)
        if served is None or decode_receipt(served.receipt).order_hash != order_hash:
            return None
        return served

    def release(self, released: Released) -> None:
        """Serve nothing more on a channel, durably: from the call on, also if it fails."""
        self._released[released.channel] = released
        with self._lock:
            self._log.append(_RELEASED, encode(released))
            self._log.sync()

    def is_older(self, opened_ms: int) -> bool:
        """Whether a channel opened then may have been served from a book that we lost."""
        return opened_ms < self._begun_ms

    def is_released(self, channel: bytes, paid: int, now_ms: int) -> bool:
        """Whether nothing may be served on a channel of which the ledger has `paid`."""
        found = self._released.get(channel)
        return found is not None and (paid == found.paid or now_ms < found.until_ms)

    def find_receipt(self, wanted: bytes) -> Served | None:
        """The answer of a receipt id."""
        place = self._by_id.get(wanted)
        return None if place is None else self._read(place)

    def settle(self, lane: ProviderLane, settled: Lane) -> None:
        """The ledger has receipts up to `settled.seq`: they need no more settling."""
        lane.unsettled = [item for item in lane.unsettled if item.receipt.seq > settled.seq]
        lane.cut_seq = max(lane.cut_seq, settled.seq)

    def prune(self, before_ms: int) -> int:
        """Drop the oldest segments whose answers are all older and settled; how many went."""
        gone = 0
        oldest = min(
            (item.receipt.finished_ms for x in self._lanes.values() for item in x.unsettled),
            default=before_ms,
        )
        with self._lock:
            while len(self._log.segments) > 1:
                segment = self._log.segments[0]
                if self._newest_ms.get(segment, 0) >= min(before_ms, oldest):
                    break
                self._keep_standing()  # what is in this segment would be forgotten with it
                self._log.drop(segment)
                self._newest_ms.pop(segment, None)
                self._places = _without(self._places, segment)
                self._by_id = _without(self._by_id, segment)
                gone += 1
        return gone

    # -- bundles

    def next_bundle_seq(self, settled: int) -> int:
        """A number that no bundle of ours had, above the ledger's, and none of those reserved."""
        number = max(self.bundle_seq, settled) + 1
        return number + (number % RESERVED_EVERY == 0)

    def next_reserved_seq(self, settled: int) -> int:
        """The same for a bundle that others keep, well above those that we tell meanwhile."""
        taken = max(self.bundle_seq, self.reserved_seq, settled)
        return (taken + RESERVED_ROOM) // RESERVED_EVERY * RESERVED_EVERY + RESERVED_EVERY

    def note_bundle(self, header: bytes) -> None:
        """Remember that this number is used, durably, before the bundle leaves."""
        with self._lock:
            self._log.append(_BUNDLE, encode((header,)))
            self._log.sync()
        self._take_number(decode_header(header).bundle_seq)

    # -- inside

    def _keep_standing(self) -> None:
        if self._begun_ms:
            self._log.append(_BEGUN, encode((self._begun_ms,)))
        state = self._get_state()
        for channel in list(self._released):
            record = state.find(tables.CHANNEL, channel)
            if record is None or record.state == tables.CHANNEL_CLOSED:
                del self._released[channel]
            else:
                self._log.append(_RELEASED, encode(self._released[channel]))
        self._log.sync()

    def _take_number(self, number: int) -> None:
        if number % RESERVED_EVERY:
            self.bundle_seq = max(self.bundle_seq, number)
        else:
            self.reserved_seq = max(self.reserved_seq, number)

    def _read(self, place: Place) -> Served:
        payload = self._log.read(place).payload
        return Served(*decode(payload, _SERVED_SHAPE, RECORD_BYTES_MAX, "book"))

    def _take(self, lane: ProviderLane, place: Place, served: Served) -> None:
        receipt = decode_receipt(served.receipt)
        assert receipt.seq == lane.seq + 1, "receipt numbers are never reused"
        lane.seq = receipt.seq
        lane.cumulative += receipt.fee
        lane.accumulator = accumulate_receipt(lane.accumulator, served.receipt)
        lane.claim_raw, lane.claim_sig = served.voucher, served.voucher_sig
        lane.unsettled.append(Unsettled(receipt, served.receipt, served.signature, served.credits))
        self._index(place, served, receipt)

    def _index(self, place: Place, served: Served, receipt: Receipt) -> None:
        self._places[receipt.channel, receipt.lane, receipt.seq] = place
        self._by_id[receipt_id(served.receipt)] = place
        newest = self._newest_ms.get(place.segment, 0)
        self._newest_ms[place.segment] = max(newest, receipt.finished_ms)

    def _replay(self, state: State, place: Place, kind: int, payload: bytes) -> None:
        if kind == _SERVED:
            served = Served(*decode(payload, _SERVED_SHAPE, RECORD_BYTES_MAX, "book"))
            receipt = decode_receipt(served.receipt)
            lane = self.lane(receipt.channel, receipt.lane)
            is_settled = receipt.seq <= lane.seq  # while we were away
            is_behind_a_gap = receipt.seq > lane.seq + 1 and _has_ended(state, lane.channel)
            if is_settled or is_behind_a_gap:
                self._index(place, served, receipt)
                return
            self._take(lane, place, served)
            if not lane.is_acknowledged:
                lane.voucher = decode_voucher(served.voucher)
                lane.voucher_raw, lane.voucher_sig = served.voucher, served.voucher_sig
        elif kind == _VOUCHER:
            raw, signature = decode(payload, _VOUCHER_SHAPE, RECORD_BYTES_MAX, "book")
            voucher = decode_voucher(raw)
            lane = self.lane(voucher.channel, voucher.lane)
            if voucher.seq > lane.seq:  # else it was settled while we were away
                lane.voucher, lane.voucher_raw, lane.voucher_sig = voucher, raw, signature
        elif kind == _RELEASED:
            released = Released(*decode(payload, _RELEASED_SHAPE, RECORD_BYTES_MAX, "book"))
            self._released[released.channel] = released
        elif kind == _BUNDLE:
            (header,) = decode(payload, _BUNDLE_SHAPE, RECORD_BYTES_MAX, "book")
            self._take_number(decode_header(header).bundle_seq)
        elif kind == _BEGUN:
            (self._begun_ms,) = decode(payload, _BEGUN_SHAPE, RECORD_BYTES_MAX, "book")


def has_book(directory: Path) -> bool:
    """Whether a book was ever made there."""
    return bool(segment_names(directory))


K = TypeVar("K")


def _without(index: dict[K, Place], segment: int) -> dict[K, Place]:
    return {key: place for key, place in index.items() if place.segment != segment}


def _has_ended(state: State, channel: bytes) -> bool:
    """Whether the ledger has closed a channel, or forgotten it: nothing of it can be settled.

    What it had not settled, or no longer knows, may have been pruned before later receipts.
    """
    record = state.find(tables.CHANNEL, channel)
    return record is None or record.state == tables.CHANNEL_CLOSED


def _lane_at(channel: bytes, number: int, settled: Lane) -> ProviderLane:
    return ProviderLane(
        channel, number, settled.seq, settled.cumulative, settled.accumulator, cut_seq=settled.seq
    )


def _lane_place(served: Served) -> tuple[bytes, int]:
    receipt = decode_receipt(served.receipt)
    return receipt.channel, receipt.lane


def cut_section(lane: ProviderLane, *, may_claim: bool, after_seq: int) -> BodyPart | None:
    """The receipts of a lane above `after_seq` that can be settled now, as a section, or None.

    Those that the newest voucher acknowledges; with `may_claim` also the last one, from its hold.
    """
    fresh = [item for item in lane.unsettled if item.receipt.seq > after_seq]
    if not fresh or lane.voucher is None:
        return None
    last = b""
    voucher, signature = lane.voucher_raw, lane.voucher_sig
    if not lane.is_acknowledged:
        if may_claim:
            voucher, signature = lane.claim_raw, lane.claim_sig
            last = fresh[-1].signature
        else:
            fresh = fresh[:-1]
            voucher, signature = lane.claim_raw, lane.claim_sig
    if not fresh:
        return None
    section = Section(
        channel=lane.channel,
        lane=lane.number,
        from_seq=fresh[0].receipt.seq,
        to_seq=fresh[-1].receipt.seq,
        amount=sum(item.receipt.fee for item in fresh),
        voucher=voucher,
        voucher_sig=signature,
        last_receipt_sig=last,
    )
    return BodyPart(
        encode_section(section),
        tuple(item.raw for item in fresh),
        tuple(item.credits for item in fresh),
    )
