"""Models and versions: what a release costs, what fits together, how parts are flattened."""

import pytest
from chain_kit import (
    BASE_HASH,
    CREATOR,
    FAUCET,
    OPEN,
    PRICES,
    STEWARD,
    TinyChain,
    devnet,
    golden_answer,
)

from consensus.primitives.errors import Invalid
from node.ledger import purses, tables
from node.ledger.genesis import Genesis, decode_genesis, encode_genesis
from node.ledger.rules import models
from node.ledger.wire.transactions import (
    FundMaintenance,
    PublishVersion,
    RegisterModel,
    RetireModel,
    SetPrice,
)

RELEASE = PublishVersion(1, b"\2" * 32, 1, b"\3" * 32, b"\4" * 32, b"", *PRICES, ())
REGISTER = RegisterModel(b"other", BASE_HASH, 7, 1, 1_000)


@pytest.fixture
def chain() -> TinyChain:
    made = TinyChain()
    made.tell_story()  # model 1, version 1
    return made


def code(chain: TinyChain, who, payload, **fields) -> int:
    return chain.block(chain.tx(who, payload), **fields).codes[0]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 0),
        ({"name": b"facts-1"}, 24),
        ({"name": b"x"}, 26),
        ({"probe": 0}, 0),
        ({"probe": 2}, 21),
        ({"licence": 0}, 26),
        ({"licence": 9}, 26),
        ({"royalty_bps": 5_000}, 0),
        ({"royalty_bps": 5_001}, 26),
    ],
)
def test_models_are_taken_or_refused_by_code(chain, change, expected) -> None:
    assert code(chain, FAUCET, REGISTER._replace(**change)) == expected


def test_registering_opens_the_fund_with_most_of_the_fee(chain) -> None:
    state = chain.state()
    assert state.held(purses.fund(1)) == 8 * OPEN
    assert state.held(purses.deposit("model", 1)) == OPEN // 10


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 0),
        ({"model": 9}, 21),
        ({"snapshot": 9}, 21),
        ({"snapshot": 0}, 26),
        ({"index_root": b""}, 26),
        ({"snapshot": 0, "index_root": b""}, 0),
        ({"adapter": b""}, 26),
        ({"adapter": b"", "snapshot": 0, "index_root": b""}, 0),
        ({"p_call": 999_999}, 26),
        ({"p_in": 10**15}, 0),
        ({"p_in": 10**15 + 1}, 26),
        ({"p_out": 10**15 + 1}, 26),
    ],
)
def test_releases_are_taken_or_refused_by_code(chain, change, expected) -> None:
    assert code(chain, CREATOR, RELEASE._replace(**change)) == expected


def test_only_the_creator_releases_and_not_when_retired(chain) -> None:
    assert code(chain, FAUCET, RELEASE) == 22
    state = chain.state()
    retired = state.get(tables.MODEL, 1)._replace(status=tables.MODEL_RETIRED)
    state.put(tables.MODEL, (1,), retired)
    chain.flat |= {key: value for key, value in state.changes() if value is not None}
    assert code(chain, CREATOR, RELEASE) == 23
    assert code(chain, FAUCET, FundMaintenance(1, 5)) == 23


def test_a_new_version_supersedes_and_frees_the_old_deposit_later(chain) -> None:
    assert code(chain, CREATOR, RELEASE) == 0
    state = chain.state()
    model = state.get(tables.MODEL, 1)
    assert (model.versions, model.current) == (2, 2)
    old = state.get(tables.VERSION, 1, 1)
    assert (old.status, old.superseded_ms) == (tables.VERSION_SUPERSEDED, chain.time_ms)
    assert state.get(tables.VERSION, 1, 2).status == tables.VERSION_CURRENT
    assert state.held(purses.deposit("version", 1, 1)) == OPEN // 100
    before = state.account(CREATOR.key).balance
    chain.block(later_ms=10 * 60_000)
    after = chain.state()
    assert after.held(purses.deposit("version", 1, 1)) == 0
    assert after.account(CREATOR.key).balance - before == OPEN // 100


def test_a_release_pays_stakers_for_holding_its_index(chain) -> None:
    treasury = chain.state().held(purses.pool(tables.TREASURY))
    undistributed = chain.state().totals().undistributed
    assert code(chain, CREATOR, RELEASE) == 0
    state = chain.state()
    assert state.held(purses.pool(tables.TREASURY)) - treasury == 3 * OPEN
    assert state.totals().undistributed - undistributed == 30 * 100_000 * 9 // 10


