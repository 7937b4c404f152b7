"""What may reach the engine, and what it costs us to refuse the rest: signatures are counted."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from simulation.engines import CHAIN_ID, header

from consensus import certificate as certificates
from consensus import messages
from consensus.certificate import PRECOMMIT, PREVOTE, Certificate, make_certificate
from consensus.header import NIL
from consensus.messages import VOTE, Proposal, Vote, signed, tag_of
from consensus.params import OLD_ROUNDS_MAX, ROUNDS_AHEAD_MAX
from consensus.primitives.digest import sha256, signing_bytes
from consensus.primitives.errors import Invalid
from consensus.primitives.keys import public_key, sign, verify_signature
from consensus.validators import ValidatorSet
from node.peering.admission import (
    CERTIFICATES_MAX,
    HELD_BYTES_MAX,
    HELD_FRAMES_MAX,
    HELD_PEERS_MAX,
    Admission,
    HeldFrame,
)

SEEDS = [sha256(b"member %d" % n) for n in range(4)]
SEED_OF = {public_key(seed): seed for seed in SEEDS}
EQUAL = ValidatorSet.found({public_key(seed): 1 for seed in SEEDS})
HEIGHT = 7
A, B, C = b"a" * 32, b"b" * 32, b"d" * 32
FALSE = bytes(64)


class Meter:
    """Counts signature checks."""

    def __init__(self) -> None:
        self.count = 0

    def verify(self, key: bytes, message: bytes, signature: bytes, code: str) -> None:
        self.count += 1
        verify_signature(key, message, signature, code)


@pytest.fixture(autouse=True)
def meter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Meter]:
    made = Meter()
    monkeypatch.setattr(messages, "verify_signature", made.verify)
    monkeypatch.setattr(certificates, "verify_signature", made.verify)
    return made


def said_by(place: int, message: Vote | Proposal) -> Vote | Proposal:
    seed = SEED_OF[EQUAL.members[place].key]
    return signed(message, sign(seed, signing_bytes(tag_of(message), CHAIN_ID, message.body())))


def vote(
    member: int = 0, block_id: bytes = A, kind: int = PREVOTE, round: int = 0, height: int = HEIGHT
) -> Vote:
    made = said_by(member, Vote(kind, height, round, block_id, member))
    assert isinstance(made, Vote)
    return made


def proposal(mark: int = 1, round: int = 0) -> Proposal:
    proposer = EQUAL.proposer(round)
    place = EQUAL.index(proposer)
    assert place is not None
    made = said_by(place, Proposal(HEIGHT, round, -1, header(proposer, HEIGHT, mark)))
    assert isinstance(made, Proposal)
    return made


def certificate(
    members: str = "012", kind: int = PRECOMMIT, block_id: bytes = A, height: int = HEIGHT,
    round: int = 0,
) -> Certificate:  # fmt: skip
    by = {int(m): vote(int(m), block_id, kind, round, height).signature for m in members}
    return make_certificate(kind, height, round, block_id, by, 4)


LAST = certificate(height=HEIGHT - 1)


def admission() -> Admission:
    made = Admission(CHAIN_ID)
    made.begin(HEIGHT, EQUAL, EQUAL, LAST)
    return made


def refused(made: Admission, message: object, round: int = 0) -> str:
    with pytest.raises(Invalid) as refusal:
        made.admit(message, round)  # type: ignore[arg-type]
    return refusal.value.code


# ---- what costs no signature check


FREE = [
    ("a prevote of the height before", vote(height=HEIGHT - 1), "other_height"),
    ("a late precommit of nil", vote(3, NIL, PRECOMMIT, height=HEIGHT - 1), "other_height"),
    ("a late precommit of another round",
     vote(3, A, PRECOMMIT, round=1, height=HEIGHT - 1), "other_height"),
    ("a late precommit that the certificate has",
     vote(2, A, PRECOMMIT, height=HEIGHT - 1), "duplicate"),
    ("a vote of two heights ago", vote(3, A, PRECOMMIT, height=HEIGHT - 2), "other_height"),
]  # fmt: skip


@pytest.mark.parametrize(("desc", "message", "why"), FREE, ids=[row[0] for row in FREE])
def test_late_message_is_dropped_for_nothing(
    desc: str, message: Vote, why: str, meter: Meter
) -> None:
    made = admission()
    assert not made.admit(message, 0)
    assert (meter.count, made.counters) == (0, {why: 1})


def test_proposals_and_certificates_of_another_height_cost_nothing(meter: Meter) -> None:
    made = admission()
    assert not made.admit(certificate(height=HEIGHT - 1), 0)
    assert not made.admit(replace(proposal(), height=HEIGHT + 1), 0)
    assert meter.count == 0


def test_stranger_is_refused_for_nothing(meter: Meter) -> None:
    made = admission()
    assert refused(made, replace(vote(), index=4)) == "vote.member"
    foreign = Proposal(HEIGHT, 0, -1, header(b"s" * 32, HEIGHT), None, FALSE)
    assert refused(made, foreign) == "proposal.proposer"
    assert refused(made, certificate("01")) == "certificate.power"
    assert meter.count == 0


def test_exact_duplicate_costs_nothing(meter: Meter) -> None:
    made = admission()
    for message, cost in ((vote(), 1), (proposal(), 1), (certificate(), 3)):
        before = meter.count
        assert made.admit(message, 0)
        assert meter.count == before + cost
        assert not made.admit(message, 0)
        assert meter.count == before + cost
    assert made.counters == {"duplicate": 3}


def test_second_word_is_let_through_as_evidence_and_a_third_costs_nothing(meter: Meter) -> None:
    made = admission()
    assert [made.admit(vote(0, block_id), 0) for block_id in (A, B, C)] == [True, True, False]
    assert [made.admit(proposal(mark), 0) for mark in (1, 2, 3)] == [True, True, False]
    assert meter.count == 4
    assert made.admit(vote(0, A, PRECOMMIT), 0), "the other kind is a word of its own"
    assert made.admit(vote(0, A, round=1), 0), "another round too"


def test_what_was_refused_for_its_signature_is_no_duplicate(meter: Meter) -> None:
    """Or a forger could keep a member's true vote out."""
    made = admission()
    for forged, code, true in (
        (replace(vote(), signature=FALSE), "vote.signature", vote()),
        (replace(proposal(), signature=FALSE), "proposal.signature", proposal()),
        (replace(certificate(), signatures=bytes(192)), "certificate.signature", certificate()),
    ):
        assert refused(made, forged) == code
        assert refused(made, forged) == code
        assert made.admit(true, 0)


