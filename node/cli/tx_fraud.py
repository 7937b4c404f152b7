"""`olnode tx fraud-proof`: show the ledger that a receipt's credits, or an index, are a lie.

Why a file: a node that holds the index finds it, keeps the proof in the home's evidence/ and sends
it by itself; by hand it is for a proof from elsewhere, and for a node that could not pay for it.
What it does not know: how a lie is found (`refuter.py`), what it costs (`rules/disputes.py`).
"""

from pathlib import Path
from typing import Annotated, Final

import typer

from node.cli.arguments import read_file
from node.cli.frame import usage
from node.cli.signing import Desk

FILE_BYTES_MAX: Final = 65_536  # page 30 §1


def fraud_proof(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="proof, as a node keeps it in evidence/")],
) -> None:
    """Accuse a provider of false credits, or a model's creator of a false index.

    The receipt is reversed, the provider's bond slashed; who sends this is paid a quarter of the
    slash. A proof that shows no lie costs its sender a bond. Signed by the spending key, else by
    the operator's or the node's.
    """
    from consensus.primitives.errors import Invalid
    from node.ledger.wire.openings import AT_ONCE, decode_opened, decode_subject
    from node.ledger.wire.transactions import decode_fraud

    try:
        payload = decode_fraud(read_file(file, FILE_BYTES_MAX))
        if payload.kind not in AT_ONCE:
            usage(f"{file} accuses nobody: kind {payload.kind} is not settled yet")
        decode_subject(payload.kind, payload.subject)
        decode_opened(payload.kind, payload.opened)
    except Invalid as refusal:
        usage(f"{file} accuses nobody: {refusal.code}")
    desk = Desk(ctx, "spending", "operator", "node")
    desk.do(payload)
