"""The rules of a round, line by line of the paper, as tables: what is told, what must be asked for.

Four members of power 1 unless a test says otherwise; `US` is the engine under test. A step gives
inputs and names the votes, timers and other effects that must come out, in order, and nothing else.
"""

from dataclasses import replace
from typing import NamedTuple

import pytest
from engine_kit import (
    A_ID,
    B_ID,
    EQUAL,
    TURNS,
    US,
    A,
    B,
    Machine,
    certificate,
    offered,
    precommits,
    prevotes,
    proposal,
    shown,
    timeout,
    vote,
)
from simulation.engines import CHAIN_ID, SIGNATURE, header, key

from consensus.certificate import PRECOMMIT, PREVOTE, Certificate
from consensus.effects import Accuse, Broadcast, Commit, Persist
from consensus.engine import STEP_DECIDED, Engine
from consensus.evidence import DuplicateProposal, DuplicateVote
from consensus.header import NIL
from consensus.inputs import CaughtUp, Input, PayloadBuilt, Received, Started, Step, TimedOut
from consensus.messages import Proposal, Status, Vote
from consensus.params import OLD_ROUNDS_MAX, OLD_ROUNDS_WITH_QUORUM_MAX
from consensus.records import NOWHERE, SignerRecord
from consensus.round import Contradiction
from consensus.validators import ValidatorSet


class Row(NamedTuple):
    desc: str
    before: list[Input]  # not looked at
    given: list[Input]
    effects: list[str]


LOCKED_ON_A = [*proposal(A), *prevotes(A_ID, "01")]
IN_ROUND_1 = [*precommits(NIL, "01"), *timeout(Step.PRECOMMIT)]
FAR = [*LOCKED_ON_A, *IN_ROUND_1]  # locked on A in round 0, now in round 1

IN_OUR_TURN = [
    each for round in range(3)
    for each in (*precommits(NIL, "012", round), *timeout(Step.PRECOMMIT, round))
]  # fmt: skip
LOCKED_ON_B = [  # in round 1, with round 2 begun
    *timeout(Step.PROPOSE), *IN_ROUND_1, *proposal(B, 1), *prevotes(B_ID, "01", 1),
    *precommits(NIL, "01", 1), *timeout(Step.PRECOMMIT, 1),
]  # fmt: skip

