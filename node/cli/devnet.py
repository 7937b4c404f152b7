"""`olnode devnet`: a funded network on this machine, with models, data and traffic.

`--once` tells the story to its end and exits 0 only when a light client has verified the receipt
and the credited balance; without it the network stays until Ctrl-C, SIGTERM or SIGHUP (130, 143,
129), and its daemons end with it.
"""

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from node.cli.frame import (
    FAILED,
    INTERRUPTED,
    SIGNALLED,
    CommandError,
    Frame,
    frame_of,
    new_noun,
    note,
    table,
)

if TYPE_CHECKING:
    from node.devnet.telling import Ending

app = new_noun()

LABEL_WIDTH: Final = 15
BAR_CELLS: Final = 30
LINE_EVERY_S: Final = 10.0  # where no bar can be drawn


@app.command()
def devnet(
    ctx: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="tell the story once, then end")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="keep the homes of --once")] = False,
    reset: Annotated[bool, typer.Option("--reset", help="begin with a new chain")] = False,
    traffic: Annotated[
        float | None, typer.Option(min=0.0, help="questions a second; 0: none")
    ] = None,
    no_ml: Annotated[bool, typer.Option("--no-ml", help="ledger only: no models")] = False,
) -> int:
    """Run four validators, two providers and a payer, from a question to a paid contributor."""
    import trio

    from node.devnet.folder import check_ours, is_empty
    from node.devnet.story import run
    from node.devnet.telling import Wish

    frame = frame_of(ctx)
    settings = frame.settings()
    wish = Wish(
        home=_folder(frame.home_flag, settings.home),
        once=once,
        keep=keep,
        reset=reset,
        traffic_per_s=settings.config.devnet.traffic_per_s if traffic is None else traffic,
        with_models=not no_ml,
    )
    if reset and not once:
        check_ours(wish.home)  # before the question: nobody should say yes to a refusal
        if not is_empty(wish.home):
            frame.confirm(f"Remove the devnet in {wish.home}, its keys and its chain?")
    try:
        ending = trio.run(partial(run, wish, Terminal(frame)))
    except KeyboardInterrupt:  # before there was anything to stop
        return INTERRUPTED
    if ending.signal:
        with suppress(OSError):  # a terminal that hung up hears nothing
            note("stopped")
        return SIGNALLED + ending.signal
    _tell_end(frame, ending)
    return 0


def _tell_end(frame: Frame, ending: "Ending") -> None:
    if not ending.failure:
        frame.show("devnet/1", ending.facts, [])
        return
    if ending.log:
        note(ending.log)
    raise CommandError(
        f"the devnet stopped at stage “{ending.stage}”",
        status=FAILED,
        why=ending.failure,
        mend=f"see the logs in {ending.facts['home']}/*/log",
    )


class Terminal:
    """The story on stdout; on stderr where stdout belongs to a program's JSON."""

    def __init__(self, frame: Frame) -> None:
        self._out = sys.stderr if frame.as_json else sys.stdout
        self._draws = sys.stderr.isatty()
        self._told_s = 0.0

    def say(self, label: str, text: str) -> None:
        """` label          text`."""
        self._print(f" {label:<{LABEL_WIDTH - 1}} {text}")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Columns, indented below the line that they belong to."""
        for line in table(head, rows):
            self._print(f" {'':<{LABEL_WIDTH}}{line}")

    def progress(self, what: str, done: int, total: int) -> None:
        """A bar on a terminal, else a line each LINE_EVERY_S; both on stderr."""
        if self._draws:
            cells = BAR_CELLS * done // max(1, total)
            bar = "█" * cells + "·" * (BAR_CELLS - cells)
            end = "\n" if done >= total else ""
            sys.stderr.write(f"\r {what:<{LABEL_WIDTH - 1}} {bar} {done}/{total}\x1b[K{end}")
            sys.stderr.flush()
        elif time.monotonic() - self._told_s >= LINE_EVERY_S or done >= total:
            self._told_s = time.monotonic()
            note(f" {what:<{LABEL_WIDTH - 1}} {100 * done // max(1, total)} %")

    def _print(self, line: str) -> None:
        print(line, file=self._out, flush=True)


def _folder(flag: str | None, home: Path) -> Path:
    """All homes of the network lie in one folder: --home itself, or `devnet` in the usual home."""
    return home if flag else home / "devnet"
