"""`olnode tx` for models: register a line of adapters, publish its versions, fund its upkeep.

Hashes are given in hex, as `prepare` of node/training/publish.py and the index's header name them.
What it does not know: weights, training; how a transaction is signed and sent (signing.py).
"""

from typing import Annotated, Final

import typer

from node.cli.arguments import hash_in, hash_or_none, licence_in, name_in
from node.cli.finding import find_row
from node.cli.frame import usage
from node.cli.money import grains_of_open
from node.cli.signing import Desk

ROYALTY_BPS: Final = 1_000  # page 40 §8

Hash = Annotated[str | None, typer.Option(help="64 hex digits")]


def register_model(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="a-z, 0-9 and -, 3 to 32")],
    base: Annotated[str, typer.Option(help="hash of the base's files, 64 hex digits")],
    licence: Annotated[str, typer.Option(help="of its adapters")],
    probe_datanet: Annotated[
        str | None, typer.Option(help="name or number of the Datanet it is measured on")
    ] = None,
    royalty_bps: Annotated[
        int, typer.Option(min=0, max=10_000, help="least share of a version built on this model")
    ] = ROYALTY_BPS,
) -> None:
    """Register a model; the key that signs becomes its creator.

    A deposit is taken, and a fee of which the model's own fund gets most.
    """
    from node.ledger.wire.transactions import RegisterModel

    called, weights = name_in(name, "NAME"), hash_in(base, "--base")
    code = licence_in(licence)
    desk = Desk(ctx, "operator")
    most = desk.parameter("royalty_bps_max")
    if royalty_bps > most:
        usage(f"--royalty-bps {royalty_bps}: the ledger takes at most {most}")
    probe = 0
    if probe_datanet is not None:
        probe = find_row(desk.node, "datanets", probe_datanet)["number"]
    desk.do(
        RegisterModel(called, weights, code, probe, royalty_bps),
        deposit=desk.parameter("model_deposit"),
        cost=desk.parameter("model_fee"),
        made=lambda: {"model": find_row(desk.node, "models", name)["number"]},
    )


def publish_version(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="name or number")],
    manifest: Annotated[str, typer.Option(help="hash of the version's manifest")],
    price_in: Annotated[str, typer.Option(help="OPEN per million tokens of a question")],
    price_out: Annotated[str, typer.Option(help="OPEN per million tokens of an answer")],
    price_call: Annotated[
        str | None, typer.Option(help="OPEN per answer; else the least allowed")
    ] = None,
    adapter: Hash = None,
    snapshot: Annotated[int, typer.Option(min=0, help="number; see query snapshots")] = 0,
    index_root: Hash = None,
    probe: Hash = None,
    part: Annotated[
        list[str] | None, typer.Option(help="MODEL[@VERSION]:BPS it is built on; repeat, at most 4")
    ] = None,
) -> None:
    """Publish the next version of MODEL, as its creator; it becomes the current one.

    A deposit is taken, and a fee that grows with the snapshot's records. An index is of a snapshot
    and of an adapter; without it nobody's data is paid, without an adapter it is the base alone.
    """
    from node.ledger.wire.transactions import PublishVersion

    hashes = hash_or_none(adapter, "--adapter"), hash_or_none(index_root, "--index-root")
    if bool(snapshot) != bool(hashes[1]) or (snapshot and not hashes[0]):
        usage("--snapshot, --index-root and --adapter belong together")
    about = hash_in(manifest, "--manifest"), hash_or_none(probe, "--probe")
    prices = grains_of_open(price_in, "--price-in"), grains_of_open(price_out, "--price-out")
    call = None if price_call is None else grains_of_open(price_call, "--price-call")
    desk = Desk(ctx, "operator")
    least = desk.parameter("platform_fee")
    if call is not None and call < least:
        usage(f"--price-call {price_call} is below the platform's fee of {least} grains")
    number = find_row(desk.node, "models", model)["number"]
    records = find_row(desk.node, "snapshots", str(snapshot))["records"] if snapshot else 0
    payload = PublishVersion(
        model=number,
        adapter=hashes[0],
        snapshot=snapshot,
        index_root=hashes[1],
        manifest=about[0],
        probe=about[1],
        p_in=prices[0],
        p_out=prices[1],
        p_call=least if call is None else call,
        parts=_parts_in(desk, part or []),
    )
    desk.do(
        payload,
        deposit=desk.parameter("version_deposit"),
        cost=desk.parameter("version_fee") + desk.parameter("version_record_fee") * records,
        made=lambda: {"version": find_row(desk.node, "models", str(number))["version"]},
    )


