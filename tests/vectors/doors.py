"""Every door through which bytes of peers come in, to be fuzzed: what it is given, what it may say.

A door is the product's own code, as near to the wire as it goes without a socket: the handlers that
answer requests, the clients that read replies, the judges of topics, the guards' readers. The good
bytes are the examples of `p2p/WIRE.md`. What the pure floors decode is in `parsers.py`.
"""

import itertools
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import trio
from chain_kit import PROVIDER
from exchange_kit import at_once
from libp2p.exceptions import ParseError
from libp2p.io.exceptions import IOException
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils import encode_varint_prefixed
from network_kit import CHAIN, seed_of
from vectors.peers import ASK, BLOB, CLIENT, INDEX, SERVER, Scenes, examples_of
from wiretap_kit import KeyIdentity

from consensus.primitives.digest import sha256
from consensus.primitives.encoding import U63, Bytes, Record, decode
from consensus.primitives.errors import Invalid
from node.ledger.wire.claims import index_root
from node.peering import blobs
from node.peering.accusing import Accusing
from node.peering.bindings import make_binding, read_binding
from node.peering.blobs import Blobs
from node.peering.blobstore import CONTENT, BlobStore, decode_listing
from node.peering.catchup import Catchup
from node.peering.directory import Directory
from node.peering.hearing import Hearing
from node.peering.lightsource import PeerSource
from node.peering.statesync import SnapshotGoods, StateSync
from node.peering.window import Range
from node.serving import manifest as models
from node.storage import snapshots
from p2p import framing
from p2p.addresses import are_tellable, parse_address
from p2p.book import Book
from p2p.errors import Misbehaving, NetworkError
from p2p.framing import LENGTH_BYTES, frame
from p2p.guard import _read_line, id_of
from p2p.host import Libp2pIdentity, Stack, topic_text
from p2p.limits import FRAME_BYTES_MAX, STATUS_BYTES_MAX, TOPICS
from p2p.membership import Link
from p2p.network import Libp2pNetwork, PeerId, Verdict
from p2p.peers import key_of_peer_id, peer_id_text
from p2p.records import make_record, read_record
from p2p.streams import Libp2pFrameStream

ENVELOPE: Final = Record(U63, U63, Bytes(FRAME_BYTES_MAX))
REFUSALS: Final = (Invalid, NetworkError)

Enter = Callable[[bytes], Awaitable[object]]


class Door(NamedTuple):
    """Good bytes, and what takes them. It raises one of `refusals` or returns; good bytes may be
    refused where that is the door's answer (`not found`)."""

    goods: tuple[bytes, ...]
    enter: Enter
    refusals: tuple[type[Exception], ...] = REFUSALS


Doors = dict[str, Door]


class Replies:
    """A network whose every request is answered by `raw`."""

    def __init__(self, me: PeerId) -> None:
        self.me, self.raw = me, b""
        self.penalties: Counter[str] = Counter()

    async def request(self, *question: Any, **more: Any) -> bytes:
        return self.raw

    def penalise(self, peer: PeerId, points: int, reason: str) -> None:
        self.penalties[reason] += 1

    def peers(self) -> tuple[Any, ...]:
        return ()

    def may_tell(self, addresses: Any) -> bool:
        return are_tellable(addresses, "public")


class Answering:
    """A stream of ours that can be held weakly, as real ones are."""

    def __init__(self, read: Any, write: Any, end: Any) -> None:
        self.read, self.write = read, write
        self.close = self.reset = end


class Pieces:
    """A stream of libp2p whose bytes come in pieces of a few sizes, then its end."""

    def __init__(self, raw: bytes, peer: Any = None) -> None:
        self._raw, self._at = raw, 0
        self._sizes = itertools.cycle((70_000, 3, 200, 1))
        self.muxed_conn = SimpleNamespace(peer_id=peer)
        self.swarm_conn = SimpleNamespace(remove_stream=lambda stream: None)
        self.metric_send_channel = None

    async def read(self, most: int) -> bytes:
        if self._at == len(self._raw):
            raise StreamEOF
        part = self._raw[self._at : self._at + min(most, next(self._sizes))]
        self._at += len(part)
        return part

    async def reset(self) -> None:
        """It is gone."""

    @property
    def muxed_stream(self) -> Any:
        """What the rest of a long frame is taken from: all that is left, then the end."""

        async def give(*_: object, **__: object) -> None: ...

        rest, self._at = bytearray(self._raw[self._at :]), len(self._raw)
        conn = SimpleNamespace(stream_buffers={1: rest}, event_shutting_down=trio.Event())
        return self.__dict__.setdefault(
            "rest",
            SimpleNamespace(
                conn=conn,
                stream_id=1,
                reset_received=False,
                recv_closed=True,
                recv_window=0,
                target_recv_window=0,
                send_window_update=give,
                _auto_tune_and_send_window_update=give,
            ),
        )


