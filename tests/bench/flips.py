"""`olnode bench flips`: flip a bit in a file of a home, often, and judge what comes of it.

Each process flips in homes of its own, with a seed of its own.
"""

import argparse
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Final

from bench.batches import run_batches
from bench.protocol import AT_LEAST, AT_MOST, Budget, finish, quiet, tell
from crashes.flips import Flipper, FoundFlips
from crashes.spoiling import DEFECTS, ENDS, Judge

FLIPS: Final = 2_000
BATCH: Final = 250
DEFECTS_SHOWN: Final = 20


def run_batch(task: tuple[int, int]) -> FoundFlips:
    """So many flips from one seed."""
    seed, flips = task
    quiet()
    with tempfile.TemporaryDirectory(prefix="olnode-flips-") as folder:
        return Flipper(Judge(Path(folder)), seed).run(flips)


def run_campaign(flips: int, seed: int, processes: int) -> list[FoundFlips]:
    """So many flips on so many processes."""
    return run_batches(
        run_batch,
        flips,
        batch=BATCH,
        seed=seed,
        processes=processes,
        tell=lambda found: tell(f"{sum(each.flips for each in found):,} flips"),
    )


def figures_of(found: list[FoundFlips]) -> dict[str, object]:
    """How many ended how, in all and by kind of file."""
    for defect in [defect for one in found for defect in one.defects][:DEFECTS_SHOWN]:
        tell(defect)
    ends = sum((one.ends for one in found), Counter[tuple[str, str]]())
    by_kind: dict[str, dict[str, int]] = {}
    for (kind, end), number in sorted(ends.items()):
        by_kind.setdefault(kind, {})[end] = number
    counts = {end: sum(one.count(end) for one in found) for end in ENDS}
    return {"flips": ends.total(), **counts, "by_kind": by_kind}


def main() -> None:
    """The command line of `olnode bench flips`."""
    parser = argparse.ArgumentParser(prog="olnode bench flips")
    parser.add_argument("--flips", type=int, default=FLIPS)
    parser.add_argument("--seed", type=int, default=1, help="of the campaign")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    began_s = time.monotonic()
    figures = figures_of(run_campaign(given.flips, given.seed, given.processes))
    none = tuple(Budget(end, AT_MOST, 0) for end in DEFECTS)
    goal = Budget("flips", AT_LEAST, given.flips)
    finish({**figures, "seconds": round(time.monotonic() - began_s, 1)}, (goal, *none))


if __name__ == "__main__":
    main()