ROWS = [
    # lines 11 to 21
    Row("the turn of another has the propose timer only",
        precommits(NIL, "012"), timeout(Step.PRECOMMIT), ["timer propose 1"]),
    Row("our own turn builds, and the timer runs all the same",
        IN_OUR_TURN[:-1], timeout(Step.PRECOMMIT, 2), ["timer propose 3", "build 3"]),
    Row("a built block is proposed, and prevoted once it has come back",
        IN_OUR_TURN, [PayloadBuilt(1, 3, offered(5, 3))], ["propose 3", "prevote other"]),
    Row("a block built too late is not: our prevote stands already",
        [*IN_OUR_TURN, *timeout(Step.PROPOSE, 3)], [PayloadBuilt(1, 3, offered(5, 3))], []),
    Row("a block built for a round gone by is not", IN_OUR_TURN,
        [PayloadBuilt(1, 2, offered(5, 3))], []),
    Row("a second block for one round is not",
        [*IN_OUR_TURN, PayloadBuilt(1, 3, offered(5, 3))], [PayloadBuilt(1, 3, offered(6, 3))],
        []),
    # line 22
    Row("L22 prevotes a valid, timely first offer", [], proposal(A), ["prevote A"]),
    Row("L22 prevotes nil for an invalid one", [], proposal(A, valid=False), ["prevote nil"]),
    Row("L22 prevotes nil for an untimely one", [], proposal(A, timely=False), ["prevote nil"]),
    Row("L22 keeps its lock on A when round 1 offers B", FAR, proposal(B, 1), ["prevote nil"]),
    Row("L22 prevotes what it is locked on", FAR, proposal(A, 1), ["prevote A"]),
    Row("L22 not for the proposal of another round", [], proposal(B, 1), []),
    Row("L22 does nothing outside step propose", proposal(A), proposal(A), []),
    # line 28
    Row("L28 prevotes a re-proposal with its carried polka, whatever the time",
        [*prevotes(NIL, "01"), *timeout(Step.PROPOSE), *IN_ROUND_1],
        proposal(A, 1, 0, timely=False, polka=certificate(PREVOTE, A_ID, "012")),
        ["prevote A"]),
    Row("L28 waits for a polka that is not there",
        [*timeout(Step.PROPOSE), *IN_ROUND_1], proposal(A, 1, 0), []),
    Row("L28 acts when the polka comes vote by vote",
        [*timeout(Step.PROPOSE), *IN_ROUND_1, *proposal(A, 1, 0), *prevotes(A_ID, "01")],
        prevotes(A_ID, "2"), ["prevote A"]),
    Row("L28 prevotes nil for an invalid re-proposal",
        [*timeout(Step.PROPOSE), *IN_ROUND_1],
        proposal(A, 1, 0, valid=False, polka=certificate(PREVOTE, A_ID, "012")),
        ["prevote nil"]),
    Row("L28 not at 2/3 behind the earlier offer",
        [*timeout(Step.PROPOSE), *IN_ROUND_1, *proposal(A, 1, 0), *prevotes(A_ID, "0")],
        prevotes(A_ID, "1"), []),
    Row("L28 not for a polka of another round than it names",
        [*timeout(Step.PROPOSE), *IN_ROUND_1, *proposal(A, 1, 0)],
        [Received(certificate(PREVOTE, A_ID, "012", 1))], []),
    Row("L28 not in step prevote", [*timeout(Step.PROPOSE), *IN_ROUND_1,
        *timeout(Step.PROPOSE, 1)], proposal(A, 1, 0, polka=certificate(PREVOTE, A_ID, "012")),
        []),
    Row("L28 an untimely first offer gets nil, offered again with its polka it gets our prevote",
        [*proposal(A, timely=False), *IN_ROUND_1],
        proposal(A, 1, 0, timely=False, polka=certificate(PREVOTE, A_ID, "012")),
        ["prevote A"]),
    Row("L28 a hidden lock holds out while the later polka is not carried",
        [*FAR, *timeout(Step.PROPOSE, 1), *precommits(NIL, "01", 1), *timeout(Step.PRECOMMIT, 1)],
        [*proposal(B, 2, 1), *timeout(Step.PROPOSE, 2)], ["prevote nil"]),
    Row("L28 leaves its lock for a quorum of a later round",
        [*FAR, *timeout(Step.PROPOSE, 1), *precommits(NIL, "01", 1), *timeout(Step.PRECOMMIT, 1)],
        proposal(B, 2, 1, polka=certificate(PREVOTE, B_ID, "012", 1)), ["prevote B"]),
    Row("L28 leaves its lock for a quorum of the same round",
        [*FAR, *timeout(Step.PROPOSE, 1), *precommits(NIL, "01", 1), *timeout(Step.PRECOMMIT, 1)],
        proposal(B, 2, 0, polka=certificate(PREVOTE, B_ID, "012", 0)), ["prevote B"]),
    Row("L28 keeps its lock against an earlier quorum",
        LOCKED_ON_B,
        proposal(A, 2, 0, polka=certificate(PREVOTE, A_ID, "012", 0)), ["prevote nil"]),
    Row("L28 prevotes what it is locked on for any earlier quorum",
        LOCKED_ON_B,
        proposal(B, 2, 0, polka=certificate(PREVOTE, B_ID, "012", 0)), ["prevote B"]),
    # line 34
    Row("L34 sets the prevote timer at > 2/3 of any kind",
        [*proposal(A), *prevotes(NIL, "0")], prevotes(B_ID, "1"), ["timer prevote 0"]),
    Row("L34 not at 2/3", proposal(A), prevotes(NIL, "0"), []),
    Row("L34 only once", [*proposal(A), *prevotes(NIL, "0"), *prevotes(B_ID, "1")],
        prevotes(A_ID, "2"), []),
    Row("L34 only in step prevote", prevotes(NIL, "0"), prevotes(B_ID, "12"), []),
    Row("L34 not in step precommit", [*proposal(A), *timeout(Step.PREVOTE)],
        [*prevotes(NIL, "0"), *prevotes(B_ID, "12")], []),
    # line 36
    Row("L36 locks and precommits at > 2/3 for the valid proposal",
        [*proposal(A), *prevotes(A_ID, "0")], prevotes(A_ID, "1"),
        ["timer prevote 0", "precommit A"]),
    Row("L36 not for a proposal that was not told valid",
        proposal(A, valid=False), prevotes(A_ID, "012"), ["timer prevote 0"]),
    Row("L36 not without a proposal", timeout(Step.PROPOSE), prevotes(A_ID, "012"),
        ["timer prevote 0"]),
    Row("L36 not at 2/3", proposal(A), prevotes(A_ID, "0"), []),
    Row("L36 not for a polka of an earlier round", [*proposal(A), *IN_ROUND_1],
        prevotes(A_ID, "012"), []),
    Row("L36 only once: valid and lock are moved, nothing is said again", LOCKED_ON_A,
        prevotes(A_ID, "2"), []),
    Row("L36 fires when the late block of a polka is told",
        [*timeout(Step.PROPOSE), *prevotes(A_ID, "012")], proposal(A), ["precommit A"]),
    Row("L36 waits in step propose and fires when the proposal comes",
        prevotes(A_ID, "012"), proposal(A), ["prevote A", "timer prevote 0", "precommit A"]),
    # line 44
    Row("L44 precommits nil at > 2/3 nil", [*timeout(Step.PROPOSE), *prevotes(NIL, "0")],
        prevotes(NIL, "1"), ["timer prevote 0", "precommit nil"]),
    Row("L44 not at 2/3 nil", timeout(Step.PROPOSE), prevotes(NIL, "0"), []),
    Row("L44 not in step propose", [], prevotes(NIL, "012"), []),
    Row("L44 not in step precommit", [*timeout(Step.PROPOSE), *timeout(Step.PREVOTE)],
        prevotes(NIL, "012"), []),
    # line 47
    Row("L47 sets the precommit timer at > 2/3 of any kind, in any step",
        precommits(NIL, "01"), precommits(A_ID, "2"), ["timer precommit 0"]),
    Row("L47 not at 2/3", precommits(NIL, "0"), precommits(A_ID, "1"), []),
    Row("L47 only once", precommits(NIL, "012"), prevotes(NIL, "012"), []),
    Row("L47 only of our own round", [], precommits(NIL, "0", 1), []),
    Row("L47 counts a member once, whatever it says twice", precommits(NIL, "01"),
        precommits(A_ID, "1"), ["accuse"]),
    # line 49
    Row("L49 commits at > 2/3 precommits for a valid block",
        [*LOCKED_ON_A, *precommits(A_ID, "0")], precommits(A_ID, "1"), ["commit A 0"]),
    Row("L49 not at 2/3", LOCKED_ON_A, precommits(A_ID, "0"), []),
    Row("L49 not for > 2/3 precommits of different rounds",
        [*LOCKED_ON_A, *timeout(Step.PRECOMMIT), *precommits(A_ID, "0")],
        precommits(A_ID, "12", 1), []),
    Row("L49 never for nil", proposal(A), precommits(NIL, "012"), ["timer precommit 0"]),
    Row("L49 decides at an old round, vote by vote",
        [*LOCKED_ON_A, *timeout(Step.PRECOMMIT), *precommits(A_ID, "0")],
        precommits(A_ID, "2"), ["commit A 0"]),
    Row("L49 decides at an old round", [*FAR, *precommits(A_ID, "2")],
        [Received(certificate(PRECOMMIT, A_ID, "012"))], ["commit A 0"]),
    Row("L49 decides at a later round than ours", proposal(A),
        [Received(certificate(PRECOMMIT, A_ID, "012", 7))], ["commit A 7"]),
    Row("L49 decides without a proposal, once the block is told valid", [],
        [Received(certificate(PRECOMMIT, A_ID, "012"))], ["commit A 0"]),
    Row("L49 waits for the block", [], precommits(A_ID, "012"), ["timer precommit 0"]),
    Row("L49 decides when the late block is told", precommits(A_ID, "012"), proposal(A),
        ["commit A 0"]),
    Row("nothing after the decision", [*proposal(A), *precommits(A_ID, "012")],
        [*timeout(Step.PRECOMMIT), *prevotes(A_ID, "012"), *proposal(A, 1)], []),
    # line 55
    Row("L55 skips to a round with > 1/3", [vote(PREVOTE, 0, NIL, 5)], [vote(PREVOTE, 1, NIL, 5)],
        ["timer propose 5"]),
    Row("L55 does not skip for less", [], [vote(PREVOTE, 0, NIL, 5)], []),
    Row("L55 not for words of our own round", [], [*prevotes(NIL, "0"), *precommits(NIL, "1")], []),
    Row("L55 takes either kind of vote", [vote(PREVOTE, 0, NIL, 1)],
        [vote(PRECOMMIT, 1, NIL, 1)], ["timer propose 1"]),
    Row("L55 counts an equivocator once", [vote(PREVOTE, 0, NIL, 1)],
        [vote(PREVOTE, 0, A_ID, 1)], ["accuse"]),
    Row("L55 takes who went further for one that has been there", [vote(PREVOTE, 0, NIL, 2)],
        [vote(PREVOTE, 1, NIL, 1)], ["timer propose 1"]),
    Row("L55 counts a member once",
        [], [vote(PREVOTE, 0, NIL, 1), vote(PRECOMMIT, 0, NIL, 1)], []),
    Row("L55 takes messages of any kind: a proposal is one", proposal(B, 1),
        [vote(PRECOMMIT, next(m for m in range(3) if m != TURNS[1]), NIL, 1)],
        ["timer propose 1", "prevote B"]),
    Row("L55 skips to the highest round that > 1/3 have reached",
        [vote(PREVOTE, 0, NIL, 9)], [vote(PREVOTE, 1, NIL, 4)], ["timer propose 4"]),
    # lines 57, 61, 65
    Row("L57 prevotes nil at the propose timeout", [], timeout(Step.PROPOSE), ["prevote nil"]),
    Row("L57 not in a later step", proposal(A), timeout(Step.PROPOSE), []),
    Row("L57 not of another round", [], timeout(Step.PROPOSE, 1), []),
    Row("L57 not of a round gone by", IN_ROUND_1, timeout(Step.PROPOSE, 0), []),
    Row("L61 precommits nil at the prevote timeout", proposal(A), timeout(Step.PREVOTE),
        ["precommit nil"]),
    Row("L61 not in step propose", [], timeout(Step.PREVOTE), []),
    Row("L61 not in step precommit", LOCKED_ON_A, timeout(Step.PREVOTE), []),
    Row("L61 not of another round", proposal(A), timeout(Step.PREVOTE, 1), []),
    Row("L65 starts the next round", [], timeout(Step.PRECOMMIT), ["timer propose 1"]),
    Row("L65 in any step", LOCKED_ON_A, timeout(Step.PRECOMMIT), ["timer propose 1"]),
    Row("L65 not of a round gone by", IN_ROUND_1, timeout(Step.PRECOMMIT, 0), []),
    Row("L65 not of another round", [], timeout(Step.PRECOMMIT, 1), []),
    # doubles
    Row("a second vote is evidence and does not count",
        [*proposal(A), *prevotes(A_ID, "0"), *prevotes(NIL, "1")], prevotes(A_ID, "1"), ["accuse"]),
    Row("a third is told no more", [*prevotes(A_ID, "0"), *prevotes(NIL, "0")],
        prevotes(B_ID, "0"), []),
    Row("a second proposal is evidence", proposal(A), proposal(offered(7)), ["accuse"]),
    Row("the same proposal twice is none", proposal(A), proposal(A), []),
    Row("an equivocator's signature in a certificate counts, whatever it showed us first",
        [*proposal(A), *precommits(NIL, "0")],
        [Received(certificate(PRECOMMIT, A_ID, "012"))], ["commit A 0"]),
    Row("vote by vote it does not, and nothing is decided", [*proposal(A), *precommits(NIL, "0")],
        precommits(A_ID, "012"), ["accuse", "timer precommit 0"]),
    Row("in a polka too",
        [*timeout(Step.PROPOSE), *prevotes(NIL, "0"), *proposal(A)],
        [Received(certificate(PREVOTE, A_ID, "012"))], ["timer prevote 0", "precommit A"]),
    # other heights
    Row("another height is ignored", [],
        [Received(Vote(PREVOTE, 2, 0, A_ID, 0, SIGNATURE)), TimedOut(2, 0, Step.PROPOSE)], []),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=[row.desc for row in ROWS])
