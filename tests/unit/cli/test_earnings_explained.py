"""`olnode earnings --explain`: who was paid and why, in words and as a picture."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from unit.cli.calls import HASH, Capture, asked, told
from unit.web.behind import ALICE, ID, Behind, served

from consensus.primitives.errors import Invalid
from node.cli.explaining import _lines
from node.cli.main import run
from node.ledger.addresses import account_text
from node.web import answers

RECEIPT = ID.hex()
SETTLED = answers.ReceiptAnswer(
    ID, 7, ID, ALICE, ALICE, ID, 0, 1, ID, "contracts", 1, 12, 5, 10**9, 1, 2, "complete",
    {"infra": 3 * 10**8, "data": 7 * 10**8}, (), 10_000, 7 * 10**8,
)  # fmt: skip
PAID = replace(
    SETTLED, credits=(answers.Credit(4, ALICE, "facts", 10_000, 7 * 10**8),),
    fund_share_bps=0, fund_amount=0,
)  # fmt: skip
IN_PART = replace(
    SETTLED, credits=(answers.Credit(4, ALICE, "facts", 4_000, 28 * 10**7),),
    fund_share_bps=6_000, fund_amount=42 * 10**7,
)  # fmt: skip
PNG = b"\x89PNG\r\n\x1a\n"


class Silent(Behind):
    """A node that answers of an answer that paid nobody."""

    async def find_shares(self, receipt: bytes) -> answers.Shares | None:
        return answers.Shares(ID, "contracts", 1, 120, None, None, (), 10_000)


async def test_records_and_contributors_are_told(capsys: Capture, home: Path) -> None:
    made = await asked(capsys, Behind(receipt=PAID), home, "earnings", "--explain", RECEIPT)
    assert made["schema"] == "olnode.earnings.explain/1"
    (record,) = made["records"]
    assert (record["share_bps"], record["score_bps"]) == (10_000, 25_000)
    assert (made["floor"], made["threshold"], made["index_rows"]) == (40, 100, 120)
    assert (record["gradient_bps"], record["span_bps"], record["citation_bps"]) == (9_000, 1_000, 0)
    assert record["amount"] == made["data"]
    (person,) = made["contributors"]
    assert person["contributor"] == account_text(ALICE)
    assert person["amount"] == made["data"]
    assert re.search(r"# +share +about +gradient +span +times", "\n".join(_lines(made)))


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "verified: arithmetic, 5 paid rows, 3 of the panel, 16 drawn"),
        ({"drawn_rows": 120}, "verified: arithmetic, and all 120 rows scanned"),
        ({"verdict": "unknown", "why": "claim.hidden"}, "not verified (claim.hidden): only"),
        ({"verdict": "false", "why": "row.paid"}, f"FALSE: row.paid; olnode verify {RECEIPT}"),
    ],
)
async def test_last_line_says_what_was_verified(
    capsys: Capture, home: Path, fields: dict[str, Any], line: str
) -> None:
    behind = Behind(receipt=SETTLED, checked=replace(Behind().checked, **fields))
    made = await asked(capsys, behind, home, "earnings", "--explain", RECEIPT)
    assert made["check"]["verdict"] == fields.get("verdict", "true")
    assert _lines(made)[-1].startswith(line)


class Unopened(Behind):
    """A node to whom nobody opens rows."""

    async def check_shares(self, receipt: bytes) -> answers.ShareCheck | None:
        raise Invalid("shares.no_rows", why="no peer is connected")


async def test_shares_are_told_also_where_nothing_can_be_verified(
    capsys: Capture, home: Path
) -> None:
    words = ("earnings", "--explain", RECEIPT)
    made = await asked(capsys, Unopened(receipt=SETTLED), home, *words)
    assert made["check"] == {
        "verdict": "unknown", "why": "shares.no_rows", "paid_rows": 0, "panel_rows": 0,
        "drawn_rows": 0,
    }  # fmt: skip
    assert made["records"]


class Wary(Behind):
    """A node that answers of an answer that no record clearly knew."""

    async def find_shares(self, receipt: bytes) -> answers.Shares | None:
        whole = await super().find_shares(receipt)
        assert whole is not None
        (record,) = whole.records
        return replace(whole, records=(replace(record, share_bps=4_000),), fund_share_bps=6_000)


async def test_what_the_fund_gets_is_told_beside_the_contributors(
    capsys: Capture, home: Path
) -> None:
    words = ("earnings", "--explain", RECEIPT)
    made = await asked(capsys, Wary(receipt=IN_PART), home, *words)
    assert made["fund_share_bps"] == 6_000
    (person,) = made["contributors"]
    assert int(person["amount"]) == int(made["data"]) * 4 // 10
    shown = "\n".join(_lines(made))
    assert "nothing up to 1.75, all from 3.25 on" in shown
    assert re.search(r"the model's maintenance fund +60\.00% +0\.42 OPEN", shown)


async def test_receipt_names_the_fund_among_whom_it_credits(capsys: Capture, home: Path) -> None:
    async with served(Behind(receipt=IN_PART), home / "run"):
        words = ["--home", str(home), "query", "receipt", RECEIPT]
        assert await trio.to_thread.run_sync(run, words) == 0
    shown = capsys.readouterr().out
    assert re.search(r"4 +facts +open1\S+ +40\.00% +0\.28", shown)
    assert re.search(r"- +- +the model's maintenance fund +60\.00% +0\.42", shown)


async def test_picture_is_drawn(capsys: Capture, home: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is an extra: olnode[plots]")
    for number, behind in enumerate((Behind(receipt=SETTLED), Silent(receipt=SETTLED))):
        file = tmp_path / f"{number}.png"
        words = ("earnings", "--explain", RECEIPT, "--plot", str(file))
        await asked(capsys, behind, home, *words)
        assert file.read_bytes().startswith(PNG)
        again = await asked(capsys, behind, home, *words, status=2)
        assert again["what"] == f"{file} exists"


async def test_graph_is_written_as_dot(capsys: Capture, home: Path, tmp_path: Path) -> None:
    """From the answer over record and contribution to who gave it; the rest is the fund's."""
    file, who = tmp_path / "shares.dot", account_text(ALICE)
    words = ("earnings", "--explain", RECEIPT, "--plot", str(file))
    await asked(capsys, Wary(receipt=SETTLED), home, *words)
    lines = file.read_text("utf-8").splitlines()
    assert (lines[0], lines[-1]) == ("digraph shares {", "}")
    edges = [line.strip() for line in lines if "->" in line]
    assert edges == [
        'answer -> r4_2 [label="40.00%", penwidth=3.20];',
        'r4_2 -> c4 [label="40.00%", penwidth=3.20];',
        f'c4 -> {who} [label="40.00%", penwidth=3.20];',
        'answer -> fund [label="60.00%", penwidth=4.80];',
    ]
    absent = ("earnings", "--explain", RECEIPT, "--plot", str(tmp_path))
    assert (await asked(capsys, Behind(receipt=SETTLED), home, *absent, status=2))["what"]


