"""Offences of validators: evidence judged, bonds slashed, offenders jailed at once.

Why one jail answers for all that came before it: two engines with one key say two things at every
step until they are found, and each pair is a piece of evidence. Were each punished anew, the price
would depend on how many pieces proposers care to bring, and a key with nothing left to lose could
fill blocks with them. What came before a jail is answered by it; an offence that was earlier than
the one it was for reaches only those who left in between.
Why power counts together: one careless operator costs little, a third of the power is an attack.
Why a lie to light clients freezes and slashes nothing: after a real fork it could name who honestly
signed the lost branch, so what it costs is for people to decide (page 20 §5). A freeze answers for
no slash, or signing such a lie would be the cheaper way out.
What this file does not know: who found the evidence, where the past is kept, other roles' faults.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid
from node.ledger import purses, tables
from node.ledger.accusations import (
    Accusation,
    Charge,
    charge_of,
    decode_accusation,
    get_past,
    verify_accusation,
)
from node.ledger.amounts import BPS, part_bps
from node.ledger.context import Context
from node.ledger.rules.staking import collect, owners_name
from node.ledger.state import State
from node.ledger.tables import ROLE_VALIDATOR, UsedEvidence

_USED: Final = b"evidence/"


class Offender(NamedTuple):
    """A guilty key. It has answered already for what it did from `answered_from_ms` on, if set."""

    key: bytes
    answered_from_ms: int | None


class Offence(NamedTuple):
    """Evidence that holds: when it happened, by a header's time, and who did it."""

    time_ms: int
    offenders: tuple[Offender, ...]
    freezes: bool


# ---- judging


def accept_evidence(state: State, context: Context, raw: bytes) -> Offence:
    """Judge a piece of evidence and note it as used; raises `Invalid`.

    All pieces of a block are accepted before the first is punished, so that those who offended
    together pay alike in whatever order they stand.
    """
    accusation = decode_accusation(raw)
    charge = check_evidence(state, context, raw, accusation)
    verify_accusation(accusation, charge, context.chain_id)
    known = _used(state, charge.freezes)
    offenders = tuple(
        Offender(key, _answered_from(known, key, charge.time_ms)) for key in charge.accused
    )
    name = sha256(raw)
    powers = tuple((key, _power_bps(charge, key)) for key in charge.accused)
    used = UsedEvidence(charge.time_ms, context.time_ms, powers, int(charge.freezes))
    state.put(tables.USED_EVIDENCE, (_USED + name,), used)
    # All that this jail answers for is too old then: nothing is ever punished twice.
    forgotten_ms = context.time_ms + state.parameter("evidence_age_ms_max") + 1
    state.add_due(forgotten_ms, tables.DUE_EVIDENCE, name)
    return Offence(charge.time_ms, offenders, charge.freezes)


def check_evidence(state: State, context: Context, raw: bytes, accusation: Accusation) -> Charge:
    """All that costs no signature, cheapest first; whom it names, and of what.

    Raises `Invalid` `evidence.used`, `.height`, `.too_old`, `.punished`, or what `charge_of` does.
    """
    if state.has(tables.USED_EVIDENCE, _USED + sha256(raw)):
        raise Invalid("evidence.used")
    past = get_past(accusation, context.find_past)
    dated = past[0]
    if context.time_ms > dated.time_ms + state.parameter("evidence_age_ms_max"):
        raise Invalid("evidence.too_old", height=dated.height, time_ms=dated.time_ms)
    charge = charge_of(accusation, past)
    if _is_answered(state, charge):
        raise Invalid("evidence.punished", height=past[-1].height)
    return charge


def _power_bps(charge: Charge, key: bytes) -> int:
    return charge.validators.power(key) * BPS // charge.validators.total


def _used(state: State, freezes: bool) -> list[UsedEvidence]:
    """What was punished by a freeze, or what was by a slash: neither answers for the other."""
    found = (record for _, record in state.scan(tables.USED_EVIDENCE, _USED))
    return [record for record in found if record.frozen == freezes]


def _answered_from(known: Sequence[UsedEvidence], key: bytes, offence_ms: int) -> int | None:
    """The first offence for which `key` was jailed at or after `offence_ms`; None: it was not."""
    return min(
        (
            used.offence_ms
            for used in known
            if offence_ms <= used.punished_ms and key in dict(used.guilty)
        ),
        default=None,
    )


def _is_answered(state: State, charge: Charge) -> bool:
    """Whether a jail of each stands for this offence already, and nobody left before it came.

    One walk over what is on its way out, and only if all are jailed: no signature is checked yet.
    """
    known = _used(state, charge.freezes)
    since = {}
    for key in charge.accused:
        since_ms = _answered_from(known, key, charge.time_ms)
        if since_ms is None:
            return False
        since[key] = since_ms
    return not any(
        charge.time_ms <= gone.made_ms < since.get(gone.target, 0) for _, gone in leaving(state)
    )


