"""A check finds every byte that is not as it was written, and changes none."""

import random
import shutil
from pathlib import Path

import pytest
from files_kit import contents, flip
from stored_kit import GENESIS, Stored, Told

from consensus.primitives.digest import sha256
from node.storage.chain import Chain
from node.storage.checking import Checked, check_home
from node.storage.errors import StorageError
from node.storage.snapshots import SnapshotStore
from node.storage.store import suspect

CHAIN_ID = sha256(GENESIS)
FETCHED_BY_SCRUB = "olnode start: its scrub fetches bodies from peers"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with blocks, a bundle, a snapshot, and a database whose log became a table."""
    home = tmp_path_factory.mktemp("written") / "home"
    told = Told(home)
    for _ in range(5):
        told.made.block(told.made.pay())
    SnapshotStore(home / "snapshots").make(told.made.chain.view())
    told.made.chain.close()
    Chain.open(home, GENESIS).close()
    return home


@pytest.fixture
def home(written: Path, tmp_path: Path) -> Path:
    shutil.copytree(written, tmp_path / "home")
    return tmp_path / "home"


def check(home: Path) -> Checked:
    return check_home(home, CHAIN_ID)


def test_what_is_whole_is_said_to_be_and_nothing_is_written(home: Path) -> None:
    before = contents(home)
    checked = check(home)
    assert checked.findings == []
    assert checked.counts["blocks"] == checked.height > 5
    assert checked.counts["bundles"] == checked.counts["snapshots"] == 1
    assert checked.counts["keys"] > 50
    assert contents(home) == before


@pytest.mark.parametrize("part", ["blocks", "bundles", "snapshots"])
def test_each_flipped_bit_of_a_log_or_snapshot_is_found(home: Path, part: str) -> None:
    rng = random.Random(part)
    files = [path for path in (home / part).rglob("*") if path.is_file() and path.stat().st_size]
    for _ in range(25):
        path = rng.choice(files)
        at = rng.randrange(path.stat().st_size)
        flip(path, at)
        checked = check(home)
        # The end of the newest log is a torn tail to the next start: it is cut, and replayed.
        is_tail = part != "snapshots" and fewer(checked, part)
        assert checked.findings or is_tail, (path, at)
        flip(path, at)
    assert check(home).findings == []


def fewer(checked: Checked, part: str) -> bool:
    return checked.counts[part] < {"blocks": 13, "bundles": 1}[part]


def test_each_flipped_bit_of_a_table_is_found_or_harmless(home: Path) -> None:
    """A flip in a part that no key lies in changes nothing that is read."""
    rng = random.Random(7)
    (table,) = (home / "db").glob("*.ldb")
    found = 0
    for _ in range(25):
        at = rng.randrange(table.stat().st_size)
        flip(table, at)
        found += bool(check(home).findings)
        flip(table, at)
    assert found >= 20
    assert check(home).findings == []


def test_a_state_that_is_not_its_roots_is_found(home: Path) -> None:
    chain = Chain.open(home, GENESIS)
    (key, value), *_ = chain.view().reader.scan(b"s", b"t")
    chain._store.write([(key, value + b"\0")])
    chain.close()
    (finding, *_) = check(home).findings
    assert (finding.part, finding.mend) == ("database", "olnode db rebuild")
    assert "is not its root's" in finding.what


def test_a_database_that_failed_while_in_use_is_told_of(home: Path) -> None:
    suspect(home / "db", "block checksum mismatch")
    (finding,) = check(home).findings
    assert "checksum mismatch" in finding.what
    assert finding.mend == "olnode db rebuild"


def test_a_node_that_is_missing_is_found(home: Path) -> None:
    chain = Chain.open(home, GENESIS)
    nodes = [key for key, _ in chain.view().reader.scan(b"n", b"o")]
    chain._store.write([], nodes[-1:])
    chain.close()
    assert any("not in its tree" in finding.what for finding in check(home).findings)


def test_blocks_of_another_chain_or_another_order_are_found(home: Path, tmp_path: Path) -> None:
    assert check_home(home, bytes(32)).findings
    other = Stored(tmp_path / "other")
    other.block(other.pay(7))
    other.block(other.pay(8))
    other.chain.close()
    ours, theirs = home / "blocks/000001", tmp_path / "other/blocks/000001"
    ours.write_bytes(ours.read_bytes() + theirs.read_bytes())
    assert any("block 1:" in finding.what for finding in check(home).findings)


@pytest.mark.parametrize("way", ["gone", "cut"])
def test_a_body_that_a_block_names_and_no_file_has_is_told_by_its_name(
    home: Path, way: str
) -> None:
    """A file that is gone, or cut at its end, leaves nothing behind that is not whole."""
    path = home / "bundles/000001"
    if way == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-300])
    checked = check(home)
    (finding,) = checked.findings
    assert finding.part == "bundles"
    assert finding.what.startswith("the body of bundle ")
    assert "is gone" in finding.what
    assert finding.mend == f"rm -f {home / 'scrub'}, then {FETCHED_BY_SCRUB}"
    assert len(checked.notes) == (way == "cut")


def test_only_bodies_that_the_window_needs_are_missed(home: Path) -> None:
    (home / "bundles/000001").unlink()
    window_ms = 30 * 86_400_000
    for kept_ms, found in ((0, 1), (-window_ms, 0)):
        checked = check_home(home, CHAIN_ID, bodies_kept_ms=kept_ms)
        assert checked.window_ms is not None
        assert checked.window_ms <= window_ms
        assert len(checked.findings) == found
    shutil.rmtree(home / "db")
    checked = check_home(home, CHAIN_ID, bodies_kept_ms=0)
    assert [finding.what for finding in checked.findings] == ["there is none"]
    assert "bodies" in checked.notes[-1], "that they were not looked for is said"


def test_of_many_lost_bodies_some_are_named_and_all_are_counted(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.storage.checking.TOLD_BODIES", 0)
    (home / "bundles/000001").unlink()
    (finding,) = check(home).findings
    assert finding.what == "1 more bodies are gone"


def test_what_a_crash_may_have_left_at_the_end_of_a_log_is_a_note(home: Path) -> None:
    with (home / "blocks/000001").open("ab") as file:
        file.write(b"half a record")
    checked = check(home)
    assert checked.findings == []
    assert "the last 13 bytes of blocks/000001" in checked.notes[0]


def test_damage_of_the_database_is_told_by_its_own_path(home: Path) -> None:
    (table,) = (home / "db").glob("*.ldb")
    table.write_bytes(b"rotten")
    (finding, *_) = [one for one in check(home).findings if one.part == "database"]
    assert str(home / "db") in finding.what
    assert "db.check" not in finding.what


def test_a_missing_database_and_lost_blocks_are_found(home: Path) -> None:
    (home / "blocks/000001").write_bytes(b"")
    with pytest.raises(StorageError, match="block log ends at 0"):
        Chain.open(home, GENESIS)
    assert check(home).height == 0
    assert any("block log ends at 0" in finding.what for finding in check(home).findings)
    shutil.rmtree(home / "db")
    assert [finding.what for finding in check(home).findings] == ["there is none"]


def test_a_home_that_was_never_started_has_nothing_to_check(tmp_path: Path) -> None:
    for name in ("blocks", "db", "snapshots"):
        (tmp_path / name).mkdir()
    with pytest.raises(StorageError, match="no ledger yet"):
        check(tmp_path)


def test_half_a_past_of_a_crash_is_no_damage(home: Path) -> None:
    (home / "past").mkdir(exist_ok=True)
    (home / "past" / "7.new").write_bytes(b"half")
    assert check(home).findings == []