# ---- prices

DEARER = SetPrice(1, 1, 1, 2, 2_000_000)
MINUTE_MS = 60_000  # a devnet's notice; it sets prices again after two


def price(chain: TinyChain) -> tables.Price:
    return chain.state().get(tables.PRICE, 1, 1)


def test_new_prices_hold_after_their_notice(chain) -> None:
    assert code(chain, CREATOR, DEARER) == 0
    changed_ms = chain.time_ms + MINUTE_MS
    assert price(chain) == tables.Price(1, 2, 2_000_000, *PRICES, changed_ms)
    assert models.prices_at(price(chain), changed_ms - 1) == PRICES
    assert models.prices_at(price(chain), changed_ms) == (1, 2, 2_000_000)


def test_prices_are_set_once_per_interval(chain) -> None:
    """The first may come at once: publishing is no setting."""
    assert code(chain, CREATOR, DEARER) == 0
    assert code(chain, CREATOR, DEARER, later_ms=2 * MINUTE_MS - 1) == 27
    assert code(chain, CREATOR, DEARER._replace(p_in=7), later_ms=1) == 0
    assert price(chain)[:6] == (7, 2, 2_000_000, 1, 2, 2_000_000)


def test_prices_under_notice_are_not_replaced() -> None:
    """A vote may make the interval shorter than the notice: what is in force stays known."""
    chain = TinyChain(devnet_with(price_interval_ms=1_000))
    chain.tell_story()
    assert code(chain, CREATOR, DEARER) == 0
    assert code(chain, CREATOR, DEARER, later_ms=MINUTE_MS - 1) == 27
    assert code(chain, CREATOR, DEARER, later_ms=1) == 0


def devnet_with(**values: int) -> Genesis:
    genesis = devnet()
    parameters = tuple(
        (name, (values[name.decode()],) if name.decode() in values else held)
        for name, held in genesis.parameters
    )
    return decode_genesis(encode_genesis(genesis._replace(parameters=parameters)))


@pytest.mark.parametrize(
    ("who", "change", "expected"),
    [
        (CREATOR, {}, 0),
        (FAUCET, {}, 22),
        (CREATOR, {"model": 9}, 21),
        (CREATOR, {"version": 2}, 21),
        (CREATOR, {"version": 0}, 21),
        (CREATOR, {"p_call": 999_999}, 26),
        (CREATOR, {"p_call": 1_000_000}, 0),
        (CREATOR, {"p_in": 10**15}, 0),
        (CREATOR, {"p_in": 10**15 + 1}, 26),
        (CREATOR, {"p_out": 10**15 + 1}, 26),
    ],
)
def test_prices_are_taken_or_refused_by_code(chain, who, change, expected) -> None:
    assert code(chain, who, DEARER._replace(**change)) == expected


def test_prices_of_a_superseded_version_are_set_too(chain) -> None:
    assert code(chain, CREATOR, RELEASE) == 0
    assert code(chain, CREATOR, DEARER) == 0


@pytest.mark.parametrize(
    ("desc", "later_ms", "is_paid"),
    [("within the grace", MINUTE_MS - 1, True), ("after it", MINUTE_MS, False)],
)
def test_answers_at_the_old_price_settle_for_a_while(chain, desc, later_ms, is_paid) -> None:
    """Their orders were made before the cheaper price held."""
    session = chain.open_channel()
    assert code(chain, CREATOR, SetPrice(1, 1, 0, 0, 1_000_000)) == 0
    golden_answer(session, ())
    chain.block(later_ms=MINUTE_MS)
    bundle = chain.bundle(session)
    if is_paid:
        assert chain.execute(bundles=(bundle,), later_ms=later_ms).bundle_headers, desc
    else:
        with pytest.raises(Invalid, match=r"bundle\.price"):
            chain.execute(bundles=(bundle,), later_ms=later_ms)


# ---- the end of a model

NOTICE_MS = 10 * MINUTE_MS
END = RetireModel(1, 0)


def ended(chain: TinyChain, payload: RetireModel = END, who=CREATOR) -> TinyChain:
    assert code(chain, who, payload) == 0
    chain.block(later_ms=NOTICE_MS)
    return chain


def model(chain: TinyChain, number: int = 1) -> tables.Model:
    return chain.state().get(tables.MODEL, number)


