"""The provider's signed account of one answer, and the credits it pays.

Why credits stand beside the receipt: the receipt holds their hash, so that it stays small and a
bundle can carry both; the ledger compares the hash and never opens a sketch or an answer.
Why the accumulator: one running hash per lane lets a single voucher acknowledge every receipt
before it, by content and in order.
What this file does not know: who the provider is, whether the price was right.
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256 as _sha256
from typing import Final, NamedTuple

from consensus.primitives.digest import domain_hash, sha256, signing_bytes
from consensus.primitives.encoding import (
    INT_MAX,
    U8,
    U16,
    U32,
    U63,
    Decoder,
    H,
    Integer,
    ListOf,
    OneOf,
    Record,
    decode,
    encode,
    makes_each,
)
from consensus.primitives.errors import Invalid
from consensus.primitives.keys import verify_signature
from consensus.primitives.merkle import leaf_hash, root
from node.ledger.wire.orders import LANES, SALT_BYTES, VERSION, pack_ids

COMPLETE: Final = 0
PARTIAL: Final = 2

RECEIPT_BYTES_MAX: Final = 512
CREDITS_BYTES_MAX: Final = 1_024
CREDITS_MAX: Final = 65  # 64 contributions, and what none of them earns
BPS: Final = 10_000
ANSWER_LEAF_TOKENS_MAX: Final = 256

NO_CONTRIBUTION: Final = 0  # in credits: this share is the model's maintenance fund's

Credits = tuple[tuple[int, int], ...]  # (contribution, share_bps), ascending
Place = tuple[bytes, int, int]  # channel, lane, seq


class Receipt(NamedTuple):
    """One answer, as the provider signs it. Hashes are opened by auditors, not by the ledger."""

    version: int
    channel: bytes
    lane: int
    seq: int
    order_hash: bytes
    model: int
    model_version: int
    tokens_in: int
    tokens_out: int
    fee: int
    answer_root: bytes
    attribution_root: bytes
    sketch_hash: bytes
    fingerprint_hash: bytes
    started_ms: int
    finished_ms: int
    status: int

    @property
    def place(self) -> Place:
        """Where a provider signs one receipt and no other."""
        return self.channel, self.lane, self.seq


RECEIPT: Final = Record(U8, H, U16, U63, H, U63, U32, U32, U32, U63, H, H, H, H, U63, U63, U8)
GOOD_RECEIPT: Final = Record(  # what `_checked_receipt` asks, too
    OneOf(VERSION), H, Integer(LANES - 1), Integer(INT_MAX, 1), H, U63, U32, U32, U32, U63,
    H, H, H, H, U63, U63, OneOf(COMPLETE, PARTIAL),
)  # fmt: skip
CREDITS: Final = ListOf(Record(U63, U16), CREDITS_MAX)
GOOD_CREDITS: Final = ListOf(Record(U63, Integer(BPS, 1)), CREDITS_MAX)


def encode_receipt(receipt: Receipt) -> bytes:
    """Canonical bytes: what the provider signs."""
    return encode(receipt)


def decode_receipt(raw: bytes) -> Receipt:
    """Raises Invalid `receipt.too_large|malformed|not_canonical|version|status|lane|seq`."""
    return _checked_receipt(Receipt(*decode(raw, RECEIPT, RECEIPT_BYTES_MAX, "receipt")))


def decode_receipts(raws: Sequence[bytes]) -> list[Receipt]:
    """The same of many, quicker; raises the reason of the first that is none."""
    return _RECEIPTS.decode(raws)


def _checked_receipt(receipt: Receipt) -> Receipt:
    if receipt.version != VERSION:
        raise Invalid("receipt.version", version=receipt.version)
    if receipt.status not in (COMPLETE, PARTIAL):
        raise Invalid("receipt.status", status=receipt.status)
    if receipt.lane >= LANES:
        raise Invalid("receipt.lane", lane=receipt.lane)
    if receipt.seq == 0:
        raise Invalid("receipt.seq")
    return receipt


def receipt_id(raw: bytes) -> bytes:
    """SHA-256 of the receipt's bytes."""
    return sha256(raw)


def receipt_message(chain_id: bytes, raw: bytes) -> bytes:
    """The bytes that a receipt's signature covers."""
    return signing_bytes(b"receipt", chain_id, raw)


