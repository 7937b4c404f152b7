"""What validators say to each other: votes, proposals, and what they already have.

Why a vote has a fixed width: it is the most frequent message, signed and stored as it is, and a
validator's whole duty is never to sign two bodies with one head.
What this file does not know: streams, queues, and whether a proposal's block is any good.
"""

from dataclasses import dataclass, field, replace
from typing import Final

from consensus.certificate import (
    PRECOMMIT,
    PREVOTE,
    VOTE_TAG,
    Certificate,
    check_certificate,
    decode_certificate,
    encode_certificate,
    verify_certificate,
    vote_body,
)
from consensus.header import NIL, Header, decode_header, encode_header
from consensus.params import (
    BLOCK_BYTES_MAX,
    CERTIFICATE_BYTES_MAX,
    EVIDENCE_BYTES_MAX,
    HEADER_BYTES_MAX,
    PROPOSAL_BYTES_MAX,
    ROUND_MAX,
    STATUS_BYTES_MAX,
    VALIDATORS_MAX,
)
from consensus.primitives.digest import HASH_BYTES, signing_bytes
from consensus.primitives.encoding import SIG, U8, U32, U63, Bytes, Record, decode, encode
from consensus.primitives.errors import Invalid
from consensus.primitives.keys import SIGNATURE_BYTES, verify_signature
from consensus.validators import ValidatorSet

PROPOSAL_TAG: Final = b"proposal"
PROPOSAL_VERSION: Final = 1
VOTE_BODY_BYTES: Final = 45
VOTE_BYTES: Final = VOTE_BODY_BYTES + 2 + SIGNATURE_BYTES

# Kinds of frames between validators (page 20 §7).
PROPOSAL, BLOCK, VOTE, CERTIFICATE, STATUS, EVIDENCE = range(6)

FRAME_BODY_MAX: Final = (
    PROPOSAL_BYTES_MAX,
    BLOCK_BYTES_MAX,
    VOTE_BYTES,
    CERTIFICATE_BYTES_MAX,
    STATUS_BYTES_MAX,
    EVIDENCE_BYTES_MAX,
)
FRAME_OVERHEAD: Final = 16  # of the array around kind and body
FRAME_BYTES_MAX: Final = BLOCK_BYTES_MAX + FRAME_OVERHEAD
MESSAGE_BYTES_MAX: Final = PROPOSAL_BYTES_MAX + FRAME_OVERHEAD

