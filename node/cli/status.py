"""`olnode status`: the running node at a glance; `--ready` for those who watch it."""

import time
from typing import Annotated, Any, Final

import typer

from node.cli.frame import DONE, FAILED, Frame, frame_of, new_noun, open_text, pairs

app = new_noun()

WATCH_S: Final = 1.0


@app.command()
def status(
    ctx: typer.Context,
    ready: Annotated[bool, typer.Option("--ready", help="only exit 0 or 1")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="again each second, until Ctrl-C")] = False,
) -> int:
    """Chain, height, peers, roles and engine of the running node."""
    frame = frame_of(ctx)
    node = frame.daemon()
    if ready:
        return DONE if node.get("/status")["ready"] else FAILED
    _show(frame, node.get("/status"))
    while watch:
        time.sleep(WATCH_S)
        _show(frame, node.get("/status"))
    return DONE


def _show(frame: Frame, told: dict[str, Any]) -> None:
    failing = [name for name, good in told["checks"].items() if not good]
    signing = f"yes, last {told['last_signed_height']}" if told["signing"] else "no"
    lines = pairs(
        [
            ("chain", f"{told['chain_id'][:16]}…  profile {told['profile']}"),
            ("node", f"{told['name'] or '-'}  {told['node_account']}"),
            ("roles", " ".join(told["roles"])),
            ("height", f"{told['height']}  {told['block_id'][:16]}…  lag {told['lag_blocks']}"),
            ("peers", told["peers"]),
            ("validators", f"{told['validators']}  signing: {signing}"),
            ("engine", f"{told['engine']}  {' '.join(told['models'])}".rstrip()),
            ("pool", f"{told['pool_transactions']} transactions, {told['pool_bundles']} bundles"),
            ("kept", f"{told['kept_bundles']} bundles of other providers"),
            ("supply", open_text(told["supply"])),
            *([("silent", told["why_silent"])] if told["why_silent"] else []),
            *([("damage", told["damage"])] if told["damage"] else []),
            ("ready", "yes" if told["ready"] else f"no: {' '.join(failing)}"),
        ]
    )
    frame.show("status/1", told, lines)
