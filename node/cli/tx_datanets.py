"""`olnode tx` for Datanets: create one, contribute to it, review, make snapshots.

Why files are read here: the ledger holds roots and hashes, so what they are of is checked and kept
in this home before anything is sent. A contribution is offered to peers only once the ledger has
it: before that, another could bring the same records as their own.
What it does not know: how a transaction is priced, signed and sent (signing.py).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from node.cli.arguments import licence_in, ms_in, name_in, read_file, word_in
from node.cli.contents import keep, offer
from node.cli.finding import find_row, rows_of
from node.cli.frame import CommandError, note, usage
from node.cli.money import grains_of_open
from node.cli.signing import Desk

if TYPE_CHECKING:
    from node.attribution.datanets import Record
    from node.ledger.tables import Terms

CHARTER_BYTES_MAX: Final = 65_536
RECORDS_FILE_BYTES_MAX: Final = 1 << 28
FETCHED_BYTES_MAX: Final = 1 << 20  # of content that a peer takes (node/holdings.py)
QUORUM: Final = 1  # the steward alone: the ledger appoints no reviewers yet
CURATION_BPS: Final = 500  # page 40 §7
REVIEW_MS: Final = 14 * 86_400_000  # page 40 §7
STAKE: Final = "--stake-per-record"
MODES: Final = ("open", "permissioned")
WITHDRAWALS: Final = ("ends-pay", "retires-versions")
DECISIONS: Final = ("accept", "return", "reject", "slash")
ALIVE: Final = ("pending", "accepted")


def create_datanet(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="a-z, 0-9 and -, 3 to 32")],
    charter: Annotated[str, typer.Option(help="purpose and rules: a file, or the text itself")],
    licence: Annotated[list[str], typer.Option(help="that it takes; repeat, at most 8")],
    mode: Annotated[str, typer.Option(help="open or permissioned")] = MODES[0],
    quorum: Annotated[int, typer.Option(min=0, max=7, help="votes that decide")] = QUORUM,
    stake_per_record: Annotated[
        str | None, typer.Option(help="bond of a record in OPEN; else the least allowed")
    ] = None,
    curation_bps: Annotated[
        int | None, typer.Option(min=0, max=10_000, help="of its income, for curators; else 500")
    ] = None,
    review: Annotated[
        str | None, typer.Option(help="time to decide, as in 12h or 14d; else 14d")
    ] = None,
    withdrawal: Annotated[
        str, typer.Option(help="what a withdrawal does: ends-pay or retires-versions")
    ] = WITHDRAWALS[0],
) -> None:
    """Create a Datanet; the key that signs becomes its steward.

    A deposit is taken, and a fee of which its own pool gets most (`--dry-run` tells both). The
    ledger keeps the hash of the charter; its text stays in this home and is offered to peers.
    """
    from consensus.primitives.digest import sha256
    from node.ledger.tables import Terms
    from node.ledger.wire.transactions import CreateDatanet

    called, text = name_in(name, "NAME"), _charter_in(charter)
    stake = None if stake_per_record is None else grains_of_open(stake_per_record, STAKE)
    if quorum == 0 and mode == MODES[0]:
        usage("--quorum 0 is for a permissioned Datanet", "--quorum 1, or --mode permissioned")
    asked = Terms(
        charter=sha256(text),
        licences=tuple(sorted({licence_in(one) for one in licence})),
        mode=word_in(mode, "--mode", MODES),
        quorum=quorum,
        stake_per_record=0 if stake is None else stake,
        curation_bps=CURATION_BPS if curation_bps is None else curation_bps,
        review_ms=REVIEW_MS if review is None else ms_in(review, "--review"),
        withdrawal=word_in(withdrawal, "--withdrawal", WITHDRAWALS),
    )
    desk = Desk(ctx, "operator")
    given = {STAKE: stake, "--curation-bps": curation_bps, "--review": review}
    terms = _within(desk, asked, {name for name, value in given.items() if value is not None})
    if not desk.options.dry_run:
        offer(desk.node, keep(desk.frame.home, text))
    desk.do(
        CreateDatanet(called, terms),
        deposit=desk.parameter("datanet_deposit"),
        cost=desk.parameter("datanet_fee"),
        made=lambda: {"datanet": find_row(desk.node, "datanets", name)["number"]},
    )


def contribute(
    ctx: typer.Context,
    datanet: Annotated[str, typer.Argument(help="name or number")],
    file: Annotated[Path, typer.Argument(help="records: a JSON object a line")],
    licence: Annotated[str, typer.Option(help="one of those that the Datanet takes")],
) -> None:
    """Contribute the records of FILE to DATANET; a bond per record waits for the review.

    A line is {"prompt": …, "completion": …} or {"text": …}. The records stay in this home and are
    offered to peers once the ledger has the contribution; after a crash, the same command goes on
    where it ended and never contributes twice.
    """
    from consensus.primitives.digest import sha256
    from node.attribution.datanets import contribution_root, encode_records
    from node.ledger.wire.transactions import Contribute

    code, records = licence_in(licence), _records_in(file)
    content, root = encode_records(records), contribution_root(records)
    desk = Desk(ctx, "operator")
    row = find_row(desk.node, "datanets", datanet)
    _check_licence(row, code)
    number = row["number"]
    payload = Contribute(number, 0, root, sha256(content), len(records), len(content), code, 0, b"")
    stake = desk.parameter("contribution_bond") + int(row["stake_per_record"]) * len(records)
    if desk.options.dry_run:
        desk.do(payload, deposit=stake)
        return
    folder = keep(desk.frame.home, content)
    if len(content) > FETCHED_BYTES_MAX:
        note(f"{len(content)} bytes: peers fetch at most {FETCHED_BYTES_MAX} of a contribution")
    known = _find_own(desk, number, root)
    if known is not None:
        _offer_records(desk, folder)
        line = f"the ledger has it as contribution {known}; its records are offered to peers"
        made = {"contribution": known, "content": folder.name}
        desk.frame.show("tx.offered/1", made, [line])
        return
    sent = desk.carry_out(payload, deposit=stake)
    if sent is None:
        note("then the same command once more, without --offline: it offers the records to peers")
        return
    if sent["state"] == "settled":
        _offer_records(desk, folder)
    else:  # who sees the hash of a pending one could fetch its records and be first with them
        note("once it is in a block, the same command once more: it offers the records to peers")
    desk.tell(sent, lambda: {"contribution": _find_own(desk, number, root) or 0})


def curate(
    ctx: typer.Context,
    contribution: Annotated[int, typer.Argument(min=1)],
    decision: Annotated[str, typer.Argument(help=", ".join(DECISIONS))],
    reason: Annotated[str, typer.Option(help="hashed, not kept on the ledger")] = "",
) -> None:
    """Decide on a pending contribution, as its Datanet's steward."""
    from consensus.primitives.digest import sha256
    from node.ledger.wire.transactions import Curate

    number = word_in(decision, "DECISION", DECISIONS) + 1
    payload = Curate(contribution, number, sha256(reason.encode("utf-8", "surrogateescape")))
    Desk(ctx).do(payload)


