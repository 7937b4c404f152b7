"""A transaction that gossip lost is handed over; one that all hold costs a request and no more."""

from collections import Counter
from contextlib import asynccontextmanager

import pytest
import trio
from bundle_kit import CHAIN, party
from ledger_kit import NOW_MS, PAYER, PROVIDER, new_state

from consensus.primitives.encoding import encode
from node.ledger.pool import TransactionPool
from node.ledger.wire.transactions import Transfer, encode_body, sign_transaction
from node.peering import topics
from node.peering.handing import AGAIN_S, GOSSIP_S, HANDED_MAX, LOOK_EVERY_S, OWN_MAX, Handing
from p2p.errors import Misbehaving
from p2p.limits import PROTOCOLS, TOPICS
from p2p.memory import MemoryHub

KEYS = [party(f"node {i}").key for i in range(4)]
SOON_S = LOOK_EVERY_S + GOSSIP_S


def transfer(nonce: int = 0, chain: bytes = CHAIN) -> bytes:
    body = encode_body(
        PAYER.key, nonce, 10_000_000, NOW_MS + 60_000, Transfer(PROVIDER.key, 5, b"")
    )
    return sign_transaction(chain, PAYER.seed, body)


class Node:
    """A pool and its handing, with gossip of transactions as the relay wires it."""

    def __init__(self, hub: MemoryHub, key: bytes) -> None:
        self.state = new_state()
        self.pool = TransactionPool(CHAIN)
        self.network = hub.network(key)
        self.counters: Counter[str] = Counter()
        self.handing = Handing(
            network=self.network, transactions=self.pool, admit=self.admit, counters=self.counters
        )

    def admit(self, raw: bytes) -> None:
        self.pool.add(self.state, NOW_MS, raw)

    def submit(self, raw: bytes) -> bytes:
        """Into our pool, told to nobody: gossip has lost it."""
        tx = self.pool.add(self.state, NOW_MS, raw)
        self.handing.keep(tx.tx_id)
        return tx.tx_id

    async def run(self, *, task_status) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.network.run)
            heard = self.network.subscribe(
                topics.TXS, lambda _, __, data: topics.judge_tx(data, self.admit),
                TOPICS[topics.TXS],
            )  # fmt: skip
            nursery.start_soon(self.drain, heard)
            nursery.start_soon(self.handing.run)
            task_status.started()

    async def drain(self, heard) -> None:
        async for _ in heard:
            pass


@asynccontextmanager
async def running(count: int):
    hub = MemoryHub(seed=1)
    nodes = [Node(hub, key) for key in KEYS[:count]]
    async with trio.open_nursery() as nursery:
        for node in nodes:
            await nursery.start(node.run)
        await trio.sleep(3)
        yield hub, nodes, nursery
        nursery.cancel_scope.cancel()


async def test_what_gossip_lost_reaches_every_pool(autojump_clock) -> None:
    async with running(3) as (_, nodes, _nursery):
        tx_id = nodes[0].submit(transfer())
        await trio.sleep(SOON_S + 1)
        assert all(tx_id in node.pool for node in nodes)


async def test_who_joins_later_is_handed_what_waits(autojump_clock) -> None:
    async with running(1) as (hub, nodes, nursery):
        tx_id = nodes[0].submit(transfer())
        await trio.sleep(60)
        late = Node(hub, KEYS[3])
        await nursery.start(late.run)
        await trio.sleep(10)
        assert tx_id in late.pool


async def test_a_receiver_publishes_what_it_did_not_know(autojump_clock) -> None:
    """Its neighbours may have missed it as well; what it knew goes nowhere."""
    async with running(2) as (_, (first, second), _nursery):
        said: list[bytes] = []

        async def hear(topic: str, data: bytes) -> None:
            said.append(data)

        second.network.publish = hear
        first.submit(transfer())
        await trio.sleep(SOON_S + 1)
        assert said == [topics.encode_tx_message(transfer())]
        await trio.sleep(2 * AGAIN_S)
        assert len(said) == 1
        assert second.counters["handed_to_us"] == 1


