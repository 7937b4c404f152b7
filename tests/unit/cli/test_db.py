"""`olnode db`: what is damaged is told with its mend, and only to who has the home to himself."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from stored_kit import GENESIS, Stored

from node.cli.frame import DAMAGED, FAILED
from node.cli.main import run
from node.storage.chain import Chain
from node.storage.checking import Finding
from node.storage.errors import FRESH_HOME, DatabaseDamaged
from node.storage.lock import lock_home
from node.storage.scrubbing import Scrub, Step
from node.storage.snapshots import SnapshotStore

Capture = pytest.CaptureFixture[str]
SCHEMAS = json.loads((Path(__file__).parents[2] / "vectors/cli/schemas.json").read_text())


@pytest.fixture
def home(tmp_path: Path, capsys: Capture) -> Path:
    """A home of three blocks."""
    (tmp_path / "genesis").write_bytes(GENESIS)
    words = ["init", "--home", str(tmp_path / "home"), "--profile", "devnet"]
    assert run([*words, "--genesis", str(tmp_path / "genesis")]) == 0
    made = Stored(tmp_path / "home")
    for _ in range(3):
        made.block(made.pay())
    made.chain.close()
    capsys.readouterr()
    return tmp_path / "home"


def told(capsys: Capture, home: Path, *words: str, status: int = 0) -> dict[str, Any]:
    assert run(["--home", str(home), "-o", "json", "db", *words]) == status
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert set(SCHEMAS[answer["schema"]]) <= answer.keys()
    return answer


def test_check_says_what_was_read_and_that_it_is_whole(home: Path, capsys: Capture) -> None:
    answer = told(capsys, home, "check")
    assert (answer["height"], answer["blocks"], answer["findings"]) == (3, 3, [])
    assert run(["--home", str(home), "db", "check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "everything that was read is as it was written"
    assert lines[-1].startswith("not read: keys behind their passwords")


def test_damage_is_an_exit_status_and_a_mend(home: Path, capsys: Capture) -> None:
    path = home / "blocks/000001"
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(bytes(raw))
    (finding,) = told(capsys, home, "check", status=DAMAGED)["findings"]
    assert finding["part"] == "blocks"
    assert "fresh home" in finding["mend"]


def test_damage_beside_the_ledger_is_an_exit_status_too(home: Path, capsys: Capture) -> None:
    key = home / "keystore/node.json"
    key.write_bytes(key.read_bytes()[:20])
    (finding,) = told(capsys, home, "check", status=DAMAGED)["findings"]
    assert finding["part"] == "keystore"


def test_check_without_a_genesis_says_so_as_a_start_does(home: Path, capsys: Capture) -> None:
    (home / "genesis").unlink()
    said = []
    for words in (["db", "check"], ["start"]):
        assert run(["--home", str(home), *words]) == FAILED
        said.append([line for line in capsys.readouterr().err.splitlines() if "genesis" in line])
    assert said[0] == [line for line in said[1] if "devnet" not in line]
    assert f"cannot read the genesis {home / 'genesis'}" in said[0][0]


def test_scrub_reads_all_of_a_stopped_nodes_ledger(home: Path, capsys: Capture) -> None:
    answer = told(capsys, home, "scrub")
    assert (answer["height"], answer["findings"]) == (3, [])
    assert answer["bytes"] > 10_000
    path = home / "blocks/000001"
    raw = path.read_bytes()
    path.write_bytes(raw[:100] + bytes([raw[100] ^ 1]) + raw[101:])
    assert run(["--home", str(home), "db", "scrub"]) == DAMAGED
    assert "fresh home" in capsys.readouterr().err
    with lock_home(home):
        assert run(["--home", str(home), "db", "scrub"]) == FAILED


def test_scrub_tells_what_is_lost_and_has_the_database_made_again(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only a reader of all finds: the opening before it finds nothing."""
    rotten = Finding("blocks", "block 2: damaged", FRESH_HOME)

    def find(scrub: Scrub) -> Step:
        scrub.is_over = True
        return Step(9, (rotten,), (bytes(32),))

    monkeypatch.setattr(Scrub, "step", find)
    answer = told(capsys, home, "scrub", status=DAMAGED)
    assert [row["part"] for row in answer["findings"]] == ["blocks", "bundles"]

    def fail(scrub: Scrub) -> Step:
        raise DatabaseDamaged("a record of the state is not in its tree")

    monkeypatch.setattr(Scrub, "step", fail)
    assert run(["--home", str(home), "db", "scrub"]) == DAMAGED
    monkeypatch.undo()
    answer = told(capsys, home, "scrub")
    assert "not in its tree" in answer["steps"][0]
    assert "made again" in answer["steps"][0]


def test_check_keeps_off_a_home_that_is_in_use(home: Path, capsys: Capture) -> None:
    with lock_home(home):
        assert run(["--home", str(home), "db", "check"]) == FAILED
    assert "olnode stop" in capsys.readouterr().err


