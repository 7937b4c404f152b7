"""`olnode tx`: one sub-command per transaction type; signed here, sent through the running node.

Why the key stays here: the daemon never sees an operator key. A transaction is shown with its fee
before it is signed (`--dry-run` ends there), and waited for unless told otherwise.
What it does not know: whether the ledger will take it; its code comes back.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from node.cli.frame import FAILED, FUNDS, CommandError, Frame, frame_of, new_noun, note, pairs
from node.cli.money import grains_of_open
from node.cli.passwords import read_password

if TYPE_CHECKING:
    from node.ledger.wire.transactions import Payload
    from node.wallet.keystore import Key

app = new_noun("Make, sign and send transactions.")

VALID_S: Final = 600
FEE_ROOM: Final = 2  # the base price may rise while a transaction waits
SETTLE_S: Final = 90
POLL_S: Final = 0.2
FUNDS_CODES: Final = (9, 20)  # page 30 §11


@dataclass(frozen=True, slots=True)
class Options:
    """What every transaction takes beside its payload."""

    sender: str | None
    max_fee: str | None
    dry_run: bool
    no_wait: bool
    offline: Path | None
    password_file: str | None


@app.callback()
def options(
    ctx: typer.Context,
    sender: Annotated[
        str | None, typer.Option("--from", help="name of the key; else the operator's")
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
    ctx.obj = Options(sender, max_fee, dry_run, no_wait, offline, password_file)


@app.command()
def transfer(
    ctx: typer.Context,
    to: str,
    amount: str,
    memo: Annotated[str, typer.Option(help="at most 64 bytes, seen by all")] = "",
) -> None:
    """Send AMOUNT of OPEN to the account TO."""
    from node.ledger.addresses import account_of
    from node.ledger.wire.transactions import Transfer

    payload = Transfer(account_of(to), grains_of_open(amount, "AMOUNT"), memo.encode())
    _make(ctx, payload)


@app.command()
def bond(
    ctx: typer.Context,
    target: Annotated[str, typer.Argument(help="account of the validator or provider")],
    amount: str,
    role: Annotated[str, typer.Option(help="validator or provider")] = "validator",
) -> None:
    """Bond AMOUNT of OPEN to a validator or provider."""
    from node.ledger.addresses import account_of
    from node.ledger.wire.transactions import Bond

    roles = {"validator": 0, "provider": 1}
    if role not in roles:
        raise typer.BadParameter("validator or provider", param_hint="--role")
    payload = Bond(roles[role], account_of(target), grains_of_open(amount, "AMOUNT"))
    _make(ctx, payload)


@app.command(name="fund-maintenance")
def fund_maintenance(
    ctx: typer.Context,
    model: Annotated[int, typer.Argument(min=1, help="number of the model")],
    amount: str,
) -> None:
    """Put AMOUNT of OPEN into a model's maintenance fund, for good."""
    from node.ledger.wire.transactions import FundMaintenance

    payload = FundMaintenance(model, grains_of_open(amount, "AMOUNT"))
    _make(ctx, payload)


@app.command(name="close-channel")
def close_channel(
    ctx: typer.Context,
    channel: Annotated[str, typer.Argument(help="64 hex digits")],
) -> None:
    """Close a payment channel; what is left comes back after the closing time."""
    from node.ledger.wire.transactions import CloseChannel

    payload = CloseChannel(_hash_of(channel, "CHANNEL"))
    _make(ctx, payload)


@app.command()
def curate(
    ctx: typer.Context,
    contribution: Annotated[int, typer.Argument(min=1)],
    decision: Annotated[str, typer.Argument(help="accept, return, reject or slash")],
    reason: Annotated[str, typer.Option(help="hashed, not kept on the ledger")] = "",
) -> None:
    """Decide on a pending contribution, as its Datanet's steward."""
    from consensus.primitives.digest import sha256
    from node.ledger.wire.transactions import Curate

    words = ("accept", "return", "reject", "slash")
    if decision not in words:
        raise typer.BadParameter(", ".join(words), param_hint="DECISION")
    payload = Curate(contribution, words.index(decision) + 1, sha256(reason.encode()))
    _make(ctx, payload)


