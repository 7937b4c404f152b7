"""What is said by gossip: the messages of the four topics, and who may be believed at the door.

Why a judge decides so much: what it accepts, we relay, so it checks everything that is cheap and
certain. Malformed, false signature or false hash is the forwarder's fault (REJECT); late, known,
unknown provider or a full pool is nobody's (IGNORE). Page 70 §5.
What this file does not know: what a bundle's credits are worth (`relay.py` asks), who votes why.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from consensus.primitives.encoding import SIG, U8, Bytes, Record, decode, encode
from consensus.primitives.errors import Invalid
from consensus.primitives.keys import is_signed_by
from node.ledger import tables
from node.ledger.rules.channels import find_provider_key
from node.ledger.state import State
from node.ledger.wire.bundles import (
    BODY_BYTES_MAX,
    HEADER_BYTES_MAX,
    Bundle,
    BundleHeader,
    bundle_message,
    check_header,
    decode_header,
)
from node.ledger.wire.orders import OFFER_BYTES_MAX, Offer, decode_offer, verify_offer
from node.ledger.wire.transactions import TRANSACTION_BYTES_MAX
from p2p.limits import GOSSIP_BYTES_MAX
from p2p.network import Verdict

TXS: Final = "txs"
BUNDLES: Final = "bundles"
VOTES: Final = "votes"
OFFERS: Final = "offers"

_TX_KIND, _BUNDLE_KIND, _VOTE_KIND, _OFFER_KIND = 1, 2, 3, 4
OFFER_AHEAD_MS_MAX: Final = 300_000
CONSENSUS_KINDS: Final = (0, 2, 3, 5)  # proposal, vote, certificate, evidence
VOTE_BYTES_MAX: Final = 65 << 10

_TX: Final = Record(U8, Record(Bytes(TRANSACTION_BYTES_MAX), SIG))
_BUNDLE: Final = Record(U8, Bytes(HEADER_BYTES_MAX), SIG, Bytes(BODY_BYTES_MAX))
_VOTE: Final = Record(U8, U8, Bytes(VOTE_BYTES_MAX, 1))
_OFFER: Final = Record(U8, Bytes(OFFER_BYTES_MAX), SIG)
_ENVELOPE_BYTES: Final = 64

_TX_REJECTED: Final = frozenset(
    {"tx.malformed", "tx.not_canonical", "tx.too_large", "tx.version", "tx.signature"}
)


class SignedOffer(NamedTuple):
    """An offer as it travels, with its fields."""

    raw: bytes
    signature: bytes
    offer: Offer


# --- messages


def encode_tx_message(raw: bytes) -> bytes:
    """[1, [body, signature]] of a transaction's wire bytes."""
    return encode((_TX_KIND, decode(raw, Record(Bytes(TRANSACTION_BYTES_MAX), SIG),
                                    TRANSACTION_BYTES_MAX, "tx")))  # fmt: skip


def decode_tx_message(data: bytes) -> bytes:
    """A transaction's wire bytes; raises Invalid `tx.…`."""
    kind, pair = decode(data, _TX, TRANSACTION_BYTES_MAX + _ENVELOPE_BYTES, "tx")
    if kind != _TX_KIND:
        raise Invalid("tx.malformed", kind=kind)
    return encode(pair)


def encode_bundle_message(bundle: Bundle) -> bytes:
    """[2, header, signature, body]; a body too large for gossip is left out, to be pulled."""
    whole = encode((_BUNDLE_KIND, *bundle))
    return whole if len(whole) <= GOSSIP_BYTES_MAX else announce_bundle(bundle)


def announce_bundle(bundle: Bundle) -> bytes:
    """[2, header, signature, empty]: other bytes than the whole message, so it goes round anew."""
    return encode((_BUNDLE_KIND, bundle.header, bundle.signature, b""))


def decode_bundle_message(data: bytes) -> Bundle:
    """The bundle, its body perhaps empty; raises Invalid `bundle_message.…`."""
    kind, *fields = decode(data, _BUNDLE, GOSSIP_BYTES_MAX, "bundle_message")
    if kind != _BUNDLE_KIND:
        raise Invalid("bundle_message.malformed", kind=kind)
    return Bundle(*fields)


def encode_vote_message(kind: int, body: bytes) -> bytes:
    """[3, kind, bytes] of a consensus frame."""
    return encode((_VOTE_KIND, kind, body))


def decode_vote_message(data: bytes) -> tuple[int, bytes]:
    """Kind and bytes of a consensus frame; raises Invalid `vote_message.…`."""
    topic, kind, body = decode(data, _VOTE, VOTE_BYTES_MAX + _ENVELOPE_BYTES, "vote_message")
    if topic != _VOTE_KIND or kind not in CONSENSUS_KINDS:
        raise Invalid("vote_message.malformed", kind=kind)
    return kind, body


def encode_offer_message(raw: bytes, signature: bytes) -> bytes:
    """[4, offer, signature]."""
    return encode((_OFFER_KIND, raw, signature))


def decode_offer_message(data: bytes) -> SignedOffer:
    """The offer, its signature not verified; raises Invalid `offer_message.…`, `offer.…`."""
    kind, raw, signature = decode(
        data, _OFFER, OFFER_BYTES_MAX + 2 * _ENVELOPE_BYTES, "offer_message"
    )
    if kind != _OFFER_KIND:
        raise Invalid("offer_message.malformed", kind=kind)
    return SignedOffer(raw, signature, decode_offer(raw))


# --- judges


def judge_tx(data: bytes, admit: Callable[[bytes], object]) -> Verdict:
    """Accept what `admit(wire bytes)` takes into the pool; it raises Invalid for the rest."""
    try:
        admit(decode_tx_message(data))
    except Invalid as refusal:
        return Verdict.REJECT if refusal.code in _TX_REJECTED else Verdict.IGNORE
    return Verdict.ACCEPT


def judge_bundle(
    data: bytes, state: State, chain_id: bytes, is_known: Callable[[bytes], bool]
) -> tuple[Verdict, Bundle | None]:
    """Shape, provider, number, signature, body hash; the bundle if it is worth more work."""
    try:
        bundle = decode_bundle_message(data)
        header = check_header(bundle) if bundle.body else decode_header(bundle.header)
    except Invalid:
        return Verdict.REJECT, None
    if is_known(bundle.hash) or not is_new_bundle(state, header):
        return Verdict.IGNORE, None
    key = find_provider_key(state, header.provider)
    if key is None:  # it is jailed, by our ledger
        return Verdict.IGNORE, None
    if not is_signed_by(key, bundle_message(chain_id, bundle.header), bundle.signature):
        return Verdict.REJECT, None
    return Verdict.ACCEPT, bundle


def is_new_bundle(state: State, header: BundleHeader) -> bool:
    """Whether its provider is on the ledger and has not settled this number or a later one."""
    provider = state.find(tables.PROVIDER, header.provider)
    return provider is not None and header.bundle_seq > provider.bundle_seq


def check_offer(state: State, chain_id: bytes, signed: SignedOffer, now_ms: int) -> bool:
    """Whether an offer is its provider's and in time; raises Invalid `offer.signature`."""
    offer = signed.offer
    provider = state.find(tables.PROVIDER, offer.provider)
    if provider is None or provider.status != tables.PROVIDER_ACTIVE:
        return False
    if provider.peer_key != offer.peer_key:
        return False
    if not now_ms < offer.expires_ms <= now_ms + OFFER_AHEAD_MS_MAX:
        return False
    key = find_provider_key(state, offer.provider)
    if key is None:
        return False
    verify_offer(chain_id, signed.raw, signed.signature, key)
    return True
