"""Datanets, contributions, reviews and snapshots: who may, when, and where the bond goes."""

import pytest
from chain_kit import (
    CONTRIBUTORS,
    FAUCET,
    OPEN,
    STEWARD,
    TERMS,
    TinyChain,
    devnet,
    golden_answer,
)

from node.ledger import purses, tables
from node.ledger.genesis import decode_genesis, encode_genesis
from node.ledger.wire.payouts import decode_payout
from node.ledger.wire.transactions import (
    Contribute,
    CreateDatanet,
    Curate,
    Snapshot,
    WithdrawContribution,
    decode_transaction,
)

GIVER = CONTRIBUTORS[0]
GIVEN = Contribute(1, 0, b"\1" * 32, b"\2" * 32, 10, 99, 1, 0, b"")
BOND = OPEN // 1_000 + 10 * 10**5  # contribution_bond + ten records
REASON = bytes(32)


@pytest.fixture
def chain() -> TinyChain:
    made = TinyChain()
    assert code(made, STEWARD, CreateDatanet(b"facts", TERMS)) == 0
    return made


def code(chain: TinyChain, who, payload, **fields) -> int:
    return chain.block(chain.tx(who, payload), **fields).codes[0]


def given(chain: TinyChain) -> TinyChain:
    assert code(chain, GIVER, GIVEN) == 0
    return chain


# ---- Datanets


def test_creating_takes_deposit_and_fee(chain) -> None:
    state = chain.state()
    datanet = state.get(tables.DATANET, 1)
    assert datanet.steward == STEWARD.key
    assert tables.Terms(*datanet.terms) == TERMS
    assert state.held(purses.deposit("datanet", 1)) == OPEN // 10
    assert state.held(purses.datanet_pool(1)) == 4 * OPEN
    assert state.held(purses.pool(tables.TREASURY)) == OPEN
    assert state.get(tables.DATANET_NAME, b"facts").number == 1


def test_a_name_is_taken_once(chain) -> None:
    assert code(chain, FAUCET, CreateDatanet(b"facts", TERMS)) == 24
    assert code(chain, FAUCET, CreateDatanet(b"others", TERMS)) == 0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"licences": (1, 1)}, 26),
        ({"licences": (2, 1)}, 26),
        ({"licences": (9,)}, 26),
        ({"licences": ()}, 26),
        ({"licences": (1, 2, 3, 4, 5, 6, 7, 8)}, 0),
        ({"mode": 2}, 26),
        ({"quorum": 8}, 26),
        ({"quorum": 7}, 0),
        ({"quorum": 0}, 26),
        ({"quorum": 0, "mode": 1}, 0),
        ({"stake_per_record": 9_999}, 26),
        ({"stake_per_record": 10_000}, 0),
        ({"stake_per_record": OPEN // 1_000}, 0),
        ({"stake_per_record": OPEN // 1_000 + 1}, 26),
        ({"curation_bps": 1_000}, 0),
        ({"curation_bps": 1_001}, 26),
        ({"review_ms": 59_999}, 26),
        ({"review_ms": 60_000}, 0),
        ({"review_ms": 30 * 86_400_000 + 1}, 26),
        ({"withdrawal": 2}, 26),
    ],
)
def test_terms_hold_on_both_sides_of_each_limit(chain, change, expected) -> None:
    assert code(chain, FAUCET, CreateDatanet(b"others", TERMS._replace(**change))) == expected


def test_bad_names_are_refused(chain) -> None:
    assert code(chain, FAUCET, CreateDatanet(b"No", TERMS)) == 26


# ---- contributions


def test_a_contribution_waits_with_its_bond(chain) -> None:
    given(chain)
    record = chain.state().get(tables.CONTRIBUTION, 1)
    assert (record.contributor, record.status, record.stake) == (GIVER.key, tables.PENDING, BOND)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"datanet": 2}, 21),
        ({"kind": 1}, 26),
        ({"kind": 2}, 26),
        ({"mends": 1}, 26),
        ({"records": 0}, 26),
        ({"records": 65_536}, 0),
        ({"records": 65_537}, 26),
        ({"licence": 2}, 26),
        ({"licence": 7}, 0),
    ],
)
def test_contributions_are_taken_or_refused_by_code(chain, change, expected) -> None:
    assert code(chain, GIVER, GIVEN._replace(**change)) == expected


