"""What the provider's book remembers of released channels, over restarts and pruning."""

from pathlib import Path

import pytest
from ledger_kit import NOW_MS, new_state, open_channel
from unit.serving.test_bundling import Counter

from node.ledger import tables
from node.serving.book import ReceiptBook, Released, has_book

MINUTE_MS = 60_000


def released(book: ReceiptBook, channel: bytes, paid: int = 7) -> bool:
    return book.is_released(channel, paid, NOW_MS + MINUTE_MS)


def test_folder_without_a_book_is_known_from_one_with(tmp_path: Path) -> None:
    assert not has_book(tmp_path / "none")
    assert not has_book(tmp_path)
    ReceiptBook(tmp_path, new_state, now_ms=NOW_MS).close()
    assert has_book(tmp_path)


def test_released_channel_stays_so_over_a_restart(tmp_path: Path) -> None:
    state = new_state()
    channel, other = open_channel(state), open_channel(state, nonce=1)
    book = ReceiptBook(tmp_path, lambda: state, now_ms=NOW_MS)
    for paid in (3, 7):
        book.release(Released(channel, paid, NOW_MS))
    book.close()
    book = ReceiptBook(tmp_path, lambda: state, now_ms=NOW_MS)
    assert released(book, channel)
    assert not released(book, channel, paid=3), "the newest counts"
    assert not released(book, other)
    book.close()


def test_book_knows_when_it_was_made_over_pruning(tmp_path: Path) -> None:
    counter = Counter(tmp_path)
    channel = counter.channel()
    counter.book.close()
    folder = tmp_path / "small"
    counter.book = ReceiptBook(folder, lambda: counter.state, segment_bytes=2_000, now_ms=NOW_MS)
    counter.answer(channel, count=20)
    settled = tables.Lane(20, 0, bytes(32))
    counter.state.put(tables.LANE, (channel, 0), settled)
    counter.book.settle(counter.book.lane(channel, 0), settled)
    assert counter.book.prune(counter.ms + 1) > 1
    counter.book.close()
    again = ReceiptBook(folder, lambda: counter.state, now_ms=counter.ms)
    assert (again.is_older(NOW_MS - 1), again.is_older(NOW_MS)) == (True, False)
    again.close()


@pytest.mark.parametrize("standing", [tables.CHANNEL_OPEN, tables.CHANNEL_CLOSED])
def test_released_channel_outlives_the_segment_it_was_written_to(
    tmp_path: Path, standing: int
) -> None:
    counter = Counter(tmp_path)
    channel, busy = counter.channel(), counter.channel()
    counter.book.close()
    book = counter.book = ReceiptBook(
        tmp_path, lambda: counter.state, segment_bytes=2_000, now_ms=NOW_MS
    )
    book.release(Released(channel, 7, NOW_MS))
    counter.answer(busy, count=20)
    settled = tables.Lane(20, 0, bytes(32))
    counter.state.put(tables.LANE, (busy, 0), settled)
    book.settle(book.lane(busy, 0), settled)
    record = counter.state.get(tables.CHANNEL, channel)
    counter.state.put(tables.CHANNEL, (channel,), record._replace(state=standing))
    assert book.prune(counter.ms + 1) > 1
    assert released(book, channel) is (standing == tables.CHANNEL_OPEN)
    book.close()
    again = ReceiptBook(tmp_path, lambda: counter.state, now_ms=NOW_MS)
    assert released(again, channel) is (standing == tables.CHANNEL_OPEN)
    again.close()