async def open_doors(home: Path, nursery: trio.Nursery) -> Doors:
    """All of them, on a chain with a paid answer; open as long as `nursery` is."""
    scenes = Scenes(home, nursery)
    await scenes.play()
    said = examples_of(scenes)
    requests: dict[str, list[bytes]] = {}
    replies: dict[str, bytes] = {}
    for name, frames in said.items():
        if frames[0].by == ASK and len(frames) == 2 and not name.endswith("refused"):
            requests.setdefault(name.split()[0], []).append(frames[0].raw[LENGTH_BYTES:])
            body = frames[1].raw[LENGTH_BYTES:]
            replies[name] = decode(body, ENVELOPE, len(body), "reply")[2]
    gossip = {
        topic: tuple(f[0].raw for name, f in said.items() if name.split()[:2] == ["gossip", topic])
        for topic in TOPICS
    }
    return {
        **request_doors(scenes, requests),
        **reply_doors(scenes, replies, requests),
        **topic_doors(scenes, gossip),
        **peer_doors(scenes, said),
        **library_doors(gossip),
        **content_doors(scenes),
    }


# ---- what others ask


def request_doors(scenes: Scenes, requests: dict[str, list[bytes]]) -> Doors:
    """The handlers behind `status`, `blocks` and so on; who asks is admitted already."""

    def door(protocol: str, goods: list[bytes]) -> Door:
        handler = scenes.server.requests._served[protocol].handler
        assert handler is not None

        async def enter(raw: bytes) -> object:
            return await handler(scenes.client.me, raw)

        return Door(tuple(goods), enter, (NetworkError,))

    async def keep(raw: bytes) -> object:
        return await scenes.relay_of_client.answer_bundles(scenes.server.me, raw)

    doors = {f"asked {name}": door(name, goods) for name, goods in requests.items()}
    keeping = Door(tuple(requests["bundles"]), keep, (NetworkError,))
    status = status_door(scenes, requests["status"])
    return doors | {"asked status": status, "asked to keep a bundle": keeping}


def status_door(scenes: Scenes, goods: list[bytes]) -> Door:
    """Behind the look for a link: of one that is there."""
    members = scenes.server.members
    link = Link(scenes.client.me, False, "192.0.2.2", 0.0, 0)

    async def enter(raw: bytes) -> object:
        return members._learn(link, framing.decode(raw, STATUS_BYTES_MAX))

    return Door(tuple(goods), enter, (NetworkError,))


# ---- what others answer


