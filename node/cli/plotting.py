"""Pictures of what commands tell, as PNG files, by matplotlib without a screen; graphs as DOT.

matplotlib is an extra (`pip install olnode[plots]`) and imported here only, late. DOT needs
nothing.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from node.cli.frame import CommandError
from node.ledger.amounts import BPS
from node.ledger.rules.shares import PAID_FROM, PAID_WHOLE, QUARTERS

BARS_MAX: Final = 64  # records that a receipt can pay
INCHES_A_BAR: Final = 0.28
INCHES_AROUND: Final = 1.4
WIDTH_INCHES: Final = 9.0
NAME_CHARS: Final = 14
FUND: Final = "the model's maintenance fund"
PEN_MAX: Final = 8  # the width of an edge that carries all of the data part
DOT: Final = ".dot"


def draw_shares(told: Mapping[str, Any], path: Path) -> None:
    """Bars of each record's share and the fund's, and of scores beside the threshold, into a PNG at
    `path`; dotted, where pay begins and where it is whole.

    Raises CommandError where matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CommandError(
            "matplotlib is not installed", mend="pip install olnode[plots]"
        ) from error
    records = told["records"][:BARS_MAX]
    figure = Figure((WIDTH_INCHES, INCHES_AROUND + INCHES_A_BAR * max(4, len(records) + 1)))
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    names = [
        f"{one['contributor'][:NAME_CHARS]}… {one['contribution']}.{one['position']}"
        for one in records
    ]
    people = {one["contributor"]: None for one in records}
    colours = {who: f"C{number % 10}" for number, who in enumerate(people)}
    colour = [colours[one["contributor"]] for one in records]
    left.barh(names, [one["share_bps"] / 100 for one in records], color=colour)
    left.barh([FUND], [told["fund_share_bps"] / 100], color="grey")
    left.set_xlabel("share of the data part, %")
    left.set_xlim(0, 100)
    left.invert_yaxis()
    right.barh(names, [one["score_bps"] / 10_000 for one in records], color=colour)
    right.axvline(1.0, color="black", linestyle="--", linewidth=1)
    for quarters in (PAID_FROM, PAID_WHOLE):
        right.axvline(quarters / QUARTERS, color="black", linestyle=":", linewidth=1)
    right.set_xlabel("score over the threshold")
    title = f"{told['model']}@{told['version']}, receipt {told['receipt'][:16]}…"
    figure.suptitle(title if records else title + ": no record stood out from the noise")
    figure.tight_layout()
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}") from None


def write_graph(told: Mapping[str, Any], path: Path) -> None:
    """Answer → records → contributions → contributors as DOT, edges as wide as their shares.

    Raises CommandError where the file cannot be written.
    """
    lines = ["digraph shares {", "  rankdir=LR;", '  answer [label="answer", shape=box];']
    nodes: dict[str, str] = {}
    edges: dict[tuple[str, str], int] = {}
    for one in told["records"][:BARS_MAX]:
        number, who = one["contribution"], one["contributor"]
        record, given = f"r{number}_{one['position']}", f"c{number}"
        nodes[record] = f"{number}.{one['position']}"
        nodes[given] = f"contribution {number}\\n{one['datanet']}"
        nodes[who] = f"{who[:NAME_CHARS]}…"
        for edge in (("answer", record), (record, given), (given, who)):
            edges[edge] = edges.get(edge, 0) + one["share_bps"]
    if to_fund := told["fund_share_bps"]:
        nodes["fund"] = FUND
        edges["answer", "fund"] = to_fund
    lines += [f'  {name} [label="{label}"];' for name, label in nodes.items()]
    lines += [
        f'  {start} -> {end} [label="{bps / 100:.2f}%", penwidth={PEN_MAX * bps / BPS:.2f}];'
        for (start, end), bps in edges.items()
    ]
    try:
        path.write_text("\n".join([*lines, "}", ""]), encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}") from None
