"""Settlement: golden figures, exact sums in any order, and what a bucket pays when it is due."""

import random

import pytest
from bundle_kit import party
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_kit import (
    CONTRIBUTORS,
    CREATOR,
    NOW_MS,
    OPEN,
    PROVIDER,
    REWARD,
    STEWARD,
    VALIDATOR,
    add_contribution,
    add_model,
    context,
    new_state,
    open_channel,
    supply_is_whole,
)

from consensus.primitives.errors import Invalid
from node.ledger import purses, tables
from node.ledger.parameters import DAY_MS, HOUR_MS, SPLITS
from node.ledger.rules import payout
from node.ledger.rules.channels import BundleFees
from node.ledger.wire.bundles import VersionFees
from node.ledger.wire.payouts import PayoutLeaf, check_amount, decode_payout, encode_payout

BUCKET_MS = -(-(NOW_MS + DAY_MS) // HOUR_MS) * HOUR_MS


def bundle(fee, credits, receipts=1, provider=PROVIDER, which=(1, 1)):
    weights = {number: fee * bps for number, bps in credits}
    unattributed = 0 if credits else fee * 10_000
    fees = VersionFees(fee, receipts, weights, unattributed)
    return BundleFees(bytes(32), provider.key, REWARD.key, {which: fees})


def settled(state, *bundles):
    total = sum(v.fees for b in bundles for v in b.versions.values())
    channel = open_channel(state, cap=total)
    state.move(purses.channel(channel), purses.SETTLING, total)
    leaves = payout.settle_fees(state, context(), bundles)
    assert supply_is_whole(state)
    return leaves


def amounts(leaves, kind):
    return [leaf.amount for leaf in leaves if leaf.kind == kind]


def number(value):
    return value.to_bytes(8, "big")


def test_one_open_under_the_whitepaper_split_pays_2500_bps_exactly_an_eighth() -> None:
    """The only published example of the scheme: 10/20/20/50 of 1 OPEN."""
    state = new_state(split_bps=SPLITS["whitepaper"])
    leaves = settled(state, bundle(OPEN, ((1, 2_500), (2, 7_500))))
    assert amounts(leaves, tables.KIND_DATA) == [125_000_000, 375_000_000]
    others = [amounts(leaves, kind) for kind in (1, 3, 4, 5, 6, 7)]
    assert others == [[100_000_000], [100_000_000], [200_000_000], [80_000_000], [20_000_000], []]
    payout.apply_due_maturing(state, context(), BUCKET_MS, b"")
    assert state.account(CONTRIBUTORS[0].key).balance == 125_000_000
    assert state.account(CONTRIBUTORS[1].key).balance == 375_000_000


def test_the_default_split_of_a_reference_answer() -> None:
    state = new_state()
    leaves = settled(state, bundle(27_309_200, ((1, 6_120), (2, 2_455), (3, 1_425))))
    assert amounts(leaves, tables.KIND_DATA) == [6_685_292, 2_681_764, 1_556_624]
    singles = {kind: amounts(leaves, kind) for kind in (1, 3, 4, 5, 6)}
    assert singles == {
        1: [5_461_840],
        3: [4_096_380],
        4: [2_730_920],
        5: [2_730_920],
        6: [1_365_460],
    }
    total = leaves[0]
    assert (total.kind, total.amount, total.weight) == (0, 27_309_200, 1)


def test_leaves_stand_in_order_and_prove_their_amounts() -> None:
    state = new_state()
    add_model(state, 2)
    leaves = settled(
        state,
        bundle(1_000_003, ((1, 3_333), (4, 6_667)), which=(2, 1)),
        bundle(2_000_001, (), receipts=2),
    )
    places = [(leaf.model, leaf.version, leaf.kind, leaf.payee) for leaf in leaves]
    assert places == sorted(places)
    for leaf in leaves:
        check_amount(leaf)
        assert decode_payout(encode_payout(leaf)) == leaf
        assert leaf.matures_ms == BUCKET_MS


def test_data_without_credits_goes_to_the_models_fund() -> None:
    """Nobody gains by hiding attribution."""
    state = new_state()
    leaves = settled(state, bundle(10_000, ()))
    (leaf,) = [leaf for leaf in leaves if leaf.kind == tables.KIND_DATA]
    assert (leaf.payee, leaf.amount) == (b"", 4_000)
    payout.apply_due_maturing(state, context(), BUCKET_MS, b"")
    assert state.get(tables.FUND, 1).balance == 4_000 + 1_000


@pytest.mark.parametrize("status", [tables.WITHDRAWN, tables.SLASHED])
def test_weight_of_what_is_no_longer_paid_goes_to_the_fund(status: int) -> None:
    state = new_state()
    add_contribution(state, 2, CONTRIBUTORS[1], status=status, withdrawn_ms=NOW_MS)
    leaves = settled(state, bundle(10_000, ((1, 2_500), (2, 7_500))))
    data = {leaf.payee: leaf.amount for leaf in leaves if leaf.kind == tables.KIND_DATA}
    assert data == {b"": 3_000, number(1): 1_000}


def test_burn_leaves_the_supply() -> None:
    state = new_state(split_bps=(2_000, 4_000, 1_500, 1_000, 1_000, 400, 100))
    before = state.supply()
    leaves = settled(state, bundle(10_000, ((1, 10_000),)))
    assert amounts(leaves, tables.KIND_BURN) == [100]
    assert state.supply() == before - 100


def test_a_trainer_has_half_of_the_creators_part_while_current() -> None:
    trainer = party("trainer")
    for status, expected in ((tables.VERSION_CURRENT, [750, 750]), (2, [1_500])):
        state = new_state()
        version = state.get(tables.VERSION, 1, 1)
        state.put(tables.VERSION, (1, 1), version._replace(trainer=trainer.key, status=status))
        leaves = settled(state, bundle(10_000, ()))
        assert amounts(leaves, tables.KIND_CREATOR) == expected


def test_creator_and_fund_of_a_composite_are_divided_by_its_parts() -> None:
    state = new_state()
    other = party("other creator")
    add_model(state, 2, creator=other)
    version = state.get(tables.VERSION, 1, 1)
    state.put(tables.VERSION, (1, 1), version._replace(parts=((2, 1, 3_000),)))
    leaves = settled(state, bundle(10_000, ()))
    creators = {leaf.payee: leaf.amount for leaf in leaves if leaf.kind == tables.KIND_CREATOR}
    assert creators == {CREATOR.key: 1_050, other.key: 450}
    funds = {leaf.payee: leaf.amount for leaf in leaves if leaf.kind == tables.KIND_FUND}
    assert funds == {number(1): 700, number(2): 300}


# maturing


def test_a_bucket_pays_everyone_and_is_gone() -> None:
    state = new_state()
    leaves = settled(state, bundle(27_309_200, ((1, 6_120), (2, 3_880))))
    assert state.has(tables.DUE, BUCKET_MS, tables.DUE_MATURING, b"")
    assert state.totals().maturing == 27_309_200
    validator = state.account(VALIDATOR.key).balance
    payout.apply_due_maturing(state, context(), BUCKET_MS, b"")
    assert state.totals().maturing == 0
    assert not state.scan(tables.MATURING, BUCKET_MS)
    by_kind = {kind: sum(amounts(leaves, kind)) for kind in range(1, 8)}
    assert state.account(REWARD.key).balance == by_kind[1]
    assert state.held(purses.pool(tables.TREASURY)) == by_kind[6]
    assert state.get(tables.FUND, 1).balance == by_kind[5]
    assert state.get(tables.CONTRIBUTION, 1).earned == leaves[2].amount
    stakers = state.account(VALIDATOR.key).balance - validator + state.totals().undistributed
    assert stakers == by_kind[4]
    assert supply_is_whole(state)


def test_entries_of_one_payee_in_one_bucket_add_up() -> None:
    state = new_state()
    settled(state, bundle(10_000, ((1, 10_000),)))
    channel = open_channel(state, 10_000, nonce=7)
    state.move(purses.channel(channel), purses.SETTLING, 10_000)
    payout.settle_fees(state, context(NOW_MS + 1), [bundle(10_000, ((1, 10_000),))])
    entry = state.get(tables.MATURING, BUCKET_MS, tables.KIND_DATA, number(1))
    assert entry.amount == 8_000


def test_a_datanets_cut_goes_to_its_pool() -> None:
    state = new_state()
    datanet = state.get(tables.DATANET, 1)
    terms = tables.Terms(*datanet.terms)._replace(curation_bps=1_000)
    state.put(tables.DATANET, (1,), datanet._replace(terms=tuple(terms)))
    settled(state, bundle(10_000, ((1, 10_000),)))
    payout.apply_due_maturing(state, context(), BUCKET_MS, b"")
    assert state.get(tables.DATANET, 1).pool == 400
    assert state.account(CONTRIBUTORS[0].key).balance == 3_600
    assert state.account(STEWARD.key).balance == 0
    assert state.get(tables.CONTRIBUTION, 1).earned == 4_000


@pytest.mark.parametrize(
    ("status", "first", "corrector"),
    [(tables.ACCEPTED, 2_000, 2_000), (tables.SLASHED, 0, 4_000), (tables.WITHDRAWN, 0, 4_000)],
)
def test_a_correction_shares_with_the_first_author_while_that_one_is_paid(
    status: int, first: int, corrector: int
) -> None:
    state = new_state()
    add_contribution(state, 3, CONTRIBUTORS[2], kind=1, mends=2)
    add_contribution(state, 2, CONTRIBUTORS[1], status=status)
    settled(state, bundle(10_000, ((3, 10_000),)))
    payout.apply_due_maturing(state, context(), BUCKET_MS, b"")
    assert state.account(CONTRIBUTORS[1].key).balance == first
    assert state.account(CONTRIBUTORS[2].key).balance == corrector


def test_a_settled_bundle_is_forgotten_when_its_time_is_over() -> None:
    state = new_state()
    record = tables.Settled(*(bytes(32),) * 4, 1, 1, BUCKET_MS, NOW_MS)
    state.put(tables.SETTLED, (b"\1" * 32,), record)
    payout.apply_due_maturing(state, context(), BUCKET_MS, b"\1" * 32)
    assert not state.has(tables.SETTLED, b"\1" * 32)


# properties

CREDITS = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 10_000)), max_size=4, unique_by=lambda c: c[0]
)


