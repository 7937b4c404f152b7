"""The state: records by key, layers that roll back, money that only moves."""

import pytest

from consensus.primitives.errors import Invalid
from node.ledger import purses, tables
from node.ledger.state import EMPTY_BASE, Base, State

A, B = b"\1" * 32, b"\2" * 32


def funded() -> State:
    state = State(EMPTY_BASE)
    state.issue(purses.account(A), 100)
    return state


def over(flat: dict[bytes, bytes]) -> State:
    def scan(start, stop):
        return sorted((k, v) for k, v in flat.items() if start <= k < stop)

    return State(Base(flat.get, scan, lambda _: None))


def kept(state: State) -> dict[bytes, bytes]:
    return {key: value for key, value in state.changes() if value is not None}


def test_records_come_back_as_they_were_written() -> None:
    records = [
        (tables.ACCOUNT, (A,), tables.Account(1, 2, b"", 0)),
        (tables.LANE, (A, 63), tables.Lane(1, 2, B)),
        (tables.BOND, (0, A, B), tables.Bond(5, 2**127, 9)),
        (tables.VALIDATOR, (A,), tables.Validator(1, 2, 3, tables.PRIORITY_OFFSET - 7)),
        (tables.DUE, (7, 3, b"ref"), tables.Due()),
        (tables.MATURING, (7, 2, b""), tables.Maturing(4)),
        (tables.PARAMETER, (b"split_bps",), tables.Parameter((1, 2, 3))),
    ]
    state = State(EMPTY_BASE)
    for table, key, record in records:
        state.put(table, key, record)
    again = over(kept(state))
    for table, key, record in records:
        assert again.get(table, *key) == record
        assert again.scan(table)[0][1] == record


def test_a_trial_that_fails_leaves_nothing() -> None:
    state = funded()
    before = state.changes()

    def pay_twice() -> None:
        with state.trial():
            state.move(purses.account(A), purses.account(B), 60)
            state.move(purses.account(A), purses.account(B), 60)

    with pytest.raises(Invalid, match=r"tx\.insufficient"):
        pay_twice()
    assert state.changes() == before


def test_a_trial_that_succeeds_counts_also_inside_another() -> None:
    state = funded()
    with state.trial():
        with state.trial():
            state.move(purses.account(A), purses.account(B), 60)
        assert state.account(B).balance == 60
    assert state.account(A).balance == 40


def test_the_whole_balance_moves_and_not_a_grain_more() -> None:
    state = funded()
    with pytest.raises(Invalid, match=r"tx\.insufficient"):
        state.move(purses.account(A), purses.account(B), 101)
    state.move(purses.account(A), purses.account(B), 100)
    assert (state.account(A).balance, state.account(B).balance) == (0, 100)


def test_moves_keep_totals_and_burning_lowers_the_supply() -> None:
    state = funded()
    state.move(purses.account(A), purses.pool(tables.TREASURY), 30)
    state.move(purses.account(A), purses.BURN, 20)
    totals = state.totals()
    assert (totals.accounts, totals.pools, state.supply()) == (50, 30, 80)
    assert sum(totals) == state.supply()


def test_a_move_to_oneself_changes_nothing() -> None:
    state = funded()
    state.move(purses.account(A), purses.account(A), 70)
    assert state.account(A).balance == 100
    assert sum(state.totals()) == 100


def test_a_channel_counts_cap_and_paid() -> None:
    state = funded()
    state.put(tables.CHANNEL, (B,), tables.Channel(A, B, A, 0, 0, 0, 1, 0, 0))
    state.move(purses.account(A), purses.channel(B), 50)
    state.move(purses.channel(B), purses.SETTLING, 20)
    state.move(purses.channel_rest(B), purses.account(A), 10)
    channel = state.get(tables.CHANNEL, B)
    assert (channel.cap, channel.paid) == (40, 20)
    with pytest.raises(Invalid, match=r"tx\.insufficient"):
        state.move(purses.channel(B), purses.SETTLING, 21)


def test_an_empty_maturing_entry_is_gone() -> None:
    state = funded()
    entry = purses.maturing(9, tables.KIND_DATA, b"\0" * 8)
    state.move(purses.account(A), entry, 5)
    state.move(entry, purses.account(A), 5)
    assert not state.has(tables.MATURING, 9, tables.KIND_DATA, b"\0" * 8)


def test_a_fund_counts_what_comes_and_goes() -> None:
    state = funded()
    state.move(purses.account(A), purses.fund(1), 30)
    state.move(purses.fund(1), purses.account(B), 10)
    assert state.get(tables.FUND, 1) == tables.Fund(20, (30,), (10,))


def test_changes_are_net_and_sorted() -> None:
    flat = kept(funded())
    state = over(flat)
    state.put(tables.ACCOUNT, (B,), tables.Account(1))
    state.remove(tables.ACCOUNT, B)
    state.put(tables.ACCOUNT, (A,), state.account(A))
    assert state.changes() == []
    state.remove(tables.ACCOUNT, A)
    state.put(tables.ACCOUNT, (B,), tables.Account(1))
    keys = [key for key, _ in state.changes()]
    assert keys == sorted(keys) == [b"\1" + A, b"\1" + B]
    assert dict(state.changes())[b"\1" + A] is None


def test_scan_sees_base_and_layers_below_a_bound() -> None:
    state = State(EMPTY_BASE)
    for due_ms in (5, 300, 7):
        state.add_due(due_ms, 3, b"")
    state = over(kept(state))
    state.add_due(6, 4, b"x")
    state.remove(tables.DUE, 5, 3, b"")
    with state.trial():
        state.add_due(1, 1, b"")
        found = [int.from_bytes(key[0], "big") for key, _ in state.scan(tables.DUE, below=300)]
        assert found == [1, 6, 7]
    assert len(state.scan(tables.DUE)) == 4


def test_numbers_count_from_one() -> None:
    state = State(EMPTY_BASE)
    assert [state.next_number(b"models") for _ in range(3)] == [1, 2, 3]
    state.set_counter(b"models", 0)
    assert not state.has(tables.COUNTER, b"models")
