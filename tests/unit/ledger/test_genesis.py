"""Genesis: complete, exact to the grain, its hash is the chain."""

import pytest
from bundle_kit import party
from chain_kit import FAUCET, OPEN, START_MS, VALIDATORS, TinyChain, devnet

from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid
from node.ledger import genesis as g
from node.ledger import parameters, tables
from node.ledger.amounts import BPS, SUPPLY_GRAINS
from node.ledger.rules import staking
from node.ledger.state import State


def refusal_of(genesis: g.Genesis) -> str:
    with pytest.raises(Invalid) as refusal:
        g.decode_genesis(g.encode_genesis(genesis))
    return refusal.value.code


def state_of(genesis: g.Genesis) -> State:
    return TinyChain(genesis).state()


def test_it_comes_back_and_its_hash_is_the_chain_id() -> None:
    genesis = devnet()
    raw = g.encode_genesis(genesis)
    assert g.decode_genesis(raw) == genesis
    assert genesis.chain_id == sha256(raw)
    assert genesis.chain_id != devnet("whitepaper").chain_id


def test_height_0_holds_all_money_and_the_set() -> None:
    state = state_of(devnet())
    assert state.supply() == sum(state.totals()) == SUPPLY_GRAINS
    assert state.account(FAUCET.key).balance == 1_000_000 * OPEN
    validators = staking.validator_set(state)
    assert validators.powers() == {who.key: 20 for who in VALIDATORS}
    assert validators == g.start(devnet()).validators


def test_every_parameter_is_in_the_state() -> None:
    state = state_of(devnet("whitepaper"))
    assert len(state.scan(tables.PARAMETER)) == len(parameters.DEFAULTS)
    assert state.parameter_values("split_bps") == (1_000, 5_000, 1_000, 2_000, 800, 200, 0)
    assert state.parameter("challenge_window_ms") == 60_000
    assert state.parameter("provider_bond_min") == OPEN
    assert state.parameter("platform_fee") == parameters.DEFAULTS["platform_fee"]


@pytest.mark.parametrize("split", parameters.SPLITS)
def test_splits_sum_to_the_whole(split) -> None:
    assert sum(parameters.SPLITS[split]) == BPS


def test_pools_vesting_datanets_and_models_are_counted() -> None:
    genesis = devnet()
    ana = party("ana").key
    terms = tables.Terms(bytes(32), (1,), 0, 1, 10**5, 500, 600_000, 0)
    (pool,) = genesis.pools
    richer = genesis._replace(
        pools=(
            g.GenesisPool(tables.TREASURY, 10, 0),
            pool._replace(locked=pool.locked - 100),
        ),
        vesting=(g.GenesisVesting(ana, 0, 40, START_MS, 12, 36),),
        datanets=(g.GenesisDatanet(ana, b"facts", tuple(terms), 20, 5),),
        models=(g.GenesisModel(ana, b"facts-1", bytes(32), 1, 1, 0, 20, 5),),
    )
    assert g.decode_genesis(g.encode_genesis(richer)) == richer
    state = state_of(richer)
    totals = state.totals()
    assert (totals.vesting, totals.datanets, totals.funds, totals.deposits) == (40, 20, 20, 10)
    assert sum(totals) == SUPPLY_GRAINS
    assert state.get(tables.MODEL_NAME, b"facts-1").number == 1


def swapped(pairs):
    return (pairs[1], pairs[0], *pairs[2:])


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda o: {"version": 2}, "genesis.version"),
        (lambda o: {"app_version": 2}, "genesis.app_version"),
        (lambda o: {"accounts": swapped(o.accounts)}, "genesis.order"),
        (lambda o: {"validators": swapped(o.validators)}, "genesis.order"),
        (lambda o: {"parameters": swapped(o.parameters)}, "genesis.order"),
        (lambda o: {"parameters": o.parameters[1:]}, "genesis.parameter_missing"),
        (lambda o: {"parameters": (*o.parameters, (b"zzz", (1,)))}, "parameter.unknown"),
        (lambda o: {"pools": (o.pools[0]._replace(number=6),)}, "genesis.pool"),
        (lambda o: {"pools": (o.pools[0]._replace(balance=1),)}, "genesis.supply"),
        (lambda o: {"pools": (o.pools[0]._replace(locked=o.pools[0].locked - 1),)},
         "genesis.supply"),
        (lambda o: {"accounts": ((bytes(32), 1), *o.accounts)}, "genesis.key"),
        (lambda o: {"validators": ((o.validators[0][0], 10**10 - 1), *o.validators[1:])},
         "genesis.bond"),
        (lambda o: {"validators": ()}, "genesis.malformed"),
        (lambda o: {"models": (g.GenesisModel(bytes(32), b"BAD", bytes(32), 1, 0, 0, 0, 0),)},
         "genesis.name"),
    ],
)  # fmt: skip
def test_each_fault_is_refused_by_its_word(change, code) -> None:
    genesis = devnet()
    assert refusal_of(genesis._replace(**change(genesis))) == code


@pytest.mark.parametrize(
    ("name", "values", "code"),
    [
        ("split_bps", (1, 2), "parameter.arity"),
        ("split_bps", (2_000, 4_000, 1_500, 1_000, 1_000, 500, 1), "parameter.split"),
        ("operator_bps", (10_001,), "parameter.bps"),
        ("no_such", (1,), "parameter.unknown"),
    ],
)
def test_parameters_out_of_bounds_are_refused(name, values, code) -> None:
    with pytest.raises(Invalid) as refusal:
        parameters.check_parameter(name, values)
    assert refusal.value.code == code
    parameters.check_parameter("operator_bps", (10_000,))


def test_a_damaged_file_is_refused_and_not_believed() -> None:
    raw = g.encode_genesis(devnet())
    for place in range(0, len(raw), 37):
        damaged = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
        try:
            other = g.decode_genesis(damaged)
        except Invalid:
            continue
        assert other.chain_id != devnet().chain_id
