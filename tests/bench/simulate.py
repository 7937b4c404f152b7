"""`olnode bench simulate`: page 20's fault campaign, for as many minutes as one likes.

Twins, engines under faults and whole nodes share the time so that the goals of one campaign (a
million, twenty thousand, two thousand) are met together. Runs are numbered from `--seed` times
SEEDS_APART on, so that two campaigns share none; `--replay kind:seed` plays one of them again.
"""

import argparse
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

from bench.protocol import AT_LEAST, AT_MOST, Budget, finish, quiet, tell
from simulation.campaign import RUNS
from simulation.outcomes import BROKEN, OK, STUCK, Outcome, replay_command

SEEDS_APART: Final = 10**9
MINUTES: Final = 5.0
TOLD_S: Final = 30.0
FAILURES_SHOWN: Final = 20


class Family(NamedTuple):
    """One kind of runs: its key in the result, how many make a campaign, how many make a task."""

    key: str
    goal: int
    batch: int


FAMILIES: Final = {
    "twins": Family("twins", 1_000_000, 1_000),
    "engine": Family("engine_runs", 20_000, 50),
    "whole": Family("whole_runs", 2_000, 4),
}


class Done(NamedTuple):
    """What a task came to."""

    kind: str
    runs: int
    cpu_s: float
    failures: list[tuple[int, str, str]]  # seed, end, why


def run_task(task: tuple[str, int, int]) -> Done:
    """A batch of runs of one kind, in a process of its own."""
    kind, first, count = task
    quiet()
    began_s, failures = time.process_time(), []
    for seed in range(first, first + count):
        try:
            outcome = RUNS[kind](seed)
        except Exception as error:  # noqa: BLE001  # a finding, and no reason to end the campaign
            outcome = Outcome(BROKEN, b"", f"{type(error).__name__}: {error}")
        if outcome.end != OK:
            failures.append((seed, outcome.end, outcome.why))
    return Done(kind, count, time.process_time() - began_s, failures)


class Campaign:
    """Hands out tasks until the time is over, and adds up what comes back."""

    def __init__(self, first_seed: int, until_s: float) -> None:
        self._until_s = until_s
        self._next = dict.fromkeys(FAMILIES, first_seed)
        self._first = first_seed
        self.runs: Counter[str] = Counter()
        self.cpu_s: Counter[str] = Counter()
        self.failures: list[tuple[str, int, str, str]] = []
        self._told_s = time.monotonic()

    def tasks(self) -> Iterator[tuple[str, int, int]]:
        """The kind that lags furthest behind its goal comes next."""
        while time.monotonic() < self._until_s:
            kind = min(FAMILIES, key=lambda name: self._handed(name) / FAMILIES[name].goal)
            first, count = self._next[kind], FAMILIES[kind].batch
            self._next[kind] += count
            yield kind, first, count

    def _handed(self, kind: str) -> int:
        return self._next[kind] - self._first

    def take(self, done: Done) -> None:
        """Count a task's runs."""
        self.runs[done.kind] += done.runs
        self.cpu_s[done.kind] += done.cpu_s
        for seed, end, why in done.failures:
            self.failures.append((done.kind, seed, end, why))
            if len(self.failures) <= FAILURES_SHOWN:
                tell(f"{end} {why}: {replay_command(done.kind, seed)}")
        now_s = time.monotonic()
        if now_s - self._told_s >= TOLD_S:
            self._told_s = now_s
            tell(", ".join(f"{name} {self.runs[name]:,}" for name in FAMILIES))

    def figures(self) -> dict[str, object]:
        """The keys of page 80, and the rates."""
        stuck = sum(end == STUCK for _, _, end, _ in self.failures)
        found: dict[str, object] = {fam.key: self.runs[name] for name, fam in FAMILIES.items()}
        found["safety_violations"] = len(self.failures) - stuck
        found["stuck"] = stuck
        for name, family in FAMILIES.items():
            cpu_s = self.cpu_s[name]
            found[f"{family.key}_per_cpu_s"] = round(self.runs[name] / cpu_s, 2) if cpu_s else 0
        found["failed"] = [replay_command(kind, seed) for kind, seed, _, _ in self.failures]
        return found


def run_campaign(minutes: float, seed: int, processes: int) -> Campaign:
    """A campaign of this length on so many processes."""
    campaign = Campaign(seed * SEEDS_APART, time.monotonic() + 60 * minutes)
    if processes == 1:
        for task in campaign.tasks():
            campaign.take(run_task(task))
        return campaign
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes) as pool:
        waiting = [pool.apply_async(run_task, (task,)) for task in _first(campaign, 2 * processes)]
        while waiting:
            campaign.take(waiting.pop(0).get())
            waiting += [pool.apply_async(run_task, (task,)) for task in _first(campaign, 1)]
    return campaign


def _first(campaign: Campaign, count: int) -> list[tuple[str, int, int]]:
    return [task for _, task in zip(range(count), campaign.tasks(), strict=False)]


def replay(word: str) -> None:
    """Play one run again and tell how it ends."""
    quiet()
    kind, _, seed = word.partition(":")
    outcome = RUNS[kind](int(seed))
    tell(f"{outcome.end} {outcome.why} trace {outcome.trace.hex()}")
    finish({"end": outcome.end, "why": outcome.why, "trace": outcome.trace.hex()}, ())


def main() -> None:
    """The command line of `olnode bench simulate`."""
    parser = argparse.ArgumentParser(prog="olnode bench simulate")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--seed", type=int, default=1, help="of the campaign")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--replay", metavar="KIND:SEED", help="one run of a campaign again")
    given = parser.parse_args()
    if given.replay:
        replay(given.replay)
        return
    campaign = run_campaign(given.minutes, given.seed, given.processes)
    goals = tuple(Budget(family.key, AT_LEAST, family.goal) for family in FAMILIES.values())
    none = tuple(Budget(key, AT_MOST, 0) for key in ("safety_violations", "stuck"))
    finish(campaign.figures(), none + goals)


if __name__ == "__main__":
    main()
