"""`olnode bench fuzz`: hostile bytes for every parser and every door of the network.

So many inputs of each, in batches with seeds of their own: what the pure floors decode, and all
that peers' bytes meet before (`tests/vectors/parsers.py`, `doors.py`). What comes out must be its
own refusal, soon.
"""

import argparse
import os
import time
from collections import Counter
from typing import Final

from bench.batches import run_batches
from bench.protocol import AT_LEAST, AT_MOST, Budget, finish, quiet, tell
from vectors.fuzzing import Fuzzed, attack, attack_all_doors
from vectors.parsers import PARSERS, goods_of, word

INPUTS: Final = 100_000
BATCH: Final = 20_000
SLOWEST_MS_MAX: Final = 1_000.0
SHOWN: Final = 20

Found = dict[str, Fuzzed]


def run_batch(task: tuple[int, int]) -> Found:
    """So many inputs for each, from one seed."""
    seed, inputs = task
    quiet()
    parsed = {
        word(function): attack(word(function), parser, goods_of(parser), inputs, seed)
        for function, parser in PARSERS.items()
    }
    return parsed | attack_all_doors(inputs, seed)


def run_campaign(inputs: int, seed: int, processes: int) -> list[Found]:
    """So many inputs for each on so many processes."""
    return run_batches(
        run_batch,
        inputs,
        batch=BATCH,
        seed=seed,
        processes=processes,
        tell=tell_reached,
    )


def tell_reached(found: list[Found]) -> None:
    """After each batch: a campaign that is broken off has told something."""
    figures = figures_of(found)
    tell(f"{figures['inputs_each']:,} inputs each, {figures['escaped']} escaped")


def figures_of(found: list[Found]) -> dict[str, int | float]:
    """In all; the least of any one parser is what each of them had."""
    had, escaped = Counter[str](), [one.escaped for batch in found for one in batch.values()]
    for where in [where for where in escaped if where][:SHOWN]:
        tell(where)
    for batch in found:
        had.update({name: one.taken + one.refused for name, one in batch.items()})
    slowest_s = max(one.slowest_s for batch in found for one in batch.values())
    return {
        "parsers": len(had),
        "inputs_each": min(had.values()),
        "inputs": had.total(),
        "taken": sum(one.taken for batch in found for one in batch.values()),
        "escaped": sum(bool(where) for where in escaped),
        "slowest_cpu_ms": round(slowest_s * 1_000, 1),
    }


def main() -> None:
    """The command line of `olnode bench fuzz`."""
    parser = argparse.ArgumentParser(prog="olnode bench fuzz")
    parser.add_argument("--inputs", type=int, default=INPUTS, help="of each parser")
    parser.add_argument("--seed", type=int, default=1, help="of the campaign")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    began_s = time.monotonic()
    figures = figures_of(run_campaign(given.inputs, given.seed, given.processes))
    budgets = (
        Budget("escaped", AT_MOST, 0),
        Budget("inputs_each", AT_LEAST, given.inputs),
        Budget("slowest_cpu_ms", AT_MOST, SLOWEST_MS_MAX),
    )
    finish({**figures, "seconds": round(time.monotonic() - began_s, 1)}, budgets)


if __name__ == "__main__":
    main()
