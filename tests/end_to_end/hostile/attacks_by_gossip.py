"""Attacks by gossip, and by a validator that is a traitor."""

import contextlib
import struct
from functools import cache, partial
from itertools import count
from typing import Any, Final

import trio
from attacking import MESH, Attacks, Evil, Siege, now_ms, protocol_text, published
from besieged import NODE, PROVIDER, TRAITOR
from bundle_kit import party
from libp2p.peer.envelope import seal_record
from libp2p.peer.id import ID
from libp2p.peer.peer_record import PeerRecord
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils import encode_varint_prefixed
from multiaddr import Multiaddr
from vectors.hostile import hostile

from consensus.messages import (
    FRAME_BYTES_MAX,
    VOTE,
    Vote,
    decode_frame,
    encode_frame,
    encode_vote,
    vote_body,
)
from consensus.primitives.digest import sha256, signing_bytes
from consensus.primitives.encoding import encode as pack
from node.ledger.wire import transactions as wire
from node.ledger.wire.bundles import BundleHeader, encode_header
from node.ledger.wire.orders import Load, Offer, OfferedModel, encode_offer, offer_message
from node.peering import topics
from p2p.errors import NetworkError
from p2p.framing import encode, frame
from p2p.host import Libp2pIdentity, topic_text
from p2p.limits import TOPICS, MiB
from p2p.streams import Libp2pFrameStream

ATTACKS: Final = Attacks()


# ---- gossip


def subscribing(siege: Siege) -> Any:
    rpc = rpc_pb2.RPC()
    for name in TOPICS:
        topic = topic_text(name, siege.chain_id)
        rpc.subscriptions.append(rpc_pb2.RPC.SubOpts(subscribe=True, topicid=topic))
        rpc.control.graft.append(rpc_pb2.ControlGraft(topicID=topic))
    return rpc


def a_transaction(siege: Siege, who: bytes, number: int = 0, signer: bytes | None = None) -> bytes:
    sender = party(f"evil {who.decode()}")
    payload = wire.Transfer(PROVIDER.key, 1 + number, b"")
    body = wire.encode_body(sender.key, 0, 10**7, now_ms() + 60_000, payload)
    return wire.sign_transaction(siege.chain_id, signer or sender.seed, body)


def a_message(siege: Siege, topic: str, number: int) -> bytes:
    """Well-formed, of nobody, and never the same twice."""
    if topic == "txs":
        return topics.encode_tx_message(a_transaction(siege, b"flood", number))
    if topic == "votes":
        vote = Vote(1, number % 3 + 1, number, sha256(b"%d" % number), 0, bytes(64))
        return topics.encode_vote_message(VOTE, encode_vote(vote))
    if topic == "offers":
        return an_offer(siege, b"flood", number)
    body = b"%d" % number * 100
    header = BundleHeader(
        1, PROVIDER.key, number + 1, bytes(32), 1, 1, ((1, 1, 1),), bytes(32), len(body),
        sha256(body),
    )  # fmt: skip
    return pack((2, encode_header(header), bytes(64), body))


@ATTACKS.note("topics flooded", has_points=True)
async def topic_flood(siege: Siege) -> None:
    """New messages of all topics, truly signed by their author, as fast as they can be made."""

    async def once(evil: Evil) -> None:
        numbers = count(siege.rng.randrange(2**30))

        def rpcs() -> Any:
            while True:
                yield published(
                    *(evil.message(t, a_message(siege, t, next(numbers))) for t in TOPICS)
                )

        await evil.gossip(rpcs())

    await siege.again(once)


@ATTACKS.note("many small messages in one frame", has_points=True)
async def small_messages(siege: Siege) -> None:
    """A megabyte of messages, of subscriptions, of control: each item costs its receiver more."""
    frames = crowded(topic_text("votes", siege.chain_id))

    async def once(evil: Evil) -> None:
        with contextlib.suppress(Exception):
            stream = await evil.stream(MESH)
            for raw in siege.rng.sample(frames, len(frames)):
                await stream.write(encode_varint_prefixed(raw))
                siege.sent += 1
        await trio.sleep(0.1)

    await siege.again(once)


