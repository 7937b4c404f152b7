"""`olnode peers`: whom this node is connected to; add one, ban one for a time, let it in again."""

from typing import Annotated, Any, Final

import typer

from node.cli.arguments import ms_in
from node.cli.frame import Frame, frame_of, new_noun, note, table

app = new_noun("Connected and banned peers.")

BAN_DAYS_MAX: Final = 30

PeerId = Annotated[str, typer.Argument(help="as `olnode peers list` shows it")]


@app.command("list")
def list_(ctx: typer.Context) -> None:
    """Connected peers, then those that are banned."""
    frame = frame_of(ctx)
    _show(frame, "list", frame.daemon().get("/peers"))


@app.command()
def add(
    ctx: typer.Context,
    address: Annotated[str, typer.Argument(help="/ip4/…/tcp/…/p2p/PEER_ID")],
) -> None:
    """Dial a peer now, and keep it as a reserved one until the next start."""
    frame = frame_of(ctx)
    told = frame.daemon().post("/peers", {"address": address})
    frame.show("peers.add/1", told, [f"dialling {told['peer_id']}: olnode peers list"])
    note(f'for longer: reserved = ["{address}"] under [p2p] of config.toml')


@app.command()
def ban(
    ctx: typer.Context,
    peer_id: PeerId,
    length: Annotated[str, typer.Option("--for", help=f"90m, 12h, {BAN_DAYS_MAX}d")] = "1d",
) -> None:
    """Disconnect a peer and neither dial nor take it for so long, also after a restart."""
    frame = frame_of(ctx)
    seconds = ms_in(length, "--for") // 1_000
    _show(frame, "ban", frame.daemon().post(f"/peers/{peer_id}/ban", {"seconds": seconds}))
    note(f'for ever: deny = ["{peer_id}"] under [p2p] of config.toml')


@app.command()
def unban(ctx: typer.Context, peer_id: PeerId) -> None:
    """End a ban, and forget what the peer did."""
    frame = frame_of(ctx)
    _show(frame, "unban", frame.daemon().post(f"/peers/{peer_id}/unban"))


def _show(frame: Frame, command: str, told: dict[str, Any]) -> None:
    head = ("peer_id", "direction", "rtt_ms", "height", "score", "admitted", "reserved", "address")
    rows = [[_word(peer[name]) for name in head] for peer in told["peers"]]
    lines = table(head, rows)
    if told["bans"]:
        bans = [(ban["peer_id"], ban["seconds_left"]) for ban in told["bans"]]
        lines += ["", *table(("banned", "seconds left"), bans)]
    frame.show(f"peers.{command}/1", told, lines)


def _word(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
