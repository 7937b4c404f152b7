"""A backup holds the ledger and the settings, never a key; a restore believes no changed byte."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from stored_kit import GENESIS, Stored

from node.cli.frame import FAILED, NOT_VERIFIED, USAGE
from node.cli.main import run
from node.storage.chain import Chain
from node.storage.lock import lock_home

Capture = pytest.CaptureFixture[str]
SCHEMAS = json.loads((Path(__file__).parents[2] / "vectors/cli/schemas.json").read_text())


def new_home(folder: Path, genesis: bytes = GENESIS) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "genesis").write_bytes(genesis)
    words = ["init", "--home", str(folder / "home"), "--profile", "devnet"]
    assert run([*words, "--genesis", str(folder / "genesis")]) == 0
    return folder / "home"


@pytest.fixture
def home(tmp_path: Path, capsys: Capture) -> Path:
    """A home of three blocks."""
    home = new_home(tmp_path)
    add_blocks(home, 3)
    capsys.readouterr()
    return home


@pytest.fixture
def other(tmp_path: Path, capsys: Capture) -> Path:
    """A home of the same chain, without a block."""
    other = new_home(tmp_path / "other")
    capsys.readouterr()
    return other


def add_blocks(home: Path, count: int) -> None:
    made = Stored(home)
    for _ in range(count):
        made.block(made.pay())
    made.chain.close()


def told(capsys: Capture, home: Path, *words: str, status: int = 0) -> dict[str, Any]:
    assert run(["--home", str(home), "-o", "json", *words]) == status
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert set(SCHEMAS[answer["schema"]]) <= answer.keys()
    return answer


def tip_of(home: Path) -> tuple[int, bytes]:
    chain = Chain.open(home, GENESIS)
    chain.close()
    return chain.height, chain.tip.block_id


def test_ledger_travels_and_keys_do_not(
    home: Path, other: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "backup"
    saved = told(capsys, home, "backup", str(folder))
    assert saved["height"] == 3
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert {"genesis", "config.toml", "version", "manifest"} <= names
    secrets = {path.read_bytes() for path in (home / "keystore").iterdir()}
    assert secrets
    assert not secrets & {path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    taken = told(capsys, other, "restore", str(folder), "--trusted-id", saved["block_id"])
    assert (taken["height"], taken["block_id"], taken["note"]) == (3, saved["block_id"], "")
    assert tip_of(other) == tip_of(home)
    add_blocks(other, 1)
    assert tip_of(other)[0] == 4, "and the chain goes on from there"


def test_restore_leaves_the_settings_and_says_where_others_lie(
    home: Path, other: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder, settings = tmp_path / "backup", other / "config.toml"
    settings.write_text(settings.read_text() + "\n# of this machine\n")
    before = settings.read_bytes()
    saved = told(capsys, home, "backup", str(folder))
    said = told(capsys, other, "restore", str(folder), "--trusted-id", saved["block_id"])["note"]
    assert said == f"settings stay as they are; those of the backup lie in {folder / 'config.toml'}"
    assert settings.read_bytes() == before


def test_restore_without_a_trusted_id_says_what_to_compare(
    home: Path, other: Path, tmp_path: Path, capsys: Capture
) -> None:
    told(capsys, home, "backup", str(tmp_path / "backup"))
    assert "another source" in told(capsys, other, "restore", str(tmp_path / "backup"))["note"]
    assert tip_of(other)[0] == 3


def test_running_node_is_backed_up_as_of_its_newest_snapshot(
    home: Path, tmp_path: Path, capsys: Capture
) -> None:
    with lock_home(home):
        told(capsys, home, "backup", str(tmp_path / "none"), status=FAILED)
    told(capsys, home, "snapshot", "create")
    add_blocks(home, 2)
    with lock_home(home):
        assert told(capsys, home, "backup", str(tmp_path / "backup"))["height"] == 3
    assert told(capsys, home, "backup", str(tmp_path / "newer"))["height"] == 5


def test_restore_refuses_what_is_not_this_chains_or_not_whole(
    home: Path, other: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "backup"
    saved = told(capsys, home, "backup", str(folder))
    told(capsys, other, "restore", str(tmp_path), status=USAGE)
    told(capsys, other, "restore", str(folder), "--trusted-id", "00" * 32, status=NOT_VERIFIED)
    told(capsys, home, "restore", str(folder), status=USAGE)  # it is that far itself
    told(capsys, home, "backup", str(folder), status=USAGE)  # it exists
    spoiled = tmp_path / "spoiled"
    shutil.copytree(folder, spoiled)
    chunk = spoiled / "snapshot" / "00000"
    raw = chunk.read_bytes()
    chunk.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    words = ("restore", str(spoiled), "--trusted-id", saved["block_id"])
    assert told(capsys, other, *words, status=NOT_VERIFIED)["code"] == "snapshot.chunk_hash"
    assert tip_of(other)[0] == 0
    with lock_home(other):
        told(capsys, other, "restore", str(folder), status=FAILED)


def test_backup_of_another_chain_is_refused(home: Path, tmp_path: Path, capsys: Capture) -> None:
    from stored_kit import devnet

    from node.ledger.genesis import encode_genesis

    folder = tmp_path / "backup"
    told(capsys, home, "backup", str(folder))
    strange = new_home(
        tmp_path / "strange", encode_genesis(devnet()._replace(time_ms=devnet().time_ms + 1))
    )
    capsys.readouterr()
    answer = told(capsys, strange, "restore", str(folder), status=NOT_VERIFIED)
    assert "init --genesis" in answer["mend"]