def reply_doors(
    scenes: Scenes, replies: dict[str, bytes], requests: dict[str, list[bytes]]
) -> Doors:
    """The clients of each protocol; some contain what is false, and raise nothing at all."""
    story, peer = scenes.story, scenes.server.me
    net = Replies(scenes.client.me)

    def reading(name: str, call: Callable[[], Awaitable[object]], *refusals: Any) -> Door:
        async def enter(raw: bytes) -> object:
            net.raw = raw
            return await call()

        return Door((replies[name],), enter, refusals)

    catchup: Any = Catchup(network=net, get_height=lambda: 0, take=lambda blocks: None)  # type: ignore[arg-type]
    source: Any = PeerSource(net, peer, look_s=float("inf"))  # type: ignore[arg-type]
    relay: Any = scenes.relay_of_client
    audits: Any = relay.audits
    relay._network = relay.watching._network = audits._network = net
    directory: Any = Directory(
        network=net, chain_id=story.chain_id, get_state=story.made.chain.state,
        now_ms=lambda: story.now_ms,
    )  # type: ignore[arg-type]  # fmt: skip
    _, start, count = decode(requests["blocks"][0], Record(U63, U63, U63), 64, "blocks")
    wanted = Range(start, start + count - 1)
    waiting, settled = story.waiting.hash, story.settled.hash
    block_id = story.made.chain.tip.block_id
    return {
        "told blocks by height": reading(
            "blocks 0", lambda: catchup._ask_range(peer, wanted), *REFUSALS
        ),
        "told block by id": reading("blocks 1", lambda: catchup.fetch_block(block_id, [peer])),
        "told light block": reading("light 0", lambda: source.ask(0), *REFUSALS),
        "told history": reading("light 3", lambda: source.ask_history(3, 9), *REFUSALS),
        "told past block": reading("light 5", lambda: source.ask_past(3, 9), *REFUSALS),
        "told bundles": reading("bundles 0", lambda: relay._pull(peer, [settled]), *REFUSALS),
        "told kept": reading("bundles 1", lambda: relay.watching._ask(peer, b"?")),
        "told statement": reading(
            "audit 1", lambda: audits.ask_statement(PROVIDER.key, waiting, 0), *REFUSALS
        ),
        "told claims": reading(
            "audit 4", lambda: audits.claims_from(peer, waiting, [0]), *REFUSALS
        ),
        "told rows": reading(
            "audit 2", lambda: audits.ask_rows(peer, index_root(INDEX), [2, 0]), *REFUSALS
        ),
        "told offers": reading("offers", lambda: directory.ask(peer)),
        **snapshot_doors(scenes, net, reading),
        **blob_doors(scenes, net, reading),
        **record_doors(scenes, replies),
        "told envelope": envelope_door(scenes, replies["ping"]),
    }


def snapshot_doors(scenes: Scenes, net: Any, reading: Callable[..., Door]) -> Doors:
    sync: Any = StateSync(
        network=net, store=scenes.story.snapshots, get_height=lambda: 0,
        verify_header=lambda height: None, take_in=lambda manifest: None, gap_blocks=0,
        gather_s=1, run_blocking=at_once,
    )  # type: ignore[arg-type, return-value]  # fmt: skip
    goods: Any = SnapshotGoods(net, scenes.story.manifest, scenes.home)
    peer = scenes.server.me

    async def chunk() -> object:
        raw = await goods.ask(peer, 0)
        snapshots.decode_chunk(raw)  # before it is checked, which a stranger's may not pass
        return snapshots.check_chunk(scenes.story.manifest.chunks[0], raw)

    return {
        "told snapshots": reading("snapshot 0", lambda: sync._ask_manifests(peer)),
        "told chunk of a snapshot": reading("snapshot 1", chunk, *REFUSALS),
    }


def blob_doors(scenes: Scenes, net: Any, reading: Callable[..., Door]) -> Doors:
    store = BlobStore(scenes.home / "fuzzed", 1 << 20)
    client: Any = Blobs(network=net, store=store, run_blocking=at_once)
    peer = scenes.server.me
    (entry,) = scenes.server_blobs.listing(CONTENT, sha256(BLOB)) or ()

    part = store.part(entry.blob_id, entry.length)  # written to only where a chunk is true

    async def listing() -> object:
        return decode_listing(net.raw)

    async def described() -> object:
        return blobs._check_described(entry, net.raw)

    async def chunk() -> object:
        return part.keep(0, *blobs._reply(await client.ask_chunk(peer, b"", 0), blobs._CHUNK))

    return {
        "told blob": reading("blob 0", described, *REFUSALS),
        "told chunk of a blob": reading("blob 1", chunk, *REFUSALS),
        "told files": reading("blob 2", listing, *REFUSALS),
    }


def record_doors(scenes: Scenes, replies: dict[str, bytes]) -> Doors:
    """`peers` and `status`, as who asked reads them."""
    client: Any = scenes.client
    link = Link(scenes.server.me, True, "192.0.2.1", 0.0, 0)

    async def exchange(raw: bytes) -> object:
        async def ask(*question: Any, **more: Any) -> bytes:
            return raw

        client.discovery._ask, before = ask, client.discovery._ask
        try:
            return await client.discovery._exchange(scenes.server.me)
        finally:
            client.discovery._ask = before

    async def status(raw: bytes) -> object:
        return client.members._learn(link, framing.decode(raw, STATUS_BYTES_MAX))

    client.members.blame = lambda peer, reason: None
    return {
        "told peers": Door((replies["peers"],), exchange, ()),
        "told status": Door((replies["status"],), status, (NetworkError,)),
    }


