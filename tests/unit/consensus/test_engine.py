"""The engine around the rules: restarts, what it tells of itself, what it listens to no more."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from engine_kit import (
    A_ID,
    B_ID,
    EQUAL,
    PLACES,
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
from simulation.engines import CHAIN_ID, SIGNATURE, header

from consensus.certificate import PRECOMMIT, PREVOTE, Certificate, make_certificate
from consensus.effects import BuildPayload, Commit, Persist
from consensus.engine import STEP_DECIDED, Engine, EngineStatistics
from consensus.header import NIL
from consensus.inputs import CaughtUp, Input, PayloadBuilt, Received, Started, Step, TimedOut
from consensus.messages import Proposal, Status, Vote, encode_message
from consensus.records import NOWHERE, SignerRecord
from consensus.round import Contradiction
from consensus.validators import ValidatorSet

NOTHING = Status(1, 0, 0, False, bytes(1), bytes(1))


# ---- restarts


def our_vote(kind: int, round: int, block_id: bytes) -> Vote:
    return Vote(kind, 1, round, block_id, PLACES[US], SIGNATURE)


OURS = offered(5, 3)
PROPOSED = Proposal(1, 3, -1, OURS, None, SIGNATURE)
RESTARTS = {
    "a proposal": SignerRecord(0, 1, 3, PROPOSED.body()),
    "a prevote": SignerRecord(PREVOTE, 1, 3, our_vote(PREVOTE, 3, A_ID).body()),
    "a nil prevote": SignerRecord(PREVOTE, 1, 3, our_vote(PREVOTE, 3, NIL).body()),
    "a precommit": SignerRecord(
        PRECOMMIT, 1, 3, our_vote(PRECOMMIT, 3, A_ID).body(), (3, A_ID), (3, A_ID)
    ),
    "a nil precommit, locked before": SignerRecord(
        PRECOMMIT, 1, 3, our_vote(PRECOMMIT, 3, NIL).body(), (1, A_ID), (2, B_ID)
    ),
}


def everything_of_a_round(round: int) -> Iterator[Input]:
    """Whatever could make an engine speak in a round, some of it contradicting the rest."""
    if EQUAL.proposer(round) == US:
        yield PayloadBuilt(1, round, offered(6, round))
    yield from proposal(A, round)
    yield from proposal(B, round, 0, polka=certificate(PREVOTE, B_ID, "012"))
    yield from timeout(Step.PROPOSE, round)
    yield from prevotes(A_ID, "012", round)
    yield from prevotes(NIL, "012", round)
    yield from timeout(Step.PREVOTE, round)


@pytest.mark.parametrize("record", RESTARTS.values(), ids=list(RESTARTS))
def test_what_was_said_before_a_restart_is_never_said_again(record: SignerRecord) -> None:
    machine = Machine(signed=record)
    assert (machine.engine.round, machine.engine.step) == (3, Step(record.kind))
    for round in range(4):
        machine.give(*everything_of_a_round(round))
    machine.give(*timeout(Step.PRECOMMIT, 3))
    machine.give(*everything_of_a_round(4))
    said = [effect.record.place() for effect in machine.effects if isinstance(effect, Persist)]
    assert all(place > record.place() for place in said)
    assert said == sorted(set(said)), "and every later word once"
    assert (1, 4, PREVOTE) in said, "it goes on in the next round"


@pytest.mark.parametrize("record", RESTARTS.values(), ids=list(RESTARTS))
def test_restart_takes_up_the_locks_of_the_record(record: SignerRecord) -> None:
    engine = Machine(signed=record).engine
    assert (engine.locked, engine.valid) == (record.locked, record.valid)


def test_only_a_restart_before_our_prevote_waits_for_a_proposal() -> None:
    """The timers of the later steps come with the votes that are replayed."""
    asked = {
        name: [shown(effect) for effect in Machine(signed=record).effects]
        for name, record in RESTARTS.items()
    }
    assert asked.pop("a proposal") == ["timer propose 3"]
    assert all(effects == [] for effects in asked.values())


def test_restarted_precommit_gets_its_timer_with_the_replayed_votes() -> None:
    machine = Machine(signed=RESTARTS["a precommit"])
    assert machine.give(*precommits(NIL, "01", 3)) == []
    assert machine.give(Received(our_vote(PRECOMMIT, 3, A_ID))) == ["timer precommit 3"]


def test_record_of_another_height_is_our_own_fault() -> None:
    record = SignerRecord(PREVOTE, 2, 0, Vote(PREVOTE, 2, 0, A_ID, 3).body())
    with pytest.raises(AssertionError):
        Machine(signed=record)


# ---- heights


def decided() -> tuple[Machine, Certificate]:
    machine = Machine()
    machine.give(*proposal(A), *precommits(A_ID, "012"))
    return machine, next(e.certificate for e in machine.effects if isinstance(e, Commit))


def signers_after(*late: Input) -> tuple[int, ...]:
    """Who signed the last certificate after these words came in the next height."""
    machine, commit = decided()
    machine.give(Started(2, EQUAL.advanced(), commit))
    machine.give(*late)
    full = machine.engine.last_certificate()
    assert full is not None
    return full.signers()


@pytest.mark.parametrize(
    "late",
    [
        vote(PREVOTE, 3, A_ID),
        vote(PRECOMMIT, 3, NIL),
        vote(PRECOMMIT, 3, B_ID),
        vote(PRECOMMIT, 3, A_ID, round=1),
    ],
    ids=["a prevote", "nil", "another block", "another round"],
)
def test_only_precommits_of_the_decision_make_its_certificate_fuller(late: Received) -> None:
    assert signers_after(late) == (0, 1, 2)
    assert signers_after(late, vote(PRECOMMIT, 3, A_ID)) == (0, 1, 2, 3)


def test_late_word_never_changes_a_signature_of_the_certificate() -> None:
    machine, commit = decided()
    machine.give(Started(2, EQUAL.advanced(), commit))
    machine.give(Received(Vote(PRECOMMIT, 1, 0, A_ID, 2, b"x" * 64)))
    assert machine.engine.last_certificate() == commit


def test_height_1_has_no_certificate_before_it() -> None:
    machine = Machine()
    assert machine.engine.last_certificate() is None
    machine.give(Received(Vote(PRECOMMIT, 0, 0, A_ID, 3, SIGNATURE)))
    assert machine.engine.last_certificate() is None


def test_certificate_of_another_decision_takes_none_of_our_votes() -> None:
    """The host may know the height by a certificate of another round than we saw."""
    machine, _ = decided()
    other = certificate(PRECOMMIT, A_ID, "012", round=1)
    machine.give(vote(PRECOMMIT, 3, A_ID), Started(2, EQUAL.advanced(), other))
    assert machine.engine.last_certificate() == other


def test_catching_up_below_our_height_changes_nothing() -> None:
    machine = Machine()
    machine.give(*proposal(A))
    before = machine.engine.snapshot()
    machine.give(CaughtUp(0))
    assert machine.engine.snapshot() == before


def test_catching_up_to_our_height_drops_it_and_the_next_begins_unlocked() -> None:
    machine = Machine()
    machine.give(*proposal(A), *prevotes(A_ID, "01"))
    assert machine.engine.locked == (0, A_ID)
    machine.give(CaughtUp(1))
    assert (machine.engine.height, machine.engine.round) == (1, -1)
    assert machine.engine.last_certificate() is None
    assert machine.give(*timeout(Step.PREVOTE), *precommits(A_ID, "012")) == []
    machine.give(Started(2, EQUAL.advanced(), certificate(PRECOMMIT, A_ID, "012")))
    assert (machine.engine.height, machine.engine.locked) == (2, NOWHERE)


def test_height_begins_once() -> None:
    machine = Machine()
    with pytest.raises(AssertionError):
        machine.give(Started(1, EQUAL, None))


def test_payload_for_another_height_or_after_the_decision_is_ignored() -> None:
    alone = ValidatorSet.found({US: 1})
    engine = Engine(CHAIN_ID, US)
    assert BuildPayload(1, 0) in engine.handle(Started(1, alone, None))
    assert engine.handle(PayloadBuilt(2, 0, header(US, height=2))) == []
    ours = header(US, mark=1)
    engine.handle(Received(make_certificate(PRECOMMIT, 1, 0, ours.block_id(), {0: SIGNATURE}, 1)))
    assert engine.decided is not None
    assert engine.handle(PayloadBuilt(1, 0, ours)) == []


def test_block_of_another_chain_is_our_own_fault() -> None:
    alone = ValidatorSet.found({US: 1})
    engine = Engine(CHAIN_ID, US)
    engine.handle(Started(1, alone, None))
    with pytest.raises(AssertionError):
        engine.handle(PayloadBuilt(1, 0, header(US)._replace(chain_id=b"d" * 32)))


# ---- verdicts


def test_certificate_for_a_block_told_invalid_is_a_contradiction() -> None:
    with pytest.raises(Contradiction):
        Machine().give(Received(certificate(PRECOMMIT, A_ID, "012"), valid=False))


def test_block_once_told_valid_stays_valid() -> None:
    """Only a fault of ours says less afterwards, and it must not stop the node."""
    machine = Machine()
    machine.give(*proposal(A))
    said = machine.give(Received(certificate(PRECOMMIT, A_ID, "012"), valid=False))
    assert said == ["commit A 0"]


def test_block_told_invalid_may_be_told_valid_later() -> None:
    machine = Machine()
    machine.give(*proposal(A, valid=False))
    assert machine.give(Received(certificate(PRECOMMIT, A_ID, "012")))[-1] == "commit A 0"


def test_verdict_beside_a_polka_is_not_read() -> None:
    machine = Machine()
    machine.give(*timeout(Step.PROPOSE))
    machine.give(Received(certificate(PREVOTE, A_ID, "012"), valid=False))
    assert machine.engine.wanted() == A_ID, "still nobody told us of its block"


# ---- what it wants


def test_wanted_is_a_decision_before_a_polka_and_the_newest_of_each() -> None:
    machine = Machine(me=None)
    c_id, d_id = offered(3).block_id(), offered(4).block_id()
    seen = []
    for words in (
        prevotes(A_ID, "012", 0),
        prevotes(B_ID, "012", 1),
        precommits(c_id, "012", 0),
        precommits(d_id, "012", 2),
    ):
        machine.give(*words)
        seen.append(machine.engine.wanted())
    assert seen == [A_ID, B_ID, c_id, d_id]


def test_nothing_is_wanted_before_a_height_or_after_its_decision() -> None:
    assert Engine(CHAIN_ID, US).wanted() is None
    machine, _ = decided()
    machine.give(*precommits(B_ID, "012", 1))
    assert machine.engine.wanted() is None


# ---- certificates it can show


def test_certificate_is_shown_for_a_quorum_only_and_by_its_kind() -> None:
    machine = Machine()
    machine.give(*prevotes(A_ID, "01"))
    assert machine.engine.certificate(PREVOTE, 0) is None
    machine.give(*prevotes(A_ID, "2"))
    assert machine.engine.certificate(PREVOTE, 0) == certificate(PREVOTE, A_ID, "012")
    assert machine.engine.certificate(PRECOMMIT, 0) is None
    assert machine.engine.certificate(PREVOTE, 1) is None
    assert Engine(CHAIN_ID, US).certificate(PREVOTE, 0) is None


# ---- status, and helping others


def test_status_tells_the_round_and_who_was_heard_in_it() -> None:
    machine = Machine()
    assert machine.engine.status() == NOTHING
    machine.give(*prevotes(NIL, "0"), *precommits(NIL, "1"), *prevotes(NIL, "2", round=1))
    assert machine.engine.status() == Status(1, 0, 0, False, bytes([0b0001]), bytes([0b0010]))
    machine.give(*proposal(A))
    ours = 1 << PLACES[US]
    status = Status(1, 0, 1, True, bytes([0b0001 | ours]), bytes([0b0010]))
    assert machine.engine.status() == status


def test_status_between_heights_is_decided() -> None:
    engine = Engine(CHAIN_ID, US)
    assert (engine.status().height, engine.status().step) == (0, STEP_DECIDED)
    machine, _ = decided()
    assert machine.engine.status().step == STEP_DECIDED
    machine.give(CaughtUp(7))
    assert (machine.engine.status().height, machine.engine.status().step) == (7, STEP_DECIDED)


def test_weightiest_goes_first_and_nothing_beyond_the_bytes_asked() -> None:
    """A proposal, then precommits, then prevotes: cut where the bytes end, never in between."""
    machine = Machine()
    machine.give(*precommits(NIL, "0"), *prevotes(NIL, "1"), *proposal(A))
    whole = machine.engine.missing(NOTHING, 1 << 16)
    kinds = [getattr(message, "kind", "proposal") for message in whole]
    assert kinds == ["proposal", PRECOMMIT, PREVOTE, PREVOTE]
    sizes = [len(encode_message(message)) for message in whole]
    for count in range(len(whole) + 1):
        exact = sum(sizes[:count])
        assert machine.engine.missing(NOTHING, exact) == whole[:count]
        if count:
            assert machine.engine.missing(NOTHING, exact - 1) == whole[: count - 1]


def test_who_has_decided_or_is_of_another_height_lacks_nothing() -> None:
    machine = Machine()
    machine.give(*proposal(A))
    for status in (replace(NOTHING, step=STEP_DECIDED), replace(NOTHING, height=2)):
        assert machine.engine.missing(status, 1 << 16) == []
    assert Engine(CHAIN_ID, US).missing(NOTHING, 1 << 16) == []


def test_who_is_in_a_higher_round_gets_what_we_have_of_that_round_only() -> None:
    machine = Machine()
    machine.give(*proposal(A), *prevotes(NIL, "0", round=1))
    found = machine.engine.missing(replace(NOTHING, round=1), 1 << 16)
    assert found == [Vote(PREVOTE, 1, 1, NIL, 0, SIGNATURE)]


def test_decision_is_told_as_one_certificate_with_every_precommit_known() -> None:
    machine, _ = decided()
    machine.give(vote(PRECOMMIT, 3, A_ID))
    assert machine.engine.missing(NOTHING, 1 << 16) == [certificate(PRECOMMIT, A_ID, "0123")]


# ---- statistics and snapshots


def test_statistics_count_what_happened() -> None:
    machine = Machine()
    machine.give(*proposal(A), *prevotes(A_ID, "0"), *prevotes(NIL, "0"))
    machine.give(*timeout(Step.PRECOMMIT), TimedOut(9, 0, Step.PROPOSE))
    machine.give(*precommits(A_ID, "012"), *proposal(B, 1))
    # 1 Started, A, own prevote, 2 prevotes, 2 timeouts, 3 precommits, B
    assert machine.engine.statistics() == EngineStatistics(
        inputs=11, ignored=2, decided=1, rounds=2, accused=1
    )


def test_snapshots_are_equal_whatever_order_led_to_one_state() -> None:
    words = [*prevotes(NIL, "0"), *prevotes(B_ID, "1"), *precommits(NIL, "2", 1)]
    one, other = Machine(), Machine()
    one.give(*words)
    other.give(*reversed(words))
    assert one.engine.snapshot() == other.engine.snapshot()
    assert hash(one.engine.snapshot()) == hash(other.engine.snapshot())
    for machine in (one, other):
        machine.give(*proposal(A), *prevotes(A_ID, "2"))
    assert one.engine.snapshot() == other.engine.snapshot()


DIFFERENCES: dict[str, list[Input]] = {
    "a vote": [*prevotes(A_ID, "2")],
    "a proposal": proposal(A),
    "its verdict": proposal(A, valid=False),
    "its time": proposal(A, timely=False),
    "a step": timeout(Step.PROPOSE),
    "a round": timeout(Step.PRECOMMIT),
    "a far voice": [vote(PREVOTE, 0, NIL, 9)],
    "a decision": [Received(certificate(PRECOMMIT, A_ID, "012"))],
    "a height": [CaughtUp(1)],
}


def test_snapshots_differ_by_everything_that_matters_later() -> None:
    seen = {"nothing": Machine().engine.snapshot()}
    for name, words in DIFFERENCES.items():
        machine = Machine()
        machine.give(*words)
        seen[name] = machine.engine.snapshot()
    assert len(set(seen.values())) == len(seen)
