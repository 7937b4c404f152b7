"""Payloads of transfers, channels, providers and bonds are what was typed."""

from pathlib import Path

import pytest
import trio
from unit.cli.calls import HASH, Capture, asked, ledger_of, sent, told
from unit.web.behind import ALICE, served

from node.cli.frame import open_text
from node.cli.main import run
from node.ledger.addresses import account_of, account_text
from node.ledger.parameters import devnet_parameters
from node.ledger.wire.transactions import (
    Bond,
    CloseChannel,
    OpenChannel,
    Payload,
    RegisterProvider,
    Transfer,
    decode_transaction,
)

TO = account_text(ALICE)
OPEN = 10**9


async def payload(capsys: Capture, home: Path, *words: str) -> tuple[Payload, bytes]:
    """(what the wire decodes, who signed) of a call that may sign with any key of the home."""
    keys = [account_of(key["account"]) for key in told(capsys, home, "keys", "list")["keys"]]
    asked_of = ledger_of(*keys)
    await asked(capsys, asked_of, home, "tx", *words)
    (raw,) = sent(asked_of)
    tx = decode_transaction(raw)
    return tx.payload, tx.sender


def key(capsys: Capture, home: Path, name: str) -> bytes:
    return account_of(told(capsys, home, "keys", "show", name)["account"])


async def test_transfer_carries_its_memo(home: Path, alice: bytes, capsys: Capture) -> None:
    made, _ = await payload(capsys, home, "transfer", TO, "0.000000001", "--memo", "für Öl")
    assert made == Transfer(ALICE, 1, "für Öl".encode())


async def test_channel_is_spent_by_who_pays_unless_told(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    made, sender = await payload(capsys, home, "open-channel", TO, "5")
    assert (made, sender) == (OpenChannel(ALICE, alice, 5 * OPEN, 0), alice)
    made, _ = await payload(capsys, home, "open-channel", TO, "5", "--spender", TO)
    assert made == OpenChannel(ALICE, ALICE, 5 * OPEN, 0)


async def test_home_without_an_operator_opens_channels_by_its_spending_key(
    home: Path, capsys: Capture
) -> None:
    _, sender = await payload(capsys, home, "open-channel", TO, "5")
    assert sender == key(capsys, home, "spending")


async def test_channel_below_the_least_is_not_charged_for(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    least = devnet_parameters()["channel_cap_min"]
    assert isinstance(least, int)
    cap, under = (open_text(n).removesuffix(" OPEN") for n in (least, least - 1))
    made, _ = await payload(capsys, home, "open-channel", TO, cap)
    assert made == OpenChannel(ALICE, alice, least, 0)
    asked_of = ledger_of(alice)
    answer = await asked(capsys, asked_of, home, "tx", "open-channel", TO, under, status=2)
    assert answer["mend"] == f"{cap} OPEN or more"
    assert asked_of.asked == []


async def test_channel_is_closed_by_its_id(home: Path, alice: bytes, capsys: Capture) -> None:
    made, _ = await payload(capsys, home, "close-channel", HASH)
    assert made == CloseChannel(bytes.fromhex(HASH))


async def test_provider_is_the_node_and_the_operator_is_paid(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    node = key(capsys, home, "node")
    made, sender = await payload(capsys, home, "register-provider")
    assert (made, sender) == (RegisterProvider(node, alice), node)
    made, sender = await payload(capsys, home, "register-provider", "--reward", TO)
    assert (made, sender) == (RegisterProvider(node, ALICE), node)


async def test_provider_without_an_operator_is_paid_itself(home: Path, capsys: Capture) -> None:
    node = key(capsys, home, "node")
    made, _ = await payload(capsys, home, "register-provider")
    assert made == RegisterProvider(node, node)


async def test_provider_is_told_the_command_that_bonds_it(home: Path, capsys: Capture) -> None:
    node = key(capsys, home, "node")
    asked_of, words = ledger_of(node), ["--home", str(home), "tx", "register-provider"]
    async with served(asked_of, home / "run"):
        assert await trio.to_thread.run_sync(run, words) == 0
    command = capsys.readouterr().err.partition(": olnode ")[2].split()
    assert (await asked(capsys, asked_of, home, *command))["state"] == "settled"
    least = devnet_parameters()["provider_bond_min"]
    assert decode_transaction(sent(asked_of)[-1]).payload == Bond(1, node, least)


@pytest.mark.parametrize(("role", "number"), [("validator", 0), ("provider", 1)])
async def test_bond_is_of_a_role(
    home: Path, alice: bytes, capsys: Capture, role: str, number: int
) -> None:
    made, _ = await payload(capsys, home, "bond", TO, "10", "--role", role)
    assert made == Bond(number, ALICE, 10 * OPEN)


@pytest.mark.parametrize(
    "words",
    [
        ["transfer", TO[:-1], "1"],
        ["transfer", TO, "1,5"],
        ["transfer", TO, "1", "--memo", "ü" * 33],
        ["open-channel", "open1", "1"],
        ["open-channel", TO, "x"],
        ["open-channel", TO, "5", "--spender", "x"],
        ["close-channel", HASH[:-1]],
        ["close-channel", HASH.upper()],
        ["register-provider", "--reward", "x"],
        ["bond", "x", "1"],
        ["bond", TO, "1", "--role", "auditor"],
    ],
)
async def test_bad_word_ends_with_two_and_asks_nobody(
    home: Path, alice: bytes, capsys: Capture, words: list[str]
) -> None:
    """No daemon runs: whoever asked one first would end with 4."""
    assert told(capsys, home, "tx", *words, status=2)["exit"] == 2
