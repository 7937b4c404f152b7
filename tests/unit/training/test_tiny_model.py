"""What a base leaves in its cache: itself, whole, or nothing."""

import os
from pathlib import Path

import pytest

from node.training.tiny_model import PART, Recipe, make_base

pytestmark = pytest.mark.ml

TINY = Recipe(documents=400, merges=40, hidden=16, inner=32, layers=1, heads=2, steps=6, batch=8)
DEAD_PID = 2**22 + 1  # above what Linux gives


def test_cancelled_training_leaves_nothing(tmp_path: Path) -> None:
    def stop(step: int, total: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_base(tmp_path, TINY, stop)
    assert list(tmp_path.iterdir()) == []


def test_what_a_crash_left_is_removed_and_what_lives_is_not(tmp_path: Path) -> None:
    name = TINY.hash().hex()[:16]
    dead, alive = tmp_path / f"{name}{PART}{DEAD_PID}", tmp_path / f"{name}{PART}{os.getppid()}"
    for folder in (dead, alive):
        folder.mkdir()
    made = make_base(tmp_path, TINY)
    assert {path.name for path in tmp_path.iterdir()} == {made.name, alive.name}
