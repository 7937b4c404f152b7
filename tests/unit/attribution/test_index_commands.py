"""`olnode index` on a real base: the same bytes whoever computes the shards, and every lie seen."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from unit.cli.calls import Capture, told

from node.attribution.datanets import encode_records

pytestmark = pytest.mark.ml

OLNODE = Path(sys.executable).with_name("olnode")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python")


@pytest.fixture(scope="module")
def goods(trained, placed, tmp_path_factory) -> list[str]:
    """The arguments of a build, but for the folder that it fills."""
    folder = tmp_path_factory.mktemp("goods")
    for name, made in (("early", "early"), ("middle", "middle"), ("final", "middle")):
        shutil.copytree(getattr(trained, made), folder / name)
    words = [str(trained.base), str(folder)]
    for number in sorted({p.contribution for p in placed}):
        file = folder / f"{number}.jsonl"
        file.write_bytes(encode_records(p.record for p in placed if p.contribution == number))
        words += ["--records", f"{number}={file}"]
    return [*words, "--shard", "16"]


@pytest.fixture(scope="module")
def made(goods, tmp_path_factory) -> Path:
    """The index as one process makes it."""
    from node.cli.main import run

    out = tmp_path_factory.mktemp("indexes")
    assert run(["index", "build", *goods[:2], str(out), *goods[2:]]) == 0
    (folder,) = out.iterdir()
    return folder


def run_elsewhere(command: tuple[str, ...], goods: list[str], out: Path) -> list[str]:
    words = [*command, str(OLNODE), "index", "build", *goods[:2], str(out), *goods[2:]]
    run = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-2_000:]
    return [path.name for path in out.iterdir()]


def test_two_ranks_of_torchrun_make_the_same_index(made: Path, goods, tmp_path: Path) -> None:
    out = tmp_path / "out"
    torchrun = [*goods, "--runner", "torchrun"]
    assert run_elsewhere(TORCHRUN, torchrun, out) == [made.name]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is an extra: olnode[ray]")
def test_ray_makes_the_same_index(made: Path, goods, tmp_path: Path) -> None:
    assert run_elsewhere((), [*goods, "--runner", "ray"], tmp_path / "out") == [made.name]


def test_index_is_verified_and_shown(made: Path, capsys: Capture) -> None:
    verified = told(capsys, made, "index", "verify", str(made))
    assert (verified["root"], verified["rows"], verified["basis"]) == (made.name, 36, True)
    shown = told(capsys, made, "index", "show", str(made))
    assert sum(one["rows"] for one in shown["contributions"]) == shown["rows"] == 36
    assert 8 not in {one["number"] for one in shown["contributions"]}  # the copier


def test_changed_byte_fails_the_verification(made: Path, capsys: Capture, tmp_path: Path) -> None:
    copy = tmp_path / made.name
    shutil.copytree(made, copy)
    rows = bytearray((copy / "rows.bin").read_bytes())
    rows[0] ^= 1
    (copy / "rows.bin").write_bytes(rows)
    refused = told(capsys, made, "index", "verify", str(copy), status=6)
    assert refused["code"].startswith("index.")
    (copy / "rows.bin").unlink()
    assert told(capsys, made, "index", "verify", str(copy), status=1)["code"] == "index.missing"
    assert "no root" in told(capsys, made, "index", "verify", str(tmp_path), status=2)["what"]
    absent = str(tmp_path / "absent")
    assert "no folder" in told(capsys, made, "index", "show", absent, status=2)["what"]


@pytest.mark.parametrize(
    ("desc", "words", "status"),
    [
        ("no such runner", ["--runner", "mpi"], 2),
        ("torchrun without torchrun", ["--runner", "torchrun"], 2),
        ("a shard that would change the rows", ["--shard", "24"], 2),
        ("a contribution twice", ["--records", "3=x"], 2),
        ("not a number", ["--records", "x"], 2),
    ],
)
def test_what_cannot_be_built_says_why(
    desc: str, words: list[str], status: int, goods, capsys: Capture, tmp_path: Path
) -> None:
    given = ["index", "build", *goods[:2], str(tmp_path / "out"), *goods[2:], *words]
    assert told(capsys, tmp_path, *given, status=status)["what"], desc


def test_folder_without_checkpoints_is_refused(goods, capsys: Capture, tmp_path: Path) -> None:
    given = ["index", "build", goods[0], str(tmp_path), str(tmp_path / "out"), *goods[2:]]
    assert told(capsys, tmp_path, *given, status=1)["code"] == "index.checkpoints"


def test_spans_are_asked_for_by_their_part(goods, tmp_path: Path, capsys: Capture) -> None:
    words = [*goods[:2], str(tmp_path), *goods[2:], "--spans", "2500"]
    told(capsys, tmp_path, "index", "build", *words)
    (folder,) = tmp_path.iterdir()
    shown = told(capsys, tmp_path, "index", "show", str(folder))
    assert shown["mix"] == [[0, 7_500], [1, 2_500]]


def test_citations_are_asked_for_beside_spans(goods, tmp_path: Path, capsys: Capture) -> None:
    words = [*goods[:2], str(tmp_path), *goods[2:], "--spans", "2500", "--citations", "1000"]
    told(capsys, tmp_path, "index", "build", *words)
    (folder,) = tmp_path.iterdir()
    shown = told(capsys, tmp_path, "index", "show", str(folder))
    assert shown["mix"] == [[0, 6_500], [1, 2_500], [2, 1_000]]
