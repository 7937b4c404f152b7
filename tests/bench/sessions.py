"""`olnode bench sessions`: a campaign of payers and providers of which one lies, from page 30 §12.

The runs are the tests' (`tests/simulation/sessions.py`), numbered from `--seed` times SEEDS_APART
on, so that two campaigns share none; what ends ill is told with the command that plays it again.
Ctrl-C ends it and all its processes, and tells how far it was.
"""

import argparse
import itertools
import multiprocessing
import os
import sys
import time
from typing import Any, Final

from bench.protocol import AT_LEAST, AT_MOST, Budget, finish, quiet, tell
from simulation.outcomes import BROKEN, OK, Outcome, replay_command
from simulation.session_ledger import ABOVE_CAP
from simulation.sessions import GRAINS_LOST, HOLDS_LOST, SESSIONS, session_run

KIND: Final = "session"
SEEDS_APART: Final = 10**9
CAMPAIGN: Final = 1_000_000
BATCH: Final = 10  # runs of a task
TOLD_S: Final = 30.0
FAILURES_SHOWN: Final = 20
CANCELLED: Final = 130  # as a shell tells of Ctrl-C

Played = list[tuple[int, Outcome]]


def play_batch(first: int) -> Played:
    """Some runs, in a process of its own."""
    quiet()
    return [(seed, _play(seed)) for seed in range(first, first + BATCH)]


def _play(seed: int) -> Outcome:
    try:
        return session_run(seed)
    except Exception as error:  # noqa: BLE001  # a finding, and no reason to end the campaign
        return Outcome(BROKEN, b"", f"{type(error).__name__}: {error}")


class Campaign:
    """Adds up what comes back, until there are enough sessions."""

    def __init__(self, sessions: int) -> None:
        self.wanted = sessions
        self._told_s = time.monotonic()
        self.sessions = 0
        self.holds_lost = 0.0
        self.grains_lost = 0.0
        self.failures: list[tuple[int, str]] = []

    @property
    def is_done(self) -> bool:
        """Whether there are enough."""
        return self.sessions >= self.wanted

    def take(self, played: Played) -> None:
        """Count a task's runs."""
        for seed, outcome in played:
            facts = dict(outcome.facts)
            self.sessions += int(facts.get("sessions", 0))
            self.holds_lost = max(self.holds_lost, facts.get(HOLDS_LOST, 0))
            self.grains_lost = max(self.grains_lost, facts.get(GRAINS_LOST, 0))
            if outcome.end != OK:
                self.failures.append((seed, outcome.why))
                if len(self.failures) <= FAILURES_SHOWN:
                    tell(f"{outcome.end} {outcome.why}: {replay_command(KIND, seed)}")
        now_s = time.monotonic()
        if now_s - self._told_s >= TOLD_S:
            self._told_s = now_s
            self.tell()

    def tell(self) -> None:
        """How far it is."""
        tell(f"sessions {self.sessions:,}, violations {len(self.failures)}")

    def figures(self, took_s: float) -> dict[str, Any]:
        """What the note asks for."""
        return {
            "sessions": self.sessions,
            "loss_max_payer_in_holds": round(self.holds_lost, 6),
            "loss_max_provider": int(self.grains_lost),
            "above_cap": sum(why == ABOVE_CAP for _, why in self.failures),
            "violations": len(self.failures),
            "sessions_per_s": round(self.sessions / took_s, 1),
            "failed": [replay_command(KIND, seed) for seed, _ in self.failures],
        }


def run_campaign(campaign: Campaign, seed: int, jobs: int) -> None:
    """Until the campaign has its sessions, on so many processes."""
    firsts = itertools.count(seed * SEEDS_APART, BATCH)
    if jobs == 1:
        while not campaign.is_done:
            campaign.take(play_batch(next(firsts)))
        return
    tasks = itertools.islice(firsts, -(-campaign.wanted // (SESSIONS * BATCH)))
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for played in pool.imap_unordered(play_batch, tasks):
            campaign.take(played)
            if campaign.is_done:
                break


def main() -> None:
    """The command line of `olnode bench sessions`."""
    parser = argparse.ArgumentParser(prog="olnode bench sessions")
    parser.add_argument("--sessions", type=int, default=CAMPAIGN)
    parser.add_argument("--seed", type=int, default=1, help="of the campaign")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    began_s, campaign = time.monotonic(), Campaign(given.sessions)
    try:
        run_campaign(campaign, given.seed, given.jobs)
    except KeyboardInterrupt:
        campaign.tell()
        sys.exit(CANCELLED)
    budgets = (
        Budget("loss_max_payer_in_holds", AT_MOST, 1),
        *(Budget(key, AT_MOST, 0) for key in ("loss_max_provider", "above_cap", "violations")),
        Budget("sessions", AT_LEAST, CAMPAIGN),
    )
    finish(campaign.figures(time.monotonic() - began_s), budgets)


if __name__ == "__main__":
    main()
