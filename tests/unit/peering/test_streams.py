"""Streams between validators: who may have one, what waits in it, and what is let go first."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from bundle_kit import party

from consensus.messages import STATUS, VOTE, encode_frame
from consensus.primitives.encoding import encode
from node.peering.streams import (
    BURST_S,
    FRAMES_PER_MEMBER_S,
    FRAMES_S,
    PROTOCOL,
    QUEUE_FRAMES_MAX,
    REOPEN_S,
    ValidatorStreams,
)
from p2p.errors import Unreachable
from p2p.memory import MemoryHub
from p2p.network import FrameStream, PeerId

KEYS = [party(f"streamer {i}").key for i in range(4)]  # a validator's key is its node's here
VOTE_FRAME = encode_frame(VOTE, bytes(111))


def status(number: int) -> bytes:
    return encode_frame(STATUS, b"%d" % number)


class Node:
    def __init__(self, hub: MemoryHub, key: bytes) -> None:
        self.key, self.peer = key, PeerId(key)
        self.network = hub.network(key)
        self.heard: list[tuple[PeerId, int, bytes]] = []
        self.blamed: list[PeerId] = []
        self.network.penalise = lambda peer, points, why: self.blamed.append(peer)
        self.streams = ValidatorStreams(
            network=self.network, find_peer=self.find_peer, on_frame=self._hear
        )
        self.unknown: set[bytes] = set()

    def find_peer(self, key: bytes) -> PeerId | None:
        return None if key in self.unknown else PeerId(key)

    def _hear(self, peer: PeerId, kind: int, body: bytes) -> None:
        self.heard.append((peer, kind, body))

    async def run(self, *, task_status: Any) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.network.run)
            await nursery.start(self.streams.run)
            task_status.started()

    def bodies(self) -> list[bytes]:
        return [body for _, _, body in self.heard]


async def open_by_hand(one: Node, two: Node) -> FrameStream:
    """A stream to write anything into; `one` keeps none of its own."""
    one.streams.set_members([one.key], one.key)
    return await one.network.open(two.peer, PROTOCOL)


@asynccontextmanager
async def nodes(count: int, members: int) -> AsyncIterator[tuple[MemoryHub, list[Node]]]:
    """`count` nodes that have met, of which the first `members` are validators."""
    hub = MemoryHub(seed=3)
    made = [Node(hub, key) for key in KEYS[:count]]
    for node in made:
        node.streams.set_members(KEYS[:members], node.key)
    async with trio.open_nursery() as nursery:
        for node in made:
            await nursery.start(node.run)
        await trio.sleep(4)
        yield hub, made
        nursery.cancel_scope.cancel()


async def test_frames_reach_every_other_validator_in_their_order(autojump_clock: object) -> None:
    async with nodes(4, 3) as (_, (one, two, three, follower)):
        assert one.streams.are_all_live()
        assert one.streams.live_count() == 2
        for number in range(5):
            one.streams.send_to_all(status(number), (1, 0))
        await trio.sleep(1)
        for node in (two, three):
            assert node.heard == [(one.peer, STATUS, b"%d" % n) for n in range(5)]
        assert (one.heard, follower.heard) == ([], [])


async def test_frame_for_one_goes_to_that_one(autojump_clock: object) -> None:
    async with nodes(3, 3) as (_, (one, two, three)):
        one.streams.send(two.peer, status(7), (1, 0))
        one.streams.send(PeerId(KEYS[3]), status(8), (1, 0))
        await trio.sleep(1)
        assert (two.bodies(), three.bodies()) == ([b"7"], [])
        assert one.streams.counters["no_stream"] == 1


async def test_follower_opens_no_stream_and_its_own_is_refused(autojump_clock: object) -> None:
    async with nodes(3, 2) as (_, (one, _two, follower)):
        assert follower.streams.live_count() == 0
        assert follower.streams.find_others() == [PeerId(KEYS[0]), PeerId(KEYS[1])]
        stream = await follower.network.open(one.peer, PROTOCOL)
        await stream.write(VOTE_FRAME, 4)
        await trio.sleep(1)
        assert one.heard == []
        assert one.streams.counters["strangers"] == 1
        with pytest.raises(Unreachable):
            await stream.write(VOTE_FRAME, 4)


async def test_members_that_leave_are_told_nothing_more_and_newcomers_are(
    autojump_clock: object,
) -> None:
    async with nodes(4, 3) as (_, made):
        for node in made:
            node.streams.set_members([KEYS[0], KEYS[1], KEYS[3]], node.key)
        await trio.sleep(3)
        one = made[0]
        assert one.streams.live_count() == 2
        one.streams.send_to_all(status(1), (2, 0))
        await trio.sleep(1)
        assert [node.bodies() for node in made] == [[], [b"1"], [], [b"1"]]
        assert made[2].streams.live_count() == 0, "who left keeps none open"


async def test_what_waits_for_a_peer_comes_when_it_is_found(autojump_clock: object) -> None:
    async with nodes(2, 2) as (hub, (one, two)):
        one.streams.send_to_all(status(0), (1, 0))
        hub.crash(two.peer)  # before the frame has arrived
        await trio.sleep(1)
        for number in (1, 2):
            one.streams.send_to_all(status(number), (1, 0))
        anew = Node(hub, two.key)
        anew.streams.set_members(KEYS[:2], anew.key)
        async with trio.open_nursery() as nursery:
            await nursery.start(anew.run)
            await trio.sleep(3 * REOPEN_S + 2)
            assert one.streams.are_all_live()
            assert anew.bodies()[-2:] == [b"1", b"2"]
            nursery.cancel_scope.cancel()


async def test_broken_stream_is_noticed_before_the_next_word(autojump_clock: object) -> None:
    """Else a proposal after a quiet time would meet it, and votes would not go by gossip."""
    async with nodes(2, 2) as (hub, (one, two)):
        assert one.streams.are_all_live()
        hub.crash(two.peer)
        await trio.sleep(0.1)
        assert not one.streams.are_all_live()


async def test_stream_opened_too_early_for_its_reader_is_opened_again(
    autojump_clock: object,
) -> None:
    """A node that did not know us yet turns our stream away."""
    async with nodes(2, 2) as (_, (one, two)):
        two.streams.set_members(KEYS[1:2], two.key)
        one.streams.set_members(KEYS[:1], one.key)
        one.streams.set_members(KEYS[:2], one.key)
        await trio.sleep(2)
        assert two.streams.counters["strangers"] >= 1
        two.streams.set_members(KEYS[:2], two.key)
        await trio.sleep(2 * REOPEN_S)
        one.streams.send_to_all(status(1), (1, 0))
        await trio.sleep(0.1)
        assert two.bodies() == [b"1"]


async def test_full_queue_drops_the_oldest_round_first(autojump_clock: object) -> None:
    """Re-send repairs what is old; what is new decides."""
    async with nodes(2, 2) as (_, (one, two)):
        one.unknown.add(two.key)
        one.streams.set_members(KEYS[:1], one.key)  # close it, and let it wait for an address
        one.streams.set_members(KEYS[:2], one.key)
        await trio.sleep(1)
        one.streams.send_to_all(status(0), (5, 3))
        one.streams.send_to_all(status(1), (5, 1))
        one.streams.send_to_all(status(2), (5, 2))
        for number in range(3, QUEUE_FRAMES_MAX + 2):
            one.streams.send_to_all(status(number), (6, 0))
        assert one.streams.counters["dropped_out"] == 2
        one.unknown.clear()
        await trio.sleep(3)
        assert len(two.heard) + two.streams.counters["dropped_rate"] == QUEUE_FRAMES_MAX
        assert two.bodies()[:3] == [b"0", b"3", b"4"], "1 and 2 are gone, of rounds 1 and 2"


async def test_flood_is_dropped_and_counted_beyond_the_rate(autojump_clock: object) -> None:
    async with nodes(2, 2) as (_, (one, two)):
        burst = BURST_S * (FRAMES_S + FRAMES_PER_MEMBER_S * 2)
        stream = await open_by_hand(one, two)
        for _ in range(burst + 10):
            await stream.write(VOTE_FRAME, 4)
        await trio.sleep(0.1)
        assert len(two.heard) == burst
        assert two.streams.counters["dropped_rate"] == 10
        await trio.sleep(1)
        for _ in range(10):
            await stream.write(VOTE_FRAME, 4)
        await trio.sleep(0.1)
        assert len(two.heard) == burst + 10, "time gives back what a flood has taken"


@pytest.mark.parametrize(
    "raw", [b"garbage", encode((VOTE, bytes(112))), encode((6, b"x")), encode((VOTE, b""))]
)
async def test_malformed_frame_costs_its_sender_and_the_stream_goes_on(
    autojump_clock: object, raw: bytes
) -> None:
    async with nodes(2, 2) as (_, (one, two)):
        stream = await open_by_hand(one, two)
        await stream.write(raw, 4)
        await stream.write(VOTE_FRAME, 4)
        await trio.sleep(1)
        assert two.blamed == [one.peer]
        assert two.streams.counters["malformed"] == 1
        assert [kind for _, kind, _ in two.heard] == [VOTE]


async def test_new_stream_of_a_peer_replaces_its_old_one(autojump_clock: object) -> None:
    async with nodes(2, 2) as (_, (one, two)):
        first = await open_by_hand(one, two)
        await first.write(status(1), 4)
        await trio.sleep(1)
        second = await open_by_hand(one, two)
        await second.write(status(2), 4)
        await trio.sleep(1)
        assert two.bodies() == [b"1", b"2"]
        with pytest.raises(Unreachable):
            await first.write(status(3), 4)


def test_others_are_those_whose_node_is_known() -> None:
    node = Node(MemoryHub(seed=1), KEYS[0])
    node.streams.set_members(KEYS, node.key)
    node.unknown = {KEYS[2]}
    assert node.streams.find_others() == [PeerId(KEYS[1]), PeerId(KEYS[3])]
    assert not node.streams.are_all_live()
