"""Lengths of timers, and the gate before a height, with a clock that is given."""

import pytest

from consensus.inputs import Step
from node.peering.pace import LAN, TIMEOUT_MS_MAX, WAN, Gate, Pace, Profile, Stopwatch

HEARTBEAT_S = 30.0


def never() -> bool:
    return False


def always() -> bool:
    return True


# ---- timers


@pytest.mark.parametrize(("profile", "lengths"), [(WAN, [1_500, 500, 500]), (LAN, [400, 200, 200])])
def test_profile_says_where_the_lengths_begin(profile: Profile, lengths: list[int]) -> None:
    fixed = Pace(profile, adapts=False)
    assert [fixed.length_ms(0, step) for step in Step] == lengths


def test_each_round_waits_a_quarter_second_longer_up_to_a_minute() -> None:
    pace = Pace(WAN, adapts=False)
    assert [pace.length_ms(round, Step.PREVOTE) for round in (0, 1, 2)] == [500, 750, 1_000]
    assert pace.length_ms(237, Step.PREVOTE) == 59_750
    assert pace.length_ms(238, Step.PREVOTE) == TIMEOUT_MS_MAX == 60_000
    assert pace.length_ms(2**31 - 1, Step.PREVOTE) == TIMEOUT_MS_MAX


def saw_often(pace: Pace, took_ms: int) -> int:
    for _ in range(200):
        pace.saw(Step.PROPOSE, took_ms)
    return pace.length_ms(0, Step.PROPOSE)


@pytest.mark.parametrize(
    ("took_ms", "length_ms"),
    [
        (0, 750),  # half of 1,500 at least
        (250, 750),
        (260, 780),
        (1_990, 5_949),  # a mean that rises stops less than 8 ms short
        (2_000, 5_979),
        (2_100, 6_000),  # four times 1,500 at most
        (10**6, 6_000),
    ],
)
def test_base_follows_three_times_what_it_takes_within_bounds(took_ms: int, length_ms: int) -> None:
    assert saw_often(Pace(WAN), took_ms) == length_ms


def test_one_slow_step_moves_the_mean_by_an_eighth() -> None:
    pace = Pace(WAN)
    pace.saw(Step.PROPOSE, 500 + 800)
    assert pace.length_ms(0, Step.PROPOSE) == 3 * 600
    assert pace.length_ms(0, Step.PREVOTE) == 3 * (500 // 3), "the other steps keep theirs"


def test_pace_that_does_not_adapt_keeps_its_profile() -> None:
    assert saw_often(Pace(WAN, adapts=False), 10**6) == 1_500


def test_stopwatch_tells_a_step_that_ended_in_its_quorum() -> None:
    pace = Pace(WAN)
    watch = Stopwatch(pace)
    watch.begin(Step.PROPOSE, 10.0)
    watch.reach(Step.PROPOSE, 11.3)
    assert pace.length_ms(0, Step.PROPOSE) == 1_800
    watch.reach(Step.PROPOSE, 99.0)
    assert pace.length_ms(0, Step.PROPOSE) == 1_800, "told once"


def test_stopwatch_tells_nothing_of_a_step_without_a_quorum_or_of_another() -> None:
    pace = Pace(WAN)
    before = [pace.length_ms(0, step) for step in Step]
    watch = Stopwatch(pace)
    watch.reach(Step.PROPOSE, 99.0)
    watch.begin(Step.PROPOSE, 0.0)
    watch.begin(Step.PREVOTE, 50.0)
    watch.reach(Step.PROPOSE, 99.0)
    assert [pace.length_ms(0, step) for step in Step] == before


# ---- the gate


def test_work_waits_for_the_interval_and_nothing_for_the_heartbeat() -> None:
    gate = Gate(interval_s=1.0, now_s=100.0)
    for now_s, with_work, without in (
        (100.0, False, False),
        (100.999, False, False),
        (101.0, True, False),
        (129.999, True, False),
        (130.0, True, True),
    ):
        assert gate.is_open(now_s, HEARTBEAT_S, always) is with_work
        assert gate.is_open(now_s, HEARTBEAT_S, never) is without


def test_pools_are_looked_through_only_when_the_answer_depends_on_it() -> None:
    gate = Gate(interval_s=1.0, now_s=0.0)
    asked: list[float] = []

    def ask_at(now_s: float) -> None:
        gate.is_open(now_s, HEARTBEAT_S, lambda: bool(asked.append(now_s)))

    for now_s in (0.5, 1.0, 29.0, 30.0):
        ask_at(now_s)
    assert asked == [1.0, 29.0]


def test_commit_closes_the_gate_anew() -> None:
    gate = Gate(interval_s=1.0, now_s=0.0)
    gate.close(50.0)
    assert not gate.is_open(50.9, HEARTBEAT_S, always)
    assert gate.is_open(51.0, HEARTBEAT_S, always)
    assert not gate.is_open(79.9, HEARTBEAT_S, never)


def test_next_look_is_when_an_answer_may_change() -> None:
    gate = Gate(interval_s=1.0, now_s=100.0)
    assert gate.next_s(100.2, HEARTBEAT_S) == 101.0
    assert gate.next_s(101.0, HEARTBEAT_S) == 102.0, "something may fall due by time"
    assert gate.next_s(129.5, HEARTBEAT_S) == 130.0
    assert gate.next_s(140.0, HEARTBEAT_S) == 140.0, "overdue: at once"


@pytest.mark.parametrize("since_s", [0.1, 0.7, 1e6 + 0.3, 1.7e9 + 0.123456789])
def test_looking_when_told_never_looks_for_ever(since_s: float) -> None:
    """Sums are rounded: the gate must be open at the very moment that `next_s` names."""
    gate = Gate(interval_s=0.25, now_s=since_s)
    now_s, looks = since_s, 0
    while not gate.is_open(now_s, HEARTBEAT_S, never):
        later_s = gate.next_s(now_s, HEARTBEAT_S)
        assert later_s > now_s
        now_s, looks = later_s, looks + 1
    assert looks <= 121