@ATTACKS.note("peers to dial, told by who takes a topic's mesh apart", has_points=False)
async def peers_told(siege: Siege) -> None:
    """PRUNE may name peers with signed records; ours must never dial what strangers tell."""
    knocked = trio.Event()

    async def answer(stream: trio.SocketStream) -> None:
        knocked.set()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]

        async def once(evil: Evil) -> None:
            told = Libp2pIdentity(siege.rng.randbytes(32))
            address = Multiaddr(f"/ip4/127.0.0.1/tcp/{port}")
            record = PeerRecord(ID.from_pubkey(told.pair.public_key), [address])
            sealed = seal_record(record, told.pair.private_key).marshal_envelope()
            rpc = rpc_pb2.RPC()
            for name in TOPICS:
                prune = rpc_pb2.ControlPrune(topicID=topic_text(name, siege.chain_id), backoff=1)
                peer_id = ID.from_pubkey(told.pair.public_key).to_bytes()
                prune.peers.append(rpc_pb2.PeerInfo(peerID=peer_id, signedPeerRecord=sealed))
                rpc.control.prune.append(prune)
                rpc.control.prune.append(rpc_pb2.ControlPrune(topicID=siege.rng.randbytes(9).hex()))
            await evil.gossip([subscribing(siege), rpc])
            await trio.sleep(0.3)
            assert not knocked.is_set(), "it dialled an address of ours"

        await siege.again(once)


@cache
def crowded(topic: str) -> list[bytes]:
    """Frames of a megabyte, of as many items as it takes."""
    tiny = rpc_pb2.Message(topicIDs=[topic])
    control = rpc_pb2.RPC()
    for _ in range(8_000):
        control.control.ihave.append(rpc_pb2.ControlIHave(topicID=topic, messageIDs=[b"ab"]))
        control.control.graft.append(rpc_pb2.ControlGraft(topicID=topic))
        control.control.iwant.append(rpc_pb2.ControlIWant(messageIDs=[b"ab"]))
    wanted = rpc_pb2.RPC()
    wanted.control.iwant.append(rpc_pb2.ControlIWant(messageIDs=[b"a"] * 200_000))
    wanted.control.ihave.append(rpc_pb2.ControlIHave(topicID=topic, messageIDs=[b"b"] * 100_000))
    frames = [
        rpc_pb2.RPC(publish=[tiny] * 25_000).SerializeToString(),
        rpc_pb2.RPC(publish=[rpc_pb2.Message()] * 500_000).SerializeToString(),
        control.SerializeToString(),
        wanted.SerializeToString(),
        subscriptions(),
    ]
    assert all(len(raw) <= 1 * MiB for raw in frames), [len(raw) for raw in frames]
    return frames


def subscriptions() -> bytes:
    rpc = rpc_pb2.RPC()
    for number in range(50_000):
        rpc.subscriptions.append(rpc_pb2.RPC.SubOpts(subscribe=True, topicid=f"t{number}"))
    return rpc.SerializeToString()


@ATTACKS.note("bad keys and signatures in gossip", has_points=True)
async def bad_signatures(siege: Siege) -> None:
    """Of the message and of what stands in it: of another, of nobody, of keys that are none."""

    async def once(evil: Evil) -> None:
        honest = bytes.fromhex("002408011220") + NODE.key
        data = [(t, a_message(siege, t, siege.rng.randrange(2**30))) for t in TOPICS]
        signed_by_other = a_transaction(siege, b"one", signer=party("another").seed)
        data.append(("txs", topics.encode_tx_message(signed_by_other)))
        rpcs = []
        for topic, raw in data:
            rpcs += [
                published(evil.message(topic, raw)),
                published(evil.message(topic, raw, from_id=honest)),
                published(evil.message(topic, raw, signature=bytes(64))),
                published(evil.message(topic, raw, signature=b"")),
                published(evil.message(topic, raw, key=b"\xff\xff\xff")),
                published(evil.message(topic, raw, from_id=b"\x12\x20" + bytes(32))),
                published(evil.message(topic, raw, from_id=b"", seqno=b"", key=b"")),
                published(evil.message(topic, raw, topicIDs=[])),
                published(evil.message(topic, raw, topicIDs=["a", topic_text(topic, bytes(32))])),
                published(evil.resigned(evil.message(topic, raw, topicIDs=["/olnode/none/1"]))),
            ]
        rpcs.append(rpc_pb2.RPC(senderRecord=b"\1\2garbage"))
        siege.rng.shuffle(rpcs)
        await evil.gossip(rpcs)
        await trio.sleep(0.1)

    await siege.again(once)


