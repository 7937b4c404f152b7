"""One real replica among puppets, which say what a test wants and note what they hear.

The node under test proposes last of the first four rounds, so that puppets propose before it. A
second chain, `ghost`, builds what they offer. Everything runs on trio's mock clock.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from bundle_kit import Party
from exchange_kit import at_once
from simulation.cluster import Cluster, deterministic
from simulation.nodes import Node

from consensus.certificate import PRECOMMIT, Certificate, make_certificate
from consensus.header import decode_header
from consensus.messages import (
    BLOCK,
    FRAME_BYTES_MAX,
    PROPOSAL,
    STATUS,
    VOTE,
    Message,
    Proposal,
    Status,
    Vote,
    decode_frame,
    decode_message,
    decode_status,
    encode_frame,
    encode_message,
    encode_status,
    signed,
    tag_of,
)
from consensus.primitives.digest import signing_bytes
from node.ledger.genesis import encode_genesis
from node.ledger.wire.blocks import Block, Payload, encode_block
from node.peering.responder import Responder
from node.peering.streams import PROTOCOL
from node.storage.chain import Chain
from node.storage.store import MemoryKV
from p2p.limits import PROTOCOLS
from p2p.network import FrameStream, PeerId, StatusFacts


class Puppet:
    """Another validator's node: it says what it is told to, to the node under test."""

    def __init__(self, stage: "Stage", identity: Party) -> None:
        self.stage, self.identity = stage, identity
        self.peer = PeerId(identity.key)
        self.height = 0  # that it tells of itself
        self.network = stage.cluster.hub.network(
            identity.key,
            chain_id=stage.cluster.chain_id,
            facts=lambda: StatusFacts(height=self.height),
        )
        self.network.accept(PROTOCOL, self._read, PROTOCOLS[PROTOCOL])
        self.heard: list[tuple[float, int, bytes]] = []  # seconds, kind, body
        self._stream: FrameStream | None = None

    def serve_blocks(self, **undecided: Block) -> None:
        """Answer for the ghost's blocks from now on, and for these."""
        by_id = {decode_header(block.header).block_id(): block for block in undecided.values()}
        Responder(
            get_view=self.stage.ghost.view, find_undecided=by_id.get, run_blocking=at_once
        ).serve(self.network)

    async def _read(self, peer: PeerId, stream: FrameStream) -> None:
        while True:
            kind, body = decode_frame(await stream.read(FRAME_BYTES_MAX, float("inf")))
            self.heard.append((trio.current_time(), kind, body))

    async def say(self, *said: Message | Block | Status) -> None:
        """Frames over one stream, in this order; they arrive within 20 ms."""
        if self._stream is None:
            self._stream = await self.network.open(self.stage.node.peer, PROTOCOL)
        for one in said:
            await self._stream.write(frame_of(one), 4)

    def votes(self) -> list[Vote]:
        """What the node under test voted, in order."""
        found = [decode_message(encode_frame(VOTE, body)) for body in self._bodies(VOTE)]
        return [vote for vote in found if isinstance(vote, Vote)]

    def proposals(self) -> list[Proposal]:
        """What it proposed."""
        found = [decode_message(encode_frame(PROPOSAL, body)) for body in self._bodies(PROPOSAL)]
        return [one for one in found if isinstance(one, Proposal)]

    def statuses(self) -> list[Status]:
        """What it asked us by."""
        return [decode_status(body) for body in self._bodies(STATUS)]

    def kinds(self) -> list[int]:
        """The kinds of all frames heard, but for statuses."""
        return [kind for _, kind, _ in self.heard if kind != STATUS]

    def _bodies(self, wanted: int) -> list[bytes]:
        return [body for _, kind, body in self.heard if kind == wanted]


def frame_of(one: Message | Block | Status) -> bytes:
    if isinstance(one, Block):
        return encode_frame(BLOCK, encode_block(one))
    if isinstance(one, Status):
        return encode_frame(STATUS, encode_status(one))
    return encode_message(one)


