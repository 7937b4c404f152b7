"""Evidence: one offence, one encoding; and nobody is guilty of less than two of its own words.

`test_messages.py` holds the plain cases of both kinds.
"""

from dataclasses import replace

import pytest
from simulation.engines import CHAIN_ID, header

from consensus.certificate import PRECOMMIT, PREVOTE
from consensus.evidence import (
    DuplicateProposal,
    DuplicateVote,
    Evidence,
    decode_evidence,
    encode_evidence,
    evidence_height,
    evidence_id,
    two_proposals,
    two_votes,
    verify_evidence,
)
from consensus.messages import Proposal, Vote, signed, tag_of
from consensus.params import EVIDENCE_BYTES_MAX
from consensus.primitives.digest import sha256, signing_bytes
from consensus.primitives.errors import Invalid
from consensus.primitives.keys import public_key, sign
from consensus.validators import ValidatorSet

SEEDS = [sha256(b"liar %d" % n) for n in range(4)]
SEED_OF = {public_key(seed): seed for seed in SEEDS}
VALIDATORS = ValidatorSet.found({public_key(seed): 1 for seed in SEEDS})
A, B = b"a" * 32, b"b" * 32


def said_by(place: int, message: Vote | Proposal) -> Vote | Proposal:
    seed = SEED_OF[VALIDATORS.members[place].key]
    return signed(message, sign(seed, signing_bytes(tag_of(message), CHAIN_ID, message.body())))


def vote(block_id: bytes, place: int = 1, kind: int = PREVOTE, height: int = 3, round: int = 2,
         by: int | None = None) -> Vote:  # fmt: skip
    made = said_by(place if by is None else by, Vote(kind, height, round, block_id, place))
    assert isinstance(made, Vote)
    return made


def proposal(mark: int, place: int = 1, round: int = 2, pol_round: int = -1) -> Proposal:
    block = header(VALIDATORS.members[place].key, height=3, mark=mark)
    made = said_by(place, Proposal(3, round, pol_round, block))
    assert isinstance(made, Proposal)
    return made


def refused(evidence: Evidence) -> str:
    with pytest.raises(Invalid) as refusal:
        verify_evidence(evidence, VALIDATORS, CHAIN_ID)
    return refusal.value.code


def refused_bytes(raw: bytes) -> str:
    with pytest.raises(Invalid) as refusal:
        decode_evidence(raw)
    return refusal.value.code


VOTES = two_votes(vote(A), vote(B))
PROPOSALS = two_proposals(proposal(1), proposal(2), 1)


@pytest.mark.parametrize("evidence", [VOTES, PROPOSALS], ids=["votes", "proposals"])
def test_evidence_survives_its_encoding_and_convicts_one_key(evidence: Evidence) -> None:
    raw = encode_evidence(evidence)
    assert decode_evidence(raw) == evidence
    assert evidence_id(evidence) == sha256(raw)
    assert evidence_height(evidence) == 3
    assert verify_evidence(evidence, VALIDATORS, CHAIN_ID) == (VALIDATORS.members[1].key,)


def test_one_offence_has_one_name_whoever_saw_which_word_first() -> None:
    assert evidence_id(two_votes(vote(B), vote(A))) == evidence_id(VOTES)
    assert evidence_id(two_proposals(proposal(2), proposal(1), 1)) == evidence_id(PROPOSALS)
    turned = DuplicateVote(VOTES.second, VOTES.first)
    assert refused_bytes(encode_evidence(turned)) == "evidence.order"


def test_nil_and_a_block_are_two_words() -> None:
    evidence = two_votes(vote(A), vote(bytes(32)))
    assert evidence.first.block_id == bytes(32)
    assert verify_evidence(evidence, VALIDATORS, CHAIN_ID)


def test_one_block_offered_as_new_and_as_old_is_two_words() -> None:
    evidence = two_proposals(proposal(1), proposal(1, pol_round=0), 1)
    assert verify_evidence(evidence, VALIDATORS, CHAIN_ID)


@pytest.mark.parametrize(
    "other",
    [
        vote(B, kind=PRECOMMIT),
        vote(B, height=4),
        vote(B, round=3),
        vote(B, place=2),
    ],
    ids=["another kind", "another height", "another round", "another member"],
)
def test_words_that_may_stand_together_are_no_evidence(other: Vote) -> None:
    with pytest.raises(AssertionError):
        two_votes(vote(A), other)
    both = DuplicateVote(*sorted((vote(A), other), key=Vote.body))
    assert refused(both) == "evidence.unrelated"
    assert refused_bytes(encode_evidence(both)) == "evidence.unrelated"


def test_same_word_with_another_signature_is_no_evidence() -> None:
    again = replace(vote(A), signature=bytes(64))
    with pytest.raises(AssertionError):
        two_votes(vote(A), again)
    assert refused(DuplicateVote(vote(A), again)) == "evidence.order"
    body = PROPOSALS.first_body
    same = replace(PROPOSALS, second_body=body, second_signature=bytes(64))
    assert refused(same) == "evidence.order"


def test_each_of_the_two_must_be_signed_by_the_guilty_one() -> None:
    for first, second in ((vote(A, by=2), vote(B)), (vote(A), vote(B, by=2))):
        assert refused(DuplicateVote(first, second)) == "vote.signature"
    for forged in (
        replace(PROPOSALS, first_signature=PROPOSALS.second_signature),
        replace(PROPOSALS, second_signature=PROPOSALS.first_signature),
        replace(PROPOSALS, index=2),
    ):
        assert refused(forged) == "evidence.signature"


def test_words_of_another_chain_convict_nobody() -> None:
    for evidence in (VOTES, PROPOSALS):
        with pytest.raises(Invalid):
            verify_evidence(evidence, VALIDATORS, b"d" * 32)


def test_member_beyond_the_set_is_refused() -> None:
    last = replace(PROPOSALS, index=len(VALIDATORS) - 1)
    assert refused(last) == "evidence.signature"
    assert refused(replace(PROPOSALS, index=len(VALIDATORS))) == "evidence.member"
    beyond = DuplicateVote(replace(VOTES.first, index=4), replace(VOTES.second, index=4))
    assert refused(beyond) == "evidence.member"


def test_proposals_of_two_rounds_or_heights_are_unrelated() -> None:
    for other in (proposal(2, round=3).body(), bytes(7) + b"\4" + proposal(2).body()[8:]):
        one, two = sorted((PROPOSALS.first_body, other))
        apart = DuplicateProposal(one, bytes(64), two, bytes(64), 1)
        assert refused(apart) == "evidence.unrelated"
        assert refused_bytes(encode_evidence(apart)) == "evidence.unrelated"


def test_size_is_looked_at_before_anything_else() -> None:
    assert refused_bytes(bytes(EVIDENCE_BYTES_MAX + 1)) == "evidence.too_large"
    assert refused_bytes(bytes(EVIDENCE_BYTES_MAX)) == "evidence.kind"
    assert refused_bytes(b"") == "evidence.kind"


@pytest.mark.parametrize("evidence", [VOTES, PROPOSALS], ids=["votes", "proposals"])
def test_shortened_or_lengthened_evidence_is_refused(evidence: Evidence) -> None:
    raw = encode_evidence(evidence)
    for length in range(len(raw)):
        assert refused_bytes(raw[:length]).startswith(("evidence.", "vote."))
    assert refused_bytes(raw + b"\0") == "evidence.malformed"