def test_the_same_content_is_taken_once_in_a_datanet(chain) -> None:
    given(chain)
    assert code(chain, CONTRIBUTORS[1], GIVEN) == 24
    assert code(chain, STEWARD, CreateDatanet(b"others", TERMS)) == 0
    assert code(chain, CONTRIBUTORS[1], GIVEN._replace(datanet=2)) == 0


def test_a_permissioned_datanet_takes_members_only(chain) -> None:
    closed = TERMS._replace(mode=1, quorum=0)
    assert code(chain, STEWARD, CreateDatanet(b"closed", closed)) == 0
    assert code(chain, GIVER, GIVEN._replace(datanet=2)) == 22
    assert code(chain, STEWARD, GIVEN._replace(datanet=2)) == 0
    assert chain.state().get(tables.CONTRIBUTION, 1).status == tables.ACCEPTED


# ---- reviews


def balance(chain: TinyChain, who) -> int:
    return chain.state().account(who.key).balance


def test_accepting_returns_half_now_and_half_later(chain) -> None:
    given(chain)
    before = balance(chain, GIVER)
    assert code(chain, STEWARD, Curate(1, 1, REASON)) == 0
    assert balance(chain, GIVER) - before == BOND - BOND // 2
    assert chain.state().get(tables.DATANET, 1).accepted == 10
    chain.block(later_ms=5 * 60_000)
    assert balance(chain, GIVER) - before == BOND
    assert chain.state().get(tables.CONTRIBUTION, 1).stake == 0


@pytest.mark.parametrize(("decision", "status", "taken_bps"), [(2, 2, 0), (3, 3, 1_000)])
def test_returned_is_whole_and_rejected_loses_a_tenth(chain, decision, status, taken_bps) -> None:
    given(chain)
    before, treasury = balance(chain, GIVER), chain.state().held(purses.pool(tables.TREASURY))
    assert code(chain, STEWARD, Curate(1, decision, REASON)) == 0
    taken = BOND * taken_bps // 10_000
    assert balance(chain, GIVER) - before == BOND - taken
    state = chain.state()
    assert state.get(tables.CONTRIBUTION, 1).status == status
    assert state.held(purses.pool(tables.TREASURY)) - treasury == taken // 2
    again = code(chain, GIVER, GIVEN)
    assert again == (0 if decision == 2 else 24)


def test_a_lone_slash_is_impossible(chain) -> None:
    given(chain)
    assert code(chain, STEWARD, Curate(1, 4, REASON)) == 0
    assert chain.state().get(tables.CONTRIBUTION, 1).status == tables.PENDING
    state = chain.state()
    state.put(tables.SEAT, (1, FAUCET.key), tables.Seat(1, 0))
    chain.flat |= {key: value for key, value in state.changes() if value is not None}
    assert code(chain, FAUCET, Curate(1, 4, REASON)) == 0
    record = chain.state().get(tables.CONTRIBUTION, 1)
    assert (record.status, record.stake) == (tables.SLASHED, 0)


def test_a_vote_is_paid_from_the_pool(chain) -> None:
    given(chain)
    pool = chain.state().held(purses.datanet_pool(1))
    code(chain, STEWARD, Curate(1, 1, REASON))
    fee = chain.state().parameter("review_fee")
    assert pool - chain.state().held(purses.datanet_pool(1)) == fee


@pytest.mark.parametrize(
    ("who", "payload", "expected"),
    [
        (STEWARD, Curate(2, 1, REASON), 21),
        (FAUCET, Curate(1, 1, REASON), 22),
        (GIVER, Curate(1, 1, REASON), 22),
        (STEWARD, Curate(1, 0, REASON), 23),
        (STEWARD, Curate(1, 5, REASON), 23),
    ],
)
def test_curating_is_refused_by_code(chain, who, payload, expected) -> None:
    assert code(given(chain), who, payload) == expected


def test_a_steward_does_not_judge_its_own_work(chain) -> None:
    assert code(chain, STEWARD, GIVEN) == 0
    assert code(chain, STEWARD, Curate(1, 1, REASON)) == 22


