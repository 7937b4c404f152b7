"""Datanets by command: terms within bounds; records hashed, kept, sent, and only then offered."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from unit.cli.calls import (
    DATANET,
    RECORDS,
    SNAPSHOT,
    Capture,
    asked,
    ledger_of,
    offered,
    sent,
    told,
)
from unit.web.behind import ALICE, ID, Behind, served

from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid
from node.attribution.datanets import content_hash, contribution_root, parse_records, snapshot_root
from node.cli import tx_datanets
from node.cli.main import run
from node.holdings import BYTES_MAX
from node.ledger.parameters import DAY_MS
from node.ledger.tables import Terms
from node.ledger.wire.transactions import (
    Contribute,
    CreateDatanet,
    Curate,
    Payload,
    Snapshot,
    WithdrawContribution,
    decode_transaction,
)
from node.peering import blobstore as blobs
from node.web import answers

CHARTER = "For the law."
CREATE = ["create-datanet", "cases", "--charter", CHARTER, "--licence", "CC0-1.0"]
LEAST = Terms(sha256(CHARTER.encode()), (1,), 0, 1, 10_000, 500, 14 * DAY_MS, 0)
ROOT = contribution_root(parse_records(RECORDS))
CONTENT = content_hash(parse_records(RECORDS))


class Settling(Behind):
    """A node whose ledger has the contribution of ALICE as soon as it is submitted."""

    contributor = ALICE
    status = "pending"

    async def submit(self, raw: bytes) -> bytes:
        tx_id = await super().submit(raw)
        self.contributions += (
            answers.ContributionAnswer(7, self.contributor, ROOT, 2, self.status, 0),
        )
        return tx_id


def settling(alice: bytes) -> Settling:
    made = Settling(accounts={alice}, datanets=(DATANET,))
    made.contributor = alice
    return made


@pytest.fixture
def records(tmp_path: Path) -> str:
    (tmp_path / "records.jsonl").write_bytes(RECORDS)
    return str(tmp_path / "records.jsonl")


async def payload(capsys: Capture, home: Path, alice: bytes, *words: str) -> Payload:
    asked_of = ledger_of(alice)
    await asked(capsys, asked_of, home, "tx", *words, "--no-wait")
    (raw,) = sent(asked_of)
    return decode_transaction(raw).payload


# --- create-datanet


async def test_terms_default_to_the_least_and_the_pages(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    assert await payload(capsys, home, alice, *CREATE) == CreateDatanet(b"cases", LEAST)


async def test_each_term_may_be_chosen(home: Path, alice: bytes, capsys: Capture) -> None:
    more = ["--licence", "own-work", "--licence", "mit", "--licence", "MIT"]
    more += ["--mode", "permissioned", "--quorum", "0", "--stake-per-record", "0.001"]
    more += ["--curation-bps", "0", "--review", "30d", "--withdrawal", "retires-versions"]
    made = await payload(capsys, home, alice, *CREATE, *more)
    assert made == CreateDatanet(
        b"cases", Terms(LEAST.charter, (1, 6, 8), 1, 0, 10**6, 0, 30 * DAY_MS, 1)
    )


async def test_charter_is_kept_and_offered_before_its_hash_is_on_the_ledger(
    home: Path, alice: bytes, capsys: Capture, tmp_path: Path
) -> None:
    (tmp_path / "charter.md").write_text(CHARTER)
    words = [*CREATE[:3], str(tmp_path / "charter.md"), *CREATE[4:]]
    asked_of = ledger_of(alice)
    await asked(capsys, asked_of, home, "tx", *words, "--no-wait")
    folder = home / "datanets" / LEAST.charter.hex()
    goods, raw = asked_of.asked
    assert goods == (5, LEAST.charter, folder)
    assert decode_transaction(raw).payload == CreateDatanet(b"cases", LEAST)
    assert (folder / "content").read_text() == CHARTER


async def test_number_of_the_new_datanet_is_told(home: Path, alice: bytes, capsys: Capture) -> None:
    rows = (DATANET, replace(DATANET, number=2, name="cases"))
    answer = await asked(capsys, ledger_of(alice, datanets=rows), home, "tx", *CREATE)
    assert (answer["state"], answer["datanet"]) == ("settled", 2)


@pytest.mark.parametrize(
    ("option", "good", "bad"),
    [
        ("--stake-per-record", ["0.00001", "0.001"], ["0.000009999", "0.001000001"]),
        ("--curation-bps", ["0", "1000"], ["1001"]),
        ("--review", ["1m", "30d"], ["31d"]),
    ],
)
async def test_term_is_taken_up_to_the_ledgers_bounds(
    home: Path, alice: bytes, capsys: Capture, option: str, good: list[str], bad: list[str]
) -> None:
    for value in good:
        assert await payload(capsys, home, alice, *CREATE, option, value)
    for value in bad:
        asked_of = ledger_of(alice)
        words = ["tx", *CREATE, option, value]
        assert option in (await asked(capsys, asked_of, home, *words, status=2))["what"]
        assert asked_of.asked == []


@pytest.mark.parametrize(
    "words",
    [
        ["create-datanet", "Cases", *CREATE[2:]],
        ["create-datanet", "2024", *CREATE[2:]],
        [*CREATE[:3], "charter.md", *CREATE[4:]],
        [*CREATE[:3], " ", *CREATE[4:]],
        [*CREATE[:3], "a b" * 21_846, *CREATE[4:]],
        CREATE[:4],
        [*CREATE, "--licence", "GPL-3.0"],
        [*CREATE, "--mode", "closed"],
        [*CREATE, "--quorum", "8"],
        [*CREATE, "--quorum", "0"],
        [*CREATE, "--stake-per-record", "x"],
        [*CREATE, "--review", "14"],
        [*CREATE, "--withdrawal", "x"],
        ["contribute", "facts", "none.jsonl"],
        ["contribute", "facts", "none.jsonl", "--licence", "x"],
        ["curate", "0", "accept"],
        ["curate", "1", "maybe"],
    ],
)
def test_bad_word_ends_with_two_and_asks_nobody(
    home: Path, alice: bytes, capsys: Capture, words: list[str]
) -> None:
    assert told(capsys, home, "tx", *words, status=2)["exit"] == 2
    assert not any((home / "datanets").iterdir())


# --- contribute


async def test_contribution_commits_to_its_records(
    home: Path, alice: bytes, capsys: Capture, records: str
) -> None:
    words = ["contribute", "facts", records, "--licence", "cc0-1.0"]
    assert await payload(capsys, home, alice, *words) == Contribute(
        1, 0, ROOT, CONTENT, 2, len(RECORDS), 1, 0, b""
    )


async def test_records_written_otherwise_are_the_same_contribution(
    home: Path, alice: bytes, capsys: Capture, tmp_path: Path
) -> None:
    (tmp_path / "other").write_bytes(b'{ "text" : "\\u006fne" }\n{"text":"two"}')
    words = ["contribute", "1", str(tmp_path / "other"), "--licence", "CC0-1.0"]
    made = await payload(capsys, home, alice, *words)
    assert isinstance(made, Contribute)
    assert (made.root, made.content_hash, made.size_bytes) == (ROOT, CONTENT, len(RECORDS))


async def test_records_are_kept_then_sent_then_offered(
    home: Path, alice: bytes, capsys: Capture, records: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_of = settling(alice)
    folder = home / "datanets" / CONTENT.hex()
    renamed: list[list[Any]] = []
    rename = os.rename

    def note_and_rename(*names: Any) -> None:
        renamed.append(list(asked_of.asked))
        rename(*names)

    monkeypatch.setattr(os, "rename", note_and_rename)
    words = ["tx", "contribute", "facts", records, "--licence", "CC0-1.0"]
    answer = await asked(capsys, asked_of, home, *words)
    assert renamed == [[]], "in the home before anything was asked of the node"
    raw, goods = asked_of.asked
    assert isinstance(raw, bytes)
    assert goods == (5, CONTENT, folder)
    assert (folder / "content").read_bytes() == RECORDS
    assert (answer["state"], answer["contribution"]) == ("settled", 7)


async def test_pending_contribution_is_offered_to_nobody(
    home: Path, alice: bytes, capsys: Capture, records: str
) -> None:
    """Its hash is seen by all who hold the pool: with its records they could be first."""
    asked_of = ledger_of(alice)
    words = ["tx", "contribute", "facts", records, "--licence", "CC0-1.0"]
    async with served(asked_of, home / "run"):
        call = ["--home", str(home), *words, "--no-wait"]
        assert await trio.to_thread.run_sync(run, call) == 0
    assert "the same command once more" in capsys.readouterr().err
    assert len(sent(asked_of)) == 1
    assert offered(asked_of) == []
    assert (home / "datanets" / CONTENT.hex() / "content").read_bytes() == RECORDS


async def test_refused_contribution_is_offered_to_nobody(
    home: Path, alice: bytes, capsys: Capture, records: str
) -> None:
    asked_of = ledger_of(alice, settled_code=20)
    words = ["tx", "contribute", "facts", records, "--licence", "CC0-1.0"]
    assert (await asked(capsys, asked_of, home, *words, status=5))["code"] == "tx.insufficient"
    assert len(sent(asked_of)) == 1
    assert offered(asked_of) == []


async def test_same_command_after_a_crash_offers_and_does_not_contribute_twice(
    home: Path, alice: bytes, capsys: Capture, records: str
) -> None:
    asked_of = settling(alice)
    asked_of.goods_refusal = Invalid("goods.folder")
    words = ["tx", "contribute", "facts", records, "--licence", "CC0-1.0"]
    failed = await asked(capsys, asked_of, home, *words, status=1)
    assert "the same command once more" in failed["mend"]
    asked_of.goods_refusal = None
    answer = await asked(capsys, asked_of, home, *words)
    assert (answer["schema"], answer["contribution"]) == ("olnode.tx.offered/1", 7)
    assert (len(sent(asked_of)), len(offered(asked_of))) == (1, 1)


@pytest.mark.parametrize("other", ["status", "contributor", "root"])
async def test_only_ones_own_living_contribution_counts_as_there(
    home: Path, alice: bytes, capsys: Capture, records: str, other: str
) -> None:
    """What was returned may come again; what another brought is the ledger's to refuse."""
    mine = answers.ContributionAnswer(7, alice, ROOT, 2, "accepted", 0)
    changed: dict[str, Any] = {"status": "returned", "contributor": ALICE, "root": ID}
    words = ["tx", "contribute", "facts", records, "--licence", "CC0-1.0", "--no-wait"]
    asked_of = ledger_of(alice, contributions=(mine,))
    await asked(capsys, asked_of, home, *words)
    assert sent(asked_of) == []
    asked_of = ledger_of(alice, contributions=(replace(mine, **{other: changed[other]}),))
    await asked(capsys, asked_of, home, *words)
    assert len(sent(asked_of)) == 1


