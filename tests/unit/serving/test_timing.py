"""The median that a histogram knows: its bucket's bound, none for nothing, the last for longer."""

import pytest

from node.serving.timing import BOUNDS_S, Timed, Timing


@pytest.mark.parametrize(
    ("took_s", "median_ms"),
    [
        ((), 0),
        ((0.02,), 25),
        ((0.02, 0.4), 25),
        ((0.02, 0.4, 0.4), 500),
        ((0.0004, 100.0, 100.0), 60_000),
    ],
)
def test_half_of_all_took_at_most_the_median(took_s: tuple[float, ...], median_ms: int) -> None:
    timing = Timing()
    for each in took_s:
        timing.note(each)
    assert timing.view().median_ms() == median_ms


def test_nothing_is_noted_at_first() -> None:
    assert Timing().view() == Timed()
    assert len(Timed().counts) == len(BOUNDS_S) + 1
