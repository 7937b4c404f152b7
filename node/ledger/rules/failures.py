"""What a provider pays that was shown to be false: its bond, its income, then its time.

Why a ladder: a broken machine fails once and is mended, a cheat fails again; so the first failure
costs little, a later one the income of a day too, the third the right to serve for a while. Why a
limit a day: nobody shall lose all before it can have heard of the first. Why the income is counted
apart: what matures for an account may be another provider's, and is left to it.
What this file does not know: what was shown, and who showed it.
"""

from collections.abc import Sequence
from typing import Final

from node.ledger import purses, tables
from node.ledger.amounts import checked
from node.ledger.context import Context
from node.ledger.parameters import DAY_MS
from node.ledger.rules.channels import INCOME_NAME
from node.ledger.rules.offences import jail, slash_bonds, slash_leaving
from node.ledger.rules.staking import parts_leaving
from node.ledger.state import State
from node.ledger.tables import ROLE_PROVIDER

FAILURES_MAX: Final = 32  # remembered; the oldest are forgotten first
FORFEITS_FROM: Final = 2  # which failure takes what has not matured
JAILS_FROM: Final = 3


def punish_failure(state: State, context: Context, provider: bytes, since_ms: int) -> int:
    """One more failure: slash, from the second forfeit, from the third jail.

    What left the bond since `since_ms` answers too. Returns what was taken of bonds; it lies in
    the treasury, for the caller to share. Income that is forfeited stays there.
    """
    conduct = state.find(tables.CONDUCT, ROLE_PROVIDER, provider) or tables.Conduct()
    failures = (*conduct.failures, context.time_ms)[-FAILURES_MAX:]
    changed = conduct._replace(failures=failures)
    state.put(tables.CONDUCT, (ROLE_PROVIDER, provider), changed)
    window_ms = state.parameter("failure_window_ms")
    number = sum(context.time_ms - at_ms < window_ms for at_ms in failures)
    taken = slash_provider(state, provider, next_slash_bps(state, failures), since_ms)
    if number >= FORFEITS_FROM:
        _forfeit_income(state, provider)
    if number >= JAILS_FROM:
        until_ms = checked(context.time_ms + state.parameter("failure_jail_ms"))
        jail(state, ROLE_PROVIDER, provider, until_ms, is_for_good=False)
    return taken


def next_slash_bps(state: State, failures: Sequence[int]) -> int:
    """What the last of `failures` costs: by how many were in the window before it, and at most
    what the day's limit leaves."""
    ladder = state.parameter_values("failure_slash_bps")
    limit, window_ms = state.parameter("failure_limit_bps"), state.parameter("failure_window_ms")
    costs: list[int] = []
    for number, at_ms in enumerate(failures):
        before = list(zip(failures[:number], costs, strict=True))
        rank = sum(at_ms - earlier_ms < window_ms for earlier_ms, _ in before)
        lately = sum(bps for earlier_ms, bps in before if at_ms - earlier_ms < DAY_MS)
        costs.append(min(ladder[min(rank, len(ladder) - 1)], limit - min(limit, lately)))
    return costs[-1]


def slash_provider(state: State, provider: bytes, bps: int, since_ms: int) -> int:
    """Take `bps` of a provider's bond, and of what left it since; the treasury has it."""
    gone = parts_leaving(state, ROLE_PROVIDER, provider, provider)  # nobody else may bond for it
    taken = slash_leaving(state, gone, provider, bps, since_ms, None)
    return taken + slash_bonds(state, ROLE_PROVIDER, provider, bps)


def _forfeit_income(state: State, provider: bytes) -> None:
    """All that its bundles would still bring it goes to the treasury."""
    for key, income in state.scan(tables.INCOME, INCOME_NAME, provider):
        _, _, bucket, reward = key
        bucket_ms = int.from_bytes(bucket, "big")
        waiting = purses.maturing(bucket_ms, tables.KIND_PROVIDER, reward)
        amount = min(income.value, state.held(waiting))
        state.move(waiting, purses.pool(tables.TREASURY), amount)
        state.remove(tables.INCOME, *key)