async def test_bond_of_a_contribution_is_told(
    home: Path, alice: bytes, capsys: Capture, records: str
) -> None:
    words = ["tx", "contribute", "facts", records, "--licence", "CC0-1.0", "--dry-run"]
    answer = await asked(capsys, ledger_of(), home, *words)
    assert answer["deposit"] == str(10**6 + 2 * 10_000)


@pytest.mark.parametrize("room", [0, -1])
async def test_contribution_that_peers_would_not_fetch_is_said(
    home: Path,
    alice: bytes,
    capsys: Capture,
    records: str,
    monkeypatch: pytest.MonkeyPatch,
    room: int,
) -> None:
    assert BYTES_MAX[blobs.CONTENT] == tx_datanets.FETCHED_BYTES_MAX
    monkeypatch.setattr(tx_datanets, "FETCHED_BYTES_MAX", len(RECORDS) + room)
    words = ["--home", str(home), "tx", "contribute", "facts", records, "--licence", "CC0-1.0"]
    async with served(ledger_of(alice), home / "run"):
        assert await trio.to_thread.run_sync(run, [*words, "--no-wait"]) == 0
    assert ("peers fetch at most" in capsys.readouterr().err) == (room < 0)


async def test_licence_that_the_datanet_does_not_take_is_not_charged_for(
    home: Path, alice: bytes, capsys: Capture, records: str
) -> None:
    asked_of = ledger_of(alice)
    words = ["tx", "contribute", "facts", records, "--licence", "MIT"]
    answer = await asked(capsys, asked_of, home, *words, status=1)
    assert "--licence CC0-1.0" in answer["mend"]
    assert asked_of.asked == []


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "contribution.empty"),
        (b'{"text":"one"}\n{"text":"one"}\n', "record.duplicate"),
        (b'{"text":"one"}\n{"txt":"two"}\n', "record.fields"),
        (b'{"text":"one"}\nnothing\n', "record.malformed"),
        (b'{"text":"one"}\n{"text":"\xff"}\n', "record.not_utf8"),
        (b'{"text":"one"}\n\n', "record.malformed"),
    ],
)
def test_bad_record_is_told_by_line_and_code_and_asks_nobody(
    home: Path, alice: bytes, capsys: Capture, tmp_path: Path, data: bytes, code: str
) -> None:
    (tmp_path / "bad").write_bytes(data)
    words = ["contribute", "facts", str(tmp_path / "bad"), "--licence", "CC0-1.0"]
    answer = told(capsys, home, "tx", *words, status=1)
    assert answer["code"] == code
    assert ("line 2" in answer["what"]) == bool(data)
    assert not any((home / "datanets").iterdir())


