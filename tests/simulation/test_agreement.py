"""Four real nodes in one thread agree, whatever the network and a crash do to them."""

from dataclasses import replace
from pathlib import Path

import pytest
import trio
from simulation.cluster import Cluster, run_script
from simulation.nodes import Node

from p2p.memory import Link


async def _pay(cluster: Cluster, times: int, every_s: float = 0.4) -> None:
    for _ in range(times):
        cluster.pay_everywhere()
        await trio.sleep(every_s)


def _settled(node: Node) -> int:
    """How many transfers the node's ledger has executed."""
    return node.chain.state().account(node.cluster.payer).nonce


async def _ten_transfers(cluster: Cluster) -> None:
    await trio.sleep(1)
    await _pay(cluster, 10)
    await trio.sleep(2)
    cluster.assert_agreed()
    assert [_settled(node) for node in cluster.nodes] == [10] * 4


def test_four_nodes_agree_and_settle_every_transfer(tmp_path: Path) -> None:
    run_script(Cluster(tmp_path, seed=1), 1, _ten_transfers)


def test_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    """A failing seed can then be replayed, message by message."""
    traces = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        traces.append(run_script(Cluster(tmp_path / name, seed=7), 7, _ten_transfers))
    assert traces[0] == traces[1]


async def _quiet(cluster: Cluster) -> None:
    await trio.sleep(25)
    assert [node.chain.height for node in cluster.nodes] == [0] * 4
    await trio.sleep(40)
    assert {node.chain.height for node in cluster.nodes} == {2}


def test_without_work_only_the_heartbeat_makes_blocks(tmp_path: Path) -> None:
    run_script(Cluster(tmp_path, seed=2), 2, _quiet)


async def _work_at_one(cluster: Cluster) -> None:
    await trio.sleep(1)
    for node in cluster.nodes[:1]:
        node.pay(0)
    await cluster.wait_all(1, timeout_s=32)
    cluster.assert_agreed()


def test_work_that_one_node_knows_waits_a_heartbeat_at_worst(tmp_path: Path) -> None:
    run_script(Cluster(tmp_path, seed=3), 3, _work_at_one)


async def _crash_and_return(cluster: Cluster) -> None:
    await trio.sleep(1)
    await _pay(cluster, 3)
    gone = cluster.nodes[2]
    gone.crash()
    await _pay(cluster, 6, every_s=1.5)
    height = min(node.chain.height for node in cluster.alive())
    assert height >= 5, "three of four go on without it"
    await cluster.start(gone)
    await trio.sleep(5)
    assert gone.chain.height >= height
    votes = gone.replica.counters["committed"]
    await _pay(cluster, 4)
    await trio.sleep(3)
    cluster.assert_agreed()
    assert gone.replica.statistics().state == "validating"
    assert gone.replica.counters["committed"] > votes, "it takes part again"
    assert {_settled(node) for node in cluster.nodes} == {13}


def test_crashed_node_returns_catches_up_and_votes(tmp_path: Path) -> None:
    run_script(Cluster(tmp_path, seed=4), 4, _crash_and_return)


async def _all_crash(cluster: Cluster) -> None:
    await trio.sleep(1)
    for turn in range(4):
        await _pay(cluster, 2, every_s=0.1 + 0.07 * turn)
        for node in cluster.nodes:
            node.crash()
        await trio.sleep(0.1)
        for node in cluster.nodes:
            await cluster.start(node)
        await trio.sleep(2.5)
        cluster.nonce = max(_settled(node) for node in cluster.nodes)
    await _pay(cluster, 2)
    await trio.sleep(3)
    cluster.assert_agreed()
    assert min(node.chain.height for node in cluster.nodes) >= 5


@pytest.mark.parametrize("seed", range(4))
def test_all_nodes_crash_at_once_and_go_on(tmp_path: Path, seed: int) -> None:
    """In the middle of a height: the journals must bring back locks, blocks and votes."""
    run_script(Cluster(tmp_path, seed=seed), seed, _all_crash)


async def _partition(cluster: Cluster) -> None:
    await trio.sleep(1)
    await _pay(cluster, 2)
    peers = [node.peer for node in cluster.nodes]
    cluster.hub.partition([peers[:2], peers[2:]])
    await trio.sleep(0.5)
    heights = [node.chain.height for node in cluster.nodes]
    await _pay(cluster, 3, every_s=2)
    assert max(node.chain.height for node in cluster.nodes) <= max(heights), "no half decides"
    cluster.hub.heal()
    await trio.sleep(15)
    await _pay(cluster, 2)
    await trio.sleep(3)
    cluster.assert_agreed()
    assert min(node.chain.height for node in cluster.nodes) > max(heights)


def test_halved_network_decides_nothing_and_heals(tmp_path: Path) -> None:
    run_script(Cluster(tmp_path, seed=5), 5, _partition)