class Stage:
    """A network of four validators of equal power, of which one is real."""

    def __init__(self, folder: Path, **link: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.cluster = Cluster(folder, seed=1, **link)
        genesis = encode_genesis(self.cluster.genesis)
        self.ghost = Chain.open(folder / "ghost", genesis, store=MemoryKV())
        self.set = self.ghost.tip.validators
        by_key = {node.identity.key: node for node in self.cluster.nodes}
        self.turns = [self.set.proposer(round) for round in range(4)]
        self.node: Node = by_key[self.turns[3]]
        self.identity = {key: node.identity for key, node in by_key.items()}
        self.puppets = [Puppet(self, self.identity[key]) for key in self.turns[:3]]

    # --- what can be said

    def place(self, key: bytes) -> int:
        place = self.set.index(key)
        assert place is not None
        return place

    def block(self, round: int = 0, *transactions: bytes, later_ms: int = 0) -> Block:
        """The next block by the proposer of `round`, of this moment on the mock clock."""
        time_ms = self.node.now_ms() - self.node.skew_ms + later_ms
        return self.ghost.build(
            proposer=self.turns[round],
            time_ms=time_ms,
            payload=Payload(transactions),
            last_certificate=self.ghost.certificate(self.ghost.height),
        )

    def commit(self, block: Block) -> Certificate:
        """Let the ghost's chain go on by this block."""
        proof = self.certificate(block)
        self.ghost.commit(proof.block_id, proof)
        return proof

    def _signed(self, key: bytes, message: Vote | Proposal) -> Vote | Proposal:
        bound = signing_bytes(tag_of(message), self.cluster.chain_id, message.body())
        return signed(message, self.identity[key].sign(bound))

    def proposal(
        self, block: Block, round: int = 0, polka: Certificate | None = None
    ) -> Proposal:  # fmt: skip
        header = decode_header(block.header)
        pol_round = -1 if polka is None else polka.round
        bare = Proposal(header.height, round, pol_round, header, polka)
        made = self._signed(self.turns[round], bare)
        assert isinstance(made, Proposal)
        return made

    def vote(
        self, key: bytes, kind: int, block_id: bytes, round: int = 0, height: int = 1
    ) -> Vote:  # fmt: skip
        made = self._signed(key, Vote(kind, height, round, block_id, self.place(key)))
        assert isinstance(made, Vote)
        return made

    def certificate(self, block: Block, kind: int = PRECOMMIT, round: int = 0) -> Certificate:
        """Signed by the three puppets."""
        header = decode_header(block.header)
        block_id = header.block_id()
        by = {
            self.place(key): self.vote(key, kind, block_id, round, header.height).signature
            for key in self.turns[:3]
        }
        return make_certificate(kind, header.height, round, block_id, by, 4)

    async def all_vote(self, kind: int, block_id: bytes, round: int = 0, height: int = 1) -> None:
        """Each puppet says its own vote; then they have arrived."""
        for puppet in self.puppets:
            await puppet.say(self.vote(puppet.identity.key, kind, block_id, round, height))
        await trio.sleep(0.1)

    @property
    def state(self) -> str:
        return self.node.replica.statistics().state

    @property
    def counters(self) -> dict[str, int]:
        return self.node.replica.statistics().counters


@asynccontextmanager
async def playing(stage: Stage) -> AsyncIterator[Stage]:
    """All on; the node under test has met the puppets and has a stream to each."""
    with deterministic(1):  # a failure must be the same one tomorrow
        async with trio.open_nursery() as nursery:
            stage.cluster.nursery = nursery
            await _meet(stage, nursery)
            yield stage
            nursery.cancel_scope.cancel()


async def _meet(stage: Stage, nursery: trio.Nursery) -> None:
    for puppet in stage.puppets:
        await nursery.start(puppet.network.run)
    await stage.cluster.start(stage.node)
    await trio.sleep(4)
    assert stage.node.replica.statistics().live_streams == 3


def id_of(block: Block) -> bytes:
    return decode_header(block.header).block_id()
