"""Bonds: who may serve and vote, what stakers earn, and the set of validators.

Why an index and not a payment to each: a stakers' part reaches any number of bonds by one addition;
a bond collects what the index rose since it was last touched (page 40 §6).
Why priorities are kept here: whose turn it is must follow from the state alone.
What this file does not know: offences and what they cost (`offences.py`), offers, prices.
"""

from typing import Final

from consensus.primitives.errors import Invalid
from consensus.validators import Member, ValidatorSet
from node.ledger import purses, tables
from node.ledger.amounts import GRAINS_PER_OPEN, checked, part_bps, split
from node.ledger.context import Context
from node.ledger.purses import Purse
from node.ledger.rules.accounts import check_key, current_key
from node.ledger.state import State
from node.ledger.tables import ROLE_AUDITOR, ROLE_PROVIDER, ROLE_VALIDATOR
from node.ledger.wire.transactions import (
    Bond,
    RegisterProvider,
    Transaction,
    Unbond,
    Unjail,
    UpdateProvider,
)

INDEX_SHIFT: Final = 64
GRAINS_PER_POWER: Final = GRAINS_PER_OPEN
OWNERS_MAX: Final = 1_000  # bonds of one target, so that a slash can walk them
SIGNED_STRETCH: Final = 10_000  # heights over which signatures are counted
VALIDATORS_NAME: Final = b"validators"
ROLES: Final = (ROLE_VALIDATOR, ROLE_PROVIDER, ROLE_AUDITOR)
_UNBONDINGS_NAME: Final = b"unbondings"
_LEAVING_NAME: Final = b"leaving/"
_PERIOD_NAME: Final = b"validators_period"
_QUEUED_NAME: Final = b"validators_queued"


# ---- providers


def apply_register(
    state: State, context: Context, tx: Transaction, payload: RegisterProvider
) -> None:
    """Type 20. The provider counts as active once its bond reaches the minimum."""
    if state.has(tables.PROVIDER, tx.sender):
        raise Invalid("tx.exists", provider=tx.sender)
    check_key(state, payload.peer_key)
    check_key(state, payload.reward_account)
    record = tables.Provider(
        peer_key=payload.peer_key,
        reward_account=payload.reward_account,
        bundle_seq=0,
        status=tables.PROVIDER_ACTIVE,
        since_ms=context.time_ms,
        deposit=0,
    )
    state.put(tables.PROVIDER, (tx.sender,), record)
    deposit = state.parameter("provider_deposit")
    state.move(purses.account(tx.sender), purses.deposit("provider", tx.sender), deposit)


def apply_update(state: State, context: Context, tx: Transaction, payload: UpdateProvider) -> None:
    """Type 21: where it is reached and paid from now on, and whether it takes new channels.

    Raises Invalid: 21 not registered, 23 jailed, 26 no such status, or a key that is no point.
    """
    record = state.find(tables.PROVIDER, tx.sender)
    if record is None:
        raise Invalid("tx.not_found", provider=tx.sender)
    if is_jailed(state, ROLE_PROVIDER, tx.sender):
        raise Invalid("tx.wrong_state", why="jailed")
    if payload.status not in (tables.PROVIDER_ACTIVE, tables.PROVIDER_PAUSED):
        raise Invalid("tx.bad_value", why="status", status=payload.status)
    check_key(state, payload.peer_key)
    check_key(state, payload.reward_account)
    changed = record._replace(
        peer_key=payload.peer_key,
        reward_account=payload.reward_account,
        status=payload.status,
    )
    state.put(tables.PROVIDER, (tx.sender,), changed)


