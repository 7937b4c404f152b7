"""The guards alone: no frame, handler or judge that fails ends the process or its stack.

The four remote crashes of bare libp2p 0.8.1 (page 70 §4) and every other frame of which we know
that it hurts, on a node whose own handlers and judges raise. `test_node_under_attack.py` attacks a
whole node.
"""

import struct
import sys
from pathlib import Path

import pytest
import trio
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils import encode_varint_prefixed

sys.path.insert(0, str(Path(__file__).parent))
from hostile_kit import MESH, Node, attacker  # found by the line above
from network_kit import CHAIN, seed_of, wait_until

from p2p.errors import NetworkError, Refused
from p2p.host import topic_text
from p2p.limits import TOPICS
from p2p.network import Libp2pNetwork, Verdict

VOTES = topic_text("votes", CHAIN)


@pytest.fixture(scope="module")
def victim():
    node = Node(1)
    yield node
    node.end()


@pytest.fixture
async def honest(victim, nursery):
    network = Libp2pNetwork(
        seed=seed_of(2),
        chain_id=CHAIN,
        listen=["/ip4/127.0.0.1/tcp/0"],
        reach="devnet",
        bootstrap=[victim.address],
    )
    for topic in ("votes", "txs"):
        network.subscribe(topic, lambda *told: Verdict.ACCEPT, TOPICS[topic])
    await nursery.start(network.run)
    await wait_until(lambda: any(view.admitted for view in network.peers()))
    return network


async def serves(victim, honest):
    """The victim lives, its stack never fell, and it answers; returns its counters."""
    assert victim.is_alive()
    for _ in range(20):
        try:
            reply = await honest.request(
                victim.key, "blocks", b"still there?", timeout_s=5, bytes_max=99
            )
            break
        except NetworkError:
            await trio.sleep(0.3)
    assert reply == b"still there?"
    told = await victim.tell()
    assert told["restarts"] == 0
    return told


def message(**changes):
    told = {"data": b"x" * 20, "topicIDs": [VOTES], "signature": b"s" * 64} | changes
    return rpc_pb2.RPC(publish=[rpc_pb2.Message(**told)]).SerializeToString()


def control():
    rpc = rpc_pb2.RPC()
    rpc.control.ihave.append(rpc_pb2.ControlIHave(topicID=VOTES, messageIDs=[b"\xff\xfe"]))
    rpc.control.iwant.append(rpc_pb2.ControlIWant(messageIDs=[b"zz"]))
    rpc.control.prune.append(rpc_pb2.ControlPrune(topicID="nope"))
    rpc.control.graft.append(rpc_pb2.ControlGraft(topicID="nope"))
    prune = rpc_pb2.ControlPrune(topicID=VOTES, backoff=10)
    prune.peers.append(rpc_pb2.PeerInfo(peerID=b"\1\2", signedPeerRecord=b"bad"))
    rpc.control.prune.append(prune)
    return rpc.SerializeToString()


def subscriptions():
    rpc = rpc_pb2.RPC()
    for number in range(6_000):
        rpc.subscriptions.append(rpc_pb2.RPC.SubOpts(subscribe=True, topicid=f"t{number}"))
    return rpc.SerializeToString()


FRAMES = {
    "a garbage frame": encode_varint_prefixed(b"\xff\xfe\x01\x02" * 10),
    "a garbage key": encode_varint_prefixed(
        message(from_id=b"\x12\x20" + b"\1" * 32, seqno=bytes(8), key=b"\xff\xff\xff")
    ),
    "no author": encode_varint_prefixed(message(from_id=b"", seqno=b"", key=b"")),
    "no topic": encode_varint_prefixed(message(from_id=b"a", topicIDs=[])),
    "two topics": encode_varint_prefixed(message(from_id=b"a", topicIDs=[VOTES, VOTES])),
    "a bad record": encode_varint_prefixed(
        rpc_pb2.RPC(senderRecord=b"\1\2garbage").SerializeToString()
    ),
    "bad control": encode_varint_prefixed(control()),
    "a topic flood": encode_varint_prefixed(subscriptions()),
    "a huge length": b"\xff\xff\xff\xff\x7f" + b"x" * 100,
}


async def test_no_gossip_frame_ends_anything(victim, honest):
    for number, (name, sent) in enumerate(FRAMES.items()):
        async with attacker(number, victim.address) as evil:
            await evil.send(MESH, sent)
            await trio.sleep(0.1)
            told = await serves(victim, honest)
        assert told["admitted"] >= 1, name
    assert told["faults"]["gossip stream"] >= 1
    assert told["faults"]["gossip message"] >= 1


async def test_raising_handlers_and_judges_end_nothing(victim, honest):
    with pytest.raises(Refused):
        await honest.request(victim.key, "headers", b"x", timeout_s=5, bytes_max=9)
    stream = await honest.open(victim.key, "infer")
    with pytest.raises(NetworkError):
        await stream.read(9, 5)
    await wait_until(lambda: honest.statistics().mesh_peers.get("txs", 0) == 1)
    await honest.publish("txs", b"0 divides")
    await trio.sleep(0.3)
    told = await serves(victim, honest)
    assert {"handler headers", "handler infer", "judge"} <= set(told["faults"])


async def test_forged_author_is_not_believed(victim, honest, nursery):
    """Another's name under a message needs its key, and spends nothing of its rate."""
    await wait_until(lambda: honest.statistics().mesh_peers.get("votes", 0) == 1)
    identity = id_bytes_of(honest)
    async with attacker(400, victim.address) as evil:
        raw = [
            encode_varint_prefixed(
                message(from_id=identity, seqno=struct.pack(">Q", n), data=b"forged %d" % n)
            )
            for n in range(TOPICS["votes"].author_burst + 20)
        ]
        await evil.send(MESH, *raw)
        await trio.sleep(0.3)
        await honest.publish("votes", b"true")
        await trio.sleep(0.5)
        told = await serves(victim, honest)
    assert told["heard"].get(honest.me.hex()) == 1


def id_bytes_of(network):
    """The binary peer id under which libp2p signs for `network`."""
    return bytes.fromhex("002408011220") + network.me
