"""Crashes, partitions and slow links at random: never two blocks at a height, and never stuck.

Phase 1 breaks things and looks for forks; phase 2 heals all and asks for new blocks everywhere.
"""

import random
from pathlib import Path

import pytest
import trio
from simulation.cluster import Cluster, run_script

from p2p.memory import Link

PHASES = 12
HEALED_S = 20


async def _crash_one(cluster: Cluster, rng: random.Random) -> None:
    node = rng.choice(cluster.nodes)
    if node in cluster.alive():
        node.crash()
        await trio.sleep(rng.uniform(0, 2))


async def _start_all(cluster: Cluster, rng: random.Random) -> None:
    for node in cluster.nodes:
        if node not in cluster.alive():
            await cluster.start(node)


async def _crash_all(cluster: Cluster, rng: random.Random) -> None:
    for node in cluster.alive():
        node.crash()
    await trio.sleep(rng.uniform(0, 0.5))
    await _start_all(cluster, rng)


async def _cut(cluster: Cluster, rng: random.Random) -> None:
    peers = [node.peer for node in cluster.nodes]
    rng.shuffle(peers)
    place = rng.randrange(1, 4)
    cluster.hub.partition([peers[:place], peers[place:]])


async def _heal(cluster: Cluster, rng: random.Random) -> None:
    cluster.hub.heal()


async def _slow_link(cluster: Cluster, rng: random.Random) -> None:
    one, other = rng.sample(cluster.nodes, 2)
    link = Link(delay_ms=(1, rng.randrange(5, 900)), loss=rng.random())
    cluster.hub.set_link(one.peer, other.peer, link)


FAULTS = (_crash_one, _start_all, _crash_all, _cut, _heal, _slow_link)


def _look_for_forks(cluster: Cluster) -> None:
    for height in range(1, max((n.chain.height for n in cluster.alive()), default=0) + 1):
        known = [node for node in cluster.alive() if node.chain.height >= height]
        assert len({node.chain.header(height).block_id() for node in known}) == 1, "FORK"


async def _break_and_heal(cluster: Cluster) -> None:
    rng = cluster.rng
    await trio.sleep(1)
    for _ in range(PHASES):
        for _ in range(rng.randrange(1, 4)):
            cluster.pay_everywhere()
            await trio.sleep(rng.uniform(0.05, 0.8))
        await rng.choice(FAULTS)(cluster, rng)
        _look_for_forks(cluster)
    cluster.hub.heal()
    for one in cluster.nodes:
        for other in cluster.nodes:
            cluster.hub.set_link(one.peer, other.peer, Link())
    await _start_all(cluster, rng)
    await trio.sleep(HEALED_S)
    top = max(node.chain.height for node in cluster.nodes)
    for _ in range(3):
        cluster.nonce = max(
            node.chain.state().account(cluster.payer).nonce for node in cluster.nodes
        )
        cluster.pay_everywhere()
        await trio.sleep(3)
    _look_for_forks(cluster)
    assert min(node.chain.height for node in cluster.nodes) > top, "STUCK"


@pytest.mark.parametrize("seed", range(16))
def test_faults_at_random_never_fork_and_never_stick(tmp_path: Path, seed: int) -> None:
    run_script(Cluster(tmp_path, seed=seed), seed, _break_and_heal)
