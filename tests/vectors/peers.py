"""What peers say to each other, listened in on: one example of each protocol's question, topic and
frame, for p2p/WIRE.md.

The clients and the servers are the product's own, joined by a wire: so each request is one that the
server took, and each reply one that the client took. The chain is chain_kit's story; what stands in
frames of `consensus` and `infer` and in `votes` are the objects of agreement.py and market.py.
"""

import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import trio
from bundle_kit import Party, party
from chain_kit import PAYER, PROVIDER, VALIDATORS, golden_answer
from exchange_kit import at_once
from network_kit import not_here
from stored_kit import CREDITS, GENESIS, Stored
from trio.testing import MockClock
from vectors.agreement import agreement_examples
from vectors.market import INDEX_HEADER, ROW_LEAF, SKETCH, STATEMENT, market_examples
from wiretap_kit import KeyIdentity, TappedNode, join, never_dial

from consensus.attacks import LightClientAttack, Verdict, encode_attack
from consensus.certificate import decode_certificate
from consensus.header import decode_header
from consensus.messages import (
    BLOCK,
    CERTIFICATE,
    EVIDENCE,
    PROPOSAL,
    STATUS,
    VOTE,
    decode_body,
    encode_frame,
)
from consensus.primitives import merkle
from consensus.primitives.digest import sha256, signing_bytes
from consensus.primitives.encoding import Bytes, ListOf, Record, decode, encode
from consensus.skipping import verify_history
from node.ledger import tables
from node.ledger.accusations import decode_accusation
from node.ledger.genesis import decode_genesis
from node.ledger.pool import BundlePool, TransactionPool
from node.ledger.wire import exchange
from node.ledger.wire.bundles import Bundle
from node.ledger.wire.bundles import decode_body as decode_bundle_body
from node.ledger.wire.claims import (
    encode_header,
    encode_row_leaf,
    encode_statement,
    index_root,
)
from node.ledger.wire.openings import RawRows
from node.ledger.wire.orders import Load, Offer, OfferedModel
from node.ledger.wire.receipts import receipt_id
from node.ledger.wire.transactions import Transfer, UpdateProvider
from node.light import trust_genesis, verify_file
from node.peering.audits import Audits, StatedClaim
from node.peering.bindings import is_binding, make_binding
from node.peering.blobs import Blobs
from node.peering.blobstore import CONTENT, BlobStore
from node.peering.bodies import LentBodies
from node.peering.catchup import Catchup
from node.peering.directory import Directory
from node.peering.lightserver import LightServer
from node.peering.lightsource import PeerSource
from node.peering.relay import FalseClaim, Relay
from node.peering.responder import Responder
from node.peering.snapshotting import SnapshotKeeper
from node.peering.statesync import StateSync
from node.peering.streams import ValidatorStreams
from node.peering.topics import (
    BUNDLES,
    TXS,
    VOTES,
    decode_bundle_message,
    decode_vote_message,
    encode_vote_message,
)
from node.storage.snapshots import SnapshotStore, encode_manifest
from node.storage.store import MemoryKV
from p2p.addresses import addresses_of
from p2p.errors import Code, EndOfStream, Refused
from p2p.framing import LENGTH_BYTES, frame
from p2p.limits import FRAME_BYTES_MAX, PROTOCOLS, TOPICS
from p2p.network import PeerId, StatusFacts
from p2p.network import Verdict as Word
from p2p.records import make_record