def test_a_model_ends_when_its_notice_is_over(chain) -> None:
    assert code(chain, CREATOR, END) == 0
    end_ms = chain.time_ms + NOTICE_MS
    assert (model(chain).status, model(chain).retired_ms) == (tables.MODEL_RETIRING, end_ms)
    chain.block(later_ms=NOTICE_MS - 1)
    assert model(chain).status == tables.MODEL_RETIRING
    assert code(chain, FAUCET, FundMaintenance(1, 5), later_ms=0) == 0
    chain.block(later_ms=1)
    assert model(chain).status == tables.MODEL_RETIRED
    assert code(chain, FAUCET, FundMaintenance(1, 5)) == 23


@pytest.mark.parametrize("when", ["retiring", "retired"])
def test_what_ends_is_not_released_or_retired_again(chain, when) -> None:
    assert code(chain, CREATOR, END) == 0
    if when == "retired":
        chain.block(later_ms=NOTICE_MS)
    assert code(chain, CREATOR, RELEASE) == 23
    assert code(chain, CREATOR, END) == 23


@pytest.mark.parametrize(
    ("desc", "who", "payload", "expected"),
    [
        ("unknown", CREATOR, RetireModel(9, 0), 21),
        ("not its creator", FAUCET, END, 22),
        ("a successor that is not there", CREATOR, RetireModel(1, 9), 21),
        ("itself", CREATOR, RetireModel(1, 1), 23),
        ("a successor that names nobody", CREATOR, RetireModel(1, 2), 0),
    ],
)
def test_retirements_are_taken_or_refused_by_code(chain, desc, who, payload, expected) -> None:
    assert code(chain, FAUCET, REGISTER) == 0
    assert code(chain, who, payload) == expected, desc


def test_a_retired_model_succeeds_nobody(chain) -> None:
    assert code(chain, FAUCET, REGISTER) == 0
    ended(chain, RetireModel(2, 0), FAUCET)
    assert code(chain, CREATOR, RetireModel(1, 2)) == 23


def held(chain: TinyChain, number: int) -> int:
    return chain.state().held(purses.fund(number))


def commons(chain: TinyChain) -> int:
    return chain.state().held(purses.pool(tables.COMMONS))


def test_the_fund_goes_to_the_commons_and_never_to_the_creator(chain) -> None:
    fund, before = held(chain, 1), chain.state().account(CREATOR.key).balance
    assert fund == 8 * OPEN
    ended(chain)
    assert (held(chain, 1), commons(chain)) == (0, fund)
    assert chain.state().account(CREATOR.key).balance < before


def test_the_fund_goes_to_a_successor_that_names_the_model(chain) -> None:
    assert composite(chain, ((1, 1, 1_000),)) == 0
    both = held(chain, 1) + held(chain, 2)
    ended(chain, RetireModel(1, 2))
    assert (held(chain, 1), held(chain, 2), commons(chain)) == (0, both, 0)
    assert model(chain).successor == 2


def test_a_successor_must_still_name_the_model_at_its_end(chain) -> None:
    assert composite(chain, ((1, 1, 1_000),)) == 0
    fund = held(chain, 1)
    assert code(chain, CREATOR, RetireModel(1, 2)) == 0
    assert composite(chain, ()) == 0  # the next version goes its own way
    chain.block(later_ms=NOTICE_MS)
    assert (commons(chain), model(chain).successor) == (fund, 0)


def test_two_that_name_each_other_end_in_the_commons(chain) -> None:
    assert composite(chain, ((1, 1, 1_000),)) == 0
    assert code(chain, CREATOR, RELEASE._replace(parts=((2, 1, 1_000),))) == 0
    both = held(chain, 1) + held(chain, 2)
    assert chain.block(
        chain.tx(CREATOR, RetireModel(1, 2)), chain.tx(FAUCET, RetireModel(2, 1))
    ).codes == (0, 0)
    chain.block(later_ms=NOTICE_MS)
    assert (held(chain, 1), held(chain, 2), commons(chain)) == (0, 0, both)
    assert models.fund_of(chain.state(), 1) == purses.pool(tables.COMMONS)


def test_deposits_come_back_after_the_end(chain) -> None:
    ended(chain)
    state = chain.state()
    assert state.held(purses.deposit("model", 1)) == OPEN // 10
    assert state.get(tables.VERSION, 1, 1).status == tables.VERSION_SUPERSEDED
    before = state.account(CREATOR.key).balance
    chain.block(later_ms=10 * MINUTE_MS)  # both waits are ten minutes in a devnet
    after = chain.state()
    assert after.held(purses.deposit("model", 1)) == 0
    assert after.held(purses.deposit("version", 1, 1)) == 0
    assert after.account(CREATOR.key).balance == before + OPEN // 10 + OPEN // 100


