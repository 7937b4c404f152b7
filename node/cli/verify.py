"""`olnode verify`: check a proof file offline, or with --explain the shares of a settled receipt.

Why no daemon for a file: a proof must hold for whoever distrusts all nodes. What is trusted is one
block that you name, the headers that `olnode light` kept in this home, or a genesis (`trust.py`).
Why one for shares: rows of the index come from peers, each proven by the root on the ledger.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from node.cli.arguments import hash_in
from node.cli.frame import NOT_VERIFIED, USAGE, CommandError, Frame, frame_of, new_noun, usage
from node.cli.trust import trusted

if TYPE_CHECKING:
    from node.light import Report

app = new_noun()

UNKNOWN: Final = ("proof.no_validators", "proof.history", "proof.unlinked")  # nothing was false


@app.command()
def verify(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="proof file; with --explain a receipt's id")],
    explain: Annotated[
        bool, typer.Option("--explain", help="whether a receipt's shares are what the index gives")
    ] = False,
    trust: Annotated[str | None, typer.Option(help="HEIGHT:BLOCK_ID that you trust")] = None,
    genesis: Annotated[Path | None, typer.Option(help="the chain's genesis file")] = None,
) -> None:
    """Check FILE; exit 0 only when every step holds, 6 when one does not."""
    from node.light import examine

    frame = frame_of(ctx)
    if explain:
        _explain(frame, hash_in(str(file), "RECEIPT"))
        return
    try:
        raw = file.read_bytes()
    except OSError as error:
        usage(f"{file} cannot be read: {error.strerror}")
    believed, is_followed = trusted(frame, trust, genesis, raw)
    report = examine(raw, believed)
    if report.refusal is None or not frame.as_json:
        frame.show("verify/1", _fields(report), _lines(report))
    if report.refusal is None:
        return
    code = report.refusal.code
    if is_followed and code in UNKNOWN:
        newest = max(believed.blocks)
        raise CommandError(
            f"NOT VERIFIED: no trusted header leads there: {report.refusal}",
            status=USAGE,
            code=code,
            mend=f"olnode light --once, or ask for a proof under the trusted block {newest}",
        )
    raise CommandError(f"NOT VERIFIED: {report.refusal}", status=NOT_VERIFIED, code=code)


def _explain(frame: Frame, receipt: bytes) -> None:
    """What the node finds of a receipt's shares; ends with 6 where they are false, with 1 where it
    cannot tell."""
    told = frame.daemon().get(f"/ledger/receipts/{receipt.hex()}/check")
    if told["verdict"] == "true" or not frame.as_json:
        frame.show("verify.shares/1", told, _share_lines(told))
    if told["verdict"] == "unknown":
        raise CommandError(
            "NOT VERIFIED: nothing was checked: the sketch is not shown to this node",
            code=told["why"],
            mend="ask the node that bought the answer, that gave it, or a validator's",
        )
    if told["verdict"] == "false":
        raise CommandError(
            f"NOT VERIFIED: the shares are false: {told['why']}",
            status=NOT_VERIFIED,
            code=told["why"],
            mend="none needed: the node keeps the proof in evidence/ and accuses the provider",
        )


def _share_lines(told: dict[str, Any]) -> list[str]:
    lines = [f"model {told['model']}@{told['version']}, {told['credits']} contributions credited"]
    if told["verdict"] != "true":
        return lines
    if not told["index_rows"]:
        return [*lines, "  ok  nothing is credited, and nothing is claimed", "VERIFIED"]
    lines += ["  ok  sketch and statement are those that the receipt commits to"]
    lines += ["  ok  the statement pays what was settled"]
    if told["drawn_rows"] == told["index_rows"]:
        lines.append(f"  ok  all {told['index_rows']} rows of the index were scanned")
    else:
        lines.append(
            f"  ok  {told['paid_rows']} paid rows, {told['panel_rows']} of the panel, "
            f"{told['drawn_rows']} drawn of {told['index_rows']}"
        )
    return [*lines, "VERIFIED"]


def _fields(report: "Report") -> dict[str, Any]:
    return {
        "verified": report.refusal is None,
        "steps": [{"what": step.what, "detail": step.detail} for step in report.steps],
        "blocks": [{"height": p.height, "block_id": p.block_id.hex()} for p in report.proofs],
        "asserted": list(report.asserted),
    }


def _lines(report: "Report") -> list[str]:
    lines = []
    for step in report.steps:
        lines += [f"  ok  {step.what}", f"      {step.detail}"]
    if report.refusal is None:
        lines += [f"note: {told}" for told in report.asserted]
        lines.append("VERIFIED")
    return lines
