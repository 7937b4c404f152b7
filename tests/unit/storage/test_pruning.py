"""What is dropped for its age is never missed: a lost database comes back from our own snapshot."""

import shutil
from pathlib import Path

import pytest
from crashes.story import KEEP_VERSIONS, small_files, told
from stored_kit import GENESIS

from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid
from node.ledger.wire.blocks import decode_payload
from node.ledger.wire.transactions import decode_transaction
from node.storage.adopting import take_in
from node.storage.chain import Chain
from node.storage.checking import Checked, check_home
from node.storage.errors import StorageError
from node.storage.proving import transaction_proof
from node.storage.scrubbing import Progress
from node.storage.snapshots import SnapshotStore
from node.storage.store import LevelKV
from node.storage.views import View
from node.web.reading import find_block, find_transaction

HEIGHT, OLDER, NEWER = 40, 20, 30  # of the chain and of its snapshots
KEPT_MS = -(10**12)  # as if the window were over for all but the newest block


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


def checked(home: Path) -> Checked:
    return check_home(home, sha256(GENESIS), bodies_kept_ms=KEPT_MS)


def dropped(home: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("node.storage.chain.BODIES_KEPT_MS", KEPT_MS)
    chain = opened(home)
    gone = chain.prune_bodies(SnapshotStore(home / "snapshots").oldest_height())
    assert chain.bundles.has_dropped
    chain.close()  # first: an open database puts its tables away while they are read
    assert checked(home).findings == []
    return gone


def test_bodies_older_than_every_snapshot_go_and_the_others_stay(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 0 < dropped(home, monkeypatch) <= OLDER
    chain = opened(home)
    kept = [bundle for step in told()[OLDER - 1 : HEIGHT] for bundle in step.bundles]
    assert [chain.bundles.get(bundle.hash) for bundle in kept] == kept
    assert chain.prune_bodies(0) == 0, "nothing goes where there is no snapshot"
    chain.close()


def test_body_that_came_before_its_block_goes_by_its_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when catching up, or from a pool: it is dated long before it is settled."""
    monkeypatch.setattr("node.storage.chain.BODIES_KEPT_MS", KEPT_MS)
    chain = opened(tmp_path)
    for start in range(0, HEIGHT, OLDER):
        some = told()[start : start + OLDER]
        for step in some:
            for bundle in step.bundles:
                chain.bundles.append(bundle)
        chain.commit_many([(step.block, step.certificate) for step in some])
    assert chain.prune_bodies(OLDER) > 0
    assert chain.prune_bodies(NEWER) > 0
    for height, step in enumerate(told()[:HEIGHT], start=1):
        held = [chain.bundles.get(bundle.hash) for bundle in step.bundles]
        assert held == list(step.bundles) or height < NEWER
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
    assert all("snapshot" in finding.part for finding in checked(home).findings)


def test_lost_database_without_a_whole_snapshot_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped(home, monkeypatch)
    shutil.rmtree(home / "db")
    shutil.rmtree(home / "snapshots")
    with pytest.raises(StorageError, match="cannot be replayed"):
        opened(home)


# ---- payloads


def pruned(home: Path, monkeypatch: pytest.MonkeyPatch) -> Chain:
    """The chain after its payloads older than OLDER went, and their files with them."""
    monkeypatch.setattr("node.storage.chain.BODIES_KEPT_MS", KEPT_MS)
    monkeypatch.setattr("node.storage.chain.HEADS_MOVED_MAX", 8)
    chain = opened(home)
    moved = [chain.prune_payloads(OLDER) for _ in range(4)]
    assert moved == [8, 8, 3, 0]
    chain.close()
    return opened(home)


def heads_of(view: View) -> list[object]:
    """All that is kept of a block for ever, and what is proved by it."""
    heights = range(1, view.height)
    return [
        *map(view.header, heights),
        *map(view.certificate, heights),
        *(view.light_block(height) for height in heights),
        *(view.past_block(height, view.height) for height in heights[:-1]),
        *map(view.find_decided, heights),
    ]


def test_old_payloads_go_and_headers_certificates_and_proofs_stay(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = opened(home)
    before, size = heads_of(chain.view()), folder_bytes(home / "blocks")
    assert not (home / "heads").exists()
    chain.close()
    chain = pruned(home, monkeypatch)
    view = chain.view()
    assert heads_of(view) == before
    assert (view.earliest, view.earliest_whole) == (1, OLDER)
    assert (view.record(OLDER - 1), view.block(OLDER - 1)) == (None, None)
    assert view.block(OLDER) == told()[OLDER - 1].block
    with pytest.raises(Invalid, match=r"block\.pruned"):
        view.payload(OLDER - 1)
    assert folder_bytes(home / "blocks") + folder_bytes(home / "heads") < size
    assert not (home / "blocks" / "000001").exists(), "this opening dropped it"
    scrub = chain.scrub(Progress(), is_archive=True)
    while not scrub.is_over:
        assert not scrub.step().findings
    chain.close()
    assert checked(home).findings == []


def test_whoever_asks_for_what_was_pruned_is_told_so(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = pruned(home, monkeypatch)
    view = chain.view()
    old = decode_payload(told()[OLDER - 2].block.payload).transactions[0]
    tx_id = decode_transaction(old).tx_id
    for ask in (
        lambda: find_block(view, OLDER - 1),
        lambda: find_transaction(view, tx_id, None),
        lambda: transaction_proof(view, tx_id),
    ):
        with pytest.raises(Invalid, match=r"block\.pruned"):
            ask()
    assert find_block(view, OLDER) is not None
    chain.close()


def test_chain_goes_on_and_a_lost_database_comes_back_without_old_payloads(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned(home, monkeypatch).close()
    shutil.rmtree(home / "db")
    chain = opened(home)
    assert chain.steps[0] == f"database: loaded from the snapshot of block {NEWER}"
    step = told()[HEIGHT]
    for bundle in step.bundles:
        chain.bundles.append(bundle)
    chain.commit_many([(step.block, step.certificate)])
    assert chain.view().earliest_whole == NEWER + 1
    chain.close()
    assert opened(home).height == HEIGHT + 1


@pytest.mark.parametrize("lacks", ["nothing", "database"])
def test_gap_in_the_heads_of_a_chain_that_came_back_from_its_snapshot_is_no_damage(
    home: Path, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    """Nor where the database that says so is lost once more."""
    pruned(home, monkeypatch).close()
    shutil.rmtree(home / "db")
    chain, store = opened(home), SnapshotStore(home / "snapshots")
    store.make(chain.view())
    assert chain.prune_payloads(HEIGHT) > 0
    heights = [height for height, _ in chain._log.heads.places()]
    assert heights[OLDER - 2 : OLDER] == [OLDER - 1, NEWER + 1]
    chain.close()
    if lacks == "database":
        shutil.rmtree(home / "db")
    read = checked(home)
    assert {finding.part for finding in read.findings} <= {lacks}
    assert read.height == HEIGHT


@pytest.mark.parametrize("loses", ["database", "heads"])
def test_end_between_heads_and_database_loses_no_block(
    home: Path, monkeypatch: pytest.MonkeyPatch, loses: str
) -> None:
    """Heads are durable before the database names them; what was torn is moved again."""
    monkeypatch.setattr("node.storage.chain.BODIES_KEPT_MS", KEPT_MS)
    chain = opened(home)
    before = heads_of(chain.view())

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LevelKV, "write", end)
        with pytest.raises(KeyboardInterrupt):
            chain.prune_payloads(OLDER)
    if loses == "heads":
        newest = max((home / "heads").iterdir())
        newest.write_bytes(newest.read_bytes()[:-3])
    chain.close()
    again = opened(home)
    lost = loses == "heads"
    assert heads_of(again.view()) == before
    assert again.view().earliest_whole == OLDER - lost
    assert again.prune_payloads(OLDER) == lost
    again.close()
    assert checked(home).findings == []


def test_node_that_began_with_a_snapshot_drops_payloads_too(
    grown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what its block log stood on: the database still says so, or a newer snapshot does."""
    monkeypatch.setattr("node.storage.chain.BODIES_KEPT_MS", KEPT_MS)
    source, store = SnapshotStore(grown / "snapshots"), SnapshotStore(tmp_path / "snapshots", 1)
    manifest = source.find(OLDER)
    assert manifest is not None
    store.copy_in(manifest, source.folder(OLDER))
    take_in(tmp_path, store, manifest)
    chain = opened(tmp_path)
    for step in told()[OLDER:HEIGHT]:
        for bundle in step.bundles:
            chain.bundles.append(bundle)
        chain.commit_many([(step.block, step.certificate)])
    assert keep_and_drop(chain, store, "payloads") == HEIGHT - OLDER - 1
    assert store.find(OLDER) is not None, "nothing but it brings a lost database back yet"
    chain.close()
    opened(tmp_path).close()
    chain = opened(tmp_path)
    view = chain.view()
    assert store.prune(view.needed_snapshot) == 1
    assert store.find(OLDER) is None
    assert (view.earliest, view.earliest_whole) == (OLDER + 1, HEIGHT)
    assert view.header(OLDER) == manifest.footing.header
    assert all(view.certificate(height) for height in range(OLDER + 1, HEIGHT + 1))
    chain.close()
    assert checked(tmp_path).findings == []
    shutil.rmtree(tmp_path / "db")
    chain = opened(tmp_path)
    assert chain.steps[0] == f"database: loaded from the snapshot of block {HEIGHT}"
    chain.close()


def keep_and_drop(chain: Chain, store: SnapshotStore, what: str) -> int:
    """As a node does: a snapshot of now, then what is older goes; how much did."""
    store.make(chain.view())
    store.prune(chain.view().needed_snapshot)
    prune = {"bodies": chain.prune_bodies, "payloads": chain.prune_payloads}[what]
    return prune(store.oldest_height(chain.view().earliest))


@pytest.mark.parametrize("what", ["bodies", "payloads"])
def test_node_that_came_back_from_its_own_snapshot_goes_on_dropping(
    home: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    dropped(home, monkeypatch)
    shutil.rmtree(home / "db")
    chain, store = opened(home), SnapshotStore(home / "snapshots", 1)
    assert chain.view().earliest == NEWER + 1
    assert keep_and_drop(chain, store, what) > 0
    assert [manifest.height for manifest in store.manifests()] == [HEIGHT]
    chain.close()
    shutil.rmtree(home / "db")
    chain = opened(home)
    assert chain.tip.block_id == told()[HEIGHT - 1].block_id
    chain.close()


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


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
    assert checked(home).findings == []
