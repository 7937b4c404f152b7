"""One trusted block vouches for all before it, header by header, and for none after it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from bundle_kit import party
from exchange_kit import at_once
from stored_kit import GENESIS, Stored

from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid
from node.peering import vouching
from node.peering.responder import Responder
from node.peering.vouching import TrustedBlock
from node.storage.store import MemoryKV
from p2p.errors import Refused, Unreachable
from p2p.limits import PENALTIES, PROTOCOLS
from p2p.memory import MemoryHub
from p2p.network import PeerId

CHAIN_ID = sha256(GENESIS)
HEIGHT = 30
KEYS = [PeerId(party(f"server {i}").key) for i in range(2)]
Answer = Callable[[PeerId, bytes], Awaitable[bytes]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    made = Stored(tmp_path_factory.mktemp("source"), MemoryKV())
    for _ in range(HEIGHT):
        made.block(made.pay(1))
    return made


def honest(answer: Answer) -> Answer:
    return answer


def lying(answer: Answer) -> Answer:
    """Turns one bit of the first header's supply."""

    async def lie(peer: PeerId, body: bytes) -> bytes:
        raw = bytearray(await answer(peer, body))
        raw[400] ^= 1
        return bytes(raw)

    return lie


@asynccontextmanager
async def asking(source: Stored, *servers: Callable[[Answer], Answer]) -> AsyncIterator[Any]:
    hub = MemoryHub(seed=6)
    network = hub.network(party("newcomer").key, chain_id=CHAIN_ID)
    async with trio.open_nursery() as nursery:
        for key, twist in zip(KEYS, servers, strict=False):
            server = hub.network(key, chain_id=CHAIN_ID)
            responder = Responder(
                get_view=source.chain.view, find_undecided=lambda _: None, run_blocking=at_once
            )
            server.serve("headers", twist(responder.answer_headers), PROTOCOLS["headers"])
            await nursery.start(server.run)
        await nursery.start(network.run)
        await trio.sleep(3)
        yield network
        nursery.cancel_scope.cancel()


def trusted(source: Stored, network: Any, height: int = HEIGHT) -> TrustedBlock:
    header = source.chain.header(height)
    assert header is not None
    return TrustedBlock(network=network, height=height, block_id=header.block_id())


async def test_every_older_header_is_vouched_for(
    source: Stored, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vouching, "HEADERS_MAX", 7)
    async with asking(source, honest) as network:
        trust = trusted(source, network)
        for height in (HEIGHT, 17, 18, HEIGHT - 1, 1, 2):
            assert await trust.verify(height) == source.chain.header(height)


async def test_later_or_too_old_a_header_is_not_vouched_for(
    source: Stored, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asking(source, honest) as network:
        trust = trusted(source, network, HEIGHT - 5)
        for height in (HEIGHT - 4, 0):
            with pytest.raises(Invalid, match=r"header\.not_vouched"):
                await trust.verify(height)
        monkeypatch.setattr(vouching, "WALK_BLOCKS_MAX", 10)
        with pytest.raises(Invalid, match=r"header\.not_vouched"):
            await trust.verify(HEIGHT - 15)
        assert await trust.verify(HEIGHT - 14) == source.chain.header(HEIGHT - 14)


@pytest.mark.parametrize("height", [HEIGHT, 20])
async def test_false_header_costs_its_teller_and_another_is_asked(
    source: Stored, autojump_clock: Any, height: int
) -> None:
    async with asking(source, lying, honest) as network:
        assert await trusted(source, network).verify(height) == source.chain.header(height)
        scores = {view.peer: view.score for view in network.peers()}
        assert scores[KEYS[1]] == 0
        assert scores[KEYS[0]] in (0, pytest.approx(PENALTIES["forged"], abs=1))


async def test_block_id_that_is_of_no_block_leads_to_nothing(
    source: Stored, autojump_clock: Any
) -> None:
    async with asking(source, honest) as network:
        trust = TrustedBlock(network=network, height=HEIGHT, block_id=bytes(32))
        with pytest.raises(Unreachable):
            await trust.verify(20)


async def test_peer_without_old_headers_is_passed_over(source: Stored, autojump_clock: Any) -> None:
    def young(answer: Answer) -> Answer:
        async def none(peer: PeerId, body: bytes) -> bytes:
            raise Refused(2)

        return none

    async with asking(source, young) as network:
        with pytest.raises(Unreachable):
            await trusted(source, network).verify(3)
        assert all(view.score == 0 for view in network.peers())
