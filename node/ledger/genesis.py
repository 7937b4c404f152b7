"""The beginning of a chain: all money, all parameters, the first validators, in one file.

Why its hash is the chain id: whoever trusts 32 bytes knows every rule and every balance that the
chain began with, and nothing signed for one chain is valid on another.
Canonical `[version, name, time_ms, app_version, parameters, pools, accounts, vesting, validators,
datanets, models]`; its amounts sum to 10^18. It names every parameter: none is hidden in software.
What this file does not know: files, and how a devnet chooses its keys.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

from consensus.primitives import merkle
from consensus.primitives.digest import sha256
from consensus.primitives.encoding import (
    U8,
    U16,
    U32,
    U63,
    Bytes,
    H,
    ListOf,
    Record,
    decode,
    encode,
)
from consensus.primitives.errors import Invalid
from consensus.primitives.keys import is_valid_point
from consensus.validators import ValidatorSet
from node.ledger import purses, tables, tree
from node.ledger.amounts import SUPPLY_GRAINS
from node.ledger.parameters import DEFAULTS, SPLITS, check_parameter, devnet_parameters
from node.ledger.rules import staking
from node.ledger.rules.accounts import BASE_PRICE_NAME
from node.ledger.state import EMPTY_BASE, State
from node.ledger.wire.transactions import check_name

VERSION: Final = 1
APP_VERSION: Final = 1
GENESIS_BYTES_MAX: Final = 16 << 20
ROWS_MAX: Final = 65_536
VALIDATORS_MAX: Final = 100


class GenesisPool(NamedTuple):
    """A pool's free and locked grains."""

    number: int
    balance: int
    locked: int


class GenesisVesting(NamedTuple):
    """A row that is claimed month by month."""

    account: bytes
    index: int  # type: ignore[assignment]  # hides tuple.index
    total: int
    start_ms: int
    cliff_months: int
    tranches: int


class GenesisDatanet(NamedTuple):
    """A Datanet that is there from the start; its deposit comes out of the genesis."""

    steward: bytes
    name: bytes
    terms: tuple[Any, ...]
    pool: int
    deposit: int


class GenesisModel(NamedTuple):
    """A model line, without versions, that is there from the start."""

    creator: bytes
    name: bytes
    base: bytes
    licence: int
    probe: int
    royalty_bps: int
    fund: int
    deposit: int


class Genesis(NamedTuple):
    """All of it. `parameters`: (name, values) sorted by name; accounts and validators:
    (key, grains) sorted by key, a validator's grains being its own bond."""

    version: int
    name: bytes
    time_ms: int
    app_version: int
    parameters: tuple[tuple[bytes, tuple[int, ...]], ...]
    pools: tuple[GenesisPool, ...]
    accounts: tuple[tuple[bytes, int], ...]
    vesting: tuple[GenesisVesting, ...]
    validators: tuple[tuple[bytes, int], ...]
    datanets: tuple[GenesisDatanet, ...]
    models: tuple[GenesisModel, ...]

    @property
    def chain_id(self) -> bytes:
        """SHA-256 of the canonical bytes."""
        return sha256(encode_genesis(self))


class Start(NamedTuple):
    """The state of height 0: what to write, and what the first header builds on."""

    changes: list[tuple[bytes, bytes | None]]
    tree: tree.Update
    validators: ValidatorSet
    params_hash: bytes


_NAME: Final = Bytes(64, 1)
_SHAPE: Final = Record(
    U8,
    _NAME,
    U63,
    U32,
    ListOf(Record(_NAME, ListOf(U63, 16, 1)), 256),
    ListOf(Record(U8, U63, U63), 16),
    ListOf(Record(H, U63), ROWS_MAX),
    ListOf(Record(H, U16, U63, U63, U16, U16), ROWS_MAX),
    ListOf(Record(H, U63), VALIDATORS_MAX, 1),
    ListOf(Record(H, tables.NAME, tables.TERMS_SHAPE, U63, U63), ROWS_MAX),
    ListOf(Record(H, tables.NAME, H, U8, U63, U16, U63, U63), ROWS_MAX),
)


def encode_genesis(genesis: Genesis) -> bytes:
    """Canonical bytes: the genesis file."""
    return encode(genesis)


