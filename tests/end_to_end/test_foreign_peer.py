"""A peer that shares no code with us and knows p2p/WIRE.md alone is a peer like any other."""

import json
import sys
from pathlib import Path
from typing import Any

import trio
from network_kit import seed_of, wait_until
from stored_kit import Stored

from consensus.primitives.digest import sha256
from node.ledger.wire.blocks import encode_block
from node.peering.responder import Responder
from node.peering.topics import TXS, encode_tx_message, judge_tx
from node.storage.store import MemoryKV
from p2p.errors import Code
from p2p.limits import TOPICS
from p2p.network import Gossip, Libp2pNetwork, PeerId, StatusFacts, Verdict

SCRIPT = Path(__file__).with_name("foreign_peer.py")
BLOCKS = 3


class Node:
    """A node of ours with a few blocks, which says other transactions again and again."""

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
        Responder(
            get_view=self.made.chain.view, find_undecided=lambda block_id: None
        ).serve(self.network)  # fmt: skip
        self.inbox = self.network.subscribe(TXS, self.judge, TOPICS[TXS])
        self.heard: list[Gossip] = []

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


async def run_foreign(address: str, chain_id: bytes, message: bytes) -> dict[str, Any]:
    """The foreign peer in a process of its own."""
    command = [sys.executable, str(SCRIPT), address, chain_id.hex(), message.hex()]
    done = await trio.run_process(command, capture_stdout=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


async def test_a_peer_made_from_the_document_is_one(tmp_path: Path) -> None:
    node = Node(tmp_path)
    message = encode_tx_message(node.made.pay(10**6))
    async with trio.open_nursery() as nursery:
        await nursery.start(node.network.run)
        nursery.start_soon(node.hear)
        nursery.start_soon(node.speak)
        (address,) = node.network.addresses()
        told = await run_foreign(address, node.made.chain_id, message)
        await wait_until(lambda: bool(node.heard))
        nursery.cancel_scope.cancel()
    assert told["ours"] == []
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