def set_price(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="name or number")],
    price_in: Annotated[
        str | None, typer.Option(help="OPEN per million tokens of a question")
    ] = None,
    price_out: Annotated[
        str | None, typer.Option(help="OPEN per million tokens of an answer")
    ] = None,
    price_call: Annotated[str | None, typer.Option(help="OPEN per answer")] = None,
    version: Annotated[
        int | None, typer.Option(min=1, help="else the current one; another takes all prices")
    ] = None,
) -> None:
    """Set the prices of a version of MODEL, as its creator; what is not named stays.

    They hold after a notice (`price_notice_ms`), and are set once per `price_interval_ms`.
    """
    from node.ledger.wire.transactions import SetPrice

    given = {"price_in": price_in, "price_out": price_out, "price_call": price_call}
    named = {
        name: grains_of_open(text, f"--{name.replace('_', '-')}")
        for name, text in given.items()
        if text is not None
    }
    if not named:
        usage("nothing to change", "--price-in, --price-out or --price-call")
    desk = Desk(ctx, "operator")
    row = find_row(desk.node, "models", model)
    number = row["version"] if version is None else version
    if number != row["version"] and len(named) < len(given):
        usage(f"all three prices, for {number} is not the current version of {row['name']}")
    prices = [named.get(name, int(row[name])) for name in given]
    least = desk.parameter("platform_fee")
    if prices[-1] < least:
        usage(f"a price per call is at least the platform's fee of {least} grains")
    desk.do(SetPrice(row["number"], number, *prices))


def retire_model(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="name or number")],
    successor: Annotated[
        str | None, typer.Option(help="model that names this one among its parts: gets its fund")
    ] = None,
) -> None:
    """End MODEL after a notice (`retire_notice_ms`), as its creator. It cannot be taken back.

    Until then all goes on; what was started before still settles. Its fund goes to the successor,
    else to the commons, never back; the deposit comes back `model_deposit_ms` after the end.
    """
    from node.ledger.wire.transactions import RetireModel

    desk = Desk(ctx, "operator")
    number = find_row(desk.node, "models", model)["number"]
    heir = 0 if successor is None else find_row(desk.node, "models", successor)["number"]
    desk.do(RetireModel(number, heir))


def fund_maintenance(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="name or number")],
    amount: str,
) -> None:
    """Put AMOUNT of OPEN into a model's maintenance fund, for good."""
    from node.ledger.wire.transactions import FundMaintenance

    grains = grains_of_open(amount, "AMOUNT")
    desk = Desk(ctx)
    desk.do(FundMaintenance(find_row(desk.node, "models", model)["number"], grains))


def _parts_in(desk: Desk, given: list[str]) -> tuple[tuple[int, int, int], ...]:
    """(model, version, bps) of each `MODEL[@VERSION]:BPS`, in the ledger's order."""
    from node.ledger.wire.transactions import PARTS_MAX

    if len(given) > PARTS_MAX:
        usage(f"--part: at most {PARTS_MAX}")
    parts = []
    for text in given:
        label, _, bps = text.rpartition(":")
        called, at, version = label.partition("@")
        if not called or not _is_number(bps, 4) or (at and not _is_number(version, 9)):
            usage(f"--part {text[:80]!r} is not MODEL[@VERSION]:BPS")
        row = find_row(desk.node, "models", called)
        parts.append((row["number"], int(version or row["version"]), int(bps)))
    return tuple(sorted(parts))


def _is_number(text: str, digits_max: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= digits_max