SERVER, CLIENT, THIRD = (party(f"node {number}") for number in range(3))
ADDRESSES = {
    SERVER: "/ip4/192.0.2.1/tcp/4001",
    CLIENT: "/ip6/2001:db8::2/tcp/4001",
    THIRD: "/ip4/192.0.2.3/tcp/4001",
}
KEYS_OF = {VALIDATORS[0].key: SERVER.key, VALIDATORS[1].key: CLIENT.key}  # who runs on which node
FULL_NODE = 1 | 2  # roles: validator, provider
BLOB = b"a file of one chunk\n"
BLOB_NAME = "notes.txt"
IDENTITY = sha256(BLOB)
OBJECTS = {name: made.raw for name, made in (market_examples() | agreement_examples()).items()}
CONSENSUS = {  # kind -> what stands in the frame
    PROPOSAL: OBJECTS["proposal"],
    BLOCK: OBJECTS["block"],
    VOTE: OBJECTS["prevote"],
    CERTIFICATE: OBJECTS["certificate"],
    STATUS: OBJECTS["status"],
    EVIDENCE: OBJECTS["evidence_votes"],
}
GOSSIPED = (PROPOSAL, VOTE, CERTIFICATE, EVIDENCE)
FRAME_NAMES = {
    "Start": "start",
    "Tick": "voucher",
    "Reveal": "reveal",
    "Cancel": "cancel",
    "Accepted": "accepted",
    "Tokens": "tokens",
    "Alive": "alive",
    "Finished": "finish",
    "RefusedFrame": "refused",
}
PAYER_FRAMES = ("Start", "Tick", "Reveal", "Cancel")
PROVIDER_FRAMES = ("Accepted", "Tokens", "Alive", "Finished", "RefusedFrame")
KINDS = {  # protocols whose request begins with its kind
    "blocks": (0, 1),
    "light": (0, 1, 2, 3, 4, 5),
    "bundles": (0, 1),
    "snapshot": (0, 1),
    "blob": (0, 1, 2),
    "audit": (1, 2, 4),
}
KIND_AT = 5  # in a frame: behind its length and the one byte of the array's head
MINUTE_S = 60.0
ASK, REPLY, GOSSIP = ">", "<", "*"  # the opener of a stream, its other side, a topic's message


class Said(NamedTuple):
    """Bytes as they travel: a frame with its length, or the data of a gossip message."""

    by: str
    raw: bytes


Examples = dict[str, tuple[Said, ...]]  # "blocks 0", "infer start", "gossip votes 2"


class Truth:
    """An auditor that holds every index and finds all claims true."""

    def holds(self, model: int, version: int) -> bool:
        return True

    def recheck(self, told: Sequence[Any]) -> list[FalseClaim | None]:
        return [None] * len(told)


LEAVES: Final = [encode_row_leaf(ROW_LEAF._replace(number=row)) for row in range(3)]
INDEX: Final = encode_header(
    INDEX_HEADER._replace(rows=len(LEAVES), records=len(LEAVES), rows_root=merkle.root(LEAVES))
)


def open_rows(root: bytes, rows: Sequence[int]) -> RawRows | None:
    """Of the one index that the server holds."""
    if root != index_root(INDEX):
        return None
    return RawRows(INDEX, tuple((LEAVES[row], merkle.prove(LEAVES, row)) for row in rows))


class Bodies(dict[bytes, Bundle]):
    """The client's store of bundles: empty at first."""

    def append(self, bundle: Bundle) -> None:
        self[bundle.hash] = bundle

    confirm = append

    def take_refuted(self, bundle_hash: bytes) -> bool:
        return False


