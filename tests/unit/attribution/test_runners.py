"""A shard is run wherever a worker lives, and a dead worker's shard is run again."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from node.attribution.runners import LocalRunner, ShardLost


@dataclass(frozen=True)
class Square:
    """A task; on the first `deaths` tries of shard 2 its worker kills itself."""

    folder: Path
    deaths: int = 0

    def __call__(self, shard: int) -> bytes:
        if shard == 2:
            tries = len(list(self.folder.glob("try*")))
            (self.folder / f"try{tries}").touch()
            if tries < self.deaths:
                os.kill(os.getpid(), signal.SIGKILL)
        return (shard * shard).to_bytes(4)


def failing(shard: int) -> bytes:
    raise ValueError("the task's own fault")


SQUARES = {shard: (shard * shard).to_bytes(4) for shard in range(5)}


@pytest.mark.parametrize("workers", [1, 2])
def test_every_shard_is_run(tmp_path: Path, workers: int) -> None:
    assert dict(LocalRunner(workers).map(Square(tmp_path), range(5))) == SQUARES


def test_shard_of_a_dead_worker_is_run_again(tmp_path: Path) -> None:
    assert dict(LocalRunner(2).map(Square(tmp_path, deaths=1), range(5))) == SQUARES


def test_shard_whose_worker_dies_three_times_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(ShardLost):
        dict(LocalRunner(2).map(Square(tmp_path, deaths=99), (2, 2_000)))


@pytest.mark.parametrize("workers", [1, 2])
def test_fault_of_the_task_is_raised_as_it_is(workers: int) -> None:
    with pytest.raises(ValueError, match="own fault"):
        dict(LocalRunner(workers).map(failing, range(3)))
