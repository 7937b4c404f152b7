"""What a wallet remembers of signed receipts, and what it keeps of two for one request."""

import random
from pathlib import Path
from typing import Any

import pytest
import trio
from bundle_kit import CHAIN, some_receipt
from exchange_kit import at_once
from ledger_kit import NOW_MS, PROVIDER, context, new_state, open_channel, transaction

from consensus.primitives.errors import Invalid
from node.ledger.rules import channels, doubles
from node.ledger.wire.receipts import encode_receipt, receipt_message
from node.ledger.wire.transactions import Evidence, make_evidence
from node.storage.segments import ENDED_FOLDER
from node.wallet import doubles as wallet
from node.wallet.doubles import LOOK_EVERY_S, Doubles

Signed = tuple[bytes, bytes]


class Bench:
    """A wallet's doubles over a ledger that takes what they accuse of, unless told not to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = new_state()
        self.channel = open_channel(self.state)
        self.accused: list[Evidence] = []
        self.refuses = False
        self.doubles = self.open()

    def open(self) -> Doubles:
        return Doubles(
            folder=self.folder, get_state=lambda: self.state, accuse=self.accuse,
            run_blocking=at_once,
        )  # fmt: skip

    async def accuse(self, pair: Evidence) -> None:
        await trio.lowlevel.checkpoint()
        self.accused.append(pair)
        if self.refuses:
            raise Invalid("tx.insufficient")
        doubles.apply_evidence(self.state, context(), transaction(PROVIDER, pair), pair)

    async def run(self, for_s: float = 1) -> None:
        with trio.move_on_after(for_s):
            await self.doubles.run()

    def signed(self, seq: int = 1, **fields: Any) -> Signed:
        raw = encode_receipt(
            some_receipt(random.Random(seq), b"", channel=self.channel, seq=seq, **fields)
        )
        return raw, PROVIDER.sign(receipt_message(CHAIN, raw))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "evidence")


async def test_third_receipt_of_a_place_adds_nothing(bench: Bench, autojump_clock: Any) -> None:
    one, two, three = (bench.signed(fee=fee) for fee in (1, 2, 3))
    for signed in (one, one, two, three, two):
        bench.doubles.note(*signed)
    await bench.run()
    assert bench.accused == [make_evidence(one, two)]


async def test_receipts_of_other_places_are_no_pair(bench: Bench, autojump_clock: Any) -> None:
    for seq in range(1, 9):
        bench.doubles.note(*bench.signed(seq))
    await bench.run()
    assert bench.accused == []


async def test_oldest_receipts_are_forgotten_first(
    bench: Bench, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wallet, "SEEN_MAX", 3)
    for seq in (1, 2, 3, 4):
        bench.doubles.note(*bench.signed(seq, fee=1))
    for seq in (1, 4):
        bench.doubles.note(*bench.signed(seq, fee=2))
    await bench.run()
    assert bench.accused == [make_evidence(bench.signed(4, fee=1), bench.signed(4, fee=2))]


async def test_pairs_are_bounded(
    bench: Bench, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wallet, "PAIRS_MAX", 2)
    for seq in (1, 2, 3):
        bench.doubles.note(*bench.signed(seq, fee=1))
        bench.doubles.note(*bench.signed(seq, fee=2))
    await bench.run()
    assert (len(bench.accused), bench.doubles.counters["dropped"]) == (2, 1)


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_ended_pairs_make_room(
    bench: Bench, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch, is_restarted: bool
) -> None:
    """Or a wallet would notice nothing any more after as many, also of channels long forgotten."""
    monkeypatch.setattr(wallet, "PAIRS_MAX", 2)
    for seq in range(1, 6):
        bench.doubles.note(*bench.signed(seq, fee=1))
        bench.doubles.note(*bench.signed(seq, fee=2))
        await bench.run()
        if is_restarted:
            bench.doubles = bench.open()
    assert (len(bench.accused), bench.doubles.counters["dropped"]) == (5, 0)
    assert [path.name for path in bench.folder.iterdir()] == [ENDED_FOLDER]
    assert len(list((bench.folder / ENDED_FOLDER).iterdir())) == 10, "for the operator"


async def test_pair_that_cannot_be_put_away_ends_no_wallet(
    bench: Bench, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(30, "read-only file system")

    monkeypatch.setattr(Path, "rename", refuse)
    for fee in (1, 2):
        bench.doubles.note(*bench.signed(fee=fee))
    await bench.run(2 * LOOK_EVERY_S)
    bench.doubles = bench.open()
    await bench.run(2 * LOOK_EVERY_S)
    assert len(bench.accused) == 1


async def test_pair_on_the_disk_is_not_accused_of_twice(bench: Bench, autojump_clock: Any) -> None:
    for fee in (1, 2):
        bench.doubles.note(*bench.signed(fee=fee))
    await bench.run()
    bench.doubles = bench.open()
    await bench.run(3 * LOOK_EVERY_S)
    assert len(bench.accused) == 1


@pytest.mark.parametrize("why", ["somebody else was faster", "the channel is forgotten"])
async def test_what_the_ledger_needs_no_more_is_not_sent(
    bench: Bench, autojump_clock: Any, why: str
) -> None:
    one, two = bench.signed(fee=1), bench.signed(fee=2)
    if why == "the channel is forgotten":
        channels.apply_due_forget(bench.state, context(), NOW_MS, bench.channel)
    else:
        pair = make_evidence(one, two)
        doubles.apply_evidence(bench.state, context(), transaction(PROVIDER, pair), pair)
    for signed in (one, two):
        bench.doubles.note(*signed)
    await bench.run()
    assert bench.accused == []


async def test_operator_is_told_once_how_to_do_it_by_hand(
    bench: Bench, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(wallet.log, "warning", lambda event, **facts: told.append(facts))
    bench.refuses = True
    for fee in (1, 2):
        bench.doubles.note(*bench.signed(fee=fee))
    await bench.run(3.5 * LOOK_EVERY_S)
    assert len(bench.accused) == 4
    (facts,) = told
    words = facts["mend"].split()
    assert words[:3] == ["olnode", "tx", "evidence"]
    assert sorted(map(Path, words[3:])) == sorted(bench.folder.iterdir())


async def test_full_disk_keeps_no_file_and_accuses_all_the_same(
    bench: Bench, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(wallet, "write_durably", full)
    for fee in (1, 2):
        bench.doubles.note(*bench.signed(fee=fee))
    await bench.run()
    assert (len(bench.accused), bench.doubles.counters["unkept"]) == (1, 1)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"body": "90", "signature": ""}', b"\xff"])
async def test_file_that_cannot_be_read_is_told_and_passed_over(tmp_path: Path, raw: bytes) -> None:
    await trio.Path(tmp_path / "receipt-x.json").write_bytes(raw)
    bench = Bench(tmp_path)
    assert bench.doubles.counters["unreadable"] == 1
