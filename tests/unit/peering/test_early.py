"""Messages before their height: kept up to a limit, and what calls for the height to begin."""

import pytest
from simulation.engines import SIGNATURE, header, key

from consensus.certificate import PRECOMMIT, PREVOTE, make_certificate
from consensus.header import NIL
from consensus.messages import Proposal, Vote
from consensus.validators import ValidatorSet
from node.peering.early import EARLY_MAX, Early
from p2p.network import PeerId

EQUAL = ValidatorSet.found({key(n): 1 for n in range(3)})
PEER = PeerId(b"p" * 32)
PROPOSAL = Proposal(1, 0, -1, header(EQUAL.proposer(0), mark=1), None, SIGNATURE)


def vote(member: int, kind: int = PREVOTE) -> Vote:
    return Vote(kind, 1, 0, NIL, member, SIGNATURE)


def early(*messages: object) -> Early:
    made = Early()
    for message in messages:
        assert made.keep(message, 5, PEER)  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize(
    ("messages", "is_calling"),
    [
        ((), False),
        ((vote(0),), False),  # one third exactly
        ((vote(0), vote(0, PRECOMMIT)), False),  # one member alone cannot force a height
        ((vote(0), vote(1)), True),
        ((PROPOSAL,), True),
        ((make_certificate(PREVOTE, 1, 0, b"b" * 32, {0: SIGNATURE}, 3),), False),
        ((make_certificate(PREVOTE, 1, 0, b"b" * 32, {0: SIGNATURE, 2: SIGNATURE}, 3),), True),
    ],
    ids=["nobody", "a third", "a third twice", "more", "the proposer", "signer", "signers"],
)
def test_height_is_called_by_its_proposer_or_by_more_than_a_third(
    messages: tuple[object, ...], is_calling: bool
) -> None:
    assert early(*messages).is_calling(EQUAL) is is_calling


def test_power_calls_and_not_heads() -> None:
    uneven = ValidatorSet.found({key(0): 5, key(1): 1, key(2): 1})
    assert early(vote(0)).is_calling(uneven)
    assert not early(vote(1), vote(2)).is_calling(uneven)


def test_messages_come_out_once_in_the_order_they_came_with_their_arrival() -> None:
    made = early(vote(1), PROPOSAL)
    assert [tuple(found) for found in made.take()] == [(vote(1), 5, PEER), (PROPOSAL, 5, PEER)]
    assert made.take() == []


def test_offer_is_known_by_its_block_until_it_is_taken() -> None:
    made = early(PROPOSAL)
    assert made.has_offer_of(PROPOSAL.block_id)
    assert not made.has_offer_of(b"x" * 32)
    made.take()
    assert not made.has_offer_of(PROPOSAL.block_id)


def test_vote_for_a_block_is_no_offer_of_it() -> None:
    assert not early(Vote(PREVOTE, 1, 0, b"b" * 32, 0, SIGNATURE)).has_offer_of(b"b" * 32)


def test_no_more_are_kept_than_the_limit() -> None:
    made = early(*[vote(0)] * (EARLY_MAX - 1))
    assert made.keep(vote(0), 5, PEER)
    assert not made.keep(PROPOSAL, 5, PEER)
    assert not made.is_calling(EQUAL), "what was not kept calls for nothing"
    assert len(made.take()) == EARLY_MAX


def test_another_height_begins_with_nothing() -> None:
    made = early(PROPOSAL, vote(0), vote(1))
    made.clear()
    assert made.take() == []
    assert not made.is_calling(EQUAL)
