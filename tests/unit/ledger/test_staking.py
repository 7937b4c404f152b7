"""Providers, bonds, what stakers earn, and who is in the set."""

import random

import pytest
from bundle_kit import party
from chain_kit import FAUCET, OPEN, PROVIDER, STEWARD, VALIDATORS, TinyChain, golden_answer
from evidence_kit import raw_double_vote
from ledger_kit import transaction

from consensus.primitives.errors import Invalid
from node.ledger import purses, tables
from node.ledger.rules import staking
from node.ledger.wire.payouts import decode_payout
from node.ledger.wire.transactions import (
    Bond,
    OpenChannel,
    RegisterProvider,
    Transfer,
    Unbond,
    UpdateProvider,
)

ROLE_0, ROLE_1, ROLE_2 = 0, 1, 2
FIRST = VALIDATORS[0]
NEW = FAUCET


@pytest.fixture
def chain() -> TinyChain:
    made = TinyChain()
    made.block()  # the first block reads the candidates; the next period begins 40 s later
    return made


def code(chain: TinyChain, who, payload) -> int:
    return chain.block(chain.tx(who, payload)).codes[0]


def registered(chain: TinyChain) -> TinyChain:
    assert code(chain, PROVIDER, RegisterProvider(PROVIDER.key, PROVIDER.key)) == 0
    return chain


# ---- providers


def test_a_provider_is_active_from_its_smallest_bond(chain) -> None:
    registered(chain)
    least = chain.state().parameter("provider_bond_min")
    assert code(chain, PROVIDER, Bond(ROLE_1, PROVIDER.key, least - 1)) == 0
    assert not staking.is_active_provider(chain.state(), PROVIDER.key)
    assert code(chain, PROVIDER, Bond(ROLE_1, PROVIDER.key, 1)) == 0
    state = chain.state()
    assert staking.is_active_provider(state, PROVIDER.key)
    assert state.held(purses.deposit("provider", PROVIDER.key)) == OPEN // 1_000


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (RegisterProvider(bytes(32), PROVIDER.key), 26),
        (RegisterProvider(PROVIDER.key, bytes(32)), 26),
    ],
)
def test_keys_that_are_no_points_are_refused(chain, payload, expected) -> None:
    assert code(chain, PROVIDER, payload) == expected


def test_nobody_registers_twice(chain) -> None:
    registered(chain)
    assert code(chain, PROVIDER, RegisterProvider(PROVIDER.key, PROVIDER.key)) == 24


# ---- what a provider changes


SERVING = UpdateProvider(PROVIDER.key, STEWARD.key, tables.PROVIDER_ACTIVE)


def test_a_provider_changes_where_it_is_reached_and_paid(chain) -> None:
    registered(chain)
    before = chain.state().get(tables.PROVIDER, PROVIDER.key)
    assert code(chain, PROVIDER, SERVING._replace(peer_key=NEW.key)) == 0
    record = chain.state().get(tables.PROVIDER, PROVIDER.key)
    assert record == before._replace(peer_key=NEW.key, reward_account=STEWARD.key)


def test_a_paused_provider_takes_no_new_channels_and_may_come_back(chain) -> None:
    registered(chain)
    least = chain.state().parameter("provider_bond_min")
    opening = OpenChannel(PROVIDER.key, NEW.key, OPEN, 0)
    paused = SERVING._replace(status=tables.PROVIDER_PAUSED)
    assert code(chain, PROVIDER, Bond(ROLE_1, PROVIDER.key, least)) == 0
    for payload, expected in ((paused, 23), (SERVING, 0)):
        assert code(chain, PROVIDER, payload) == 0
        assert code(chain, NEW, opening) == expected


@pytest.mark.parametrize(
    ("who", "change", "expected"),
    [
        (NEW, {}, 21),
        (PROVIDER, {"status": 0}, 26),
        (PROVIDER, {"status": 3}, 26),
        (PROVIDER, {"peer_key": bytes(32)}, 26),
        (PROVIDER, {"reward_account": bytes(32)}, 26),
    ],
)
def test_changes_of_a_provider_are_refused_by_code(chain, who, change, expected) -> None:
    assert code(registered(chain), who, SERVING._replace(**change)) == expected


