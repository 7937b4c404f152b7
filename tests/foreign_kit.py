"""A node of ours for peers that are not: a few blocks, and gossip that never ends."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trio
from network_kit import seed_of, wait_until
from stored_kit import Stored

from consensus.primitives.digest import sha256
from node.ledger.wire.blocks import encode_block
from node.peering.lightserver import LightServer
from node.peering.responder import Responder
from node.peering.topics import TXS, encode_tx_message, judge_tx
from node.storage.store import MemoryKV
from p2p.errors import Code
from p2p.limits import TOPICS
from p2p.network import Gossip, Libp2pNetwork, PeerId, StatusFacts, Verdict

BLOCKS = 3


class Node:
    """It says other transactions again and again: the mesh of a newcomer takes its time."""

    def __init__(self, home: Path) -> None:
        self.made = Stored(home, MemoryKV())
        for _ in range(BLOCKS):
            self.made.block(self.made.pay())
        self.network = Libp2pNetwork(
            seed=seed_of(1),
            chain_id=self.made.chain_id,
            listen=["/ip4/127.0.0.1/tcp/0"],
            reach="devnet",
            facts=lambda: StatusFacts(0, BLOCKS, self.made.chain.tip.block_id, 1, 0),
        )
        get_view = self.made.chain.view
        Responder(get_view=get_view, find_undecided=lambda block_id: None).serve(self.network)
        LightServer(get_view=get_view, take_attack=self.take_attack).serve(self.network)
        self.inbox = self.network.subscribe(TXS, self.judge, TOPICS[TXS])
        self.heard: list[Gossip] = []

    async def take_attack(self, *_: Any) -> None:
        raise AssertionError("nobody attacks")

    def judge(self, forwarder: PeerId, author: PeerId, data: bytes) -> Verdict:
        return judge_tx(data, lambda raw: None)

    async def hear(self) -> None:
        async for message in self.inbox:
            self.heard.append(message)

    async def speak(self) -> None:
        """Gossip brings nothing before the mesh stands, and the same bytes only once."""
        amount = 0
        while True:
            amount += 1
            await self.network.publish(TXS, encode_tx_message(self.made.pay(amount)))
            await trio.sleep(0.5)


async def meet(node: Node, command: Sequence[str]) -> dict[str, Any]:
    """What a foreign peer learnt: `command` ADDRESS CHAIN_ID MESSAGE, in a process of its own."""
    message = encode_tx_message(node.made.pay(10**6))
    async with trio.open_nursery() as nursery:
        await nursery.start(node.network.run)
        nursery.start_soon(node.hear)
        nursery.start_soon(node.speak)
        (address,) = node.network.addresses()
        words = [*command, address, node.made.chain_id.hex(), message.hex()]
        done = await trio.run_process(words, capture_stdout=True)
        await wait_until(lambda: bool(node.heard))
        nursery.cancel_scope.cancel()
    told: dict[str, Any] = json.loads(done.stdout)
    check_peer(node, told, message)
    return told


def check_peer(node: Node, told: dict[str, Any], message: bytes) -> None:
    """What every foreign peer must have learnt, and we of it."""
    assert told["before_status"] == Code.NOT_ADMITTED
    assert (told["status"], told["height"]) == (Code.OK, BLOCKS)
    decided = [sha256(encode_block(block)).hex() for block, _ in node.made.decided]
    assert told["blocks"] == decided
    assert told["malformed"] == Code.MALFORMED
    assert told["pong"] == "12345678"
    assert told["author"].endswith(node.network.me.hex())
    assert judge_tx(bytes.fromhex(told["heard"]), lambda raw: None) is Verdict.ACCEPT
    assert [gossip.data for gossip in node.heard] == [message]
    penalties = node.network.statistics().penalties
    assert penalties["malformed"] == 1, "for the one question that was made so"
    assert "rejected" not in penalties
