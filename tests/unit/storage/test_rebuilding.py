"""A database made again is as high as before, or the old one stays."""

from pathlib import Path

import pytest
from stored_kit import GENESIS, Told

from node.storage.chain import Chain
from node.storage.errors import StorageError
from node.storage.rebuilding import rebuilding


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose last block names a bundle."""
    told = Told(tmp_path)
    told.made.chain.close()
    return tmp_path


def height(home: Path) -> int:
    chain = Chain.open(home, GENESIS)
    chain.close()
    return chain.height


def test_database_is_made_again_as_high_as_it_was(home: Path) -> None:
    before = height(home)
    with rebuilding(home, may_fall_back=False) as aside:
        assert height(home) == before
    assert aside == home / "db.damaged"
    assert aside.is_dir()


@pytest.mark.parametrize("may_fall_back", [False, True])
def test_what_cannot_be_made_again_is_put_back(home: Path, may_fall_back: bool) -> None:
    """Without its body a block cannot be executed again: that would cost the only database."""
    before = height(home)
    (home / "bundles/000001").unlink()
    with (
        pytest.raises(StorageError, match=r"cannot be replayed"),
        rebuilding(home, may_fall_back=may_fall_back),
    ):
        height(home)
    assert height(home) == before
    assert not (home / "db.damaged").exists()


def test_database_above_its_log_is_left_until_that_may_be(home: Path) -> None:
    before, log = height(home), home / "blocks/000001"
    log.write_bytes(log.read_bytes()[:-1])
    with (
        pytest.raises(StorageError, match=f"ends at {before - 1}, the database at {before}"),
        rebuilding(home, may_fall_back=False),
    ):
        raise AssertionError("it was not refused")
    assert not (home / "db.damaged").exists()
    with rebuilding(home, may_fall_back=True):
        assert height(home) == before - 1


def test_lost_log_is_not_begun_anew_by_a_refusal(home: Path) -> None:
    (home / "blocks/000001").unlink()
    (home / "blocks").rmdir()
    with pytest.raises(StorageError, match="ends at 0"), rebuilding(home, may_fall_back=False):
        raise AssertionError("it was not refused")
    assert not (home / "blocks").exists()
