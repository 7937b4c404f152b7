"""Past blocks come from whoever has them: liars are scored, the rest is passed over, none is waited
for without end."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from bundle_kit import party
from exchange_kit import at_once
from snapshot_kit import Snapped
from stored_kit import GENESIS

from consensus.primitives.digest import sha256
from node.peering.lightserver import LightServer
from node.peering.recalling import FETCH_S, Recalling
from node.storage.pasts import PastBlocks
from p2p.errors import Code, Refused
from p2p.limits import PENALTIES, PROTOCOLS
from p2p.memory import MemoryHub
from p2p.network import PeerId, StatusFacts

CHAIN_ID = sha256(GENESIS)
KEYS = [PeerId(party(f"server {i}").key) for i in range(3)]
Answer = Callable[[PeerId, bytes], Awaitable[bytes]]
Twist = Callable[[Answer], Answer]


@pytest.fixture(scope="module")
def snapped(tmp_path_factory: pytest.TempPathFactory) -> Snapped:
    return Snapped(tmp_path_factory.mktemp("snapped"))


def honest(answer: Answer) -> Answer:
    return answer


def lying(answer: Answer) -> Answer:
    async def lie(peer: PeerId, body: bytes) -> bytes:
        raw = await answer(peer, body)
        return raw[:-1] + bytes([raw[-1] ^ 1])

    return lie


def lacking(answer: Answer) -> Answer:
    async def refuse(peer: PeerId, body: bytes) -> bytes:
        raise Refused(Code.NOT_FOUND)

    return refuse


def stalling(answer: Answer) -> Answer:
    async def stall(peer: PeerId, body: bytes) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    return stall


class World:
    """A node that stands on the snapshot, and what it knows of the past."""

    def __init__(self, snapped: Snapped, home: Path, network: Any) -> None:
        self.network = network
        self.pasts = PastBlocks(home / "past", snapped.header)
        self.counters: Counter[str] = Counter()
        self.recalling = Recalling(network=network, pasts=self.pasts, counters=self.counters)

    def score(self, number: int) -> float:
        found = {view.peer: view.score for view in self.network.peers()}
        return found.get(KEYS[number], 1_000.0)


@asynccontextmanager
async def world_of(
    snapped: Snapped, home: Path, *servers: Twist, earliest: int = 1
) -> AsyncIterator[World]:
    hub = MemoryHub(seed=3)
    network = hub.network(party("newcomer").key, chain_id=CHAIN_ID)
    async with trio.open_nursery() as nursery:
        for key, twist in zip(KEYS, servers, strict=False):
            there = hub.network(
                key, chain_id=CHAIN_ID, facts=lambda: StatusFacts(height=99, earliest=earliest)
            )
            light = LightServer(
                get_view=snapped.made.chain.view,
                take_attack=lambda attack, verdict: None,
                run_blocking=at_once,
            )
            there.serve("light", twist(light.answer), PROTOCOLS["light"])
            await nursery.start(there.run)
        await nursery.start(network.run)
        await trio.sleep(3)
        yield World(snapped, home, network)
        nursery.cancel_scope.cancel()


async def test_heights_come_once_and_are_not_asked_for_again(
    snapped: Snapped, tmp_path: Path, autojump_clock: Any
) -> None:
    async with world_of(snapped, tmp_path, honest) as world:
        heights = (1, 3, snapped.height - 1)
        assert await world.recalling.fetch((*heights, snapped.height)) == ()
        assert await world.recalling.fetch(heights) == ()
        assert world.counters == {"past_asked": 3, "past_found": 3}
        for height in heights:
            assert world.pasts.find(height) == snapped.made.chain.view().past_block(
                height, snapped.height
            )


async def test_false_past_costs_its_teller_and_another_is_asked(
    snapped: Snapped, tmp_path: Path, autojump_clock: Any
) -> None:
    async with world_of(snapped, tmp_path, lying, honest) as world:
        for height in (2, 3):  # another one first each time
            assert await world.recalling.fetch((height,)) == ()
        assert world.counters["past_false"] == 1
        assert world.score(0) >= PENALTIES["forged"] - 1
        assert world.score(1) == 0


async def test_who_lacks_it_is_passed_over_without_blame(
    snapped: Snapped, tmp_path: Path, autojump_clock: Any
) -> None:
    async with world_of(snapped, tmp_path, lacking, lacking, honest) as world:
        assert await world.recalling.fetch((2,)) == ()
        assert [world.score(number) for number in range(3)] == [0, 0, 0]


@pytest.mark.parametrize("twist", [lacking, stalling])
async def test_nobody_having_it_is_told_within_the_limit(
    snapped: Snapped, tmp_path: Path, autojump_clock: Any, twist: Twist
) -> None:
    async with world_of(snapped, tmp_path, twist, twist, twist) as world:
        begun_s = trio.current_time()
        heights = tuple(range(1, 6))
        assert await world.recalling.fetch(heights) == heights
        assert trio.current_time() - begun_s <= FETCH_S + 0.1
        assert world.counters["past_missing"] == 1
        assert world.counters["past_asked"] <= 15


async def test_who_says_it_has_only_later_blocks_is_asked_too(
    snapped: Snapped, tmp_path: Path, autojump_clock: Any
) -> None:
    """It may have begun with a snapshot and kept what a block spoke of since."""
    async with world_of(snapped, tmp_path, honest, earliest=99) as world:
        assert await world.recalling.fetch((1, 2)) == ()
        assert world.counters["past_asked"] == 2


@pytest.mark.parametrize(
    ("having", "others", "first", "later"),
    [(3, 3, 3, 3), (9, 9, 4, 4), (9, 1, 7, 1), (1, 9, 1, 7), (0, 9, 0, 8), (9, 0, 8, 0)],
)
def test_who_says_it_has_the_height_is_asked_first_and_leaves_room_for_others(
    tmp_path: Path, having: int, others: int, first: int, later: int
) -> None:
    facts = [StatusFacts(earliest=1)] * having + [StatusFacts(earliest=99)] * others
    views = [SimpleNamespace(peer=n, admitted=True, facts=one) for n, one in enumerate(facts)]
    network: Any = SimpleNamespace(peers=lambda: views)
    recalling = Recalling(
        network=network, pasts=PastBlocks(tmp_path / "past", None), counters=Counter()
    )
    asked: set[int] = set()
    for _ in range(len(views)):
        peers: list[Any] = list(recalling._peers(5))
        assert [peer < having for peer in peers] == [True] * first + [False] * later
        asked |= set(peers)
    assert len(asked) == len(views), "in turn"