def test_rule(row: Row) -> None:
    machine = Machine()
    machine.give(*row.before)
    assert machine.give(*row.given) == row.effects, row.desc


def test_height_begins_with_the_propose_timer_of_round_0() -> None:
    assert [shown(effect) for effect in Machine().effects] == ["timer propose 0"]


def test_third_is_more_than_one_third_exactly() -> None:
    """Powers 2/2/1/1: at 2 of 6 nobody skips, at 3 of 6 everybody does."""
    powers = ValidatorSet.found({key(0): 2, key(1): 2, key(2): 1, key(3): 1})
    me = powers.members[1].key
    engine = Engine(CHAIN_ID, me)
    engine.handle(Started(1, powers, None))
    engine.handle(vote(PREVOTE, 0, NIL, 1))
    assert engine.round == 0, "exactly one third"
    engine.handle(vote(PREVOTE, 2, NIL, 1))
    assert engine.round == 1


def test_quorum_is_more_than_two_thirds_exactly() -> None:
    powers = ValidatorSet.found({key(n): 1 for n in range(3)})
    engine = Engine(CHAIN_ID, None)
    engine.handle(Started(1, powers, None))
    block = header(powers.proposer(0), mark=1)
    engine.handle(Received(Proposal(1, 0, -1, block, None, SIGNATURE)))
    for member in (0, 1):
        engine.handle(vote(PRECOMMIT, member, block.block_id()))
    assert engine.decided is None, "exactly two thirds"
    engine.handle(vote(PRECOMMIT, 2, block.block_id()))
    assert engine.decided == (0, block.block_id())


