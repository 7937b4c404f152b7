"""Snapshots by hand: made, listed, carried away, and taken in only for a block that is trusted."""

import json
from pathlib import Path
from typing import Any

import pytest
from stored_kit import GENESIS, Stored

from node.cli.frame import NOT_VERIFIED, USAGE
from node.cli.main import run
from node.storage.chain import Chain
from node.storage.lock import lock_home
from node.storage.snapshots import read_chunk, write_chunk

Capture = pytest.CaptureFixture[str]
SCHEMAS = json.loads((Path(__file__).parents[2] / "vectors/cli/schemas.json").read_text())


def new_home(folder: Path) -> Path:
    (folder / "genesis").write_bytes(GENESIS)
    words = ["init", "--home", str(folder / "home"), "--profile", "devnet"]
    assert run([*words, "--genesis", str(folder / "genesis")]) == 0
    return folder / "home"


@pytest.fixture
def home(tmp_path: Path, capsys: Capture) -> Path:
    """A home of three blocks."""
    home = new_home(tmp_path)
    made = Stored(home)
    for _ in range(3):
        made.block(made.pay())
    made.chain.close()
    capsys.readouterr()
    return home


@pytest.fixture
def other(tmp_path: Path, capsys: Capture) -> Path:
    """A home of the same chain, without a block."""
    (tmp_path / "other").mkdir()
    home = new_home(tmp_path / "other")
    capsys.readouterr()
    return home


def told(capsys: Capture, home: Path, *words: str, status: int = 0) -> dict[str, Any]:
    assert run(["--home", str(home), "-o", "json", "snapshot", *words]) == status
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert set(SCHEMAS[answer["schema"]]) <= answer.keys()
    return answer


def exported(capsys: Capture, home: Path) -> tuple[Path, str]:
    """The folder of a snapshot, and the id of its block."""
    (made,) = told(capsys, home, "create")["snapshots"]
    folder = home.parent / "carried"
    told(capsys, home, "export", str(made["height"]), str(folder))
    return folder, made["block_id"]


def height_of(home: Path) -> int:
    chain = Chain.open(home, GENESIS)
    chain.close()
    return chain.height


def test_snapshot_travels_by_hand(home: Path, other: Path, capsys: Capture) -> None:
    folder, block_id = exported(capsys, home)
    assert told(capsys, other, "list")["snapshots"] == []
    (taken,) = told(capsys, other, "import", str(folder), "--trusted-id", block_id)["snapshots"]
    assert (taken["height"], taken["block_id"]) == (3, block_id)
    assert height_of(other) == 3
    assert told(capsys, other, "list")["snapshots"] == [taken]
    assert run(["--home", str(other), "snapshot", "list"]) == 0
    assert block_id in capsys.readouterr().out


def test_create_twice_tells_the_same_snapshot(home: Path, capsys: Capture) -> None:
    first, second = (told(capsys, home, "create")["snapshots"] for _ in range(2))
    assert first == second == told(capsys, home, "list")["snapshots"]


def test_snapshot_of_a_block_that_is_not_trusted_is_refused(
    home: Path, other: Path, capsys: Capture
) -> None:
    folder, _ = exported(capsys, home)
    words = ("import", str(folder), "--trusted-id", "00" * 32)
    told(capsys, other, *words, status=NOT_VERIFIED)
    assert height_of(other) == 0


def test_spoiled_chunk_is_refused_and_nothing_changes(
    home: Path, other: Path, capsys: Capture
) -> None:
    folder, block_id = exported(capsys, home)
    raw = read_chunk(folder, 0)
    assert raw is not None
    words = ("import", str(folder), "--trusted-id", block_id)
    write_chunk(folder, 0, raw[:-1] + bytes([raw[-1] ^ 1]))
    assert told(capsys, other, *words, status=NOT_VERIFIED)["code"] == "snapshot.chunk_hash"
    (folder / "00000").unlink()
    assert told(capsys, other, *words, status=NOT_VERIFIED)["code"] == "snapshot.chunk_missing"
    assert height_of(other) == 0
    assert told(capsys, other, "list")["snapshots"] == []
    write_chunk(folder, 0, raw)
    told(capsys, other, *words)


def test_calls_that_cannot_be_meant_are_refused(home: Path, other: Path, capsys: Capture) -> None:
    folder, block_id = exported(capsys, home)
    told(capsys, other, "create", status=USAGE)  # no block yet
    told(capsys, home, "export", "7", str(home.parent / "new"), status=USAGE)
    told(capsys, home, "export", "3", str(folder), status=USAGE)  # it exists
    told(capsys, home, "import", str(folder), "--trusted-id", block_id, status=USAGE)  # no newer
    told(capsys, other, "import", str(home), "--trusted-id", block_id, status=USAGE)
    told(capsys, other, "import", str(folder), status=USAGE)  # whom to trust?


def test_running_node_keeps_its_home(home: Path, capsys: Capture) -> None:
    with lock_home(home):
        told(capsys, home, "create", status=1)
        told(capsys, home, "list")
