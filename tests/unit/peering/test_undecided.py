"""Blocks of one height: who waits for which, and what is let go first."""

from simulation.engines import SIGNATURE, header

from consensus.messages import Proposal
from node.ledger.wire.blocks import Block
from node.peering.undecided import BLOCKS_MAX, LACKING_MAX, WAITING_MAX, Undecided, Waiting

PROPOSAL = Proposal(1, 0, -1, header(b"p" * 32), None, SIGNATURE)
BLOCK = Block(b"header", b"payload", b"")


def id_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


def waiting(peer: bytes = b"a" * 32) -> Waiting:
    return Waiting(PROPOSAL, True, peer)


def test_block_is_wanted_until_it_is_here_and_judged() -> None:
    kept = Undecided()
    assert kept.wait(id_of(1), waiting())
    assert kept.is_waited_for(id_of(1))
    assert (kept.ids_without_bytes(), kept.ids_without_verdict()) == ([id_of(1)], [])
    kept.put(id_of(1), BLOCK)
    assert kept.find(id_of(1)) == BLOCK
    assert (kept.ids_without_bytes(), kept.ids_without_verdict()) == ([], [id_of(1)])
    assert kept.verdict(id_of(1)) is None, "bytes alone are no verdict"
    assert kept.judge(id_of(1), True) == [waiting()]
    assert (kept.ids_without_bytes(), kept.ids_without_verdict()) == ([], [])
    assert kept.verdict(id_of(1)) is True
    assert kept.judge(id_of(1), True) == [], "told once"


def test_refused_block_is_known_as_such_and_an_unknown_one_is_not() -> None:
    kept = Undecided()
    kept.judge(id_of(1), False)
    assert kept.verdict(id_of(1)) is False
    assert kept.verdict(id_of(2)) is None
    assert not kept.is_waited_for(id_of(2))


def test_everyone_that_named_a_block_may_have_it() -> None:
    kept = Undecided()
    kept.wait(id_of(1), waiting(b"a" * 32))
    kept.wait(id_of(1), waiting(b"b" * 32))
    kept.wait(id_of(2), waiting(b"c" * 32))
    assert kept.sources(id_of(1)) == [b"a" * 32, b"b" * 32]
    assert kept.sources(id_of(3)) == []


def test_false_bytes_are_forgotten_and_wanted_again() -> None:
    kept = Undecided()
    kept.wait(id_of(1), waiting())
    kept.put(id_of(1), BLOCK)
    kept.forget(id_of(1))
    assert kept.find(id_of(1)) is None
    assert kept.ids_without_bytes() == [id_of(1)]


def test_waiting_messages_are_bounded_over_all_blocks() -> None:
    kept = Undecided()
    for number in range(WAITING_MAX):
        assert kept.wait(id_of(number // 2), waiting())
    assert not kept.wait(id_of(0), waiting())
    assert not kept.wait(id_of(10**6), waiting())
    kept.judge(id_of(0), True)
    assert kept.wait(id_of(10**6), waiting())


def test_oldest_block_that_nobody_waits_for_goes_first() -> None:
    kept = Undecided()
    kept.wait(id_of(0), waiting())
    for number in range(BLOCKS_MAX):
        kept.put(id_of(number), BLOCK)
    kept.put(id_of(BLOCKS_MAX), BLOCK)
    assert kept.find(id_of(0)) is not None, "the oldest, but waited for"
    assert kept.find(id_of(1)) is None
    assert all(kept.find(id_of(number)) for number in range(2, BLOCKS_MAX + 1))


def test_newest_block_is_kept_even_when_all_others_are_waited_for() -> None:
    kept = Undecided()
    for number in range(BLOCKS_MAX):
        kept.wait(id_of(number), waiting())
        kept.put(id_of(number), BLOCK)
    kept.put(id_of(99), BLOCK)
    assert kept.find(id_of(99)) is not None


def test_another_height_begins_with_nothing() -> None:
    kept = Undecided()
    kept.wait(id_of(1), waiting())
    kept.put(id_of(1), BLOCK)
    kept.judge(id_of(2), True)
    kept.at_work.add(id_of(1))
    kept.clear()
    assert kept.find(id_of(1)) is None
    assert kept.verdict(id_of(2)) is None
    assert not kept.is_waited_for(id_of(1))
    assert kept.at_work == set()


def test_bytes_that_name_what_nobody_shows_are_forgotten_after_a_few_tries() -> None:
    undecided, block = Undecided(), Block(b"h", b"p", b"c")
    undecided.put(b"id", block)
    assert [undecided.lack(b"id") for _ in range(LACKING_MAX)] == [False, False, True]
    assert undecided.find(b"id") is None
    undecided.put(b"id", block)
    assert not undecided.lack(b"id"), "other bytes have their own tries"
