"""A node that starts from a snapshot goes on like all others, whatever ends it in between."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chain_kit import PAYER
from snapshot_kit import Snapped, put_part
from stored_kit import GENESIS

from consensus.primitives import merkle
from consensus.primitives.errors import Invalid
from node.ledger import tree
from node.storage import adopting, segments, store
from node.storage.adopting import LOADING_NAME, PREPARED_NAME, take_in
from node.storage.chain import Chain
from node.storage.errors import StorageError
from node.storage.snapshots import SnapshotStore

OLD_BLOCKS = 3


@pytest.fixture(scope="module")
def snapped(tmp_path_factory: pytest.TempPathFactory) -> Snapped:
    return Snapped(tmp_path_factory.mktemp("snapped"))


def fetched(home: Path, snapped: Snapped) -> None:
    """As state sync leaves it: the chunks kept, the database prepared."""
    snapshots = SnapshotStore(home / "snapshots")
    snapped.put_part(snapshots)
    take_in(home, snapshots, snapped.manifest)


def reopen(home: Path) -> Chain:
    return Chain.open(home, GENESIS)


def behind(home: Path, snapped: Snapped) -> None:
    """A home that has a few blocks of its own."""
    chain = reopen(home)
    chain.commit_many(snapped.made.decided[:OLD_BLOCKS])
    chain.close()


def goes_on(home: Path, snapped: Snapped) -> None:
    """It stands on the snapshot and takes the blocks behind it."""
    chain = reopen(home)
    assert chain.tip == snapped.tip
    chain.commit_many(snapped.made.decided[snapped.height :])
    assert chain.tip == snapped.made.chain.tip
    chain.close()
    again = reopen(home)
    assert again.tip == snapped.made.chain.tip
    again.close()


def test_node_that_starts_from_a_snapshot_goes_on(snapped: Snapped, tmp_path: Path) -> None:
    fetched(tmp_path, snapped)
    goes_on(tmp_path, snapped)


def test_node_far_behind_leaves_its_old_blocks(snapped: Snapped, tmp_path: Path) -> None:
    behind(tmp_path, snapped)
    fetched(tmp_path, snapped)
    goes_on(tmp_path, snapped)
    chain = reopen(tmp_path)
    view = chain.view()
    assert view.earliest == snapped.height + 1
    assert view.block(OLD_BLOCKS) is None
    assert view.block(snapped.height) is None
    assert view.block(snapped.height + 1) == snapped.made.decided[snapped.height][0]
    assert view.validators(snapped.height) is not None
    assert view.height_at(0) == snapped.height
    assert not (tmp_path / PREPARED_NAME).exists()
    chain.close()


def test_every_record_and_every_later_block_is_proved(snapped: Snapped, tmp_path: Path) -> None:
    fetched(tmp_path, snapped)
    chain = reopen(tmp_path)
    chain.commit_many(snapped.made.decided[snapped.height :])
    view, header = chain.view(), chain.tip.header
    assert header is not None
    for key, value in view.base.scan(b"\0", b"\xff"):
        proof = tree.prove(view.base.read_node, view.base.tree_root, key)
        tree.verify(header.state_root, key, value, proof)
    for height in range(view.earliest, header.height):
        leaf = merkle.leaf_hash(view.get_header(height).block_id())
        path = view.history_path(height, header.height)
        merkle.verify_path(header.history_root, leaf, height - 1, header.height - 1, path)
    assert chain.state().account(PAYER.key) == snapped.made.chain.state().account(PAYER.key)
    chain.close()


def test_lost_database_is_loaded_from_the_snapshot_it_stood_on(
    snapped: Snapped, tmp_path: Path
) -> None:
    fetched(tmp_path, snapped)
    goes_on(tmp_path, snapped)
    shutil.rmtree(tmp_path / "db")
    chain = reopen(tmp_path)
    assert chain.tip == snapped.made.chain.tip
    assert chain.steps[0] == f"database: loaded from the snapshot of block {snapped.height}"
    chain.close()
    shutil.rmtree(tmp_path / "db")
    chunk = tmp_path / "snapshots" / str(snapped.height) / "00001"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(StorageError, match="not usable"):
        reopen(tmp_path)


def test_database_older_than_what_the_log_stands_on_is_loaded_again(
    snapped: Snapped, tmp_path: Path
) -> None:
    behind(tmp_path, snapped)
    shutil.copytree(tmp_path / "db", tmp_path / "old")
    fetched(tmp_path, snapped)
    goes_on(tmp_path, snapped)
    shutil.rmtree(tmp_path / "db")
    (tmp_path / "old").rename(tmp_path / "db")
    chain = reopen(tmp_path)
    assert chain.tip == snapped.made.chain.tip
    chain.close()


def test_prepared_database_of_an_older_height_is_removed(snapped: Snapped, tmp_path: Path) -> None:
    chain = reopen(tmp_path)
    for bundle in _bundles(snapped):
        chain.bundles.append(bundle)
    chain.commit_many(snapped.made.decided)
    chain.close()
    fetched(tmp_path, snapped)
    chain = reopen(tmp_path)
    assert chain.steps[0] == "snapshot: one that is no newer than our blocks was removed"
    assert chain.tip == snapped.made.chain.tip
    assert chain.view().earliest == 1
    chain.close()


def test_prepared_database_that_cannot_be_read_is_removed(snapped: Snapped, tmp_path: Path) -> None:
    behind(tmp_path, snapped)
    fetched(tmp_path, snapped)
    (tmp_path / PREPARED_NAME / "CURRENT").write_bytes(b"rotten")
    chain = reopen(tmp_path)
    said = "snapshot: one that cannot be read, or is of another chain, was removed"
    assert (chain.steps[0], chain.height) == (said, OLD_BLOCKS)
    chain.close()


def _bundles(snapped: Snapped) -> list[Any]:
    chain, found = snapped.made.chain, []
    for height in range(1, chain.height + 1):
        payload = chain.view().payload(height)
        assert payload is not None
        found += [chain.bundles.get(name) for name in payload.bundles]
    return found


class PowerGone(BaseException):
    """The end of the process, at one of its steps on the disk."""


class Steps:
    """Every write, sync, rename and removal; ends the process at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, end_at: int | None = None) -> None:
        self.count, self.end_at, self.patch = 0, end_at, monkeypatch
        for owner, name in (
            (segments, "write_at"),
            (segments.os, "fdatasync"),
            (segments.os, "fsync"),
            (segments.os, "unlink"),
            (store.LevelKV, "write"),
            (adopting.shutil, "rmtree"),
            (os, "rename"),
        ):
            self.wrap(owner, name)

    def wrap(self, owner: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def step(*arguments: Any, **options: Any) -> Any:
            if self.count == self.end_at:
                raise PowerGone
            self.count += 1
            return real(*arguments, **options)

        self.patch.setattr(owner, name, step)


def steps_of(home: Path, patch: pytest.MonkeyPatch) -> int:
    with patch.context() as inner:
        steps = Steps(inner)
        reopen(home).close()
    return steps.count


def test_adoption_ended_at_any_step_is_finished_by_the_next_start(
    snapped: Snapped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind(tmp_path / "home", snapped)
    fetched(tmp_path / "home", snapped)
    whole = Path(shutil.copytree(tmp_path / "home", tmp_path / "whole"))
    count = steps_of(whole, monkeypatch)
    assert count >= 6
    for end_at in range(count):
        home = Path(shutil.copytree(tmp_path / "home", tmp_path / str(end_at)))
        with monkeypatch.context() as patch:
            Steps(patch, end_at)
            with pytest.raises(PowerGone):
                reopen(home).close()
        again = Path(shutil.copytree(home, tmp_path / f"{end_at} again"))
        goes_on(again, snapped)


def ended_at(write_number: int) -> Callable[..., None]:
    """`LevelKV.write`, but for the end of the process in place of one call."""
    real, count = store.LevelKV.write, [0]

    def write(self: Any, puts: Any, deletes: Any = ()) -> None:
        if count[0] == write_number:
            raise PowerGone
        count[0] += 1
        real(self, puts, deletes)

    return write


def test_load_ended_at_any_write_leaves_the_old_chain(
    snapped: Snapped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database without its height is no chain: nothing is used before its root matches."""
    behind(tmp_path / "home", snapped)
    snapped.put_part(SnapshotStore(tmp_path / "home" / "snapshots"))
    writes = len(snapped.manifest.chunks) + 3  # state, nodes, root record, height
    for end_at in range(writes + 2):  # the last two: before each rename
        home = Path(shutil.copytree(tmp_path / "home", tmp_path / str(end_at)))
        with monkeypatch.context() as patch:
            patch.setattr(store.LevelKV, "write", ended_at(end_at))
            patch.setattr(adopting.shutil, "rmtree", lambda *_, **__: None)  # dead men clean up not
            patch.setattr(SnapshotStore, "adopt", dead if end_at == writes else SnapshotStore.adopt)
            patch.setattr(Path, "rename", dead)
            with pytest.raises(PowerGone):
                take_in(home, SnapshotStore(home / "snapshots"), snapped.manifest)
        chain = reopen(home)
        assert (chain.height, chain.steps) == (OLD_BLOCKS, (f"chain: height {OLD_BLOCKS}",))
        assert not (home / LOADING_NAME).exists()
        chain.close()


def dead(*_: Any) -> None:
    raise PowerGone


def test_false_snapshot_changes_nothing(snapped: Snapped, tmp_path: Path) -> None:
    behind(tmp_path, snapped)
    manifest, read = snapped.of_chunks([snapped.pairs()[:-1]])
    snapshots = SnapshotStore(tmp_path / "snapshots")
    put_part(snapshots, manifest, read)
    with pytest.raises(Invalid, match=r"snapshot\.root"):
        take_in(tmp_path, snapshots, manifest)
    assert snapshots.manifests() == []
    assert not (tmp_path / PREPARED_NAME).exists()
    assert not (tmp_path / LOADING_NAME).exists()
    chain = reopen(tmp_path)
    assert chain.height == OLD_BLOCKS
    chain.close()