def withdraw_contribution(
    ctx: typer.Context, contribution: Annotated[int, typer.Argument(min=1)]
) -> None:
    """Take one's own contribution back, for good: it earns nothing more from its block on.

    A pending one goes until somebody has voted on it. What is left of its bond comes back after
    the challenge window. Who has a copy keeps it; versions trained on it stay, unless the Datanet's
    charter retires them: then they end after `withdrawn_version_ms`.
    """
    from node.ledger.wire.transactions import WithdrawContribution

    Desk(ctx, "operator").do(WithdrawContribution(contribution))


def snapshot(
    ctx: typer.Context,
    datanet: Annotated[str, typer.Argument(help="name or number")],
) -> None:
    """Fix what DATANET holds now, as its steward, for models to be trained on.

    Root, last contribution and number of records follow from the contributions that the ledger
    has as accepted.
    """
    from node.attribution.datanets import snapshot_root
    from node.ledger.wire.transactions import Snapshot

    desk = Desk(ctx, "operator")
    number = find_row(desk.node, "datanets", datanet)["number"]
    rows = [row for row in _contributions(desk, number) if row["status"] == "accepted"]
    if not rows:
        raise CommandError(
            f"Datanet {datanet} has no accepted contribution",
            mend=f"olnode query contributions {datanet}",
        )
    root = snapshot_root((row["number"], bytes.fromhex(row["root"])) for row in rows)
    count = sum(row["records"] for row in rows)
    payload = Snapshot(number, root, rows[-1]["number"], count)
    desk.do(payload, made=lambda: {"snapshot": _newest_snapshot(desk, root)})