def apply_unjail(state: State, context: Context, tx: Transaction, payload: Unjail) -> None:
    """Type 24: a provider serves again, once its jail time is over and its bond is whole.

    Raises Invalid: 21 never jailed in that role, 23 free, out for good, waiting for a decision,
    bonded below the minimum, or a validator, which comes back under a new key, 27 too early.
    """
    role, account = payload.role, tx.sender
    conduct = state.find(tables.CONDUCT, role, account) if role in ROLES else None
    if conduct is None:
        raise Invalid("tx.not_found", role=role)
    is_for_good = conduct.tombstone or conduct.frozen_ms or role != ROLE_PROVIDER
    if is_for_good or not conduct.jailed_until_ms:
        raise Invalid("tx.wrong_state", role=role)
    if context.time_ms < conduct.jailed_until_ms:
        raise Invalid("tx.too_early_or_late", until_ms=conduct.jailed_until_ms)
    if bonded(state, role, account) < state.parameter("provider_bond_min"):
        raise Invalid("tx.wrong_state", why="below the smallest bond")
    state.put(tables.CONDUCT, (role, account), conduct._replace(jailed_until_ms=0))


def is_active_provider(state: State, account: bytes) -> bool:
    """Registered, neither paused nor jailed, bonded with at least the minimum."""
    provider = state.find(tables.PROVIDER, account)
    if provider is None or provider.status != tables.PROVIDER_ACTIVE:
        return False
    if is_jailed(state, ROLE_PROVIDER, account):
        return False
    return bonded(state, ROLE_PROVIDER, account) >= state.parameter("provider_bond_min")


def bonded(state: State, role: int, target: bytes) -> int:
    """All bonds of a target."""
    stake = state.find(tables.STAKE, role, target)
    return 0 if stake is None else stake.bonded


# ---- bonds


def apply_bond(state: State, context: Context, tx: Transaction, payload: Bond) -> None:
    """Type 22. Role 0 with amount 0 only collects what the bond has earned."""
    role, target, owner = payload.role, payload.target, tx.sender
    _check_bond(state, payload, owner)
    collect(state, role, target, owner)
    if payload.amount == 0:
        return
    if role == ROLE_VALIDATOR and not state.has(tables.VALIDATOR, target):
        record = tables.Validator(tables.VALIDATOR_CANDIDATE, 0, 0, tables.PRIORITY_OFFSET)
        state.put(tables.VALIDATOR, (target,), record)
    if not state.has(tables.BOND, role, target, owner):
        _count_owner(state, role, target)
    add_bond(state, purses.account(owner), role, target, owner, payload.amount, context.time_ms)


def _check_bond(state: State, payload: Bond, owner: bytes) -> None:
    role, target, amount = payload.role, payload.target, payload.amount
    if role not in ROLES:
        raise Invalid("tx.bad_value", why="role", role=role)
    if amount == 0 and (role != ROLE_VALIDATOR or not state.has(tables.BOND, role, target, owner)):
        raise Invalid("tx.bad_value", why="amount 0")
    if role == ROLE_PROVIDER:
        if target != owner:
            raise Invalid("tx.bad_value", why="a provider is bonded by itself")
        if not state.has(tables.PROVIDER, target):
            raise Invalid("tx.not_found", provider=target)
    if role == ROLE_VALIDATOR and target != owner:
        if not state.has(tables.VALIDATOR, target):
            raise Invalid("tx.not_found", validator=target)
        if 0 < amount < state.parameter("delegation_min"):
            raise Invalid("tx.bad_value", why="below the smallest delegation")


def owners_name(role: int, target: bytes) -> bytes:
    """The counter of a target's bonds."""
    return b"owners/" + bytes([role]) + target


def _count_owner(state: State, role: int, target: bytes) -> None:
    name = owners_name(role, target)
    owners = state.counter(name)
    if owners >= OWNERS_MAX:
        raise Invalid("tx.limit", owners=owners)
    state.set_counter(name, owners + 1)


def add_bond(
    state: State, source: Purse, role: int, target: bytes, owner: bytes, amount: int, now_ms: int
) -> None:  # fmt: skip
    """Move `amount` into a bond whose earnings are collected, and raise its target's stake."""
    state.move(source, purses.bond(role, target, owner), amount)
    stake = state.find(tables.STAKE, role, target) or tables.Stake()
    state.put(tables.STAKE, (role, target), stake._replace(bonded=stake.bonded + amount))
    bond = state.get(tables.BOND, role, target, owner)
    changed = bond._replace(entry=stake.per_grain, raised_ms=now_ms)
    state.put(tables.BOND, (role, target, owner), changed)


