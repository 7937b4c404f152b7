"""Models and their versions: who made them, what they cost, what they were trained on, their end.

Why a version is immutable: a receipt names one, and adapter, index and snapshot behind that number
must be the same for ever. Why parts are flattened when published: nothing is recursive at payment.
Why prices and ends have a notice: orders under way were made at what stood here before.
What this file does not know: weights, indices, training; the ledger keeps their hashes.
"""

from typing import Final

from consensus.primitives.encoding import INT_MAX
from consensus.primitives.errors import Invalid
from node.ledger import purses, tables
from node.ledger.amounts import BPS, checked, part_bps, split
from node.ledger.context import Context
from node.ledger.purses import Purse
from node.ledger.rules.lasting import snapshot_lasts_ms, version_lasts_ms
from node.ledger.rules.registry import LICENCES
from node.ledger.rules.staking import pay_stakers
from node.ledger.state import State
from node.ledger.wire.transactions import (
    FundMaintenance,
    PublishVersion,
    RegisterModel,
    RetireModel,
    SetPrice,
    Transaction,
    check_name,
)

MODELS_NAME: Final = b"models"
TOKEN_PRICE_MAX: Final = 10**15
PARTS_STORED_MAX: Final = 8
OWN: Final = (0, 0)  # a version's own share among its parts

Which = tuple[int, int]  # model, version


def apply_register_model(
    state: State, context: Context, tx: Transaction, payload: RegisterModel
) -> None:
    """Type 40: a named line of adapters; its fund is opened with most of the fee."""
    check_name(payload.name, "tx.bad_value")
    if state.has(tables.MODEL_NAME, payload.name):
        raise Invalid("tx.exists", name=payload.name)
    if payload.probe and not state.has(tables.DATANET, payload.probe):
        raise Invalid("tx.not_found", datanet=payload.probe)
    if payload.licence not in LICENCES:
        raise Invalid("tx.bad_value", why="licence", licence=payload.licence)
    if payload.royalty_bps > state.parameter("royalty_bps_max"):
        raise Invalid("tx.bad_value", why="royalty", royalty_bps=payload.royalty_bps)
    number = state.next_number(MODELS_NAME)
    record = tables.Model(
        creator=tx.sender,
        name=payload.name,
        base=payload.base,
        licence=payload.licence,
        probe=payload.probe,
        royalty_bps=payload.royalty_bps,
        status=tables.MODEL_ACTIVE,
        versions=0,
        current=0,
        successor=0,
        deposit=0,
        retired_ms=0,
    )
    state.put(tables.MODEL, (number,), record)
    state.put(tables.MODEL_NAME, (payload.name,), tables.Number(number))
    sender = purses.account(tx.sender)
    state.move(sender, purses.deposit("model", number), state.parameter("model_deposit"))
    fee = state.parameter("model_fee")
    own = part_bps(fee, state.parameter("model_fee_fund_bps"))
    state.move(sender, purses.fund(number), own)
    state.move(sender, purses.pool(tables.TREASURY), fee - own)


def apply_publish(state: State, context: Context, tx: Transaction, payload: PublishVersion) -> None:
    """Type 41: the next version becomes current, the one before superseded."""
    model = state.find(tables.MODEL, payload.model)
    if model is None:
        raise Invalid("tx.not_found", model=payload.model)
    if model.creator != tx.sender:
        raise Invalid("tx.not_yours", model=payload.model)
    if model.status not in (tables.MODEL_ACTIVE, tables.MODEL_DORMANT):
        raise Invalid("tx.wrong_state", status=model.status)
    records = _check_release(state, payload, context.time_ms)
    parts = flattened_parts(state, context, model.base, payload.parts)
    number = model.versions + 1
    _supersede(state, payload.model, model.current, context.time_ms)
    version = tables.Version(
        adapter=payload.adapter,
        snapshot=payload.snapshot,
        index_root=payload.index_root,
        manifest=payload.manifest,
        probe=payload.probe,
        parts=parts,
        trainer=b"",
        deposit=0,
        published_ms=context.time_ms,
        superseded_ms=0,
        status=tables.VERSION_CURRENT,
    )
    state.put(tables.VERSION, (payload.model, number), version)
    prices = (payload.p_in, payload.p_out, payload.p_call)
    state.put(
        tables.PRICE, (payload.model, number), tables.Price(*prices, *prices, context.time_ms)
    )
    released = model._replace(versions=number, current=number)
    state.put(tables.MODEL, (payload.model,), released)
    _pay_for_release(state, tx.sender, payload.model, number, records)


