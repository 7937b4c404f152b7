"""Where grains can be: each purse is a field of a record, and a line of the totals.

Why: money moves only by `State.move` from one purse to another, so a rule can neither make nor
lose a grain, and the sum of the totals is the supply after every block.
What this file does not know: who may move what.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from node.ledger import tables
from node.ledger.tables import KeyPart, Table


class PurseKind(NamedTuple):
    """`held` reads the grains of a record; `changed` gives the record with more or fewer."""

    name: str
    table: Table[Any]
    total: str | None  # the field of Totals; None: burnt
    held: Callable[[Any], int]
    changed: Callable[[Any, int], Any]
    empty: Any = None  # the record to begin with; None: the record must exist


class Purse(NamedTuple):
    """One place that holds grains: a kind and the key of its record."""

    kind: PurseKind
    key: tuple[KeyPart, ...]


def _field(
    name: str, table: Table[Any], total: str, field: str, empty: Any = None
) -> PurseKind:  # a purse that is one field of its record
    return PurseKind(
        name=name,
        table=table,
        total=total,
        held=lambda record: int(getattr(record, field)),
        changed=lambda record, by: record._replace(**{field: getattr(record, field) + by}),
        empty=empty,
    )


def _held_by_channel(channel: tables.Channel) -> int:
    return channel.cap - channel.paid


def _change_channel(channel: tables.Channel, by: int) -> tables.Channel:
    if by >= 0:
        return channel._replace(cap=channel.cap + by)
    return channel._replace(paid=channel.paid - by)


def _change_rest(channel: tables.Channel, by: int) -> tables.Channel:
    return channel._replace(cap=channel.cap + by)


def _change_fund(fund: tables.Fund, by: int) -> tables.Fund:
    # The running week is the last of each list; the weekly tick (upkeep) opens the next.
    inflow, outflow = fund.inflow or (0,), fund.outflow or (0,)
    if by >= 0:
        inflow = (*inflow[:-1], inflow[-1] + by)
    else:
        outflow = (*outflow[:-1], outflow[-1] - by)
    return fund._replace(balance=fund.balance + by, inflow=inflow, outflow=outflow)


_ACCOUNT = _field("account", tables.ACCOUNT, "accounts", "balance", tables.Account())
_CHANNEL = PurseKind("channel", tables.CHANNEL, "channels", _held_by_channel, _change_channel)
_REST = PurseKind("rest", tables.CHANNEL, "channels", _held_by_channel, _change_rest)
_BOND = _field("bond", tables.BOND, "bonds", "amount", tables.Bond(0, 0, 0))
_UNBONDING = _field("unbonding", tables.UNBONDING, "unbonding", "amount")
_MATURING = _field("maturing", tables.MATURING, "maturing", "amount", tables.Maturing())
_FUND = PurseKind(
    "fund", tables.FUND, "funds", lambda fund: int(fund.balance), _change_fund, tables.Fund()
)
_POOL = _field("pool", tables.POOL, "pools", "balance", tables.Pool())
_LOCKED = _field("locked", tables.POOL, "pools", "locked", tables.Pool())
_DATANET = _field("datanet", tables.DATANET, "datanets", "pool")
_STAKE = _field("stake", tables.STAKE, "undistributed", "undistributed", tables.Stake())
_SETTLING = _field("settling", tables.COUNTER, "settling", "value", tables.Counter())
_VESTING = PurseKind(
    "vesting",
    tables.VESTING,
    "vesting",
    lambda row: int(row.total - row.claimed),
    lambda row, by: (
        row._replace(total=row.total + by) if by >= 0 else row._replace(claimed=row.claimed - by)
    ),
)
_DEPOSITS: Final = {
    "provider": _field("provider deposit", tables.PROVIDER, "deposits", "deposit"),
    "datanet": _field("datanet deposit", tables.DATANET, "deposits", "deposit"),
    "model": _field("model deposit", tables.MODEL, "deposits", "deposit"),
    "version": _field("version deposit", tables.VERSION, "deposits", "deposit"),
    "contribution": _field("contribution stake", tables.CONTRIBUTION, "deposits", "stake"),
}

BURN: Final = Purse(
    PurseKind("burn", tables.COUNTER, None, lambda _: 0, lambda record, _: record), ()
)
SETTLING: Final = Purse(_SETTLING, (b"settling",))


def account(key: bytes) -> Purse:
    """The free balance of an account."""
    return Purse(_ACCOUNT, (key,))


def channel(channel_id: bytes) -> Purse:
    """Into it raises the cap; out of it is paid to the provider's side."""
    return Purse(_CHANNEL, (channel_id,))


def channel_rest(channel_id: bytes) -> Purse:
    """Out of it lowers the cap: what was never paid goes back to the payer."""
    return Purse(_REST, (channel_id,))


def bond(role: int, target: bytes, owner: bytes) -> Purse:
    """One owner's bond; the stake's `bonded` is the caller's to change."""
    return Purse(_BOND, (role, target, owner))


def unbonding(number: int) -> Purse:
    """A bond on its way out; its record must exist."""
    return Purse(_UNBONDING, (number,))


def maturing(bucket_ms: int, kind: int, payee: bytes) -> Purse:
    """What waits for the challenge window; the record is gone when it holds nothing."""
    return Purse(_MATURING, (bucket_ms, kind, payee))


def fund(model: int) -> Purse:
    """The maintenance fund of a model; it counts what comes in and goes out."""
    return Purse(_FUND, (model,))


def pool(number: int) -> Purse:
    """The spendable part of a pool (`tables.TREASURY` …)."""
    return Purse(_POOL, (number,))


def locked(number: int) -> Purse:
    """The locked part of a pool."""
    return Purse(_LOCKED, (number,))


def vesting(key: bytes, index: int) -> Purse:
    """What is not claimed of a vesting row; into it raises the total."""
    return Purse(_VESTING, (key, index))


def datanet_pool(number: int) -> Purse:
    """What a Datanet pays its curators from."""
    return Purse(_DATANET, (number,))


def stake(role: int, target: bytes) -> Purse:
    """Rewards of a target that its bonds have not collected."""
    return Purse(_STAKE, (role, target))


def deposit(of: str, *key: KeyPart) -> Purse:
    """Deposit of a `provider`, `datanet`, `model`, `version`; stake of a `contribution`."""
    return Purse(_DEPOSITS[of], key)