def apply_unbond(state: State, context: Context, tx: Transaction, payload: Unbond) -> None:
    """Type 23: take a bond out, or a part of it; it can still be slashed until it is paid.

    Amount 0 only collects. Raises Invalid: 20 more than is bonded, 21 no such bond, 25 too many on
    their way, or what is left of a delegation is below the smallest.
    """
    role, target, owner, amount = payload.role, payload.target, tx.sender, payload.amount
    bond = state.find(tables.BOND, role, target, owner) if role in ROLES else None
    if bond is None:
        raise Invalid("tx.not_found", role=role, target=target)
    left = bond.amount - amount
    if left < 0:
        raise Invalid("tx.insufficient", needed=amount, held=bond.amount)
    is_delegation = role == ROLE_VALIDATOR and target != owner
    if amount and is_delegation and 0 < left < state.parameter("delegation_min"):
        raise Invalid("tx.limit", why="below the smallest delegation", left=left)
    collect(state, role, target, owner)
    if amount:
        _start_unbonding(state, context, payload, owner)


def _start_unbonding(state: State, context: Context, payload: Unbond, owner: bytes) -> None:
    """Move a part of a bond onto its way out; one with nothing left gives its place free."""
    role, target, amount = payload.role, payload.target, payload.amount
    number = state.next_number(_UNBONDINGS_NAME)
    note_leaving(state, role, target, owner, number)
    due_ms = checked(context.time_ms + state.parameter("unbonding_ms"))
    leaving = tables.Unbonding(role, target, owner, 0, context.time_ms, due_ms)
    state.put(tables.UNBONDING, (number,), leaving)
    state.add_due(due_ms, tables.DUE_UNBONDING, number.to_bytes(8, "big"))
    state.move(purses.bond(role, target, owner), purses.unbonding(number), amount)
    stake = state.get(tables.STAKE, role, target)
    state.put(tables.STAKE, (role, target), stake._replace(bonded=stake.bonded - amount))
    if state.get(tables.BOND, role, target, owner).amount == 0:
        state.remove(tables.BOND, role, target, owner)
        name = owners_name(role, target)
        state.set_counter(name, state.counter(name) - 1)


def note_leaving(state: State, role: int, target: bytes, owner: bytes, number: int) -> None:
    """One more part of a bond is on its way out: a slash walks them all, so they are bounded."""
    numbers = _leaving(state, role, target, owner)
    if len(numbers) >= tables.LEAVING_MAX:
        raise Invalid("tx.limit", leaving=len(numbers))
    _put_leaving(state, role, target, owner, (*numbers, number))


def parts_leaving(
    state: State, role: int, target: bytes, owner: bytes
) -> list[tuple[int, tables.Unbonding]]:
    """What is on its way out of one bond, each with its number, oldest first."""
    numbers = _leaving(state, role, target, owner)
    return [(number, state.get(tables.UNBONDING, number)) for number in numbers]


def _leaving(state: State, role: int, target: bytes, owner: bytes) -> tuple[int, ...]:
    found = state.find(tables.DEPARTURES, _LEAVING_NAME, role, target, owner)
    return () if found is None else found.numbers


def _put_leaving(
    state: State, role: int, target: bytes, owner: bytes, numbers: tuple[int, ...]
) -> None:
    key = (_LEAVING_NAME, role, target, owner)
    if numbers:
        state.put(tables.DEPARTURES, key, tables.Departures(numbers))
    else:
        state.remove(tables.DEPARTURES, *key)


