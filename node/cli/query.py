"""`olnode query`: reads of the running node's ledger."""

import json
from typing import Annotated, Any

import typer

from node.cli.arguments import account_in, hash_in, height_in
from node.cli.finding import find_row, settled
from node.cli.frame import Frame, frame_of, new_noun, open_text, pairs, table

app = new_noun("Accounts, blocks, receipts, models and more.")

After = Annotated[int, typer.Option(min=0, help="the last number seen")]


@app.command()
def account(ctx: typer.Context, account: str) -> None:
    """Balance and nonce of an account."""
    account_in(account, "ACCOUNT")
    frame = frame_of(ctx)
    told = frame.daemon().get(f"/ledger/accounts/{account}")
    amounts = {name: open_text(told[name]) for name in ("balance", "maturing")}
    frame.show("query.account/1", told, pairs({**told, **amounts}.items()))


@app.command()
def channel(
    ctx: typer.Context, channel: Annotated[str, typer.Argument(help="64 hex digits")]
) -> None:
    """A payment channel: whose it is, what it holds, what is paid."""
    frame = frame_of(ctx)
    told = frame.daemon().get(f"/ledger/channels/{hash_in(channel, 'CHANNEL').hex()}")
    amounts = {name: open_text(told[name]) for name in ("cap", "paid")}
    frame.show("query.channel/1", told, pairs({**told, **amounts}.items()))


@app.command()
def channels(
    ctx: typer.Context,
    account: Annotated[
        str | None, typer.Argument(help="open1…; else those of this home's keys")
    ] = None,
) -> None:
    """Channels that an account pays, serves or spends from, newest first."""
    if account is not None:
        account_in(account, "ACCOUNT")
    frame = frame_of(ctx)
    node, older = frame.daemon(), 0
    found: dict[str, dict[str, Any]] = {}
    for one in _own_accounts(frame) if account is None else [account]:
        told = node.get(f"/ledger/accounts/{one}/channels")
        found |= {row["channel"]: row for row in told["channels"]}
        older += told["older"]
    rows = [
        (c["state"], *(open_text(c[name]) for name in ("cap", "paid")), c["channel"], c["provider"])
        for c in found.values()
    ]
    lines = table(("state", "cap", "paid", "channel", "provider"), rows)
    if older:
        lines.append(f"{older} older ones are not told")
    frame.show("query.channels/1", {"channels": list(found.values()), "older": older}, lines)


@app.command()
def provider(ctx: typer.Context, account: str) -> None:
    """A provider: where it is reached and paid, its bond, its channels."""
    account_in(account, "ACCOUNT")
    frame = frame_of(ctx)
    told = frame.daemon().get(f"/ledger/providers/{account}")
    frame.show("query.provider/1", told, _lines({**told, "bonded": open_text(told["bonded"])}))


@app.command()
def block(ctx: typer.Context, height: Annotated[str, typer.Argument()] = "latest") -> None:
    """A block: header, signers, transactions, bundles, payouts, evidence."""
    frame = frame_of(ctx)
    told = frame.daemon().get(f"/ledger/blocks/{height_in(height, 'HEIGHT')}")
    rows = [
        [row["kind"], row["account"] or "-", row["contribution"] or "-", open_text(row["amount"])]
        for row in told["payouts"]
    ]
    plain = {k: v for k, v in told.items() if k not in ("payouts", "evidence")}
    lines = _lines(plain)
    if rows:
        lines += ["", *table(("kind", "account", "contribution", "amount"), rows)]
    if told["evidence"]:
        accused = [(e["offence"], e["height"], " ".join(e["accused"])) for e in told["evidence"]]
        lines += ["", *table(("offence", "height", "accused"), accused)]
    frame.show("query.block/1", told, lines)


@app.command()
def tx(ctx: typer.Context, transaction: str) -> None:
    """A transaction by its id: pending, or settled with its code."""
    frame = frame_of(ctx)
    told = frame.daemon().get(f"/ledger/transactions/{hash_in(transaction, 'TRANSACTION').hex()}")
    frame.show("query.tx/1", told, _lines(told))


