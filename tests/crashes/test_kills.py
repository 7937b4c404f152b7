"""SIGKILL at any moment: nothing that was told is lost, nothing differs, no start is refused."""

from pathlib import Path

from crashes.campaign import Campaign

POINTS = 50
HEIGHT = 29  # the next block fills segments, makes a snapshot, and lets old blocks go


def test_killed_anywhere_it_loses_nothing_and_goes_on(tmp_path: Path) -> None:
    found = Campaign(tmp_path, seed=1).run(POINTS)
    assert found.faults == []
    assert found.points == POINTS


def test_killed_at_each_operation_of_a_start_and_a_block(tmp_path: Path) -> None:
    found = Campaign(tmp_path, seed=2).run_one_block(HEIGHT)
    assert found.faults == []
    assert {"pwrite", "fdatasync", "fsync", "replace", "unlink", "database"} <= found.at.keys()
