"""Models and versions: what a release costs, what fits together, how parts are flattened."""

import pytest
from chain_kit import BASE_HASH, CREATOR, FAUCET, OPEN, PRICES, STEWARD, TinyChain

from node.ledger import purses, tables
from node.ledger.wire.transactions import FundMaintenance, PublishVersion, RegisterModel

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