def _charter_in(given: str) -> bytes:
    """The bytes of a charter: a file's, or the words themselves.

    One word that names no file is a mistyped path, whose hash would bind nobody to anything.
    """
    path = Path(given)
    try:
        is_file = path.is_file()
    except OSError:  # a text too long for a path
        is_file = False
    if is_file:
        text = read_file(path, CHARTER_BYTES_MAX)
    elif given.strip() and len(given.split()) == 1:
        usage(f"--charter {given[:80]!r} is no file, and one word is no charter")
    else:
        text = given.encode("utf-8", "surrogateescape")
    if not text.strip() or len(text) > CHARTER_BYTES_MAX:
        usage(f"--charter has {len(text)} bytes: 1 to {CHARTER_BYTES_MAX}")
    return text


def _within(desk: Desk, asked: "Terms", given: set[str]) -> "Terms":
    """The terms, with defaults moved into the ledger's bounds and options refused beyond them."""
    bounds = {
        STAKE: ("stake_per_record", "stake_per_record_min", "stake_per_record_max"),
        "--curation-bps": ("curation_bps", None, "curation_bps_max"),
        "--review": ("review_ms", "review_ms_min", "review_ms_max"),
    }
    for option, (field, low, high) in bounds.items():
        least, most = desk.parameter(low) if low else 0, desk.parameter(high)
        value = getattr(asked, field)
        if option in given and not least <= value <= most:
            usage(f"{option} is {value} here, the ledger takes {least} to {most} ({field})")
        asked = asked._replace(**{field: min(max(value, least), most)})
    return asked


def _records_in(file: Path) -> "list[Record]":
    """The checked records; a refusal names its line and code."""
    from consensus.primitives.errors import Invalid
    from node.attribution.datanets import parse_records

    raw = read_file(file, RECORDS_FILE_BYTES_MAX)
    try:
        return parse_records(raw)
    except Invalid as error:
        line = error.facts.get("line")
        at = file if line is None else f"{file}, line {line}"
        raise CommandError(f"{at}: {error}", mend=f"mend {at}", code=error.code) from None


def _check_licence(row: dict[str, Any], code: int) -> None:
    from node.ledger.rules.registry import LICENCES

    name, taken = LICENCES[code], row["licences"]
    if name not in taken:
        raise CommandError(
            f"Datanet {row['name']} does not take {name}",
            mend=f"only if it is true: --licence {' or '.join(taken)}",
            code="tx.bad_value",
        )


def _contributions(desk: Desk, datanet: int) -> list[dict[str, Any]]:
    route = f"/ledger/datanets/{datanet}/contributions"
    return list(rows_of(desk.node, route, "contributions"))


def _find_own(desk: Desk, datanet: int, root: bytes) -> int | None:
    """Our living contribution with these records: what was returned may be brought again."""
    for row in _contributions(desk, datanet):
        mine = row["contributor"] == desk.account and row["status"] in ALIVE
        if mine and row["root"] == root.hex():
            return int(row["number"])
    return None


def _newest_snapshot(desk: Desk, root: bytes) -> int:
    rows = rows_of(desk.node, "/ledger/snapshots", "snapshots")
    return max((int(row["number"]) for row in rows if row["root"] == root.hex()), default=0)


def _offer_records(desk: Desk, folder: Path) -> None:
    from node.web.ask import Refusal, Unreachable

    try:
        offer(desk.node, folder)
    except (Refusal, Unreachable) as error:
        raise CommandError(
            f"the contribution is made, but its records are not offered to peers: {error}",
            status=error.exit_status,
            mend="the same command once more: it does not contribute twice",
        ) from None
