"""The vote book: who counts, once; certificates as a whole; what is forgotten."""

from simulation.engines import SIGNATURE, key

from consensus.certificate import PRECOMMIT, PREVOTE, make_certificate
from consensus.header import NIL
from consensus.messages import Vote
from consensus.params import OLD_ROUNDS_MAX
from consensus.validators import ValidatorSet
from consensus.votes import VoteBook

SET = ValidatorSet.found({key(0): 3, key(1): 2, key(2): 1, key(3): 1})
A, B = b"a" * 32, b"b" * 32


def vote(member: int, block_id: bytes = A, kind: int = PREVOTE, round: int = 0) -> Vote:
    return Vote(kind, 1, round, block_id, member, SIGNATURE)


def test_power_is_counted_once_per_member() -> None:
    book = VoteBook(1, SET)
    for _ in range(3):
        assert book.add(vote(0)) is None
    assert (book.power(PREVOTE, 0, A), book.power_of_any(PREVOTE, 0)) == (3, 3)
    assert book.power(PRECOMMIT, 0, A) == book.power(PREVOTE, 1, A) == 0


def test_first_vote_stands_and_the_second_is_told_once() -> None:
    book = VoteBook(1, SET)
    book.add(vote(0))
    evidence = book.add(vote(0, B))
    assert evidence is not None
    assert {evidence.first.block_id, evidence.second.block_id} == {A, B}
    assert book.add(vote(0, NIL)) is None
    assert (book.power(PREVOTE, 0, A), book.power(PREVOTE, 0, B)) == (3, 0)


def test_certificate_counts_as_a_whole_and_any_member_once() -> None:
    book = VoteBook(1, SET)
    book.add(vote(0, B))
    signed = dict.fromkeys((0, 1), SIGNATURE)
    book.add_certificate(make_certificate(PREVOTE, 1, 0, A, signed, 4))
    assert book.power(PREVOTE, 0, A) == 5
    assert book.power(PREVOTE, 0, B) == 3
    assert book.power_of_any(PREVOTE, 0) == 5, "the equivocator is one member"
    assert book.polkas == {0: [A]}


def test_vote_that_stands_in_a_certificate_too_counts_once() -> None:
    """3 + 1 of 7 are no quorum; with the 3 counted twice they would be."""
    book = VoteBook(1, SET)
    book.add(vote(0))
    for _ in range(2):
        book.add_certificate(make_certificate(PREVOTE, 1, 0, A, {0: SIGNATURE, 2: SIGNATURE}, 4))
    book.add(vote(2))
    assert book.power(PREVOTE, 0, A) == book.power_of_any(PREVOTE, 0) == 4
    assert book.polkas == {}


def test_votes_and_certificates_make_one_fuller_certificate() -> None:
    book = VoteBook(1, SET)
    book.add(vote(3, A, PRECOMMIT))
    signed = dict.fromkeys((0, 1), SIGNATURE)
    book.add_certificate(make_certificate(PRECOMMIT, 1, 0, A, signed, 4))
    full = book.certificate(PRECOMMIT, 0, A)
    assert full is not None
    assert full.signers() == (0, 1, 3)
    assert book.certificate(PRECOMMIT, 0, B) is None


def test_nil_is_never_a_polka() -> None:
    book = VoteBook(1, SET)
    for member in range(4):
        book.add(vote(member, NIL))
    assert book.has_quorum(PREVOTE, 0, NIL)
    assert book.polkas == {}


def test_old_rounds_go_but_not_those_that_matter() -> None:
    book = VoteBook(1, SET)
    book.add(vote(0, NIL, PREVOTE, 0))
    book.add(vote(0, A, PRECOMMIT, 1))
    book.add(vote(0, NIL, PREVOTE, 2))
    book.add(vote(0, NIL, PREVOTE, 3))
    book.prune(OLD_ROUNDS_MAX + 3, keep=2)
    assert book.rounds() == [1, 2, 3]


def test_snapshot_does_not_depend_on_the_order_of_arrival() -> None:
    votes = [vote(0), vote(1, B), vote(2, A, PRECOMMIT), vote(3, NIL, PREVOTE, 2)]
    one, other = VoteBook(1, SET), VoteBook(1, SET)
    for each in votes:
        one.add(each)
    for each in reversed(votes):
        other.add(each)
    assert one.snapshot() == other.snapshot()
    assert hash(one.snapshot()) == hash(other.snapshot())
