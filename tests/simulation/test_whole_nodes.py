"""Whole nodes under crashes, torn files, partitions, wrong clocks and liars: one chain, growing."""

import os
from pathlib import Path
from random import Random

import pytest
import trio
from simulation.campaign import make_cluster, whole_run
from simulation.cluster import Cluster, run_script
from simulation.disk import PowerLost, SeededDisk
from simulation.liars import LIES
from simulation.outcomes import Played, failures

RUNS = 100


def test_faults_never_fork_and_never_stick(played: Played) -> None:
    assert failures("whole", played("whole")) == []


def test_same_seed_gives_the_same_trace() -> None:
    assert len({whole_run(7).trace for _ in range(2)}) == 1


def test_runs_hold_what_they_promise(tmp_path: Path) -> None:
    """Faults that never happen would show nothing."""
    clusters = []
    for seed in range(RUNS):
        (tmp_path / str(seed)).mkdir()
        clusters.append(make_cluster(seed, tmp_path / str(seed)))
    nodes = [node for cluster in clusters for node in cluster.nodes]
    assert {lie for node in nodes for lie in node.lies} > set(LIES)
    assert {node.skew_ms for node in nodes} == {-30_000, 0, 30_000}
    assert sum(bool(node.lies) for node in nodes) > RUNS // 2


async def _fail_while_coming_up(cluster: Cluster) -> None:
    await trio.sleep(1)
    cluster.pay_next()
    await cluster.wait_all(1)
    came_up = []
    for node, operations in zip(cluster.nodes, (0, 1, 2, 20), strict=True):
        node.crash()
        await node.ended.wait()
        cluster.disk.fail_after(node.home, operations)
        await cluster.start(node)
        came_up.append(node.is_alive)
        cluster.disk.repair()
        if not node.is_alive:
            await cluster.start(node)
        assert node.is_alive
    assert came_up == [False, False, False, True]
    cluster.pay_next()
    await cluster.wait_all(2)


def test_node_whose_power_fails_as_it_comes_up_comes_up_later(tmp_path: Path) -> None:
    run_script(Cluster(tmp_path, seed=1), 1, _fail_while_coming_up)


# --- the disk


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "0").mkdir()
    return tmp_path / "0"


def _write(home: Path, parts: list[bytes], synced: int) -> None:
    """Append `parts` to a file; the first `synced` of them durably."""
    descriptor = os.open(home / "log", os.O_RDWR | os.O_CREAT)
    try:
        for number, part in enumerate(parts):
            os.pwrite(descriptor, part, sum(map(len, parts[:number])))
            if number + 1 == synced:
                os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def test_synced_writes_survive_and_of_the_others_a_torn_prefix(tmp_path: Path, home: Path) -> None:
    parts = [bytes([place]) * 10 for place in range(5)]
    whole = b"".join(parts)
    sizes = set()
    for seed in range(60):
        disk = SeededDisk(tmp_path, Random(seed))
        with disk.mounted():
            _write(home, parts, synced=2)
            disk.crash(home)
        left = (home / "log").read_bytes()
        assert whole.startswith(left)
        assert len(left) >= 20
        sizes.add(len(left))
        (home / "log").unlink()
    assert {20, 50} <= sizes
    assert any(size % 10 for size in sizes), "torn in the middle of a write"


def test_overwritten_bytes_come_back(tmp_path: Path, home: Path) -> None:
    disk = SeededDisk(tmp_path, Random(0))
    (home / "signer").write_bytes(b"a" * 8)
    descriptor = os.open(home / "signer", os.O_RDWR)
    with disk.mounted():
        os.pwrite(descriptor, b"bbbb", 2)
        assert (home / "signer").read_bytes() == b"aabbbbaa"
        disk.crash(home)
        os.pwrite(descriptor, b"cccc", 2)  # the power is off
    os.close(descriptor)
    assert (home / "signer").read_bytes() in {b"aa" + b"b" * n + b"a" * (6 - n) for n in range(5)}


def test_power_fails_at_the_operation_that_was_named(tmp_path: Path, home: Path) -> None:
    disk = SeededDisk(tmp_path, Random(0))
    disk.fail_after(home, 3)  # write, sync, write, and here it ends
    with disk.mounted():
        with pytest.raises(PowerLost):
            _write(home, [b"one", b"two", b"three"], synced=1)
        disk.revive(home)
        _write(home, [b"one"], synced=1)
    assert (home / "log").read_bytes().startswith(b"one")
