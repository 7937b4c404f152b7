"""What every sub-command of `tx` shares: one a type, and options that hold for all of them."""

import re
from pathlib import Path
from typing import Any

import pytest
import trio
from unit.cli.calls import (
    FRAUD,
    GENESIS,
    HASH,
    PAYER,
    PROVIDER,
    RECORDS,
    Capture,
    asked,
    consent_of,
    ledger_of,
    offered,
    receipt_of,
    sent,
    told,
)
from unit.web.behind import ALICE, ID, served

from node.cli.main import run
from node.cli.tx import COMMANDS
from node.ledger import tables
from node.ledger.addresses import account_of, account_text
from node.ledger.wire.transactions import TYPES, decode_transaction
from node.web.ask import Node, Unreachable

WORDS = {  # a good call of each; FILE is a file of records, FILE.… of a consent or a receipt
    "transfer": [account_text(ALICE), "1.5"],
    "multi-transfer": [f"{account_text(ALICE)}=1.5"],
    "rotate-key": ["spare"],
    "open-channel": [account_text(ALICE), "5"],
    "top-up-channel": [HASH, "5"],
    "close-channel": [HASH],
    "coop-close": [HASH, "--with", "FILE.payer", "--with", "FILE.provider"],
    "register-provider": [],
    "update-provider": ["--status", "paused"],
    "bond": [account_text(ALICE), "10"],
    "unbond": [account_text(ALICE), "10"],
    "unjail": [],
    "create-datanet": ["cases", "--charter", "For the law.", "--licence", "CC0-1.0"],
    "contribute": ["facts", "FILE", "--licence", "CC0-1.0"],
    "curate": ["2", "accept"],
    "withdraw-contribution": ["2"],
    "snapshot": ["facts"],
    "register-model": ["law-1", "--base", HASH, "--licence", "MIT"],
    "publish-version": ["facts-1", "--manifest", HASH, "--price-in", "20", "--price-out", "60"],
    "set-price": ["facts-1", "--price-in", "20"],
    "retire-model": ["facts-1"],
    "fund-maintenance": ["facts-1", "10"],
    "fraud-proof": ["FILE.fraud"],
    "evidence": ["FILE.partial", "FILE.complete"],
}


@pytest.fixture
def words(request: pytest.FixtureRequest, tmp_path: Path, home: Path, capsys: Capture) -> list[str]:
    """The call of the sub-command that the test was given."""
    (tmp_path / "FILE").write_bytes(RECORDS)
    (tmp_path / "FILE.payer").write_bytes(consent_of("payer", PAYER))
    (tmp_path / "FILE.provider").write_bytes(consent_of("provider", PROVIDER))
    for status in ("partial", "complete"):
        (tmp_path / f"FILE.{status}").write_bytes(receipt_of(status))
    (tmp_path / "FILE.fraud").write_bytes(FRAUD)
    told(capsys, home, "keys", "add", "spare")
    name: str = request.param
    return ["tx", name, *(str(tmp_path / w) if "FILE" in w else w for w in WORDS[name])]


def files(home: Path) -> list[Path]:
    return sorted(home.rglob("*"))


each = pytest.mark.parametrize("words", WORDS, indirect=True)


def test_each_type_of_the_ledger_has_its_sub_command() -> None:
    dashed = [re.sub("(?<!^)(?=[A-Z])", "-", row.make.__name__).lower() for row in TYPES]
    assert sorted(dashed) == sorted(COMMANDS) == sorted(WORDS)


@each
async def test_dry_run_shows_the_fee_and_leaves_nothing(
    words: list[str], home: Path, alice: bytes, capsys: Capture
) -> None:
    asked_of, before = ledger_of(), files(home)
    answer = await asked(capsys, asked_of, home, *words, "--dry-run")
    assert answer["schema"] == "olnode.tx.dry-run/1"
    assert int(answer["max_fee"]) == 2 * int(answer["fee"]) > 0
    assert sent(asked_of) == offered(asked_of) == []
    assert files(home) == before


def own_accounts(home: Path, capsys: Capture) -> list[bytes]:
    """Of the home's keys that sign something by default, beside the operator's."""
    names = ("node", "spending")
    return [account_of(told(capsys, home, "keys", "show", name)["account"]) for name in names]


@each
async def test_offline_bytes_decode_to_what_was_shown(
    words: list[str], home: Path, alice: bytes, capsys: Capture, tmp_path: Path
) -> None:
    asked_of = ledger_of(alice, *own_accounts(home, capsys))
    file = tmp_path / "tx"
    answer = await asked(capsys, asked_of, home, *words, "--offline", str(file), "--max-fee", "2")
    tx = decode_transaction(file.read_bytes())
    assert sent(asked_of) == []
    assert (tx.type_name, account_text(tx.sender)) == (answer["type"], answer["from"])
    assert (tx.max_fee, answer["max_fee"]) == (2 * 10**9, str(2 * 10**9))
    again = await asked(capsys, asked_of, home, *words, "--offline", str(file), status=2)
    assert again["what"] == f"{file} exists"


@each
async def test_no_wait_ends_with_the_transaction_in_the_pool(
    words: list[str], home: Path, alice: bytes, capsys: Capture
) -> None:
    asked_of = ledger_of(alice, *own_accounts(home, capsys), settled_code=20)
    answer = await asked(capsys, asked_of, home, *words, "--no-wait")
    assert (answer["state"], answer["transaction"]) == ("pending", ID.hex())
    assert len(sent(asked_of)) == 1


