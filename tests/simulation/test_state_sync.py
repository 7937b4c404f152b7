"""A node that is new or far behind joins by a snapshot and follows; a kill in between costs little.

The nodes are whole ones; the newcomer's home is on a real disk, as a snapshot becomes its database.
"""

from pathlib import Path

import pytest
import trio
from network_kit import wait_until
from simulation.cluster import Cluster, run_script

from node.storage.lightfile import LightFile

EVERY = 10
GAP = 5


async def _grow(cluster: Cluster, height: int) -> None:
    """Until every living node but the newcomer has so many blocks."""
    while min(node.chain.height for node in cluster.alive()) < height:
        cluster.pay_next()
        await trio.sleep(0.6)


def _cluster(folder: Path, seed: int) -> Cluster:
    cluster = Cluster(folder, seed=seed, followers=1)
    cluster.late = {4}
    for node in cluster.nodes:
        node.snapshot_every = EVERY
    cluster.nodes[4].use_disk()
    return cluster


async def _follows(cluster: Cluster) -> None:
    """The newcomer stands on a snapshot, has the same blocks, and takes the next ones."""
    newcomer = cluster.nodes[4]
    assert newcomer.chain.view().earliest == EVERY + 1
    await _grow(cluster, max(node.chain.height for node in cluster.alive()) + 3)
    for height in range(newcomer.chain.view().earliest, newcomer.chain.height + 1):
        ids = {node.chain.header(height).block_id() for node in cluster.alive()}
        assert len(ids) == 1, f"fork at height {height}"
    first = newcomer.chain.state().account(cluster.payer)
    assert first.nonce > 0


async def _join(cluster: Cluster) -> None:
    newcomer = cluster.nodes[4]
    await _grow(cluster, 15)
    newcomer.trust(cluster.nodes[0], gap_blocks=GAP)
    await cluster.start(newcomer)
    assert newcomer.sync_counters["chunks"] > 0
    assert newcomer.chain.height >= 10
    await _follows(cluster)


async def _join_by_genesis(cluster: Cluster) -> None:
    """Nobody named a block: the set of the genesis leads to the snapshot's, others witness it."""
    newcomer = cluster.nodes[4]
    await _grow(cluster, 15)
    newcomer.trust_genesis(gap_blocks=GAP)
    await cluster.start(newcomer)
    assert newcomer.sync_counters["verified"] == 1
    assert newcomer.sync_counters["chunks"] > 0
    assert LightFile(newcomer.home, cluster.chain_id).load()[-1].height == EVERY
    newcomer.trusted = None
    await _follows(cluster)


async def _join_killed(cluster: Cluster) -> None:
    newcomer = cluster.nodes[4]
    await _grow(cluster, 15)
    newcomer.trust(cluster.nodes[0], gap_blocks=GAP)
    parts = newcomer.home / "snapshots"
    cluster.nursery.start_soon(newcomer.run)
    await wait_until(lambda: len(list(parts.glob("*.part/0000?"))) >= 2, 60)
    newcomer.crash()
    await trio.sleep(1)
    assert not (newcomer.home / "db.new").exists()
    await cluster.start(newcomer)
    assert newcomer.sync_counters["chunks_resumed"] >= 2
    await _follows(cluster)


async def _far_behind(cluster: Cluster) -> None:
    """It had blocks of its own, was away, and comes back over a gap."""
    newcomer = cluster.nodes[4]
    await cluster.start(newcomer)
    await _grow(cluster, 3)
    newcomer.crash()
    await _grow(cluster, 15)
    newcomer.trust(cluster.nodes[0], gap_blocks=GAP)
    await cluster.start(newcomer)
    assert newcomer.chain.height >= 10
    await _follows(cluster)
    newcomer.crash()
    await _grow(cluster, max(node.chain.height for node in cluster.alive()) + 3)
    await cluster.start(newcomer)
    await trio.sleep(5)
    await _follows(cluster)


async def _without_trust(cluster: Cluster) -> None:
    newcomer = cluster.nodes[4]
    await _grow(cluster, 15)
    await cluster.start(newcomer)
    await trio.sleep(5)
    assert newcomer.chain.view().earliest == 1
    assert newcomer.chain.height >= 15
    cluster.assert_agreed()


@pytest.mark.parametrize(
    "script", [_join, _join_by_genesis, _join_killed, _far_behind, _without_trust]
)
def test_newcomer_joins(tmp_path: Path, script: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.storage.snapshots.CHUNK_BYTES_MAX", 1_000)
    run_script(_cluster(tmp_path, 11), 11, script)
