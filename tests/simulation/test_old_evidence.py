"""A validator that joined by a snapshot judges evidence from before it like all others, or waits.

Three of four validators make blocks; the fourth comes late. Then one of the three is accused of
what it did before the snapshot: with it gone, blocks need the late one.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from bundle_kit import party
from evidence_kit import raw_double_vote
from simulation.cluster import Cluster, run_script
from simulation.nodes import Node

from node.peering import lightserver
from node.peering.lightserver import PAST

EVERY, GAP = 10, 5
LATE = 3
OFFENDER = party("validator 2")
OFFENCE = 4  # its height


def _cluster(folder: Path, seed: int) -> Cluster:
    cluster = Cluster(folder, seed=seed)
    cluster.late = {LATE}
    for node in cluster.nodes:
        node.snapshot_every = EVERY
    cluster.nodes[LATE].use_disk()
    return cluster


async def _until(cluster: Cluster, is_so: Callable[[], bool]) -> None:
    with trio.fail_after(120):
        while not is_so():
            cluster.pay_next()
            await trio.sleep(0.6)


async def _joined(cluster: Cluster) -> Node:
    """The late validator stands on a snapshot and votes."""
    late = cluster.nodes[LATE]
    await _until(cluster, lambda: cluster.nodes[0].chain.height >= EVERY + 3)
    late.trust(cluster.nodes[0], gap_blocks=GAP)
    await cluster.start(late)
    assert late.chain.view().earliest == EVERY + 1
    await _until(cluster, lambda: late.replica.statistics().state == "validating")
    return late


def _accuse(cluster: Cluster) -> None:
    """One node with all blocks has found out, and will say so in its turn."""
    accuser = cluster.nodes[0]
    validators = accuser.chain.validators(OFFENCE)
    assert validators is not None
    raw = raw_double_vote(OFFENDER, validators, cluster.chain_id, OFFENCE)
    accuser.accusing.add(raw)
    assert len(accuser.accusing) == 1


def _is_out(node: Node) -> bool:
    return node.chain.tip.validators.index(OFFENDER.key) is None


def _check_agreed(cluster: Cluster) -> None:
    for height in range(EVERY + 1, min(node.chain.height for node in cluster.alive()) + 1):
        roots = {node.chain.header(height).state_root for node in cluster.alive()}
        assert len(roots) == 1, f"fork at height {height}"


async def _judges(cluster: Cluster) -> None:
    late = await _joined(cluster)
    _accuse(cluster)
    await _until(cluster, lambda: all(_is_out(node) for node in cluster.nodes))
    top = late.chain.height
    await _until(cluster, lambda: late.chain.height >= top + 3)
    _check_agreed(cluster)
    assert late.replica.counters["past_found"] == 1
    assert (late.home / "past" / str(OFFENCE)).exists()
    late.crash()
    await cluster.start(late)
    await _until(cluster, lambda: late.chain.height >= top + 5)
    _check_agreed(cluster)


async def _waits(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    late = await _joined(cluster)
    with monkeypatch.context() as patch:
        patch.setitem(lightserver._FINDERS, PAST, lambda view, height, at: None)
        _accuse(cluster)
        await _until(cluster, lambda: _is_out(cluster.nodes[0]))
        decided = cluster.nodes[0].chain.height
        for _ in range(10):
            cluster.pay_next()
            await trio.sleep(2)
        assert late.chain.height < decided, "it can neither judge that block nor take it"
        assert not _is_out(late)
        assert late.replica.counters["past_missing"] > 0
        assert late.replica.statistics().state == "validating"
        assert late.replica.counters["data_missing"] > 0, "decided as it was, peers gave it"
        assert late.replica.catchup.counters["bad"] == 0, "nobody is to blame for the block"
    await _until(cluster, lambda: _is_out(late))
    await _until(cluster, lambda: late.chain.height >= decided + 3)
    _check_agreed(cluster)


def test_late_validator_judges_what_was_done_before_it_came(tmp_path: Path) -> None:
    run_script(_cluster(tmp_path, 12), 12, _judges)


def test_past_that_nobody_shows_stops_the_one_who_lacks_it_and_forks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def script(cluster: Cluster) -> None:
        await _waits(cluster, monkeypatch)

    run_script(_cluster(tmp_path, 13), 13, script)
