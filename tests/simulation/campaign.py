"""Whole nodes under faults, from one seed: real replicas, journals, chains, a disk that forgets.

Phase 1 breaks what it can, and every promise is checked as it could be broken; phase 2 heals all,
and every honest node must commit new blocks within ROUNDS_TO_DECIDE rounds.
`RUNS` names the kinds of runs: Twins, engines alone, whole nodes, and sessions of payers.
"""

from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Final

import trio
from simulation.cluster import Cluster, run_script
from simulation.faults import engine_run
from simulation.liars import LIES
from simulation.nodes import AMNESIA, Node
from simulation.outcomes import BROKEN, OK, ROUNDS_TO_DECIDE, STUCK, Outcome, Violation
from simulation.sessions import session_run
from simulation.twins import twins_run

from p2p.memory import Link

BONDS: Final = ((1, 1, 1, 1), (1, 1, 1, 1), (3, 3, 2, 1))
FAULTS_MIN, FAULTS_MAX = 4, 9
HEIGHTS_HEALED: Final = 2
HEALED_S: Final = 90.0
SKEW_MS: Final = 30_000
OPERATIONS: Final = 30  # of the disk, at most, until the power fails


async def _crash_one(cluster: Cluster, rng: Random) -> None:
    node = rng.choice(cluster.nodes)
    if node.is_alive:
        node.crash()
        await trio.sleep(rng.uniform(0, 2))


async def _fail_power(cluster: Cluster, rng: Random) -> None:
    """In the middle of a write or a sync, soon."""
    cluster.disk.fail_after(rng.choice(cluster.nodes).home, rng.randrange(OPERATIONS))


async def _start_all(cluster: Cluster, rng: Random) -> None:
    for node in cluster.nodes:
        if not node.is_alive:
            await cluster.start(node)


async def _crash_all(cluster: Cluster, rng: Random) -> None:
    for node in cluster.alive():
        node.crash()
    await trio.sleep(rng.uniform(0, 0.5))
    await _start_all(cluster, rng)


async def _cut(cluster: Cluster, rng: Random) -> None:
    peers = [node.peer for node in cluster.nodes]
    rng.shuffle(peers)
    place = rng.randrange(1, len(peers))
    cluster.hub.partition([peers[:place], peers[place:]])


async def _join(cluster: Cluster, rng: Random) -> None:
    cluster.hub.heal()


async def _slow_link(cluster: Cluster, rng: Random) -> None:
    one, other = rng.sample(cluster.nodes, 2)
    link = Link(delay_ms=(1, rng.randrange(5, 900)), loss=rng.random())
    cluster.hub.set_link(one.peer, other.peer, link)


FAULTS: Final = (_crash_one, _fail_power, _start_all, _crash_all, _cut, _join, _slow_link)


def make_cluster(seed: int, folder: Path) -> Cluster:
    """What the seed says of powers, wires, clocks and liars; liars hold less than a third."""
    rng = Random(f"whole {seed}")
    bonds = rng.choice(BONDS)
    lies: dict[int, list[str]] = {}
    if rng.random() < 0.7:
        liar = rng.choice([n for n, bond in enumerate(bonds) if 3 * bond < sum(bonds)])
        lies[liar] = rng.sample([*LIES, AMNESIA], rng.randrange(1, 4))
    cluster = Cluster(
        folder,
        seed=seed,
        bonds=bonds,
        lies=lies,
        delay_ms=rng.choice(((1, 5), (5, 20), (20, 150))),
        loss=rng.choice((0, 0.1, 0.3)),
        duplicate=rng.choice((0, 0.2)),
        reorder=rng.choice((0, 0.3)),
    )
    if rng.random() < 0.4:
        rng.choice(cluster.honest()).skew_ms = rng.choice((-SKEW_MS, SKEW_MS))
    return cluster


async def _break_and_heal(cluster: Cluster) -> None:
    rng = cluster.rng
    await trio.sleep(1)
    for _ in range(rng.randint(FAULTS_MIN, FAULTS_MAX)):
        for _ in range(rng.randrange(1, 3)):
            cluster.pay_next()
            await trio.sleep(rng.uniform(0.05, 0.8))
        await rng.choice(FAULTS)(cluster, rng)
    await _heal(cluster)
    begun = {node.chain.height + 1: node.replica.statistics().round for node in cluster.honest()}
    await _decide_more(cluster)
    _check_rounds(cluster, begun)
    for node in cluster.honest():
        state = node.replica.statistics().state
        if state != "validating":
            raise Violation(BROKEN, f"node {node.number} is {state}")


async def _heal(cluster: Cluster) -> None:
    cluster.hub.heal()
    cluster.disk.repair()
    for one in cluster.nodes:
        one.skew_ms = 0
        for other in cluster.nodes:
            cluster.hub.set_link(one.peer, other.peer, Link())
    await _start_all(cluster, cluster.rng)


async def _decide_more(cluster: Cluster) -> None:
    top = max(node.chain.height for node in cluster.nodes) + HEIGHTS_HEALED
    with trio.move_on_after(HEALED_S):
        while min(node.chain.height for node in cluster.honest()) < top:
            cluster.pay_next()
            await trio.sleep(0.5)
        return
    lowest = min(cluster.honest(), key=_height)
    raise Violation(STUCK, f"node {lowest.number} at {lowest.chain.height}, wanted {top}")


def _height(node: Node) -> int:
    return node.chain.height


def _check_rounds(cluster: Cluster, begun: dict[int, int]) -> None:
    best = max(cluster.honest(), key=_height)
    for height in range(min(begun), best.chain.height + 1):
        certificate = best.chain.certificate(height)
        first = max(0, begun.get(height, 0))
        if certificate is not None and certificate.round > first + ROUNDS_TO_DECIDE:
            raise Violation(STUCK, f"height {height} took until round {certificate.round}")


def whole_run(seed: int) -> Outcome:
    """One run of whole nodes in a folder of its own, and how it ended."""
    with TemporaryDirectory(prefix="olnode-simulation-") as folder:
        cluster = make_cluster(seed, Path(folder))
        try:
            trace = run_script(cluster, seed, _break_and_heal)
        except* Violation as group:
            violation = _first_of(group)
        else:
            return Outcome(OK, trace)
        return Outcome(violation.end, cluster.hub.trace_hash(), violation.why)


def _first_of(group: BaseExceptionGroup[Violation]) -> Violation:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Violation)
    return error


RUNS: Final[dict[str, Callable[[int], Outcome]]] = {
    "twins": twins_run,
    "engine": engine_run,
    "whole": whole_run,
    "session": session_run,
}


def play_one(kind: str, seed: int) -> Outcome:
    """One run of a kind, for a process of its own."""
    return RUNS[kind](seed)
