"""What is asked, and what is promised for it: orders, vouchers, and providers' offers.

Why an order is only hashed: the voucher that pays for it names its hash, and the prompt itself
never reaches the ledger; `prompt_commit` binds it with a salt. Why a voucher carries a running sum:
signing the next request acknowledges the last answer, so one signature does both.
What this file does not know: whether a channel exists, what a model costs, who is asking.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from consensus.primitives.digest import domain_hash, sha256, signing_bytes
from consensus.primitives.encoding import (
    INT_MAX,
    SIG,
    U8,
    U16,
    U32,
    U63,
    Bytes,
    Decoder,
    Fixed,
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

VERSION: Final = 1
ZERO_HASH: Final = bytes(32)
SALT_BYTES: Final = 16
LANES: Final = 64  # lane numbers 0..63

PRIVATE: Final = 1  # order flags
PAYER_SEEDED: Final = 2
REMOTE_OK: Final = 4
FLAGS_ALL: Final = PRIVATE | PAYER_SEEDED | REMOTE_OK

ORDER_BYTES_MAX: Final = 512
VOUCHER_BYTES_MAX: Final = 256
SAMPLING_BYTES_MAX: Final = 512
OFFER_BYTES_MAX: Final = 8_192
ADDRESSES_MAX: Final = 8
ADDRESS_BYTES_MAX: Final = 128
OFFER_MODELS_MAX: Final = 64
STOPS_MAX: Final = 4
STOP_BYTES_MAX: Final = 64


class Order(NamedTuple):
    """A priced request; its hash stands in voucher and receipt."""

    version: int
    model: int
    model_version: int
    max_in: int
    max_out: int
    prompt_commit: bytes
    sampling_hash: bytes
    seed_commit: bytes
    quantum: int
    deadline_ms: int
    flags: int
    salt16: bytes


class Voucher(NamedTuple):
    """The payer's promise: `cumulative` for receipts before `seq`, and `hold` for this one."""

    version: int
    channel: bytes
    lane: int
    seq: int
    sub: int
    cumulative: int
    accumulator: bytes
    hold: int
    order_hash: bytes
    expires_ms: int


class OrderSampling(NamedTuple):
    """How to choose tokens, as an order commits to it (page 50 §6)."""

    version: int
    temperature_milli: int
    top_p_milli: int
    top_k: int
    max_tokens: int
    n: int
    stop: tuple[bytes, ...]
    flags: int


class OfferedModel(NamedTuple):
    """One model version a provider serves; `ready` 1 when loaded."""

    model: int
    model_version: int
    ready: int
    discount_bps: int


class Load(NamedTuple):
    """How busy a provider says it is."""

    slots: int
    waiting: int
    p50_ms: int


class Offer(NamedTuple):
    """What a provider tells by gossip: where it is, what it serves, until when."""

    version: int
    provider: bytes
    peer_key: bytes
    seq: int
    addresses: tuple[bytes, ...]
    models: tuple[OfferedModel, ...]
    load: Load
    expires_ms: int


ORDER: Final = Record(U8, U63, U32, U32, U32, H, H, H, U32, U63, U32, Fixed(SALT_BYTES))
VOUCHER: Final = Record(U8, H, U16, U63, U16, U63, H, U63, H, U63)
GOOD_VOUCHER: Final = Record(  # what `decode_voucher` asks, too
    OneOf(VERSION), H, Integer(LANES - 1), Integer(INT_MAX, 1), U16, U63, H, U63, H, U63
)
SAMPLING: Final = Record(U8, U32, U32, U32, U32, U32, ListOf(Bytes(STOP_BYTES_MAX), STOPS_MAX), U32)
OFFER: Final = Record(
    U8,
    H,
    H,
    U63,
    ListOf(Bytes(ADDRESS_BYTES_MAX, 1), ADDRESSES_MAX),
    ListOf(Record(U63, U32, U8, U16), OFFER_MODELS_MAX),
    Record(U32, U32, U32),
    U63,
)
SIGNED_OFFER: Final = Record(Bytes(OFFER_BYTES_MAX), SIG)


def encode_order(order: Order) -> bytes:
    """Canonical bytes of an order."""
    return encode(order)


def decode_order(raw: bytes) -> Order:
    """Raises Invalid `order.too_large|malformed|not_canonical|version|flags`."""
    order = Order(*decode(raw, ORDER, ORDER_BYTES_MAX, "order"))
    if order.version != VERSION:
        raise Invalid("order.version", version=order.version)
    if order.flags & ~FLAGS_ALL:
        raise Invalid("order.flags", flags=order.flags)
    return order


