"""A home is opened by one process, in one order, and says what is wrong with it."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from chain_kit import VALIDATORS
from stored_kit import GENESIS

from consensus.primitives.digest import sha256
from consensus.records import SignerRecord
from node.storage.errors import HomeInUse, StorageError
from node.storage.ground import open_ground
from node.storage.signer import create_signer

ME = VALIDATORS[0].key


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "genesis").write_bytes(GENESIS)
    return tmp_path


def test_full_node_opens_without_a_journal(home: Path) -> None:
    ground = open_ground(home, home / "genesis")
    assert (ground.journal, ground.why_silent) == (None, None)
    assert ground.chain.chain_id == sha256(GENESIS)
    ground.close()


def test_validator_opens_with_its_journal(home: Path) -> None:
    create_signer(home / "signer", sha256(GENESIS), ME)
    for _ in range(2):
        ground = open_ground(home, home / "genesis", validator_key=ME)
        assert ground.journal is not None
        assert ground.why_silent is None
        ground.close()


def test_validator_without_its_record_goes_on_as_a_full_node(home: Path) -> None:
    ground = open_ground(home, home / "genesis", validator_key=ME)
    assert ground.journal is None
    assert ground.why_silent is not None
    assert "no signer record" in str(ground.why_silent)
    ground.close()


def test_validator_with_a_damaged_journal_goes_on_as_a_full_node(home: Path) -> None:
    """It says the safe remedy, and after that remedy it validates above its last word."""
    create_signer(home / "signer", sha256(GENESIS), ME)
    ground = open_ground(home, home / "genesis", validator_key=ME)
    assert ground.journal is not None
    ground.journal.begin(1)
    last = SignerRecord(2, 1, 0, b"v" * 45)
    for record in (replace(last, kind=1), last):
        ground.journal.persist(record)
    ground.close()
    path = home / "journal" / "1.log"
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(bytes(data))
    ground = open_ground(home, home / "genesis", validator_key=ME)
    assert ground.journal is None
    assert ground.chain.height == 0
    assert ground.why_silent is not None
    assert f"mv {path} {path}.damaged" in ground.why_silent.mend
    ground.close()
    path.rename(f"{path}.damaged")
    ground = open_ground(home, home / "genesis", validator_key=ME)
    assert ground.journal is not None
    assert ground.journal.last == last
    ground.close()


def test_second_process_is_refused_and_the_first_goes_on(home: Path) -> None:
    ground = open_ground(home, home / "genesis")
    code = (
        "import sys; from pathlib import Path; from node.storage.ground import open_ground; "
        "open_ground(Path(sys.argv[1]), Path(sys.argv[1]) / 'genesis')"
    )
    second = subprocess.run(
        [sys.executable, "-c", code, str(home)], capture_output=True, text=True, check=False
    )
    assert second.returncode == 1
    assert f"pid {os.getpid()}" in second.stderr
    with pytest.raises(HomeInUse):
        open_ground(home, home / "genesis")
    assert ground.chain.height == 0
    ground.close()
    open_ground(home, home / "genesis").close()


def test_home_without_a_genesis_is_named_and_let_go(home: Path) -> None:
    (home / "genesis").unlink()
    for _ in range(2):  # the lock is not left behind
        with pytest.raises(StorageError, match="cannot read the genesis"):
            open_ground(home, home / "genesis")


def test_libsodium_that_judges_otherwise_stops_the_start(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mixed network forks: no other library, no other rule."""
    monkeypatch.setattr("consensus.primitives.keys.is_signed_by", lambda *_: True)
    with pytest.raises(AssertionError, match="libsodium"):
        open_ground(home, home / "genesis")
