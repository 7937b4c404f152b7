"""A small ledger with one provider, one model and its data, written straight into the state."""

from typing import Any

from bundle_kit import CHAIN, LaneSession, Party, party

from node.ledger import parameters, purses, tables
from node.ledger.context import Context
from node.ledger.state import EMPTY_BASE, State
from node.ledger.wire.bundles import BodyPart, CheckedBundle, build_bundle, verify
from node.ledger.wire.orders import channel_id
from node.ledger.wire.transactions import Transaction

NOW_MS = 1_700_000_000_000
OPEN = 10**9
BASE = b"\7" * 32
PAYER, PROVIDER, REWARD = party("payer"), party("provider"), party("reward")
CREATOR, STEWARD, VALIDATOR = party("creator"), party("steward"), party("validator")
CONTRIBUTORS = tuple(party(f"contributor {i}") for i in range(4))
PRICES = (20_000_000_000, 60_000_000_000, 1_000_000)
BALANCE = 1_000 * OPEN


def context(time_ms: int = NOW_MS, **fields: Any) -> Context:
    return Context(CHAIN, 2, time_ms, VALIDATOR.key, (VALIDATOR.key,), bytes(32))._replace(**fields)


def transaction(sender: Party, payload: Any, nonce: int = 0) -> Transaction:
    """A transaction as a handler gets it: envelope checks are done."""
    return Transaction(sender.key, nonce, 0, NOW_MS, payload, b"", b"", b"")


def new_state(**values: Any) -> State:
    """Parameters (defaults but for `values`), an active provider, a Datanet of four, a model."""
    state = State(EMPTY_BASE)
    for name, value in (parameters.DEFAULTS | values).items():
        numbers = value if isinstance(value, tuple) else (value,)
        state.put(tables.PARAMETER, (name.encode(),), tables.Parameter(numbers))
    for owner in (PAYER, PROVIDER, VALIDATOR, CREATOR):
        state.issue(purses.account(owner.key), BALANCE)
    add_provider(state, PROVIDER, REWARD)
    add_validator(state)
    terms = tables.Terms(bytes(32), (1,), 0, 1, 10**7, 0, parameters.DAY_MS, 0)
    datanet = tables.Datanet(
        STEWARD.key, b"facts", tuple(terms), b"", 0, tables.DATANET_OPEN, 0, 40, 0, 0, NOW_MS, 0
    )
    state.put(tables.DATANET, (1,), datanet)
    for number, owner in enumerate(CONTRIBUTORS, start=1):
        add_contribution(state, number, owner)
    state.put(tables.SNAPSHOT, (1,), tables.Snapshot(1, b"\3" * 32, 4, 40, 0, NOW_MS - 10))
    add_model(state, 1)
    return state


def add_provider(state: State, provider: Party, reward: Party) -> None:
    record = tables.Provider(bytes(32), reward.key, 0, tables.PROVIDER_ACTIVE, NOW_MS - 100, 0)
    state.put(tables.PROVIDER, (provider.key,), record)
    bond = state.parameter("provider_bond_min")
    state.issue(purses.bond(tables.ROLE_PROVIDER, provider.key, provider.key), bond)
    state.put(tables.STAKE, (tables.ROLE_PROVIDER, provider.key), tables.Stake(bond))


def add_validator(state: State) -> None:
    bond = state.parameter("validator_bond_min")
    state.issue(purses.bond(tables.ROLE_VALIDATOR, VALIDATOR.key, VALIDATOR.key), bond)
    state.put(tables.STAKE, (tables.ROLE_VALIDATOR, VALIDATOR.key), tables.Stake(bond))
    record = tables.Validator(tables.VALIDATOR_ACTIVE, 0, bond // OPEN, tables.PRIORITY_OFFSET)
    state.put(tables.VALIDATOR, (VALIDATOR.key,), record)
    state.put(tables.MEMBERS, (b"validators",), tables.Members(VALIDATOR.key, (VALIDATOR.key,)))


def add_contribution(state: State, number: int, owner: Party, **fields: Any) -> None:
    made = tables.Contribution(
        datanet=1, contributor=owner.key, kind=0, root=bytes(32), content_hash=bytes(32),
        records=10, size_bytes=100, licence=1, mends=0, mend_root=b"", stake=0,
        status=tables.ACCEPTED, made_ms=NOW_MS - 50, accepted_ms=NOW_MS - 40, withdrawn_ms=0,
        earned=0, opened=b"",
    )  # fmt: skip
    state.put(tables.CONTRIBUTION, (number,), made._replace(**fields))


def add_model(state: State, number: int, base: bytes = BASE, creator: Party = CREATOR) -> None:
    """A model with one current version 1, trained on snapshot 1."""
    name = b"model-" + str(number).encode()
    model = tables.Model(creator.key, name, base, 1, 0, 0, tables.MODEL_ACTIVE, 1, 1, 0, 0, 0)
    version = tables.Version(
        b"\5" * 32, 1, b"\6" * 32, bytes(32), b"", (), b"", 0, NOW_MS - 5, 0,
        tables.VERSION_CURRENT,
    )  # fmt: skip
    state.put(tables.MODEL, (number,), model)
    state.put(tables.VERSION, (number, 1), version)
    state.put(tables.PRICE, (number, 1), tables.Price(*PRICES, *PRICES, 0))
    state.put(tables.FUND, (number,), tables.Fund())


def fee_of(tokens_in: int, tokens_out: int) -> int:
    p_in, p_out, p_call = PRICES
    return -(-(tokens_in * p_in + tokens_out * p_out) // 10**6) + p_call


def open_channel(state: State, cap: int = 10 * OPEN, nonce: int = 0, **fields: Any) -> bytes:
    """A channel of PAYER to PROVIDER as the handler leaves it."""
    channel = channel_id(CHAIN, PAYER.key, PROVIDER.key, nonce)
    record = tables.Channel(
        PAYER.key, PROVIDER.key, PAYER.key, 0, 0, 0, tables.CHANNEL_OPEN, NOW_MS, 0
    )
    state.put(tables.CHANNEL, (channel,), record._replace(**fields))
    for name in (b"pair/" + PAYER.key + PROVIDER.key, b"served/" + PROVIDER.key):
        state.set_counter(name, state.counter(name) + 1)
    state.move(purses.account(PAYER.key), purses.channel(channel), cap)
    return channel


def session(channel: bytes, rng: Any, lane: int = 0) -> LaneSession:
    return LaneSession(channel, lane, PAYER, PROVIDER, rng)


def checked_bundle(
    state: State, parts: list[BodyPart], bundle_seq: int = 1, provider: Party = PROVIDER
) -> CheckedBundle:
    """The parts under the provider's signature, through A1 to A7."""
    bundle = build_bundle(
        chain_id=CHAIN, provider=provider.key, bundle_seq=bundle_seq, parts=parts,
        sign=provider.sign,
    )  # fmt: skip
    return verify(
        bundle, chain_id=CHAIN, min_receipt_fee=0,
        provider_key={PROVIDER.key: PROVIDER.key, provider.key: provider.key}.get,
        spender_key=lambda channel: PAYER.key,
    )  # fmt: skip


def supply_is_whole(state: State) -> bool:
    return sum(state.totals()) == state.supply()
