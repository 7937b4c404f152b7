"""Who is told what: validators by their streams, followers by gossip, who lags by an answer.

Why two ways: a stream loses nothing and takes one delay; gossip reaches those that nobody has a
stream to, so a vote goes there only while some validator cannot be reached directly.
What this file does not know: what is worth saying, and whether it was believed.
"""

from typing import Final

import trio

from consensus.certificate import Certificate, encode_certificate
from consensus.engine import STEP_DECIDED, Engine
from consensus.messages import (
    BLOCK,
    CERTIFICATE,
    PROPOSAL,
    STATUS,
    VOTE,
    Message,
    Proposal,
    Status,
    Vote,
    encode_frame,
    encode_message,
    encode_proposal,
    encode_status,
    encode_vote,
)
from node.ledger.wire.blocks import encode_block
from node.peering.inbox import Means
from node.peering.streams import ValidatorStreams
from node.peering.topics import VOTES, encode_vote_message
from node.peering.undecided import Undecided
from p2p.errors import NetworkError
from p2p.limits import TokenBucket
from p2p.network import PeerId

ANSWER_BYTES_MAX: Final = 64 << 10  # to one status
ANSWERS_S: Final = 4


class Sender:
    """Everything that leaves a replica, but for requests."""

    def __init__(self, means: Means, *, streams: ValidatorStreams, undecided: Undecided) -> None:
        self._means = means
        self._streams = streams
        self._undecided = undecided
        self._answers: dict[PeerId, TokenBucket] = {}

    def send(self, message: Message) -> None:
        """To every validator; and by gossip where a direct way is missing, or for followers."""
        place = message.height, message.round
        self._streams.send_to_all(encode_message(message), place)
        if isinstance(message, Proposal):
            block = self._undecided.find(message.block_id)
            if block is not None and message.pol_round < 0:
                self._streams.send_to_all(encode_frame(BLOCK, encode_block(block)), place)
            self._means.spawn(self.publish, PROPOSAL, encode_proposal(message))
        elif isinstance(message, Vote) and not self._streams.are_all_live():
            self._means.spawn(self.publish, VOTE, encode_vote(message))

    def tell_decision(self, certificate: Certificate) -> None:
        """To followers, by gossip: their certificate for the block they have heard of."""
        self._means.spawn(self.publish, CERTIFICATE, encode_certificate(certificate))

    async def publish(self, kind: int, body: bytes) -> None:
        """By gossip to everyone."""
        try:
            await self._means.network.publish(VOTES, encode_vote_message(kind, body))
        except NetworkError:
            self._means.counters["gossip_failed"] += 1  # the second path only: the streams go on

    def tell_status(self, status: Status) -> None:
        """Ask every validator for what this status lacks."""
        frame = encode_frame(STATUS, encode_status(status))
        self._streams.send_to_all(frame, (status.height, status.round))

    def answer(self, peer: PeerId, status: Status, engine: Engine) -> None:
        """Send a validator at our height or below what it lacks; a certificate if it is behind."""
        now_s = trio.current_time()
        bucket = self._answers.setdefault(peer, TokenBucket(ANSWERS_S, ANSWERS_S, now_s))
        if not bucket.take(now_s):
            self._means.counters["answers_dropped"] += 1
            return
        height = self._means.chain.height
        if status.height == height + 1:
            for message in engine.missing(status, ANSWER_BYTES_MAX):
                self._send_to(peer, message)
            return
        certificate = self._certificate(status.height)
        if certificate is not None and status.step != STEP_DECIDED:
            self._send_to(peer, certificate)
        if status.height < height:
            ours = engine.status()
            frame = encode_frame(STATUS, encode_status(ours))
            self._streams.send(peer, frame, (ours.height, ours.round))

    def _certificate(self, height: int) -> Certificate | None:
        tip = self._means.chain.tip
        if height == tip.height:
            return tip.certificate
        return self._means.chain.certificate(height) if height >= 1 else None

    def _send_to(self, peer: PeerId, message: Message) -> None:
        self._streams.send(peer, encode_message(message), (message.height, message.round))
