"""`olnode verify`: check a proof file offline; every step is shown.

Why no daemon: a proof must hold for whoever distrusts all nodes. What is trusted is the genesis
of this home or of --genesis, or one block that you name.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli.frame import NOT_VERIFIED, CommandError, Frame, frame_of, new_noun, usage

if TYPE_CHECKING:
    from node.ledger.proofs import Trust
    from node.light import Report

app = new_noun()


@app.command()
def verify(
    ctx: typer.Context,
    file: Path,
    trust: Annotated[str | None, typer.Option(help="HEIGHT:BLOCK_ID that you trust")] = None,
    genesis: Annotated[Path | None, typer.Option(help="the chain's genesis file")] = None,
) -> None:
    """Check FILE; exit 0 only when every step holds, 6 when one does not."""
    from node.light import examine

    frame = frame_of(ctx)
    try:
        raw = file.read_bytes()
    except OSError as error:
        usage(f"{file} cannot be read: {error.strerror}")
    report = examine(raw, _trusted(frame, trust, genesis))
    if report.refusal is None or not frame.as_json:
        frame.show("verify/1", _fields(report), _lines(report))
    if report.refusal is not None:
        raise CommandError(
            f"NOT VERIFIED: {report.refusal}", status=NOT_VERIFIED, code=report.refusal.code
        )


def _trusted(frame: Frame, trust: str | None, genesis: Path | None) -> "Trust":
    """What the reader believes; without any of it the command ends."""
    from consensus.primitives.errors import Invalid
    from node.ledger.genesis import decode_genesis
    from node.light import trust_genesis

    path = genesis or frame.home / "genesis"
    if not path.is_file():
        usage(f"nothing to trust: there is no {path}", "--genesis FILE, or olnode init")
    try:
        believed = trust_genesis(decode_genesis(path.read_bytes()))
    except Invalid as error:
        usage(f"{path} is no genesis: {error}")
    if trust is None:
        return believed
    height, _, block_id = trust.partition(":")
    if not (height.isdecimal() and len(height) < 19 and len(block_id) == 64):
        usage("--trust is HEIGHT:BLOCK_ID")
    try:
        named = bytes.fromhex(block_id)
    except ValueError:
        usage("--trust: the block id is 64 hex digits")
    return believed._replace(validators=(), blocks={int(height): named})


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
