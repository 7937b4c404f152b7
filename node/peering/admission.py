"""What may reach the engine: each message checked once, the cheapest check first.

Order: height, round window, member, exact duplicate, then signatures. A wrong signature or shape
is the sender's fault (`Invalid`); late, early or double is nobody's, and is dropped and counted.
Why at most two different votes of a member per round and kind are let through: the second is the
evidence, a third proves nothing new.
What this file does not know: blocks, and what the engine makes of a message.
"""

from collections import Counter
from typing import Final, NamedTuple

from consensus.certificate import PRECOMMIT, Certificate, verify_certificate
from consensus.messages import Message, Proposal, Vote, verify_proposal, verify_vote
from consensus.params import OLD_ROUNDS_MAX, ROUNDS_AHEAD_MAX
from consensus.primitives.errors import Invalid
from consensus.validators import ValidatorSet

DIFFERENT_MAX: Final = 2  # bodies of one member for one (round, kind)
CERTIFICATES_MAX: Final = 512  # different ones remembered per height

HELD_FRAMES_MAX: Final = 8  # of the next height, per peer
HELD_BYTES_MAX: Final = 64 << 10
HELD_PEERS_MAX: Final = 256


class HeldFrame(NamedTuple):
    """A frame of the next height, unchecked until this one is committed."""

    peer: bytes
    kind: int
    body: bytes
    received_ms: int


class Admission:
    """Checks messages of one height, and late precommits of the one before."""

    def __init__(self, chain_id: bytes) -> None:
        self._chain_id = chain_id
        self.height = 0
        self.counters: Counter[str] = Counter()
        self._validators: ValidatorSet | None = None
        self._before: ValidatorSet | None = None
        self._last: Certificate | None = None
        self._votes: dict[tuple[int, int, int], tuple[bytes, ...]] = {}
        self._proposals: dict[int, tuple[bytes, ...]] = {}
        self._certificates: set[tuple[int, int, bytes]] = set()
        self._ahead: dict[int, int] = {}  # member → its highest round far above
        self._late: set[int] = set()
        self._held: dict[bytes, list[HeldFrame]] = {}

    def begin(
        self,
        height: int,
        validators: ValidatorSet,
        before: ValidatorSet | None,
        last: Certificate | None,
    ) -> list[HeldFrame]:
        """Admit messages of `height` from now on; returns the frames that were held for it."""
        waited = self._held if height == self.height + 1 else {}
        self.height, self._validators = height, validators
        self._before, self._last = before, last
        self._votes, self._proposals, self._ahead = {}, {}, {}
        self._certificates, self._late, self._held = set(), set(), {}
        return [frame for frames in waited.values() for frame in frames]

    def hold(self, peer: bytes, kind: int, body: bytes, received_ms: int) -> bool:
        """Keep a frame of the next height; False and counted when the peer's share is full."""
        frames = self._held.get(peer)
        if frames is None:
            if len(self._held) >= HELD_PEERS_MAX:
                self.counters["held_full"] += 1
                return False
            frames = self._held[peer] = []
        size = sum(len(frame.body) for frame in frames) + len(body)
        if len(frames) >= HELD_FRAMES_MAX or size > HELD_BYTES_MAX:
            self.counters["held_full"] += 1
            return False
        frames.append(HeldFrame(peer, kind, body, received_ms))
        return True

    def admit(self, message: Message, round: int) -> bool:
        """Whether the engine should see `message` while it is in `round`; raises `Invalid`."""
        assert self._validators is not None
        if message.height != self.height:
            return isinstance(message, Vote) and self._admit_late(message)
        if message.round < round - OLD_ROUNDS_MAX and not isinstance(message, Certificate):
            return self._drop("old_round")
        match message:
            case Vote():
                return self._admit_vote(message, round, self._validators)
            case Proposal():
                return self._admit_proposal(message, round, self._validators)
            case Certificate():
                return self._admit_certificate(message, self._validators)

    def _drop(self, why: str) -> bool:
        self.counters[why] += 1
        return False

    def _admit_vote(self, vote: Vote, round: int, validators: ValidatorSet) -> bool:
        if vote.index >= len(validators):
            raise Invalid("vote.member", index=vote.index)
        if vote.round > round + ROUNDS_AHEAD_MAX:
            return self._admit_ahead(vote.index, vote.round) and self._good(vote, validators)
        place = (vote.round, vote.kind, vote.index)
        known = self._votes.get(place, ())
        if vote.block_id in known or len(known) >= DIFFERENT_MAX:
            return self._drop("duplicate")
        verify_vote(vote, validators, self._chain_id)
        self._votes[place] = (*known, vote.block_id)
        return True

    def _good(self, vote: Vote, validators: ValidatorSet) -> bool:
        verify_vote(vote, validators, self._chain_id)
        self._ahead[vote.index] = vote.round
        return True

    def _admit_ahead(self, member: int, round: int) -> bool:
        """Far above our round only a member's highest word matters."""
        return self._ahead.get(member, -1) < round or self._drop("far_ahead")

    def _admit_proposal(self, proposal: Proposal, round: int, validators: ValidatorSet) -> bool:
        # Whose turn a far round is takes as many steps to find: votes alone lead there.
        if proposal.round > round + ROUNDS_AHEAD_MAX:
            return self._drop("far_ahead")
        known = self._proposals.get(proposal.round, ())
        if proposal.body() in known or len(known) >= DIFFERENT_MAX:
            return self._drop("duplicate")
        verify_proposal(proposal, validators, self._chain_id)
        self._proposals[proposal.round] = (*known, proposal.body())
        return True

    def _admit_certificate(self, certificate: Certificate, validators: ValidatorSet) -> bool:
        place = (certificate.kind, certificate.round, certificate.block_id)
        if place in self._certificates or len(self._certificates) >= CERTIFICATES_MAX:
            return self._drop("duplicate")
        verify_certificate(certificate, validators, self._chain_id)
        self._certificates.add(place)
        return True

    def _admit_late(self, vote: Vote) -> bool:
        last, before = self._last, self._before
        if last is None or before is None:
            return self._drop("other_height")
        if (vote.kind, vote.height, vote.round, vote.block_id) != (
            PRECOMMIT,
            last.height,
            last.round,
            last.block_id,
        ):
            return self._drop("other_height")
        if vote.index in self._late or vote.index in last.by_member():
            return self._drop("duplicate")
        verify_vote(vote, before, self._chain_id)
        self._late.add(vote.index)
        return True