def _whole(credits):
    """The drawn shares scaled to 10,000, as a receipt's credits must be."""
    if not credits:
        return ()
    total = sum(bps for _, bps in credits)
    parts = [(n, bps * 10_000 // total) for n, bps in credits]
    left = 10_000 - sum(bps for _, bps in parts)
    return ((parts[0][0], parts[0][1] + left), *parts[1:])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**10), CREDITS), min_size=1, max_size=6))
def test_parts_sum_exactly_and_do_not_depend_on_the_order(answers) -> None:
    bundles = [bundle(fee, _whole(credits)) for fee, credits in answers]
    leaves = settled(new_state(), *bundles)
    assert sum(leaf.amount for leaf in leaves if leaf.kind) == sum(fee for fee, _ in answers)
    assert all(leaf.amount > 0 for leaf in leaves if leaf.kind)
    random.Random(1).shuffle(bundles)
    assert settled(new_state(), *bundles) == leaves


def test_answers_that_cost_nothing_leave_nothing() -> None:
    assert settled(new_state(), bundle(0, ()), bundle(0, ((1, 10_000),))) == []


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 10**12), st.integers(1, 9_999))
def test_splitting_one_contribution_over_two_never_pays_more_than_a_grain(fee, cut) -> None:
    whole = settled(new_state(), bundle(fee, ((1, 10_000),)))
    halves = settled(new_state(), bundle(fee, ((1, cut), (2, 10_000 - cut))))
    assert sum(amounts(halves, tables.KIND_DATA)) == sum(amounts(whole, tables.KIND_DATA))


def test_a_leaf_that_pays_too_much_or_too_little_is_refused() -> None:
    leaf = PayoutLeaf(2, number(1), 1, 1, 1, 3, 100, 33, 0)
    check_amount(leaf)
    check_amount(leaf._replace(amount=34))
    for wrong in ({"amount": 32}, {"amount": 35}, {"weight": 4}, {"weight": 0}):
        with pytest.raises(Invalid, match=r"payout\.amount"):
            check_amount(leaf._replace(**wrong))