def served_at(chain: TinyChain, session, started_ms: int):
    session.serve((), model=1, model_version=1, tokens_in=812, tokens_out=143, fee=27_309_200,
                  started_ms=started_ms)  # fmt: skip
    return chain.bundle(session)


def test_what_was_started_before_the_end_still_settles(chain) -> None:
    session = chain.open_channel()
    ended(chain)
    end_ms = model(chain).retired_ms
    bundle = served_at(chain, session, end_ms - 1)
    chain.block(bundles=(bundle,), later_ms=9 * MINUTE_MS)
    before = commons(chain)
    chain.block(later_ms=3 * MINUTE_MS)  # due payouts mature; the fund's part goes its way
    assert commons(chain) - before == 2_730_920 + 10_923_680  # nothing was attributed
    assert held(chain, 1) == 0


@pytest.mark.parametrize(
    ("desc", "started", "later_ms"),
    [("started at the end", 0, 1_000), ("settled too late", -1, 10 * MINUTE_MS)],
)
def test_what_was_started_later_or_comes_too_late_is_refused(
    chain, desc, started, later_ms
) -> None:
    session = chain.open_channel()
    ended(chain)
    bundle = served_at(chain, session, model(chain).retired_ms + started)
    with pytest.raises(Invalid, match=r"bundle\.price"):
        chain.execute(bundles=(bundle,), later_ms=later_ms)


def test_orders_are_taken_until_the_end(chain) -> None:
    assert not models.has_ended(chain.state(), (1, 1), 10**15)
    assert code(chain, CREATOR, END) == 0
    state, end_ms = chain.state(), model(chain).retired_ms
    assert not models.has_ended(state, (1, 1), end_ms - 1)
    assert models.has_ended(state, (1, 1), end_ms)


def test_gifts_go_to_the_fund(chain) -> None:
    assert code(chain, FAUCET, FundMaintenance(1, 5 * OPEN)) == 0
    fund = chain.state().get(tables.FUND, 1)
    assert (fund.balance, fund.inflow) == (13 * OPEN, (13 * OPEN,))
    assert code(chain, FAUCET, FundMaintenance(1, 0)) == 26
    assert code(chain, FAUCET, FundMaintenance(2, 5)) == 21


# ---- parts


def composite(chain: TinyChain, parts) -> int:
    if not chain.state().has(tables.MODEL_NAME, b"other"):
        assert code(chain, FAUCET, REGISTER) == 0
    return code(chain, FAUCET, RELEASE._replace(model=2, parts=parts))


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (((1, 1, 1_000),), 0),
        (((1, 1, 999),), 26),
        (((1, 1, 9_999),), 0),
        (((1, 1, 10_000),), 26),
        (((1, 2, 1_000),), 21),
        (((3, 1, 1_000),), 21),
        (((1, 1, 1_000), (1, 1, 1_000)), 26),
    ],
)
def test_parts_keep_to_royalty_and_own_share(chain, parts, expected) -> None:
    assert composite(chain, parts) == expected


def test_parts_of_parts_are_multiplied_in(chain) -> None:
    assert composite(chain, ((1, 1, 4_000),)) == 0
    assert code(chain, STEWARD, REGISTER._replace(name=b"third")) == 0
    third = RELEASE._replace(model=3, parts=((2, 1, 5_000),))
    assert code(chain, STEWARD, third) == 0
    assert chain.state().get(tables.VERSION, 3, 1).parts == ((1, 1, 2_000), (2, 1, 3_000))


def test_parts_have_one_base_and_are_servable(chain) -> None:
    assert code(chain, STEWARD, REGISTER._replace(name=b"alien", base=b"\1" * 32)) == 0
    alien = RELEASE._replace(model=2, parts=((1, 1, 1_000),))
    assert code(chain, STEWARD, alien) == 26
    assert code(chain, CREATOR, RELEASE) == 0
    assert code(chain, FAUCET, REGISTER._replace(name=b"third")) == 0
    superseded = RELEASE._replace(model=3, parts=((1, 1, 1_000),))
    assert code(chain, FAUCET, superseded, later_ms=500_000) == 0
    assert code(chain, FAUCET, superseded, later_ms=100_000) == 23
