"""Messages of the four topics, and what their judges accept, ignore and reject."""

import random
from collections.abc import Callable

import pytest
from bundle_kit import CHAIN, Party, party
from ledger_kit import NOW_MS, PAYER, PROVIDER, fee_of, new_state, open_channel, session

from consensus.messages import BLOCK, CERTIFICATE, EVIDENCE, PROPOSAL, STATUS, VOTE
from consensus.params import EVIDENCE_BYTES_MAX
from consensus.primitives.encoding import encode
from consensus.primitives.errors import Invalid
from node.ledger import tables
from node.ledger.state import State
from node.ledger.wire.bundles import Bundle, build_bundle, decode_header
from node.ledger.wire.orders import Load, Offer, encode_offer, offer_message
from node.ledger.wire.transactions import Transfer, encode_body, sign_transaction
from node.peering.topics import (
    OFFER_AHEAD_MS_MAX,
    VOTE_BYTES_MAX,
    announce_bundle,
    check_offer,
    decode_bundle_message,
    decode_offer_message,
    decode_tx_message,
    decode_vote_message,
    encode_bundle_message,
    encode_offer_message,
    encode_tx_message,
    encode_vote_message,
    is_new_bundle,
    judge_bundle,
    judge_tx,
)
from p2p.limits import GOSSIP_BYTES_MAX, TOPICS
from p2p.network import Verdict

PEER = party("peer").key


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(Invalid) as refusal:
        call()
    return refusal.value.code


def some_tx() -> bytes:
    body = encode_body(
        sender=PAYER.key, nonce=0, max_fee=10**9, valid_until_ms=NOW_MS,
        payload=Transfer(PROVIDER.key, 1, b""),
    )  # fmt: skip
    return sign_transaction(CHAIN, PAYER.seed, body)


def some_bundle(state: State, seq: int = 1, provider: Party = PROVIDER) -> Bundle:
    lane = session(open_channel(state, nonce=seq), random.Random(seq))
    lane.serve(((1, 10_000),), model=1, model_version=1, tokens_in=9, tokens_out=9,
               fee=fee_of(9, 9))  # fmt: skip
    return build_bundle(
        chain_id=CHAIN, provider=provider.key, bundle_seq=seq, parts=[lane.cut()],
        sign=provider.sign,
    )  # fmt: skip


# ---- consensus


@pytest.mark.parametrize("kind", [PROPOSAL, VOTE, CERTIFICATE, EVIDENCE])
def test_frames_for_everyone_survive_their_topic(kind: int) -> None:
    assert decode_vote_message(encode_vote_message(kind, b"body")) == (kind, b"body")


@pytest.mark.parametrize("kind", [BLOCK, STATUS, 6])
def test_frames_for_one_stream_have_no_place_in_gossip(kind: int) -> None:
    raw = encode_vote_message(kind, b"body")
    assert refused(lambda: decode_vote_message(raw)) == "vote_message.malformed"


def test_greatest_evidence_fits_the_topic() -> None:
    raw = encode_vote_message(EVIDENCE, bytes(EVIDENCE_BYTES_MAX))
    assert len(raw) <= TOPICS["votes"].bytes_max
    assert decode_vote_message(raw)[0] == EVIDENCE
    beyond = encode_vote_message(EVIDENCE, bytes(VOTE_BYTES_MAX + 1))
    assert refused(lambda: decode_vote_message(beyond)) == "vote_message.malformed"
    assert refused(lambda: decode_vote_message(encode_vote_message(VOTE, b""))) == (
        "vote_message.malformed"
    )


def test_message_of_one_topic_is_none_of_another() -> None:
    state = new_state()
    tx, bundle = encode_tx_message(some_tx()), encode_bundle_message(some_bundle(state))
    vote = encode_vote_message(VOTE, b"body")
    for decoder in (decode_tx_message, decode_bundle_message, decode_vote_message):
        for raw in (tx, bundle, vote):
            own = {decode_tx_message: tx, decode_bundle_message: bundle, decode_vote_message: vote}
            if own[decoder] is not raw:
                assert refused(lambda d=decoder, r=raw: d(r)).endswith(".malformed")


# ---- transactions


def test_transaction_survives_its_topic() -> None:
    raw = some_tx()
    assert decode_tx_message(encode_tx_message(raw)) == raw
    wrong = encode((2, (b"body", bytes(64))))
    assert refused(lambda: decode_tx_message(wrong)) == "tx.malformed"


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("tx.malformed", Verdict.REJECT),
        ("tx.not_canonical", Verdict.REJECT),
        ("tx.too_large", Verdict.REJECT),
        ("tx.version", Verdict.REJECT),
        ("tx.signature", Verdict.REJECT),
        ("tx.nonce", Verdict.IGNORE),
        ("tx.expired", Verdict.IGNORE),
        ("pool.full", Verdict.IGNORE),
    ],
)
def test_forwarder_is_blamed_only_for_what_it_could_have_seen(code: str, verdict: Verdict) -> None:
    def refuse(raw: bytes) -> None:
        raise Invalid(code)

    assert judge_tx(encode_tx_message(some_tx()), refuse) is verdict


def test_transaction_that_the_pool_takes_is_told_on() -> None:
    taken: list[bytes] = []
    assert judge_tx(encode_tx_message(some_tx()), taken.append) is Verdict.ACCEPT
    assert taken == [some_tx()]
    assert judge_tx(b"garbage", taken.append) is Verdict.REJECT
    assert len(taken) == 1


# ---- bundles


