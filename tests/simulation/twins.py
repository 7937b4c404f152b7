"""Twins: a key that runs twice, honest each time, equivocates in every way honest code can.

After Bano et al., arXiv 2004.10617. A scenario scripts leaders by round and partitions by phase;
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
    _break(cluster, rng)
    if len(cluster.decisions()) <= 1:
        _heal(cluster, validators, rng)
    return cluster


def _leaders(powers: tuple[int, ...], twins: Sequence[int], rng: Random) -> list[bytes]:
    """Half of the time one of those that can lie."""
    members = [member.key for member in founded(powers).members]
    lying = [members[place] for place in twins]
    return [rng.choice(lying if rng.random() < 0.5 else members) for _ in range(ROUNDS)]


def _break(cluster: Cluster, rng: Random) -> None:
    """Phases with a partition each, timers that run out here and there, and losses."""
    random, nodes = rng.random, cluster.nodes
    side = [random() < 0.5 for _ in nodes]
    for _ in range(ROUNDS * STEPS):
        if random() < 0.5:  # else the partition of the last phase stays
            side = [random() < 0.5 for _ in nodes]
        cluster.deliver(None if random() < 0.2 else side, rng)
        for node in nodes:
            if random() < 0.8:
                node.fire(int(random() * STEPS))
                cluster.collect(node)
        if random() < 0.07:
            cluster.wires = [wire for wire in cluster.wires if random() > 0.3]


def _heal(cluster: Cluster, validators: Scripted, rng: Random) -> None:
    """Everything arrives, and who lacks something is given it; from the next round on all lead.

    Within ROUNDS_TO_DECIDE each member has led, also the one that is locked alone.
    """
    last = max(node.engine.round for node in cluster.nodes)
    validators.turns_from = last + 1
    while min(node.engine.round for node in cluster.honest()) <= last + ROUNDS_TO_DECIDE:
        cluster.deliver(None, rng)
        if cluster.have_decided():
            return
        cluster.resend()
        cluster.deliver(None, rng)
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
