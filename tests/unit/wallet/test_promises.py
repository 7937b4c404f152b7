"""What a wallet promised: on the disk before it leaves, and never below what was said."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle_kit import CHAIN, some_receipt
from ledger_kit import PAYER, PROVIDER

from consensus.primitives.errors import Invalid
from consensus.primitives.keys import verify_signature
from node.ledger.wire.orders import ZERO_HASH, decode_voucher, voucher_message
from node.ledger.wire.receipts import (
    CREDITS_MAX,
    RECEIPT_BYTES_MAX,
    accumulate_receipt,
    accumulator_start,
    encode_credits,
    encode_receipt,
)
from node.storage.errors import Damaged, StorageError
from node.storage.segments import SEGMENT_BYTES, SegmentLog
from node.wallet.promises import (
    RECORD_BYTES_MAX,
    Opening,
    OwnChannel,
    PayerLane,
    Promise,
    PromiseBook,
)

CHANNEL, OTHER = b"\1" * 32, b"\2" * 32
ORDER = b"\7" * 32
LATER_MS = 2_000_000_000_000


def open_book(
    folder: Path,
    sign: Callable[[bytes], bytes] = PAYER.sign,
    segment_bytes: int = SEGMENT_BYTES,
) -> PromiseBook:
    return PromiseBook(
        folder, chain_id=CHAIN, spender=PAYER.key, sign=sign, segment_bytes=segment_bytes
    )


def promise(book: PromiseBook, lane: PayerLane, hold: int = 100) -> Promise:
    return book.promise(lane, hold=hold, order_hash=ORDER, expires_ms=LATER_MS)


def receipt(lane: PayerLane, fee: int = 40, credits: bytes = b"\x90") -> bytes:
    """The next receipt of a lane."""
    fields: dict[str, Any] = {
        "channel": lane.channel, "lane": lane.number, "seq": lane.seq + 1, "fee": fee
    }  # fmt: skip
    return encode_receipt(some_receipt(random.Random(lane.seq), credits, **fields))


def accept(book: PromiseBook, lane: PayerLane, fee: int = 40) -> bytes:
    raw = receipt(lane, fee)
    book.accept(raw, PROVIDER.sign(raw), b"\x90")
    return raw


def step(voucher: Any) -> tuple[int, int]:
    return voucher.seq, voucher.sub


def test_promise_is_on_the_disk_before_it_is_signed(tmp_path: Path) -> None:
    """A crash between signing and writing would forget what has left."""
    seen = []

    def sign(message: bytes) -> bytes:
        stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        seen.append(message.removeprefix(voucher_message(CHAIN, b"")) in stored)
        return PAYER.sign(message)

    book = open_book(tmp_path, sign)
    made = promise(book, book.lane(CHANNEL, 0))
    assert seen == [True]
    verify_signature(PAYER.key, voucher_message(CHAIN, made.raw), made.signature, "x")
    book.close()


@pytest.mark.parametrize("fails", ["append", "sync"])
def test_promise_that_cannot_be_written_is_not_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    signed = []
    book = open_book(tmp_path, lambda message: signed.append(message) or b"")
    lane = book.lane(CHANNEL, 0)

    def full(*_: Any, **__: Any) -> None:
        raise StorageError("no space left")

    monkeypatch.setattr(SegmentLog, fails, full)
    with pytest.raises(StorageError):
        promise(book, lane)
    assert (signed, lane.last) == ([], None)


def test_first_promise_of_a_lane_starts_it(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    made = promise(book, book.lane(CHANNEL, 3)).voucher
    assert (made.channel, made.lane, made.seq, made.sub) == (CHANNEL, 3, 1, 0)
    assert (made.cumulative, made.accumulator) == (0, accumulator_start(CHANNEL, 3))
    assert (made.hold, made.order_hash, made.expires_ms) == (100, ORDER, LATER_MS)
    book.close()


def test_second_promise_for_one_receipt_has_a_greater_sub(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    lane = book.lane(CHANNEL, 0)
    assert [step(promise(book, lane, hold).voucher) for hold in (1, 2, 3)] == [
        (1, 0),
        (1, 1),
        (1, 2),
    ]
    book.close()


def test_accepted_receipt_is_acknowledged_by_every_later_promise(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    lane = book.lane(CHANNEL, 0)
    promise(book, lane)
    raw = accept(book, lane, fee=40)
    bare = book.promise(lane, hold=0, expires_ms=LATER_MS).voucher
    assert (step(bare), bare.cumulative, bare.hold) == ((2, 0), 40, 0)
    assert bare.accumulator == accumulate_receipt(accumulator_start(CHANNEL, 0), raw)
    assert bare.order_hash == ZERO_HASH
    assert lane.promised == 40
    assert promise(book, lane, 100).voucher.sub == 1
    assert lane.promised == 140
    book.close()


def test_what_a_channel_can_lose_is_the_sum_of_its_lanes(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    for number in range(3):
        promise(book, book.lane(CHANNEL, number), hold=10)
    promise(book, book.lane(OTHER, 0), hold=1_000)
    assert (book.promised(CHANNEL), book.promised(OTHER), book.promised(b"\3" * 32)) == (
        30,
        1_000,
        0,
    )
    book.close()


def test_receipt_out_of_order_is_our_own_fault(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    lane = book.lane(CHANNEL, 0)
    raw = receipt(lane)
    book.accept(raw, bytes(64), b"\x90")
    with pytest.raises(AssertionError, match="in order"):
        book.accept(raw, bytes(64), b"\x90")
    book.close()


def test_lane_that_was_left_signs_nothing_also_after_a_restart(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    book.leave(book.lane(CHANNEL, 0))
    for opened in (book, None):
        current = opened or open_book(tmp_path)
        with pytest.raises(AssertionError, match="was left"):
            promise(current, current.lane(CHANNEL, 0))
        promise(current, current.lane(CHANNEL, 1))
        current.close()


def test_channels_are_remembered_with_their_newest_cap(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    first, other = OwnChannel(CHANNEL, PROVIDER.key, 5), OwnChannel(OTHER, PROVIDER.key, 7)
    for own in (first, other, first._replace(cap=9)):
        book.note_channel(own)
    book.close()
    again = open_book(tmp_path)
    assert again.channels() == (first._replace(cap=9), other)
    again.close()


def test_opening_outlives_a_restart_and_ends_with_its_block(tmp_path: Path) -> None:
    first = Opening(CHANNEL, PROVIDER.key, 5, 7, 9)
    other = first._replace(channel=OTHER, nonce=8)
    book = open_book(tmp_path)
    book.note_opening(first)
    book.note_opening(other)
    book.note_channel(OwnChannel(OTHER, PROVIDER.key, 5))
    for opened in (book, None):
        current = opened or open_book(tmp_path)
        assert current.openings() == (first,)
        assert [own.channel for own in current.channels()] == [CHANNEL, OTHER]
        current.close()


def test_restart_in_the_middle_of_many_lanes_forgets_nothing(tmp_path: Path) -> None:
    rng, book = random.Random(1), open_book(tmp_path, segment_bytes=2_000)
    for _ in range(120):
        lane = book.lane(rng.choice((CHANNEL, OTHER)), rng.randrange(3))
        if rng.random() < 0.4:
            accept(book, lane, fee=rng.randrange(50))
        else:
            promise(book, lane, hold=rng.randrange(100))
    before = {(c, n): book.lane(c, n) for c in (CHANNEL, OTHER) for n in range(3)}
    book.close()
    assert len(list(tmp_path.iterdir())) > 3
    again = open_book(tmp_path, segment_bytes=2_000)
    assert {place: again.lane(*place) for place in before} == before
    again.close()


def test_largest_receipt_with_all_its_credits_fits(tmp_path: Path) -> None:
    """One that did not fit would stop its lane, for it could never be acknowledged."""
    book = open_book(tmp_path)
    lane = book.lane(CHANNEL, 2**16 - 1)
    credits = encode_credits([(2**63 - CREDITS_MAX + i, 10) for i in range(CREDITS_MAX)])
    most = 2**63 - 1
    fields: dict[str, Any] = {
        "tokens_in": 2**32 - 1, "tokens_out": 2**32 - 1, "fee": most - 1, "started_ms": most,
        "finished_ms": most, "model": most, "model_version": 2**32 - 1,
        "channel": CHANNEL, "lane": 0, "seq": 1,
    }  # fmt: skip
    raw = encode_receipt(some_receipt(random.Random(1), credits, **fields))
    assert len(raw) <= RECEIPT_BYTES_MAX < RECORD_BYTES_MAX
    book.accept(raw, bytes(64), credits)
    book.close()
    again = open_book(tmp_path)
    assert again.lane(CHANNEL, 0).cumulative == most - 1
    assert lane.seq == 0
    again.close()


# --- crashes


def told_story(folder: Path) -> list[tuple[int, Promise]]:
    """Promises and receipts in one lane: (bytes on the disk when it left, what left)."""
    book = open_book(folder)
    lane, said = book.lane(CHANNEL, 0), []
    for turn in range(8):
        if turn in (2, 3, 6):
            accept(book, lane)
        made = promise(book, lane, 10 + turn)
        said.append(((folder / "000001").stat().st_size, made))
    book.close()
    return said


def test_journal_torn_at_any_byte_signs_above_all_that_was_said(tmp_path: Path) -> None:
    """A voucher that left is whole on the disk; what is torn never left."""
    said = told_story(tmp_path / "whole")
    whole = (tmp_path / "whole" / "000001").read_bytes()
    for cut in range(0, len(whole) + 1, 3):
        folder = tmp_path / f"cut-{cut}"
        folder.mkdir()
        (folder / "000001").write_bytes(whole[:cut])
        book = open_book(folder)
        left = [made for size, made in said if size <= cut]
        lane = book.lane(CHANNEL, 0)
        fresh = promise(book, lane)
        for made in left:
            assert step(fresh.voucher) > step(made.voucher)
            assert fresh.voucher.cumulative >= made.voucher.cumulative
        book.close()


def test_torn_tail_that_holds_rubbish_is_cut(tmp_path: Path) -> None:
    said = told_story(tmp_path)
    path = tmp_path / "000001"
    path.write_bytes(path.read_bytes() + b"OLPJ\0\0\0\xff rubbish")
    book = open_book(tmp_path)
    assert step(promise(book, book.lane(CHANNEL, 0)).voucher) > step(said[-1][1].voucher)
    book.close()


def test_damage_before_the_tail_stops_the_wallet_and_says_where(tmp_path: Path) -> None:
    said = told_story(tmp_path)
    path = tmp_path / "000001"
    raw = bytearray(path.read_bytes())
    raw[said[2][0] + 20] ^= 1
    path.write_bytes(raw)
    with pytest.raises(Damaged) as damaged:
        open_book(tmp_path)
    assert damaged.value.exit_status == 7
    assert f"at byte {said[2][0]} of segment 1" in damaged.value.why
    assert path.read_bytes() == bytes(raw), "what is damaged is left as evidence"


@pytest.mark.parametrize("place", [0, -1])
def test_damage_of_a_closed_segment_is_no_torn_tail(tmp_path: Path, place: int) -> None:
    """Only the newest segment can end torn: the others were synced before the next was made."""
    book = open_book(tmp_path, segment_bytes=1_000)
    lane = book.lane(CHANNEL, 0)
    for _ in range(20):
        promise(book, lane)
        accept(book, lane)
    book.close()
    first = tmp_path / "000001"
    raw = bytearray(first.read_bytes())
    raw[place] ^= 1
    first.write_bytes(raw)
    with pytest.raises(Damaged):
        open_book(tmp_path, segment_bytes=1_000)


# --- what the other side shows


def test_voucher_that_is_known_changes_nothing(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    lane = book.lane(CHANNEL, 0)
    first, second = promise(book, lane), promise(book, lane)
    for made in (first, second):
        book.saw(made.raw, made.signature)
    assert not lane.is_left
    book.close()


def test_voucher_above_what_is_known_ends_its_lane(tmp_path: Path) -> None:
    """As after a restore from a copy: going on would sign one number twice."""
    newer = open_book(tmp_path / "newer")
    lane = newer.lane(CHANNEL, 0)
    promise(newer, lane)
    made = promise(newer, lane)
    older = open_book(tmp_path / "older")
    promise(older, older.lane(CHANNEL, 0))
    older.saw(made.raw, made.signature)
    assert older.lane(CHANNEL, 0).is_left
    assert not older.lane(CHANNEL, 1).is_left
    newer.close()
    older.close()


@pytest.mark.parametrize("what", ["signature", "other chain", "not a voucher"])
def test_voucher_that_is_not_ours_leaves_nothing(tmp_path: Path, what: str) -> None:
    """Else any provider could end every lane of a wallet."""
    book = open_book(tmp_path)
    made = promise(open_book(tmp_path / "other"), PayerLane(CHANNEL, 0, 5, 0, bytes(32)))
    raw, signature = made.raw, made.signature
    if what == "signature":
        signature = PROVIDER.sign(voucher_message(CHAIN, raw))
    elif what == "other chain":
        signature = PAYER.sign(voucher_message(bytes(32), raw))
    else:
        raw = raw[:-1]
    with pytest.raises(Invalid, match=r"voucher\."):
        book.saw(raw, signature)
    assert not book.lane(CHANNEL, 0).is_left
    assert decode_voucher(made.raw).seq == 6
    book.close()
