"""What the devnet is asked for, who hears it, and how it ended.

What this file does not know: any stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


class Teller(Protocol):
    """Who hears the story: a terminal, a log, a program."""

    def say(self, label: str, text: str) -> None:
        """One line."""
        ...

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Aligned columns."""
        ...

    def progress(self, what: str, done: int, total: int) -> None:
        """How far a long step is."""
        ...


@dataclass(frozen=True, slots=True)
class Wish:
    """How the devnet is to run. `home` holds one that stays; --once makes a temporary one."""

    home: Path
    once: bool
    keep: bool
    reset: bool
    traffic_per_s: float
    with_models: bool


@dataclass(slots=True)
class Ending:
    """How it ended: the stage reached, why it failed or "", and the facts for a program.

    `signal`: the number of the one that ended it in order, or 0.
    """

    stage: str = "settling"
    failure: str = ""
    signal: int = 0
    log: str = ""  # the last lines of a daemon that died
    facts: dict[str, Any] = field(default_factory=dict)
