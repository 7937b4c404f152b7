"""What a failed command says, and the exit status that it ends with.

Operator's faults carry `what`, `mend` and `exit_status`; a refusal is `Invalid` with its code;
anything else is our own and leaves a crash file. trio nests the real error in groups (an OSError
two deep), so the first leaf that explains itself speaks.
"""

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from typing import Any

import typer

from consensus.primitives.errors import Invalid
from node.cli.frame import FAILED, FUNDS, INTERRUPTED, USAGE
from node.storage.errors import find_refusal

FUNDS_REASONS = frozenset({"insufficient", "cannot_pay", "budget_exhausted", "channel_exhausted"})


def tell(error: BaseException, *, as_json: bool) -> int:
    """Say what happened, on stderr or as an object on stdout; returns the exit status."""
    leaf = _speaker(error)
    if isinstance(leaf, SystemExit):
        return leaf.code if isinstance(leaf.code, int) else FAILED
    if isinstance(leaf, KeyboardInterrupt | typer.Abort):
        sys.stderr.write("olnode: interrupted\n")
        return INTERRUPTED
    if type(leaf).__name__ == "NoArgsIsHelpError":  # a group without its noun: its help, exit 2
        sys.stderr.write(f"{leaf}\n")
        return USAGE
    status, told = _explained(leaf) or (FAILED, _crashed(error))
    if as_json:
        print(json.dumps({"schema": "olnode.error/1", "exit": status, **told}))
    sys.stderr.write(f"olnode: {told['what']}\n")
    for name in ("mend", "why"):
        if told.get(name):
            sys.stderr.write(f"  {name}: {told[name]}\n")
    return status


def _explained(error: BaseException) -> tuple[int, dict[str, str]] | None:
    """Status and words of an error that was foreseen; None for our own fault."""
    if _is_usage(error):
        said: Any = error
        return USAGE, {"what": said.format_message(), "mend": "olnode --help"}
    if isinstance(error, Invalid):
        reason = error.code.rsplit(".", 1)[-1]
        status = FUNDS if reason in FUNDS_REASONS else FAILED
        return status, {"what": str(error), "code": error.code}
    if isinstance(error, OSError):
        error = find_refusal("the system refused", error) or error
    if not hasattr(error, "exit_status"):
        return None
    told = {"what": str(getattr(error, "what", error))}
    told |= {name: getattr(error, name, "") for name in ("mend", "why", "code")}
    return error.exit_status, {name: value for name, value in told.items() if value}


def _is_usage(error: BaseException) -> bool:
    # By name: typer brings its own click, whose base class it exports nowhere.
    return any(kind.__name__ == "ClickException" for kind in type(error).__mro__)


def _crashed(error: BaseException) -> dict[str, str]:
    """Keep the trace in a file: one line is for the operator, the file for us."""
    descriptor, path = tempfile.mkstemp(prefix="olnode-crash-", suffix=".txt")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.writelines(traceback.format_exception(error))
    what = f"unforeseen {type(_speaker(error)).__name__}: {_speaker(error)}"
    return {"what": what, "why": f"the trace is in {path}; please report it"}


def _speaker(error: BaseException) -> BaseException:
    leaves = list(_leaves(error))
    explained = [leaf for leaf in leaves if _explained(leaf) is not None]
    return (explained or leaves)[0]


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