async def test_without_matplotlib_all_else_is_told(
    capsys: Capture, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    words = ("earnings", "--explain", RECEIPT, "--plot", str(tmp_path / "x.png"))
    assert (await asked(capsys, Behind(receipt=SETTLED), home, *words, status=1))["records"]


async def test_picture_that_cannot_be_written_is_told_before_anything_is_asked(
    capsys: Capture, home: Path, tmp_path: Path
) -> None:
    """No daemon runs: whoever asked one first would end with 4."""
    words = ("earnings", "--explain", RECEIPT, "--plot", str(tmp_path / "no" / "file.png"))
    assert "is no folder" in told(capsys, home, *words, status=2)["what"]


async def test_answer_that_paid_nobody_says_who_gets_it(capsys: Capture, home: Path) -> None:
    made = await asked(capsys, Silent(receipt=SETTLED), home, "earnings", "--explain", RECEIPT)
    assert (made["records"], made["contributors"], made["floor"]) == ([], [], None)


class Elsewhere(Behind):
    """A node without the index."""

    async def find_shares(self, receipt: bytes) -> answers.Shares | None:
        raise Invalid("shares.no_index", model=0, version=1)


async def test_node_without_the_index_says_how_it_gets_it(capsys: Capture, home: Path) -> None:
    words = ("earnings", "--explain", RECEIPT)
    made = await asked(capsys, Elsewhere(receipt=SETTLED), home, *words, status=1)
    assert "does not hold the index" in made["what"]
    assert "[audit]" in made["mend"]


def test_what_cannot_be_meant_is_refused(capsys: Capture, home: Path) -> None:
    for words in (
        ("--explain", HASH, "--plot", "picture.jpg"),
        ("--explain", "nothing"),
        ("--explain", HASH, "--by", "day"),
        ("--plot", "x.png"),
    ):
        assert told(capsys, home, "earnings", *words, status=2)["what"]
