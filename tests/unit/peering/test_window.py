"""The window of block sync: ranges never overlap, never pass its bounds, and come out in order."""

import random

from bundle_kit import party

from node.peering.window import RANGE_BLOCKS_MAX, WINDOW_BLOCKS, Range, Window
from p2p.network import PeerId

ONE, OTHER = PeerId(party("one").key), PeerId(party("other").key)
FAR = 10**6


def numbers(claimed: Range) -> list[int]:
    return list(range(claimed.start, claimed.stop + 1))


def test_ranges_follow_each_other_until_the_window_is_full() -> None:
    window: Window[int] = Window()
    claims = [window.claim(ONE, 10, 1, FAR) for _ in range(WINDOW_BLOCKS // RANGE_BLOCKS_MAX)]
    assert claims == [Range(11 + 64 * i, 74 + 64 * i) for i in range(4)]
    assert window.claim(OTHER, 10, 1, FAR) is None
    assert window.claim(OTHER, 11, 1, FAR) == Range(267, 267)


def test_peer_is_asked_for_nothing_that_it_does_not_have() -> None:
    window: Window[int] = Window()
    assert window.claim(ONE, 10, 1, 12) == Range(11, 12)
    assert window.claim(ONE, 10, 14, FAR) is None
    assert window.claim(ONE, 10, 13, 13) == Range(13, 13)
    assert window.claim(ONE, 10, 1, 13) is None


def test_ranges_end_at_every_snapshot_height() -> None:
    window: Window[int] = Window(end_every=20)
    assert [window.claim(ONE, 10, 1, FAR) for _ in range(3)] == [
        Range(11, 20),
        Range(21, 40),
        Range(41, 60),
    ]


def test_short_answer_leaves_the_rest_to_others() -> None:
    window: Window[int] = Window()
    first, second = window.claim(ONE, 0, 1, FAR), window.claim(ONE, 0, 1, FAR)
    assert first is not None
    assert second is not None
    window.hold(first, [1, 2, 3])
    assert window.claim(OTHER, 0, 1, FAR) == Range(4, 64)
    assert window.pop(0) == (ONE, [1, 2, 3])


def test_released_range_is_claimed_again() -> None:
    window: Window[int] = Window()
    first = window.claim(ONE, 0, 1, FAR)
    assert first is not None
    window.release(first)
    assert window.claim(OTHER, 0, 1, FAR) == first


def test_blocks_that_the_chain_has_by_now_are_left_out() -> None:
    window: Window[int] = Window()
    first = window.claim(ONE, 0, 1, FAR)
    assert first is not None
    window.hold(first, numbers(first))
    assert window.pop(64) is None, "all of them are below"
    again = window.claim(ONE, 64, 1, FAR)
    assert again == Range(65, 128)
    window.hold(again, numbers(again))
    assert window.pop(100) == (ONE, list(range(101, 129)))


def test_answer_to_a_forgotten_range_is_dropped() -> None:
    window: Window[int] = Window()
    first = window.claim(ONE, 0, 1, FAR)
    assert first is not None
    assert window.pop(64) is None
    window.hold(first, numbers(first))
    assert window.pop(0) is None


def test_all_that_one_peer_sent_is_dropped_at_once() -> None:
    window: Window[int] = Window()
    claims = [window.claim(peer, 0, 1, FAR) for peer in (ONE, OTHER, ONE)]
    for claimed in claims[:2]:
        assert claimed is not None
        window.hold(claimed, numbers(claimed))
    window.drop(ONE)
    assert window.pop(0) is None
    assert window.pop(64) == (OTHER, list(range(65, 129)))
    assert window.claim(OTHER, 0, 1, FAR) == Range(1, 64)


def test_random_peers_bring_every_block_once_and_in_order() -> None:
    rng = random.Random(5)
    window: Window[int] = Window(end_every=100)
    height, running = 0, []
    while height < 3_000:
        claimed = window.claim(ONE, height, 1, 3_000)
        if claimed is not None:
            assert claimed.stop <= height + WINDOW_BLOCKS
            running.append(claimed)
        if running and rng.random() < 0.7:
            done = running.pop(rng.randrange(len(running)))
            if rng.random() < 0.3:
                window.release(done)
            else:
                window.hold(done, numbers(done)[: rng.randrange(1, 65)])
        found = window.pop(height)
        if found is not None:
            blocks = list(found[1])
            assert blocks == list(range(height + 1, height + 1 + len(blocks)))
            assert (height // 100) == ((blocks[-1] - 1) // 100)
            height = blocks[-1]
