"""Promises in catching up: whom to ask, what to believe, and what too much of them costs."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from bundle_kit import party
from stored_kit import Decided, Stored

from consensus.certificate import encode_certificate
from consensus.header import decode_header
from consensus.primitives.encoding import U8, U16, U63, Record, decode, encode
from consensus.primitives.errors import Invalid
from node.ledger.wire.blocks import Block, encode_block
from node.peering.catchup import (
    BLOCKS_MAX,
    BY_HEIGHT,
    BY_ID,
    EMPTY_PROMISES_MAX,
    HINTS_MAX,
    IGNORED_S,
    LOOK_EVERY_S,
    PEERS_ASKED_MAX,
    Catchup,
)
from node.storage.store import MemoryKV
from p2p.errors import Code, Refused
from p2p.limits import PENALTIES, PROTOCOLS
from p2p.memory import MemoryHub
from p2p.network import PeerId, StatusFacts

US, ONE, TWO = (PeerId(party(f"catchup {i}").key) for i in range(3))
Answer = Callable[[PeerId, bytes], Awaitable[bytes]]


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> list[Decided]:
    """Five blocks with their certificates."""
    stored = Stored(tmp_path_factory.mktemp("chain"), store=MemoryKV())
    for _ in range(5):
        stored.block(stored.pay())
    found = stored.decided
    stored.chain.close()
    return found


def id_of(block: Block) -> bytes:
    return decode_header(block.header).block_id()


def in_frame(blocks: list[Decided]) -> bytes:
    return encode([(encode_block(block), encode_certificate(proof)) for block, proof in blocks])


class World:
    """Our side of a few connected nodes: a chain that is a number, and what it was given."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.height = 0
        self.given = 0
        self.taken: list[int] = []
        self.refuse: set[int] = set()
        self.blamed: list[tuple[PeerId, str]] = []
        self.asked: list[tuple[PeerId, int]] = []
        network.penalise = lambda peer, points, why: self.blamed.append((peer, why))
        self.catchup = Catchup(
            network=network, get_height=lambda: self.height, take=self.take
        )  # fmt: skip

    async def take(self, blocks: list[Decided]) -> None:
        """As the replica: in order, up to the first that is bad; what is old does nothing."""
        await trio.lowlevel.checkpoint()
        self.given += len(blocks)
        for block, _ in blocks:
            height = decode_header(block.header).height
            if height in self.refuse:
                raise Invalid("block.state_root")
            if height == self.height + 1:
                self.height = height
                self.taken.append(height)

    def honest(self, me: PeerId, blocks: list[Decided], at_once: int = BLOCKS_MAX) -> Answer:
        async def answer(peer: PeerId, body: bytes) -> bytes:
            kind, start, count = decode(body, Record(U8, U63, U16), 64, "test")
            assert kind == BY_HEIGHT
            assert 1 <= count <= BLOCKS_MAX
            self.asked.append((me, start))
            return in_frame(blocks[start - 1 : start - 1 + min(count, at_once)])

        return answer

    def always(self, me: PeerId, reply: bytes) -> Answer:
        async def answer(peer: PeerId, body: bytes) -> bytes:
            self.asked.append((me, 0))
            return reply

        return answer


@asynccontextmanager
async def world(
    answers: dict[PeerId, Callable[[World], Answer]], promises: dict[PeerId, int] | None = None
) -> AsyncIterator[World]:
    """US beside peers that answer `blocks` and say in their status what `promises` holds."""
    hub = MemoryHub(seed=1)
    made = World(hub.network(US))
    async with trio.open_nursery() as nursery:
        for peer, make_answer in answers.items():
            height = (promises or {}).get(peer, 0)
            other = hub.network(peer, facts=lambda height=height: StatusFacts(height=height))
            other.serve("blocks", make_answer(made), PROTOCOLS["blocks"])
            await nursery.start(other.run)
        await nursery.start(made.network.run)
        await trio.sleep(3)
        assert len(made.network.peers()) == len(answers)
        yield made
        nursery.cancel_scope.cancel()


async def run_for(made: World, seconds: float) -> None:
    with trio.move_on_after(seconds):
        await made.catchup.run()


# ---- ranges


async def test_whole_gap_is_asked_for_range_by_range(
    autojump_clock: object, decided: list[Decided]
) -> None:
    answers = {ONE: lambda made: made.honest(ONE, decided, at_once=2)}
    async with world(answers, {ONE: 5}) as made:
        await run_for(made, 3)
        assert made.asked == [(ONE, 1), (ONE, 3), (ONE, 5)]
        assert made.taken == [1, 2, 3, 4, 5]
        assert made.catchup.counters["blocks"] == 5
        assert made.blamed == []


