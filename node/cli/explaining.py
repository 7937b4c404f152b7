"""`olnode earnings --explain RECEIPT`: the records that an answer paid, and how clearly.

The node asks the answer's provider for its statement and believes it only where it fits the
ledger and the index; what it found is shown here as it is. Amounts of one receipt are about: the
ledger splits the sum of a block.
"""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from node.cli.finding import settled
from node.cli.frame import DONE, FAILED, CommandError, Frame, note, open_text, table, usage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from node.web.ask import Node

PICTURES: Final = (".png", ".dot")
PARTS: Final = ("gradient", "span", "citation")


def show(frame: Frame, receipt: str, plot: Path | None) -> int:
    """Ask the node, draw into `plot`, and print, also where drawing failed; the exit status.

    A file that is there stays, and a folder that is not is told before anything is asked.
    """
    if plot is not None and plot.exists():
        usage(f"{plot} exists", "--plot another file")
    if plot is not None and plot.suffix.lower() not in PICTURES:
        usage(f"{plot} ends in none of {' '.join(PICTURES)}", "--plot FILE.png")
    if plot is not None and not plot.parent.is_dir():
        usage(f"{plot.parent} is no folder")
    node = frame.daemon()
    told = settled(receipt, lambda: node.get(f"/ledger/receipts/{receipt}"))
    shares = _shares(node, receipt)
    data = int(told["split"]["data"])
    bps, amounts = Counter[str](), Counter[str]()
    for credit in told["credits"]:
        bps[credit["contributor"]] += credit["share_bps"]
        amounts[credit["contributor"]] += int(credit["amount"])
    for record in shares["records"]:
        record["amount"] = str(_part(data, record["share_bps"]))
    fields = {
        **shares,
        "check": _check(node, receipt),
        "fee": told["fee"],
        "data": told["split"]["data"],
        "contributors": [
            {"contributor": who, "share_bps": share, "amount": str(amounts[who])}
            for who, share in bps.most_common()
        ],
        "fund_amount": told["fund_amount"],
    }
    fault = None if plot is None else _draw(fields, plot)
    frame.show("earnings.explain/1", fields, _lines(fields))
    if fault is not None:
        note(f"olnode: {fault.what}" + (f"; {fault.mend}" if fault.mend else ""))
    elif plot is not None:
        note(f"picture in {plot}")
    return DONE if fault is None else FAILED


def _shares(node: "Node", receipt: str) -> dict[str, Any]:
    from node.web.ask import Refusal

    try:
        return node.get(f"/ledger/receipts/{receipt}/shares")
    except Refusal as refusal:
        if not refusal.code.endswith("no_index"):
            raise
        raise CommandError(
            "this node does not hold the index that the answer was attributed by",
            code=refusal.code,
            mend="name the model in `models` under [audit] and start again, or ask who serves it",
        ) from refusal


def _check(node: "Node", receipt: str) -> dict[str, Any]:
    """What the node finds where it recomputes the shares; "unknown" where it cannot."""
    from node.web.ask import Refusal

    try:
        told = node.get(f"/ledger/receipts/{receipt}/check")
    except Refusal as refusal:
        told = {"verdict": "unknown", "why": refusal.code}
    looked = ("paid_rows", "panel_rows", "drawn_rows")
    return {
        **{name: told[name] for name in ("verdict", "why")},
        **{name: told.get(name, 0) for name in looked},
    }


def _draw(fields: "Mapping[str, Any]", plot: Path) -> CommandError | None:
    from node.cli.plotting import DOT, draw_shares, write_graph

    draw = write_graph if plot.suffix == DOT else draw_shares
    try:
        draw(fields, plot)
    except CommandError as error:
        return error
    return None


def _lines(fields: "Mapping[str, Any]") -> list[str]:
    data = int(fields["data"])
    head = f"{fields['model']}@{fields['version']}: fee {open_text(fields['fee'])}, "
    lines = [head + f"of it to data {open_text(data)}", ""]
    if not fields["records"]:
        rows = fields["index_rows"]
        return [
            *lines,
            f"no record of {rows} stood out from the noise: the model's maintenance fund gets it",
            _checked(fields),
        ]
    if not fields["contributors"]:
        lines += ["no record stood out clearly: the model's maintenance fund gets all of it", ""]
    parts = _parts(fields["records"])
    records = [
        (
            rank,
            f"{one['share_bps'] / 100:.2f}%",
            open_text(one["amount"]),
            *(f"{one[f'{part}_bps'] / 100:.2f}%" for part in parts),
            f"{one['score_bps'] / 10_000:.2f}",
            f"{one['contribution']}.{one['position']}",
            one["datanet"],
            one["contributor"],
            one["text"] or "not held",
        )
        for rank, one in enumerate(fields["records"], start=1)
    ]
    people = [
        (one["contributor"], f"{one['share_bps'] / 100:.2f}%", open_text(one["amount"]))
        for one in fields["contributors"]
    ]
    if to_fund := fields["fund_share_bps"]:
        share = f"{to_fund / 100:.2f}%"
        people.append(("the model's maintenance fund", share, open_text(fields["fund_amount"])))
    return [
        *lines,
        *table(
            ("#", "share", "about", *parts, "times", "record", "datanet", "contributor", "begins"),
            records,
        ),
        "",
        *table(("contributor", "share", "about"), people),
        "",
        f"times: the score over the threshold {fields['threshold']}, which the noise "
        f"({fields['floor']}) of {fields['index_rows']} records stays below",
        _told_slope(),
        _checked(fields),
    ]


def _told_slope() -> str:
    from node.ledger.rules.shares import PAID_FROM, PAID_WHOLE, QUARTERS

    least, whole = PAID_FROM / QUARTERS, PAID_WHOLE / QUARTERS
    return (
        f"what records share grows with the best one's times: nothing up to {least:.2f}, all from "
        f"{whole:.2f} on; the fund gets the rest"
    )


def _parts(records: "Sequence[Mapping[str, Any]]") -> tuple[str, ...]:
    """The scorers that pay, in columns of their own where there is another than the gradient."""
    found = tuple(part for part in PARTS if any(one[f"{part}_bps"] for one in records))
    return () if found == PARTS[:1] else found


def _checked(fields: "Mapping[str, Any]") -> str:
    """What the last line says of the check."""
    check, rows = fields["check"], fields["index_rows"]
    if check["verdict"] == "false":
        return f"FALSE: {check['why']}; olnode verify {fields['receipt']} --explain"
    if check["verdict"] == "unknown":
        return (
            f"not verified ({check['why']}): only that the provider's statement pays what was "
            "settled, and for rows of the index"
        )
    if check["drawn_rows"] >= rows:
        return f"verified: arithmetic, and all {rows} rows scanned"
    return (
        f"verified: arithmetic, {check['paid_rows']} paid rows, {check['panel_rows']} of the "
        f"panel, {check['drawn_rows']} drawn"
    )


def _part(amount: int, bps: int) -> int:
    from node.ledger.amounts import part_bps

    return part_bps(amount, bps)