async def test_it_is_handed_again_while_it_waits_and_never_after(autojump_clock) -> None:
    async with running(2) as (_, (first, second), _nursery):
        tx_id = first.submit(transfer())
        await trio.sleep(SOON_S + 1)
        assert first.counters["handed"] == 1
        second.pool.drop(tx_id)
        await trio.sleep(AGAIN_S + LOOK_EVERY_S)
        assert tx_id in second.pool
        assert first.counters["handed"] == 2
        first.pool.drop(tx_id)
        await trio.sleep(10 * AGAIN_S)
        assert first.counters["handed"] == 2


async def test_many_go_in_several_requests(autojump_clock, monkeypatch) -> None:
    monkeypatch.setattr("node.peering.handing.HANDED_MAX", 2)
    async with running(2) as (_, (first, second), _nursery):
        ids = [first.submit(transfer(nonce)) for nonce in range(5)]
        await trio.sleep(SOON_S + 2 * LOOK_EVERY_S + 1)
        assert all(tx_id in second.pool for tx_id in ids)


async def test_a_failed_request_is_counted_and_made_again(autojump_clock) -> None:
    async with running(2) as (hub, (first, second), _nursery):
        hub.partition([[KEYS[0]], [KEYS[1]]])
        tx_id = first.submit(transfer())
        await trio.sleep(30)
        assert tx_id not in second.pool
        hub.heal()
        await trio.sleep(AGAIN_S + SOON_S)
        assert tx_id in second.pool


async def test_a_forged_transaction_counts_against_who_hands_it(autojump_clock) -> None:
    async with running(1) as (_, (node,), _nursery):
        forged = topics.encode_tx_message(transfer(chain=bytes(32)))
        with pytest.raises(Misbehaving):
            await node.handing.answer(KEYS[1], encode([forged]))
        for body in (b"", encode([]), encode([b""]), encode([forged] * (HANDED_MAX + 1))):
            with pytest.raises(Misbehaving):
                await node.handing.answer(KEYS[1], body)
        late = topics.encode_tx_message(transfer(nonce=900))
        assert await node.handing.answer(KEYS[1], encode([late])) == encode((0,)), "nobody's fault"


async def test_no_more_than_a_share_is_remembered(autojump_clock) -> None:
    async with running(1) as (_, (node,), _nursery):
        for number in range(OWN_MAX + 3):
            node.handing.keep(number.to_bytes(32, "big"))
        assert node.counters["own_forgotten"] == 3


def test_the_largest_request_fits_its_limit() -> None:
    largest = encode([bytes(TOPICS[topics.TXS].bytes_max)] * HANDED_MAX)
    assert len(largest) <= PROTOCOLS["pool"].request_max
    assert len(encode((HANDED_MAX,))) <= PROTOCOLS["pool"].reply_max


async def test_what_a_block_took_meanwhile_is_not_handed_at_all(autojump_clock) -> None:
    """An empty request would be misbehaving."""
    async with running(2) as (_, (first, second), _nursery):
        tx_id = first.submit(transfer())
        first.pool.find = lambda tx: None  # taken between the look and the request
        await trio.sleep(SOON_S + 2 * AGAIN_S)
        assert tx_id not in second.pool
        assert first.counters["handed"] == first.counters["hand_failed"] == 0
        assert [view.score for view in second.network.peers()] == [0]


async def test_only_a_share_is_told_on_under_our_name(autojump_clock, monkeypatch) -> None:
    monkeypatch.setattr("node.peering.handing.TOLD_ON_BURST", 2)
    async with running(1) as (_, (node,), _nursery):
        said: list[bytes] = []

        async def hear(topic: str, data: bytes) -> None:
            said.append(data)

        node.network.publish = hear
        messages = [topics.encode_tx_message(transfer(nonce)) for nonce in range(5)]
        assert await node.handing.answer(KEYS[1], encode(messages)) == encode((5,))
        assert len(said) == 2
        assert len(node.pool) == 5
