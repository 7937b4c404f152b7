"""The mutation gate of the economy's model: one fault at a time in settlement, stakes or data.

    python tests/simulation/economy_mutants.py [NAME…]

Not part of `make test`. Each mutant replaces one piece of source, which must stand there exactly
once; then the beginning of the program of `tests/unit/vectors/test_economy.py` is played beside the
model (`tests/economy_kit.py`). Exit 1 when both agree in spite of some mutant.
"""

import argparse
import sys
from pathlib import Path
from typing import Final

if __name__ == "__main__":  # run as a program: the tests' folder is not on the path
    sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (2, 1)]

from economy_kit import PER_BLOCK, SEED, run_economy
from simulation.mutants import Mutant, pass_gate, told_by

BLOCKS: Final = 120
PLAY: Final = "--play"

AMOUNTS, PAYOUT = "node/ledger/amounts.py", "node/ledger/rules/payout.py"
CHANNELS, STAKING = "node/ledger/rules/channels.py", "node/ledger/rules/staking.py"
REGISTRY, MODELS = "node/ledger/rules/registry.py", "node/ledger/rules/models.py"
OFFENCES, DISPUTES = "node/ledger/rules/offences.py", "node/ledger/rules/disputes.py"
FAILURES, REVERSALS = "node/ledger/rules/failures.py", "node/ledger/rules/reversals.py"

