"""`olnode devnet`: a funded network on this machine, with models, data and traffic.

`--once` tells the story to its end and exits 0 only when a light client has verified the receipt
and the credited balance; without it the network stays until Ctrl-C.
"""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from node.cli.frame import INTERRUPTED, frame_of, new_noun

app = new_noun()


@app.command()
def devnet(
    ctx: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="tell the story once, then end")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="keep the homes of --once")] = False,
    reset: Annotated[bool, typer.Option("--reset", help="begin with a new chain")] = False,
    traffic: Annotated[
        float | None, typer.Option(min=0.0, help="questions a second; 0: none")
    ] = None,
) -> int:
    """Run four validators, two providers and a payer, from a question to a paid contributor."""
    import trio

    from node.devnet.story import run

    frame = frame_of(ctx)
    settings = frame.settings()
    story = partial(
        run,
        home=_folder(frame.home_flag, settings.home),
        once=once,
        keep=keep,
        reset=reset,
        traffic_per_s=settings.config.devnet.traffic_per_s if traffic is None else traffic,
        say=print,
    )
    try:
        return trio.run(story)
    except KeyboardInterrupt:
        return INTERRUPTED


def _folder(flag: str | None, home: Path) -> Path:
    """All homes of the network lie in one folder: --home itself, or `devnet` in the usual home."""
    return home if flag else home / "devnet"
