"""`olnode infer`: ask a model through this node's wallet; the answer is paid for and checked.

The answer goes to stdout as it comes, the receipt to stderr. `--save` waits until a block has
settled the receipt and keeps its proof: `olnode verify` reads it anywhere, offline. `--keep` writes
what opens the receipt's hashes, for whom the payer wants to look at the answer again.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from node.cli.frame import CommandError, Frame, frame_of, new_noun, note, open_text, usage
from node.cli.money import grains_of_open
from node.cli.waiting import telling

app = new_noun()

STREAM_TIMEOUT_S: Final = 300.0  # between two pieces
PROOF_WAIT_S: Final = 90.0  # a few heartbeats
POLL_S: Final = 0.2


@app.command()
def infer(
    ctx: typer.Context,
    model: str,
    prompt: Annotated[str, typer.Argument(help="the question; - reads stdin")] = "-",
    max_tokens: Annotated[int, typer.Option(min=1, help="of the answer")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0: the likeliest")] = 0.0,
    seed: Annotated[int | None, typer.Option(min=0, help="the payer's chance")] = None,
    max_fee: Annotated[str | None, typer.Option(help="at most, in OPEN")] = None,
    provider: Annotated[str | None, typer.Option(help="open1… that must answer")] = None,
    save: Annotated[Path | None, typer.Option(help="keep the settled receipt's proof")] = None,
    keep: Annotated[
        Path | None, typer.Option(help="keep prompt, answer and sketch, for verify --kept")
    ] = None,
) -> None:
    """Ask MODEL; exit 5 when the money does not reach, 6 when a check failed."""
    frame = frame_of(ctx)
    for path in (save, keep):  # before the answer is paid for
        if path is not None and path.exists():
            usage(f"{path} exists")
        if path is not None and not path.parent.is_dir():
            usage(f"{path.parent} is no folder")
    asked: dict[str, Any] = {
        "model": model,
        "prompt": sys.stdin.read() if prompt == "-" else prompt,
        "max_tokens": max_tokens,
        "temperature_milli": round(temperature * 1_000),
        "seed": seed,
        "max_fee": None if max_fee is None else str(grains_of_open(max_fee, "--max-fee")),
        "provider": provider,
    }
    answer, receipt = _ask(frame, {key: value for key, value in asked.items() if value is not None})
    if frame.as_json:
        frame.show("infer/1", {"answer": answer, "receipt": receipt}, [])
    note(
        f"receipt {receipt['receipt']}  {receipt['model']}@{receipt['version']}  "
        f"{receipt['tokens_in']} + {receipt['tokens_out']} tokens  {open_text(receipt['fee'])}  "
        f"checked: {' '.join(name for name, good in receipt['checks'].items() if good)}"
    )
    if keep is not None:
        _keep_disclosure(frame, receipt["receipt"], keep)
    if save is not None:
        _save_proof(frame, receipt["receipt"], save)


def _ask(frame: Frame, asked: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    pieces: list[str] = []
    receipt: dict[str, Any] | None = None
    with telling(frame) as came:
        for line in frame.daemon(timeout_s=STREAM_TIMEOUT_S).stream("/infer", asked):
            came.set()
            if "text" in line:
                pieces.append(line["text"])
                if not frame.as_json:
                    sys.stdout.write(line["text"])
                    sys.stdout.flush()
            receipt = line.get("receipt", receipt)
    if not frame.as_json:
        sys.stdout.write("\n")
    if receipt is None:
        raise CommandError("the answer ended without a receipt", mend="olnode status")
    return "".join(pieces), receipt


def _keep_disclosure(frame: Frame, receipt: str, path: Path) -> None:
    """For this account alone: nobody else has the prompt unless it is shown to them."""
    told = frame.daemon().get(f"/receipts/{receipt}/disclosure")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        json.dump(told, file, indent=1)
        file.write("\n")
    command = f"olnode verify {receipt} --explain --kept {path}"
    note(f"prompt and answer in {path}; a provider of the model can check the sketch: {command}")


def _save_proof(frame: Frame, receipt: str, path: Path) -> None:
    from node.web.ask import Refusal

    node, until = frame.daemon(), time.monotonic() + PROOF_WAIT_S
    while True:
        try:
            raw = node.get_bytes(f"/ledger/receipts/{receipt}/proof")
            break
        except Refusal as error:
            if error.status != 404:
                raise
            if time.monotonic() > until:
                raise CommandError(
                    f"the receipt was not settled within {PROOF_WAIT_S:.0f} s",
                    mend=f"olnode query receipt {receipt}",
                ) from None
            time.sleep(POLL_S)
    with path.open("xb") as file:
        file.write(raw)
    note(f"proof in {path}: olnode verify {path} --genesis {frame.home / 'genesis'}")
