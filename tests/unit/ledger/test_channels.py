"""Channels: opening, closing, and what B1 to B4 let a bundle take."""

import random

import pytest
from bundle_kit import CHAIN, EXPIRES_MS, party
from chain_kit import coop_close
from ledger_kit import (
    BALANCE,
    BASE,
    CREATOR,
    NOW_MS,
    OPEN,
    PAYER,
    PRICES,
    PROVIDER,
    add_contribution,
    add_model,
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
from node.ledger.amounts import price
from node.ledger.parameters import DAY_MS, HOUR_MS
from node.ledger.rules import channels
from node.ledger.wire.codes import find_code
from node.ledger.wire.orders import channel_id
from node.ledger.wire.transactions import (
    CloseChannel,
    OpenChannel,
    TopUpChannel,
)

OPENING = OpenChannel(PROVIDER.key, PAYER.key, 10 * OPEN, 0)


def opened(state, opening=OPENING, nonce=0):
    channels.apply_open_channel(state, context(), transaction(PAYER, opening, nonce), opening)
    return channel_id(CHAIN, PAYER.key, opening.provider, nonce)


def code_of(call, *args) -> int | None:
    with pytest.raises(Invalid) as refusal:
        call(*args)
    return find_code(refusal.value)


def standing_channel(state, standing):
    """A channel that is open, closing or closed."""
    channel = open_channel(state)
    record = state.get(tables.CHANNEL, channel)
    state.put(tables.CHANNEL, (channel,), record._replace(state=standing))
    return channel


# topping up


def topped_up(state, channel, amount=OPEN, who=PAYER):
    payload = TopUpChannel(channel, amount)
    channels.apply_top_up(state, context(), transaction(who, payload), payload)
    return state.get(tables.CHANNEL, channel)


def test_topping_up_raises_the_cap_out_of_the_balance() -> None:
    state = new_state()
    channel = open_channel(state)
    assert topped_up(state, channel).cap == 11 * OPEN
    assert state.account(PAYER.key).balance == BALANCE - 11 * OPEN
    topped_up(state, channel, BALANCE - 11 * OPEN)
    assert state.account(PAYER.key).balance == 0
    assert supply_is_whole(state)


def test_a_bundle_above_the_old_cap_settles_after_a_top_up() -> None:
    state, fee = new_state(), fee_of(800, 100)
    channel = open_channel(state, cap=3 * fee - 1)
    part = one_section(state, channel)
    topped_up(state, channel, 1)
    settle(state, [part])
    assert state.get(tables.CHANNEL, channel).paid == 3 * fee


@pytest.mark.parametrize(
    ("desc", "standing", "who", "amount", "code"),
    [
        ("unknown", None, PAYER, 1, 21),
        ("another's", tables.CHANNEL_OPEN, CREATOR, 1, 22),
        ("the provider's", tables.CHANNEL_OPEN, PROVIDER, 1, 22),
        ("closing", tables.CHANNEL_CLOSING, PAYER, 1, 23),
        ("closed", tables.CHANNEL_CLOSED, PAYER, 1, 23),
        ("above the balance", tables.CHANNEL_OPEN, PAYER, BALANCE - 10 * OPEN + 1, 20),
    ],
)
def test_top_ups_are_refused_by_code(desc, standing, who, amount, code) -> None:
    state = new_state()
    channel = bytes(32) if standing is None else standing_channel(state, standing)
    assert code_of(topped_up, state, channel, amount, who) == code, desc


# closing by both


def agreed(channel, paid=0, payer=PAYER, provider=PROVIDER, chain_id=CHAIN):
    return coop_close(chain_id, channel, paid, payer, provider)


def close_by_both(state, payload, who=PAYER, at_ms=NOW_MS):
    channels.apply_coop_close(state, context(at_ms), transaction(who, payload), payload)


@pytest.mark.parametrize("who", [PAYER, PROVIDER, CREATOR])
@pytest.mark.parametrize("standing", [tables.CHANNEL_OPEN, tables.CHANNEL_CLOSING])
def test_both_close_at_once_whoever_sends_it(who, standing) -> None:
    state = new_state()
    channel = standing_channel(state, standing)
    settle(state, [one_section(state, channel)])
    paid = state.get(tables.CHANNEL, channel).paid
    close_by_both(state, agreed(channel, paid), who)
    record = state.get(tables.CHANNEL, channel)
    assert (record.state, record.cap) == (tables.CHANNEL_CLOSED, paid)
    assert state.account(PAYER.key).balance == BALANCE - paid
    assert channels.served_channels(state, PROVIDER.key) == 0
    assert supply_is_whole(state)


def test_nothing_settles_or_is_added_after_both_have_closed() -> None:
    state = new_state()
    channel = open_channel(state)
    part = one_section(state, channel)
    close_by_both(state, agreed(channel))
    assert code_of(settle, state, [part]) == 45
    assert code_of(topped_up, state, channel) == 23
    assert code_of(close_by_both, state, agreed(channel)) == 23
    closing = CloseChannel(channel)
    for who in (PAYER, PROVIDER):
        tx = transaction(who, closing)
        assert code_of(channels.apply_close_channel, state, context(), tx, closing) == 23


def test_a_closing_that_both_have_ended_ends_once() -> None:
    """Its waiting time is still due, and its rest has gone already."""
    state = new_state()
    channel, _ = open_channel(state), open_channel(state, nonce=1)
    closing = CloseChannel(channel)
    channels.apply_close_channel(state, context(), transaction(PAYER, closing), closing)
    close_by_both(state, agreed(channel))
    balance = state.account(PAYER.key).balance
    channels.apply_due_close(state, context(), NOW_MS + DAY_MS, channel)
    assert state.account(PAYER.key).balance == balance
    assert channels.served_channels(state, PROVIDER.key) == 1  # the other one
    channels.apply_due_forget(state, context(), NOW_MS + 8 * DAY_MS, channel)
    assert code_of(close_by_both, state, agreed(channel)) == 21


@pytest.mark.parametrize(
    ("desc", "fields"),
    [
        ("another payer", {"payer": CREATOR}),
        ("another provider", {"provider": CREATOR}),
        ("the two exchanged", {"payer": PROVIDER, "provider": PAYER}),
        ("another sum", {"paid": 1}),
        ("another chain", {"chain_id": bytes(32)}),
    ],
)
def test_both_must_have_signed_this_very_closing(desc, fields) -> None:
    state = new_state()
    channel = open_channel(state)
    assert code_of(close_by_both, state, agreed(channel, **fields)) == 28, desc
    other = agreed(open_channel(state, nonce=1))
    assert code_of(close_by_both, state, other._replace(channel=channel)) == 28


def test_what_was_signed_before_more_settled_is_void() -> None:
    """Else a payer could keep an early consent, and close after the answers it was served."""
    state = new_state()
    channel = open_channel(state)
    early = agreed(channel)
    settle(state, [one_section(state, channel)])
    assert code_of(close_by_both, state, early) == 28


def test_each_side_signs_with_the_key_it_has_now() -> None:
    state = new_state()
    channel = open_channel(state)
    new = party("the payer's new key")
    account = state.account(PAYER.key)
    state.put(tables.ACCOUNT, (PAYER.key,), account._replace(key=new.key))
    assert code_of(close_by_both, state, agreed(channel)) == 28
    close_by_both(state, agreed(channel, payer=new))


# opening


def test_opening_reserves_the_cap_out_of_the_balance() -> None:
    state = new_state()
    channel = opened(state)
    record = state.get(tables.CHANNEL, channel)
    assert (record.cap, record.paid, record.state) == (10 * OPEN, 0, tables.CHANNEL_OPEN)
    assert state.account(PAYER.key).balance == BALANCE - 10 * OPEN
    assert state.totals().channels == 10 * OPEN
    assert supply_is_whole(state)


OPEN_REFUSALS = [
    (20, OPENING._replace(cap=BALANCE + 1)),
    (21, OPENING._replace(provider=party("nobody").key)),
    (21, OPENING._replace(allowance=1)),
    (26, OPENING._replace(cap=9_999_999)),
    (26, OPENING._replace(spender=bytes(32))),
]


@pytest.mark.parametrize(("code", "opening"), OPEN_REFUSALS)
def test_an_opening_that_breaks_a_rule_is_refused_by_its_code(code, opening) -> None:
    assert code_of(opened, new_state(), opening) == code


def test_the_whole_balance_and_the_smallest_cap_may_be_reserved() -> None:
    state = new_state()
    opened(state, OPENING._replace(cap=10_000_000))
    opened(state, OPENING._replace(cap=BALANCE - 10_000_000), nonce=1)
    assert state.account(PAYER.key).balance == 0


def test_a_provider_that_is_not_active_gets_no_channel() -> None:
    state = new_state()
    paused = state.get(tables.PROVIDER, PROVIDER.key)._replace(status=tables.PROVIDER_PAUSED)
    state.put(tables.PROVIDER, (PROVIDER.key,), paused)
    assert code_of(opened, state) == 23


def test_between_two_there_are_at_most_64_open_channels() -> None:
    state = new_state()
    small = OPENING._replace(cap=10_000_000)
    for nonce in range(64):
        channel = opened(state, small, nonce)
    assert code_of(opened, state, small, 64) == 25
    close(state, PROVIDER, channel)
    opened(state, small, 64)


# closing


def close(state, who, channel, time_ms=NOW_MS):
    tx = transaction(who, CloseChannel(channel))
    channels.apply_close_channel(state, context(time_ms), tx, tx.payload)


def test_a_payers_close_waits_and_then_returns_the_rest() -> None:
    state = new_state()
    channel = opened(state)
    close(state, PAYER, channel)
    record = state.get(tables.CHANNEL, channel)
    assert (record.state, record.close_at_ms) == (tables.CHANNEL_CLOSING, NOW_MS + DAY_MS)
    assert state.account(PAYER.key).balance == BALANCE - 10 * OPEN
    assert state.has(tables.DUE, NOW_MS + DAY_MS, tables.DUE_CHANNEL_CLOSE, channel)
    channels.apply_due_close(state, context(), NOW_MS + DAY_MS, channel)
    assert state.get(tables.CHANNEL, channel).state == tables.CHANNEL_CLOSED
    assert state.account(PAYER.key).balance == BALANCE
    assert supply_is_whole(state)


def test_a_providers_close_returns_the_rest_at_once_even_of_a_closing_channel() -> None:
    for closed_before in (False, True):
        state = new_state()
        channel = opened(state)
        if closed_before:
            close(state, PAYER, channel)
        close(state, PROVIDER, channel)
        assert state.get(tables.CHANNEL, channel).state == tables.CHANNEL_CLOSED
        assert state.account(PAYER.key).balance == BALANCE
        channels.apply_due_close(
            state, context(), NOW_MS + DAY_MS, channel
        )  # nothing is left to return
        assert state.account(PAYER.key).balance == BALANCE


def test_a_closed_channel_is_forgotten_with_its_lanes() -> None:
    state = new_state()
    channel = opened(state)
    state.put(tables.LANE, (channel, 0), tables.Lane(1, 1, bytes(32)))
    state.put(tables.LANE, (channel, 5), tables.Lane(1, 1, bytes(32)))
    close(state, PROVIDER, channel)
    assert state.has(tables.DUE, NOW_MS + 7 * DAY_MS, tables.DUE_CHANNEL_FORGET, channel)
    channels.apply_due_forget(state, context(), NOW_MS + 7 * DAY_MS, channel)
    assert not state.has(tables.CHANNEL, channel)
    assert not state.scan(tables.LANE, channel)


def test_a_close_that_breaks_a_rule_is_refused_by_its_code() -> None:
    state = new_state()
    channel = opened(state)
    assert code_of(close, state, PAYER, bytes(32)) == 21
    assert code_of(close, state, CREATOR, channel) == 22
    close(state, PAYER, channel)
    assert code_of(close, state, PAYER, channel) == 23
    close(state, PROVIDER, channel)
    assert code_of(close, state, PROVIDER, channel) == 23


# bundles


def settle(state, parts, bundle_seq=1, time_ms=NOW_MS, provider=PROVIDER):
    bundle = checked_bundle(state, parts, bundle_seq, provider)
    with state.trial():
        return channels.apply_bundle(state, context(time_ms), bundle)


def one_section(
    state, channel, count=3, from_hold=False, credits=((1, 4_000), (2, 6_000)), **fields
):
    lane = session(channel, random.Random(1))
    for _ in range(count):
        made = {"tokens_in": 800, "tokens_out": 100, "fee": fee_of(800, 100)} | fields
        lane.serve(credits, **made)
    return lane.cut(from_hold)


@pytest.mark.parametrize("from_hold", [False, True])
def test_a_bundle_takes_its_fees_and_moves_the_lane(from_hold: bool) -> None:
    state = new_state()
    channel = open_channel(state)
    fee = fee_of(800, 100)
    fees = settle(state, [one_section(state, channel, 3, from_hold)])
    lane = state.get(tables.LANE, channel, 0)
    assert (lane.seq, lane.cumulative) == (3, 3 * fee)
    assert state.get(tables.CHANNEL, channel).paid == 3 * fee
    assert state.get(tables.PROVIDER, PROVIDER.key).bundle_seq == 1
    assert state.held(purses.SETTLING) == 3 * fee
    assert fees.versions[1, 1].fees == 3 * fee
    assert fees.versions[1, 1].weights == {1: 3 * fee * 4_000, 2: 3 * fee * 6_000}
    assert fees.versions[1, 1].unattributed == 0
    assert state.get(tables.SETTLED, fees.bundle_hash).base == BASE
    assert supply_is_whole(state)


def test_a_lane_goes_on_after_a_claim_from_the_hold() -> None:
    state = new_state()
    lane = session(open_channel(state), random.Random(2))
    for bundle_seq, from_hold in enumerate((True, False, True, True, False), start=1):
        for _ in range(2):
            lane.serve(fee=1_000_000)
        settle(state, [lane.cut(from_hold)], bundle_seq)
    stored = state.get(tables.LANE, lane.channel, 0)
    assert stored == (10, 10_000_000, lane.accumulator)


def test_a_bundle_settles_once() -> None:
    state = new_state()
    part = one_section(state, open_channel(state))
    settle(state, [part])
    assert code_of(settle, state, [part], 1) == 45  # its number
    assert code_of(settle, state, [part], 2) == 45  # its receipts under a new number


def test_receipts_settle_without_gaps() -> None:
    state = new_state()
    lane = session(open_channel(state), random.Random(2))
    lane.serve(fee=1_000_000)
    lane.cut()
    lane.serve(fee=1_000_000)
    assert code_of(settle, state, [lane.cut()]) == 45


def test_a_false_accumulator_or_cumulative_is_refused() -> None:
    """The payer acknowledged other receipts than those the provider shows."""
    for honest, shown in ((1_000_000, 1_000_001), (1_000_000, 1_000_000)):
        state = new_state()
        channel = open_channel(state)
        lane, other = session(channel, random.Random(2)), session(channel, random.Random(3))
        lane.serve(fee=honest)
        other.serve(fee=shown)
        other.accumulator = lane.accumulator
        assert code_of(settle, state, [other.cut()]) == 45


def test_another_providers_channel_and_a_closed_one_are_refused() -> None:
    state = new_state()
    channel = open_channel(state)
    thief = party("thief")
    add_provider(state, thief, thief)
    assert code_of(settle, state, [one_section(state, channel)], 1, NOW_MS, thief) == 45
    close(state, PROVIDER, channel)
    assert code_of(settle, state, [one_section(state, channel)]) == 45


def test_a_closing_channel_still_settles() -> None:
    state = new_state()
    channel = open_channel(state)
    close(state, PAYER, channel)
    settle(state, [one_section(state, channel)])
    channels.apply_due_close(state, context(), NOW_MS + DAY_MS, channel)
    assert state.account(PAYER.key).balance == BALANCE - 3 * fee_of(800, 100)
    assert supply_is_whole(state)


def test_a_voucher_is_void_when_it_expires() -> None:
    state = new_state()
    part = one_section(state, open_channel(state))
    assert code_of(settle, state, [part], 1, EXPIRES_MS) == 46
    settle(state, [part], 1, EXPIRES_MS - 1)


def test_fees_up_to_the_cap_are_paid_and_one_grain_more_is_refused() -> None:
    fee = fee_of(800, 100)
    state = new_state()
    settle(state, [one_section(state, open_channel(state, cap=3 * fee))])
    state = new_state()
    part = one_section(state, open_channel(state, cap=3 * fee - 1))
    assert code_of(settle, state, [part]) == 46


def test_an_amount_that_is_not_the_sum_of_fees_is_refused() -> None:
    state = new_state()
    channel = open_channel(state)
    bundle = checked_bundle(state, [one_section(state, channel)])
    section = bundle.sections[0]
    wrong = section._replace(section=section.section._replace(amount=section.fees - 1))
    bad = bundle._replace(sections=(wrong,))
    assert code_of(channels.apply_bundle, state, context(), bad) == 46


def test_a_fee_may_be_the_price_or_less_but_not_more() -> None:
    fee = fee_of(800, 100)
    for paid in (fee, fee - 1):
        state = new_state()
        settle(state, [one_section(state, open_channel(state), fee=paid)])
    state = new_state()
    assert code_of(settle, state, [one_section(state, open_channel(state), fee=fee + 1)]) == 47


@pytest.mark.parametrize("dear", [0, 1, 2, 5])
def test_one_receipt_above_its_price_is_found_among_others_of_its_version(dear: int) -> None:
    """Two versions that take turns, each with a price of its own."""
    state = new_state()
    add_model(state, 2)
    twice = tuple(2 * each for each in PRICES)
    state.put(tables.PRICE, (2, 1), tables.Price(*twice, *twice, 0))
    lane = session(open_channel(state), random.Random(2))
    limits = [price(800, 100, *(twice if number % 2 else PRICES)) for number in range(6)]
    for above in (0, 1):
        for number, fee in enumerate(limits):
            lane.serve(
                model=1 + number % 2, tokens_in=800, tokens_out=100,
                fee=fee + above * (number == dear),
            )  # fmt: skip
        part = lane.cut()
        if above:
            assert code_of(settle, state, [part], 2) == 47
        else:
            settle(state, [part])


def test_channels_and_lanes_are_looked_at_before_any_price() -> None:
    """B1 and B2 of every section come before B3 of any."""
    state = new_state()
    dear = one_section(state, open_channel(state), fee=fee_of(800, 100) + 1)
    gap = session(open_channel(state, nonce=1), random.Random(2))
    gap.serve(fee=1_000_000)
    gap.cut()
    gap.serve(fee=1_000_000)
    assert code_of(settle, state, [dear]) == 47
    assert code_of(settle, state, [dear, gap.cut()]) == 45


@pytest.mark.parametrize(
    ("desc", "at_ms", "is_old_paid", "is_new_paid"),
    [
        ("before the change only the old price holds", -1, True, False),
        ("at the change the dearer holds", 0, True, True),
        ("for an hour", HOUR_MS - 1, True, True),
        ("then the new one only", HOUR_MS, False, True),
    ],
)
@pytest.mark.parametrize("is_raised", [False, True])
def test_a_changed_price_holds_from_its_time(desc, at_ms, is_old_paid, is_new_paid, is_raised):
    cheap, dear = (1, 1, 1_000_000), (1, 1, 2_000_000)
    old, new = (cheap, dear) if is_raised else (dear, cheap)
    may_pay_dear = is_new_paid if is_raised else is_old_paid
    state = new_state()
    state.put(tables.PRICE, (1, 1), tables.Price(*new, *old, NOW_MS))
    part = one_section(state, open_channel(state), 1, tokens_in=0, tokens_out=0, fee=2_000_000)
    if may_pay_dear:
        settle(state, [part], 1, NOW_MS + at_ms)
    else:
        assert code_of(settle, state, [part], 1, NOW_MS + at_ms) == 47


def test_only_versions_of_one_base_that_may_be_served_settle() -> None:
    state = new_state()
    add_model(state, 2, base=b"\x08" * 32)
    lane = session(open_channel(state), random.Random(2))
    lane.serve(fee=1_000_000)
    lane.serve(fee=1_000_000, model=2)
    assert code_of(settle, state, [lane.cut()]) == 47
    for unknown in ({"model": 9}, {"model_version": 2}):
        state = new_state()
        part = one_section(state, open_channel(state), **unknown)
        assert code_of(settle, state, [part]) == 47


def test_a_superseded_version_settles_for_a_day() -> None:
    state = new_state()
    version = state.get(tables.VERSION, 1, 1)
    old = version._replace(status=tables.VERSION_SUPERSEDED, superseded_ms=NOW_MS - DAY_MS)
    state.put(tables.VERSION, (1, 1), old)
    part = one_section(state, open_channel(state))
    assert code_of(settle, state, [part]) == 47
    state.put(tables.VERSION, (1, 1), old._replace(superseded_ms=NOW_MS - DAY_MS + 1))
    settle(state, [part])


CREDIT_REFUSALS = {
    "a number that is not on the ledger": None,
    "another Datanet's": {"datanet": 2},
    "sealed records": {"kind": 2},
    "younger than the snapshot": "young",
    "accepted after the snapshot": {"accepted_ms": NOW_MS - 9},
    "pending": {"status": tables.PENDING, "accepted_ms": 0},
    "rejected": {"status": tables.REJECTED},
    "withdrawn before the snapshot": {
        "status": tables.WITHDRAWN,
        "withdrawn_ms": NOW_MS - 11,
    },
}


@pytest.mark.parametrize("desc", sorted(CREDIT_REFUSALS))
def test_credits_outside_the_snapshot_are_refused(desc: str) -> None:
    state = new_state()
    change = CREDIT_REFUSALS[desc]
    number = 5 if change in (None, "young") else 4
    if change == "young":
        add_contribution(state, 5, CREATOR)
    elif change is not None:
        add_contribution(state, 4, CREATOR, **change)
    part = one_section(state, open_channel(state), credits=((number, 10_000),))
    assert code_of(settle, state, [part]) == 48


@pytest.mark.parametrize("status", [tables.WITHDRAWN, tables.SLASHED])
def test_credits_of_a_contribution_withdrawn_since_still_settle(status: int) -> None:
    """The answer was shaped by it; its pay goes to the fund, not back to the payer."""
    state = new_state()
    add_contribution(state, 4, CREATOR, status=status, withdrawn_ms=NOW_MS - 10)
    part = one_section(state, open_channel(state), credits=((4, 10_000),))
    assert settle(state, [part]).versions[1, 1].weights


def test_a_composite_version_credits_the_data_of_its_parts() -> None:
    state = new_state()
    state.put(tables.SNAPSHOT, (2,), tables.Snapshot(2, bytes(32), 9, 10, 0, NOW_MS - 1))
    add_contribution(state, 7, CREATOR, datanet=2)
    add_model(state, 2)
    made = state.get(tables.VERSION, 1, 1)
    state.put(tables.VERSION, (2, 1), made._replace(snapshot=2))
    part = one_section(state, open_channel(state), credits=((7, 10_000),))
    assert code_of(settle, state, [part]) == 48
    state.put(tables.VERSION, (1, 1), made._replace(parts=((2, 1, 3_000),)))
    settle(state, [part])


def test_a_composite_version_without_an_index_credits_nobody() -> None:
    """No node holds what its shares would follow from, so no node would ever dispute them."""
    state = new_state()
    part = one_section(state, open_channel(state), credits=((1, 10_000),))
    made = state.get(tables.VERSION, 1, 1)
    add_model(state, 2)
    parts = ((2, 1, 3_000),)
    bare = made._replace(snapshot=0, index_root=b"", parts=parts)
    state.put(tables.VERSION, (1, 1), bare)
    with pytest.raises(Invalid, match=r"bundle\.credits"):
        settle(state, [part])
    state.put(tables.VERSION, (1, 1), bare._replace(index_root=made.index_root))
    assert settle(state, [part]).versions


def test_prices_are_those_of_the_kit() -> None:
    assert fee_of(1_000, 500) == 51_000_000
    assert PRICES[2] == 1_000_000