def test_forged_word_far_ahead_does_not_hide_the_true_one() -> None:
    made = admission()
    assert refused(made, replace(vote(round=99), signature=FALSE)) == "vote.signature"
    assert made.admit(vote(round=9), 0)


# ---- the window of rounds


def test_old_round_is_dropped_for_nothing_and_the_last_kept_one_is_not(meter: Meter) -> None:
    made, round = admission(), OLD_ROUNDS_MAX + 5
    assert not made.admit(vote(round=4), round)
    assert not made.admit(proposal(round=4), round)
    assert (meter.count, made.counters) == (0, {"old_round": 2})
    assert made.admit(vote(round=5), round)
    assert made.admit(proposal(round=5), round)
    assert made.admit(certificate(round=4), round), "a decision may be of any round"


def test_far_above_only_a_higher_word_of_a_member_is_looked_at(meter: Meter) -> None:
    made, near = admission(), ROUNDS_AHEAD_MAX
    assert made.admit(vote(0, A, round=near), 0)
    assert made.admit(vote(0, B, round=near), 0), "within the window both words count"
    assert made.admit(vote(0, A, round=near + 1), 0)
    assert not made.admit(vote(0, B, round=near + 1), 0)
    assert made.admit(vote(0, A, round=near + 5), 0)
    assert not made.admit(vote(0, A, PRECOMMIT, round=near + 2), 0)
    assert (meter.count, made.counters) == (4, {"far_ahead": 2})
    assert made.admit(vote(1, A, round=near + 1), 0), "each member has its own"


def test_word_once_far_is_admitted_again_when_its_round_has_come() -> None:
    made = admission()
    assert made.admit(vote(round=5), 0)
    assert made.admit(vote(round=5), 5), "the engine may have dropped it for a higher one"


# ---- certificates


