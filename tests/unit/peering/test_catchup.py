"""Block sync: several peers at once, each checked; who lies, stalls or promises in vain is left."""

from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from bundle_kit import party
from exchange_kit import at_once
from network_kit import wait_until
from stored_kit import GENESIS, Stored

from consensus.primitives.digest import sha256
from consensus.primitives.encoding import encode
from node.peering import catchup
from node.peering.catchup import PEERS_ASKED_MAX, Catchup
from node.peering.responder import Responder
from node.storage.chain import Chain
from node.storage.store import MemoryKV
from p2p.errors import Code, Refused
from p2p.limits import PENALTIES, PROTOCOLS
from p2p.memory import MemoryHub
from p2p.network import PeerId, StatusFacts

HEIGHT = 200
CHAIN_ID = sha256(GENESIS)
KEYS = [PeerId(party(f"server {i}").key) for i in range(6)]
Answer = Callable[[PeerId, bytes], Awaitable[bytes]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    made = Stored(tmp_path_factory.mktemp("source"), MemoryKV())
    for _ in range(HEIGHT):
        made.block(made.pay(1))
    return made


class World:
    """A follower with an empty chain, and servers that have all blocks, each with its manners."""

    def __init__(self, source: Stored, home: Path) -> None:
        self.hub = MemoryHub(seed=4)
        self.source = source
        self.chain = Chain.open(home, GENESIS, store=MemoryKV())
        self.network = self.hub.network(party("follower").key, chain_id=CHAIN_ID)
        self.taken: list[int] = []
        self.asked: list[tuple[PeerId, int]] = []
        self.running: dict[PeerId, int] = {}
        self.most_at_once = 0
        self.catchup = Catchup(
            network=self.network,
            get_height=lambda: self.chain.height,
            take=self.take,
            end_every=150,
        )

    async def take(self, blocks: Any) -> None:
        await trio.sleep(0.05)
        self.chain.commit_many(blocks)
        self.taken.append(len(blocks))

    def server(self, key: PeerId, twist: Callable[[Answer], Answer], **facts: int) -> Any:
        told = {"height": HEIGHT, "earliest": 1} | facts
        network = self.hub.network(key, chain_id=CHAIN_ID, facts=lambda: StatusFacts(**told))
        responder = Responder(
            get_view=self.source.chain.view, find_undecided=lambda _: None, run_blocking=at_once
        )
        answer = twist(responder.answer_blocks)

        async def counted(peer: PeerId, body: bytes) -> bytes:
            self.asked.append((key, int.from_bytes(body[2:-1].lstrip(b"\xcc\xcd"), "big")))
            self.running[key] = self.running.get(key, 0) + 1
            self.most_at_once = max(self.most_at_once, sum(self.running.values()))
            assert self.running[key] == 1, "one question at a time"
            try:
                return await answer(peer, body)
            finally:
                self.running[key] -= 1

        network.serve("blocks", counted, PROTOCOLS["blocks"])
        return network

    def questions(self, key: PeerId) -> int:
        return sum(peer == key for peer, _ in self.asked)

    def score(self, key: PeerId) -> float:
        return next((view.score for view in self.network.peers() if view.peer == key), 1_000)

    async def wait(self, height: int = HEIGHT, timeout_s: float = 60) -> None:
        await wait_until(lambda: self.chain.height >= height, timeout_s)


def honest(answer: Answer) -> Answer:
    return answer


@asynccontextmanager
async def world_of(source: Stored, home: Path, *servers: Any, **facts: Any) -> Any:
    world = World(source, home)
    async with trio.open_nursery() as nursery:
        for key, twist in zip(KEYS, servers, strict=False):
            await nursery.start(world.server(key, twist, **facts.get(str(KEYS.index(key)), {})).run)
        await nursery.start(world.network.run)
        await trio.sleep(3)  # everybody has told everybody a status
        nursery.start_soon(world.catchup.run)
        yield world
        nursery.cancel_scope.cancel()


async def test_several_peers_send_at_once_and_no_more_than_four(
    source: Stored, tmp_path: Path, autojump_clock: Any
) -> None:
    def slow(answer: Answer) -> Answer:
        async def late(peer: PeerId, body: bytes) -> bytes:
            await trio.sleep(0.5)
            return await answer(peer, body)

        return late

    async with world_of(source, tmp_path, *[slow] * 6) as world:
        await world.wait()
        assert world.chain.tip.block_id == source.chain.tip.block_id
        assert world.most_at_once == PEERS_ASKED_MAX == 4
        assert world.taken == [64, 64, 22, 50], "64 under one sync, and a stop at 150"
        assert world.catchup.counters["blocks"] == HEIGHT


async def test_false_block_costs_its_sender_and_comes_from_elsewhere(
    source: Stored, tmp_path: Path, autojump_clock: Any
) -> None:
    def lying(answer: Answer) -> Answer:
        async def lie(peer: PeerId, body: bytes) -> bytes:
            raw = bytearray(await answer(peer, body))
            raw[-1] ^= 1  # the last certificate's last signature
            return bytes(raw)

        return lie

    async with world_of(source, tmp_path, lying, honest) as world:
        await world.wait()
        assert world.chain.tip.block_id == source.chain.tip.block_id
        assert world.score(KEYS[0]) >= PENALTIES["forged"] - 1
        assert world.score(KEYS[1]) == 0
        assert world.catchup.counters["bad"] == 1
        assert world.questions(KEYS[0]) <= 2, "a liar is not asked again"


async def test_blocks_of_other_heights_are_a_lie(
    source: Stored, tmp_path: Path, autojump_clock: Any
) -> None:
    """Old blocks with good certificates would otherwise be asked for without end."""

    def old(answer: Answer) -> Answer:
        async def same(peer: PeerId, body: bytes) -> bytes:
            return await answer(peer, encode((0, 1, 10)))

        return same

    async with world_of(source, tmp_path, old) as world:
        await world.wait(10)
        await trio.sleep(5)
        assert world.chain.height == 10
        assert world.catchup.counters["bad"] == 1
        assert world.score(KEYS[0]) >= PENALTIES["forged"] - 1


async def test_three_empty_promises_and_nobody_listens_for_a_minute(
    source: Stored, tmp_path: Path, autojump_clock: Any
) -> None:
    boast = {"height": 10**9, "earliest": HEIGHT + 1}
    async with world_of(source, tmp_path, honest, honest, **{"1": boast}) as world:
        await world.wait()
        await trio.sleep(30)
        asked = world.questions(KEYS[1])
        assert world.catchup.counters["empty"] == catchup.EMPTY_PROMISES_MAX
        await trio.sleep(25)
        assert world.questions(KEYS[1]) == asked
        await trio.sleep(30)
        assert world.questions(KEYS[1]) > asked, "then it may have learnt"


async def test_stalling_peer_costs_one_deadline(
    source: Stored, tmp_path: Path, autojump_clock: Any
) -> None:
    def stalling(answer: Answer) -> Answer:
        async def never(peer: PeerId, body: bytes) -> bytes:
            await trio.sleep_forever()
            raise AssertionError

        return never

    async with world_of(source, tmp_path, stalling, honest) as world:
        begun_s = trio.current_time()
        await world.wait()
        assert trio.current_time() - begun_s < catchup.REQUEST_S + 2


async def test_busy_peer_is_waited_for_not_blamed(
    source: Stored, tmp_path: Path, autojump_clock: Any
) -> None:
    def busy(answer: Answer) -> Answer:
        times = [0]

        async def seldom(peer: PeerId, body: bytes) -> bytes:
            times[0] += 1
            if times[0] % 5:
                raise Refused(Code.BUSY, retry_ms=100)
            return await answer(peer, body)

        return seldom

    async with world_of(source, tmp_path, busy) as world:
        await world.wait()
        assert world.catchup.counters["waited"] >= 12
        assert world.catchup.counters["failed"] == 0
        assert world.score(KEYS[0]) == 0


async def test_peer_that_began_later_is_not_asked_for_older_blocks(
    source: Stored, tmp_path: Path, autojump_clock: Any
) -> None:
    async with world_of(source, tmp_path, honest, honest, **{"1": {"earliest": 100}}) as world:
        await world.wait()
        assert world.questions(KEYS[0]) > 0
        assert all(start >= 100 for peer, start in world.asked if peer == KEYS[1])


async def test_blocks_without_payloads_are_an_honest_no_and_their_headers_are_told(
    source: Stored, autojump_clock: Any
) -> None:
    whole = source.chain.view()
    view = SimpleNamespace(earliest=1, earliest_whole=50, height=whole.height, head=whole.record)
    responder = Responder(
        get_view=lambda: view, find_undecided=lambda _: None, run_blocking=at_once
    )
    assert len(await responder.answer_headers(KEYS[0], encode((49, 2, 1)))) > 500
    with pytest.raises(Refused) as refused:
        await responder.answer_blocks(KEYS[0], encode((0, 49, 2)))
    assert (refused.value.code, refused.value.body) == (Code.NOT_FOUND, encode((50, HEIGHT)))


@pytest.mark.parametrize(("start", "is_held"), [(49, False), (50, True)])
async def test_blocks_from_before_our_snapshot_are_an_honest_no(
    source: Stored, autojump_clock: Any, start: int, is_held: bool
) -> None:
    whole = source.chain.view()
    view = SimpleNamespace(
        earliest=50, earliest_whole=50, height=whole.height, record=whole.record, head=whole.record
    )
    responder = Responder(
        get_view=lambda: view, find_undecided=lambda _: None, run_blocking=at_once
    )
    questions = (
        (responder.answer_blocks, encode((0, start, 2))),
        (responder.answer_headers, encode((start, 2, 1))),
    )
    for answer, question in questions:
        if is_held:
            assert len(await answer(KEYS[0], question)) > 500
            continue
        with pytest.raises(Refused) as refused:
            await answer(KEYS[0], question)
        assert (refused.value.code, refused.value.body) == (Code.NOT_FOUND, encode((50, HEIGHT)))