def forget_evidence(state: State, context: Context, due_ms: int, reference: bytes) -> None:
    """Due: a piece of evidence has aged out; its hash is needed no more."""
    state.remove(tables.USED_EVIDENCE, _USED + reference)


# ---- punishing


def punish_offences(state: State, context: Context, offences: Sequence[Offence]) -> None:
    """What each kind of accepted evidence costs the guilty; one function a kind."""
    for offence in offences:
        if offence.freezes:
            _freeze(state, offence)
        else:
            _punish_equivocation(state, context, offence)


def _freeze(state: State, offence: Offence) -> None:
    """Who signed what no execution gives: out, and all that was at stake then waits."""
    for key, _ in offence.offenders:
        conduct = state.find(tables.CONDUCT, ROLE_VALIDATOR, key) or tables.Conduct()
        since_ms = min(conduct.frozen_ms or offence.time_ms, offence.time_ms)
        changed = conduct._replace(frozen_ms=since_ms)
        state.put(tables.CONDUCT, (ROLE_VALIDATOR, key), changed)


def _punish_equivocation(state: State, context: Context, offence: Offence) -> None:
    """Who said two things: their bonds, and what left since; then jail, or the key's end."""
    bps, gone = slash_bps(state, offence.time_ms), leaving(state)
    for key, answered_ms in offence.offenders:
        taken = slash_leaving(state, gone, key, bps, offence.time_ms, answered_ms)
        if answered_ms is None:
            taken += slash_bonds(state, ROLE_VALIDATOR, key, bps)
        share_proceeds(state, taken)
        until_ms = context.time_ms + state.parameter("double_vote_jail_ms")
        jail(state, ROLE_VALIDATOR, key, until_ms, is_for_good=bps == BPS)


def slash_bps(state: State, offence_ms: int) -> int:
    """What an offence costs: more, the more power offended within a window around it."""
    window_ms = state.parameter("offence_window_ms")
    powers: dict[bytes, int] = {}
    for used in _used(state, freezes=False):
        if abs(used.offence_ms - offence_ms) <= window_ms:
            for key, power in used.guilty:
                powers[key] = max(power, powers.get(key, 0))
    factor = state.parameter("double_vote_power_factor")
    return min(BPS, state.parameter("double_vote_slash_bps") + factor * sum(powers.values()))


def jail(state: State, role: int, account: bytes, until_ms: int, *, is_for_good: bool) -> None:
    """Keep an account out of a role at least until then; never shortens what stands."""
    conduct = state.find(tables.CONDUCT, role, account) or tables.Conduct()
    changed = conduct._replace(
        jailed_until_ms=max(conduct.jailed_until_ms, until_ms),
        tombstone=max(conduct.tombstone, tables.TOMBSTONED * is_for_good),
    )
    state.put(tables.CONDUCT, (role, account), changed)


def slash_bonds(state: State, role: int, target: bytes, bps: int) -> int:
    """Take `bps` of every bond of a target, each floored; returns what the treasury holds of it.

    What a bond has earned is paid first: it was earned honestly, by a grain that was there.
    """
    taken = 0
    for (_, _, owner), _ in state.scan(tables.BOND, role, target):
        collect(state, role, target, owner)
        purse = purses.bond(role, target, owner)
        cut = part_bps(state.held(purse), bps)
        state.move(purse, purses.pool(tables.TREASURY), cut)
        taken += cut
        if state.held(purse) == 0:
            state.remove(tables.BOND, role, target, owner)
            name = owners_name(role, target)
            state.set_counter(name, state.counter(name) - 1)
    if taken:
        stake = state.get(tables.STAKE, role, target)
        state.put(tables.STAKE, (role, target), stake._replace(bonded=stake.bonded - taken))
    return taken


Leaving = tuple[int, tables.Unbonding]  # with its number


def leaving(state: State) -> list[Leaving]:
    """All that is on its way out of validators' bonds."""
    return [
        (int.from_bytes(number, "big"), gone)
        for (number,), gone in state.scan(tables.UNBONDING)
        if gone.role == ROLE_VALIDATOR
    ]


def slash_leaving(
    state: State,
    gone: Sequence[Leaving],
    target: bytes,
    bps: int,
    since_ms: int,
    before_ms: int | None,
) -> int:
    """The same of what was unbonded from a target at or after `since_ms`, before `before_ms`."""
    taken = 0
    for number, one in gone:
        if one.target != target or one.made_ms < since_ms:
            continue
        if before_ms is not None and before_ms <= one.made_ms:
            continue
        purse = purses.unbonding(number)
        cut = part_bps(state.held(purse), bps)
        state.move(purse, purses.pool(tables.TREASURY), cut)
        taken += cut
    return taken


def share_proceeds(state: State, taken: int) -> None:
    """Half of what was slashed is burnt, the treasury keeps the rest and the odd grain."""
    state.move(purses.pool(tables.TREASURY), purses.BURN, taken >> 1)
