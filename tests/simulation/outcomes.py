"""What a simulated run came to, and the command that plays it again.

Why one integer: whatever a run draws comes from its seed, so that a failure found in a campaign of
a million is looked at alone, as often as needed.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

OK: Final = "OK"
FORK: Final = "FORK"  # two honest nodes decided differently at one height
STUCK: Final = "STUCK"  # healed, and yet somebody does not decide within ROUNDS_TO_DECIDE
BROKEN: Final = "BROKEN"  # another promise was not kept: `why` says which
VIOLATIONS: Final = (FORK, BROKEN)

ROUNDS_TO_DECIDE: Final = 10  # after everything is healed (page 20 §10)


class Outcome(NamedTuple):
    """How a run ended; equal seeds have equal traces. `facts`: what is told of it, by name."""

    end: str
    trace: bytes
    why: str = ""
    facts: tuple[tuple[str, float], ...] = ()


Played = Callable[[str], dict[int, Outcome]]  # kind of runs → how each ended, by seed


class Violation(Exception):
    """A promise was not kept: `end` is one of the words above."""

    def __init__(self, end: str, why: str) -> None:
        super().__init__(f"{end}: {why}")
        self.end = end
        self.why = why


def replay_command(kind: str, seed: int) -> str:
    """What to type to see one run again."""
    return f"olnode bench simulate --replay {kind}:{seed}"


def failures(kind: str, outcomes: dict[int, Outcome]) -> list[str]:
    """A line for each run that did not end well: what happened, and how to see it again."""
    return [
        f"{outcome.end} {outcome.why}: {replay_command(kind, seed)}"
        for seed, outcome in outcomes.items()
        if outcome.end != OK
    ]
