"""What every bench shares: figures and budgets out, one JSON object on stdout.

    python tests/bench/NAME.py [options]   → {"figures": {…}, "budgets": [[key, "at most", 250], …]}

`olnode bench NAME` runs it as a child process and prints each budget beside the figure reached.
Progress goes to stderr. What this file does not know: any bench.
"""

import json
import sys
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

import structlog

AT_MOST: Final = "at most"
AT_LEAST: Final = "at least"


class Budget(NamedTuple):
    """What a figure must be, in the figure's own unit."""

    key: str
    sense: Literal["at most", "at least"]
    limit: float


def finish(figures: Mapping[str, object], budgets: tuple[Budget, ...]) -> None:
    """Hand the result over; each budget must have its figure."""
    missing = [budget.key for budget in budgets if budget.key not in figures]
    assert not missing, f"no figures for {missing}"
    print(json.dumps({"figures": figures, "budgets": budgets}), flush=True)  # noqa: T201


def quiet() -> None:
    """Our own events would land on stdout, and nodes under attack warn a lot."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("critical"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def tell(line: str) -> None:
    """Progress, for people."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201