def test_one_vote_each_and_none_after_the_outcome(chain) -> None:
    given(chain)
    assert code(chain, STEWARD, Curate(1, 4, REASON)) == 0
    assert code(chain, STEWARD, Curate(1, 1, REASON)) == 24
    assert code(chain, GIVER, GIVEN._replace(content_hash=b"\3" * 32)) == 0
    assert code(chain, STEWARD, Curate(2, 1, REASON)) == 0
    assert code(chain, STEWARD, Curate(2, 1, REASON)) == 23


def test_idle_curators_cost_a_contributor_nothing(chain) -> None:
    given(chain)
    before = balance(chain, GIVER)
    chain.block(later_ms=TERMS.review_ms - 1)
    assert chain.state().get(tables.CONTRIBUTION, 1).status == tables.PENDING
    chain.block(later_ms=1)
    assert chain.state().get(tables.CONTRIBUTION, 1).status == tables.RETURNED
    assert balance(chain, GIVER) - before == BOND


# ---- withdrawals

WINDOW_MS = 60_000  # a devnet's challenge window
BACK = WithdrawContribution(1)


def status(chain: TinyChain, number: int = 1) -> int:
    return chain.state().get(tables.CONTRIBUTION, number).status


def test_an_accepted_contribution_is_withdrawn_and_its_bond_comes_back_later(chain) -> None:
    accepted(chain)
    before = balance(chain, GIVER)
    raw = chain.tx(GIVER, BACK)
    charge = decode_transaction(raw).weight * 100
    assert chain.block(raw).codes == (0,)
    record, datanet = (
        chain.state().get(table, 1) for table in (tables.CONTRIBUTION, tables.DATANET)
    )
    assert (record.status, record.withdrawn_ms) == (tables.WITHDRAWN, chain.time_ms)
    assert (datanet.accepted, datanet.withdrawn) == (10, 10)
    chain.block(later_ms=WINDOW_MS - 1)
    assert balance(chain, GIVER) == before - charge
    chain.block(later_ms=1)
    assert balance(chain, GIVER) == before - charge + BOND // 2
    assert chain.state().get(tables.CONTRIBUTION, 1).stake == 0


def test_a_bond_that_is_due_within_the_window_waits_for_its_end(chain) -> None:
    """The second half would come five minutes after the acceptance, fault or not."""
    accepted(chain)
    assert code(chain, GIVER, BACK, later_ms=5 * 60_000 - 2_000) == 0
    before = balance(chain, GIVER)
    chain.block(later_ms=WINDOW_MS - 1)
    assert balance(chain, GIVER) == before
    chain.block(later_ms=1)
    assert balance(chain, GIVER) == before + BOND // 2


def test_withdrawn_after_its_bond_came_back_returns_nothing_more(chain) -> None:
    accepted(chain)
    chain.block(later_ms=5 * 60_000)
    assert code(chain, GIVER, BACK) == 0
    before = balance(chain, GIVER)
    chain.block(later_ms=WINDOW_MS)
    assert balance(chain, GIVER) == before


def test_a_pending_one_goes_whole_and_its_content_may_come_again(chain) -> None:
    given(chain)
    assert code(chain, GIVER, BACK) == 0
    assert status(chain) == tables.WITHDRAWN
    before = balance(chain, GIVER)
    chain.block(later_ms=WINDOW_MS)
    assert balance(chain, GIVER) == before + BOND
    assert chain.state().get(tables.DATANET, 1).withdrawn == 0
    assert code(chain, GIVER, GIVEN) == 0
    chain.block(later_ms=TERMS.review_ms)  # the end of a review that is over changes nothing
    assert status(chain) == tables.WITHDRAWN


def test_what_is_being_judged_stays_to_be_judged(chain) -> None:
    given(chain)
    assert code(chain, STEWARD, Curate(1, 4, REASON)) == 0  # a lone slash decides nothing
    assert code(chain, GIVER, BACK) == 23
    assert status(chain) == tables.PENDING


def test_content_once_accepted_is_nobodys_to_bring_again(chain) -> None:
    accepted(chain)
    assert code(chain, GIVER, BACK) == 0
    assert code(chain, CONTRIBUTORS[1], GIVEN) == 24


def test_withdrawals_are_refused_by_code(chain) -> None:
    accepted(chain)
    assert code(chain, GIVER, WithdrawContribution(9)) == 21
    assert code(chain, STEWARD, BACK) == 22
    assert code(chain, GIVER, BACK) == 0
    assert code(chain, GIVER, BACK) == 23


