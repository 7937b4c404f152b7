"""Purses: each is a line of the totals, and whatever moves, the lines are what the records hold."""

import random
from collections import Counter
from collections.abc import Callable

import pytest

from consensus.primitives.errors import Invalid
from node.ledger import purses, tables
from node.ledger.purses import Purse
from node.ledger.state import EMPTY_BASE, State

A, B, H = b"\1" * 32, b"\2" * 32, b"\3" * 32
TERMS = (H, (1,), 0, 1, 1, 0, 1, 0)
ALL: dict[str, Purse] = {
    "account": purses.account(A),
    "another account": purses.account(B),
    "channel": purses.channel(H),
    "bond": purses.bond(0, A, B),
    "unbonding": purses.unbonding(1),
    "maturing": purses.maturing(9, tables.KIND_DATA, bytes(8)),
    "fund": purses.fund(1),
    "pool": purses.pool(tables.TREASURY),
    "locked": purses.locked(tables.COMMUNITY),
    "vesting": purses.vesting(A, 0),
    "datanet": purses.datanet_pool(1),
    "stake": purses.stake(0, A),
    "provider": purses.deposit("provider", A),
    "datanet deposit": purses.deposit("datanet", 1),
    "model": purses.deposit("model", 1),
    "version": purses.deposit("version", 1, 1),
    "contribution": purses.deposit("contribution", 1),
    "settling": purses.SETTLING,
}
BEGIN_AT_ZERO = {
    "account", "another account", "bond", "maturing", "fund", "pool", "locked", "stake", "settling",
}  # fmt: skip
WHOLE = 1_000_000


def world() -> State:
    """Every record that must exist, and a million grains in one account."""
    state = State(EMPTY_BASE)
    put = state.put
    put(tables.CHANNEL, (H,), tables.Channel(A, B, A, 0, 0, 0, 1, 0, 0))
    put(tables.UNBONDING, (1,), tables.Unbonding(0, A, B, 0, 0, 0))
    put(tables.VESTING, (A, 0), tables.Vesting(0, 0, 0, 12, 36))
    put(tables.DATANET, (1,), tables.Datanet(A, b"facts", TERMS, b"", 0, 1, 0, 0, 0, 0, 0, 0))
    put(tables.PROVIDER, (A,), tables.Provider(H, A, 0, 1, 0, 0))
    put(tables.MODEL, (1,), tables.Model(A, b"facts-1", H, 1, 1, 0, 1, 1, 1, 0, 0, 0))
    put(tables.VERSION, (1, 1), tables.Version(H, 1, H, H, b"", (), b"", 0, 0, 0, 1))
    contribution = (1, A, 0, H, H, 1, 1, 1, 0, b"", 0, 1, 0, 0, 0, 0, b"")
    put(tables.CONTRIBUTION, (1,), tables.Contribution(*contribution))
    state.issue(purses.account(A), WHOLE)
    return state


def held_by_line(state: State) -> Counter[str]:
    held: Counter[str] = Counter()
    for purse in ALL.values():
        assert purse.kind.total is not None
        held[purse.kind.total] += state.held(purse)
    return held


def test_every_line_of_the_totals_has_a_purse() -> None:
    """`upkeep` is kept for what the maintenance of models will hold."""
    lines = {purse.kind.total for purse in ALL.values()}
    assert lines == set(tables.Totals._fields) - {"upkeep"}
    assert purses.BURN.kind.total is None


