"""`olnode tx` for payment channels: open, top up, close, and close at once by both sides.

Why a file goes between the two: payer and provider sign on their own machines, in any order, and
whoever has both signatures sends them. Each is of the sum that the ledger has as paid.
What it does not know: how a transaction is priced, signed and sent (signing.py).
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from node.cli.arguments import account_in, hash_in, read_file
from node.cli.frame import NOT_VERIFIED, CommandError, note, open_text, pairs, usage
from node.cli.money import grains_of_open
from node.cli.signing import Desk, write_new

if TYPE_CHECKING:
    from node.wallet.keystore import Role

SIDES: Final = ("payer", "provider")
CONSENT_BYTES_MAX: Final = 1_024
SIGNATURE_BYTES: Final = 64

Channel = Annotated[str, typer.Argument(help="64 hex digits")]


def open_channel(
    ctx: typer.Context,
    provider: str,
    cap: Annotated[str, typer.Argument(help="OPEN set aside for PROVIDER alone")],
    spender: Annotated[
        str | None, typer.Option(help="account that signs vouchers; else the one that pays")
    ] = None,
) -> None:
    """Set CAP of OPEN aside for what PROVIDER will answer; the rest comes back when it closes.

    Signed by the operator's key, else by the spending key. A wallet opens its own channels: this
    is for programs that sign their own vouchers.
    """
    from node.ledger.wire.orders import channel_id
    from node.ledger.wire.transactions import OpenChannel

    to, grains = account_in(provider, "PROVIDER"), grains_of_open(cap, "CAP")
    given = None if spender is None else account_in(spender, "--spender")
    desk = Desk(ctx, "operator", "spending")
    least = desk.parameter("channel_cap_min")
    if grains < least:
        usage(f"CAP {cap} is less than a channel must hold", f"{open_text(least)} or more")
    desk.do(
        OpenChannel(to, given or desk.key.public_key, grains, 0),
        made=lambda: {"channel": channel_id(desk.chain_id, desk.sender, to, desk.nonce).hex()},
    )


def close_channel(
    ctx: typer.Context,
    channel: Channel,
) -> None:
    """Close a payment channel; what is left comes back after the closing time.

    Signed by the spending key, whose wallet opens channels; else by the operator's or the node's.
    """
    from node.ledger.wire.transactions import CloseChannel

    payload = CloseChannel(hash_in(channel, "CHANNEL"))
    Desk(ctx, "spending", "operator", "node").do(payload)


def top_up_channel(ctx: typer.Context, channel: Channel, amount: str) -> None:
    """Set AMOUNT of OPEN more aside in an open channel.

    Signed by the spending key, whose wallet opens channels; else by the operator's.
    """
    from node.ledger.wire.transactions import TopUpChannel

    payload = TopUpChannel(hash_in(channel, "CHANNEL"), grains_of_open(amount, "AMOUNT"))
    Desk(ctx, "spending", "operator").do(payload)


def coop_close(
    ctx: typer.Context,
    channel: Channel,
    sign_only: Annotated[
        Path | None, typer.Option(help="write this side's signature here, send nothing")
    ] = None,
    consents: Annotated[
        list[Path] | None, typer.Option("--with", help="what --sign-only wrote; repeat")
    ] = None,
) -> None:
    """Close a channel at once, by the signatures of payer and provider.

    One side writes its own with --sign-only and hands the file over; the other sends both with
    --with, by a key that is no node's. They hold while nothing more settles. Before a provider's
    key signs, its node stops serving the channel, and has settled what it served.
    """
    from node.ledger.wire.transactions import CoopClose

    name = hash_in(channel, "CHANNEL")
    if (sign_only is None) == (not consents):
        usage("either --sign-only FILE, or --with FILE of the other side")
    sends: tuple[Role, ...] = ("spending", "operator")  # a node's key signs its consent alone
    desk = Desk(ctx, *sends, *(() if sign_only is None else ("node",)))
    row = desk.node.get(f"/ledger/channels/{name.hex()}")
    if row["state"] == "closed":
        raise CommandError(f"channel {name.hex()} is closed already", code="channel.closed")
    if sign_only is not None:
        _write_consent(desk, row, sign_only)
        return
    signatures = dict(_read_consent(desk, row, path) for path in consents or ())
    for side in SIDES:
        if side not in signatures:
            signatures[side] = _signed(desk, row, side)
    desk.do(CoopClose(name, signatures["payer"], signatures["provider"]))


def _write_consent(desk: Desk, row: dict[str, Any], file: Path) -> None:
    if desk.options.dry_run or desk.options.offline is not None:
        usage("--sign-only sends nothing: it goes without --dry-run and --offline")
    side = next((side for side in SIDES if desk.find_signer(row[f"{side}_key"])), None)
    if side is None:
        raise _not_ours(" or ".join(row[side] for side in SIDES))
    signature = _signed(desk, row, side)
    fields = {"channel": row["channel"], "paid": row["paid"], "side": side}
    write_new(file, json.dumps({**fields, "signature": signature.hex()}).encode() + b"\n")
    told = {**fields, "file": str(file)}
    desk.frame.show("tx.coop-consent/1", told, pairs({**told, "paid": _paid(row)}.items()))
    if side == "provider":
        note("nothing more is served on it while no more than that is paid")
    for line in _next_steps(side, row["channel"], file.name):
        note(line)


def _next_steps(side: str, channel: str, file: str) -> list[str]:
    """What closes it now. A provider's node has no key that sends, unless an operator gave one."""
    command = f"olnode tx coop-close {channel}"
    if side == "provider":
        return [f"next, on the payer's side: {command} --with {file}"]
    return [
        f"next, on the provider's side: {command} --sign-only FILE",
        f"then here: {command} --with FILE",
        f"or there, by a key with OPEN that is no node's: {command} --with {file} --from KEY",
    ]