@app.command()
def receipt(ctx: typer.Context, receipt: str) -> None:
    """A settled receipt: the split of its fee and its credits."""
    frame, name = frame_of(ctx), hash_in(receipt, "RECEIPT").hex()
    node = frame.daemon()
    told = settled(name, lambda: node.get(f"/ledger/receipts/{name}"))
    apart = ("split", "credits", "fund_share_bps", "fund_amount")
    plain = {name: value for name, value in told.items() if name not in apart}
    credits = [
        [
            c["contribution"],
            c["datanet"],
            c["contributor"],
            f"{c['share_bps'] / 100:.2f}%",
            open_text(c["amount"]),
        ]
        for c in told["credits"]
    ]
    if to_fund := told["fund_share_bps"]:
        fund, share = "the model's maintenance fund", f"{to_fund / 100:.2f}%"
        credits.append(["-", "-", fund, share, open_text(told["fund_amount"])])
    split = [(role, open_text(amount)) for role, amount in told["split"].items()]
    head = ("contribution", "datanet", "contributor", "share", "amount")
    lines = [
        *_lines({**plain, "fee": open_text(told["fee"])}),
        "",
        *table(("part", "amount"), split),
    ]
    frame.show("query.receipt/1", told, [*lines, "", *table(head, credits)])


@app.command()
def models(ctx: typer.Context, after: After = 0) -> None:
    """Models with their current version, the prices in force, and fund."""
    frame = frame_of(ctx)
    told = frame.daemon().get(f"/ledger/models?after={after}")
    head = (
        *("number", "model", "status", "datanet", "records", "providers"),
        *("in/1M", "out/1M", "call", "fund"),
    )
    rows = [
        [
            m["number"],
            f"{m['name']}@{m['version']}",
            m["status"],
            m["datanet"],
            m["records"],
            m["providers"],
            *(open_text(m[price]) for price in ("price_in", "price_out", "price_call", "fund")),
        ]
        for m in told["models"]
    ]
    frame.show("query.models/1", told, table(head, rows))


@app.command()
def datanets(ctx: typer.Context, after: After = 0) -> None:
    """Datanets with their contributions."""
    frame = frame_of(ctx)
    told = frame.daemon().get(f"/ledger/datanets?after={after}")
    head = ("number", "name", "contributions", "accepted", "records", "contributors", "steward")
    rows = [
        (
            *(row[name] for name in head),
            ", ".join(row["licences"]),
            open_text(row["stake_per_record"]),
        )
        for row in told["datanets"]
    ]
    frame.show("query.datanets/1", told, table((*head, "licences", "bond/record"), rows))


@app.command()
def contributions(
    ctx: typer.Context,
    datanet: Annotated[str, typer.Argument(help="name or number")],
    after: After = 0,
) -> None:
    """Contributions to a Datanet, with what became of them."""
    frame = frame_of(ctx)
    node = frame.daemon()
    number = find_row(node, "datanets", datanet)["number"]
    told = node.get(f"/ledger/datanets/{number}/contributions?after={after}")
    rows = [
        (row["number"], row["status"], row["records"], open_text(row["earned"]), row["contributor"])
        for row in told["contributions"]
    ]
    head = ("number", "status", "records", "earned", "contributor")
    lines = table(head, rows)
    if told["more_after"]:
        lines.append(f"more: --after {told['more_after']}")
    frame.show("query.contributions/1", told, lines)


@app.command()
def snapshots(ctx: typer.Context, after: After = 0) -> None:
    """Snapshots of all Datanets: what versions may be trained on."""
    frame = frame_of(ctx)
    told = frame.daemon().get(f"/ledger/snapshots?after={after}")
    head = ("number", "datanet", "records", "last_contribution", "root")
    rows = [tuple(row[name] for name in head) for row in told["snapshots"]]
    frame.show("query.snapshots/1", told, table(head, rows))


@app.command()
def validators(ctx: typer.Context) -> None:
    """Who signs the next block, and who is jailed."""
    frame = frame_of(ctx)
    told = frame.daemon().get("/ledger/validators")
    rows = [
        (
            v["key"],
            v["power"],
            "*" if v["proposer_next"] else "",
            "*" if v["this_node"] else "",
            v["status"],
            open_text(v["bonded"]),
        )
        for v in told["validators"]
    ]
    head = ("key", "power", "next", "this node", "status", "bonded")
    frame.show("query.validators/1", told, table(head, rows))


@app.command()
def params(ctx: typer.Context) -> None:
    """The parameters that the ledger rules by."""
    frame = frame_of(ctx)
    told = frame.daemon().get("/ledger/params")
    rows = [(name, " ".join(map(str, values))) for name, values in told["values"].items()]
    frame.show("query.params/1", told, pairs([("base_price", told["base_price"]), *rows]))


def _own_accounts(frame: Frame) -> list[str]:
    """Of every key in the home."""
    from node.ledger.addresses import account_text

    keys = frame.keystore(frame.initialised()).list()
    return sorted({account_text(key.public_key) for key in keys})


def _lines(told: dict[str, Any]) -> list[str]:
    return pairs((name, _text(value)) for name, value in told.items())


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "-"
    return json.dumps(value) if isinstance(value, dict) else str(value)
