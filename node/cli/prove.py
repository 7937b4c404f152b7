"""`olnode prove`: a file that shows what the ledger holds, for anybody to check offline.

Why beside `query`: a query is this node's word, a proof needs nobody's. The file is checked before
it is kept, against the block that this node names; `olnode verify` asks whom its reader trusts.
What it does not know: how proofs are made.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from node.cli.arguments import account_in, hash_in
from node.cli.finding import find_row, settled
from node.cli.frame import NOT_VERIFIED, CommandError, Frame, frame_of, new_noun, note, usage

if TYPE_CHECKING:
    from node.light import Report
    from node.web.ask import Node

app = new_noun("A file that proves what the ledger holds.")

Out = Annotated[Path, typer.Argument(help="the file to make")]
At = Annotated[int, typer.Option(min=0, help="after that block; 0: the newest")]
Hex = Annotated[str, typer.Argument(help="64 hex digits")]
VERSION: Final = re.compile(r"[1-9][0-9]{0,8}")


@app.command()
def account(ctx: typer.Context, account: str, out: Out, height: At = 0) -> None:
    """The record of an account, or that there is none."""
    account_in(account, "ACCOUNT")
    _keep(frame_of(ctx), f"/ledger/accounts/{account}/proof", out, height)


@app.command()
def channel(ctx: typer.Context, channel: Hex, out: Out, height: At = 0) -> None:
    """The record of a payment channel, or that there is none."""
    name = hash_in(channel, "CHANNEL").hex()
    _keep(frame_of(ctx), f"/ledger/channels/{name}/proof", out, height)


@app.command()
def version(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="name@version; or name or number, then VERSION")],
    words: Annotated[list[str], typer.Argument(metavar="[VERSION] OUT", help="the file to make")],
    height: At = 0,
) -> None:
    """The record of a model version, or that there is none."""
    frame = frame_of(ctx)
    named, at, version = model.partition("@")
    *numbers, out = [version, *words] if at else words
    if len(numbers) != 1 or not VERSION.fullmatch(numbers[0]):
        usage("a version is NAME@VERSION or NAME VERSION", "olnode prove version NAME@VERSION OUT")
    number = find_row(frame.daemon(), "models", named)["number"]
    _keep(frame, f"/ledger/models/{number}/versions/{numbers[0]}/proof", Path(out), height)


@app.command()
def contribution(
    ctx: typer.Context, number: Annotated[int, typer.Argument(min=1)], out: Out, height: At = 0
) -> None:
    """The record of a contribution, or that there is none."""
    _keep(frame_of(ctx), f"/ledger/contributions/{number}/proof", out, height)


@app.command()
def receipt(ctx: typer.Context, receipt: Hex, out: Out) -> None:
    """A settled receipt, and what its block paid for it."""
    name = hash_in(receipt, "RECEIPT").hex()
    settled(name, lambda: _keep(frame_of(ctx), f"/ledger/receipts/{name}/proof", out))


@app.command()
def tx(ctx: typer.Context, transaction: Hex, out: Out) -> None:
    """A settled transaction with the code that it ended with."""
    name = hash_in(transaction, "TRANSACTION").hex()
    _keep(frame_of(ctx), f"/ledger/transactions/{name}/proof", out)


def _keep(frame: Frame, route: str, out: Path, height: int = 0) -> None:
    """Fetch, check and write; a file that is there stays."""
    if out.exists():
        usage(f"{out} is there already", "name another file")
    node = frame.daemon()
    raw = node.get_bytes(f"{route}?height={height}" if height else route)
    report = _checked(node, raw)
    try:
        with out.open("xb") as file:
            file.write(raw)
    except OSError as error:
        usage(f"{out} cannot be written: {error.strerror}")
    height = report.proofs[0].height
    told = {"file": str(out), "bytes": len(raw), "height": height, "shown": report.shown}
    lines = [*report.shown, f"as of block {height}, in {out}: {len(raw):,} bytes"]
    frame.show("prove/1", told, lines)
    note(f"olnode verify {out} --genesis {frame.home / 'genesis'}")


def _checked(node: "Node", raw: bytes) -> "Report":
    """What the file shows under the block that the node names."""
    from node.ledger.proofs import decode_proofs
    from node.light import examine, trust_block

    height = decode_proofs(raw)[0].height
    block = node.get(f"/ledger/blocks/{height}")
    report = examine(raw, trust_block(height, bytes.fromhex(block["block_id"]), raw))
    if report.refusal is not None:
        raise CommandError(
            f"the node's own proof does not hold: {report.refusal}",
            status=NOT_VERIFIED,
            code=report.refusal.code,
            mend="olnode db check",
        )
    return report
