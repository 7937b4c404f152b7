"""All runs of three engines in two rounds, lost and late messages and every timeout included."""

from simulation.exploring import Explored, Explorer


def explored(powers: tuple[int, ...], liar: int | None, round_max: int) -> Explored:
    found = Explorer(powers, liar, round_max).run()
    assert found.decided > 0, "an exploration that reaches no decision shows nothing"
    return found


def test_three_honest_engines_never_fork() -> None:
    assert explored((1, 1, 1), None, 1).forks == 0


def test_liar_below_a_third_never_makes_a_fork() -> None:
    """2/2/1: whatever the 1 says, to whom, and when; its twin says less."""
    assert explored((2, 2, 1), 2, 1).forks == 0


def test_liar_that_a_quorum_needs_never_makes_a_fork() -> None:
    """4/2/1: the 2 makes a quorum with the 4, and lies to both; one round."""
    assert explored((4, 2, 1), 1, 0).forks == 0


def test_liar_above_a_third_makes_a_fork() -> None:
    """The test of the tester: 3/2/2, where the 3 proposes two blocks and votes for both."""
    assert explored((3, 2, 2), 0, 0).forks > 0
