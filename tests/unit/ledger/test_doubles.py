"""Two receipts for one request: who loses what, who gets it, and what is no evidence."""

import random

import pytest
from bundle_kit import CHAIN, Party, party, some_receipt
from chain_kit import rotation as rotated
from ledger_kit import (
    BALANCE,
    CREATOR,
    NOW_MS,
    OPEN,
    PAYER,
    PROVIDER,
    REWARD,
    add_provider,
    checked_bundle,
    context,
    fee_of,
    new_state,
    open_channel,
    session,
    supply_is_whole,
    transaction,
)

from consensus.primitives.errors import Invalid
from node.ledger import purses, tables
from node.ledger.parameters import DAY_MS
from node.ledger.rules import channels, doubles, rotation, staking
from node.ledger.state import State
from node.ledger.wire.codes import find_code
from node.ledger.wire.receipts import COMPLETE, PARTIAL, encode_receipt, receipt_message
from node.ledger.wire.transactions import Evidence, Unbond, Unjail, make_evidence

ROLE = tables.ROLE_PROVIDER
BOND = 1_000 * OPEN
SLASH = BOND // 20
FEE = fee_of(800, 100)


def signed(channel: bytes, who: Party = PROVIDER, chain_id: bytes = CHAIN, **fields) -> tuple:
    raw = encode_receipt(
        some_receipt(random.Random(3), b"", **({"channel": channel, "fee": FEE} | fields))
    )
    return raw, who.sign(receipt_message(chain_id, raw))


def pair(channel: bytes, **fields) -> Evidence:
    """A partial answer and a whole one, for one request."""
    return make_evidence(
        signed(channel, status=PARTIAL, **fields), signed(channel, status=COMPLETE, **fields)
    )


def accuse(state: State, payload: Evidence, finder: Party = CREATOR, at_ms: int = NOW_MS) -> None:
    doubles.apply_evidence(state, context(at_ms), transaction(finder, payload), payload)


def refusal(state: State, payload: Evidence) -> int | None:
    with pytest.raises(Invalid) as refused:
        accuse(state, payload)
    return find_code(refused.value)


def bonded(state: State) -> int:
    held = state.held(purses.bond(ROLE, PROVIDER.key, PROVIDER.key))
    assert staking.bonded(state, ROLE, PROVIDER.key) == held
    return held


def paid_channel(state: State, answers: int = 1) -> bytes:
    """A channel of which this many answers of FEE are settled."""
    channel = open_channel(state)
    lane = session(channel, random.Random(1))
    for _ in range(answers):
        lane.serve(model=1, model_version=1, tokens_in=800, tokens_out=100, fee=FEE)
    channels.apply_bundle(state, context(), checked_bundle(state, [lane.cut()]))
    state.move(purses.SETTLING, purses.pool(tables.COMMONS), answers * FEE)
    return channel


# ---- what it costs, and who gets it


def test_bond_pays_the_payer_then_the_finder_and_half_of_the_rest_is_burnt() -> None:
    state = new_state()
    channel = paid_channel(state)
    payer, supply = state.account(PAYER.key).balance, state.supply()
    accuse(state, pair(channel))
    rest = SLASH - FEE
    reward = rest // 20
    assert bonded(state) == BOND - SLASH
    assert state.account(PAYER.key).balance == payer + FEE
    assert state.account(CREATOR.key).balance == BALANCE + reward
    assert state.supply() == supply - (rest - reward) // 2
    assert state.held(purses.pool(tables.TREASURY)) == rest - reward - (rest - reward) // 2
    assert supply_is_whole(state)


def test_payer_gets_the_greater_fee_of_the_two() -> None:
    state = new_state()
    channel = paid_channel(state, answers=3)
    before = state.account(PAYER.key).balance
    accuse(state, make_evidence(signed(channel, fee=FEE), signed(channel, fee=2 * FEE)))
    assert state.account(PAYER.key).balance == before + 2 * FEE


@pytest.mark.parametrize(("answers", "repaid"), [(0, 0), (1, FEE), (2, 2 * FEE), (3, 2 * FEE)])
def test_all_evidence_of_a_channel_repays_no_more_than_it_has_paid(answers, repaid) -> None:
    """Two accounts of one owner could else take the bond out at once, as the payer's loss."""
    state = new_state()
    channel = paid_channel(state, answers) if answers else open_channel(state)
    before = state.account(PAYER.key).balance
    for seq in (1, 2):
        accuse(state, pair(channel, seq=seq))
    assert state.account(PAYER.key).balance == before + repaid
    assert supply_is_whole(state)


def test_payer_gets_no_more_than_is_slashed() -> None:
    state = new_state(double_receipt_slash_bps=0)
    channel = paid_channel(state)
    before = state.account(PAYER.key).balance
    accuse(state, pair(channel))
    assert state.account(PAYER.key).balance == before
    assert bonded(state) == BOND


