"""Messages of far rounds: votes lead there, a proposal never costs a search for its proposer."""

import time

from simulation.engines import CHAIN_ID, header, key

from consensus.messages import Proposal, Vote
from consensus.params import ROUND_MAX, ROUNDS_AHEAD_MAX
from consensus.primitives.digest import signing_bytes
from consensus.primitives.keys import public_key, sign
from consensus.validators import ValidatorSet
from node.peering.admission import Admission

SEEDS = [key(number) for number in range(4)]
SET = ValidatorSet.found({public_key(seed): 1 for seed in SEEDS})
SEED_OF = {public_key(seed): seed for seed in SEEDS}


def admission() -> Admission:
    door = Admission(CHAIN_ID)
    door.begin(1, SET, None, None)
    return door


def vote(round: int, member: int = 0) -> Vote:
    bare = Vote(1, 1, round, bytes(32), member)
    seed = SEED_OF[SET.members[member].key]
    signature = sign(seed, signing_bytes(b"vote", CHAIN_ID, bare.body()))
    return Vote(1, 1, round, bytes(32), member, signature)


def proposal(round: int, proposer: bytes) -> Proposal:
    bare = Proposal(1, round, -1, header(proposer))
    signature = sign(SEED_OF[proposer], signing_bytes(b"proposal", CHAIN_ID, bare.body()))
    return Proposal(1, round, -1, header(proposer), None, signature)


def test_proposal_within_reach_is_admitted_once() -> None:
    door = admission()
    offer = proposal(ROUNDS_AHEAD_MAX, SET.proposer(ROUNDS_AHEAD_MAX))
    assert door.admit(offer, 0)
    assert not door.admit(offer, 0)
    assert door.counters == {"duplicate": 1}


def test_proposal_of_a_far_round_is_dropped_before_its_proposer_is_sought() -> None:
    """Whose turn round 2^31 is takes 2^31 turns to find out: one unsigned frame stopped a node.

    Votes of that round are enough to skip to it."""
    door = admission()
    stranger = Proposal(1, ROUND_MAX, -1, header(key(9)), None, bytes(64))
    began_s = time.process_time()
    assert not door.admit(stranger, 0)
    assert time.process_time() - began_s < 1
    assert not door.admit(proposal(ROUNDS_AHEAD_MAX + 1, SET.members[0].key), 0)
    assert door.counters == {"far_ahead": 2}


def test_far_ahead_only_the_highest_word_of_a_member_counts() -> None:
    door = admission()
    admitted = [door.admit(vote(round), 0) for round in (50, 40, 50, 51, ROUND_MAX)]
    assert admitted == [True, False, False, True, True]
    assert door.counters == {"far_ahead": 2}
