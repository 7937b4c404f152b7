"""Timers and the tick of one height, with a clock that is given."""

from consensus.inputs import Step, TimedOut
from node.peering.alarms import NEVER_S, Alarms


def timer(round: int, step: Step = Step.PROPOSE) -> TimedOut:
    return TimedOut(7, round, step)


def taken(alarms: Alarms, now_s: float) -> list[int]:
    found = []
    while (due := alarms.take_due(now_s)) is not None:
        found.append(due.round)
    return found


def test_timers_ring_in_the_order_they_fall_due_and_not_before() -> None:
    alarms = Alarms(resend_s=100)
    alarms.start(0)
    for due_s, round in ((3, 3), (1, 1), (2, 2)):
        alarms.set(due_s, timer(round))
    assert taken(alarms, 0.999) == []
    assert alarms.next_s() == 1
    assert taken(alarms, 1) == [1]
    assert taken(alarms, 9) == [2, 3]
    assert taken(alarms, 9) == []


def test_of_two_timers_for_one_moment_the_older_rings_first() -> None:
    alarms = Alarms(resend_s=100)
    alarms.start(0)
    for round in (5, 4, 6):
        alarms.set(1, timer(round))
    assert taken(alarms, 1) == [5, 4, 6]


def test_tick_comes_once_a_period() -> None:
    alarms = Alarms(resend_s=0.5)
    alarms.start(10)
    assert not alarms.is_tick(10.499)
    assert alarms.is_tick(10.5)
    assert not alarms.is_tick(10.5)
    assert alarms.next_s() == 11.0
    assert alarms.is_tick(20), "late: one, not ten"
    assert not alarms.is_tick(20.4)


def test_height_takes_its_timers_along_when_it_ends() -> None:
    alarms = Alarms(resend_s=0.5)
    alarms.start(0)
    alarms.set(1, timer(0))
    alarms.stop()
    assert alarms.next_s() == NEVER_S
    assert taken(alarms, 99) == []
    assert not alarms.is_tick(99)


def test_height_begun_anew_has_no_old_timers() -> None:
    alarms = Alarms(resend_s=0.5)
    alarms.start(0)
    alarms.set(1, timer(0))
    alarms.start(5)
    assert taken(alarms, 99) == []
    assert alarms.next_s() == 5.5