def test_who_accuses_itself_loses() -> None:
    """The provider is its own payer and finder, and has all that its channel paid but the fees."""
    state = new_state()
    channel = paid_channel(state)
    record = state.get(tables.CHANNEL, channel)
    state.put(tables.CHANNEL, (channel,), record._replace(payer=PROVIDER.key))
    before = state.account(PROVIDER.key).balance + bonded(state) + FEE  # as if all were its own
    accuse(state, pair(channel), PROVIDER)
    after = state.account(PROVIDER.key).balance + bonded(state)
    assert before - after >= SLASH * 9 // 10


def test_each_place_is_an_offence_of_its_own() -> None:
    state = new_state()
    channel = open_channel(state)
    for fields in ({}, {"seq": 2}, {"lane": 1}):
        accuse(state, pair(channel, **fields))
    left = BOND
    for _ in range(3):
        left -= left // 20
    assert bonded(state) == left


def test_what_left_the_bond_since_the_channel_began_answers_too() -> None:
    state = new_state()
    for at_ms, amount in ((NOW_MS - 1, 100 * OPEN), (NOW_MS, 200 * OPEN)):
        payload = Unbond(ROLE, PROVIDER.key, amount)
        staking.apply_unbond(state, context(at_ms), transaction(PROVIDER, payload), payload)
    channel = open_channel(state)  # opened at NOW_MS
    accuse(state, pair(channel))
    parts = staking.parts_leaving(state, ROLE, PROVIDER.key, PROVIDER.key)
    assert [part.amount for _, part in parts] == [100 * OPEN, 190 * OPEN]
    assert bonded(state) == 700 * OPEN * 95 // 100
    assert supply_is_whole(state)


def test_provider_without_a_bond_is_jailed_all_the_same() -> None:
    state = new_state()
    channel = open_channel(state)
    state.set_counter(staking.owners_name(ROLE, PROVIDER.key), 1)
    payload = Unbond(ROLE, PROVIDER.key, BOND)
    staking.apply_unbond(state, context(NOW_MS - 1), transaction(PROVIDER, payload), payload)
    accuse(state, pair(channel))
    assert state.get(tables.CONDUCT, ROLE, PROVIDER.key).jailed_until_ms == NOW_MS + DAY_MS


def test_jailed_provider_takes_no_channel_and_settles_nothing() -> None:
    state = new_state()
    accuse(state, pair(open_channel(state)))
    assert not staking.is_active_provider(state, PROVIDER.key)
    assert channels.find_provider_key(state, PROVIDER.key) is None
    assert state.get(tables.CONDUCT, ROLE, PROVIDER.key).tombstone == 0


# ---- back again

AGAIN_MS = NOW_MS + DAY_MS


def unjail(state: State, at_ms: int = AGAIN_MS, role: int = ROLE, who: Party = PROVIDER) -> None:
    payload = Unjail(role)
    staking.apply_unjail(state, context(at_ms), transaction(who, payload), payload)