_FRAME = Record(U8, Bytes(BLOCK_BYTES_MAX, 1))
_PROPOSAL = Record(U8, U63, U32, U32, Bytes(HEADER_BYTES_MAX, 1), Bytes(CERTIFICATE_BYTES_MAX), SIG)
_BITMAP = Bytes((VALIDATORS_MAX + 7) // 8)
_STATUS = Record(U63, U32, U8, U8, _BITMAP, _BITMAP)


@dataclass(frozen=True, slots=True)
class Vote:
    """A prevote or precommit of member `index`; unsigned while `signature` is empty."""

    kind: int
    height: int
    round: int
    block_id: bytes
    index: int
    signature: bytes = b""

    def body(self) -> bytes:
        """The 45 bytes that are signed."""
        return vote_body(self.kind, self.height, self.round, self.block_id)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A header offered for (height, round); `polka` comes with it when it is offered again."""

    height: int
    round: int
    pol_round: int  # −1: offered for the first time
    header: Header
    polka: Certificate | None = None
    signature: bytes = b""
    block_id: bytes = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_id", self.header.block_id())

    def body(self) -> bytes:
        """The 48 bytes that are signed."""
        numbers = self.height.to_bytes(8, "big") + self.round.to_bytes(4, "big")
        return numbers + (self.pol_round + 1).to_bytes(4, "big") + self.block_id


@dataclass(frozen=True, slots=True)
class Status:
    """What a validator has of its height; whoever has more sends the difference."""

    height: int
    round: int
    step: int
    has_proposal: bool
    prevotes: bytes  # bitmap over the set, of this round
    precommits: bytes


Message = Proposal | Vote | Certificate


def signed(message: Vote | Proposal, signature: bytes) -> Vote | Proposal:
    """The same message with its signature."""
    return replace(message, signature=signature)


def tag_of(message: Vote | Proposal) -> bytes:
    """The signing tag of a message of ours."""
    return VOTE_TAG if isinstance(message, Vote) else PROPOSAL_TAG


def encode_vote(vote: Vote) -> bytes:
    """111 bytes."""
    assert len(vote.signature) == SIGNATURE_BYTES
    return vote.body() + vote.index.to_bytes(2, "big") + vote.signature


def decode_vote(raw: bytes) -> Vote:
    """The vote; `Invalid` `vote.size`, `vote.kind` or `vote.height`."""
    if len(raw) != VOTE_BYTES:
        raise Invalid("vote.size", bytes=len(raw))
    kind, height = raw[0], int.from_bytes(raw[1:9], "big")
    round, block_id = int.from_bytes(raw[9:13], "big"), raw[13:45]
    if kind not in (PREVOTE, PRECOMMIT):
        raise Invalid("vote.kind", kind=kind)
    if not 1 <= height < 2**63 or round > ROUND_MAX:
        raise Invalid("vote.height", height=height, round=round)
    return Vote(kind, height, round, block_id, int.from_bytes(raw[45:47], "big"), raw[47:])


def encode_proposal(proposal: Proposal) -> bytes:
    """At most PROPOSAL_BYTES_MAX, whatever the polka."""
    polka = encode_certificate(proposal.polka) if proposal.polka else b""
    return encode(
        (
            PROPOSAL_VERSION,
            proposal.height,
            proposal.round,
            proposal.pol_round + 1,
            encode_header(proposal.header),
            polka,
            proposal.signature,
        )
    )


def decode_proposal(raw: bytes) -> Proposal:
    """The proposal; `Invalid` `proposal.…`, also when its polka is missing or not its own."""
    version, height, round, pol_next, header_raw, polka_raw, signature = decode(
        raw, _PROPOSAL, PROPOSAL_BYTES_MAX, "proposal"
    )
    if version != PROPOSAL_VERSION:
        raise Invalid("proposal.version", version=version)
    header, pol_round = decode_header(header_raw), pol_next - 1
    if header.height != height or round > ROUND_MAX:
        raise Invalid("proposal.height", height=height, round=round)
    if pol_round >= round:
        raise Invalid("proposal.pol_round", round=round, pol_round=pol_round)
    if (pol_round >= 0) != bool(polka_raw):
        raise Invalid("proposal.polka", why="present exactly when offered again")
    polka = decode_certificate(polka_raw) if polka_raw else None
    proposal = Proposal(height, round, pol_round, header, polka, signature)
    if polka is not None and (polka.kind, polka.height, polka.round, polka.block_id) != (
        PREVOTE,
        height,
        pol_round,
        proposal.block_id,
    ):
        raise Invalid("proposal.polka", why="of another block or round")
    return proposal


def encode_status(status: Status) -> bytes:
    """A few dozen bytes."""
    return encode(
        (
            status.height,
            status.round,
            status.step,
            int(status.has_proposal),
            status.prevotes,
            status.precommits,
        )
    )


def decode_status(raw: bytes) -> Status:
    """The status; `Invalid` `status.…`."""
    height, round, step, has_proposal, prevotes, precommits = decode(
        raw, _STATUS, STATUS_BYTES_MAX, "status"
    )
    if round > ROUND_MAX or has_proposal > 1:
        raise Invalid("status.malformed", round=round)
    return Status(height, round, step, bool(has_proposal), prevotes, precommits)


def encode_frame(kind: int, body: bytes) -> bytes:
    """`[kind, body]`, as it travels between validators."""
    assert len(body) <= FRAME_BODY_MAX[kind]
    return encode((kind, body))


def decode_frame(raw: bytes) -> tuple[int, bytes]:
    """Kind and body of a frame; `Invalid` `frame.…` for an unknown kind or a body too large."""
    kind, body = decode(raw, _FRAME, FRAME_BYTES_MAX, "frame")
    if kind >= len(FRAME_BODY_MAX):
        raise Invalid("frame.kind", kind=kind)
    if len(body) > FRAME_BODY_MAX[kind]:
        raise Invalid("frame.too_large", kind=kind, bytes=len(body))
    return kind, body


def encode_message(message: Message) -> bytes:
    """A message as a frame: what is sent, and what the journal keeps."""
    match message:
        case Vote():
            return encode_frame(VOTE, encode_vote(message))
        case Proposal():
            return encode_frame(PROPOSAL, encode_proposal(message))
        case Certificate():
            return encode_frame(CERTIFICATE, encode_certificate(message))


def decode_message(data: bytes) -> Message:
    """The message in a frame of at most MESSAGE_BYTES_MAX; `Invalid`, size before anything."""
    if len(data) > MESSAGE_BYTES_MAX:
        raise Invalid("message.too_large", bytes=len(data))
    kind, body = decode_frame(data)
    return decode_body(kind, body)


def decode_body(kind: int, body: bytes) -> Message:
    """The message in the body of a frame; `Invalid("message.kind")` if that kind holds none."""
    if kind == VOTE:
        return decode_vote(body)
    if kind == PROPOSAL:
        return decode_proposal(body)
    if kind == CERTIFICATE:
        return decode_certificate(body)
    raise Invalid("message.kind", kind=kind)


def verify_vote(vote: Vote, validators: ValidatorSet, chain_id: bytes) -> None:
    """Raise `Invalid` unless the member it names signed it; one signature check."""
    if vote.index >= len(validators):
        raise Invalid("vote.member", index=vote.index)
    key = validators.members[vote.index].key
    message = signing_bytes(VOTE_TAG, chain_id, vote.body())
    verify_signature(key, message, vote.signature, "vote.signature")


def check_proposal(proposal: Proposal, validators: ValidatorSet) -> None:
    """Raise `Invalid` unless the round's own proposer could say this. No signatures.

    Who proposes stands in the header when a block is offered for the first time; when it is
    offered again, its header still names who made it.
    """
    if proposal.pol_round < 0 and proposal.header.proposer != validators.proposer(proposal.round):
        raise Invalid("proposal.proposer", round=proposal.round)
    if validators.index(proposal.header.proposer) is None:
        raise Invalid("proposal.proposer", round=proposal.round)
    if proposal.polka is not None:
        check_certificate(proposal.polka, validators)


def verify_proposal(proposal: Proposal, validators: ValidatorSet, chain_id: bytes) -> None:
    """Raise `Invalid` unless the round's proposer signed it and its polka is a quorum's."""
    check_proposal(proposal, validators)
    key = validators.proposer(proposal.round)
    message = signing_bytes(PROPOSAL_TAG, chain_id, proposal.body())
    verify_signature(key, message, proposal.signature, "proposal.signature")
    if proposal.polka is not None:
        verify_certificate(proposal.polka, validators, chain_id)


assert VOTE_BYTES == 111
assert len(NIL) == HASH_BYTES
