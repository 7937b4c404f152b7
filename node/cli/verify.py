"""`olnode verify`: check a proof file offline; every step is shown.

Why no daemon: a proof must hold for whoever distrusts all nodes. What is trusted is one block that
you name, the headers that `olnode light` kept in this home, or a genesis (`trust.py`).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from node.cli.frame import NOT_VERIFIED, USAGE, CommandError, frame_of, new_noun, usage
from node.cli.trust import trusted

if TYPE_CHECKING:
    from node.light import Report

app = new_noun()

UNKNOWN: Final = ("proof.no_validators", "proof.history", "proof.unlinked")  # nothing was false


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
