"""Twins: a key that runs twice, honest each time, equivocates in every way honest code can.

After Bano et al., arXiv 2004.10617. A scenario scripts leaders by round and open ways by phase;
then all is healed, and everybody must decide the same.
"""

from collections.abc import Sequence
from hashlib import sha256
from random import Random
from typing import Final

from simulation.engines import Cluster, founded
from simulation.outcomes import FORK, OK, ROUNDS_TO_DECIDE, STUCK, Outcome

from consensus.validators import ValidatorSet

Profile = tuple[tuple[int, ...], tuple[int, ...]]  # powers; the members that have a twin
Ways = dict[tuple[int, int], bool]  # (sender, hearer) → whether it is open

# Powers in falling order, as members stand; the twins hold at most a third of the power.
PROFILES: Final[tuple[Profile, ...]] = (
    ((1, 1, 1, 1), (0,)),
    ((3, 3, 2, 1), (2,)),
    ((5, 3, 2, 1), (1,)),
    ((2, 2, 1), (2,)),
    ((1, 1, 1, 1, 1, 1, 1), (0, 1)),
)
ROUNDS: Final = 5  # scripted
STEPS: Final = 3
OPEN_MIN: Final = 0.5  # share of the ways that are open in a phase, at least
KEPT: Final = 0.5  # share of messages on closed ways that come later
TIMED_OUT: Final = 0.6  # share of nodes whose timer runs out in a phase


class Scripted(ValidatorSet):
    """A set whose leaders are written down; from round `turns_from` on all take turns."""

    def __init__(self, powers: tuple[int, ...], script: Sequence[bytes]) -> None:
        super().__init__(founded(powers).members, script[0])
        self._script = script
        self.turns_from = len(script)

    def proposer(self, round: int) -> bytes:
        """Whose turn it is."""
        if round < self.turns_from:
            return self._script[round % len(self._script)]
        return self.members[(round - self.turns_from) % len(self.members)].key


def twins_run(seed: int, profile: Profile | None = None) -> Outcome:
    """One scenario, and how it ended. Without `profile` the seed chooses one of PROFILES."""
    cluster = run_twins(seed, profile)
    return Outcome(_end(cluster), _trace(cluster))


def run_twins(seed: int, profile: Profile | None = None) -> Cluster:
    """The same, as it stands in the end."""
    rng = Random(seed)
    powers, twins = PROFILES[seed % len(PROFILES)] if profile is None else profile
    validators = Scripted(powers, _leaders(powers, twins, rng))
    cluster = Cluster(validators, twins)
    cluster.start()
    (_break_in_two if rng.random() < 0.5 else _break_ways)(cluster, rng)
    if len(cluster.decisions()) <= 1:
        _heal(cluster, validators, rng)
    return cluster


def _leaders(powers: tuple[int, ...], twins: Sequence[int], rng: Random) -> list[bytes]:
    """Half of the time one of those that can lie."""
    members = [member.key for member in founded(powers).members]
    lying = [members[place] for place in twins]
    return [rng.choice(lying if rng.random() < 0.5 else members) for _ in range(ROUNDS)]


def _break_in_two(cluster: Cluster, rng: Random) -> None:
    """Phases with two sides each; within a side everything arrives. Makes two worlds.

    Finds the fork of two twins in four in 8 % of all scenarios, a missing lock (L22) in none
    of 3,000.
    """
    random, nodes = rng.random, cluster.nodes
    side = [random() < 0.5 for _ in nodes]
    for _ in range(ROUNDS * STEPS):
        if random() < 0.5:  # else the sides of the last phase stay
            side = [random() < 0.5 for _ in nodes]
        cluster.deliver(rng, None if random() < 0.2 else side)
        for node in nodes:
            if random() < 0.8:
                node.fire(int(random() * STEPS))
                cluster.collect(node)
        if random() < 0.07:
            cluster.wires = [wire for wire in cluster.wires if random() > 0.3]


def _break_ways(cluster: Cluster, rng: Random) -> None:
    """Phases of one hop each: what is said in one is heard in the next, by some and not by others.

    Finds a missing lock (L22) in 0.7 % of all scenarios, the fork of two twins in none of 1,000.
    """
    for _ in range(ROUNDS * STEPS):
        share, ways = rng.uniform(OPEN_MIN, 1), dict[tuple[int, int], bool]()

        def is_open(one: int, other: int, share: float = share, ways: Ways = ways) -> bool:
            if (one, other) not in ways:
                ways[one, other] = rng.random() < share
            return ways[one, other]

        cluster.hop(is_open, KEPT, rng)
        for node in cluster.nodes:
            if node.timers and rng.random() < TIMED_OUT:
                node.fire(node.engine.step)
                cluster.collect(node)


def _heal(cluster: Cluster, validators: Scripted, rng: Random) -> None:
    """Everything arrives, and who lacks something is given it; from the next round on all lead.

    Within ROUNDS_TO_DECIDE each member has led, also the one that is locked alone.
    """
    last = max(node.engine.round for node in cluster.nodes)
    validators.turns_from = last + 1
    while min(node.engine.round for node in cluster.honest()) <= last + ROUNDS_TO_DECIDE:
        cluster.deliver(rng)
        if cluster.have_decided():
            return
        cluster.resend()
        cluster.deliver(rng)
        if cluster.have_decided():
            return
        cluster.fire(rng)


def _end(cluster: Cluster) -> str:
    if len(cluster.decisions()) > 1:
        return FORK
    return OK if cluster.have_decided() else STUCK


def _trace(cluster: Cluster) -> bytes:
    """What everybody said and decided."""
    digest = sha256()
    for node in cluster.nodes:
        digest.update(b"".join(record.body for record in node.records))
        digest.update(b"".join(commit.block_id for commit in node.commits))
    return digest.digest()