def _check_release(state: State, payload: PublishVersion, now_ms: int) -> int:
    """Raise unless hashes and prices fit together; returns the records of the snapshot."""
    if bool(payload.snapshot) != bool(payload.index_root):
        raise Invalid("tx.bad_value", why="an index needs a snapshot, and the reverse")
    if payload.snapshot and not payload.adapter:
        raise Invalid("tx.bad_value", why="a base alone has no index")
    _check_prices(state, payload)
    if not payload.snapshot:
        return 0
    snapshot = state.find(tables.SNAPSHOT, payload.snapshot)
    if snapshot is None:
        raise Invalid("tx.not_found", snapshot=payload.snapshot)
    if now_ms >= snapshot_lasts_ms(state, payload.snapshot):
        raise Invalid("tx.wrong_state", why="data withdrawn", snapshot=payload.snapshot)
    return snapshot.records


def _check_prices(state: State, payload: PublishVersion | SetPrice) -> None:
    if payload.p_call < state.parameter("platform_fee"):
        raise Invalid("tx.bad_value", why="p_call", p_call=payload.p_call)
    if max(payload.p_in, payload.p_out, payload.p_call) > TOKEN_PRICE_MAX:
        raise Invalid("tx.bad_value", why="price")


def _pay_for_release(state: State, creator: bytes, model: int, number: int, records: int) -> None:
    """Deposit; a fee for the row audit, which the treasury pays; and to stakers, who hold it."""
    sender = purses.account(creator)
    deposit = state.parameter("version_deposit")
    state.move(sender, purses.deposit("version", model, number), deposit)
    state.move(sender, purses.pool(tables.TREASURY), state.parameter("version_fee"))
    pay_stakers(state, sender, checked(state.parameter("version_record_fee") * records))


def _supersede(state: State, model: int, number: int, now_ms: int) -> None:
    version = state.find(tables.VERSION, model, number) if number else None
    if version is None:
        return
    old = version._replace(status=tables.VERSION_SUPERSEDED, superseded_ms=now_ms)
    state.put(tables.VERSION, (model, number), old)
    due_ms = now_ms + state.parameter("version_deposit_ms")
    reference = model.to_bytes(8, "big") + number.to_bytes(4, "big")
    state.add_due(due_ms, tables.DUE_VERSION_DEPOSIT, reference)


def apply_version_deposit(state: State, context: Context, due_ms: int, reference: bytes) -> None:
    """Due: nobody has shown an index fraud; the creator gets the version's deposit back."""
    model = int.from_bytes(reference[:8], "big")
    number = int.from_bytes(reference[8:], "big")
    deposit = purses.deposit("version", model, number)
    creator = state.get(tables.MODEL, model).creator
    state.move(deposit, purses.account(creator), state.held(deposit))


# ---- an index that no honest builder makes


def suspend_index(state: State, which: Which, now_ms: int) -> None:
    """From this block on nobody is credited by a version's index: its data part is the fund's."""
    state.set_counter(_suspended_name(which), now_ms)


def suspended_ms(state: State, which: Which) -> int:
    """Since when nobody is credited by it; INT_MAX while all is well."""
    return state.counter(_suspended_name(which)) or INT_MAX


def is_suspended(state: State, which: Which) -> bool:
    """Whether its index was shown to be false."""
    return suspended_ms(state, which) != INT_MAX


def _suspended_name(which: Which) -> bytes:
    model, version = which
    return b"suspended/" + model.to_bytes(8, "big") + version.to_bytes(4, "big")


# ---- prices


