"""`olnode tx evidence`: accuse a provider that signed two receipts for one request.

Why files: a wallet that is given such a pair keeps it in the home's evidence/ and sends this by
itself; by hand it is for pairs from elsewhere, and for a wallet that could not pay for it.
What it does not know: what the provider loses, and who gets it (`rules/doubles.py`).
"""

import json
from pathlib import Path
from typing import Annotated, Final

import typer

from node.cli.arguments import read_file
from node.cli.frame import CommandError, usage
from node.cli.signing import Desk

ANSWER_BYTES_MAX: Final = 4 << 20  # what `infer -o json` prints
SIGNATURE_BYTES: Final = 64


def evidence(
    ctx: typer.Context,
    first: Annotated[Path, typer.Argument(help="receipt, as `infer -o json` printed it")],
    second: Annotated[Path, typer.Argument(help="another one, for the same request")],
) -> None:
    """Accuse a provider that signed two receipts for one request: its bond is slashed.

    The payer is repaid of it, and who sends this is paid for the finding. A wallet that is given
    such a pair keeps it in evidence/ and sends this by itself. Signed by the spending key, else by
    the operator's or the node's.
    """
    from consensus.primitives.errors import Invalid
    from node.ledger.wire.transactions import make_evidence

    try:
        payload = make_evidence(_read_receipt(first), _read_receipt(second))
    except Invalid as refusal:
        usage(f"{first} and {second} accuse nobody: {refusal.facts['why']}")
    Desk(ctx, "spending", "operator", "node").do(payload)


def _read_receipt(path: Path) -> tuple[bytes, bytes]:
    """Body and signature of a receipt in a file of JSON; raises CommandError."""
    try:
        told = json.loads(read_file(path, ANSWER_BYTES_MAX))
        told = told.get("receipt", told)
        body, signature = bytes.fromhex(told["body"]), bytes.fromhex(told["signature"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CommandError(f"{path} is not what infer -o json prints") from None
    if len(signature) != SIGNATURE_BYTES:
        raise CommandError(f"{path} has no signature of {SIGNATURE_BYTES} bytes")
    return body, signature