def judge(state: State, data: bytes, known: tuple[bytes, ...] = ()) -> Verdict:
    verdict, bundle = judge_bundle(data, state, CHAIN, lambda name: name in known)
    assert (bundle is not None) is (verdict is Verdict.ACCEPT)
    return verdict


def test_new_bundle_of_a_provider_is_worth_more_work() -> None:
    state = new_state()
    bundle = some_bundle(state)
    assert judge(state, encode_bundle_message(bundle)) is Verdict.ACCEPT
    assert judge(state, announce_bundle(bundle)) is Verdict.ACCEPT, "its body may be pulled"
    assert decode_bundle_message(announce_bundle(bundle)).body == b""


def test_known_settled_or_unknown_is_nobodys_fault() -> None:
    state = new_state()
    bundle = some_bundle(state)
    data = encode_bundle_message(bundle)
    assert judge(state, data, known=(bundle.hash,)) is Verdict.IGNORE
    stranger = encode_bundle_message(some_bundle(state, 2, party("stranger")))
    assert judge(state, stranger) is Verdict.IGNORE
    provider = state.get(tables.PROVIDER, PROVIDER.key)
    state.put(tables.PROVIDER, (PROVIDER.key,), provider._replace(bundle_seq=1))
    assert judge(state, data) is Verdict.IGNORE


def test_bundle_of_a_jailed_provider_is_nobodys_fault() -> None:
    """Who tells it on may not have the block yet that jails it."""
    state = new_state()
    data = encode_bundle_message(some_bundle(state))
    jail(state)
    assert judge(state, data) is Verdict.IGNORE


def jail(state: State) -> None:
    key = (tables.ROLE_PROVIDER, PROVIDER.key)
    state.put(tables.CONDUCT, key, tables.Conduct(jailed_until_ms=1))


def test_bundle_is_new_until_its_number_is_settled() -> None:
    state = new_state()
    header = decode_header(some_bundle(state, 3).header)
    provider = state.get(tables.PROVIDER, PROVIDER.key)
    for settled, is_new in ((0, True), (2, True), (3, False), (4, False)):
        state.put(tables.PROVIDER, (PROVIDER.key,), provider._replace(bundle_seq=settled))
        assert is_new_bundle(state, header) is is_new


def test_false_bundle_is_rejected() -> None:
    state = new_state()
    bundle = some_bundle(state)
    for false in (
        bundle._replace(signature=bytes(64)),
        bundle._replace(body=bundle.body + b"\0"),
        bundle._replace(header=bundle.header[:-1]),
    ):
        assert judge(state, encode((2, *false))) is Verdict.REJECT
    assert judge(state, b"garbage") is Verdict.REJECT
    assert judge(state, encode((1, *bundle))) is Verdict.REJECT


def test_body_too_large_for_gossip_is_left_to_be_pulled() -> None:
    bundle = some_bundle(new_state())
    overhead = len(encode_bundle_message(bundle)) - len(bundle.body)
    fits = bundle._replace(body=bytes(GOSSIP_BYTES_MAX - overhead - 2))  # a longer length field
    assert decode_bundle_message(encode_bundle_message(fits)).body == fits.body
    beyond = bundle._replace(body=bytes(GOSSIP_BYTES_MAX))
    assert encode_bundle_message(beyond) == announce_bundle(bundle)


# ---- offers


def offer_state() -> State:
    state = new_state()
    provider = state.get(tables.PROVIDER, PROVIDER.key)
    state.put(tables.PROVIDER, (PROVIDER.key,), provider._replace(peer_key=PEER))
    return state


def offer_message_of(by: Party = PROVIDER, **fields: object) -> bytes:
    made = Offer(1, PROVIDER.key, PEER, 1, (), (), Load(1, 0, 0), NOW_MS + 1)
    raw = encode_offer(made._replace(**fields))  # type: ignore[arg-type]
    return encode_offer_message(raw, by.sign(offer_message(CHAIN, raw)))


def is_taken(state: State, data: bytes) -> bool:
    return check_offer(state, CHAIN, decode_offer_message(data), NOW_MS)


def test_offer_counts_while_it_lasts_and_not_from_too_far_ahead() -> None:
    state = offer_state()
    for expires_ms, taken in (
        (NOW_MS, False),
        (NOW_MS + 1, True),
        (NOW_MS + OFFER_AHEAD_MS_MAX, True),
        (NOW_MS + OFFER_AHEAD_MS_MAX + 1, False),
    ):
        assert is_taken(state, offer_message_of(expires_ms=expires_ms)) is taken


def test_offer_of_another_node_or_of_an_idle_provider_is_not_taken() -> None:
    state = offer_state()
    assert not is_taken(state, offer_message_of(peer_key=party("other").key))
    assert not is_taken(state, offer_message_of(provider=party("stranger").key))
    provider = state.get(tables.PROVIDER, PROVIDER.key)
    leaving = provider._replace(status=tables.PROVIDER_ACTIVE + 1)
    state.put(tables.PROVIDER, (PROVIDER.key,), leaving)
    assert not is_taken(state, offer_message_of())


def test_offer_of_a_jailed_provider_is_not_taken() -> None:
    state = offer_state()
    jail(state)
    assert not is_taken(state, offer_message_of())


def test_offer_signed_by_another_is_the_tellers_fault() -> None:
    data = offer_message_of(by=PAYER)
    assert refused(lambda: is_taken(offer_state(), data)) == "offer.signature"
    wrong_kind = b"\x93\x03" + offer_message_of()[2:]
    assert refused(lambda: decode_offer_message(wrong_kind)) == "offer_message.malformed"
