"""Twins: a key that runs twice, honest each time, equivocates in every way honest code can."""

from collections import Counter

import pytest
from simulation.engines import twins_run

# Powers, and which members have a twin; never more than a third of the power.
PROFILES = [
    ((1, 1, 1, 1), (0,)),
    ((3, 3, 1, 2), (3,)),
    ((5, 3, 2, 1), (1,)),
    ((2, 2, 1), (2,)),
    ((1,) * 7, (0, 1)),
]
SCENARIOS = 1_000


@pytest.mark.parametrize(("powers", "twins"), PROFILES, ids=str)
def test_twins_neither_fork_nor_stick(powers: tuple[int, ...], twins: tuple[int, ...]) -> None:
    ends = {seed: twins_run(powers, twins, seed) for seed in range(SCENARIOS)}
    assert [seed for seed, end in ends.items() if end != "OK"] == []


def test_more_than_a_third_of_twins_can_fork() -> None:
    """The test of the tester: where the promise ends, this search finds the fork."""
    ends = Counter(twins_run((1, 1, 1, 1), (0, 1), seed) for seed in range(2_000))
    assert ends["FORK"] > 0
