"""Payloads of channels are what was typed; two people close one by a file."""

from dataclasses import replace
from pathlib import Path

import pytest
import trio
from ledger_kit import CREATOR, context, new_state
from unit.cli.calls import (
    CHANNEL,
    GENESIS,
    HASH,
    PAID,
    PAYER,
    PROVIDER,
    Capture,
    asked,
    consent_of,
    key_of,
    ledger_of,
    sent,
    signed,
    told,
)
from unit.web.behind import ALICE, ID, Behind

from node.cli.frame import open_text
from node.cli.tx_channels import _next_steps
from node.ledger import purses, tables
from node.ledger.addresses import account_of, account_text
from node.ledger.parameters import devnet_parameters
from node.ledger.rules import channels
from node.ledger.wire.orders import channel_id
from node.ledger.wire.transactions import (
    CloseChannel,
    CoopClose,
    OpenChannel,
    TopUpChannel,
    decode_transaction,
)
from node.web import answers

TO = account_text(ALICE)
OPEN = 10**9


async def test_channel_is_spent_by_who_pays_unless_told(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    made, sender = await signed(capsys, home, "open-channel", TO, "5")
    assert (made, sender) == (OpenChannel(ALICE, alice, 5 * OPEN, 0), alice)
    made, _ = await signed(capsys, home, "open-channel", TO, "5", "--spender", TO)
    assert made == OpenChannel(ALICE, ALICE, 5 * OPEN, 0)


async def test_who_opens_a_channel_is_told_its_id(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    """Every other command about it wants the id, which the ledger makes of the nonce."""
    answer = await asked(capsys, ledger_of(alice), home, "tx", "open-channel", TO, "5")
    assert answer["channel"] == channel_id(ID, alice, ALICE, Behind().next_nonce).hex()


async def test_what_is_to_be_signed_shows_accounts_as_they_were_typed(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    words = ["tx", "open-channel", TO, "5", "--dry-run"]
    answer = await asked(capsys, ledger_of(alice), home, *words)
    assert (answer["provider"], answer["spender"]) == (TO, account_text(alice))


async def test_home_without_an_operator_opens_channels_by_its_spending_key(
    home: Path, capsys: Capture
) -> None:
    _, sender = await signed(capsys, home, "open-channel", TO, "5")
    assert sender == key_of(capsys, home, "spending")


async def test_channel_below_the_least_is_not_charged_for(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    least = devnet_parameters()["channel_cap_min"]
    assert isinstance(least, int)
    cap, under = (open_text(n).removesuffix(" OPEN") for n in (least, least - 1))
    made, _ = await signed(capsys, home, "open-channel", TO, cap)
    assert made == OpenChannel(ALICE, alice, least, 0)
    asked_of = ledger_of(alice)
    answer = await asked(capsys, asked_of, home, "tx", "open-channel", TO, under, status=2)
    assert answer["mend"] == f"{cap} OPEN or more"
    assert asked_of.asked == []


async def test_channel_is_closed_by_its_id(home: Path, alice: bytes, capsys: Capture) -> None:
    made, _ = await signed(capsys, home, "close-channel", HASH)
    assert made == CloseChannel(bytes.fromhex(HASH))


async def test_channel_is_topped_up_by_who_pays(home: Path, alice: bytes, capsys: Capture) -> None:
    made, sender = await signed(capsys, home, "top-up-channel", HASH, "2.5")
    assert made == TopUpChannel(bytes.fromhex(HASH), 2_500_000_000)
    assert sender == key_of(capsys, home, "spending")


# ---- closing by both


def home_of(folder: Path, role: str, capsys: Capture) -> Path:
    """A home of its own, as on another machine."""
    folder.mkdir()
    (folder / "genesis").write_bytes(GENESIS)
    words = ["init", "--profile", "devnet", "--role", role, "--genesis", str(folder / "genesis")]
    told(capsys, folder / "home", *words)
    return folder / "home"


@pytest.fixture
def homes(tmp_path: Path, capsys: Capture) -> tuple[Path, Path]:
    """(the payer's, the provider's)."""
    return home_of(tmp_path / "a", "payer", capsys), home_of(tmp_path / "b", "provider", capsys)


def channel_between(homes: tuple[Path, Path], capsys: Capture) -> answers.ChannelAnswer:
    payer, provider = key_of(capsys, homes[0], "spending"), key_of(capsys, homes[1], "node")
    keys = {"payer": payer, "payer_key": payer, "provider": provider, "provider_key": provider}
    return replace(CHANNEL, spender=payer, **keys)


def closed_by(raw: bytes, row: answers.ChannelAnswer) -> int:
    """What the ledger's own rule returns to the payer for these bytes."""
    state, tx = new_state(), decode_transaction(raw)
    assert isinstance(tx.payload, CoopClose)
    record = tables.Channel(
        row.payer, row.provider, row.spender, 0, 0, 0, tables.CHANNEL_OPEN, 1, 0
    )
    state.put(tables.CHANNEL, (row.channel,), record)
    for name in (b"pair/" + row.payer + row.provider, b"served/" + row.provider):
        state.set_counter(name, 1)
    state.move(purses.account(CREATOR.key), purses.channel(row.channel), row.cap)
    state.move(purses.channel(row.channel), purses.account(CREATOR.key), row.paid)
    channels.apply_coop_close(state, context(chain_id=ID), tx, tx.payload)
    assert state.get(tables.CHANNEL, row.channel).state == tables.CHANNEL_CLOSED
    return state.account(row.payer).balance


async def test_two_people_close_a_channel_by_a_file(
    homes: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    """The provider signs, the file is handed over, the payer signs and sends."""
    row, file = channel_between(homes, capsys), tmp_path / "consent"
    words = ["tx", "coop-close", HASH]
    provider_side = ledger_of(channel=row)
    wrote = await asked(capsys, provider_side, homes[1], *words, "--sign-only", str(file))
    assert (wrote["side"], wrote["paid"]) == ("provider", str(PAID))
    assert sent(provider_side) == []
    assert provider_side.asked == [("release", row.channel)], "its node serves nothing more on it"
    payer_side = ledger_of(row.payer, channel=row)
    await asked(capsys, payer_side, homes[0], *words, "--with", str(file))
    (raw,) = sent(payer_side)
    assert decode_transaction(raw).sender == row.payer
    assert closed_by(raw, row) == row.cap - row.paid


async def test_payer_may_sign_first_and_anybody_send(
    homes: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    row, file = channel_between(homes, capsys), tmp_path / "consent"
    words = ["tx", "coop-close", HASH]
    await asked(capsys, ledger_of(channel=row), homes[0], *words, "--sign-only", str(file))
    zoe = account_of(told(capsys, homes[1], "keys", "add", "zoe")["account"])
    asked_of = ledger_of(zoe, channel=row)
    await asked(capsys, asked_of, homes[1], *words, "--with", str(file), "--from", "zoe")
    (raw,) = sent(asked_of)
    assert decode_transaction(raw).sender == zoe
    assert closed_by(raw, row) == row.cap - row.paid


async def test_steps_that_follow_a_payers_signature_work_for_a_node_without_an_operator(
    homes: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    """A node's key sends no CoopClose: the provider signs its own file, the payer sends."""
    row, words = channel_between(homes, capsys), ["tx", "coop-close", HASH]
    file, back = str(tmp_path / "mine"), str(tmp_path / "theirs")

    async def ran(home: Path, *more: str, status: int = 0) -> list[bytes]:
        behind = ledger_of(row.payer, row.provider, channel=row)
        await asked(capsys, behind, home, *words, *more, status=status)
        return sent(behind)

    assert await ran(homes[0], "--sign-only", file) == []
    assert await ran(homes[1], "--with", file, status=1) == []
    steps = _next_steps("payer", HASH, file)
    assert ["--sign-only FILE" in steps[0], "--with FILE" in steps[1]] == [True, True]
    assert await ran(homes[1], "--sign-only", back) == []
    (raw,) = await ran(homes[0], "--with", back)
    assert closed_by(raw, row) == row.cap - row.paid


@pytest.mark.parametrize("way", ["--sign-only", "--with"])
async def test_closed_channel_is_not_signed_for(
    homes: tuple[Path, Path], tmp_path: Path, capsys: Capture, way: str
) -> None:
    row, file = replace(channel_between(homes, capsys), state="closed"), tmp_path / "consent"
    words = ["tx", "coop-close", HASH, way, str(file)]
    answer = await asked(capsys, ledger_of(channel=row), homes[0], *words, status=1)
    assert answer["code"] == "channel.closed"
    assert not file.exists()


@pytest.mark.parametrize("left", [{"unsettled": 1}, {"in_flight": 1}])
@pytest.mark.parametrize("way", ["--sign-only", "--with"])
async def test_provider_does_not_sign_away_what_it_has_served(
    homes: tuple[Path, Path], tmp_path: Path, capsys: Capture, left: dict[str, int], way: str
) -> None:
    row, file = channel_between(homes, capsys), tmp_path / "consent"
    words = ["tx", "coop-close", HASH]
    if way == "--with":
        payers = ledger_of(channel=row)
        await asked(capsys, payers, homes[0], *words, "--sign-only", str(file))
        assert payers.asked == [], "a payer's signature stops nobody's service"
        told(capsys, homes[1], "keys", "add", "sender")
    asked_of = ledger_of(row.provider, channel=row, **left)
    answer = await asked(capsys, asked_of, homes[1], *words, way, str(file), status=1)
    assert "served and not settled" in answer["what"]
    assert sent(asked_of) == []
    assert file.exists() is (way == "--with")


async def test_consent_is_never_written_over_a_file(
    homes: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    row, file = channel_between(homes, capsys), tmp_path / "consent"
    await trio.Path(file).write_bytes(b"mine")
    words = ["tx", "coop-close", HASH, "--sign-only", str(file)]
    await asked(capsys, ledger_of(channel=row), homes[1], *words, status=1)
    assert await trio.Path(file).read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("desc", "raw", "what", "status"),
    [
        ("of an earlier sum", consent_of("provider", PROVIDER, PAID - 1), "signed before", 1),
        ("by another key", consent_of("provider", PAYER), "not signed by the provider", 6),
        ("said to be of the other side", consent_of("payer", PROVIDER), "by the payer", 6),
        (
            "of another channel",
            b'{"channel":"","paid":"1","side":"payer","signature":""}',
            "ano",
            1,
        ),
        ("cut", consent_of("provider", PROVIDER)[:-9], "is not what --sign-only", 1),
        ("no object", b"[]", "is not what --sign-only", 1),
        ("deep", b"[" * 1_024, "is not what --sign-only", 1),
        ("too large", b" " * 1_025, "larger than 1024", 1),
    ],
)
async def test_bad_consent_is_told_and_nothing_is_sent(
    home: Path, alice: bytes, capsys: Capture, tmp_path: Path, desc: str, raw: bytes, what: str,
    status: int,
) -> None:  # fmt: skip
    await trio.Path(tmp_path / "consent").write_bytes(raw)
    asked_of = ledger_of(alice)
    words = ["tx", "coop-close", HASH, "--with", str(tmp_path / "consent")]
    assert what in (await asked(capsys, asked_of, home, *words, status=status))["what"], desc
    assert sent(asked_of) == []


async def test_home_of_neither_side_signs_nothing(
    home: Path, alice: bytes, capsys: Capture, tmp_path: Path
) -> None:
    await trio.Path(tmp_path / "good").write_bytes(consent_of("payer", PAYER))
    for more in (["--sign-only", str(tmp_path / "mine")], ["--with", str(tmp_path / "good")]):
        words = ["tx", "coop-close", HASH, *more]
        answer = await asked(capsys, ledger_of(alice), home, *words, status=1)
        assert answer["what"].startswith("this home has no key of")


async def test_channel_that_the_ledger_does_not_have_is_told(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    words = ["tx", "coop-close", HASH, "--sign-only", str(home / "file")]
    answer = await asked(capsys, ledger_of(channel=None), home, *words, status=1)
    assert answer["code"] == "channel.not_found"


async def test_channel_is_shown(home: Path, capsys: Capture) -> None:
    answer = await asked(capsys, ledger_of(), home, "query", "channel", HASH)
    assert (answer["state"], answer["cap"], answer["paid"]) == ("open", str(10**10), str(PAID))


async def test_channels_of_this_homes_keys_are_listed_and_those_of_an_account(
    home: Path, capsys: Capture
) -> None:
    mine = replace(CHANNEL, payer=key_of(capsys, home, "spending"))
    for words, found in (([], [HASH]), ([account_text(PROVIDER.key)], [HASH]), ([TO], [])):
        answer = await asked(capsys, ledger_of(channel=mine), home, "query", "channels", *words)
        assert [row["channel"] for row in answer["channels"]] == found


@pytest.mark.parametrize(
    "words",
    [
        ["open-channel", "open1", "1"],
        ["open-channel", TO, "x"],
        ["open-channel", TO, "5", "--spender", "x"],
        ["close-channel", HASH[:-1]],
        ["close-channel", HASH.upper()],
        ["top-up-channel", HASH[:-1], "1"],
        ["top-up-channel", HASH, "x"],
        ["coop-close", HASH],
        ["coop-close", HASH[:-1], "--sign-only", "x"],
        ["coop-close", HASH, "--sign-only", "x", "--with", "y"],
    ],
)
async def test_bad_word_ends_with_two_and_asks_nobody(
    home: Path, alice: bytes, capsys: Capture, words: list[str]
) -> None:
    """No daemon runs: whoever asked one first would end with 4."""
    assert told(capsys, home, "tx", *words, status=2)["exit"] == 2