class Story:
    """A chain with a paid answer, and one more that waits in a bundle."""

    def __init__(self, home: Path) -> None:
        self.made = made = Stored(home / "chain", MemoryKV())
        made.tell_story()
        here = UpdateProvider(SERVER.key, PROVIDER.key, tables.PROVIDER_ACTIVE)
        made.block(made.tx(PROVIDER, here))
        session = made.open_channel()
        golden_answer(session, CREDITS)
        self.settled = made.bundle(session)
        made.block(bundles=(self.settled,))
        golden_answer(session, ())
        self.waiting = made.bundle(session, bundle_seq=2)
        self.snapshots = SnapshotStore(home / "snapshots")
        manifest = self.snapshots.make(made.chain.view())
        assert manifest is not None
        self.manifest = manifest
        for _ in range(2):
            made.block(made.pay())
        self.chain_id, self.height = made.chain_id, made.height
        self.now_ms = made.time_ms + 1_000
        self.payment = made.tx(PAYER, Transfer(PROVIDER.key, 125_000_000, b"thank you"))

    def facts(self) -> StatusFacts:
        tip = self.made.chain.tip
        return StatusFacts(FULL_NODE, tip.height, tip.block_id, 1, self.manifest.height)

    def stated(self, receipt: bytes) -> StatedClaim | None:
        """What the provider says of the receipt that waits."""
        (part,) = decode_bundle_body(self.waiting.body)
        is_mine = receipt == receipt_id(part.receipts[0])
        return StatedClaim(encode_statement(STATEMENT), SKETCH) if is_mine else None

    def lie(self) -> bytes:
        """Evidence: validators signed a second block of this chain's newest height but one."""
        height = self.height - 1
        block = self.made.chain.view().light_block(height)
        assert block is not None
        header = block.header._replace(txs_root=sha256(b"what nobody sent"))
        signed = decode_certificate(self.made.certify(height, header.block_id()))
        forged = replace(block, header=header, certificate=signed)
        return encode_attack(LightClientAttack(height - 1, forged))

    def offer(self, seq: int, expires_ms: int) -> Offer:
        models = (OfferedModel(1, 1, 1, 500),)
        addresses = (ADDRESSES[SERVER].encode(),)
        return Offer(
            1, PROVIDER.key, SERVER.key, seq, addresses, models, Load(32, 1, 850), expires_ms
        )


def node_of(story: Story, who: Party, validator: Party, facts: StatusFacts) -> TappedNode:
    chain_id = story.chain_id

    def sign(tag: bytes, body: bytes) -> bytes:
        return validator.sign(signing_bytes(tag, chain_id, body))

    return TappedNode(
        who,
        chain_id=chain_id,
        address=ADDRESSES[who],
        facts=facts,
        binding=make_binding(validator.key, who.key, story.now_ms, sign),
        judge_binding=lambda peer, raw: is_binding(chain_id, peer, raw),
        now_ms=story.now_ms,
        rng=random.Random(1),
    )