async def test_transaction_is_signed_behind_those_that_wait(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    """Two of one nonce within a block: the pool would drop the first for the second's fee."""
    asked_of = ledger_of(alice, next_nonce=5)
    await asked(capsys, asked_of, home, "tx", "curate", "2", "accept", "--no-wait")
    (raw,) = sent(asked_of)
    assert decode_transaction(raw).nonce == 5


@each
async def test_key_of_the_call_signs_in_place_of_the_homes(
    words: list[str], home: Path, alice: bytes, capsys: Capture
) -> None:
    other = account_of(told(capsys, home, "keys", "add", "zoe")["account"])
    asked_of = ledger_of(other)
    await asked(capsys, asked_of, home, *words, "--from", "zoe", "--no-wait")
    (raw,) = sent(asked_of)
    assert decode_transaction(raw).sender == other


@each
async def test_account_that_owns_nothing_is_told_before_a_password_is_asked(
    words: list[str], home: Path, alice: bytes, capsys: Capture
) -> None:
    answer = await asked(capsys, ledger_of(), home, *words, status=5)
    assert answer["code"] == "account.not_found"
    assert answer["mend"].startswith("olnode tx transfer open1")


@pytest.mark.parametrize("silent", ["POST", "GET"])
async def test_node_that_falls_silent_after_it_was_asked_loses_no_id(
    home: Path, alice: bytes, capsys: Capture, monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    """Who sends it again would sign another transaction, and may pay twice."""
    asked_of, call = ledger_of(alice), Node._call

    def call_and_lose(node: Node, method: str, route: str, *more: Any) -> bytes:
        answer = call(node, method, route, *more)
        if method == silent and route.startswith("/ledger/transactions"):
            raise Unreachable(node.path, "silent")
        return answer

    monkeypatch.setattr(Node, "_call", call_and_lose)
    words = ["tx", "transfer", account_text(ALICE), "1.5"]
    answer = await asked(capsys, asked_of, home, *words, status=4)
    (raw,) = sent(asked_of)
    tx_id = (decode_transaction(raw).tx_id if silent == "POST" else ID).hex()
    assert answer["what"].startswith(f"{tx_id} was sent, but no node answers")
    assert (answer["mend"], answer["why"]) == (f"olnode tx show {tx_id}", "silent")


async def test_transaction_that_reached_no_node_was_not_sent(
    home: Path, alice: bytes, capsys: Capture, tmp_path: Path
) -> None:
    file = str(tmp_path / "tx")
    words = ["tx", "curate", "2", "accept", "--offline", file]
    await asked(capsys, ledger_of(alice), home, *words)
    answer = told(capsys, home, "tx", "send", file, status=4)
    assert answer["what"].startswith("no node answers")
    assert answer["mend"] == "olnode start"


async def test_home_without_a_fitting_key_says_which_it_takes(home: Path, capsys: Capture) -> None:
    words = ["tx", "snapshot", "facts"]
    answer = await asked(capsys, ledger_of(), home, *words, status=1)
    assert "it takes operator" in answer["what"]
    assert answer["mend"] == "olnode keys add NAME"


async def test_amounts_are_open_for_people_and_grains_for_programs(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    words = ["tx", "transfer", account_text(ALICE), "1.5", "--dry-run"]
    answer = await asked(capsys, ledger_of(), home, *words)
    assert answer["amount"] == "1500000000"
    async with served(ledger_of(), home / "run"):
        assert await trio.to_thread.run_sync(run, ["--home", str(home), *words]) == 0
    assert re.search(r"^amount +1\.50 OPEN$", capsys.readouterr().out, re.MULTILINE)


async def test_terms_of_a_datanet_are_shown_by_name(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    words = ["tx", "create-datanet", *WORDS["create-datanet"], "--dry-run"]
    answer = await asked(capsys, ledger_of(), home, *words)
    assert set(tables.Terms._fields) <= answer.keys()
    assert (answer["name"], answer["licences"]) == ("cases", [1])
    assert (answer["deposit"], answer["cost"]) == (str(10**8), str(5 * 10**9))


@pytest.mark.parametrize("amount", ["1e3", "-1", "x"])
async def test_fee_that_is_no_amount_is_refused_before_anything_is_kept(
    home: Path, alice: bytes, capsys: Capture, amount: str
) -> None:
    asked_of = ledger_of(alice)
    words = ["tx", "create-datanet", *WORDS["create-datanet"], f"--max-fee={amount}"]
    assert "--max-fee" in (await asked(capsys, asked_of, home, *words, status=2))["what"]
    assert asked_of.asked == []


async def test_sealed_key_signs_only_by_its_password(tmp_path: Path, capsys: Capture) -> None:
    home, right, wrong = (tmp_path / name for name in ("home", "right", "wrong"))
    for file, text in ((right, b"correct horse\n"), (wrong, b"battery staple\n")):
        await trio.Path(file).write_bytes(text)
    await trio.Path(tmp_path / "genesis").write_bytes(GENESIS)
    made = ["init", "--profile", "testnet", "--genesis", str(tmp_path / "genesis")]
    told(capsys, home, *made, "--password-file", str(right))
    spending = account_of(told(capsys, home, "keys", "show", "spending")["account"])
    words = ["tx", "close-channel", HASH, "--from", "spending", "--password-file"]
    asked_of = ledger_of(spending)
    await asked(capsys, asked_of, home, *words, str(wrong), status=1)
    assert sent(asked_of) == []
    await asked(capsys, asked_of, home, *words, str(right))
    assert decode_transaction(sent(asked_of)[0]).sender == spending