async def _one_cut_off(cluster: Cluster) -> None:
    await trio.sleep(1)
    peers = [node.peer for node in cluster.nodes]
    cluster.hub.partition([peers[:3], peers[3:]])
    await _pay(cluster, 6, every_s=1.5)
    height = cluster.nodes[0].chain.height
    assert height >= 4
    assert cluster.nodes[3].chain.height == 0
    cluster.hub.heal()
    await _pay(cluster, 3, every_s=2)
    await trio.sleep(10)
    cluster.assert_agreed()
    assert cluster.nodes[3].chain.height > height


def test_node_that_was_cut_off_catches_up(tmp_path: Path) -> None:
    run_script(Cluster(tmp_path, seed=6), 6, _one_cut_off)


@pytest.mark.parametrize("seed", [11, 12])
def test_lossy_gossip_and_slow_links_cost_time_only(tmp_path: Path, seed: int) -> None:
    cluster = Cluster(tmp_path, seed=seed, delay_ms=(20, 150), loss=0.3, duplicate=0.2, reorder=0.3)
    run_script(cluster, seed, _slow)


async def _slow(cluster: Cluster) -> None:
    cluster.hub.set_link(
        cluster.nodes[0].peer, cluster.nodes[1].peer, Link(delay_ms=(400, 900), loss=0.5)
    )
    await trio.sleep(2)
    await _pay(cluster, 5, every_s=1)
    await trio.sleep(10)
    cluster.assert_agreed()
    assert [_settled(node) for node in cluster.nodes] == [5] * 4


async def _skewed(cluster: Cluster) -> None:
    await trio.sleep(1)
    await _pay(cluster, 12, every_s=1)
    await trio.sleep(3)
    cluster.assert_agreed()
    assert min(node.chain.height for node in cluster.nodes) >= 5
    times = [cluster.nodes[0].chain.header(h).time_ms for h in range(1, 6)]
    assert times == sorted(set(times)), "time only grows"


@pytest.mark.parametrize("skew_ms", [-30_000, 30_000])
def test_one_wrong_clock_costs_its_own_turns_only(tmp_path: Path, skew_ms: int) -> None:
    cluster = Cluster(tmp_path, seed=13)
    cluster.nodes[1].skew_ms = skew_ms
    run_script(cluster, 13, _skewed)
    wrong = cluster.nodes[1].identity.key
    if skew_ms > 0:
        assert all(header.proposer != wrong for header in cluster.seen_headers)


async def _follow(cluster: Cluster) -> None:
    await trio.sleep(1)
    await _pay(cluster, 5, every_s=1)
    await trio.sleep(4)
    cluster.assert_agreed()
    follower = cluster.nodes[4]
    assert follower.chain.height == cluster.nodes[0].chain.height >= 3
    assert follower.replica.statistics().state == "following"


def test_follower_without_a_key_has_every_block(tmp_path: Path) -> None:
    run_script(Cluster(tmp_path, seed=14, followers=1), 14, _follow)


async def _lone(cluster: Cluster) -> None:
    await _pay(cluster, 3, every_s=1)
    assert cluster.nodes[0].chain.height >= 3


def test_network_of_one_validator_makes_blocks(tmp_path: Path) -> None:
    run_script(Cluster(tmp_path, seed=15, bonds=[1]), 15, _lone)


async def _waits(cluster: Cluster) -> None:
    await trio.sleep(1)
    await _pay(cluster, 5, every_s=1)
    assert cluster.nodes[3].replica.statistics().state == "waiting"
    assert cluster.nodes[3].chain.height >= 2, "it follows meanwhile"
    await trio.sleep(10)
    assert cluster.nodes[3].replica.statistics().state == "validating"
    cluster.nodes[0].crash()
    await _pay(cluster, 3, every_s=1)
    await trio.sleep(2)
    cluster.assert_agreed()
    assert cluster.nodes[3].chain.height >= 4, "its vote is needed now, and is there"


def test_doppelganger_wait_follows_first_and_votes_later(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, seed=16)
    node = cluster.nodes[3]
    node.settings = replace(node.settings, doppelganger_wait_s=10.0)
    run_script(cluster, 16, _waits)


async def _sleep_and_wake(cluster: Cluster) -> None:
    await trio.sleep(1)
    await _pay(cluster, 3, every_s=0.6)
    follower = cluster.nodes[4]
    cluster.hub.stop(follower.peer)
    await _pay(cluster, 6, every_s=0.6)
    cluster.hub.resume(follower.peer)
    assert cluster.nodes[0].chain.height >= follower.chain.height + 3
    await _pay(cluster, 5, every_s=0.6)
    assert follower.chain.height >= cluster.nodes[0].chain.height - 1


def test_follower_that_slept_learns_of_newer_blocks_at_once(tmp_path: Path) -> None:
    """Gossip far above its height is not for it, but says that others are ahead."""
    run_script(Cluster(tmp_path, seed=6, followers=1), 6, _sleep_and_wake)