def collect(state: State, role: int, target: bytes, owner: bytes) -> None:
    """Pay the owner what the index rose since the bond was last touched."""
    bond = state.find(tables.BOND, role, target, owner)
    if bond is None:
        return
    per_grain = state.get(tables.STAKE, role, target).per_grain
    owed = bond.amount * (per_grain - bond.entry) >> INDEX_SHIFT
    state.put(tables.BOND, (role, target, owner), bond._replace(entry=per_grain))
    state.move(purses.stake(role, target), purses.account(owner), owed)


def apply_unbonded(state: State, context: Context, due_ms: int, reference: bytes) -> None:
    """Due: a bond on its way out has waited; pay its owner, or ask again if it is frozen."""
    number = int.from_bytes(reference, "big")
    leaving = state.get(tables.UNBONDING, number)
    if _is_frozen(state, leaving):
        again_ms = context.time_ms + state.parameter("offence_window_ms")
        state.put(tables.UNBONDING, (number,), leaving._replace(due_ms=again_ms))
        state.add_due(again_ms, tables.DUE_UNBONDING, reference)
        return
    state.move(purses.unbonding(number), purses.account(leaving.owner), leaving.amount)
    state.remove(tables.UNBONDING, number)
    bond = leaving.role, leaving.target, leaving.owner
    left = tuple(other for other in _leaving(state, *bond) if other != number)
    _put_leaving(state, *bond, left)


def _is_frozen(state: State, leaving: tables.Unbonding) -> bool:
    """Whether it was still bonded when the offence came that its target is frozen for."""
    conduct = state.find(tables.CONDUCT, leaving.role, leaving.target)
    return conduct is not None and 0 < conduct.frozen_ms <= leaving.made_ms


# ---- what stakers earn


def pay_stakers(state: State, source: Purse, amount: int) -> None:
    """Share a stakers' part over the validators of the set by their bonds.

    Of each share `operator_bps` goes to the validator's account, the rest raises its index.
    Nobody bonded: it waits in the stakers' pool, with all that waits there already.
    """
    waiting = purses.pool(tables.STAKERS)
    state.move(source, waiting, amount)
    weights = [
        (key, bonded(state, ROLE_VALIDATOR, key))
        for key in sorted(state.get(tables.MEMBERS, VALIDATORS_NAME).keys)
    ]
    if not any(weight for _, weight in weights):
        return
    operator_bps = state.parameter("operator_bps")
    parts = split(state.held(waiting), weights)
    for (key, bond), part in zip(weights, parts, strict=True):
        if part == 0:
            continue
        operator = part_bps(part, operator_bps)
        state.move(waiting, purses.account(key), operator)
        state.move(waiting, purses.stake(ROLE_VALIDATOR, key), part - operator)
        stake = state.get(tables.STAKE, ROLE_VALIDATOR, key)
        risen = stake.per_grain + (part - operator << INDEX_SHIFT) // bond
        state.put(tables.STAKE, (ROLE_VALIDATOR, key), stake._replace(per_grain=risen))


# ---- the set


def validator_set(state: State) -> ValidatorSet:
    """The set that acts in the next block, with priorities and turn."""
    listed = state.get(tables.MEMBERS, VALIDATORS_NAME)
    members = []
    for key in listed.keys:
        record = state.get(tables.VALIDATOR, key)
        members.append(Member(key, record.power, record.priority - tables.PRIORITY_OFFSET))
    return ValidatorSet(members, listed.turn)


def put_validator_set(state: State, validators: ValidatorSet) -> None:
    """Write a set; those who left keep their record with power 0."""
    known = state.find(tables.MEMBERS, VALIDATORS_NAME)
    for key in known.keys if known is not None else ():
        if validators.index(key) is None:
            record = state.get(tables.VALIDATOR, key)
            gone = record._replace(
                status=tables.VALIDATOR_CANDIDATE, power=0, priority=tables.PRIORITY_OFFSET
            )
            state.put(tables.VALIDATOR, (key,), gone)
    for member in validators.members:
        before = state.find(tables.VALIDATOR, member.key)
        record = tables.Validator(
            status=tables.VALIDATOR_ACTIVE,
            signed=0 if before is None else before.signed,
            power=member.power,
            priority=member.priority + tables.PRIORITY_OFFSET,
        )
        state.put(tables.VALIDATOR, (member.key,), record)
    listed = tables.Members(validators.turn, tuple(member.key for member in validators.members))
    state.put(tables.MEMBERS, (VALIDATORS_NAME,), listed)