@pytest.mark.parametrize("seed", range(5))
def test_whatever_moves_the_totals_are_what_the_records_hold(seed: int) -> None:
    chance, state, burnt, moved = random.Random(seed), world(), 0, 0
    for _ in range(400):
        source = chance.choice(list(ALL.values()))
        target = chance.choice([*ALL.values(), purses.BURN])
        there = state.held(source)
        amount = chance.choice((0, there // 3, there // 2, there // 2, there, there + 1))
        if target is purses.BURN:
            amount //= 100
        if amount > there:
            before = state.changes()
            with pytest.raises(Invalid, match=r"tx\.insufficient"):
                state.move(source, target, amount)
            assert state.changes() == before
            continue
        state.move(source, target, amount)
        moved += bool(amount)
        burnt += amount if target is purses.BURN else 0
        held = held_by_line(state)
        assert all(held[line] == total for line, total in state.totals()._asdict().items())
        assert sum(held.values()) == state.supply() == WHOLE - burnt
    assert moved > 100


@pytest.mark.parametrize("name", ALL)
def test_what_goes_in_comes_out(name: str) -> None:
    state, purse = world(), ALL[name]
    there = state.held(purse)
    source = purses.account(B if name != "another account" else A)
    state.issue(source, 70)
    state.move(source, purse, 50)
    assert state.held(purse) == there + 50
    state.move(purse, source, 50)
    assert state.held(purse) == there
    assert sum(state.totals()) == WHOLE + 70


@pytest.mark.parametrize("name", sorted(ALL.keys() - BEGIN_AT_ZERO))
def test_money_for_a_record_that_is_not_there_is_our_own_fault(name: str) -> None:
    state = State(EMPTY_BASE)
    state.issue(purses.account(B), 5)
    with pytest.raises(AssertionError):
        state.move(purses.account(B), ALL[name], 5)


@pytest.mark.parametrize("name", sorted(BEGIN_AT_ZERO - {"another account"}))
def test_these_records_begin_with_what_comes(name: str) -> None:
    state = State(EMPTY_BASE)
    state.issue(purses.account(B), 5)
    state.move(purses.account(B), ALL[name], 5)
    assert state.held(ALL[name]) == 5


# ---- kinds that are more than a field


def moved(*moves: Callable[[State], None]) -> State:
    state = world()
    for move in moves:
        move(state)
    return state


def test_a_channels_cap_is_what_came_in_and_paid_what_went_to_the_provider() -> None:
    channel, rest = purses.channel(H), purses.channel_rest(H)
    state = moved(
        lambda s: s.move(purses.account(A), channel, 100),
        lambda s: s.move(channel, purses.SETTLING, 30),
        lambda s: s.move(rest, purses.account(A), 50),
    )
    record = state.get(tables.CHANNEL, H)
    assert (record.cap, record.paid) == (50, 30)
    assert state.held(channel) == state.held(rest) == 20


def test_a_vesting_row_counts_what_was_promised_and_what_was_claimed() -> None:
    row = purses.vesting(A, 0)
    state = moved(
        lambda s: s.move(purses.account(A), row, 100),
        lambda s: s.move(row, purses.account(A), 30),
    )
    record = state.get(tables.VESTING, A, 0)
    assert (record.total, record.claimed) == (100, 30)


def test_a_fund_adds_to_its_running_week_only() -> None:
    state = world()
    state.put(tables.FUND, (1,), tables.Fund(0, (7, 8), (5, 6)))
    state.move(purses.account(A), purses.fund(1), 100)
    state.move(purses.fund(1), purses.account(A), 30)
    assert state.get(tables.FUND, 1) == tables.Fund(70, (7, 108), (5, 36))


def test_a_maturing_entry_and_a_counter_that_hold_nothing_are_gone() -> None:
    for purse in (ALL["maturing"], purses.SETTLING):
        state = world()
        state.move(purses.account(A), purse, 9)
        assert state.has(purse.kind.table, *purse.key)
        state.move(purse, purses.account(A), 9)
        assert not state.has(purse.kind.table, *purse.key)


def test_a_pools_locked_part_is_not_spendable() -> None:
    state = world()
    state.move(purses.account(A), purses.locked(tables.COMMUNITY), 100)
    with pytest.raises(Invalid, match=r"tx\.insufficient"):
        state.move(purses.pool(tables.COMMUNITY), purses.account(A), 1)
    state.move(purses.locked(tables.COMMUNITY), purses.pool(tables.COMMUNITY), 40)
    assert state.get(tables.POOL, tables.COMMUNITY) == tables.Pool(40, 60, 0)


def test_burning_makes_no_record() -> None:
    state = world()
    before = len(state.changes())
    state.move(purses.account(A), purses.BURN, 10)
    assert state.supply() == WHOLE - 10
    assert len(state.changes()) == before


def test_an_unknown_deposit_is_our_own_fault() -> None:
    with pytest.raises(KeyError):
        purses.deposit("house", 1)