async def test_nobody_is_asked_while_nobody_is_ahead(
    autojump_clock: object, decided: list[Decided]
) -> None:
    async with world({ONE: lambda made: made.honest(ONE, decided)}, {ONE: 5}) as made:
        made.height = 5
        await run_for(made, 10)
        assert made.asked == []


async def test_hint_is_followed_at_once_and_the_status_at_the_next_look(
    autojump_clock: object, decided: list[Decided]
) -> None:
    async with (
        world({ONE: lambda made: made.honest(ONE, decided)}) as made,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(made.catchup.run)
        await trio.sleep(LOOK_EVERY_S / 2)
        assert made.asked == []
        made.catchup.hint(ONE, 3)
        await trio.sleep(LOOK_EVERY_S / 4)
        assert made.asked == [(ONE, 1)]
        nursery.cancel_scope.cancel()


async def test_highest_promise_is_asked_first(
    autojump_clock: object, decided: list[Decided]
) -> None:
    answers = {
        ONE: lambda made: made.honest(ONE, decided[:3]),
        TWO: lambda made: made.honest(TWO, decided),
    }
    async with world(answers, {ONE: 3, TWO: 5}) as made:
        await run_for(made, 3)
        assert made.asked == [(TWO, 1)]


async def test_hint_below_our_height_or_of_a_stranger_is_nothing(
    autojump_clock: object, decided: list[Decided]
) -> None:
    async with world({ONE: lambda made: made.honest(ONE, decided)}) as made:
        made.height = 3
        made.catchup.hint(ONE, 3)
        made.catchup.hint(TWO, 9)  # not connected
        await run_for(made, 5)
        assert made.asked == []
        made.catchup.hint(ONE, 4)
        await run_for(made, 5)
        assert made.asked == [(ONE, 4)]


async def test_hints_are_bounded_and_those_of_the_gone_make_room(
    autojump_clock: object, decided: list[Decided]
) -> None:
    async with world({ONE: lambda made: made.honest(ONE, decided)}) as made:
        for number in range(HINTS_MAX):
            made.catchup.hint(PeerId(number.to_bytes(32, "big")), 9)
        made.catchup.hint(ONE, 5)
        await run_for(made, 2)
        assert made.taken == [], "no room for its hint"
        made.catchup.hint(ONE, 5)
        await run_for(made, 2)
        assert made.taken == [1, 2, 3, 4, 5]


# ---- those who promise too much


async def test_third_empty_promise_costs_points_and_a_minute_of_silence(
    autojump_clock: object,
) -> None:
    async with world({ONE: lambda made: made.always(ONE, encode([]))}, {ONE: 99}) as made:
        await run_for(made, EMPTY_PROMISES_MAX * LOOK_EVERY_S + 0.5)
        assert len(made.asked) == EMPTY_PROMISES_MAX
        assert made.blamed == [(ONE, "empty_promise")]
        await run_for(made, IGNORED_S - 5)
        assert len(made.asked) == EMPTY_PROMISES_MAX
        await run_for(made, 7)
        assert len(made.asked) > EMPTY_PROMISES_MAX, "and then it may try again"


async def test_good_answer_makes_empty_promises_forgotten(
    autojump_clock: object, decided: list[Decided]
) -> None:
    replies = iter([b"\x90", b"\x90", in_frame(decided[:1]), b"\x90", b"\x90"])

    def moody(made: World) -> Answer:
        async def answer(peer: PeerId, body: bytes) -> bytes:
            return next(replies, b"\x90")

        return answer

    async with world({ONE: moody}, {ONE: 99}) as made:
        await run_for(made, 3.5)
        assert made.taken == [1]
        assert made.blamed == []


async def test_who_has_no_blocks_does_not_keep_us_from_those_who_do(
    autojump_clock: object, decided: list[Decided]
) -> None:
    async def refuse(peer: PeerId, body: bytes) -> bytes:
        raise Refused(Code.NOT_FOUND)

    answers = {ONE: lambda made: refuse, TWO: lambda made: made.honest(TWO, decided)}
    async with world(answers, {ONE: 99, TWO: 5}) as made:
        await run_for(made, (EMPTY_PROMISES_MAX + 1) * LOOK_EVERY_S + 1)
        assert made.catchup.counters["failed"] == EMPTY_PROMISES_MAX
        assert made.taken == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("reply", [b"garbage", encode([(b"block", b"proof")])])
async def test_malformed_answer_is_forged_and_its_teller_silent_for_a_minute(
    autojump_clock: object, decided: list[Decided], reply: bytes
) -> None:
    answers = {
        ONE: lambda made: made.always(ONE, reply),
        TWO: lambda made: made.honest(TWO, decided),
    }
    async with world(answers, {ONE: 99, TWO: 5}) as made:
        await run_for(made, 5)
        assert made.blamed == [(ONE, "forged")]
        assert made.taken == [1, 2, 3, 4, 5]
        assert PENALTIES["forged"] > PENALTIES["empty_promise"]


async def test_bad_block_is_blamed_and_what_came_before_it_is_kept(
    autojump_clock: object, decided: list[Decided]
) -> None:
    async with world({ONE: lambda made: made.honest(ONE, decided)}, {ONE: 5}) as made:
        made.refuse = {3}
        await run_for(made, 5)
        assert made.taken == [1, 2]
        assert made.blamed == [(ONE, "forged")]
        assert made.asked == [(ONE, 1)]


async def test_answer_of_other_heights_than_asked_is_forged(
    autojump_clock: object, decided: list[Decided]
) -> None:
    """A teller of old, true blocks with the highest promise of all would be asked for ever."""
    answers = {
        ONE: lambda made: made.always(ONE, in_frame(decided[:1])),
        TWO: lambda made: made.honest(TWO, decided),
    }
    async with world(answers, {ONE: 99, TWO: 5}) as made:
        made.height = 2
        await run_for(made, 10)
        assert made.taken == [3, 4, 5]
        assert made.blamed == [(ONE, "forged")]


async def test_answer_with_a_gap_is_forged(autojump_clock: object, decided: list[Decided]) -> None:
    reply = in_frame([decided[0], decided[2]])
    async with world({ONE: lambda made: made.always(ONE, reply)}, {ONE: 99}) as made:
        await run_for(made, 5)
        assert made.blamed == [(ONE, "forged")]


async def test_header_that_is_none_is_forged_before_the_replica_sees_it(
    autojump_clock: object, decided: list[Decided]
) -> None:
    block, proof = decided[0]
    for header in (b"", b"garbage", block.header[:-1]):
        reply = in_frame([(block._replace(header=header), proof)])
        async with world({ONE: lambda made, r=reply: made.always(ONE, r)}, {ONE: 99}) as made:
            await run_for(made, 2)
            assert made.blamed == [(ONE, "forged")]
            assert made.given == 0


# ---- one block by its id


def has(made: World, me: PeerId, block: Block | None) -> Answer:
    async def answer(peer: PeerId, body: bytes) -> bytes:
        assert body[1] == BY_ID
        made.asked.append((me, 0))
        if block is None:
            raise Refused(Code.NOT_FOUND)
        return encode((encode_block(block),))

    return answer


async def test_block_comes_from_the_first_peer_that_has_it(
    autojump_clock: object, decided: list[Decided]
) -> None:
    block = decided[0][0]
    answers = {ONE: lambda made: has(made, ONE, None), TWO: lambda made: has(made, TWO, block)}
    async with world(answers) as made:
        absent = PeerId(party("absent").key)
        assert await made.catchup.fetch_block(id_of(block), [absent, ONE, ONE, TWO]) == block
        assert made.asked == [(ONE, 0), (TWO, 0)], "each once"
        assert made.blamed == []
        made.asked.clear()
        assert await made.catchup.fetch_block(id_of(block), [TWO, ONE]) == block
        assert made.asked == [(TWO, 0)]


async def test_block_of_another_id_is_forged_and_asked_for_elsewhere(
    autojump_clock: object, decided: list[Decided]
) -> None:
    (block, _), (other, _) = decided[:2]
    answers = {ONE: lambda made: has(made, ONE, other), TWO: lambda made: has(made, TWO, block)}
    async with world(answers) as made:
        assert await made.catchup.fetch_block(id_of(block), [ONE, TWO]) == block
        assert made.blamed == [(ONE, "forged")]


async def test_no_more_than_four_peers_are_asked_for_one_block(
    autojump_clock: object, decided: list[Decided]
) -> None:
    block = decided[0][0]
    absent = [PeerId(party(f"absent {i}").key) for i in range(PEERS_ASKED_MAX)]
    async with world({ONE: lambda made: has(made, ONE, block)}) as made:
        assert await made.catchup.fetch_block(id_of(block), [*absent[1:], ONE]) == block
        assert await made.catchup.fetch_block(id_of(block), [*absent, ONE]) is None
        assert await made.catchup.fetch_block(id_of(block), []) is None


def test_greatest_request_fits_its_limit() -> None:
    assert len(encode((BY_HEIGHT, 2**63 - 1, BLOCKS_MAX))) <= PROTOCOLS["blocks"].request_max
    assert len(encode((BY_ID, bytes(32)))) <= PROTOCOLS["blocks"].request_max
