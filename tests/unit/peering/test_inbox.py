"""The inbox of a replica: in order, bounded where peers fill it, and never deaf to a wake."""

from collections import Counter

import trio

from node.peering.inbox import INBOX_MAX, Fetched, Heard, Inbox
from p2p.network import PeerId

PEER = PeerId(b"p" * 32)


def frame(number: int) -> Heard:
    return Heard(PEER, 2, b"%d" % number, number)


def found(number: int) -> Fetched:
    return Fetched(number, b"b" * 32, None)


def test_events_come_out_in_the_order_they_came() -> None:
    inbox = Inbox(Counter())
    for event in (frame(1), found(2), frame(3)):
        inbox.put(event)
    assert [inbox.take() for _ in range(len(inbox))] == [frame(1), found(2), frame(3)]
    assert not inbox


def test_full_inbox_drops_frames_and_never_our_own_work() -> None:
    counters: Counter[str] = Counter()
    inbox = Inbox(counters)
    for number in range(INBOX_MAX):
        inbox.put(frame(number))
    inbox.put(frame(-1))
    inbox.put(found(7))
    assert counters == {"inbox_full": 1}
    assert len(inbox) == INBOX_MAX + 1
    assert inbox.take() == frame(0), "the oldest are kept"
    inbox.put(frame(-2))
    assert counters == {"inbox_full": 2}, "what is our own takes a place too"


async def test_reader_waits_for_an_event_a_wake_or_its_time(autojump_clock: object) -> None:
    inbox = Inbox(Counter())
    start_s = trio.current_time()
    await inbox.wait_until(start_s + 5)
    assert trio.current_time() == start_s + 5
    for call in (inbox.wake, lambda: inbox.put(frame(1))):
        async with trio.open_nursery() as nursery:
            before_s = trio.current_time()
            nursery.start_soon(inbox.wait_until, float("inf"))
            await trio.sleep(1)
            call()
        assert trio.current_time() == before_s + 1


async def test_reader_does_not_wait_while_something_is_there(autojump_clock: object) -> None:
    inbox = Inbox(Counter())
    inbox.put(frame(1))
    before_s = trio.current_time()
    await inbox.wait_until(float("inf"))
    assert trio.current_time() == before_s


async def test_wake_before_the_wait_is_not_lost(autojump_clock: object) -> None:
    """The pools may change while the reader is at work."""
    inbox = Inbox(Counter())
    inbox.wake()
    before_s = trio.current_time()
    await inbox.wait_until(before_s + 9)
    assert trio.current_time() == before_s
    await inbox.wait_until(before_s + 9)
    assert trio.current_time() == before_s + 9, "but it wakes once"