def apply_set_price(state: State, context: Context, tx: Transaction, payload: SetPrice) -> None:
    """Type 42: other prices after a notice, once per `price_interval_ms`.

    Raises Invalid: 21 no such version, 22 not the creator, 26 prices out of bounds, 27 too early.
    """
    now_ms, which = context.time_ms, (payload.model, payload.version)
    model = state.find(tables.MODEL, payload.model)
    price = state.find(tables.PRICE, *which)
    if model is None or price is None:
        raise Invalid("tx.not_found", model=payload.model, version=payload.version)
    if model.creator != tx.sender:
        raise Invalid("tx.not_yours", model=payload.model)
    _check_prices(state, payload)
    notice_ms = state.parameter("price_notice_ms")
    was_set = price.changed_ms > state.get(tables.VERSION, *which).published_ms
    again_ms = price.changed_ms - notice_ms + state.parameter("price_interval_ms")
    if was_set and now_ms < max(again_ms, price.changed_ms):
        raise Invalid("tx.too_early_or_late", again_ms=again_ms)
    prices = (payload.p_in, payload.p_out, payload.p_call)
    changed = tables.Price(*prices, *prices_at(price, now_ms), checked(now_ms + notice_ms))
    state.put(tables.PRICE, which, changed)


def prices_at(price: tables.Price, now_ms: int) -> tuple[int, int, int]:
    """p_in, p_out, p_call in force at a time."""
    return price[3:6] if now_ms < price.changed_ms else price[:3]


# ---- the end of a model


def apply_retire(state: State, context: Context, tx: Transaction, payload: RetireModel) -> None:
    """Type 43: the model ends after a notice, and goes on as before until then.

    Raises Invalid: 21 no such model or successor, 22 not the creator, 23 retiring or retired
    already, or a successor that is, or itself.
    """
    number = payload.model
    model = state.find(tables.MODEL, number)
    if model is None:
        raise Invalid("tx.not_found", model=number)
    if model.creator != tx.sender:
        raise Invalid("tx.not_yours", model=number)
    if model.status not in (tables.MODEL_ACTIVE, tables.MODEL_DORMANT):
        raise Invalid("tx.wrong_state", status=model.status)
    if payload.successor:
        successor = state.find(tables.MODEL, payload.successor)
        if successor is None:
            raise Invalid("tx.not_found", model=payload.successor)
        if payload.successor == number or successor.status == tables.MODEL_RETIRED:
            raise Invalid("tx.wrong_state", successor=payload.successor)
    retired_ms = checked(context.time_ms + state.parameter("retire_notice_ms"))
    retiring = model._replace(
        status=tables.MODEL_RETIRING, successor=payload.successor, retired_ms=retired_ms
    )
    state.put(tables.MODEL, (number,), retiring)
    state.add_due(retired_ms, tables.DUE_RETIREMENT, number.to_bytes(8, "big"))


def apply_retirement(state: State, context: Context, due_ms: int, reference: bytes) -> None:
    """Due: the notice is over. The fund goes on, the deposits come back in their time.

    What was started before still settles, for as long as of any superseded version.
    """
    number = int.from_bytes(reference, "big")
    model = state.get(tables.MODEL, number)
    version = state.find(tables.VERSION, number, model.current)
    if version is not None and version.status == tables.VERSION_CURRENT:
        _supersede(state, number, model.current, due_ms)
    heir = model.successor if _may_inherit(state, model.successor, number) else 0
    retired = model._replace(status=tables.MODEL_RETIRED, successor=heir)
    state.put(tables.MODEL, (number,), retired)
    fund = purses.fund(number)
    state.move(fund, fund_of(state, number), state.held(fund))
    deposit_ms = checked(due_ms + state.parameter("model_deposit_ms"))
    state.add_due(deposit_ms, tables.DUE_MODEL_DEPOSIT, reference)


def _may_inherit(state: State, successor: int, number: int) -> bool:
    """Whether a model goes on from this one: its current version names it among its parts."""
    model = state.find(tables.MODEL, successor)
    if model is None or model.status == tables.MODEL_RETIRED:
        return False
    version = state.find(tables.VERSION, successor, model.current)
    return version is not None and any(part == number for part, _, _ in version.parts)


def fund_of(state: State, number: int) -> Purse:
    """Where a model's maintenance money goes: of a retired one to its successor's fund, else to
    the commons. Ends, since who inherits was not retired yet."""
    model = state.get(tables.MODEL, number)
    while model.status == tables.MODEL_RETIRED:
        if not model.successor:
            return purses.pool(tables.COMMONS)
        number = model.successor
        model = state.get(tables.MODEL, number)
    return purses.fund(number)


