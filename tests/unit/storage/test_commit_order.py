"""Many blocks under one sync, ended at every point: each start finds all of a prefix, or more."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stored_kit import GENESIS, Stored

from node.storage import segments, store
from node.storage.chain import SYNC_BLOCKS_MAX, Chain
from node.storage.store import MemoryKV

BEFORE, BEHIND = 3, 12


class PowerGone(BaseException):
    """The end of the process, at one of its writes."""


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    made = Stored(tmp_path_factory.mktemp("source"), MemoryKV())
    for _ in range(BEFORE + BEHIND):
        made.block(made.pay(1))
    return made


class Steps:
    """Every write and sync of log and database, in order; ends the process at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, end_at: int | None = None) -> None:
        self.done: list[str] = []
        self.end_at = end_at
        self.patch = monkeypatch
        self.wrap(segments, "write_at", "log write")
        self.wrap(segments.os, "fdatasync", "log sync")
        self.wrap(store.LevelKV, "write", "database")

    def wrap(self, owner: Any, name: str, word: str) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def step(*arguments: Any) -> Any:
            if len(self.done) == self.end_at:
                raise PowerGone
            self.done.append(word)
            return real(*arguments)

        self.patch.setattr(owner, name, step)


def started(home: Path, story: Stored) -> Chain:
    chain = Chain.open(home, GENESIS)
    for pair in story.decided[:BEFORE]:
        chain.commit_many([pair])
    return chain


def test_log_is_synced_once_and_before_the_database(
    story: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert BEHIND <= SYNC_BLOCKS_MAX
    chain = started(tmp_path, story)
    with monkeypatch.context() as patch:
        steps = Steps(patch)
        chain.commit_many(story.decided[BEFORE:])
    assert steps.done == ["log write"] * BEHIND + ["log sync", "database"]
    chain.close()


@pytest.mark.parametrize("end_at", range(BEHIND + 2))
def test_start_after_an_end_at_any_point_recovers(
    story: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end_at: int
) -> None:
    chain = started(tmp_path / "home", story)
    with monkeypatch.context() as patch:
        Steps(patch, end_at)
        with pytest.raises(PowerGone):
            chain.commit_many(story.decided[BEFORE:])
    copy = Path(shutil.copytree(tmp_path / "home", tmp_path / "copy"))  # as a kill leaves it
    again = Chain.open(copy, GENESIS)
    assert again.height == BEFORE + min(end_at, BEHIND)
    again.commit_many(story.decided[again.height :])
    assert again.tip == story.chain.tip
    again.close()


@pytest.mark.parametrize("lost", range(BEHIND))
def test_power_cut_that_lost_any_unsynced_block_recovers(
    story: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    """The blocks behind the lost one may be on the disk all the same."""
    chain = started(tmp_path / "home", story)
    sizes = []
    path = tmp_path / "home" / "blocks" / "000001"
    with monkeypatch.context() as patch:
        steps = Steps(patch, BEHIND)
        real = segments.write_at

        def write(descriptor: int, data: bytes, offset: int) -> None:
            real(descriptor, data, offset)
            sizes.append((offset, offset + len(data)))

        patch.setattr(segments, "write_at", write)
        with pytest.raises(PowerGone):
            chain.commit_many(story.decided[BEFORE:])
    assert steps.done == ["log write"] * BEHIND
    copy = Path(shutil.copytree(tmp_path / "home", tmp_path / "copy"))
    data = bytearray(path.read_bytes())
    start, stop = sizes[lost]
    data[start:stop] = bytes(stop - start)
    (copy / "blocks" / "000001").write_bytes(bytes(data))
    again = Chain.open(copy, GENESIS)
    assert again.height == BEFORE + lost
    again.commit_many(story.decided[again.height :])
    assert again.tip == story.chain.tip
    again.close()