def test_valid_is_renewed_after_our_precommit() -> None:
    """L36 in step precommit: valid moves, the lock does not."""
    machine = Machine()
    machine.give(*proposal(A), *prevotes(NIL, "0"), *timeout(Step.PREVOTE))
    assert machine.engine.step == Step.PRECOMMIT
    machine.give(*prevotes(A_ID, "12"))
    assert machine.engine.valid == (0, A_ID)
    assert machine.engine.locked == NOWHERE


def test_lock_and_valid_are_in_the_record_of_the_precommit() -> None:
    machine = Machine()
    machine.give(*LOCKED_ON_A)
    record = [effect.record for effect in machine.effects if isinstance(effect, Persist)][-1]
    assert (record.kind, record.locked, record.valid) == (PRECOMMIT, (0, A_ID), (0, A_ID))


def test_proposer_offers_its_valid_block_again_with_the_polka() -> None:
    machine = Machine()
    machine.give(*LOCKED_ON_A)
    for round in range(3):
        machine.give(*precommits(NIL, "012", round)[1:])
        effects = machine.give(*timeout(Step.PRECOMMIT, round))
    assert "propose 3 again from 0" in effects
    assert not any(words.startswith("build") for words in effects)
    again = [e.message for e in machine.effects if isinstance(e, Broadcast)]
    offer = next(message for message in again if isinstance(message, Proposal))
    assert offer.polka is not None
    assert (offer.polka.round, offer.polka.block_id) == (0, A_ID)
    assert len(offer.polka.signers()) == 3