def jailed_state(bond_min: int = BOND * 95 // 100) -> State:
    """After evidence took 5 % of the bond: by default all that is left of it is enough."""
    state = new_state()
    accuse(state, pair(open_channel(state)))
    state.put(tables.PARAMETER, (b"provider_bond_min",), tables.Parameter((bond_min,)))
    return state


def test_provider_serves_again_once_its_time_is_over_and_its_bond_whole() -> None:
    state = jailed_state()
    unjail(state)
    assert staking.is_active_provider(state, PROVIDER.key)
    assert channels.find_provider_key(state, PROVIDER.key) == PROVIDER.key


@pytest.mark.parametrize(
    ("desc", "fields", "code"),
    [
        ("a millisecond early", {"at_ms": AGAIN_MS - 1}, 27),
        ("another role", {"role": tables.ROLE_VALIDATOR}, 21),
        ("no such role", {"role": 9}, 21),
        ("never jailed", {"who": CREATOR}, 21),
    ],
)
def test_unjailing_is_refused_by_code(desc, fields, code) -> None:
    state = jailed_state()
    with pytest.raises(Invalid) as refused:
        unjail(state, **fields)
    assert find_code(refused.value) == code, desc


@pytest.mark.parametrize("why", ["bond", "tombstone", "frozen_ms", "free", "validator"])
def test_who_may_not_come_back_stays_jailed(why) -> None:
    state = jailed_state(BOND * 95 // 100 + (why == "bond"))
    role = tables.ROLE_VALIDATOR if why == "validator" else ROLE
    conduct = state.get(tables.CONDUCT, ROLE, PROVIDER.key)
    if why == "free":
        conduct = tables.Conduct()
    elif why in ("tombstone", "frozen_ms"):
        conduct = conduct._replace(**{why: 1})
    state.put(tables.CONDUCT, (role, PROVIDER.key), conduct)
    with pytest.raises(Invalid) as refused:
        unjail(state, role=role)
    assert find_code(refused.value) == 23


# ---- what is no evidence


def test_pair_is_used_once_and_no_third_body_uses_its_place_again() -> None:
    state = new_state()
    channel = open_channel(state)
    accuse(state, pair(channel))
    assert refusal(state, pair(channel)) == 24
    third = signed(channel, fee=FEE + 1)
    assert refusal(state, make_evidence(third, signed(channel, status=PARTIAL))) == 24


def test_other_order_of_the_pair_is_refused() -> None:
    state = new_state()
    payload = pair(open_channel(state))
    assert refusal(state, Evidence(*payload[2:], *payload[:2])) == 26


def test_one_receipt_with_two_signatures_is_no_evidence() -> None:
    """Anybody who can flip a bit has another signature; only another body is another word."""
    state = new_state()
    raw, signature = signed(open_channel(state))
    assert refusal(state, Evidence(raw, signature, raw, bytes(64))) == 26
    assert refusal(state, Evidence(raw, signature, raw, signature)) == 26


@pytest.mark.parametrize("fields", [{"seq": 2}, {"lane": 1}, {"channel": b"\1" * 32}])
def test_receipts_of_two_places_are_no_evidence(fields) -> None:
    state = new_state()
    channel = open_channel(state)
    one, other = sorted((signed(channel), signed(**({"channel": channel} | fields))))
    assert refusal(state, Evidence(*one, *other)) == 26
    assert bonded(state) == BOND


@pytest.mark.parametrize("bad", [b"\x90", b"\1" * 250, b"\xff"])
def test_bytes_that_are_no_receipt_are_no_evidence(bad) -> None:
    state = new_state()
    one, other = sorted((signed(open_channel(state)), (bad, bytes(64))))
    assert refusal(state, Evidence(*one, *other)) == 26


def test_unknown_channel_is_too_late_and_a_closed_one_is_not() -> None:
    state = new_state()
    assert refusal(state, pair(bytes(32))) == 27
    closed = open_channel(state)
    channels._finish_close(state, closed, NOW_MS)
    accuse(state, pair(closed))
    assert bonded(state) == BOND - SLASH


def test_forgotten_channel_takes_what_is_noted_of_it_along() -> None:
    state = new_state()
    channel, other = paid_channel(state), open_channel(state, nonce=1)
    for name in (channel, other):
        accuse(state, pair(name))
    channels.apply_due_forget(state, context(), NOW_MS, channel)
    assert refusal(state, pair(channel)) == 27
    assert state.counter(channels.REPAID_NAME + channel) == 0
    assert refusal(state, pair(other)) == 24, "others' stay"


@pytest.mark.parametrize(
    ("desc", "fields"),
    [
        ("another's", {"who": party("somebody")}),
        ("another chain's", {"chain_id": b"\1" * 32}),
    ],
)
def test_word_that_is_not_the_providers_on_this_chain_is_refused(desc, fields) -> None:
    state = new_state()
    channel = open_channel(state)
    forged = make_evidence(signed(channel, status=PARTIAL), signed(channel, **fields))
    assert refusal(state, forged) == 28, desc
    assert bonded(state) == BOND


def test_refused_evidence_costs_no_signature_before_the_cheap_checks(monkeypatch) -> None:
    state = new_state()
    channel = open_channel(state)
    accuse(state, pair(channel))
    monkeypatch.setattr(doubles, "is_signed_by", None)
    assert refusal(state, pair(channel)) == 24
    assert refusal(state, pair(bytes(32))) == 27


# ---- another key


def rotate(state: State, new: Party) -> None:
    payload = rotated(CHAIN, PROVIDER.key, 0, new)
    rotation.apply_rotate_key(state, context(), transaction(PROVIDER, payload), payload)


def test_provider_that_closed_and_took_another_key_is_not_innocent() -> None:
    state = new_state()
    channel = open_channel(state)
    payload = pair(channel)
    channels._finish_close(state, channel, NOW_MS)
    rotate(state, party("new"))
    accuse(state, payload)
    assert bonded(state) == BOND - SLASH


def test_former_keys_are_forgotten_with_the_channels_of_their_time() -> None:
    state = new_state(channel_forget_ms=DAY_MS)
    channel = open_channel(state)
    payload = pair(channel)
    channels._finish_close(state, channel, NOW_MS)
    rotate(state, party("new"))
    reference = PROVIDER.key + PROVIDER.key
    rotation.forget_former(state, context(), NOW_MS + DAY_MS - 1, reference)
    assert PROVIDER.key in rotation.keys_of(state, PROVIDER.key), "it was noted again since"
    rotation.forget_former(state, context(), NOW_MS + DAY_MS, reference)
    assert rotation.keys_of(state, PROVIDER.key) == (party("new").key,)
    assert refusal(state, payload) == 28


def test_provider_with_too_many_former_keys_waits() -> None:
    state = new_state()
    for number in range(rotation.FORMER_KEYS_MAX):
        rotate(state, party(f"key {number}"))
    with pytest.raises(Invalid) as refused:
        rotate(state, party("one more"))
    assert find_code(refused.value) == 23


def test_another_providers_bond_is_left_alone() -> None:
    state = new_state()
    other = party("other")
    add_provider(state, other, REWARD)
    accuse(state, pair(open_channel(state)))
    assert state.held(purses.bond(ROLE, other.key, other.key)) == BOND