def test_file_that_is_not_there_is_told(home: Path, alice: bytes, capsys: Capture) -> None:
    words = ["contribute", "facts", "none.jsonl", "--licence", "CC0-1.0"]
    assert "cannot be read" in told(capsys, home, "tx", *words, status=1)["what"]


# --- curate and snapshot


@pytest.mark.parametrize(
    ("word", "number"), [("accept", 1), ("return", 2), ("reject", 3), ("slash", 4)]
)
async def test_decision_is_a_number_and_its_reason_a_hash(
    home: Path, alice: bytes, capsys: Capture, word: str, number: int
) -> None:
    made = await payload(capsys, home, alice, "curate", "3", word, "--reason", "clear")
    assert made == Curate(3, number, sha256(b"clear"))


async def test_contribution_is_withdrawn_by_its_number(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    made = await payload(capsys, home, alice, "withdraw-contribution", "3")
    assert made == WithdrawContribution(3)


@pytest.mark.parametrize("number", ["0", "x", "-1"])
def test_withdrawal_of_no_number_ends_with_two(
    home: Path, alice: bytes, capsys: Capture, number: str
) -> None:
    assert told(capsys, home, "tx", "withdraw-contribution", number, status=2)["exit"] == 2


async def test_snapshot_is_over_what_is_accepted_on_all_pages(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    statuses = ("accepted", "pending", "returned", "accepted", "withdrawn", "slashed")
    rows = tuple(
        answers.ContributionAnswer(n, ALICE, n.to_bytes(32, "big"), n, statuses[n % 6], 0)
        for n in range(1, 251)
    )
    accepted = [row for row in rows if row.status == "accepted"]
    root = snapshot_root((row.number, row.root) for row in accepted)
    made = replace(SNAPSHOT, number=4, root=root)
    asked_of = ledger_of(alice, contributions=rows, snapshots=(SNAPSHOT, made))
    answer = await asked(capsys, asked_of, home, "tx", "snapshot", "facts")
    (raw,) = sent(asked_of)
    assert decode_transaction(raw).payload == Snapshot(
        1, root, accepted[-1].number, sum(row.records for row in accepted)
    )
    assert answer["snapshot"] == 4


async def test_snapshot_of_nothing_is_refused(home: Path, alice: bytes, capsys: Capture) -> None:
    waiting = answers.ContributionAnswer(1, ALICE, ID, 3, "pending", 0)
    asked_of = ledger_of(alice, contributions=(waiting,))
    answer = await asked(capsys, asked_of, home, "tx", "snapshot", "facts", status=1)
    assert answer["mend"] == "olnode query contributions facts"
    assert asked_of.asked == []


@pytest.mark.parametrize(
    "words",
    [["snapshot", "none"], ["contribute", "none", "FILE", "--licence", "MIT"], ["snapshot", "2"]],
)
async def test_datanet_that_is_not_there_is_told_before_signing(
    home: Path, alice: bytes, capsys: Capture, records: str, words: list[str]
) -> None:
    asked_of = ledger_of(alice)
    call = [records if word == "FILE" else word for word in words]
    answer = await asked(capsys, asked_of, home, "tx", *call, status=1)
    assert (answer["code"], answer["mend"]) == ("datanet.not_found", "olnode query datanets")
    assert asked_of.asked == []