@ATTACKS.note("sequence numbers gone by", has_points=False)
async def stale_numbers(siege: Siege) -> None:
    """The same message under old and equal numbers, and an address record older than the last."""

    async def once(evil: Evil) -> None:
        data = topics.encode_tx_message(a_transaction(siege, b"stale", siege.rng.randrange(2**30)))

        def rpcs() -> Any:
            for seqno in (2**63, 5, 5, 0, 2**64 - 1, 1):
                made = evil.message("txs", data, seqno=struct.pack(">Q", seqno))
                yield published(evil.resigned(made))
            yield published(evil.resigned(evil.message("txs", data, seqno=b"")))
            yield published(evil.resigned(evil.message("txs", data, seqno=b"long" * 9)))

        await evil.gossip(rpcs())
        for seq_ms in (0, 1, now_ms() - 8 * 86_400_000):
            await evil.say(protocol_text("status"), frame(evil.status(seq_ms=seq_ms)), then="read")

    await siege.again(once)


def an_offer(siege: Siege, who: bytes, number: int, **changes: Any) -> bytes:
    signer = changes.pop("signer", party(f"evil {who.decode()}"))
    made = Offer(
        1, signer.key, signer.key, now_ms() + number, (b"/ip4/127.0.0.1/tcp/1",),
        (OfferedModel(1, 1, 1, 0),), Load(32, 0, 0), now_ms() + 60_000,
    )._replace(**changes)  # fmt: skip
    raw = encode_offer(made)
    return topics.encode_offer_message(raw, signer.sign(offer_message(siege.chain_id, raw)))


@ATTACKS.note("forged offers", has_points=True)
async def forged_offers(siege: Siege) -> None:
    """In the name of a provider on the ledger, whose key signs none of them in time."""

    async def once(evil: Evil) -> None:
        forged = [
            an_offer(siege, b"liar", 1, provider=PROVIDER.key, peer_key=PROVIDER.key),
            an_offer(siege, b"liar", 2, provider=PROVIDER.key),
            an_offer(siege, b"liar", 3),
            an_offer(siege, b"liar", 4, signer=PROVIDER, expires_ms=now_ms() - 1),
            an_offer(siege, b"liar", 5, signer=PROVIDER, expires_ms=now_ms() + 10**9),
            an_offer(siege, b"liar", 6, signer=PROVIDER, peer_key=bytes(evil.identity.key)),
        ]
        for topic in ("txs", "bundles", "votes", "offers"):  # and where none belongs
            await evil.gossip(published(evil.message(topic, raw)) for raw in forged)
        await trio.sleep(0.1)

    await siege.again(once)


# ---- a validator that is a traitor


@ATTACKS.note("votes replayed by a validator", has_points=False)
async def replayed_votes(siege: Siege) -> None:
    """What the node itself said, old and new, comes back by stream and by gossip."""
    heard: list[bytes] = []
    has_heard = trio.Event()

    async def listen(stream: Any) -> None:
        frames = Libp2pFrameStream(stream)
        with contextlib.suppress(NetworkError):
            while True:
                heard.append(await frames.read(FRAME_BYTES_MAX, float("inf")))
                has_heard.set()

    async def once(evil: Evil) -> None:
        evil.host.set_stream_handler(protocol_text("consensus"), listen)
        stream = await evil.stream(protocol_text("consensus"))
        await has_heard.wait()
        while True:
            said = siege.rng.choice(heard[-200:])
            await stream.write(frame(said))
            siege.sent += 1
            kind, body = decode_frame(said)
            if kind in topics.CONSENSUS_KINDS and siege.rng.random() < 0.2:
                again = evil.message("votes", topics.encode_vote_message(kind, body))
                await evil.gossip([published(again)])
            await trio.sleep(0.01)

    await siege.again(once, validator=TRAITOR)


@ATTACKS.note("a validator that sends garbage", has_points=True)
async def traitor(siege: Siege) -> None:
    """Frames of all kinds, damaged and forged, on the stream that only validators have."""

    async def once(evil: Evil) -> None:
        stream = await evil.stream(protocol_text("consensus"))
        body = vote_body(1, 2, 0, bytes(32))
        signature = TRAITOR.sign(signing_bytes(b"vote", siege.chain_id, body))
        true = encode_frame(VOTE, encode_vote(Vote(1, 2, 0, bytes(32), 1, signature)))
        others = encode_frame(VOTE, encode_vote(Vote(1, 2, 0, bytes(32), 0, signature)))
        goods = [true, others, *(encode((kind, bytes(111))) for kind in range(7))]
        for raw in hostile(siege.rng, goods, 400):
            await stream.write(frame(raw or b"\0"))
            siege.sent += 1
        await trio.sleep(0.2)

    await siege.again(once, validator=TRAITOR)
