"""`olnode tx` for accounts and those who serve: transfers, keys, providers, bonds.

What it does not know: how a transaction is priced, signed and sent (signing.py).
"""

from typing import Annotated, Final

import typer

from node.cli.arguments import account_in, word_in
from node.cli.frame import note, open_text, usage
from node.cli.money import grains_of_open
from node.cli.signing import Desk

ROLES: Final = ("validator", "provider")  # as the ledger counts them: 0, 1
STATUSES: Final = ("active", "paused")  # 1, 2
SIGNATURE_BYTES: Final = 64
DAY_MS: Final = 86_400_000


def transfer(
    ctx: typer.Context,
    to: str,
    amount: str,
    memo: Annotated[str, typer.Option(help="at most 64 bytes, seen by all")] = "",
) -> None:
    """Send AMOUNT of OPEN to the account TO."""
    from node.ledger.wire.transactions import MEMO_BYTES_MAX, Transfer

    told = memo.encode("utf-8", "surrogateescape")
    if len(told) > MEMO_BYTES_MAX:
        usage(f"--memo has {len(told)} bytes, at most {MEMO_BYTES_MAX}")
    payload = Transfer(account_in(to, "TO"), grains_of_open(amount, "AMOUNT"), told)
    Desk(ctx).do(payload)


def multi_transfer(
    ctx: typer.Context,
    payments: Annotated[list[str], typer.Argument(help="ACCOUNT=AMOUNT; at most 256")],
) -> None:
    """Send OPEN to many accounts at once: all of the payments, or none."""
    from node.ledger.wire.transactions import PAYEES_MAX, MultiTransfer

    paid: dict[bytes, int] = {}
    for text in payments:
        account, equals, amount = text.partition("=")
        if not equals:
            usage(f"{text[:80]!r} is not ACCOUNT=AMOUNT")
        to = account_in(account, "ACCOUNT")
        if to in paid:
            usage(f"{account} is there twice", "one payment an account")
        paid[to] = grains_of_open(amount, "AMOUNT")
    if len(paid) > PAYEES_MAX:
        usage(f"{len(paid)} payments, at most {PAYEES_MAX}")
    Desk(ctx, "operator").do(MultiTransfer(tuple(sorted(paid.items()))))


def rotate_key(
    ctx: typer.Context,
    new: Annotated[str, typer.Argument(help="name of the key that is to sign from now on")],
) -> None:
    """Give an account another key: NEW, a key of this home, alone signs for it from then on.

    The account stays what it is, with all it owns. Not for a validator in the set, nor for a
    provider with channels that are not closed.
    """
    from node.ledger.wire.transactions import ROTATE_TAG, RotateKey, rotation_body

    desk = Desk(ctx)
    key = desk.get_key(new)
    if key.role != desk.key.role:
        usage(f"{new} is of the role {key.role}, {desk.key.name} of {desk.key.role}")
    signature = bytes(SIGNATURE_BYTES)
    if not desk.options.dry_run:
        signature = desk.sign(key, ROTATE_TAG, rotation_body(desk.sender, desk.nonce))
    desk.do(RotateKey(key.public_key, signature))
    note(f"once that is done: olnode tx … --from {new} --account {desk.account}")
    if key.role == "node":
        line = f'account = "{desk.account}" under [serving] in config.toml'
        note(f"a provider serves from a home whose node key is {new}, with {line}")


def register_provider(
    ctx: typer.Context,
    reward: Annotated[
        str | None, typer.Option(help="account that is paid; else the operator's of this home")
    ] = None,
) -> None:
    """Register this home's node as a provider, signed by its node key.

    A deposit is taken and comes back when the provider ends. It serves once its bond reaches the
    least that the ledger asks: `olnode tx bond ACCOUNT AMOUNT --role provider --from node`.
    `olnode query params` tells both: provider_deposit and provider_bond_min.
    """
    from node.ledger.wire.transactions import RegisterProvider

    given = None if reward is None else account_in(reward, "--reward")
    desk = Desk(ctx, "node")
    peer, operator = desk.find_key("node"), desk.find_key("operator")
    assert peer is not None, "a home is made with its node key"
    paid = given or (operator or desk.key).public_key
    payload = RegisterProvider(peer.public_key, paid)
    deposit = desk.parameter("provider_deposit")
    desk.do(payload, deposit=deposit, made=lambda: {"provider": desk.account})
    least = open_text(desk.parameter("provider_bond_min")).removesuffix(" OPEN")
    command = f"olnode tx bond {desk.account} {least} --role provider"
    note(f"it serves once it is bonded: {command} --from {desk.key.name}")


def update_provider(
    ctx: typer.Context,
    status: Annotated[
        str | None, typer.Option(help="active, or paused: it takes no new channels then")
    ] = None,
    reward: Annotated[str | None, typer.Option(help="account that is paid from now on")] = None,
    peer: Annotated[
        str | None, typer.Option(help="name of the node key in this home that serves from now on")
    ] = None,
) -> None:
    """Change what the ledger has of a provider, signed by its node key; the rest stays as it is."""
    from node.ledger.addresses import account_of
    from node.ledger.wire.transactions import UpdateProvider

    if status is None and reward is None and peer is None:
        usage("nothing to change", "--status, --reward or --peer")
    number = None if status is None else word_in(status, "--status", STATUSES)
    paid = None if reward is None else account_in(reward, "--reward")
    desk = Desk(ctx, "node")
    row = desk.node.get(f"/ledger/providers/{desk.account}")
    payload = UpdateProvider(
        account_of(row["peer_key"]) if peer is None else desk.get_key(peer).public_key,
        account_of(row["reward_account"]) if paid is None else paid,
        (STATUSES.index(row["status"]) if number is None else number) + 1,
    )
    desk.do(payload)


def bond(
    ctx: typer.Context,
    target: Annotated[str, typer.Argument(help="account of the validator or provider")],
    amount: str,
    role: Annotated[str, typer.Option(help="validator or provider")] = "validator",
) -> None:
    """Bond AMOUNT of OPEN to a validator or provider."""
    from node.ledger.wire.transactions import Bond

    number = word_in(role, "--role", ROLES)
    payload = Bond(number, account_in(target, "TARGET"), grains_of_open(amount, "AMOUNT"))
    Desk(ctx).do(payload)


def unjail(
    ctx: typer.Context,
    role: Annotated[str, typer.Option(help="provider")] = "provider",
) -> None:
    """Serve again after a jail: once its time is over and the bond is at least the smallest.

    Signed by the node's key.
    """
    from node.ledger.wire.transactions import Unjail

    Desk(ctx, "node", "operator").do(Unjail(word_in(role, "--role", ROLES)))


def unbond(
    ctx: typer.Context,
    target: Annotated[str, typer.Argument(help="account of the validator or provider")],
    amount: Annotated[str, typer.Argument(help="OPEN; 0 only collects what it has earned")],
    role: Annotated[str, typer.Option(help="validator or provider")] = "validator",
) -> None:
    """Take AMOUNT of OPEN out of a bond; it is paid after the unbonding time.

    Until then it can be slashed for what was done before. What is left of a delegation is nothing,
    or at least the smallest delegation.
    """
    from node.ledger.wire.transactions import Unbond

    number = word_in(role, "--role", ROLES)
    payload = Unbond(number, account_in(target, "TARGET"), grains_of_open(amount, "AMOUNT"))
    desk = Desk(ctx)
    desk.do(payload)
    if payload.amount:
        note(f"it is paid {desk.parameter('unbonding_ms') / DAY_MS:g} days after its block")