def test_hidden_lock_is_opened_by_the_carried_polka() -> None:
    """Locked on A alone; the others go on with B. Without the polka of round 1 we would hold out
    for ever (15.9 % of random scenarios never ended)."""
    machine = Machine()
    machine.give(*LOCKED_ON_A, *IN_ROUND_1, *timeout(Step.PROPOSE, 1))
    machine.give(*precommits(NIL, "01", 1), *timeout(Step.PRECOMMIT, 1))
    assert machine.engine.locked == (0, A_ID)
    polka = certificate(PREVOTE, B_ID, "012", 1)
    assert machine.give(*proposal(B, 2, 1, polka=polka)) == ["prevote B"]
    assert machine.give(*prevotes(B_ID, "01", 2))[-1] == "precommit B"
    assert machine.engine.locked == (2, B_ID)


def test_quorum_for_a_block_told_invalid_is_a_contradiction() -> None:
    machine = Machine()
    machine.give(*proposal(A, valid=False), *precommits(A_ID, "01"))
    with pytest.raises(Contradiction):
        machine.give(*precommits(A_ID, "2"))


def test_wanted_names_what_a_quorum_knows_and_we_do_not() -> None:
    machine = Machine()
    machine.give(*precommits(A_ID, "01"))
    assert machine.engine.wanted() is None
    machine.give(*precommits(A_ID, "2"))
    assert machine.engine.wanted() == A_ID
    machine.give(*proposal(A))
    assert machine.engine.wanted() is None


