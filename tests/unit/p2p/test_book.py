"""The book: bounded per teller and group, written whole, begun anew when unreadable."""

import pytest

from p2p.addresses import parse_address
from p2p.book import Book, read_book_file, set_book_aside, write_book_file
from p2p.errors import Misbehaving
from p2p.limits import BOOK_ENTRIES_MAX, BOOK_GROUP_MAX, BOOK_SOURCE_MAX, BOOK_UNSEEN_MS_MAX
from p2p.memory import _Identity
from p2p.peers import PeerId
from p2p.records import make_record

CHAIN = b"c" * 32
NOW_MS = 1_700_000_000_000
ME = _Identity(PeerId(b"m" * 32))


def record_of(number, host=None, seq_ms=NOW_MS):
    key = PeerId(number.to_bytes(32, "big"))
    host = host or f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    address = parse_address(f"/ip4/{host}/tcp/1")
    return make_record(
        _Identity(key), CHAIN, seq_ms=seq_ms, addresses=(address,), roles=0, binding=b""
    )


def learn_own(book, record):
    return book.learn(record, record.peer, NOW_MS)


def test_newer_record_replaces_an_older_one_only():
    book = Book("lan")
    assert learn_own(book, record_of(1, seq_ms=5))
    assert not learn_own(book, record_of(1, "10.9.9.9", seq_ms=5))
    assert learn_own(book, record_of(1, "10.8.8.8", seq_ms=6))
    assert book.find(record_of(1).peer).addresses()[0].host == "10.8.8.8"


def test_one_teller_fills_only_its_share():
    book, teller = Book("lan"), PeerId(b"t" * 32)
    kept = [book.learn(record_of(n), teller, NOW_MS) for n in range(1, BOOK_SOURCE_MAX + 2)]
    assert kept == [True] * BOOK_SOURCE_MAX + [False]


def test_one_group_of_addresses_fills_only_its_share():
    book = Book("public")
    kept = [learn_own(book, record_of(n, f"8.8.8.{n}")) for n in range(1, BOOK_GROUP_MAX + 2)]
    assert kept == [True] * BOOK_GROUP_MAX + [False]


def test_peer_cannot_move_into_a_full_group():
    """Else the limit would hold only for a peer's first word."""
    book = Book("public")
    for number in range(1, BOOK_GROUP_MAX + 1):
        assert learn_own(book, record_of(number, f"8.8.8.{number}"))
    assert learn_own(book, record_of(99, "9.9.9.9"))
    assert not learn_own(book, record_of(99, "8.8.8.99", seq_ms=NOW_MS + 1))
    assert learn_own(book, record_of(1, "8.8.8.77", seq_ms=NOW_MS + 1)), "it is in there already"
    assert learn_own(book, record_of(2, "9.9.9.8", seq_ms=NOW_MS + 1))
    assert learn_own(book, record_of(99, "8.8.8.99", seq_ms=NOW_MS + 2)), "one has left"


def test_who_listens_elsewhere_is_due_at_once():
    book = Book("lan")
    learn_own(book, record_of(1))
    entry = book.find(record_of(1).peer)
    entry.due_s, entry.failures = 1_000.0, 9
    learn_own(book, record_of(1, seq_ms=NOW_MS + 1))
    assert (entry.due_s, entry.failures) == (1_000.0, 9), "the same address again says nothing"
    learn_own(book, record_of(1, "10.9.9.9", seq_ms=NOW_MS + 2))
    assert (entry.due_s, entry.failures) == (0.0, 0)


def test_forgotten_entries_give_back_their_places():
    book, teller = Book("public"), PeerId(b"t" * 32)
    for _ in range(3):
        for number in range(1, BOOK_SOURCE_MAX + 1):
            assert book.learn(record_of(number, f"8.{number}.0.1"), teller, NOW_MS)
        for entry in book.entries():
            entry.last_seen_ms = 0
        book.forget_old(NOW_MS)
        assert not len(book)


def test_record_without_a_usable_address_is_not_kept():
    assert not learn_own(Book("public"), record_of(1, "10.0.0.1"))
    assert learn_own(Book("lan"), record_of(1, "10.0.0.1"))


def test_full_book_makes_room_only_by_dropping_the_unseen():
    book = Book("lan")
    for number in range(1, BOOK_ENTRIES_MAX + 1):
        assert learn_own(book, record_of(number))
    assert not learn_own(book, record_of(BOOK_ENTRIES_MAX + 1))
    book.find(record_of(7).peer).last_seen_ms = NOW_MS - BOOK_UNSEEN_MS_MAX - 1
    assert learn_own(book, record_of(BOOK_ENTRIES_MAX + 2))
    assert book.find(record_of(7).peer) is None


def test_book_comes_back_from_its_file(tmp_path):
    book = Book("lan")
    for number in range(1, 50):
        learn_own(book, record_of(number))
    book.find(record_of(3).peer).is_anchor = True
    ban = (PeerId(b"b" * 32), NOW_MS + 1_000)
    path = tmp_path / "p2p" / "peers.msgpack"
    write_book_file(path, book.pack([ban]))
    again = Book("lan")
    assert again.unpack(read_book_file(path), ME, CHAIN, NOW_MS) == [ban]
    assert len(again) == 49
    assert again.find(record_of(3).peer).is_anchor
    assert not list(path.parent.glob("*.new"))


def test_entries_unseen_for_a_month_are_forgotten():
    book = Book("lan")
    learn_own(book, record_of(1))
    again = Book("lan")
    again.unpack(book.pack([]), ME, CHAIN, NOW_MS + BOOK_UNSEEN_MS_MAX + 1)
    assert len(again) == 0


def test_no_file_is_no_book_and_an_unreadable_one_is_put_aside(tmp_path):
    path = tmp_path / "peers.msgpack"
    assert read_book_file(path) is None
    path.write_bytes(b"rubbish")
    with pytest.raises(Misbehaving):
        Book("lan").unpack(read_book_file(path), ME, CHAIN, NOW_MS)
    set_book_aside(path)
    assert not path.exists()
    assert (tmp_path / "peers.msgpack.unreadable").read_bytes() == b"rubbish"