def count_signers(state: State, context: Context) -> None:
    """One more signature for each who signed the last block; a stretch begins at 0."""
    begins = context.height % SIGNED_STRETCH == 1
    signers = frozenset(context.last_signers)
    for key in state.get(tables.MEMBERS, VALIDATORS_NAME).keys:
        record = state.get(tables.VALIDATOR, key)
        signed = (0 if begins else record.signed) + (key in signers)
        state.put(tables.VALIDATOR, (key,), record._replace(signed=signed))


def advance_validators(state: State, context: Context) -> ValidatorSet:
    """The set of the next block, written to the state: changes, then one turn.

    Who is jailed leaves at once. Candidates are read in the first block of each
    `validator_set_ms`; changed power per block is at most 1/3 of the total, what is left over
    goes on in the next block (page 20 §5).
    """
    count_signers(state, context)
    before = validator_set(state)
    validators = _without_jailed(state, before)
    power_left = max(0, before.total // 3 - (before.total - validators.total))
    period = context.time_ms // state.parameter("validator_set_ms")
    if period != state.counter(_PERIOD_NAME) or state.counter(_QUEUED_NAME):
        state.set_counter(_PERIOD_NAME, period)
        changes, queued = _changes_within_cap(validators, candidates(state), power_left)
        state.set_counter(_QUEUED_NAME, int(queued))
        validators = validators.changed(changes)
    validators = validators.advanced()
    put_validator_set(state, validators)
    return validators


def is_jailed(state: State, role: int, account: bytes) -> bool:
    """Whether an account may not act in a role: until it is unjailed or decided on, or for good."""
    conduct = state.find(tables.CONDUCT, role, account)
    if conduct is None:
        return False
    return bool(conduct.jailed_until_ms or conduct.tombstone or conduct.frozen_ms)


def _without_jailed(state: State, validators: ValidatorSet) -> ValidatorSet:
    """The members who are free; all of them if nobody is, for a chain without a set has ended."""
    jailed = [key for key in validators.powers() if is_jailed(state, ROLE_VALIDATOR, key)]
    if len(jailed) == len(validators):
        return validators
    return validators.changed([(key, 0) for key in jailed])


def candidates(state: State) -> dict[bytes, int]:
    """Key → power of the largest free candidates, ties to the smaller key (page 40 §6).

    An account whose key was rotated does not stand: the set would name the key that was given up.
    """
    own_min = state.parameter("validator_bond_min")
    standing = []
    for (key,), _ in state.scan(tables.VALIDATOR):
        own = state.find(tables.BOND, ROLE_VALIDATOR, key, key)
        if own is None or own.amount < own_min or current_key(state, key) != key:
            continue
        if not is_jailed(state, ROLE_VALIDATOR, key):
            standing.append((-bonded(state, ROLE_VALIDATOR, key), key))
    standing.sort()
    best = standing[: state.parameter("validators_max")]
    return {key: -amount // GRAINS_PER_POWER for amount, key in best if -amount >= GRAINS_PER_POWER}


def _changes_within_cap(
    validators: ValidatorSet, wanted: dict[bytes, int], power_max: int
) -> tuple[list[tuple[bytes, int]], bool]:
    """Changes toward `wanted`, in key order, of at most `power_max`; whether more is left."""
    if not wanted:
        return [], False
    left, queued = power_max, False
    changes = []
    for key in sorted({**validators.powers(), **wanted}):
        power, target = validators.power(key), wanted.get(key, 0)
        step = min(abs(target - power), left)
        queued |= step < abs(target - power)
        if step:
            left -= step
            changes.append((key, power + step if target > power else power - step))
    return changes, queued
