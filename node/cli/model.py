"""`olnode model`: what this node holds and earns by it, and thresholds for a new version."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.frame import CommandError, frame_of, new_noun, note, open_text, table, usage

if TYPE_CHECKING:
    from node.attribution.datanets import Record
    from node.training.calibrate import Calibration

app = new_noun("Models that this node holds, and what their answers are judged by.")


@app.command("list")
def list_(ctx: typer.Context) -> None:
    """The versions held here: where their adapters lie; since the start: answers, their fees, and
    the provider's part of these, which is earned (`olnode earnings` has what is settled)."""
    frame = frame_of(ctx)
    told = frame.daemon().get("/models")
    head = ("model", "ready", "tier", "bytes", "requests", "fees", "earned", "adapter")
    rows = [
        [
            *(one["model"], "yes" if one["ready"] else "no", one["tier"]),
            *(one["bytes"], one["requests"]),
            *(open_text(one["fees"]), open_text(one["earned"]), one["adapter"]),
        ]
        for one in told["models"]
    ]
    lines = table(head, rows) if rows else ['no model is held: models = ["NAME"] under [serving]']
    lines += [f"the ledger has no model {name}: olnode query models" for name in told["unknown"]]
    frame.show("model.list/1", told, lines)


@app.command()
def calibrate(
    ctx: typer.Context,
    base: Annotated[Path, typer.Argument(help="folder of the base")],
    questions: Annotated[Path, typer.Argument(help="JSON lines with a prompt, as records have")],
    out: Annotated[Path, typer.Option(help="file for the evidence; must not exist")],
    adapter: Annotated[Path | None, typer.Option(help="folder of the adapter: RUN/final")] = None,
    answers: Annotated[int, typer.Option(min=16, help="made in each of four ways")] = 64,
    tokens: Annotated[int, typer.Option(min=8, max=2_048, help="of an answer, at most")] = 48,
    dtype: Annotated[str, typer.Option(help="fp32 or bf16")] = "fp32",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
) -> None:
    """Measure how far honest machines differ on a version's answers; thresholds for its manifest.

    Answers are made alone and in a batch, with one thread and with two, and each is run again.
    """
    from node.serving.engine import EngineError
    from node.serving.manifest import DTYPES
    from node.training.calibrate import calibrate as measure
    from node.training.finetune import TrainingError

    frame = frame_of(ctx)
    if dtype not in DTYPES:
        usage(f"--dtype {dtype}: {' or '.join(DTYPES)}")
    if out.exists():
        usage(f"{out} exists")
    records = _records_in(questions)
    try:
        found = measure(
            base,
            adapter,
            records,
            _tell,
            answers=answers,
            tokens=tokens,
            dtype_class=dtype,
            device=device,
        )
    except (EngineError, TrainingError, OSError) as error:
        raise CommandError(f"no calibration: {error}", code="model.calibration") from error
    out.write_bytes(found.encode())
    frame.show("model.calibrate/1", _fields(found, out), _lines(found, out))


def _records_in(path: Path) -> "list[Record]":
    from consensus.primitives.errors import Invalid
    from node.attribution.datanets import parse_records

    try:
        return parse_records(path.read_bytes())
    except (Invalid, OSError) as error:
        usage(f"{path}: {error}")


def _tell(done: int, total: int) -> None:
    if done % 16 == 0 or done == total:
        note(f"{done} of {total} answers run again")


def _fields(found: "Calibration", out: Path) -> dict[str, object]:
    return {
        "file": str(out),
        "report": found.hash().hex(),
        "answers": found.answers,
        "greatest": found.greatest._asdict(),
        "threshold": list(found.threshold),
    }


def _lines(found: "Calibration", out: Path) -> list[str]:
    rows = [
        [name, f"{greatest:.2e}", f"{suspect / 1e6:g}", f"{fail / 1e6:g}"]
        for name, greatest, suspect, fail in zip(
            found.greatest._fields,
            found.greatest,
            found.threshold[1::2],
            found.threshold[2::2],
            strict=True,
        )
    ]
    head = ("measure", "greatest", "suspect above", "fail above")
    return [*table(head, rows), f"{found.answers} answers; evidence {found.hash().hex()} in {out}"]