def ends_ms(state: State, which: Which) -> int:
    """From when on nothing that is started of a version settles: its model retires, or data that
    it was trained on was withdrawn long ago. INT_MAX: no end is set."""
    model, version = state.find(tables.MODEL, which[0]), state.find(tables.VERSION, *which)
    lasts_ms = INT_MAX if version is None else version_lasts_ms(state, version)
    return min(lasts_ms, model.retired_ms) if model and model.retired_ms else lasts_ms


def has_ended(state: State, which: Which, now_ms: int) -> bool:
    """Whether nothing of a version that is started at this time will settle."""
    return ends_ms(state, which) <= now_ms


def apply_model_deposit(state: State, context: Context, due_ms: int, reference: bytes) -> None:
    """Due: a retired model's deposit comes back to its creator."""
    number = int.from_bytes(reference, "big")
    deposit = purses.deposit("model", number)
    creator = state.get(tables.MODEL, number).creator
    state.move(deposit, purses.account(creator), state.held(deposit))


# ---- gifts


def apply_fund(state: State, context: Context, tx: Transaction, payload: FundMaintenance) -> None:
    """Type 50: a gift to a model's fund, never refundable."""
    model = state.find(tables.MODEL, payload.model)
    if model is None:
        raise Invalid("tx.not_found", model=payload.model)
    if model.status == tables.MODEL_RETIRED:
        raise Invalid("tx.wrong_state", model=payload.model)
    if payload.amount == 0:
        raise Invalid("tx.bad_value", why="amount 0")
    state.move(purses.account(tx.sender), purses.fund(payload.model), payload.amount)


# ---- parts of a composite version


def is_servable(state: State, which: Which, now_ms: int) -> bool:
    """Current, or superseded or ended so lately that orders for it may still settle (B3)."""
    version = state.find(tables.VERSION, *which)
    if version is None or now_ms >= ends_ms(state, which) + state.parameter("superseded_ms"):
        return False
    if version.status == tables.VERSION_SUPERSEDED:
        return now_ms < version.superseded_ms + state.parameter("superseded_ms")
    return version.status == tables.VERSION_CURRENT


def flattened_parts(
    state: State, context: Context, base: bytes, parts: tuple[tuple[int, int, int], ...]
) -> tuple[tuple[int, int, int], ...]:
    """Parents with their own parents multiplied in: ≤ 8 (model, version, bps), the rest is own.

    Each parent gets at least its royalty, the own share is at least 1 bps (page 40 §8).
    """
    if not parts:
        return ()
    named = [(model, version) for model, version, _ in parts]
    if named != sorted(set(named)):
        raise Invalid("tx.bad_value", why="parts out of order")
    given = sum(bps for _, _, bps in parts)
    if given >= BPS:
        raise Invalid("tx.bad_value", why="no own share")
    weights: dict[Which, int] = {OWN: (BPS - given) * BPS}
    for model, version, bps in parts:
        _check_part(state, context, base, (model, version), bps)
        own = BPS
        for grand, number, share in state.get(tables.VERSION, model, version).parts:
            own -= share
            weights[grand, number] = weights.get((grand, number), 0) + bps * share
        weights[model, version] = weights.get((model, version), 0) + bps * own
    if len(weights) - 1 > PARTS_STORED_MAX:
        raise Invalid("tx.bad_value", why="too many parts")
    shares = split(BPS, sorted(weights.items()))
    flat = zip(sorted(weights), shares, strict=True)
    return tuple((*which, share) for which, share in flat if which != OWN and share)


def _check_part(state: State, context: Context, base: bytes, which: Which, bps: int) -> None:
    model = state.find(tables.MODEL, which[0])
    if model is None or not state.has(tables.VERSION, *which):
        raise Invalid("tx.not_found", model=which[0], version=which[1])
    if not is_servable(state, which, context.time_ms) or model.status == tables.MODEL_RETIRED:
        raise Invalid("tx.wrong_state", model=which[0], version=which[1])
    if model.base != base:
        raise Invalid("tx.bad_value", why="another base")
    if bps < max(1, model.royalty_bps):
        raise Invalid("tx.bad_value", why="below the royalty", royalty_bps=model.royalty_bps)