@pytest.mark.parametrize("decision", [2, 3])
def test_what_was_returned_or_rejected_is_not_withdrawn(chain, decision) -> None:
    given(chain)
    assert code(chain, STEWARD, Curate(1, decision, REASON)) == 0
    assert code(chain, GIVER, BACK) == 23


def test_later_snapshots_leave_it_out(chain) -> None:
    accepted(chain)
    other = GIVEN._replace(content_hash=b"\3" * 32, records=7)
    assert code(chain, CONTRIBUTORS[1], other) == 0
    assert code(chain, STEWARD, Curate(2, 1, REASON)) == 0
    assert code(chain, CONTRIBUTORS[1], WithdrawContribution(2)) == 0
    assert code(chain, STEWARD, Snapshot(1, REASON, 2, 10)) == 26  # it ends no snapshot
    assert code(chain, STEWARD, Snapshot(1, REASON, 1, 17)) == 26
    assert code(chain, STEWARD, Snapshot(1, REASON, 1, 10)) == 0


def test_what_it_earned_before_is_paid_and_later_weight_is_the_funds() -> None:
    chain = TinyChain()
    chain.tell_story()
    session = chain.open_channel()
    golden_answer(session, ((1, 10_000),))
    chain.block(bundles=(chain.bundle(session),))
    assert code(chain, GIVER, BACK) == 0
    golden_answer(session, ((1, 10_000),))
    outcome = chain.block(bundles=(chain.bundle(session, 2),))
    data = [decode_payout(raw) for raw in outcome.payout_leaves]
    assert [(leaf.payee, leaf.amount) for leaf in data if leaf.kind == tables.KIND_DATA] == [
        (b"", 10_923_680)
    ]
    before = balance(chain, GIVER)
    fund = chain.state().held(purses.fund(1))
    chain.block(later_ms=3 * WINDOW_MS)
    stake = BOND // 2  # comes back in the same block
    assert balance(chain, GIVER) - before == 10_923_680 - 546_184 + stake
    assert chain.state().held(purses.fund(1)) - fund == 2 * 2_730_920 + 10_923_680


# ---- snapshots


def accepted(chain: TinyChain) -> TinyChain:
    given(chain)
    assert code(chain, STEWARD, Curate(1, 1, REASON)) == 0
    return chain


def test_a_snapshot_counts_what_is_accepted(chain) -> None:
    accepted(chain)
    assert code(chain, STEWARD, Snapshot(1, b"\7" * 32, 1, 10)) == 0
    record = chain.state().get(tables.SNAPSHOT, 1)
    assert (record.records, record.last_contribution, record.made_ms) == (10, 1, chain.time_ms)


@pytest.mark.parametrize(
    ("who", "payload", "expected"),
    [
        (STEWARD, Snapshot(2, REASON, 1, 10), 21),
        (STEWARD, Snapshot(1, REASON, 9, 10), 21),
        (FAUCET, Snapshot(1, REASON, 1, 10), 22),
        (STEWARD, Snapshot(1, REASON, 1, 9), 26),
        (STEWARD, Snapshot(1, REASON, 1, 11), 26),
    ],
)
def test_snapshots_are_refused_by_code(chain, who, payload, expected) -> None:
    assert code(accepted(chain), who, payload) == expected


def test_a_pending_contribution_ends_no_snapshot(chain) -> None:
    accepted(chain)
    assert code(chain, GIVER, GIVEN._replace(content_hash=b"\3" * 32)) == 0
    assert code(chain, STEWARD, Snapshot(1, REASON, 2, 10)) == 26


def test_at_most_one_snapshot_a_day() -> None:
    genesis = devnet()
    parameters = tuple(
        (name, (5_000,) if name == b"snapshot_interval_ms" else values)
        for name, values in genesis.parameters
    )
    slow = decode_genesis(encode_genesis(genesis._replace(parameters=parameters)))
    chain = TinyChain(slow)
    assert code(chain, STEWARD, CreateDatanet(b"facts", TERMS)) == 0
    accepted(chain)
    snapshot = Snapshot(1, REASON, 1, 10)
    assert code(chain, STEWARD, snapshot) == 0
    assert code(chain, STEWARD, snapshot, later_ms=4_999) == 27
    assert code(chain, STEWARD, snapshot, later_ms=1) == 0
