"""`olnode verify`: check a proof file offline, or with --explain the shares of a settled receipt.

Why no daemon for a file: a proof must hold for whoever distrusts all nodes. What is trusted is one
block that you name, the headers that `olnode light` kept in this home, or a genesis (`trust.py`).
Why one for shares: rows of the index come from peers, each proven by the root on the ledger.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

from node.cli.arguments import hash_in, read_file
from node.cli.finding import settled
from node.cli.frame import NOT_VERIFIED, USAGE, CommandError, Frame, frame_of, new_noun, usage
from node.cli.trust import trusted

if TYPE_CHECKING:
    from consensus.primitives.errors import Invalid
    from node.ledger.proofs import Trust
    from node.light import Report
    from node.web.ask import Node

app = new_noun()

KEPT_BYTES_MAX: Final = 8 << 20
AUDIT_TIMEOUT_S: Final = 600.0  # after all answers that are under way
SKETCH_WORDS: Final = {
    "fail": "the sketch is not of this prompt and answer",
    "suspect": "the sketch differs more than honest machines do; one such alone proves nothing",
}
OPENED: Final = {  # by the refusal of what was kept
    "disclosure.receipt": "another receipt's",
    "disclosure.order": "of another order",
    "disclosure.prompt": "not of its prompt",
    "disclosure.answer": "not of its answer",
    "disclosure.sketch": "not of its sketch",
}
UNKNOWN: Final = ("proof.no_validators", "proof.history", "proof.unlinked")  # nothing was false


@app.command()
def verify(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="proof file; with --explain a receipt's id")],
    explain: Annotated[
        bool, typer.Option("--explain", help="whether a receipt's shares are what the index gives")
    ] = False,
    kept: Annotated[
        Path | None,
        typer.Option(help="with --explain: a file of `infer --keep`; its sketch is made again"),
    ] = None,
    trust: Annotated[
        str | None,
        typer.Option(help="HEIGHT:BLOCK_ID that you trust: the block that FILE is of"),
    ] = None,
    genesis: Annotated[Path | None, typer.Option(help="the chain's genesis file")] = None,
) -> None:
    """Check FILE; exit 0 only when every step holds, 6 when one does not."""
    from node.light import examine

    frame = frame_of(ctx)
    if explain:
        receipt = hash_in(str(file), "RECEIPT")
        _explain(frame, receipt, kept)
        return
    if kept is not None:
        usage("--kept is about one receipt", "olnode verify RECEIPT --explain --kept FILE")
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
    _refuse(report.refusal, believed, is_followed, raw)


def _refuse(refusal: "Invalid", believed: "Trust", is_followed: bool, raw: bytes) -> NoReturn:
    """End with 6; with 2 where nothing is false, but what this home followed does not reach it."""
    from node.ledger.proofs import decode_proofs

    if refusal.code not in UNKNOWN:
        raise CommandError(f"NOT VERIFIED: {refusal}", status=NOT_VERIFIED, code=refusal.code)
    own = f"--trust {decode_proofs(raw)[0].height}:BLOCK_ID, the block that the proof is of"
    if not is_followed:
        raise CommandError(
            f"NOT VERIFIED: {refusal}", status=NOT_VERIFIED, code=refusal.code, mend=own
        )
    raise CommandError(
        f"NOT VERIFIED: no trusted header leads there: {refusal}",
        status=USAGE,
        code=refusal.code,
        mend=f"olnode light --once; {own}; a proof under the trusted block {max(believed.blocks)}",
    )


def _kept_in(path: Path) -> dict[str, Any]:
    """What `infer --keep` wrote; ends the command for anything else."""
    try:
        told = json.loads(read_file(path, KEPT_BYTES_MAX))
    except ValueError:
        told = None
    if not isinstance(told, dict):
        usage(f"{path} is no file of olnode infer --keep")
    return told


def _explain(frame: Frame, receipt: bytes, kept: Path | None) -> None:
    """What the node finds of a receipt's shares, and of its sketch by what was disclosed of it;
    ends with 6 where one is false, with 1 where it cannot tell."""
    disclosure = None if kept is None else _kept_in(kept)
    node, name = frame.daemon(), receipt.hex()
    told = settled(name, lambda: node.get(f"/ledger/receipts/{name}/check"))
    if told["verdict"] != "false" and disclosure is not None:
        _audit(frame, receipt, disclosure, told)
        return
    if told["verdict"] == "true" or not frame.as_json:
        frame.show("verify.shares/1", told, _verified(_share_lines(told), told))
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


def _audit(
    frame: Frame, receipt: bytes, disclosure: dict[str, Any], shares: dict[str, Any]
) -> None:
    """Have the node make the sketch again; ends with 6 where it is not the committed one."""
    told = _sketched_again(frame.daemon(timeout_s=AUDIT_TIMEOUT_S), receipt.hex(), disclosure)
    has_passed = told["verdict"] == "pass"
    if has_passed or not frame.as_json:
        lines = [*_share_lines(shares), *_sketch_lines(told)]
        fields = {**told, "shares": shares["verdict"]}
        frame.show("verify.sketch/1", fields, _verified(lines, shares) if has_passed else lines)
    if not has_passed:
        raise CommandError(
            "NOT VERIFIED: " + SKETCH_WORDS[told["verdict"]],
            status=NOT_VERIFIED,
            code=f"sketch.{told['verdict']}",
            mend="ask it more, and look whether it happens again: olnode infer --keep",
        )


def _sketched_again(node: "Node", receipt: str, disclosure: dict[str, Any]) -> dict[str, Any]:
    from node.web.ask import Refusal

    try:
        return node.post(f"/receipts/{receipt}/audit", disclosure)
    except Refusal as error:
        if error.code not in OPENED:
            raise
        raise CommandError(
            f"NOT VERIFIED: what --kept holds is {OPENED[error.code]}",
            status=NOT_VERIFIED,
            code=error.code,
            mend="the file that `olnode infer --keep` wrote with this receipt, unchanged",
        ) from None


def _verified(lines: list[str], shares: dict[str, Any]) -> list[str]:
    """With the last word, unless shares were not looked at."""
    return [*lines, "VERIFIED"] if shares["verdict"] == "true" else lines


def _sketch_lines(told: dict[str, Any]) -> list[str]:
    if told["why"] == "no_sketch":
        return ["the receipt states no sketch, but one can be made of its texts"]
    if told["why"] == "credits":
        return ["its credits are not what the statement that it commits to pays"]
    if told["verdict"] == "pass" and not told["early_ppm"]:  # a cosine of 0 would be a finding
        return ["  ok  the receipt states no sketch, and none can be made"]
    measured = (
        f"cosines {told['early_ppm'] / 1e6:.6f} and {told['middle_ppm'] / 1e6:.6f}, "
        f"{told['moved_bps']} bps of the shares move, {told['swing_bps']} bps more or less are "
        f"paid ({told['gradient_dtype']}: {told['least_ppm'] / 1e6}, {told['moved_bps_max']} and "
        f"{told['swing_bps_max']} bps)"
    )
    if told["verdict"] != "pass":
        return [f"the sketch made again is another: {measured}"]
    return [
        "  ok  prompt and answer are those that the receipt commits to",
        f"  ok  the sketch made again is alike: {measured}",
    ]


def _share_lines(told: dict[str, Any]) -> list[str]:
    lines = [f"model {told['model']}@{told['version']}, {told['credits']} contributions credited"]
    if told["verdict"] == "unknown":
        return [*lines, "note: the sketch is for the payer and validators: nothing was checked"]
    if told["verdict"] == "false":
        return lines
    if not told["index_rows"]:
        return [*lines, "  ok  nothing is credited, and nothing is claimed"]
    lines += ["  ok  sketch and statement are those that the receipt commits to"]
    lines += ["  ok  the statement pays what was settled"]
    if told["drawn_rows"] == told["index_rows"]:
        lines.append(f"  ok  all {told['index_rows']} rows of the index were scanned")
    else:
        lines.append(
            f"  ok  {told['paid_rows']} paid rows, {told['panel_rows']} of the panel, "
            f"{told['drawn_rows']} drawn of {told['index_rows']}"
        )
    return lines


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