def decode_genesis(raw: bytes) -> Genesis:
    """The genesis in `raw`, all its rules checked; raises `Invalid` `genesis.…`."""
    fields = list(decode(raw, _SHAPE, GENESIS_BYTES_MAX, "genesis"))
    fields[5] = tuple(GenesisPool(*row) for row in fields[5])
    fields[7] = tuple(GenesisVesting(*row) for row in fields[7])
    fields[9] = tuple(GenesisDatanet(*row) for row in fields[9])
    fields[10] = tuple(GenesisModel(*row) for row in fields[10])
    genesis = Genesis(*fields)
    check_genesis(genesis)
    return genesis


def check_genesis(genesis: Genesis) -> None:
    """Raise `Invalid` `genesis.…` unless it can begin a chain."""
    if genesis.version != VERSION:
        raise Invalid("genesis.version", version=genesis.version)
    if genesis.app_version != APP_VERSION:
        raise Invalid("genesis.app_version", app_version=genesis.app_version)
    _check_parameters(genesis)
    _check_sorted("pools", [row.number.to_bytes(1, "big") for row in genesis.pools])
    _check_sorted("accounts", [key for key, _ in genesis.accounts])
    _check_sorted("vesting", [r.account + r.index.to_bytes(2, "big") for r in genesis.vesting])
    _check_sorted("validators", [key for key, _ in genesis.validators])
    if any(row.number not in range(1, 6) for row in genesis.pools):
        raise Invalid("genesis.pool")
    keys = [key for key, _ in genesis.accounts + genesis.validators]
    keys += [row.account for row in genesis.vesting]
    for key in keys:
        if not is_valid_point(key):
            raise Invalid("genesis.key", key=key)
    least = dict(genesis.parameters)[b"validator_bond_min"][0]
    for key, bond in genesis.validators:
        if bond < max(least, staking.GRAINS_PER_POWER):
            raise Invalid("genesis.bond", validator=key, bond=bond, least=least)
    _check_names("datanets", [row.name for row in genesis.datanets])
    _check_names("models", [row.name for row in genesis.models])
    total = sum(amounts(genesis))
    if total != SUPPLY_GRAINS:
        raise Invalid("genesis.supply", total=total, expected=SUPPLY_GRAINS)


def amounts(genesis: Genesis) -> list[int]:
    """Every amount that the genesis makes."""
    found = [grains for _, grains in genesis.accounts + genesis.validators]
    found += [row.balance + row.locked for row in genesis.pools]
    found += [row.total for row in genesis.vesting]
    found += [row.pool + row.deposit for row in genesis.datanets]
    found += [row.fund + row.deposit for row in genesis.models]
    return found


def _check_parameters(genesis: Genesis) -> None:
    _check_sorted("parameters", [name for name, _ in genesis.parameters])
    names = {name for name, _ in genesis.parameters}
    for name in DEFAULTS:
        if name.encode() not in names:
            raise Invalid("genesis.parameter_missing", name=name)
    for raw, values in genesis.parameters:
        check_parameter(raw.decode("ascii", "replace"), values)


def _check_sorted(where: str, keys: Sequence[bytes]) -> None:
    if any(here >= after for here, after in pairwise(keys)):
        raise Invalid("genesis.order", where=where)


def _check_names(where: str, names: Sequence[bytes]) -> None:
    for name in names:
        check_name(name, "genesis.name")
    if len(set(names)) != len(names):
        raise Invalid("genesis.name", where=where, why="twice")


# ---- making one


def make_genesis(
    *,
    name: str,
    time_ms: int,
    accounts: Mapping[bytes, int],
    validators: Mapping[bytes, int],
    parameters: Mapping[str, int | tuple[int, ...]] | None = None,
    split: str = "default",
) -> Genesis:
    """A checked genesis: the grains not named go, locked, to the community pool.

    `parameters`: values that differ from the defaults. Raises `Invalid` `genesis.…`.
    """
    values = {**DEFAULTS, "split_bps": SPLITS[split], **(parameters or {})}
    named = sum(accounts.values()) + sum(validators.values())
    genesis = Genesis(
        version=VERSION,
        name=name.encode(),
        time_ms=time_ms,
        app_version=APP_VERSION,
        parameters=tuple(
            (key.encode(), value if isinstance(value, tuple) else (value,))
            for key, value in sorted(values.items())
        ),
        pools=(GenesisPool(tables.COMMUNITY, 0, max(0, SUPPLY_GRAINS - named)),),
        accounts=tuple(sorted(accounts.items())),
        vesting=(),
        validators=tuple(sorted(validators.items())),
        datanets=(),
        models=(),
    )
    check_genesis(genesis)
    return genesis