# fmt: off
MUTANTS: Final = (
    Mutant("1", "ties of a split do not go to the smaller key", AMOUNTS,
           "(-shares[i][1], weights[i][0])", "(-shares[i][1], -i)"),
    Mutant("2", "what a split leaves goes to one", AMOUNTS,
           "for i in order[:left]:\n            parts[i] += 1", "parts[order[0]] += left"),
    Mutant("3", "a withdrawn contribution is still paid", PAYOUT,
           "PAID_STATUSES: Final = (tables.ACCEPTED,)",
           "PAID_STATUSES: Final = (tables.ACCEPTED, tables.WITHDRAWN)"),
    Mutant("4", "unattributed data is the treasury's", PAYOUT,
           "return purses.maturing(leaf.matures_ms, tables.KIND_FUND, payee)",
           "return purses.maturing(leaf.matures_ms, tables.KIND_TREASURY, NOBODY)"),
    Mutant("5", "no curation cut", PAYOUT,
           "cut = part_bps(amount, terms.curation_bps)", "cut = 0"),
    Mutant("6", "a part's creator gets nothing", PAYOUT,
           "weights.get(parent, 0) + bps * BPS", "weights.get(parent, 0)"),
    Mutant("7", "a part's fund gets nothing", PAYOUT,
           "weights[payee] = weights.get(payee, 0) + bps",
           "weights[payee] = weights.get(payee, 0)"),
    Mutant("8", "the provider is paid, not its reward account", PAYOUT,
           "reward = bundle.reward", "reward = bundle.provider"),
    Mutant("9", "weights of the last bundle only", PAYOUT,
           "held.weights[contribution] = held.weights.get(contribution, 0) + weight",
           "held.weights[contribution] = weight"),
    Mutant("10", "earned is what was left", PAYOUT,
           "found._replace(earned=found.earned + amount)",
           "found._replace(earned=found.earned + left)"),
    Mutant("11", "buckets are rounded down", CHANNELS,
           "checked(-(-(time_ms + window_ms) // step_ms) * step_ms)",
           "checked((time_ms + window_ms) // step_ms * step_ms)"),
    Mutant("12", "credits from behind the snapshot", CHANNELS,
           "is_older = number <= snapshot.last_contribution", "is_older = True"),
    Mutant("13", "a superseded version is sold for ever", CHANNELS,
           "lasts_ms = version.superseded_ms + state.parameter(\"superseded_ms\")",
           "lasts_ms = 2**63 - 1"),
    Mutant("14", "a bundle's number may come again", CHANNELS,
           "if bundle.header.bundle_seq <= provider.bundle_seq:", "if False:"),
    Mutant("15", "operators get nothing", STAKING,
           "operator = part_bps(part, operator_bps)", "operator = 0"),
    Mutant("16", "the index of a stake is rounded up", STAKING,
           "(part - operator << INDEX_SHIFT) // bond",
           "-(-(part - operator << INDEX_SHIFT) // bond)"),
    Mutant("17", "a bond is raised before it collects", STAKING,
           "    collect(state, role, target, owner)\n    if payload.amount == 0:",
           "    if payload.amount == 0:"),
    Mutant("18", "a new bond earns from the beginning", STAKING,
           "bond._replace(entry=stake.per_grain, raised_ms=now_ms)",
           "bond._replace(raised_ms=now_ms)"),
    Mutant("19", "what unbonds goes on earning", STAKING,
           "stake._replace(bonded=stake.bonded - amount)", "stake"),
    Mutant("20", "unbonding does not wait", STAKING,
           "due_ms = checked(context.time_ms + state.parameter(\"unbonding_ms\"))",
           "due_ms = context.time_ms + 1"),
    Mutant("21", "a version's deposit comes back too early", MODELS,
           "due_ms = now_ms + state.parameter(\"version_deposit_ms\")",
           "due_ms = now_ms + state.parameter(\"version_deposit_ms\") // 2"),
    Mutant("22", "the larger half of a stake is held", REGISTRY,
           "found.stake - found.stake // 2", "found.stake // 2"),
    Mutant("23", "nothing of a taken stake burns", REGISTRY,
           "state.move(stake, purses.BURN, amount - amount // 2)",
           "state.move(stake, purses.pool(tables.TREASURY), amount - amount // 2)"),
    Mutant("24", "what unbonds is not slashed", OFFENCES,
           "        taken = slash_leaving(state, gone, key, bps, offence.time_ms, answered_ms)\n",
           "        taken = 0\n"),
    Mutant("25", "a slash takes what a bond has earned", OFFENCES,
           "        collect(state, role, target, owner)\n        purse = purses.bond",
           "        purse = purses.bond"),
    Mutant("26", "who offends together does not pay for it", OFFENCES,
           "factor * sum(powers.values())", "factor * max(powers.values())"),
    Mutant("27", "all that is slashed burns", OFFENCES,
           "purses.BURN, taken >> 1)", "purses.BURN, taken)"),
    Mutant("28", "no failure jails", FAILURES, "JAILS_FROM: Final = 3", "JAILS_FROM: Final = 99"),
    Mutant("29", "no failure forfeits income", FAILURES,
           "FORFEITS_FROM: Final = 2", "FORFEITS_FROM: Final = 99"),
    Mutant("30", "income is not counted", CHANNELS,
           "        change_income(state, settled, settled.infra)\n", "        pass\n"),
    Mutant("31", "a fund's part is taken back from who withdrew", REVERSALS,
           "return found.withdrawn_ms > settled_ms", "return True"),
    Mutant("32", "the finder has all of a slash", DISPUTES,
           "reward = part_bps(taken, state.parameter(\"fraud_finder_bps\"))", "reward = taken"),
    Mutant("33", "a false proof costs nothing", DISPUTES, "if code == _FALSE_PROOF:", "if False:"),
)
# fmt: on


def main() -> int:
    """Try all mutants, or those named, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", metavar="NAME", help="1 to 33")
    parser.add_argument(PLAY, action="store_true", help="this tree's program, once")
    given = parser.parse_args()
    if given.play:
        run_economy(SEED, BLOCKS, PER_BLOCK)
        return 0
    chosen = [mutant for mutant in MUTANTS if not given.names or mutant.name in given.names]
    return pass_gate(chosen, lambda folder: told_by(folder, Path(__file__), PLAY))


if __name__ == "__main__":
    sys.exit(main())
