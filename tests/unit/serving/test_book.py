"""What the provider's book remembers of released channels, over restarts and pruning."""

from pathlib import Path

import pytest
from ledger_kit import NOW_MS, new_state, open_channel
from unit.serving.test_bundling import Counter

from node.ledger import tables
from node.serving.book import ReceiptBook, Released

MINUTE_MS = 60_000


def released(book: ReceiptBook, channel: bytes, paid: int = 7) -> bool:
    return book.is_released(channel, paid, NOW_MS + MINUTE_MS)


def test_released_channel_stays_so_over_a_restart(tmp_path: Path) -> None:
    state = new_state()
    channel, other = open_channel(state), open_channel(state, nonce=1)
    book = ReceiptBook(tmp_path, lambda: state)
    for paid in (3, 7):
        book.release(Released(channel, paid, NOW_MS))
    book.close()
    book = ReceiptBook(tmp_path, lambda: state)
    assert released(book, channel)
    assert not released(book, channel, paid=3), "the newest counts"
    assert not released(book, other)
    book.close()


@pytest.mark.parametrize("standing", [tables.CHANNEL_OPEN, tables.CHANNEL_CLOSED])
def test_released_channel_outlives_the_segment_it_was_written_to(
    tmp_path: Path, standing: int
) -> None:
    counter = Counter(tmp_path)
    channel, busy = counter.channel(), counter.channel()
    counter.book.close()
    book = counter.book = ReceiptBook(tmp_path, lambda: counter.state, segment_bytes=2_000)
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
    again = ReceiptBook(tmp_path, lambda: counter.state)
    assert released(again, channel) is (standing == tables.CHANNEL_OPEN)
    again.close()
