"""`olnode tx evidence`: the pair in the ledger's order, and files that accuse nobody."""

import json
from pathlib import Path

import pytest
import trio
from chain_kit import accusation
from unit.cli.calls import (
    CHANNEL,
    PROVIDER,
    Capture,
    asked,
    key_of,
    ledger_of,
    receipt_of,
    sent,
    signed,
)
from unit.web.behind import ID


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for status in ("partial", "complete"):
        (tmp_path / status).write_bytes(receipt_of(status))
    return [str(tmp_path / "partial"), str(tmp_path / "complete")]


@pytest.mark.parametrize("order", [1, -1])
async def test_pair_is_sent_in_the_ledgers_order_by_the_spending_key(
    home: Path, capsys: Capture, files: list[str], order: int
) -> None:
    payload, sender = await signed(capsys, home, "evidence", *files[::order])
    assert payload == accusation(ID, CHANNEL.channel, PROVIDER)
    assert sender == key_of(capsys, home, "spending")


async def test_file_that_the_wallet_keeps_is_read_too(
    home: Path, capsys: Capture, files: list[str]
) -> None:
    """The receipt alone, without the answer."""
    for file in map(trio.Path, files):
        told = json.loads(await file.read_bytes())
        await file.write_text(json.dumps(told["receipt"]))
    payload, _ = await signed(capsys, home, "evidence", *files)
    assert payload == accusation(ID, CHANNEL.channel, PROVIDER)


async def test_one_receipt_twice_accuses_nobody(
    home: Path, alice: bytes, capsys: Capture, files: list[str]
) -> None:
    asked_of = ledger_of(alice)
    answer = await asked(capsys, asked_of, home, "tx", "evidence", files[0], files[0], status=2)
    assert answer["what"].endswith("accuse nobody: one receipt")
    assert sent(asked_of) == []


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"{}", "is not what infer"),
        (b"[]", "is not what infer"),
        (b"[" * 100_000, "is not what infer"),
        (b'{"receipt": null}', "is not what infer"),
        (b'{"body": "zz", "signature": ""}', "is not what infer"),
        (b'{"body": "00", "signature": "00"}', "no signature of 64 bytes"),
    ],
)
async def test_file_that_holds_no_receipt_is_told(
    home: Path, alice: bytes, capsys: Capture, files: list[str], raw: bytes, what: str
) -> None:
    await trio.Path(files[1]).write_bytes(raw)
    answer = await asked(capsys, ledger_of(alice), home, "tx", "evidence", *files, status=1)
    assert what in answer["what"]