def envelope_door(scenes: Scenes, reply: bytes) -> Door:
    """What every reply is wrapped in."""
    said = (0, 0, reply), (3, 200, b""), (2, 0, reply)

    class Opener:
        raw = b""

        async def open_stream(self, peer: PeerId, protocol: str, **_: Any) -> Any:
            async def write(body: bytes, timeout_s: float) -> None: ...

            async def read(bytes_max: int, timeout_s: float) -> bytes:
                return self.raw[:bytes_max]

            async def end() -> None: ...

            return Answering(read, write, end)

    opener, requests = Opener(), scenes.client.requests

    async def enter(raw: bytes) -> object:
        opener.raw = raw
        return await requests._exchange(opener, scenes.server.me, "ping", b"?", 5, 64)

    return Door(tuple(map(framing.encode, said)), enter, (NetworkError,))


# ---- what is gossiped


def topic_doors(scenes: Scenes, gossip: dict[str, tuple[bytes, ...]]) -> Doors:
    """The judges: they never raise."""
    forwarder, author = scenes.client.me, scenes.client.me
    relay: Any = scenes.relay_of_server
    directory: Any = scenes.directory_of_server
    judges: dict[str, Callable[[PeerId, PeerId, bytes], Verdict]] = {
        "txs": relay._judge_tx,
        "bundles": relay._judge_bundle,
        "votes": hearing_of(scenes).judge,
        "offers": directory._judge,
    }

    def door(topic: str) -> Door:
        async def enter(raw: bytes) -> object:
            relay._queue.clear()  # what is to be audited; nobody does it here
            relay._at_work.clear()
            return judges[topic](forwarder, author, raw)

        return Door(gossip[topic], enter, ())

    assert judges.keys() == TOPICS.keys()
    return {f"gossiped {topic}": door(topic) for topic in TOPICS}


def hearing_of(scenes: Scenes) -> Any:
    """Of a replica, its ear."""
    story = scenes.story
    chain = SimpleNamespace(chain_id=story.chain_id)
    accusing = Accusing(chain_id=story.chain_id, get_view=story.made.chain.view)
    others: Any = dict.fromkeys(
        ("voter", "sender", "execution", "undecided", "agreement", "get_params", "stop_signing")
    )
    return Hearing(
        SimpleNamespace(chain=chain),  # type: ignore[arg-type]
        catchup=SimpleNamespace(hint=lambda peer, height: None),  # type: ignore[arg-type]
        judge_evidence=accusing.judge,
        **others,
    )


# ---- what stands in them, and in files of ours


def peer_doors(scenes: Scenes, said: Any) -> Doors:
    story, identity = scenes.story, KeyIdentity(SERVER)
    chain_id, now_ms = story.chain_id, story.now_ms
    listening = tuple(map(parse_address, ("/ip4/192.0.2.1/tcp/4001", "/ip6/2001:db8::2/tcp/1")))
    record = make_record(
        identity, chain_id, seq_ms=now_ms, addresses=listening, roles=3, binding=b""
    )
    book = Book("lan")
    book.learn(record, record.peer, now_ms)
    binding = make_binding(CLIENT.key, SERVER.key, now_ms, lambda tag, body: CLIENT.sign(body))
    texts = (
        f"/ip4/1.2.3.4/tcp/4001/p2p/{peer_id_text(identity.key)}",
        "/ip6/2001:db8::2/tcp/65535",
        "/dns4/seed.example/tcp/1",
    )

    async def read(raw: bytes) -> object:
        return read_record(framing.decode(raw, 2_048), identity, chain_id, now_ms)

    async def address(raw: bytes) -> object:
        return parse_address(raw.decode("latin-1"), names_allowed=True)

    async def peer_id(raw: bytes) -> object:
        return key_of_peer_id(raw.decode("latin-1"))

    async def unpack(raw: bytes) -> object:
        return Book("lan").unpack(raw, identity, chain_id, now_ms)

    async def bind(raw: bytes) -> object:
        return read_binding(chain_id, SERVER.key, raw)

    async def frames(raw: bytes) -> object:
        stream = Libp2pFrameStream(Pieces(raw))
        return [await stream.read(4_096, 5) for _ in range(3)]

    framed = b"".join(frame(bytes([n]) * n) for n in (1, 5, 200))
    return {
        "read address record": Door((framing.encode(record.value),), read, (Misbehaving,)),
        "read address": Door(tuple(t.encode() for t in texts), address, (Misbehaving,)),
        "read peer id": Door((peer_id_text(identity.key).encode(),), peer_id, (Misbehaving,)),
        "read book": Door((book.pack([(identity.key, 7)]),), unpack, (Misbehaving,)),
        "read binding": Door((binding,), bind, (Invalid,)),
        "read frames": Door((framed, frame(b"x" * 3_000)), frames, (NetworkError,)),
    }