def test_certificates_are_told_apart_by_kind_round_and_block() -> None:
    made = admission()
    for one in (
        certificate(),
        certificate(kind=PREVOTE),
        certificate(round=1),
        certificate(block_id=B),
    ):
        assert made.admit(one, 0)
    assert not made.admit(certificate("0123"), 0), "a fuller one proves nothing new"


def test_certificates_of_a_height_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.peering.admission.verify_certificate", lambda *_: None)
    made, one = admission(), certificate()
    for round in range(CERTIFICATES_MAX):
        assert made.admit(replace(one, round=round), 0)
    assert not made.admit(replace(one, round=CERTIFICATES_MAX), 0)


# ---- late precommits


def test_late_precommit_of_the_decision_is_admitted_once(meter: Meter) -> None:
    made, late = admission(), vote(3, A, PRECOMMIT, height=HEIGHT - 1)
    assert refused(made, replace(late, signature=FALSE)) == "vote.signature"
    assert made.admit(late, 0)
    assert not made.admit(late, 0)
    assert (meter.count, made.counters) == (2, {"duplicate": 1})


def test_late_precommit_is_checked_against_the_set_of_its_own_height() -> None:
    other = ValidatorSet.found({public_key(sha256(b"newcomer %d" % n)): 1 for n in range(4)})
    made = Admission(CHAIN_ID)
    made.begin(HEIGHT, other, EQUAL, LAST)
    assert made.admit(vote(3, A, PRECOMMIT, height=HEIGHT - 1), 0)
    assert refused(made, vote(3)) == "vote.signature"


def test_late_precommit_of_no_member_is_refused() -> None:
    late = replace(vote(3, A, PRECOMMIT, height=HEIGHT - 1), index=4)
    assert refused(admission(), late) == "vote.member"


def test_first_height_has_nothing_late(meter: Meter) -> None:
    made = Admission(CHAIN_ID)
    made.begin(1, EQUAL, None, None)
    assert not made.admit(Vote(PRECOMMIT, 0, 0, A, 0, FALSE), 0)
    assert meter.count == 0


# ---- frames of the next height


def test_held_frames_come_back_when_their_height_begins_and_only_then() -> None:
    made = admission()
    assert made.hold(b"p" * 32, VOTE, b"frame", 5)
    assert made.begin(HEIGHT + 1, EQUAL, EQUAL, LAST) == [HeldFrame(b"p" * 32, VOTE, b"frame", 5)]
    assert made.hold(b"p" * 32, VOTE, b"frame", 5)
    assert made.begin(HEIGHT + 3, EQUAL, EQUAL, LAST) == [], "we were carried past it"
    assert made.begin(HEIGHT + 4, EQUAL, EQUAL, LAST) == []


def test_peer_may_have_eight_frames_and_64_kib_held(meter: Meter) -> None:
    made = admission()
    for peer, size in ((b"1" * 32, HELD_BYTES_MAX // HELD_FRAMES_MAX), (b"2" * 32, 1)):
        for _ in range(HELD_FRAMES_MAX):
            assert made.hold(peer, VOTE, bytes(size), 0)
        assert not made.hold(peer, VOTE, b"", 0)
    assert made.hold(b"3" * 32, VOTE, bytes(HELD_BYTES_MAX - 1), 0)
    assert not made.hold(b"3" * 32, VOTE, bytes(2), 0)
    assert made.hold(b"3" * 32, VOTE, bytes(1), 0)
    assert (meter.count, made.counters) == (0, {"held_full": 3})


def test_peers_with_held_frames_are_bounded() -> None:
    made = admission()
    for number in range(HELD_PEERS_MAX):
        assert made.hold(number.to_bytes(32, "big"), VOTE, b"x", 0)
    assert not made.hold(b"one more" * 4, VOTE, b"x", 0)
    assert made.hold(bytes(32), VOTE, b"x", 0), "those known may go on"


def test_new_height_admits_its_own_words_and_forgets_the_old() -> None:
    made = admission()
    assert made.admit(vote(), 0)
    made.begin(HEIGHT + 1, EQUAL, EQUAL, certificate())
    assert made.admit(vote(height=HEIGHT + 1), 0)
    assert made.admit(vote(3, A, PRECOMMIT), 0), "late now"
    assert not made.admit(vote(), 0)