def order_hash(raw: bytes) -> bytes:
    """What voucher and receipt say instead of the order: SHA-256 of its bytes."""
    return sha256(raw)


def encode_sampling(sampling: OrderSampling) -> bytes:
    """Canonical bytes; their SHA-256 is `Order.sampling_hash`."""
    return encode(sampling)


def decode_sampling(raw: bytes) -> OrderSampling:
    """Raises Invalid `sampling.too_large|malformed|not_canonical|version`.

    The ranges of the fields are the engine's to check.
    """
    sampling = OrderSampling(*decode(raw, SAMPLING, SAMPLING_BYTES_MAX, "sampling"))
    if sampling.version != VERSION:
        raise Invalid("sampling.version", version=sampling.version)
    return sampling


def prompt_commit(salt16: bytes, ids: Sequence[int]) -> bytes:
    """What an order says of its prompt's token ids (u32 each)."""
    assert len(salt16) == SALT_BYTES
    return domain_hash(b"prompt", salt16, pack_ids(ids))


def seed_commit(payer_nonce: bytes) -> bytes:
    """What an order says of the payer's part of the seed, before the provider has given its own."""
    return domain_hash(b"seedcommit", payer_nonce)


def pack_ids(ids: Sequence[int]) -> bytes:
    """Token ids as big-endian u32."""
    return b"".join(token.to_bytes(4, "big") for token in ids)


def encode_voucher(voucher: Voucher) -> bytes:
    """Canonical bytes: what the payer's or spender's key signs."""
    return encode(voucher)


def decode_voucher(raw: bytes) -> Voucher:
    """Raises Invalid `voucher.too_large|malformed|not_canonical|version|lane|seq`."""
    voucher = Voucher(*decode(raw, VOUCHER, VOUCHER_BYTES_MAX, "voucher"))
    if voucher.version != VERSION:
        raise Invalid("voucher.version", version=voucher.version)
    if voucher.lane >= LANES:
        raise Invalid("voucher.lane", lane=voucher.lane)
    if voucher.seq == 0:
        raise Invalid("voucher.seq")  # receipts of a lane are counted from 1
    return voucher


def decode_vouchers(raws: Sequence[bytes]) -> list[Voucher]:
    """The same of many, quicker; raises the reason of the first that is none."""
    return _VOUCHERS.decode(raws)


_VOUCHERS: Final = Decoder(GOOD_VOUCHER, VOUCHER_BYTES_MAX, makes_each(Voucher), decode_voucher)


def voucher_message(chain_id: bytes, raw: bytes) -> bytes:
    """The bytes that a voucher's signature covers."""
    return signing_bytes(b"voucher", chain_id, raw)


def verify_voucher(chain_id: bytes, raw: bytes, signature: bytes, spender: bytes) -> None:
    """Raises Invalid `voucher.signature`."""
    verify_signature(spender, voucher_message(chain_id, raw), signature, "voucher.signature")


def channel_id(chain_id: bytes, payer: bytes, provider: bytes, nonce: int) -> bytes:
    """The name of the channel that `payer` opens with its transaction of `nonce`."""
    return domain_hash(b"chan", chain_id, payer, provider, nonce.to_bytes(8, "big"))


def encode_offer(offer: Offer) -> bytes:
    """Canonical bytes: what the provider's account signs."""
    return encode(offer)


def decode_offer(raw: bytes) -> Offer:
    """Raises Invalid `offer.too_large|malformed|not_canonical|version|models_order|discount`."""
    version, provider, peer_key, seq, addresses, models, load, expires_ms = decode(
        raw, OFFER, OFFER_BYTES_MAX, "offer"
    )
    if version != VERSION:
        raise Invalid("offer.version", version=version)
    offered = tuple(OfferedModel(*model) for model in models)
    places = [(model.model, model.model_version) for model in offered]
    if any(a >= b for a, b in pairwise(places)):
        raise Invalid("offer.models_order")
    if any(model.discount_bps > 10_000 or model.ready > 1 for model in offered):
        raise Invalid("offer.discount")
    return Offer(version, provider, peer_key, seq, addresses, offered, Load(*load), expires_ms)


def offer_message(chain_id: bytes, raw: bytes) -> bytes:
    """The bytes that an offer's signature covers."""
    return signing_bytes(b"offer", chain_id, raw)


def verify_offer(chain_id: bytes, raw: bytes, signature: bytes, key: bytes) -> None:
    """Raises Invalid `offer.signature`; `key` is the provider's current one."""
    verify_signature(key, offer_message(chain_id, raw), signature, "offer.signature")
