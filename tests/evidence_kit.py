"""Evidence made by signing: two words of one member, or a block that light clients believe."""

from collections.abc import Iterable
from typing import Any

from bundle_kit import Party

from consensus.attacks import LightClientAttack, encode_attack
from consensus.certificate import PRECOMMIT, PREVOTE, make_certificate, vote_body
from consensus.evidence import DuplicateProposal, DuplicateVote, encode_evidence, two_votes
from consensus.header import Header
from consensus.messages import Vote, signed
from consensus.primitives.digest import signing_bytes
from consensus.skipping import LightBlock
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


def lie(
    header: Header,
    validators: ValidatorSet,
    signers: Iterable[Party],
    *,
    round: int = 0,
    following: ValidatorSet | None = None,
    **fields: Any,
) -> LightBlock:
    """A block beside `header`: with these fields and this set, signed by some of its members."""
    following = following or validators
    header = header._replace(
        validators_hash=validators.hash(), next_validators_hash=following.hash()
    )._replace(**fields)
    block_id = header.block_id()
    body = vote_body(PRECOMMIT, header.height, round, block_id)
    message = signing_bytes(b"vote", header.chain_id, body)
    signed: dict[int, bytes] = {}
    for who in signers:
        index = validators.index(who.key)
        assert index is not None
        signed[index] = who.sign(message)
    commit = make_certificate(PRECOMMIT, header.height, round, block_id, signed, len(validators))
    return LightBlock(header, commit, validators, following)


def raw_attack(
    common: int, header: Header, validators: ValidatorSet, signers: Iterable[Party], **fields: Any
) -> bytes:
    """The bytes of an attack by such a block."""
    return encode_attack(LightClientAttack(common, lie(header, validators, signers, **fields)))
