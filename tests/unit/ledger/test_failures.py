"""The ladder of a provider's failures: what each costs, the day's limit, and what is forgotten."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_kit import NOW_MS, OPEN, PROVIDER, context, new_state, supply_is_whole, transaction

from node.ledger import purses, tables
from node.ledger.parameters import DAY_MS
from node.ledger.rules import failures, staking
from node.ledger.state import State
from node.ledger.wire.transactions import Unbond

BOND = 1_000 * OPEN
HOUR_MS = 3_600_000


def costs(*at_ms: int) -> list[int]:
    state = new_state()
    return [failures.next_slash_bps(state, at_ms[: n + 1]) for n in range(len(at_ms))]


@pytest.mark.parametrize(
    ("desc", "days", "expected"),
    [
        ("each dearer than the one before", (0, 2, 4, 6), [100, 500, 1_000, 1_000]),
        ("old ones are forgiven", (0, 90, 180), [100, 100, 100]),
        ("a day before that they are not", (0, 89), [100, 500]),
        ("a window that slides", (0, 50, 100, 145), [100, 500, 500, 500]),
    ],
)
def test_ladder_is_by_how_many_were_in_the_window(desc, days, expected) -> None:
    assert costs(*(NOW_MS + day * DAY_MS for day in days)) == expected, desc


def test_failures_of_a_day_cost_thirty_per_cent_together() -> None:
    a_day = [NOW_MS + hour * HOUR_MS for hour in range(8)]
    assert costs(*a_day) == [100, 500, 1_000, 1_000, 400, 0, 0, 0]
    assert costs(*a_day, NOW_MS + DAY_MS)[-1] == 100, "the first has left the day"


@given(st.lists(st.integers(0, 100 * DAY_MS), min_size=1, max_size=32))
def test_no_day_costs_more_than_its_limit(times: list[int]) -> None:
    times.sort()
    paid = costs(*times)
    for last in times:
        lately = [bps for at, bps in zip(times, paid, strict=True) if last - DAY_MS < at <= last]
        assert sum(lately) <= 3_000
    assert min(paid) >= 0


def fail(state: State, at_ms: int, since_ms: int = NOW_MS) -> int:
    return failures.punish_failure(state, context(at_ms), PROVIDER.key, since_ms)


def test_third_failure_jails_and_a_longer_jail_stays() -> None:
    state = new_state()
    for number in range(2):
        fail(state, NOW_MS + number)
        assert state.get(tables.CONDUCT, 1, PROVIDER.key).jailed_until_ms == 0
    fail(state, NOW_MS + 2)
    assert state.get(tables.CONDUCT, 1, PROVIDER.key).jailed_until_ms == NOW_MS + 2 + 7 * DAY_MS


def test_what_left_the_bond_since_then_answers_too() -> None:
    state = new_state()
    for at_ms, amount in ((NOW_MS - 1, 100 * OPEN), (NOW_MS, 200 * OPEN)):
        payload = Unbond(tables.ROLE_PROVIDER, PROVIDER.key, amount)
        staking.apply_unbond(state, context(at_ms), transaction(PROVIDER, payload), payload)
    assert fail(state, NOW_MS) == (700 + 200) * OPEN // 100
    assert supply_is_whole(state)


def test_only_the_newest_failures_are_remembered() -> None:
    state = new_state()
    for number in range(failures.FAILURES_MAX + 5):
        fail(state, NOW_MS + number * DAY_MS)
    kept = state.get(tables.CONDUCT, 1, PROVIDER.key).failures
    assert len(kept) == failures.FAILURES_MAX
    assert kept[-1] == NOW_MS + (failures.FAILURES_MAX + 4) * DAY_MS


def test_income_is_forfeited_from_the_second_on_and_others_is_left_alone() -> None:
    """Two providers may be paid to one account: what waits there is not all of one's."""
    state = new_state()
    reward, bucket_ms = b"\4" * 32, NOW_MS + DAY_MS
    waiting = purses.maturing(bucket_ms, tables.KIND_PROVIDER, reward)
    state.issue(waiting, 1_000)
    key = (b"income/", PROVIDER.key, bucket_ms, reward)
    state.put(tables.INCOME, key, tables.Counter(600))
    fail(state, NOW_MS)
    assert state.held(waiting) == 1_000
    treasury = state.held(purses.pool(tables.TREASURY))
    taken = fail(state, NOW_MS + 1)
    assert state.held(waiting) == 400
    assert state.held(purses.pool(tables.TREASURY)) == treasury + taken + 600
    assert not state.has(tables.INCOME, *key)
    assert supply_is_whole(state)
