"""Proof that a validator signed two things of which it may sign one.

Why the lower body comes first: one offence then has one encoding, hence one hash, and the ledger
punishes it once. Signatures are deterministic, but a liar's need not be: bodies decide.
What this file does not know: the punishment, and how old an offence may be.
"""

from dataclasses import dataclass
from typing import Final

from consensus.messages import (
    PROPOSAL_TAG,
    VOTE_BYTES,
    Proposal,
    Vote,
    decode_vote,
    encode_vote,
    verify_vote,
)
from consensus.params import EVIDENCE_BYTES_MAX
from consensus.primitives.digest import sha256, signing_bytes
from consensus.primitives.encoding import (
    SIG,
    U8,
    U16,
    Fixed,
    Record,
    decode,
    encode,
)
from consensus.primitives.errors import Invalid
from consensus.primitives.keys import verify_signature
from consensus.validators import ValidatorSet

TWO_VOTES: Final = 1
TWO_PROPOSALS: Final = 2
PROPOSAL_BODY_BYTES: Final = 48
HEAD_BYTES: Final = 12  # height and round at the front of a proposal's body

_VOTES = Record(U8, Fixed(VOTE_BYTES), Fixed(VOTE_BYTES))
_PROPOSALS = Record(U8, Fixed(PROPOSAL_BODY_BYTES), SIG, Fixed(PROPOSAL_BODY_BYTES), SIG, U16)


@dataclass(frozen=True, slots=True)
class DuplicateVote:
    """Two votes of one member for one (height, round, kind); the lower body first."""

    first: Vote
    second: Vote


@dataclass(frozen=True, slots=True)
class DuplicateProposal:
    """Two proposals of one member, `index`, for one (height, round); the lower body first."""

    first_body: bytes
    first_signature: bytes
    second_body: bytes
    second_signature: bytes
    index: int


Evidence = DuplicateVote | DuplicateProposal


def two_votes(one: Vote, other: Vote) -> DuplicateVote:
    """The evidence of two votes that cannot stand together, given in either order."""
    assert (one.kind, one.height, one.round, one.index) == (
        other.kind,
        other.height,
        other.round,
        other.index,
    )
    assert one.block_id != other.block_id
    first, second = sorted((one, other), key=Vote.body)
    return DuplicateVote(first, second)


def two_proposals(one: Proposal, other: Proposal, index: int) -> DuplicateProposal:
    """The evidence of two proposals for one (height, round), given in either order."""
    assert (one.height, one.round) == (other.height, other.round)
    assert one.body() != other.body()
    first, second = sorted((one, other), key=Proposal.body)
    return DuplicateProposal(first.body(), first.signature, second.body(), second.signature, index)


def encode_evidence(evidence: Evidence) -> bytes:
    """Canonical bytes; their SHA-256 names the offence in the ledger."""
    match evidence:
        case DuplicateVote(first, second):
            return encode((TWO_VOTES, encode_vote(first), encode_vote(second)))
        case DuplicateProposal():
            return encode(
                (
                    TWO_PROPOSALS,
                    evidence.first_body,
                    evidence.first_signature,
                    evidence.second_body,
                    evidence.second_signature,
                    evidence.index,
                )
            )


def decode_evidence(raw: bytes) -> Evidence:
    """The evidence; `Invalid` `evidence.…` unless it is in order and of two different bodies."""
    if len(raw) > EVIDENCE_BYTES_MAX:
        raise Invalid("evidence.too_large", bytes=len(raw))
    kind = raw[1] if len(raw) > 1 else 0  # behind the one byte of the array's head
    if kind == TWO_VOTES:
        _, one, other = decode(raw, _VOTES, EVIDENCE_BYTES_MAX, "evidence")
        votes = DuplicateVote(decode_vote(one), decode_vote(other))
        _check_votes(votes)
        return votes
    if kind == TWO_PROPOSALS:
        fields = decode(raw, _PROPOSALS, EVIDENCE_BYTES_MAX, "evidence")
        proposals = DuplicateProposal(*fields[1:])
        _check_proposals(proposals)
        return proposals
    raise Invalid("evidence.kind", kind=kind)


def _check_votes(evidence: DuplicateVote) -> None:
    one, other = evidence.first, evidence.second
    if (one.kind, one.height, one.round, one.index) != (
        other.kind,
        other.height,
        other.round,
        other.index,
    ):
        raise Invalid("evidence.unrelated")
    if one.body() >= other.body():
        raise Invalid("evidence.order")


def _check_proposals(evidence: DuplicateProposal) -> None:
    if evidence.first_body[:HEAD_BYTES] != evidence.second_body[:HEAD_BYTES]:
        raise Invalid("evidence.unrelated")
    if evidence.first_body >= evidence.second_body:
        raise Invalid("evidence.order")


def evidence_height(evidence: Evidence) -> int:
    """The height of the offence."""
    if isinstance(evidence, DuplicateVote):
        return evidence.first.height
    return int.from_bytes(evidence.first_body[:8], "big")


def evidence_id(evidence: Evidence) -> bytes:
    """SHA-256 of the encoding."""
    return sha256(encode_evidence(evidence))


def accused_members(evidence: Evidence, validators: ValidatorSet) -> tuple[bytes, ...]:
    """The keys it speaks of, of the set at that height; `Invalid` `evidence.member`.

    Costs no signature: it is asked before `verify_evidence`, which may find them innocent.
    """
    index = evidence.first.index if isinstance(evidence, DuplicateVote) else evidence.index
    if index >= len(validators):
        raise Invalid("evidence.member", index=index)
    return (validators.members[index].key,)


def verify_evidence(
    evidence: Evidence, validators: ValidatorSet, chain_id: bytes
) -> tuple[bytes, ...]:
    """The guilty keys, of the set at that height; `Invalid` if both signatures are not theirs."""
    (key,) = accused_members(evidence, validators)
    if isinstance(evidence, DuplicateVote):
        _check_votes(evidence)
        verify_vote(evidence.first, validators, chain_id)
        verify_vote(evidence.second, validators, chain_id)
        return (key,)
    _check_proposals(evidence)
    for body, signature in (
        (evidence.first_body, evidence.first_signature),
        (evidence.second_body, evidence.second_signature),
    ):
        message = signing_bytes(PROPOSAL_TAG, chain_id, body)
        verify_signature(key, message, signature, "evidence.signature")
    return (key,)
