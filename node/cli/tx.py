"""`olnode tx`: one sub-command per transaction type, and the options that all of them take.

The table below is the whole list. Each is signed here and sent through the running node
(signing.py); `send` and `show` take what was signed before.
What it does not know: what any transaction means.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import typer

from node.cli.arguments import hash_in, read_file
from node.cli.frame import frame_of, new_noun, pairs
from node.cli.signing import Options, options_of, tell
from node.cli.signing import send as send_bytes
from node.cli.tx_accounts import (
    bond,
    multi_transfer,
    register_provider,
    rotate_key,
    transfer,
    unbond,
    unjail,
    update_provider,
)
from node.cli.tx_channels import close_channel, coop_close, open_channel, top_up_channel
from node.cli.tx_datanets import (
    contribute,
    create_datanet,
    curate,
    snapshot,
    withdraw_contribution,
)
from node.cli.tx_evidence import evidence
from node.cli.tx_fraud import fraud_proof
from node.cli.tx_models import (
    fund_maintenance,
    publish_version,
    register_model,
    retire_model,
    set_price,
)

app = new_noun("Make, sign and send transactions.")

COMMANDS: Final[dict[str, Callable[..., None]]] = {  # page 30 §11, in its order
    "transfer": transfer,
    "multi-transfer": multi_transfer,
    "rotate-key": rotate_key,
    "open-channel": open_channel,
    "top-up-channel": top_up_channel,
    "close-channel": close_channel,
    "coop-close": coop_close,
    "register-provider": register_provider,
    "update-provider": update_provider,
    "bond": bond,
    "unbond": unbond,
    "unjail": unjail,
    "create-datanet": create_datanet,
    "contribute": contribute,
    "curate": curate,
    "withdraw-contribution": withdraw_contribution,
    "snapshot": snapshot,
    "register-model": register_model,
    "publish-version": publish_version,
    "set-price": set_price,
    "retire-model": retire_model,
    "fund-maintenance": fund_maintenance,
    "fraud-proof": fraud_proof,
    "evidence": evidence,
}
TRANSACTION_BYTES_MAX: Final = 65_536  # page 30 §1


@app.callback()
def options(
    ctx: typer.Context,
    sender: Annotated[
        str | None, typer.Option("--from", help="name of the key; else the operator's")
    ] = None,
    account: Annotated[
        str | None, typer.Option(help="whose key that is after rotate-key; else the key's own")
    ] = None,
    max_fee: Annotated[
        str | None, typer.Option(help="at most, in OPEN; else twice today's fee")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show it, sign nothing")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="not for its block")] = False,
    offline: Annotated[
        Path | None, typer.Option(help="write the signed bytes here, send nothing")
    ] = None,
    password_file: Annotated[
        str | None, typer.Option(help="file whose first line is the password")
    ] = None,
) -> None:
    """Make, sign and send transactions. These options may follow the sub-command too."""
    ctx.obj = Options(sender, account, max_fee, dry_run, no_wait, offline, password_file)


for _name, _function in COMMANDS.items():
    app.command(_name)(_function)


@app.command()
def send(ctx: typer.Context, file: Path) -> None:
    """Send the signed bytes that --offline wrote."""
    frame, raw = frame_of(ctx), read_file(file, TRANSACTION_BYTES_MAX)
    tell(frame, send_bytes(frame, raw, options_of(ctx).no_wait), {})


@app.command()
def show(ctx: typer.Context, transaction: str) -> None:
    """Where a transaction stands, by its id."""
    frame = frame_of(ctx)
    told = frame.daemon().get(f"/ledger/transactions/{hash_in(transaction, 'ID').hex()}")
    frame.show("tx.show/1", told, pairs(told.items()))
