"""`olnode bench crash`: kill a node at as many points as one likes, and judge what it kept.

Each process has homes of its own and a seed of its own, so that a campaign can be played again.
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
from crashes.campaign import Campaign, Found

POINTS: Final = 1_000
BATCH: Final = 50
FAULTS_SHOWN: Final = 20


def run_batch(task: tuple[int, int]) -> Found:
    """So many kills from one seed."""
    seed, points = task
    quiet()
    with tempfile.TemporaryDirectory(prefix="olnode-crash-") as folder:
        return Campaign(Path(folder), seed).run(points)


def run_campaign(points: int, seed: int, processes: int) -> list[Found]:
    """So many kills on so many processes."""
    return run_batches(
        run_batch,
        points,
        batch=BATCH,
        seed=seed,
        processes=processes,
        tell=lambda found: tell(f"{sum(each.points for each in found):,} points"),
    )


def figures_of(found: list[Found]) -> dict[str, object]:
    """Points, and what was found at them; `at`: instead of which operation, if not of any."""
    figures: dict[str, object] = {"points": sum(one.points for one in found)}
    for kind in ("lost", "different", "refused"):
        faults = [fault for one in found for fault in getattr(one, kind)]
        for fault in faults[:FAULTS_SHOWN]:
            tell(f"{kind}: {fault}")
        figures[kind] = len(faults)
    at = sum((one.at for one in found), Counter[str]())
    return {**figures, "at": dict(sorted(at.items()))}


def main() -> None:
    """The command line of `olnode bench crash`."""
    parser = argparse.ArgumentParser(prog="olnode bench crash")
    parser.add_argument("--points", type=int, default=POINTS)
    parser.add_argument("--seed", type=int, default=1, help="of the campaign")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    none = tuple(Budget(key, AT_MOST, 0) for key in ("lost", "different", "refused"))
    goal = Budget("points", AT_LEAST, given.points)
    began_s = time.monotonic()
    figures = figures_of(run_campaign(given.points, given.seed, given.processes))
    finish({**figures, "seconds": round(time.monotonic() - began_s, 1)}, (goal, *none))


if __name__ == "__main__":
    main()