def test_follower_says_nothing_and_commits() -> None:
    machine = Machine(me=None)
    said = machine.give(*proposal(A), *prevotes(A_ID, "012"), *precommits(A_ID, "012"))
    assert said[-1] == "commit A 0"
    assert not any(isinstance(effect, Broadcast) for effect in machine.effects)


def test_stranger_to_the_set_only_follows() -> None:
    machine = Machine(me=key(40))
    machine.give(*proposal(A), *timeout(Step.PROPOSE))
    assert not any(isinstance(effect, Broadcast) for effect in machine.effects)


# ---- restarts


def record(kind: int, round: int, block_id: bytes, locked: tuple[int, bytes]) -> SignerRecord:
    body = Vote(kind, 1, round, block_id, 3).body()
    return SignerRecord(kind, 1, round, body, locked, locked)


def test_restart_after_a_prevote_says_it_never_again() -> None:
    machine = Machine(signed=record(PREVOTE, 0, A_ID, NOWHERE))
    assert (machine.engine.round, machine.engine.step) == (0, Step.PREVOTE)
    assert machine.give(*timeout(Step.PROPOSE)) == []
    own = vote(PREVOTE, 3, A_ID)
    assert machine.give(*proposal(A), own, *prevotes(A_ID, "01"))[-1] == "precommit A"


def test_restart_after_a_precommit_keeps_the_lock() -> None:
    machine = Machine(signed=record(PRECOMMIT, 0, A_ID, (0, A_ID)))
    assert machine.engine.locked == machine.engine.valid == (0, A_ID)
    machine.give(*precommits(NIL, "012"), *timeout(Step.PRECOMMIT))
    assert machine.give(*proposal(B, 1)) == ["prevote nil"]


def test_restart_after_a_proposal_waits_for_its_answers() -> None:
    ours = header(US, mark=5)
    body = Proposal(1, 3, -1, ours).body()
    machine = Machine(signed=SignerRecord(0, 1, 3, body))
    assert (machine.engine.round, machine.engine.step) == (3, Step.PROPOSE)
    assert machine.give(PayloadBuilt(1, 3, header(US, mark=6))) == []
    assert machine.give(*proposal(ours, 3)) == ["prevote other"]


def test_proposer_that_lost_its_valid_block_does_not_propose() -> None:
    machine = Machine(signed=record(PRECOMMIT, 2, A_ID, (0, A_ID)))
    machine.give(*precommits(NIL, "012", 2))
    assert machine.give(*timeout(Step.PRECOMMIT, 2)) == ["timer propose 3"]


# ---- limits


def test_far_round_keeps_one_message_a_member() -> None:
    machine = Machine()
    for round in range(10, 500):
        machine.give(vote(PREVOTE, 0, NIL, round))
    assert machine.engine.round == 0
    assert len(machine.engine.snapshot()[10]) == 1
    machine.give(vote(PREVOTE, 1, NIL, 499))
    assert machine.engine.round == 499
    assert machine.engine.status().prevotes == bytes([0b0011]), "the kept message counts now"