@app.command()
def send(ctx: typer.Context, file: Path) -> None:
    """Send the signed bytes that --offline wrote."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {error.strerror}") from None
    _send(frame_of(ctx), raw, _options_of(ctx).no_wait)


@app.command()
def show(ctx: typer.Context, transaction: str) -> None:
    """Where a transaction stands, by its id."""
    frame = frame_of(ctx)
    told = frame.daemon().get(f"/ledger/transactions/{_hash_of(transaction, 'ID').hex()}")
    frame.show("tx.show/1", told, pairs(told.items()))


def _options_of(ctx: typer.Context) -> Options:
    given = ctx.obj
    assert isinstance(given, Options)
    return given


def _make(ctx: typer.Context, payload: "Payload") -> None:
    """Price, show, sign and send one transaction."""
    from node.ledger.addresses import account_text
    from node.ledger.wire.transactions import encode_body, encode_transaction

    frame, options = frame_of(ctx), _options_of(ctx)
    key = _key_file(frame, options.sender)
    account = account_text(key.public_key)
    node = frame.daemon()
    params = node.get("/ledger/params")
    fee = _fee(payload, int(params["base_price"]))
    given = options.max_fee
    limit = fee * FEE_ROOM if given is None else grains_of_open(given, "--max-fee")
    shown = {
        "type": type(payload).__name__,
        "from": account,
        **{name: _plain(value) for name, value in payload._asdict().items()},
        "fee": str(fee),
        "max_fee": str(limit),
    }
    if options.dry_run:
        frame.show("tx.dry-run/1", shown, pairs(shown.items()))
        return
    nonce = int(node.get(f"/ledger/accounts/{account}")["nonce"])
    unlocked = _unlock(frame, key.name, key.is_sealed, options.password_file)
    valid_until_ms = time.time_ns() // 10**6 + VALID_S * 1_000
    body = encode_body(unlocked.public_key, nonce, limit, valid_until_ms, payload)
    chain_id = bytes.fromhex(params["chain_id"])
    raw = encode_transaction(body, unlocked.sign(b"tx", chain_id, body))
    if options.offline is not None:
        with options.offline.open("xb") as file:
            file.write(raw)
        frame.show("tx.offline/1", {**shown, "file": str(options.offline)}, pairs(shown.items()))
        note(f"next: olnode tx send {options.offline}")
        return
    _send(frame, raw, options.no_wait)


def _send(frame: Frame, raw: bytes, no_wait: bool) -> None:
    node = frame.daemon()
    tx_id = node.post_bytes("/ledger/transactions", raw)["transaction"]
    if no_wait:
        frame.show("tx/1", {"transaction": tx_id, "state": "pending"}, [f"sent {tx_id}"])
        return
    told, until = _standing(frame, tx_id), time.monotonic() + SETTLE_S
    while told is None or told["state"] == "pending":
        if time.monotonic() > until:
            raise CommandError(
                f"{tx_id} is in no block after {SETTLE_S} s", mend=f"olnode tx show {tx_id}"
            )
        time.sleep(POLL_S)
        told = _standing(frame, tx_id)
    if told["code"]:
        raise CommandError(
            f"{tx_id} was refused in block {told['height']}: {told['reason']} ({told['code']})",
            status=FUNDS if told["code"] in FUNDS_CODES else FAILED,
            code=told["reason"],
        )
    frame.show("tx/1", told, [f"done in block {told['height']}: {tx_id}"])


def _standing(frame: Frame, tx_id: str) -> dict[str, Any] | None:
    from node.web.ask import Refusal

    try:
        return frame.daemon().get(f"/ledger/transactions/{tx_id}")
    except Refusal as error:
        if error.status != 404:
            raise
        return None  # between pool and block


def _fee(payload: "Payload", base_price: int) -> int:
    """What it would cost now: its weight does not depend on nonce or signature by much."""
    from node.ledger.wire.transactions import (
        decode_transaction,
        encode_body,
        encode_transaction,
    )

    widest = 2**63 - 1
    body = encode_body(bytes(32), widest, widest, widest, payload)
    return decode_transaction(encode_transaction(body, bytes(64))).weight * base_price


def _key_file(frame: Frame, name: str | None) -> Any:
    store = frame.keystore(frame.initialised())
    key = store.get(name) if name else (store.find("operator") or store.find("node"))
    if key is None:
        raise CommandError("this home has no key to sign with", mend="olnode keys add NAME")
    return key


def _unlock(frame: Frame, name: str, is_sealed: bool, password_file: str | None) -> "Key":
    password = read_password(password_file, f"password of {name}") if is_sealed else None
    return frame.keystore(frame.settings()).unlock(name, password)


def _hash_of(text: str, what: str) -> bytes:
    if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
        raise typer.BadParameter("64 lower-case hex digits", param_hint=what)
    return bytes.fromhex(text)


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value
