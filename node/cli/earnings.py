"""`olnode earnings`: what an account earned, by model, Datanet and contribution."""

from typing import Annotated, Any

import typer

from node.cli.frame import Frame, frame_of, new_noun, open_text, table, usage
from node.ledger.addresses import account_text

app = new_noun()


@app.command()
def earnings(
    ctx: typer.Context,
    account: Annotated[str | None, typer.Option(help="open1…; else this node's own")] = None,
) -> None:
    """What an account earned: matured (in its balance) and maturing (in the challenge window)."""
    frame = frame_of(ctx)
    chosen = account or _own(frame)
    told = _find(frame, chosen)
    rows = [
        (
            item["kind"],
            item["contribution"] or "-",
            item["datanet"] or "-",
            item["model"],
            item["blocks"],
            open_text(item["matured"]),
            open_text(item["maturing"]),
        )
        for item in told["items"]
    ]
    head = ("kind", "contribution", "datanet", "model", "blocks", "matured", "maturing")
    total = (
        f"{chosen}: {open_text(told['matured'])} matured, {open_text(told['maturing'])} maturing"
    )
    lines = [*table(head, rows), total]
    if told["since_height"] > 1:
        lines.append(f"older than block {told['since_height']}: not counted")
    frame.show("earnings/1", told, lines)


def _find(frame: Frame, account: str) -> dict[str, Any]:
    from node.web.ask import Refusal

    try:
        return frame.daemon().get(f"/ledger/accounts/{account}/earnings")
    except Refusal as error:
        if error.status != 404:
            raise
        nothing = {"account": account, "matured": "0", "maturing": "0", "since_height": 1}
        return {**nothing, "items": []}


def _own(frame: Frame) -> str:
    store = frame.keystore(frame.initialised())
    key = store.find("operator") or store.find("node")
    if key is None:
        usage("this home has no key", "--account open1…")
    return account_text(key.public_key)
