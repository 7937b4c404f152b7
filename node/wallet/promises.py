"""What this wallet has promised: journaled before it leaves, never below what it said.

Why a journal: a voucher signed twice with one number and different sums would be the payer's loss,
and a receipt forgotten would stop its lane. So each voucher is on the disk before it is sent, and
each receipt before it is acknowledged. A torn tail was never sent; damage stops the wallet.
Why channels are written before their transaction leaves: a cut between it and its block would leave
the cap in a channel that nobody uses or closes.
Why a lane can be left: when the other side shows a promise of ours that we do not remember, or a
receipt that fails its checks, going on would mean signing what we cannot know.
What this file does not know: streams, prices, who is honest.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Final, NamedTuple

from consensus.primitives.encoding import SIG, U16, U63, Bytes, H, Record, decode, encode
from consensus.primitives.keys import verify_signature
from node.ledger.wire.orders import (
    VERSION,
    VOUCHER_BYTES_MAX,
    ZERO_HASH,
    Voucher,
    decode_voucher,
    encode_voucher,
    voucher_message,
)
from node.ledger.wire.receipts import (
    CREDITS_BYTES_MAX,
    RECEIPT_BYTES_MAX,
    accumulate_receipt,
    accumulator_start,
    decode_receipt,
)
from node.storage.errors import Damaged
from node.storage.frames import FrameFormat
from node.storage.segments import SEGMENT_BYTES, SegmentLog

MAGIC: Final = b"OLPJ"
RECORD_BYTES_MAX: Final = 4_096
RECENT_MAX: Final = 4_096  # receipts in memory, 0.3 KB each
DAMAGED_MEND: Final = "restore it, or close the channels: olnode tx close-channel"
FORMAT: Final = FrameFormat(MAGIC, has_height=False, payload_bytes_max=RECORD_BYTES_MAX)

_CHANNEL, _VOUCHER, _RECEIPT, _LEFT, _OPENING = 1, 2, 3, 4, 5
_CHANNEL_SHAPE: Final = Record(H, H, U63)
_OPENING_SHAPE: Final = Record(H, H, U63, U63, U63)
_VOUCHER_SHAPE: Final = Record(Bytes(VOUCHER_BYTES_MAX))
_RECEIPT_SHAPE: Final = Record(Bytes(RECEIPT_BYTES_MAX), SIG, Bytes(CREDITS_BYTES_MAX))
_LEFT_SHAPE: Final = Record(H, U16)


class Promise(NamedTuple):
    """A signed voucher, durable."""

    raw: bytes
    signature: bytes
    voucher: Voucher


class OwnChannel(NamedTuple):
    """A channel this wallet opened; its cap may have been raised since."""

    channel: bytes
    provider: bytes
    cap: int


class Opening(NamedTuple):
    """A channel whose transaction was about to leave; no block is known to hold it.

    `nonce`: of the transaction; no block may hold it from `until_ms` on.
    """

    channel: bytes
    provider: bytes
    cap: int
    nonce: int
    until_ms: int


@dataclass(slots=True)
class PayerLane:
    """`seq`, `cumulative`, `accumulator`: of the last receipt accepted. `last`: what we signed."""

    channel: bytes
    number: int
    seq: int
    cumulative: int
    accumulator: bytes
    last: Voucher | None = None
    is_left: bool = False
    is_busy: bool = False

    @property
    def promised(self) -> int:
        """The most that the provider can settle in this lane."""
        held = 0 if self.last is None else self.last.cumulative + self.last.hold
        return max(self.cumulative, held)


class PromiseBook:
    """The durable lanes of one wallet. Every method blocks for its fsync; any thread."""

    def __init__(
        self,
        directory: Path,
        *,
        chain_id: bytes,
        spender: bytes,
        sign: Callable[[bytes], bytes],
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """Open or make the journal; raises `Damaged` if what was acknowledged is not whole."""
        self._chain_id = chain_id
        self._spender = spender
        self._sign = sign
        self._lock = Lock()
        self._lanes: dict[tuple[bytes, int], PayerLane] = {}
        self._channels: dict[bytes, OwnChannel] = {}
        self._openings: dict[bytes, Opening] = {}
        self._recent: deque[tuple[bytes, bytes]] = deque(maxlen=RECENT_MAX)
        self._log = SegmentLog(directory, FORMAT, segment_bytes)
        for segment in self._log.segments:
            frames, gaps = self._log.segment_frames(segment)
            if gaps:
                raise Damaged(
                    f"the payer's journal {directory} is damaged",
                    why=f"at byte {gaps[0].start} of segment {segment}",
                    mend=DAMAGED_MEND,
                )
            for _, frame in frames:
                self._replay(frame.kind, frame.payload)

    def close(self) -> None:
        """Let go of the files."""
        with self._lock:
            self._log.close()

    # -- looking

    def lane(self, channel: bytes, number: int) -> PayerLane:
        """The lane; one never used stands at its start."""
        place = (channel, number)
        if place not in self._lanes:
            start = accumulator_start(channel, number)
            self._lanes[place] = PayerLane(channel, number, 0, 0, start)
        return self._lanes[place]

    def channels(self) -> tuple[OwnChannel, ...]:
        """All channels ever opened or about to be, oldest first; the ledger knows which are."""
        return tuple(self._channels.values())

    def knows(self, channel: bytes) -> bool:
        """Whether it is a channel of ours."""
        return channel in self._channels

    def recent_receipts(self) -> tuple[tuple[bytes, bytes], ...]:
        """The last accepted ones with their signatures, oldest first."""
        return tuple(self._recent)

    def openings(self) -> tuple[Opening, ...]:
        """Those of which we never learned that a block holds them."""
        return tuple(self._openings.values())

    def promised(self, channel: bytes) -> int:
        """The most that can still be settled against a channel, over all its lanes."""
        lanes = self._lanes.values()
        return sum(lane.promised for lane in lanes if lane.channel == channel)

    # -- promising

    def note_opening(self, opening: Opening) -> None:
        """Remember a channel before its transaction leaves: its cap is locked by any block."""
        with self._lock:
            self._append(_OPENING, encode(opening))
            self._take_opening(opening)

    def note_channel(self, own: OwnChannel) -> None:
        """Remember a channel that a block holds."""
        with self._lock:
            self._append(_CHANNEL, encode(own))
            self._take_channel(own)

    def promise(
        self, lane: PayerLane, *, hold: int, order_hash: bytes = ZERO_HASH, expires_ms: int
    ) -> Promise:
        """Sign the lane's next voucher; hold 0 and no order only acknowledges.

        It acknowledges every accepted receipt. Its (seq, sub) is above all that this key is known
        to have signed in the lane. A lane that was left signs nothing: asserted.
        """
        assert not lane.is_left, "a lane that was left signs nothing"
        with self._lock:
            seq, sub = lane.seq + 1, 0
            if lane.last is not None:
                assert lane.last.seq <= seq, "a voucher above our receipts: leave the lane"
                sub = lane.last.sub + 1 if lane.last.seq == seq else 0
            voucher = Voucher(
                version=VERSION,
                channel=lane.channel,
                lane=lane.number,
                seq=seq,
                sub=sub,
                cumulative=lane.cumulative,
                accumulator=lane.accumulator,
                hold=hold,
                order_hash=order_hash,
                expires_ms=expires_ms,
            )
            raw = encode_voucher(voucher)
            self._append(_VOUCHER, encode((raw,)))
            lane.last = voucher
            # Ed25519 is deterministic: signing again after a restart gives the same bytes.
            return Promise(raw, self._sign(voucher_message(self._chain_id, raw)), voucher)

    def accept(self, receipt: bytes, signature: bytes, credits: bytes) -> None:
        """Take a checked receipt into its lane: from now on vouchers acknowledge it."""
        with self._lock:
            self._append(_RECEIPT, encode((receipt, signature, credits)))
            self._take_receipt(receipt, signature)

    def leave(self, lane: PayerLane) -> None:
        """Sign nothing more in this lane."""
        with self._lock:
            self._append(_LEFT, encode((lane.channel, lane.number)))
            lane.is_left = True

    def saw(self, raw: bytes, signature: bytes) -> None:
        """The other side shows a voucher of ours: if it is above what we know, leave its lane.

        Raises Invalid `voucher.…` if it is not ours after all.
        """
        voucher = decode_voucher(raw)
        message = voucher_message(self._chain_id, raw)
        verify_signature(self._spender, message, signature, "voucher.signature")
        lane = self.lane(voucher.channel, voucher.lane)
        known = (0, 0) if lane.last is None else (lane.last.seq, lane.last.sub)
        if (voucher.seq, voucher.sub) > known and not lane.is_left:
            self.leave(lane)

    # -- the journal

    def _append(self, kind: int, payload: bytes) -> None:
        self._log.append(kind, payload)
        self._log.sync()

    def _replay(self, kind: int, payload: bytes) -> None:
        if kind == _CHANNEL:
            own = decode(payload, _CHANNEL_SHAPE, RECORD_BYTES_MAX, "promises")
            self._take_channel(OwnChannel(*own))
        elif kind == _OPENING:
            opening = decode(payload, _OPENING_SHAPE, RECORD_BYTES_MAX, "promises")
            self._take_opening(Opening(*opening))
        elif kind == _VOUCHER:
            (raw,) = decode(payload, _VOUCHER_SHAPE, RECORD_BYTES_MAX, "promises")
            voucher = decode_voucher(raw)
            self.lane(voucher.channel, voucher.lane).last = voucher
        elif kind == _RECEIPT:
            receipt, signature, _ = decode(payload, _RECEIPT_SHAPE, RECORD_BYTES_MAX, "promises")
            self._take_receipt(receipt, signature)
        elif kind == _LEFT:
            channel, number = decode(payload, _LEFT_SHAPE, RECORD_BYTES_MAX, "promises")
            self.lane(channel, number).is_left = True

    def _take_opening(self, opening: Opening) -> None:
        self._channels[opening.channel] = OwnChannel(*opening[:3])
        self._openings[opening.channel] = opening

    def _take_channel(self, own: OwnChannel) -> None:
        self._channels[own.channel] = own
        self._openings.pop(own.channel, None)

    def _take_receipt(self, raw: bytes, signature: bytes) -> None:
        receipt = decode_receipt(raw)
        lane = self.lane(receipt.channel, receipt.lane)
        assert receipt.seq == lane.seq + 1, "receipts of a lane are accepted in order"
        lane.seq = receipt.seq
        lane.cumulative += receipt.fee
        lane.accumulator = accumulate_receipt(lane.accumulator, raw)
        self._recent.append((raw, signature))
