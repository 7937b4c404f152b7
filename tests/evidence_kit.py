"""Evidence made by signing: two words of one member where it may say one."""

from bundle_kit import Party

from consensus.certificate import PREVOTE
from consensus.evidence import DuplicateProposal, DuplicateVote, encode_evidence, two_votes
from consensus.messages import Vote, signed
from consensus.primitives.digest import signing_bytes
from consensus.validators import ValidatorSet

A, B = b"a" * 32, b"b" * 32


def vote(
    who: Party,
    validators: ValidatorSet,
    chain_id: bytes,
    height: int,
    block_id: bytes,
    round: int = 0,
    kind: int = PREVOTE,
) -> Vote:
    """A signed vote; a stranger signs as member 0."""
    index = validators.index(who.key) or 0
    bare = Vote(kind, height, round, block_id, index)
    made = signed(bare, who.sign(signing_bytes(b"vote", chain_id, bare.body())))
    assert isinstance(made, Vote)
    return made


def double_vote(
    who: Party,
    validators: ValidatorSet,
    chain_id: bytes,
    height: int,
    *,
    round: int = 0,
    kind: int = PREVOTE,
    ids: tuple[bytes, bytes] = (A, B),
) -> DuplicateVote:
    """Two votes of one member for one (height, round, kind)."""
    one, other = (
        vote(who, validators, chain_id, height, block_id, round, kind) for block_id in ids
    )
    return two_votes(one, other)


def double_proposal(
    who: Party, validators: ValidatorSet, chain_id: bytes, height: int, *, round: int = 0
) -> DuplicateProposal:
    """Two proposals of one member for one (height, round)."""
    head = height.to_bytes(8, "big") + round.to_bytes(4, "big") + bytes(4)
    words = []
    for block_id in (A, B):
        body = head + block_id
        words += [body, who.sign(signing_bytes(b"proposal", chain_id, body))]
    return DuplicateProposal(*words, validators.index(who.key) or 0)


def raw_double_vote(
    who: Party, validators: ValidatorSet, chain_id: bytes, height: int, **fields: int
) -> bytes:
    """The bytes of one."""
    return encode_evidence(double_vote(who, validators, chain_id, height, **fields))
