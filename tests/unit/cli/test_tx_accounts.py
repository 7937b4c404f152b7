"""Payloads of transfers, keys, providers and bonds are what was typed."""

from pathlib import Path

import pytest
import trio
from unit.cli.calls import Capture, asked, key_of, ledger_of, sent, signed, told
from unit.web.behind import ALICE, ID, served

from consensus.primitives.digest import signing_bytes
from consensus.primitives.keys import verify_signature
from node.cli.main import run
from node.ledger.addresses import account_of, account_text
from node.ledger.parameters import devnet_parameters
from node.ledger.wire.transactions import (
    Bond,
    MultiTransfer,
    RegisterProvider,
    RotateKey,
    Transfer,
    Unbond,
    UpdateProvider,
    decode_transaction,
    rotation_body,
)

TO = account_text(ALICE)
OPEN = 10**9


async def test_transfer_carries_its_memo(home: Path, alice: bytes, capsys: Capture) -> None:
    made, _ = await signed(capsys, home, "transfer", TO, "0.000000001", "--memo", "für Öl")
    assert made == Transfer(ALICE, 1, "für Öl".encode())


BEN = bytes([2]) * 32
PAYMENTS = [f"{account_text(BEN)}=2", f"{TO}=0.000000001"]


async def test_payments_stand_in_the_ledgers_order(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    made, _ = await signed(capsys, home, "multi-transfer", *PAYMENTS)
    assert made == MultiTransfer(((ALICE, 1), (BEN, 2 * OPEN)))


async def test_payments_are_shown_one_a_line(home: Path, alice: bytes, capsys: Capture) -> None:
    words = ["tx", "multi-transfer", *PAYMENTS, "--dry-run"]
    answer = await asked(capsys, ledger_of(), home, *words)
    assert answer["payments"] == [[TO, "1"], [account_text(BEN), str(2 * OPEN)]]
    async with served(ledger_of(), home / "run"):
        assert await trio.to_thread.run_sync(run, ["--home", str(home), *words]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["payments", account_text(BEN), "2.00", "OPEN"] in shown


@pytest.mark.parametrize(
    "payments",
    [
        [f"{TO}=1", f"{TO}=2"],
        [f"{TO}1"],
        ["open1=1"],
        [f"{TO}=x"],
        [f"{account_text(i.to_bytes(32, 'big'))}=1" for i in range(257)],
    ],
)
def test_payments_that_no_ledger_takes_end_with_two(
    home: Path, alice: bytes, capsys: Capture, payments: list[str]
) -> None:
    assert told(capsys, home, "tx", "multi-transfer", *payments, status=2)["exit"] == 2


# ---- another key


async def test_new_key_signs_for_the_account_and_transaction(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    spare = account_of(told(capsys, home, "keys", "add", "spare")["account"])
    made, sender = await signed(capsys, home, "rotate-key", "spare", "--from", "alice")
    assert isinstance(made, RotateKey)
    assert (made.key, sender) == (spare, alice)
    message = signing_bytes(b"rotate", ID, rotation_body(alice, 3))  # as ledger_of tells both
    verify_signature(spare, message, made.signature, "bad")


async def test_account_is_signed_for_by_its_new_key_once_it_is_named(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    spare = account_of(told(capsys, home, "keys", "add", "spare")["account"])
    asked_of = ledger_of(alice, keys={alice: spare})
    words = ["tx", "transfer", TO, "1", "--from"]
    answer = await asked(capsys, asked_of, home, *words, "alice", status=1)
    assert answer["what"].startswith(f"{account_text(spare)} signs for {account_text(alice)}")
    assert sent(asked_of) == []
    await asked(capsys, asked_of, home, *words, "spare", "--account", account_text(alice))
    tx = decode_transaction(sent(asked_of)[0])
    assert tx.sender == alice
    verify_signature(spare, signing_bytes(b"tx", ID, tx.body), tx.signature, "bad")


async def test_key_of_another_role_takes_no_account_over(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    answer = await asked(capsys, ledger_of(alice), home, "tx", "rotate-key", "node", status=2)
    assert answer["what"] == "node is of the role node, alice of operator"


# ---- providers, bonds


async def test_provider_is_the_node_and_the_operator_is_paid(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    node = key_of(capsys, home, "node")
    made, sender = await signed(capsys, home, "register-provider")
    assert (made, sender) == (RegisterProvider(node, alice), node)
    made, sender = await signed(capsys, home, "register-provider", "--reward", TO)
    assert (made, sender) == (RegisterProvider(node, ALICE), node)


async def test_provider_without_an_operator_is_paid_itself(home: Path, capsys: Capture) -> None:
    node = key_of(capsys, home, "node")
    made, _ = await signed(capsys, home, "register-provider")
    assert made == RegisterProvider(node, node)


async def test_provider_is_told_the_command_that_bonds_it(home: Path, capsys: Capture) -> None:
    node = key_of(capsys, home, "node")
    asked_of, words = ledger_of(node), ["--home", str(home), "tx", "register-provider"]
    async with served(asked_of, home / "run"):
        assert await trio.to_thread.run_sync(run, words) == 0
    command = capsys.readouterr().err.partition(": olnode ")[2].split()
    assert (await asked(capsys, asked_of, home, *command))["state"] == "settled"
    least = devnet_parameters()["provider_bond_min"]
    assert decode_transaction(sent(asked_of)[-1]).payload == Bond(1, node, least)


async def test_provider_changes_what_is_named_and_keeps_the_rest(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    node = key_of(capsys, home, "node")
    told(capsys, home, "keys", "add", "node2", "--role", "node")
    other = key_of(capsys, home, "node2")
    for words, expected in (
        (["--status", "paused"], UpdateProvider(ALICE, ALICE, 2)),
        (["--status", "active"], UpdateProvider(ALICE, ALICE, 1)),
        (["--reward", account_text(BEN)], UpdateProvider(ALICE, BEN, 1)),
        (["--peer", "node2"], UpdateProvider(other, ALICE, 1)),
    ):
        assert await signed(capsys, home, "update-provider", *words) == (expected, node)


async def test_account_that_is_no_provider_changes_nothing(home: Path, capsys: Capture) -> None:
    words = ["tx", "update-provider", "--status", "paused"]
    answer = await asked(capsys, ledger_of(provider=None), home, *words, status=1)
    assert answer["code"] == "provider.not_found"


async def test_provider_is_shown(home: Path, capsys: Capture) -> None:
    answer = await asked(capsys, ledger_of(), home, "query", "provider", TO)
    assert (answer["provider"], answer["status"], answer["channels"]) == (TO, "active", 1)


@pytest.mark.parametrize(("role", "number"), [("validator", 0), ("provider", 1)])
async def test_bond_is_taken_out_of_a_role(
    home: Path, alice: bytes, capsys: Capture, role: str, number: int
) -> None:
    made, _ = await signed(capsys, home, "unbond", TO, "10", "--role", role)
    assert made == Unbond(number, ALICE, 10 * OPEN)


@pytest.mark.parametrize(("role", "number"), [("validator", 0), ("provider", 1)])
async def test_bond_is_of_a_role(
    home: Path, alice: bytes, capsys: Capture, role: str, number: int
) -> None:
    made, _ = await signed(capsys, home, "bond", TO, "10", "--role", role)
    assert made == Bond(number, ALICE, 10 * OPEN)


@pytest.mark.parametrize(
    "words",
    [
        ["transfer", TO[:-1], "1"],
        ["transfer", TO, "1,5"],
        ["transfer", TO, "1", "--memo", "ü" * 33],
        ["register-provider", "--reward", "x"],
        ["update-provider"],
        ["update-provider", "--status", "gone"],
        ["update-provider", "--reward", "x"],
        ["bond", "x", "1"],
        ["unbond", "x", "1"],
        ["unbond", TO, "x"],
        ["unbond", TO, "1", "--role", "auditor"],
        ["bond", TO, "1", "--role", "auditor"],
    ],
)
async def test_bad_word_ends_with_two_and_asks_nobody(
    home: Path, alice: bytes, capsys: Capture, words: list[str]
) -> None:
    """No daemon runs: whoever asked one first would end with 4."""
    assert told(capsys, home, "tx", *words, status=2)["exit"] == 2
