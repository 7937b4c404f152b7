"""Sound shards are kept over a kill -9; torn, foreign and missing ones are made again."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from node.attribution.runners import LocalRunner
from node.attribution.shards import Workshop, write_whole

IDENTITY = b"\7" * 32


def workshop(home: Path, identity: bytes = IDENTITY) -> Workshop:
    return Workshop(home, identity, LocalRunner(), lambda stage, done, total: None)


def recording(seen: list[int]) -> Callable[[int], bytes]:
    def task(shard: int) -> bytes:
        seen.append(shard)
        return bytes([shard]) * 100

    return task


SHARDS = [bytes([shard]) * 100 for shard in range(3)]


def shard_file(home: Path, shard: int) -> Path:
    (folder,) = home.glob("building-*")
    return folder / f"rows.{shard:06d}"


def test_sound_shards_are_not_run_again(tmp_path: Path) -> None:
    seen: list[int] = []
    assert workshop(tmp_path).shards("rows", recording(seen), members=9, size=4) == SHARDS
    assert workshop(tmp_path).shards("rows", recording(seen), members=9, size=4) == SHARDS
    assert seen == [0, 1, 2]


@pytest.mark.parametrize(
    ("desc", "tamper"),
    [
        ("torn", lambda path: os.truncate(path, 50)),
        ("empty", lambda path: os.truncate(path, 0)),
        ("a bit flipped", lambda path: path.write_bytes(b"\xff" + path.read_bytes()[1:])),
        ("gone", lambda path: path.unlink()),
        (
            "another shard's",
            lambda path: path.write_bytes(path.with_suffix(".000000").read_bytes()),
        ),
    ],
)
def test_unsound_shard_is_made_again(
    tmp_path: Path, desc: str, tamper: Callable[[Path], None]
) -> None:
    workshop(tmp_path).shards("rows", recording([]), members=9, size=4)
    tamper(shard_file(tmp_path, 1))
    seen: list[int] = []
    assert workshop(tmp_path).shards("rows", recording(seen), members=9, size=4) == SHARDS, desc
    assert seen == [1], desc


def test_shards_of_another_stage_or_build_are_not_taken(tmp_path: Path) -> None:
    seen: list[int] = []
    workshop(tmp_path).shards("rows", recording(seen), members=1, size=4)
    workshop(tmp_path).shards("sums", recording(seen), members=1, size=4)
    workshop(tmp_path, b"\x08" * 32).shards("rows", recording(seen), members=1, size=4)
    assert seen == [0, 0, 0]


SCRIPT = """
import sys, time
from pathlib import Path
from node.attribution.runners import LocalRunner
from node.attribution.shards import Workshop

def task(shard):
    if shard == 2:
        print("at two", flush=True)
        time.sleep(600)
    return bytes([shard]) * 100

shop = Workshop(Path(sys.argv[1]), b"\\7" * 32, LocalRunner(), lambda *args: None)
shop.shards("rows", task, 9, 4)
"""


def test_build_goes_on_after_kill_9(tmp_path: Path) -> None:
    """Killed in its third shard: the first two are kept, the result is the same."""
    root = Path(__file__).resolve().parents[3]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=root, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"at two\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    seen: list[int] = []
    assert workshop(tmp_path).shards("rows", recording(seen), members=9, size=4) == SHARDS
    assert seen == [2]


def test_result_gets_its_name_whole_and_the_work_is_forgotten(tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    shop.keep("draft", b"of the work")
    folder = shop.publish("result", {"a": b"1", "b": b"2"})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a": b"1", "b": b"2"}
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_result_that_stands_already_is_left_alone(tmp_path: Path) -> None:
    workshop(tmp_path).publish("result", {"a": b"1"})
    workshop(tmp_path).publish("result", {"a": b"2"})
    assert (tmp_path / "result" / "a").read_bytes() == b"1"


def test_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"longer than the next")
    write_whole(path, b"short")
    assert path.read_bytes() == b"short"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
