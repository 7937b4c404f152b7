"""`olnode earnings`: what an account earned, by model, Datanet and contribution, or day.

Why not by receipt: fees are split once per block and version, so a receipt alone has no exact
amount; `--explain` shows how one was shared, and why.
"""

import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from node.cli.arguments import HEIGHT_DIGITS_MAX, account_in, hash_in
from node.cli.frame import DONE, Frame, frame_of, new_noun, open_text, table, usage
from node.ledger.addresses import account_text

app = new_noun()

BY: Final = ("contribution", "datanet", "model", "day")
DAY_MS: Final = 86_400_000
FIRST_DAY: Final = date(1970, 1, 1)


@app.command()
def earnings(
    ctx: typer.Context,
    account: Annotated[str | None, typer.Option(help="open1…; else this node's own")] = None,
    since: Annotated[
        str | None, typer.Option(help="first block to count: a height, or YYYY-MM-DD in UTC")
    ] = None,
    by: Annotated[str | None, typer.Option(help=f"one row for each {', '.join(BY)}")] = None,
    explain: Annotated[
        str | None, typer.Option(help="a receipt's id: why its answer paid whom")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="with --explain: a picture of the shares, a PNG file, or FILE.dot"),
    ] = None,
) -> int:
    """What an account earned: matured, and maturing (in the challenge window).

    Of data, before the Datanet's cut and what a correction shares with the first author.
    """
    frame = frame_of(ctx)
    if explain is not None:
        if (account, since, by) != (None, None, None):
            usage("--explain is about one receipt: without --account, --since and --by")
        from node.cli.explaining import show

        return show(frame, hash_in(explain, "--explain").hex(), plot)
    if plot is not None:
        usage("--plot draws what --explain tells", "olnode earnings --explain RECEIPT --plot FILE")
    query = _query(since, by)
    if account is not None:
        account_in(account, "--account")
    chosen = account or _own(frame)
    told = _find(frame, chosen, query)
    rows = [
        (
            *(item[name] or "-" for name in told["by"]),
            item["blocks"],
            open_text(item["matured"]),
            open_text(item["maturing"]),
        )
        for item in told["items"]
    ]
    total = (
        f"{chosen}: {open_text(told['matured'])} matured, {open_text(told['maturing'])} maturing"
    )
    lines = [*table((*told["by"], "blocks", "matured", "maturing"), rows), total]
    if told["since_height"] > 1:
        why = "" if told["complete"] else ": more than is read at once"
        lines.append(f"older than block {told['since_height']}: not counted{why}")
    frame.show("earnings/1", told, lines)
    return DONE


def _query(since: str | None, by: str | None) -> str:
    """The query part of the route; ends the command for what cannot be meant."""
    if by is not None and by not in BY:
        usage(f"--by {by!r} is none of {', '.join(BY)}", "olnode query receipt ID, for one receipt")
    parts = [] if by is None else [f"by={by}"]
    if since is not None:
        parts.append(_start(since))
    return "?" + "&".join(parts) if parts else ""


def _start(since: str) -> str:
    if since.isascii() and since.isdecimal() and len(since) <= HEIGHT_DIGITS_MAX:
        return f"since_height={int(since)}"
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", since, re.ASCII):
        try:
            days = (date.fromisoformat(since) - FIRST_DAY).days
        except ValueError:
            days = -1
        if days >= 0:
            return f"since_ms={days * DAY_MS}"
    usage(f"--since {since!r} is neither a height nor a day as 2026-01-31")


def _find(frame: Frame, account: str, query: str) -> dict[str, Any]:
    from node.web.ask import Refusal

    try:
        return frame.daemon().get(f"/ledger/accounts/{account}/earnings{query}")
    except Refusal as error:
        if error.status != 404:
            raise
        nothing = {"account": account, "matured": "0", "maturing": "0", "since_height": 1}
        return {**nothing, "complete": True, "by": [], "items": []}


def _own(frame: Frame) -> str:
    store = frame.keystore(frame.initialised())
    key = store.find("operator") or store.find("node")
    if key is None:
        usage("this home has no key", "--account open1…")
    return account_text(key.public_key)