def test_prune_says_what_has_gone(home: Path, capsys: Capture) -> None:
    answer = told(capsys, home, "prune")
    assert (answer["bodies"], answer["nodes"], answer["snapshots"]) == (0, 0, 0)
    settings = home / "config.toml"
    text = settings.read_text().replace("# keep_versions = 1000", "keep_versions = 1")
    settings.write_text(text)
    answer = told(capsys, home, "prune")
    assert answer["nodes"] > 0
    assert answer["freed_bytes"] >= 0
    assert told(capsys, home, "check")["findings"] == []
    with lock_home(home):
        assert run(["--home", str(home), "db", "prune"]) == FAILED


def test_prune_drops_old_payloads_where_the_settings_say_so(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.storage.chain.BODIES_KEPT_MS", -(10**12))
    chain = Chain.open(home, GENESIS)
    SnapshotStore(home / "snapshots").make(chain.view())
    chain.close()
    assert told(capsys, home, "prune")["payloads"] == 0
    settings = home / "config.toml"
    text = settings.read_text().replace("# prune_payloads = false", "prune_payloads = true")
    settings.write_text(text)
    assert told(capsys, home, "prune")["payloads"] == 2
    assert told(capsys, home, "prune")["payloads"] == 0
    assert told(capsys, home, "check")["findings"] == []
    settings.write_text(text.replace("# archive = false", "archive = true"))
    assert run(["--home", str(home), "db", "prune"]) == 78
    assert "archive keeps all payloads" in capsys.readouterr().err


def test_rebuild_makes_the_database_again_and_keeps_the_old_one(
    home: Path, capsys: Capture
) -> None:
    Chain.open(home, GENESIS).close()  # the second opening makes a table of the log
    (table,) = (home / "db").glob("*.ldb")
    table.write_bytes(b"rotten")
    answer = told(capsys, home, "rebuild")
    assert answer["height"] == 3
    assert answer["steps"][0] == "database: replayed blocks 1 to 3"
    assert (home / "db.damaged" / table.name).read_bytes() == b"rotten"
    assert told(capsys, home, "check")["findings"] == []
    assert told(capsys, home, "rebuild")["height"] == 3, "also over one moved away before"


def test_rebuild_of_a_lost_database_names_no_old_one(home: Path, capsys: Capture) -> None:
    (home / "db.damaged").mkdir()
    shutil.rmtree(home / "db")
    answer = told(capsys, home, "rebuild")
    assert (answer["height"], answer["aside"]) == (3, "")
    assert (home / "db.damaged").is_dir(), "what was moved before stays where nothing is moved"


@pytest.mark.parametrize("way", ["gone", "cut"])
def test_rebuild_never_falls_back_below_a_good_database_unasked(
    home: Path, capsys: Capture, way: str
) -> None:
    """The mend of check, start and rebuild is one, and it works."""
    left = {"gone": 0, "cut": 2}[way]
    if way == "gone":
        shutil.rmtree(home / "blocks")
    else:
        os.truncate(home / "blocks/000001", (home / "blocks/000001").stat().st_size - 100)
    (finding,) = told(capsys, home, "check", status=DAMAGED)["findings"]
    assert finding["what"] == f"the block log ends at {left}, the database at 3"
    assert "olnode db rebuild --force" in finding["mend"]
    before = sorted(path.name for path in home.iterdir())
    for words in (["db", "rebuild"], ["start"]):
        assert run(["--home", str(home), *words]) == FAILED
        assert finding["mend"] in capsys.readouterr().err
        if words != ["start"]:
            assert sorted(path.name for path in home.iterdir()) == before
    assert told(capsys, home, "rebuild", "--force")["height"] == left
    assert told(capsys, home, "check")["findings"] == []


def test_rebuild_that_fails_puts_the_old_database_back(home: Path, capsys: Capture) -> None:
    (home / "genesis").rename(home / "genesis.lost")
    assert run(["--home", str(home), "db", "rebuild"]) == FAILED
    (home / "genesis.lost").rename(home / "genesis")
    assert not (home / "db.damaged").exists()
    assert told(capsys, home, "check")["findings"] == []


def test_rebuild_keeps_off_a_home_that_is_in_use(home: Path, capsys: Capture) -> None:
    with lock_home(home):
        assert run(["--home", str(home), "db", "rebuild"]) == FAILED
    assert "olnode stop" in capsys.readouterr().err
    assert (home / "db").is_dir()


def test_size_counts_files_and_bytes_of_each_folder(home: Path, capsys: Capture) -> None:
    rows = {row["folder"]: row for row in told(capsys, home, "size")["folders"]}
    assert rows["blocks"] == {
        "folder": "blocks",
        "files": 1,
        "bytes": (home / "blocks/000001").stat().st_size,
    }
    assert rows["db"]["bytes"] > 0