def verify_receipt(chain_id: bytes, raw: bytes, signature: bytes, key: bytes) -> None:
    """Raises Invalid `receipt.signature`; `key` is the provider's current one."""
    verify_signature(key, receipt_message(chain_id, raw), signature, "receipt.signature")


def encode_credits(credits: Sequence[tuple[int, int]]) -> bytes:
    """Canonical bytes; their SHA-256 is the receipt's `attribution_root`."""
    return encode(credits)


def decode_credits(raw: bytes) -> Credits:
    """Raises Invalid `credits.too_large|malformed|not_canonical|order|share|sum|nobody`.

    `nobody`: all of it is the fund's, which is written as no credits.
    """
    return _checked_credits(decode(raw, CREDITS, CREDITS_BYTES_MAX, "credits"))


def credited(credits: Credits) -> Credits:
    """Those of contributions: all but the fund's share."""
    return tuple(credit for credit in credits if credit[0] != NO_CONTRIBUTION)


def decode_many_credits(raws: Sequence[bytes]) -> list[Credits]:
    """The same of many receipts' credits, quicker; raises the reason of the first that are none."""
    return _MANY_CREDITS.decode(raws)


def _checked_credits(credits: Credits) -> Credits:
    last, total = -1, 0
    for contribution, share_bps in credits:
        if contribution <= last:
            raise Invalid("credits.order", contribution=contribution)
        if share_bps == 0:
            raise Invalid("credits.share", contribution=contribution)
        last = contribution
        total += share_bps
    if credits and total != BPS:
        raise Invalid("credits.sum", total=total)
    if last == NO_CONTRIBUTION:
        raise Invalid("credits.nobody")
    return credits


def _all_checked(many: Sequence[Credits]) -> Sequence[Credits]:
    """`_checked_credits` of each of many `GOOD_CREDITS`, without a call for each."""
    for credits in many:
        last, total = -1, 0
        for contribution, share_bps in credits:
            if contribution <= last:
                total = 0  # so that the reason is told below
                break
            last = contribution
            total += share_bps
        if (total != BPS or last == NO_CONTRIBUTION) and credits:
            _checked_credits(credits)
    return many


_RECEIPTS: Final = Decoder(GOOD_RECEIPT, RECEIPT_BYTES_MAX, makes_each(Receipt), decode_receipt)
_MANY_CREDITS: Final = Decoder(GOOD_CREDITS, CREDITS_BYTES_MAX, _all_checked, decode_credits)


def attribution_root(credits_raw: bytes) -> bytes:
    """What a receipt says of its credits."""
    return sha256(credits_raw)


def answer_root(
    salt16: bytes,
    payer_nonce: bytes,
    provider_nonce: bytes,
    answers: Iterable[Sequence[int]],
) -> bytes:
    """`Receipt.answer_root` over both nonces and the token ids of each choice (page 50 §7)."""
    assert len(salt16) == SALT_BYTES
    leaves = [salt16 + payer_nonce + provider_nonce]
    for choice, ids in enumerate(answers):
        place = salt16 + choice.to_bytes(4, "big")
        for start in range(0, len(ids), ANSWER_LEAF_TOKENS_MAX):
            part = ids[start : start + ANSWER_LEAF_TOKENS_MAX]
            leaves.append(place + start.to_bytes(4, "big") + pack_ids(part))
    return root(leaves)


def accumulator_start(channel: bytes, lane: int) -> bytes:
    """acc_0 of a lane: what a voucher for its first request names."""
    return domain_hash(b"acc", channel, lane.to_bytes(2, "big"))


def accumulate(accumulator: bytes, receipt_leaf: bytes) -> bytes:
    """acc_n = SHA-256(acc_{n-1} ‖ leaf hash of receipt n)."""
    return _sha256(accumulator + receipt_leaf).digest()


def accumulate_all(accumulator: bytes, receipt_leaves: Iterable[bytes]) -> tuple[bytes, bytes]:
    """(accumulator before the last, accumulator after it) of receipts in order, one or more."""
    before_last = accumulator
    for leaf in receipt_leaves:
        before_last, accumulator = accumulator, _sha256(accumulator + leaf).digest()
    return before_last, accumulator


def accumulate_receipt(accumulator: bytes, raw: bytes) -> bytes:
    """The same from the receipt's bytes."""
    return accumulate(accumulator, leaf_hash(raw))
