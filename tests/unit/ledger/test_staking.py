"""Providers, bonds, what stakers earn, and who is in the set."""

import random

import pytest
from bundle_kit import party
from chain_kit import FAUCET, OPEN, PROVIDER, STEWARD, VALIDATORS, TinyChain

from consensus.primitives.errors import Invalid
from node.ledger import purses, tables
from node.ledger.rules import staking
from node.ledger.wire.transactions import Bond, RegisterProvider, Transfer

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


def test_a_bond_that_has_waited_is_paid_out(chain) -> None:
    state = chain.state()
    leaving = tables.Unbonding(ROLE_0, FIRST.key, NEW.key, 0, 1, 2)
    state.put(tables.UNBONDING, (1,), leaving)
    state.move(purses.account(STEWARD.key), purses.unbonding(1), 500)
    before = state.account(NEW.key).balance
    staking.apply_unbonded(state, chain.context(), 2, (1).to_bytes(8, "big"))
    assert state.account(NEW.key).balance - before == 500
    assert not state.has(tables.UNBONDING, 1)
    assert sum(state.totals()) == state.supply()


def test_a_transfer_to_a_bad_point_is_refused_a_known_account_is_not(chain) -> None:
    assert code(chain, FAUCET, Transfer(bytes(32), 5, b"")) == 26
    assert code(chain, FAUCET, Transfer(party("fresh").key, 5, b"")) == 0