def _signed(desk: Desk, row: dict[str, Any], side: str) -> bytes:
    """Of one side, by its key in this home; zeroes for a dry run, which signs nothing."""
    from node.ledger.wire.transactions import COOP_TAG, coop_body

    key = desk.find_signer(row[f"{side}_key"])
    if key is None:
        raise _not_ours(row[side])
    if desk.options.dry_run:
        return bytes(SIGNATURE_BYTES)
    if side == "provider":
        _release(desk, row)
    return desk.sign(key, COOP_TAG, coop_body(bytes.fromhex(row["channel"]), int(row["paid"])))


def _release(desk: Desk, row: dict[str, Any]) -> None:
    """Have our node serve nothing more on it: what is served and not settled would be given up."""
    channel = row["channel"]
    told = desk.node.post(f"/channels/{channel}/release")
    if told["in_flight"] or told["unsettled"] != "0" or told["paid"] != row["paid"]:
        raise CommandError(
            f"{open_text(told['unsettled'])} of {channel} are served and not settled, and "
            f"{told['in_flight']} answers under way: the signature would give them up",
            mend="the same command in a minute: until then nothing new is served on it",
            why=f"olnode tx close-channel {channel} gives them up and closes at once",
        )


def _read_consent(desk: Desk, row: dict[str, Any], path: Path) -> tuple[str, bytes]:
    """(side, signature) of a file, good for what the ledger has as paid; a bad one is not sent."""
    from consensus.primitives.digest import signing_bytes
    from consensus.primitives.keys import is_signed_by
    from node.ledger.addresses import account_of
    from node.ledger.wire.transactions import COOP_TAG, coop_body

    try:
        told = json.loads(read_file(path, CONSENT_BYTES_MAX))
        side, signature = told["side"], bytes.fromhex(told["signature"])
        channel, paid = told["channel"], told["paid"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CommandError(f"{path} is not what --sign-only writes") from None
    if side not in SIDES or channel != row["channel"]:
        raise CommandError(f"{path} is for another channel")
    if paid != row["paid"]:
        raise CommandError(
            f"{path} was signed before the last answers settled: {_paid(row)} is paid now",
            mend=f"the other side, once more: olnode tx coop-close {channel} --sign-only FILE",
        )
    message = signing_bytes(COOP_TAG, desk.chain_id, coop_body(bytes.fromhex(channel), int(paid)))
    if not is_signed_by(account_of(row[f"{side}_key"]), message, signature):
        raise CommandError(f"{path} is not signed by the {side}, {row[side]}", status=NOT_VERIFIED)
    return side, signature


def _paid(row: dict[str, Any]) -> str:
    return open_text(row["paid"])


def _not_ours(accounts: str) -> CommandError:
    return CommandError(
        f"this home has no key of {accounts}", mend="--with FILE that the other side has signed"
    )