class Scenes:
    """Both nodes with all that they serve, and what the client asks, one after another."""

    def __init__(self, home: Path, nursery: trio.Nursery) -> None:
        self.home, self.nursery = home, nursery
        self.story = Story(home)
        self.server = node_of(self.story, SERVER, VALIDATORS[0], self.story.facts())
        self.client = node_of(self.story, CLIENT, VALIDATORS[1], StatusFacts(1, 0, b"", 1, 0))
        self.server.lost = self.client.lost = frozenset({TXS})  # so that `pool` brings them
        self.attacks: list[LightClientAttack] = []

    # --- what is served

    async def start(self) -> None:
        address = addresses_of([ADDRESSES[THIRD]], with_peer=False)
        self.server.learn(
            make_record(
                KeyIdentity(THIRD), self.story.chain_id, seq_ms=self.story.now_ms,
                addresses=address, roles=0, binding=b"",
            )
        )  # fmt: skip
        self.nursery.start_soon(self.client.discovery.run, never_dial)
        await self.serve()
        await join(self.client, self.server, self.nursery.start)
        await trio.sleep(MINUTE_S / 2)

    async def serve(self) -> None:
        story, chain = self.story, self.story.made.chain
        Responder(
            get_view=chain.view, find_undecided=lambda block_id: None, run_blocking=at_once
        ).serve(self.server)
        LightServer(get_view=chain.view, take_attack=self.take_attack, run_blocking=at_once).serve(
            self.server
        )
        SnapshotKeeper(
            store=story.snapshots, get_view=chain.view, run_blocking=at_once
        ).serve(self.server)  # fmt: skip
        self.server_blobs = BlobStore(self.home / "server", 1 << 20)
        Blobs(
            network=self.server, store=self.server_blobs, lent=LentBodies(chain.bundles.get),
            run_blocking=at_once,
        ).serve()  # fmt: skip
        self.relay_of_server = self.relay(self.server, chain.bundles)
        self.relay_of_client = self.relay(self.client, Bodies())
        self.directory_of_server = self.directory(self.server)
        self.directory_of_client = self.directory(self.client)
        self.client.serve("offers", self.directory_of_client.answer, PROTOCOLS["offers"])
        for part in (self.relay_of_server, self.relay_of_client):
            await self.nursery.start(part.run)
        self.nursery.start_soon(self.directory_of_server.run)

    async def take_attack(self, attack: LightClientAttack, verdict: Verdict) -> None:
        self.attacks.append(attack)

    def relay(self, network: TappedNode, store: Any) -> Relay:
        story = self.story
        return Relay(
            network=network, chain_id=story.chain_id,
            transactions=TransactionPool(story.chain_id), bundles=BundlePool(), store=store,
            get_state=story.made.chain.state, auditor=Truth(), may_be_shown=lambda: True,
            fetch_body=not_here,
            audits=Audits(
                network=network, get_state=story.made.chain.state, find_bundle=store.get,
                find_stated=story.stated, may_see_sketch=lambda peer, receipt: True,
                open_rows=open_rows, run_blocking=at_once,
            ),
            evidence_folder=self.home / "evidence",
            watch_folder=self.home / "watch", get_height=lambda: story.height,
            find_validators=lambda: [PeerId(CLIENT.key)], now_ms=lambda: story.now_ms,
            run_blocking=at_once,
        )  # fmt: skip

    def directory(self, network: TappedNode) -> Directory:
        story = self.story
        return Directory(
            network=network, chain_id=story.chain_id, get_state=story.made.chain.state,
            now_ms=lambda: story.now_ms,
        )  # fmt: skip

    # --- what is asked

    async def play(self) -> None:
        """Everything once; `status`, `peers` and `ping` come by themselves."""
        await self.start()
        await self.blocks()
        await self.headers()
        await self.light()
        await self.bundles()
        await self.pool()
        await self.snapshot()
        await self.blob()
        await self.offers()
        await self.votes()
        await self.consensus()
        await self.infer()

    async def ask(self, protocol: str, *question: Any) -> bytes:
        limits = PROTOCOLS[protocol]
        return await self.client.request(
            self.server.me,
            protocol,
            encode(question),
            timeout_s=limits.timeout_s,
            bytes_max=limits.reply_max,
        )

    async def send(self, protocol: str, request: bytes) -> bytes:
        """The reply to a frame that was made by hand."""
        stream = await self.client.open_stream(self.server.me, protocol)
        await stream.write(request[LENGTH_BYTES:], 5)
        reply = await stream.read(FRAME_BYTES_MAX, 5)
        await stream.reset()
        return frame(reply)

    async def blocks(self) -> None:
        height = self.story.height
        taken: list[Any] = []

        async def take(blocks: Any) -> None:
            taken.extend(blocks)

        catchup = Catchup(
            network=self.client, get_height=lambda: height - 2 + len(taken), take=take
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(catchup.run)
            await trio.sleep(MINUTE_S)
            nursery.cancel_scope.cancel()
        assert [decode_header(block.header).height for block, _ in taken] == [height - 1, height]
        header = decode_header(taken[-1][0].header)
        assert await catchup.fetch_block(header.block_id(), [self.server.me]) == taken[-1][0]

    async def headers(self) -> None:
        """No client of ours asks them: read as their fields are written down."""
        pair = Record(Bytes(1 << 10, 1), Bytes(8 << 10, 1))
        raw = await self.ask("headers", 1, 3, 4)
        told = decode(raw, ListOf(pair, 256), PROTOCOLS["headers"].reply_max, "headers")
        for height, (header, certificate) in zip((1, 5, 9), told, strict=True):
            assert decode_header(header).height == height
            assert decode_certificate(certificate).block_id == decode_header(header).block_id()

    async def light(self) -> None:
        story, view = self.story, self.story.made.chain.view()
        source = PeerSource(self.client, self.server.me)
        assert (await source.ask(story.height)).height == story.height
        await self.light_proofs()
        block_id, path = await source.ask_history(3, story.height)
        verify_history(view.get_header(story.height), 3, block_id, path)
        await source.report(story.lie())
        assert len(self.attacks) == 1
        past = await source.ask_past(3, story.height)
        assert past.block.height == 3
        with pytest.raises(Refused) as refused:
            await self.ask("light", 0, story.height + 1)
        assert refused.value.code == Code.NOT_FOUND

    async def light_proofs(self) -> None:
        trust = trust_genesis(decode_genesis(GENESIS))
        key = tables.ACCOUNT.flat_key((PAYER.key,))
        files = ListOf(Bytes(64 << 10, 1), 64)
        for question in ((1, 0, (key,)), (2, self.story.settled.hash, 0)):
            raw = await self.ask("light", *question)
            (file,) = decode(raw, files, PROTOCOLS["light"].reply_max, "proofs")
            verify_file(file, trust)

    async def bundles(self) -> None:
        """What is kept for a provider, then both forms of the topic, and the audit between them."""
        client, settled, waiting = self.relay_of_client, self.story.settled, self.story.waiting
        assert await client.fetch_bodies([settled.hash], [self.server.me]) == ()
        assert await self.relay_of_server.watching.hand(waiting) == client.watching.kept == 1
        await self.relay_of_server.offer_bundle(waiting)
        await trio.sleep(MINUTE_S)
        assert client.counters["audited"] == client.counters["told_on"] == 1
        statement = await client.audits.ask_statement(PROVIDER.key, waiting.hash, 0)
        assert statement == encode_statement(STATEMENT)
        rows = await client.audits.ask_rows(self.server.me, index_root(INDEX), [2, 0])
        assert [leaf for leaf, _ in rows.rows] == [LEAVES[2], LEAVES[0]]

    async def pool(self) -> None:
        await self.relay_of_client.submit_transaction(self.story.payment)
        await trio.sleep(MINUTE_S / 4)
        assert self.relay_of_server.counters["handed_to_us"] == 1

    async def snapshot(self) -> None:
        async def vouch(height: int) -> Any:
            return self.story.made.chain.view().get_header(height)

        sync = StateSync(
            network=self.client, store=SnapshotStore(self.home / "synced"), get_height=lambda: 0,
            verify_header=vouch, take_in=lambda manifest: None, gap_blocks=0, gather_s=1,
            run_blocking=at_once,
        )  # fmt: skip
        manifest = await sync.run()
        assert manifest is not None
        assert encode_manifest(manifest) == encode_manifest(self.story.manifest)

    async def blob(self) -> None:
        file = self.home / BLOB_NAME
        file.write_bytes(BLOB)
        self.server_blobs.add_folder(CONTENT, IDENTITY, file)
        store = BlobStore(self.home / "client", 1 << 20)
        blobs = Blobs(network=self.client, store=store, run_blocking=at_once)
        folder = self.home / "fetched"
        await blobs.fetch(
            CONTENT, IDENTITY, folder, peers=[self.server.me], bytes_max=1 << 20,
            check=lambda found: None,
        )  # fmt: skip
        assert (folder / BLOB_NAME).read_bytes() == BLOB

    async def offers(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.directory_of_server.run_sender, self.story.offer, PROVIDER.sign)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        assert await self.directory_of_client.ask(self.server.me) == 1

    async def votes(self) -> None:
        def judge(forwarder: PeerId, author: PeerId, data: bytes) -> Word:
            kind, body = decode_vote_message(data)
            (decode_accusation if kind == EVIDENCE else lambda raw: decode_body(kind, raw))(body)
            return Word.ACCEPT

        heard = self.server.subscribe(VOTES, judge, TOPICS[VOTES])
        self.client.subscribe(VOTES, judge, TOPICS[VOTES])
        for kind in GOSSIPED:
            await self.client.publish(VOTES, encode_vote_message(kind, CONSENSUS[kind]))
            assert (await anext(heard)).author == self.client.me

    async def consensus(self) -> None:
        heard: list[tuple[PeerId, int, bytes]] = []
        async with trio.open_nursery() as nursery:
            for node, me in zip((self.server, self.client), (0, 1), strict=True):
                streams = ValidatorStreams(
                    network=node,
                    find_peer=lambda key: PeerId(KEYS_OF[key]),
                    on_frame=lambda *said: heard.append(said),
                )
                streams.set_members(KEYS_OF, VALIDATORS[me].key)
                await nursery.start(streams.run)
                if node is self.client:
                    for kind, body in CONSENSUS.items():
                        streams.send_to_all(encode_frame(kind, body), (kind, 0))
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        assert heard == [(self.client.me, *said) for said in CONSENSUS.items()]

    async def infer(self) -> None:
        """Every frame of both sides once; a real answer says some of them and in another order."""
        limits = PROTOCOLS["infer"]

        async def answer(peer: PeerId, stream: Any) -> None:
            for _ in PAYER_FRAMES:
                exchange.decode_payer_frame(await stream.read(limits.request_max, 5))
            for name in PROVIDER_FRAMES:
                await stream.write(OBJECTS[f"infer_{name}"], 5)

        self.server.accept("infer", answer, limits)
        stream = await self.client.open(self.server.me, "infer")
        for name in PAYER_FRAMES:
            await stream.write(OBJECTS[f"infer_{name}"], 5)
        for name in PROVIDER_FRAMES:
            said = exchange.decode_provider_frame(await stream.read(limits.reply_max, 5))
            assert type(said).__name__ == name
        with pytest.raises(EndOfStream):
            await stream.read(limits.reply_max, 5)
        await stream.reset()


# ---- what was heard


def examples_of(scenes: Scenes) -> Examples:
    """By name; of several of one kind the first."""
    found: Examples = {}
    for talk in scenes.client.talks + scenes.server.talks:
        said = tuple(Said(ASK if is_opener else REPLY, raw) for is_opener, raw in talk.said)
        for name, frames in named(talk.protocol, said):
            found.setdefault(name, frames)
    for topic, data in scenes.server.gossip + scenes.client.gossip:
        found.setdefault(name_of_gossip(topic, data), (Said(GOSSIP, data),))
    return found


def named(protocol: str, said: tuple[Said, ...]) -> Iterator[tuple[str, tuple[Said, ...]]]:
    if protocol == "consensus":
        for one in said:
            yield f"consensus {one.raw[KIND_AT]}", (one,)
    elif protocol == "infer":
        for name, one in zip((*PAYER_FRAMES, *PROVIDER_FRAMES), said, strict=True):
            yield f"infer {FRAME_NAMES[name]}", (one,)
    else:
        request, reply = said
        is_refused = reply.raw[KIND_AT] != Code.OK
        kind = f" {request.raw[KIND_AT]}" if protocol in KINDS else ""
        yield protocol + (" refused" if is_refused else kind), said


def name_of_gossip(topic: str, data: bytes) -> str:
    if topic == VOTES:
        return f"gossip votes {data[2]}"  # behind the array's head and the topic's kind
    is_announced = topic == BUNDLES and not decode_bundle_message(data).body
    return f"gossip {topic}" + (" announced" if is_announced else "")


async def heard(home: Path) -> Examples:
    async with trio.open_nursery() as nursery:
        scenes = Scenes(home, nursery)
        await scenes.play()
        check_peace(scenes)
        nursery.cancel_scope.cancel()
    return examples_of(scenes)


def check_peace(scenes: Scenes) -> None:
    """Neither held anything against the other, and no code of ours failed."""
    for node in (scenes.server, scenes.client):
        assert not node.counters.penalties, node.counters.penalties
        assert not node.counters.faults, node.counters.faults
        codes = Counter(code for _, _, code in node.counters.requests)
        assert set(codes) <= {Code.OK, Code.NOT_FOUND, Code.EXPIRED}, codes


@cache
def peer_examples() -> Examples:
    """All examples, in the order of names; the same bytes each time."""
    with tempfile.TemporaryDirectory() as home:
        found = trio.run(heard, Path(home), clock=MockClock(autojump_threshold=0))
    return dict(sorted(found.items()))
