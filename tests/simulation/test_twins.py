"""Twins: a key that runs twice, honest each time, equivocates in every way honest code can."""

from simulation.engines import SIGNATURE, Cluster
from simulation.outcomes import Played, failures
from simulation.twins import PROFILES, Profile, run_twins, twins_run

from consensus.messages import Vote
from consensus.records import SIGNED_PROPOSAL
from consensus.votes import VoteBook

TWO_OF_FOUR: Profile = ((1, 1, 1, 1), (0, 1))


def test_twins_neither_fork_nor_stick(played: Played) -> None:
    assert failures("twins", played("twins")) == []


def test_twins_hold_at_most_a_third() -> None:
    for powers, twins in PROFILES:
        assert 3 * sum(powers[place] for place in twins) < sum(powers)


def test_same_seed_gives_the_same_trace() -> None:
    traces = [[twins_run(seed).trace for seed in range(50)] for _ in range(2)]
    assert traces[0] == traces[1]
    assert len(set(traces[0])) > 40, "different seeds are different runs"


def accused(cluster: Cluster) -> set[int]:
    """Members that are proved guilty by all the votes of a run, read in one place."""
    book = VoteBook(1, cluster.validators)
    guilty = set()
    for node, owner in zip(cluster.nodes, cluster.owners, strict=True):
        for record in node.records:
            if record.kind == SIGNED_PROPOSAL:
                continue
            vote = Vote(record.kind, 1, record.round, record.body[13:], owner, SIGNATURE)
            if book.add(vote) is not None:
                guilty.add(owner)
    return guilty


def decision_rounds(cluster: Cluster) -> set[int]:
    return {commit.round for node in cluster.honest() for commit in node.commits}


def test_more_than_a_third_of_twins_can_fork_and_is_named() -> None:
    """The test of the tester: where the promise ends, this search finds the fork; and then the
    votes of both sides together prove the guilt of at least a third of the power. A fork across
    two rounds may need no double vote (amnesia, page 20 §5): there only the honest are safe."""
    runs = [run_twins(seed, TWO_OF_FOUR) for seed in range(1_000)]
    forked = [cluster for cluster in runs if len(cluster.decisions()) > 1]
    in_one_round = [cluster for cluster in forked if len(decision_rounds(cluster)) == 1]
    assert len(in_one_round) > 20
    for cluster in in_one_round:
        power = sum(cluster.validators.members[place].power for place in accused(cluster))
        assert 3 * power >= cluster.validators.total
    assert all(accused(cluster) <= cluster.twins for cluster in forked)
