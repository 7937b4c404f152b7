"""What is dropped for its age is never missed: a lost database comes back from our own snapshot."""

import shutil
from pathlib import Path

import pytest
from crashes.story import KEEP_VERSIONS, small_files, told
from stored_kit import GENESIS

from consensus.primitives.digest import sha256
from node.storage.chain import Chain
from node.storage.checking import check_home
from node.storage.errors import StorageError
from node.storage.snapshots import SnapshotStore

HEIGHT, OLDER, NEWER = 40, 20, 30  # of the chain and of its snapshots


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two snapshots, of which nothing was dropped yet."""
    home = tmp_path_factory.mktemp("grown") / "home"
    with small_files():
        chain = opened(home)
        for step in told()[:HEIGHT]:
            for bundle in step.bundles:
                chain.bundles.append(bundle)
            chain.commit_many([(step.block, step.certificate)])
            if chain.height in (OLDER, NEWER):
                SnapshotStore(home / "snapshots").make(chain.view())
        chain.close()
    return home


@pytest.fixture
def home(grown: Path, tmp_path: Path) -> Path:
    shutil.copytree(grown, tmp_path / "home")
    return tmp_path / "home"


def opened(home: Path) -> Chain:
    with small_files():
        return Chain.open(home, GENESIS, keep_versions=KEEP_VERSIONS)


def dropped(home: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """As if the window were over for all but the newest block."""
    monkeypatch.setattr("node.storage.chain.BODIES_KEPT_MS", -(10**12))
    chain = opened(home)
    gone = chain.prune_bodies(SnapshotStore(home / "snapshots").oldest_height())
    assert chain.bundles.has_dropped
    assert check_home(home, sha256(GENESIS)).findings == []
    chain.close()
    return gone


def test_bodies_older_than_every_snapshot_go_and_the_others_stay(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 0 < dropped(home, monkeypatch) <= OLDER
    chain = opened(home)
    kept = [bundle for step in told()[OLDER:HEIGHT] for bundle in step.bundles]
    assert [chain.bundles.get(bundle.hash) for bundle in kept] == kept
    assert chain.prune_bodies(0) == 0, "nothing goes where there is no snapshot"
    chain.close()


@pytest.mark.parametrize("rotten", [(), (NEWER,)])
def test_database_is_made_again_from_our_newest_whole_snapshot(
    home: Path, monkeypatch: pytest.MonkeyPatch, rotten: tuple[int, ...]
) -> None:
    dropped(home, monkeypatch)
    before = opened(home)
    state = list(before.view().reader.scan(b"s", b"t"))
    before.close()
    shutil.rmtree(home / "db")
    for height in rotten:
        (home / "snapshots" / str(height) / "00000").write_bytes(b"rotten")
    stands_on = OLDER if rotten else NEWER
    chain = opened(home)
    assert chain.steps[0] == f"database: loaded from the snapshot of block {stands_on}"
    assert chain.tip.block_id == told()[HEIGHT - 1].block_id
    assert list(chain.view().reader.scan(b"s", b"t")) == state
    chain.close()
    again = opened(home)
    view = again.view()
    assert (again.steps, view.earliest) == ((f"chain: height {HEIGHT}",), stands_on + 1)
    assert (view.record(stands_on), view.record(stands_on + 1) is None) == (None, False)
    step = told()[HEIGHT]
    for bundle in step.bundles:
        again.bundles.append(bundle)
    again.commit_many([(step.block, step.certificate)])
    assert again.height == HEIGHT + 1
    again.close()
    assert all("snapshot" in finding.part for finding in check_home(home, sha256(GENESIS)).findings)


def test_lost_database_without_a_whole_snapshot_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped(home, monkeypatch)
    shutil.rmtree(home / "db")
    shutil.rmtree(home / "snapshots")
    with pytest.raises(StorageError, match="cannot be replayed"):
        opened(home)


def test_fewer_kept_versions_leave_no_root_that_cannot_be_proved(home: Path) -> None:
    with small_files():
        chain = Chain.open(home, GENESIS, keep_versions=2)
        nodes = len(list(chain.view().reader.scan(b"n", b"o")))
        assert chain.prune_tree() > 0
        chain.close()
    chain = opened(home)
    reader = chain.view().reader
    assert len(list(reader.scan(b"n", b"o"))) < nodes
    assert len(list(reader.scan(b"r", b"s"))) == 3
    chain.close()
    assert check_home(home, sha256(GENESIS)).findings == []
