"""`olnode index audit` on a real index: alike, one row changed, and what cannot be audited."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from attribution_kit import sound_rows
from unit.attribution.conftest import placed, trained  # noqa: F401  # the fixtures
from unit.cli.calls import Capture, told

from node.attribution import index as files
from node.attribution.building import build_index
from node.attribution.datanets import Record, contribution_root, snapshot_root
from node.attribution.index import Index
from node.attribution.runners import LocalRunner
from node.attribution.tokens import TextTokenizer
from node.ledger.wire import claims
from node.serving.adapters import base_hash, read_adapter

pytestmark = pytest.mark.ml

SEED = "07" * 32


class Made(NamedTuple):
    """An index, what it was made of, and the same with row 7 changed."""

    words: list[str]
    honest: Path
    false: Path


@pytest.fixture(scope="module")
def made(trained: Any, placed: Any, tmp_path_factory: pytest.TempPathFactory) -> Made:  # noqa: F811
    home = tmp_path_factory.mktemp("audited")
    members: dict[int, list[Record]] = {}
    for one in placed:
        members.setdefault(one.contribution, []).append(one.record)
    snapshot = snapshot_root((n, contribution_root(some)) for n, some in sorted(members.items()))
    spec = trained.spec(
        base=base_hash(trained.base), early=read_adapter(trained.early).hash,
        middle=read_adapter(trained.middle).hash, snapshot_root=snapshot,
    )  # fmt: skip
    built = build_index(spec, placed, TextTokenizer(trained.base), home, LocalRunner())
    words = ["--base", str(trained.base), "--early", str(trained.early)]
    words += ["--middle", str(trained.middle), "--seed", SEED]
    for number in sorted({p.contribution for p in placed}):
        file = home / f"records-{number}"
        file.write_bytes(b"".join(p.record.raw + b"\n" for p in placed if p.contribution == number))
        words += ["--records", f"{number}={file}"]
    return Made(words, built.folder, falsified(built.folder, built.root, home))


def falsified(folder: Path, root: bytes, home: Path) -> Path:
    index = Index.open(folder, root)
    rows = np.array(index.rows)
    rows[7] = sound_rows(1, 99)[0]
    header = index.header._replace(rows_root=files.rows_root(rows, index.meta))
    raw = claims.encode_header(header)
    other = home / claims.index_root(raw).hex()
    shutil.copytree(folder, other)
    (other / files.HEADER_FILE).write_bytes(raw)
    (other / files.ROWS_FILE).write_bytes(rows.tobytes())
    return other


def test_rows_of_an_honest_index_are_alike(made: Made, home: Path, capsys: Capture) -> None:
    found = told(capsys, home, "index", "audit", str(made.honest), *made.words)
    assert found["schema"] == "olnode.index.audit/1"
    assert (found["rows"], found["missing"], found["bad"]) == (36, 0, [])
    assert (found["seed"], found["index"]) == (SEED, made.honest.name)
    assert found["least_ppm"] > 995_000


def test_changed_row_ends_with_what_is_not_verified(
    made: Made, home: Path, capsys: Capture
) -> None:
    found = told(capsys, home, "index", "audit", str(made.false), *made.words, status=6)
    assert "1 of 36 rows" in found["what"]
    assert "row 7: cosine" in found["what"]


def test_whole_index_is_what_all_its_records_give(made: Made, home: Path, capsys: Capture) -> None:
    found = told(capsys, home, "index", "audit", str(made.honest), *made.words, "--whole")
    assert found["whole"]["weight_ppm"] <= 100
    assert found["whole"] | {"weight_ppm": 0} == {
        "basis_records": 36, "weight_ppm": 0, "joined": None, "omitted": [],
    }  # fmt: skip
    some = [*made.words[:-2], "--whole"]
    refused = told(capsys, home, "index", "audit", str(made.honest), *some, status=2)
    assert "not the index's snapshot" in refused["what"]


def test_index_that_joins_a_record_to_another_is_not_verified(
    made: Made, home: Path, capsys: Capture
) -> None:
    header = files.read_header(made.honest)
    clusters = np.fromfile(made.honest / files.CLUSTERS_FILE, files.CLUSTER)
    clusters[34] = 7
    raw = claims.encode_header(header._replace(clusters_root=files.clusters_root(clusters)))
    other = home / claims.index_root(raw).hex()
    shutil.copytree(made.honest, other)
    (other / files.HEADER_FILE).write_bytes(raw)
    (other / files.CLUSTERS_FILE).write_bytes(clusters.tobytes())
    told(capsys, home, "index", "audit", str(other), *made.words)
    found = told(capsys, home, "index", "audit", str(other), *made.words, "--whole", status=6)
    assert (found["code"], "record 8.2 is not in its cluster" in found["what"]) == (
        "index.whole", True,
    )  # fmt: skip


def test_index_of_the_home_is_found_by_its_root(made: Made, home: Path, capsys: Capture) -> None:
    shutil.copytree(made.honest, home / "indexes" / made.honest.name)
    words = ["index", "audit", made.honest.name, *made.words, "--rows", "3"]
    assert told(capsys, home, *words)["rows"] == 3


@pytest.mark.parametrize(
    ("words", "status", "what"),
    [
        (["--records", "x=FILE"], 2, "is not NUMBER=FILE"),
        (["--records", "3"], 2, "is not NUMBER=FILE"),
        (["--seed", "07"], 2, "--seed"),
        (["--base", "/nowhere"], 2, "is not here"),
    ],
)
def test_what_cannot_be_meant_is_told(
    made: Made, home: Path, capsys: Capture, words: list[str], status: int, what: str
) -> None:
    call = ["index", "audit", str(made.honest), *made.words, *words]
    assert what in told(capsys, home, *call, status=status)["what"]


def test_other_checkpoints_and_no_records_are_told(made: Made, home: Path, capsys: Capture) -> None:
    early = made.words[made.words.index("--early") + 1]
    call = ["index", "audit", str(made.honest)]
    swapped = [*made.words, "--middle", early]
    assert "is not the middle" in told(capsys, home, *call, *swapped, status=2)["what"]
    bare = made.words[: made.words.index("--records")]
    assert "no drawn row" in told(capsys, home, *call, *bare, status=2)["what"]
    broken = made.honest.parent / "broken"
    shutil.copytree(made.honest, broken)
    (broken / files.ROWS_FILE).write_bytes(b"")
    found = told(capsys, home, "index", "audit", str(broken), *made.words, status=1)
    assert json.dumps(found["what"]).startswith('"no audit: index.')


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer.json", None),
        ("tokenizer_config.json", "{"),
        ("config.json", "{"),
        ("code.py", ""),
    ],
)
def test_base_that_cannot_be_read_is_told_and_reported_by_nobody(
    made: Made, home: Path, capsys: Capture, tmp_path: Path, file: str, text: str | None
) -> None:
    """In a build as in an audit; a fault of ours would ask for a report."""
    base = tmp_path / "base"
    shutil.copytree(made.words[1], base)
    (base / file).unlink(missing_ok=True)
    if text is not None:
        (base / file).write_text(text)
    call = ["index", "audit", str(made.honest), *made.words, "--base", str(base)]
    # A file of the base's identity that is another makes another base: told as that.
    status = 2 if file.startswith("tokenizer") else 1
    assert "unforeseen" not in told(capsys, home, *call, status=status)["what"]
    checkpoints = tmp_path / "checkpoints"
    for name, at in (("early", 3), ("middle", 5), ("final", 5)):
        shutil.copytree(made.words[at], checkpoints / name)
    records = made.words[made.words.index("--records") :]
    call = ["index", "build", str(base), str(checkpoints), str(tmp_path / "out"), *records]
    found = told(capsys, home, *call, status=1)
    assert "unforeseen" not in found["what"]
    assert found["code"].startswith(("index.", "tokenizer."))


def test_checkpoint_that_cannot_be_read_is_told(
    made: Made, home: Path, capsys: Capture, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    call = ["index", "audit", str(made.honest), *made.words, "--early", str(tmp_path)]
    assert "peft_type" in told(capsys, home, *call, status=1)["what"]


def test_folder_that_cannot_be_made_is_told(made: Made, home: Path, capsys: Capture) -> None:
    checkpoints = home / "checkpoints"
    for name, at in (("early", 3), ("middle", 5), ("final", 5)):
        shutil.copytree(made.words[at], checkpoints / name)
    (home / "file").write_text("")
    records = made.words[made.words.index("--records") :]
    call = ["index", "build", made.words[1], str(checkpoints), str(home / "file" / "out"), *records]
    assert "no index in" in told(capsys, home, *call, status=1)["what"]