def test_old_rounds_are_forgotten_but_not_the_valid_one() -> None:
    machine = Machine()
    machine.give(*LOCKED_ON_A)
    for round in range(OLD_ROUNDS_MAX + OLD_ROUNDS_WITH_QUORUM_MAX + 10):
        machine.give(*precommits(NIL, "012", round), *timeout(Step.PRECOMMIT, round))
    assert machine.engine.certificate(PREVOTE, 0) is not None
    rounds = {row[0] for row in machine.engine.snapshot()[11]}
    assert len(rounds) <= OLD_ROUNDS_MAX + 2
    machine.give(vote(PREVOTE, 0, B_ID, 3))
    assert {row[0] for row in machine.engine.snapshot()[11]} == rounds, "too old: dropped"


# ---- heights


def test_late_precommits_fill_the_last_certificate() -> None:
    machine = Machine()
    machine.give(*proposal(A), *precommits(A_ID, "012"))
    commit = next(effect for effect in machine.effects if isinstance(effect, Commit))
    machine.give(Started(2, EQUAL.advanced(), commit.certificate))
    assert machine.engine.last_certificate() == commit.certificate
    machine.give(vote(PRECOMMIT, 3, A_ID), vote(PRECOMMIT, 3, NIL))
    full = machine.engine.last_certificate()
    assert full is not None
    assert full.signers() == (0, 1, 2, 3)


def test_precommits_between_heights_are_kept_too() -> None:
    machine = Machine()
    machine.give(*proposal(A), *precommits(A_ID, "012"))
    commit = next(effect for effect in machine.effects if isinstance(effect, Commit))
    machine.give(vote(PRECOMMIT, 3, A_ID))
    machine.give(Started(2, EQUAL.advanced(), commit.certificate))
    full = machine.engine.last_certificate()
    assert full is not None
    assert full.signers() == (0, 1, 2, 3)


def test_catching_up_drops_the_height_in_work() -> None:
    machine = Machine()
    machine.give(*LOCKED_ON_A)
    assert machine.give(CaughtUp(5)) == []
    assert (machine.engine.height, machine.engine.locked) == (5, NOWHERE)
    machine.give(Started(6, EQUAL, certificate(PRECOMMIT, A_ID, "012")))
    assert machine.engine.height == 6


# ---- helping others


def test_missing_is_what_the_other_lacks() -> None:
    machine = Machine()
    machine.give(*proposal(A), *prevotes(A_ID, "0"))
    bare = Status(1, 0, 0, False, bytes(1), bytes(1))
    kinds = [type(message) for message in machine.engine.missing(bare, 1 << 16)]
    assert kinds == [Proposal, Vote, Vote]
    has_all = machine.engine.status()
    assert machine.engine.missing(has_all, 1 << 16) == []
    assert machine.engine.missing(bare, 200) == [], "not more bytes than asked"
    assert machine.engine.missing(replace(bare, height=2), 1 << 16) == []


def test_who_is_in_a_lower_round_gets_both_rounds() -> None:
    machine = Machine()
    machine.give(*FAR, vote(PREVOTE, 0, NIL, 1))
    behind = Status(1, 0, 1, True, bytes([0b1111]), bytes([0b0011]))
    votes = [m for m in machine.engine.missing(behind, 1 << 16) if isinstance(m, Vote)]
    assert {(v.round, v.kind, v.index) for v in votes} == {(0, PRECOMMIT, 3), (1, PREVOTE, 0)}


def test_who_lags_behind_a_decision_gets_the_certificate() -> None:
    machine = Machine()
    machine.give(*proposal(A), *precommits(A_ID, "012"))
    assert machine.engine.status().step == STEP_DECIDED
    bare = Status(1, 0, 0, False, bytes(1), bytes(1))
    (found,) = machine.engine.missing(bare, 1 << 16)
    assert isinstance(found, Certificate)
    assert (found.kind, found.block_id) == (PRECOMMIT, A_ID)


def test_evidence_names_both_bodies_the_lower_first() -> None:
    machine = Machine()
    machine.give(*prevotes(A_ID, "0"), *prevotes(NIL, "0"), *proposal(A), *proposal(offered(9)))
    votes, proposals = (e.evidence for e in machine.effects if isinstance(e, Accuse))
    assert isinstance(votes, DuplicateVote)
    assert votes.first.block_id == NIL
    assert isinstance(proposals, DuplicateProposal)
    assert proposals.first_body < proposals.second_body
    assert proposals.index == TURNS[0]