def content_doors(scenes: Scenes) -> Doors:
    """What comes as a file."""
    hashes, some = bytes(32), sha256(b"some")
    model = models.Manifest(
        models.VERSION, some, some, some, some, 16, (b"k_proj", b"q_proj"), some, some, hashes,
        0, 1, 512, ((0, 1, 2, 3, 4, 5, 6),), b"",
    )  # fmt: skip

    async def manifest(raw: bytes) -> object:
        return models.decode_manifest(raw)

    async def snapshot(raw: bytes) -> object:
        return snapshots.decode_manifest(raw)

    told = snapshots.encode_manifest(scenes.story.manifest)
    return {
        "read model's manifest": Door((models.encode_manifest(model),), manifest, (Invalid,)),
        "read snapshot's manifest": Door((told,), snapshot, (Invalid,)),
    }


# ---- the library's readers, behind our guards


def library_doors(gossip: dict[str, tuple[bytes, ...]]) -> Doors:
    return {
        "read line of negotiation": Door(
            (encode_varint_prefixed(b"/multistream/1.0.0\n"), encode_varint_prefixed(b"ls\n")),
            lambda raw: _read_line(Pieces(raw)),
            (ParseError, IOException, StreamEOF),
        ),
        "read gossip": gossip_door(gossip),
    }


def gossip_door(gossip: dict[str, tuple[bytes, ...]]) -> Door:
    """A frame of gossipsub, with all that becomes of it; our guards let nothing out."""
    network = Libp2pNetwork(seed=seed_of(1), chain_id=CHAIN, listen=[], reach="devnet")
    for topic, limits in TOPICS.items():
        network.subscribe(topic, lambda *told: Verdict.ACCEPT, limits)
    stack = Stack(network.stack_parts())
    tasks: list[Any] = []
    pubsub: Any = stack.pubsub
    pubsub._manager = SimpleNamespace(
        is_running=True, run_task=lambda *task, **more: tasks.append(task)
    )
    for topic in TOPICS:
        stack.add_topic(topic)
        text = topic_text(topic, CHAIN)
        pubsub.subscribed_topics_receive[text] = None
        stack.router.mesh[text] = set()
    peer = Libp2pIdentity(seed_of(2))
    link = Link(peer.key, False, "192.0.2.2", 0.0, 0, admitted=True)

    async def enter(raw: bytes) -> object:
        network.members._links[peer.key] = link
        network.members.scores.forgive(peer.key)
        await pubsub.continuously_read_stream(Pieces(raw, id_of(peer.key)))
        while tasks:
            function, *arguments = tasks.pop()
            await function(*arguments)
        return None

    rpcs = [gossip_rpc(peer, topic, goods[0]) for topic, goods in gossip.items()]
    return Door(tuple(encode_varint_prefixed(rpc) for rpc in rpcs), enter, ())


def gossip_rpc(author: Libp2pIdentity, topic: str, data: bytes) -> bytes:
    """A message, signed, with every other thing that may stand beside it."""
    text = topic_text(topic, CHAIN)
    told = rpc_pb2.Message(
        from_id=id_of(author.key).to_bytes(), data=data, seqno=bytes(8), topicIDs=[text]
    )
    told.signature = author.sign(b"libp2p-pubsub:" + told.SerializeToString())
    rpc = rpc_pb2.RPC(publish=[told])
    rpc.subscriptions.add(subscribe=True, topicid=text)
    rpc.control.ihave.add(topicID=text, messageIDs=[b"id"])
    rpc.control.iwant.add(messageIDs=[b"id"])
    rpc.control.graft.add(topicID=text)
    rpc.control.prune.add(topicID=text, backoff=1).peers.add(peerID=b"id")
    raw: bytes = rpc.SerializeToString()
    return raw
