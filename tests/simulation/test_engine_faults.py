"""Engines alone under loss, partitions, crashes and liars: never two decisions, never stuck."""

from collections import Counter

import pytest
from simulation.faults import World, engine_run
from simulation.hosts import Host, sign_as
from simulation.liars import LIES, Mouth
from simulation.outcomes import BROKEN, Played, Violation, failures

from consensus.messages import Vote


def test_faults_never_fork_and_never_stick(played: Played) -> None:
    assert failures("engine", played("engine")) == []


def test_same_seed_gives_the_same_trace() -> None:
    traces = [[engine_run(seed).trace for seed in range(20)] for _ in range(2)]
    assert traces[0] == traces[1]
    assert len(set(traces[0])) == 20


def test_runs_hold_what_they_promise() -> None:
    """Faults that never happen would show nothing."""
    worlds = [World(seed) for seed in range(100)]
    kinds = Counter(lie for world in worlds for mouth in world.liars.values() for lie in mouth.lies)
    assert set(kinds) == set(LIES)
    assert any(world.forgetful for world in worlds)
    for world in worlds:
        liars = sum(world.validators(1).members[name].power for name in world.liars)
        assert 3 * liars < world.validators(1).total
        world.run()
    assert sum(host.life > 0 for world in worlds for host in world.hosts) > 200, "crashes"
    assert sum(max(world.rounds.values()) > 0 for world in worlds) > 50, "more than one round"


def test_validator_that_says_two_things_is_noticed() -> None:
    """The test of the tester."""
    world = World(1)
    host = next(host for host in world.hosts if host.name not in world.liars)

    def vote(block_id: bytes) -> Vote:
        return Vote(1, 1, 0, block_id, host.name)

    world.note_said(host, vote(b"a" * 32))
    world.note_said(host, vote(b"a" * 32))
    with pytest.raises(Violation, match=BROKEN):
        world.note_said(host, vote(b"b" * 32))


def _sign(tag: bytes, body: bytes) -> bytes:
    return sign_as(b"k" * 32, tag, body)


@pytest.mark.parametrize("kind", sorted(LIES))
def test_liar_says_something_else_than_it_should(kind: str) -> None:
    world = World(2)
    mouth = Mouth([kind], world.rng, _sign)
    vote = Vote(1, 1, 3, b"a" * 32, 0, bytes(64))
    mouth.hear(vote)
    told = [mouth.say(vote, hearer) for _ in range(4) for hearer in range(3)]
    if kind != "invalid":  # which lies in its proposals
        assert any(words != [vote] for words in told)


def test_unsigned_words_reach_no_engine() -> None:
    world = World(3)
    host: Host = world.hosts[0]
    host.restart()
    before = host.engine.snapshot()
    host.hear(1, Vote(1, 1, 0, b"a" * 32, 1, bytes(64)))
    assert host.engine.snapshot() == before