def test_a_jailed_provider_changes_nothing(chain) -> None:
    state = registered(chain).state()
    state.put(tables.CONDUCT, (ROLE_1, PROVIDER.key), tables.Conduct(jailed_until_ms=1))
    with pytest.raises(Invalid, match=r"tx\.wrong_state"):
        staking.apply_update(state, chain.context(), transaction(PROVIDER, SERVING), SERVING)


def test_answers_settled_after_a_change_are_paid_to_the_new_account() -> None:
    chain = TinyChain()
    chain.tell_story()
    session = chain.open_channel()
    golden_answer(session, ())
    assert code(chain, PROVIDER, SERVING._replace(reward_account=NEW.key)) == 0
    outcome = chain.block(bundles=(chain.bundle(session),))
    payees = [decode_payout(raw).payee for raw in outcome.payout_leaves]
    assert NEW.key in payees
    assert PROVIDER.key not in payees


# ---- bonds


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (Bond(3, NEW.key, OPEN), 26),
        (Bond(ROLE_1, FIRST.key, OPEN), 26),
        (Bond(ROLE_1, NEW.key, OPEN), 21),
        (Bond(ROLE_0, STEWARD.key, OPEN), 21),
        (Bond(ROLE_0, NEW.key, 0), 26),
        (Bond(ROLE_1, NEW.key, 0), 26),
        (Bond(ROLE_0, FIRST.key, OPEN // 10 - 1), 26),
        (Bond(ROLE_0, FIRST.key, OPEN // 10), 0),
        (Bond(ROLE_0, NEW.key, 1), 0),
        (Bond(ROLE_2, bytes(32), OPEN), 0),
        (Bond(ROLE_0, NEW.key, 10**18), 20),
    ],
)
def test_bonds_are_taken_or_refused_by_code(chain, payload, expected) -> None:
    assert code(chain, NEW, payload) == expected


def test_a_target_has_at_most_1000_owners(chain) -> None:
    state = chain.state()
    state.set_counter(b"owners/" + bytes([ROLE_0]) + FIRST.key, staking.OWNERS_MAX - 1)
    staking._count_owner(state, ROLE_0, FIRST.key)
    with pytest.raises(Invalid, match=r"tx\.limit"):
        staking._count_owner(state, ROLE_0, FIRST.key)


# ---- taking a bond out


UNBONDING_MS = 21 * 86_400_000


def bonded_by_new(chain: TinyChain, amount: int = 3 * OPEN) -> TinyChain:
    """A delegation to the first validator."""
    assert code(chain, NEW, Bond(ROLE_0, FIRST.key, amount)) == 0
    return chain


def leaving(chain: TinyChain) -> list[tables.Unbonding]:
    return [record for _, record in chain.state().scan(tables.UNBONDING)]


def test_a_part_leaves_its_bond_and_is_paid_after_the_unbonding_time(chain) -> None:
    bonded_by_new(chain)
    assert code(chain, NEW, Unbond(ROLE_0, FIRST.key, OPEN)) == 0
    due_ms = chain.time_ms + UNBONDING_MS
    (part,) = leaving(chain)
    assert part == tables.Unbonding(ROLE_0, FIRST.key, NEW.key, OPEN, chain.time_ms, due_ms)
    state = chain.state()
    assert state.get(tables.BOND, ROLE_0, FIRST.key, NEW.key).amount == 2 * OPEN
    assert staking.bonded(state, ROLE_0, FIRST.key) == 22 * OPEN
    before = state.account(NEW.key).balance
    chain.block(later_ms=UNBONDING_MS - 1)
    assert len(leaving(chain)) == 1
    chain.block(later_ms=1)
    assert leaving(chain) == []
    assert chain.state().account(NEW.key).balance == before + OPEN


def test_a_bond_taken_out_whole_gives_its_place_free(chain) -> None:
    owners = staking.owners_name(ROLE_0, FIRST.key)
    before = chain.state().counter(owners)
    bonded_by_new(chain)
    assert chain.state().counter(owners) == before + 1
    assert code(chain, NEW, Unbond(ROLE_0, FIRST.key, 3 * OPEN)) == 0
    assert chain.state().counter(owners) == before
    assert not chain.state().has(tables.BOND, ROLE_0, FIRST.key, NEW.key)
    assert code(chain, NEW, Unbond(ROLE_0, FIRST.key, 1)) == 21
    bonded_by_new(chain)


@pytest.mark.parametrize(
    ("desc", "payload", "expected"),
    [
        ("all", Unbond(ROLE_0, FIRST.key, 3 * OPEN), 0),
        ("a grain more", Unbond(ROLE_0, FIRST.key, 3 * OPEN + 1), 20),
        ("the smallest delegation is left", Unbond(ROLE_0, FIRST.key, 3 * OPEN - OPEN // 10), 0),
        ("a grain less is left", Unbond(ROLE_0, FIRST.key, 3 * OPEN - OPEN // 10 + 1), 25),
        ("collect only", Unbond(ROLE_0, FIRST.key, 0), 0),
        ("another's validator", Unbond(ROLE_0, VALIDATORS[1].key, 1), 21),
        ("another role", Unbond(ROLE_1, FIRST.key, 1), 21),
        ("no role", Unbond(9, FIRST.key, 1), 21),
    ],
)
def test_unbonding_is_taken_or_refused_by_code(chain, desc, payload, expected) -> None:
    assert code(bonded_by_new(chain), NEW, payload) == expected, desc
    assert sum(chain.state().totals()) == chain.state().supply()


def test_amount_0_starts_nothing(chain) -> None:
    assert code(bonded_by_new(chain), NEW, Unbond(ROLE_0, FIRST.key, 0)) == 0
    assert leaving(chain) == []


@pytest.mark.parametrize(("role", "target"), [(ROLE_1, PROVIDER), (ROLE_2, None)])
def test_bonds_of_every_role_are_taken_out_to_the_last_grain(chain, role, target) -> None:
    name = bytes(32) if target is None else target.key
    owner = target or NEW
    registered(chain)
    assert code(chain, owner, Bond(role, name, 5)) == 0
    assert code(chain, owner, Unbond(role, name, 4)) == 0
    assert code(chain, owner, Unbond(role, name, 1)) == 0
    assert [part.amount for part in leaving(chain)] == [4, 1]


def test_seven_parts_of_a_bond_leave_at_once_and_no_eighth(chain) -> None:
    bonded_by_new(chain)
    for _ in range(tables.LEAVING_MAX):
        assert code(chain, NEW, Unbond(ROLE_0, FIRST.key, 1)) == 0
    assert code(chain, NEW, Unbond(ROLE_0, FIRST.key, 1)) == 25
    assert code(chain, NEW, Unbond(ROLE_0, FIRST.key, 0)) == 0
    chain.block(later_ms=UNBONDING_MS)
    assert code(chain, NEW, Unbond(ROLE_0, FIRST.key, 1)) == 0


def test_what_a_bond_has_earned_is_paid_before_it_leaves(chain) -> None:
    state = bonded_by_new(chain).state()
    staking.pay_stakers(state, purses.account(STEWARD.key), 9_200)
    before = state.account(NEW.key).balance
    payload = Unbond(ROLE_0, FIRST.key, 3 * OPEN)
    staking.apply_unbond(state, chain.context(), transaction(NEW, payload), payload)
    earned = state.account(NEW.key).balance - before
    assert 0 < earned <= 9_200
    staking.pay_stakers(state, purses.account(STEWARD.key), 9_200)
    staking.collect(state, ROLE_0, FIRST.key, NEW.key)
    assert state.account(NEW.key).balance == before + earned
    assert sum(state.totals()) == state.supply()


def test_what_leaves_is_slashed_for_what_came_before(chain) -> None:
    bonded_by_new(chain)
    assert code(chain, NEW, Unbond(ROLE_0, FIRST.key, 2 * OPEN)) == 0
    raw = raw_double_vote(FIRST, chain.past[0].validators, chain.chain_id, 1)
    chain.block(evidence=(raw,))
    (part,) = leaving(chain)
    state = chain.state()
    left = state.get(tables.BOND, ROLE_0, FIRST.key, NEW.key).amount
    assert part.amount == 2 * left < 2 * OPEN
    before = state.account(NEW.key).balance
    chain.block(later_ms=UNBONDING_MS)
    assert chain.state().account(NEW.key).balance == before + part.amount


def test_a_validator_whose_own_bond_falls_short_leaves_the_set(chain) -> None:
    assert code(chain, FIRST, Unbond(ROLE_0, FIRST.key, 10 * OPEN + 1)) == 0
    assert chain.validators.index(FIRST.key) is not None  # until the next period
    for _ in range(2):
        chain.block(later_ms=60_000)
    assert chain.validators.index(FIRST.key) is None


def test_a_provider_below_the_least_bond_takes_no_new_channels(chain) -> None:
    least = registered(chain).state().parameter("provider_bond_min")
    assert code(chain, PROVIDER, Bond(ROLE_1, PROVIDER.key, least)) == 0
    assert staking.is_active_provider(chain.state(), PROVIDER.key)
    assert code(chain, PROVIDER, Unbond(ROLE_1, PROVIDER.key, 1)) == 0
    assert not staking.is_active_provider(chain.state(), PROVIDER.key)


# ---- what stakers earn


def owed(state, owner) -> int:
    before = state.account(owner.key).balance
    staking.collect(state, ROLE_0, FIRST.key, owner.key)
    return state.account(owner.key).balance - before


def test_a_stakers_part_goes_by_bond_a_tenth_to_the_operator(chain) -> None:
    code(chain, NEW, Bond(ROLE_0, FIRST.key, 20 * OPEN))
    state = chain.state()
    operator = state.account(FIRST.key).balance
    staking.pay_stakers(state, purses.account(STEWARD.key), 5_000)
    assert state.account(FIRST.key).balance - operator == 200  # 2,000 of 5,000 by bond, a tenth
    assert (owed(state, NEW), owed(state, FIRST)) == (899, 899)  # the index is floored
    assert (owed(state, NEW), owed(state, FIRST)) == (0, 0)
    assert state.held(purses.stake(ROLE_0, FIRST.key)) == 2
    assert sum(state.totals()) == state.supply()


def test_a_late_bond_earns_nothing_of_what_came_before(chain) -> None:
    state = chain.state()
    staking.pay_stakers(state, purses.account(STEWARD.key), 4_000)
    staking.add_bond(state, purses.account(NEW.key), ROLE_0, FIRST.key, NEW.key, OPEN, 1)
    assert owed(state, NEW) == 0
    assert owed(state, FIRST) == 899


def test_amount_0_only_collects(chain) -> None:
    state = chain.state()
    assert staking.bonded(state, ROLE_0, FIRST.key) == 20 * OPEN
    assert code(chain, FIRST, Bond(ROLE_0, FIRST.key, 0)) == 0
    assert staking.bonded(chain.state(), ROLE_0, FIRST.key) == 20 * OPEN


def test_with_nobody_bonded_it_waits_and_is_paid_later(chain) -> None:
    state = chain.state()
    stakes = {who.key: state.get(tables.STAKE, ROLE_0, who.key) for who in VALIDATORS}
    for key in stakes:
        state.put(tables.STAKE, (ROLE_0, key), tables.Stake())
    staking.pay_stakers(state, purses.account(STEWARD.key), 4_000)
    assert state.held(purses.pool(tables.STAKERS)) == 4_000
    for key, stake in stakes.items():
        state.put(tables.STAKE, (ROLE_0, key), stake)
    staking.pay_stakers(state, purses.account(STEWARD.key), 4_000)
    assert state.held(purses.pool(tables.STAKERS)) == 0
    assert owed(state, FIRST) == 1_799


def test_stakers_never_get_more_than_came_in(chain) -> None:
    """In any order of bonds, payments and collecting."""
    chance, state = random.Random(5), chain.state()
    owners = [party(f"owner {i}") for i in range(5)]
    for owner in owners:
        state.move(purses.account(FAUCET.key), purses.account(owner.key), 1_000 * OPEN)
    for _ in range(200):
        owner = chance.choice(owners)
        if chance.random() < 0.5:
            staking.pay_stakers(state, purses.account(STEWARD.key), chance.randrange(10**6))
            continue
        staking.collect(state, ROLE_0, FIRST.key, owner.key)
        if chance.random() < 0.5:
            amount = chance.randrange(1, OPEN)
            source = purses.account(owner.key)
            staking.add_bond(state, source, ROLE_0, FIRST.key, owner.key, amount, 1)
    for owner in (*owners, FIRST):
        staking.collect(state, ROLE_0, FIRST.key, owner.key)
    assert 0 <= state.held(purses.stake(ROLE_0, FIRST.key)) < 1_000
    assert sum(state.totals()) == state.supply()


# ---- the set


def test_a_candidate_joins_in_the_first_block_of_the_next_period(chain) -> None:
    least = chain.state().parameter("validator_bond_min")
    assert code(chain, NEW, Bond(ROLE_0, NEW.key, least)) == 0
    assert chain.validators.index(NEW.key) is None
    chain.block(later_ms=60_000)
    assert chain.validators.power(NEW.key) == 10
    assert staking.validator_set(chain.state()) == chain.validators


def test_a_bond_one_grain_short_does_not_stand(chain) -> None:
    least = chain.state().parameter("validator_bond_min")
    code(chain, NEW, Bond(ROLE_0, NEW.key, least - 1))
    chain.block(later_ms=60_000)
    assert chain.validators.index(NEW.key) is None
    code(chain, NEW, Bond(ROLE_0, NEW.key, 1))
    chain.block(later_ms=60_000)
    assert chain.validators.index(NEW.key) is not None


def test_power_changes_by_at_most_a_third_a_block_and_the_rest_goes_on(chain) -> None:
    code(chain, NEW, Bond(ROLE_0, NEW.key, 60 * OPEN))
    powers = []
    chain.block(later_ms=60_000)
    for _ in range(4):
        powers.append(chain.validators.power(NEW.key))
        chain.block()
    assert powers == [26, 60, 60, 60]  # 80 // 3, then 106 // 3 would allow 35 more


def test_one_who_falls_below_leaves_the_set(chain) -> None:
    state = chain.state()
    bond = state.get(tables.BOND, ROLE_0, FIRST.key, FIRST.key)
    state.put(tables.BOND, (ROLE_0, FIRST.key, FIRST.key), bond._replace(amount=1))
    for seconds in (60, 61):
        context = chain.context(seconds * 1_000)
        validators = staking.advance_validators(state, context)
    assert validators.index(FIRST.key) is None
    record = state.get(tables.VALIDATOR, FIRST.key)
    assert (record.status, record.power) == (tables.VALIDATOR_CANDIDATE, 0)
    assert record.priority == tables.PRIORITY_OFFSET


def test_with_no_candidate_the_set_stays(chain) -> None:
    assert staking._changes_within_cap(chain.validators, {}, 26) == ([], False)


def test_signatures_are_counted_over_a_stretch(chain) -> None:
    signers = []
    for _ in range(3):
        signers.append(chain.validators.turn)
        chain.block()
    counted = {who.key: chain.state().get(tables.VALIDATOR, who.key).signed for who in VALIDATORS}
    assert sum(counted.values()) == 4  # the kit names one signer a block
    state = chain.state()
    again = chain.context()._replace(height=10_001, last_signers=(signers[0],))
    staking.count_signers(state, again)
    fresh = {who.key: state.get(tables.VALIDATOR, who.key).signed for who in VALIDATORS}
    assert sum(fresh.values()) == fresh[signers[0]] == 1


def test_a_transfer_to_a_bad_point_is_refused_a_known_account_is_not(chain) -> None:
    assert code(chain, FAUCET, Transfer(bytes(32), 5, b"")) == 26
    assert code(chain, FAUCET, Transfer(party("fresh").key, 5, b"")) == 0