def devnet_genesis(
    *,
    name: str,
    time_ms: int,
    accounts: Mapping[bytes, int],
    validators: Mapping[bytes, int],
    split: str = "default",
) -> Genesis:
    """The same with a devnet's bonds, deposits and windows."""
    parameters = {k: v for k, v in devnet_parameters().items() if k != "split_bps"}
    return make_genesis(
        name=name,
        time_ms=time_ms,
        accounts=accounts,
        validators=validators,
        parameters=parameters,
        split=split,
    )


# ---- the state of height 0


def start(genesis: Genesis) -> Start:
    """The state that a checked genesis begins with."""
    state = State(EMPTY_BASE)
    for raw, values in genesis.parameters:
        state.put(tables.PARAMETER, (raw,), tables.Parameter(values))
    state.set_counter(BASE_PRICE_NAME, state.parameter("min_base_price"))
    for key, grains in genesis.accounts:
        state.issue(purses.account(key), grains)
    for pool in genesis.pools:
        state.issue(purses.pool(pool.number), pool.balance)
        state.issue(purses.locked(pool.number), pool.locked)
    for row in genesis.vesting:
        _put_vesting(state, row)
    _put_validators(state, genesis)
    for datanet in genesis.datanets:
        _put_datanet(state, datanet, genesis.time_ms)
    for model in genesis.models:
        _put_model(state, model)
    assert state.supply() == SUPPLY_GRAINS == sum(state.totals())
    validators = staking.validator_set(state)
    changes = state.changes()
    done = tree.update(EMPTY_BASE.read_node, tree.EMPTY_RECORD, 0, changes)
    return Start(changes, done, validators, params_hash(state))


def params_hash(state: State) -> bytes:
    """RFC 6962 root over `[name, values]` of all parameters, sorted by name."""
    return merkle.root(_parameter_leaves(state))


def _parameter_leaves(state: State) -> Iterable[bytes]:
    for (name,), record in state.scan(tables.PARAMETER):
        yield encode((name, record.values))


def _put_vesting(state: State, row: GenesisVesting) -> None:
    record = tables.Vesting(0, 0, row.start_ms, row.cliff_months, row.tranches)
    state.put(tables.VESTING, (row.account, row.index), record)
    state.issue(purses.vesting(row.account, row.index), row.total)


def _put_validators(state: State, genesis: Genesis) -> None:
    for key, bond in genesis.validators:
        source = purses.account(key)
        state.issue(source, bond)
        staking.add_bond(state, source, tables.ROLE_VALIDATOR, key, key, bond, genesis.time_ms)
        state.set_counter(staking.owners_name(tables.ROLE_VALIDATOR, key), 1)
    powers = {key: bond // staking.GRAINS_PER_POWER for key, bond in genesis.validators}
    staking.put_validator_set(state, ValidatorSet.found(powers))


def _put_datanet(state: State, row: GenesisDatanet, time_ms: int) -> None:
    number = state.next_number(b"datanets")
    record = tables.Datanet(
        row.steward, row.name, row.terms, b"", 0, tables.DATANET_OPEN, 0, 0, 0, 0, time_ms, 0
    )
    state.put(tables.DATANET, (number,), record)
    state.put(tables.DATANET_NAME, (row.name,), tables.Number(number))
    state.issue(purses.datanet_pool(number), row.pool)
    state.issue(purses.deposit("datanet", number), row.deposit)


def _put_model(state: State, row: GenesisModel) -> None:
    number = state.next_number(b"models")
    record = tables.Model(
        creator=row.creator,
        name=row.name,
        base=row.base,
        licence=row.licence,
        probe=row.probe,
        royalty_bps=row.royalty_bps,
        status=tables.MODEL_ACTIVE,
        versions=0,
        current=0,
        successor=0,
        deposit=0,
        retired_ms=0,
    )
    state.put(tables.MODEL, (number,), record)
    state.put(tables.MODEL_NAME, (row.name,), tables.Number(number))
    state.issue(purses.fund(number), row.fund)
    state.issue(purses.deposit("model", number), row.deposit)
