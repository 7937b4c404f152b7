"""`olnode stop`: ask the running node to end in order, and wait until it has."""

import time
from typing import Annotated, Final

import typer

from node.cli.frame import CommandError, frame_of, new_noun

app = new_noun()

POLL_S: Final = 0.1


@app.command()
def stop(
    ctx: typer.Context,
    timeout: Annotated[int, typer.Option(min=1, max=3_600, help="seconds to wait")] = 60,
) -> None:
    """End the node: drain, last bundle, no more votes, storage last."""
    from node.storage.errors import HomeInUse
    from node.storage.lock import lock_home

    frame = frame_of(ctx)
    frame.daemon().post("/stop")
    until = time.monotonic() + timeout
    while True:
        try:
            lock_home(frame.home).release()  # it is ours: the daemon has let go of everything
            break
        except HomeInUse:
            if time.monotonic() > until:
                raise CommandError(
                    f"the node still runs after {timeout} s", mend=f"olnode stop --timeout {4 * 60}"
                ) from None
            time.sleep(POLL_S)
    frame.show("stop/1", {"stopped": True}, ["stopped"])
