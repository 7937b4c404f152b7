"""An index is a pure function of its records and checkpoints, however it was built."""

import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from node.attribution.building import Built, IndexSpec, build_index
from node.attribution.datanets import PlacedRecord, encode_record, make_record, place_records
from node.attribution.index import NO_ROW, Index, IndexInvalid
from node.attribution.runners import LocalRunner, Runner, Task
from node.attribution.tokens import TextTokenizer

pytestmark = pytest.mark.ml

ROOT = Path(__file__).parents[3]


def build(
    trained, placed: Sequence[PlacedRecord], home: Path, runner: Runner | None = None, **fields
) -> Built:
    spec: IndexSpec = trained.spec(shard_records=16, **fields)
    return build_index(spec, placed, TextTokenizer(trained.base), home, runner or LocalRunner())


@pytest.fixture(scope="module")
def built(trained, placed: list[PlacedRecord], tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(trained, placed, tmp_path_factory.mktemp("once"))


def test_copy_has_no_row_and_every_other_idea_has_one(
    built: Built, placed: list[PlacedRecord]
) -> None:
    index = Index.open(built.folder, built.root)
    assert built.left_out == ()
    assert (index.header.records, index.header.rows) == (40, 36)
    paid = {index.contribution_of(row) for row in range(index.header.rows)}
    assert paid == {3, 5, 9}  # not 8, the copier
    assert index.clusters[32:36].tolist() == index.clusters[:4].tolist() == [0, 1, 2, 3]
    assert NO_ROW not in index.clusters


def test_index_with_spans_holds_each_rows_completion(
    built: Built, trained, placed: list[PlacedRecord], tmp_path: Path
) -> None:
    """The rows are those of an index without spans; an answer then names who holds its words."""
    from node.attribution.spans import find_spans

    mixed = build(trained, placed, tmp_path, mix=((0, 8_000), (1, 2_000)))
    index = Index.open(mixed.folder, mixed.root)
    assert (index.rows == Index.open(built.folder, built.root).rows).all()
    assert mixed.root != built.root
    assert index.spans is not None
    tokenizer = TextTokenizer(trained.base)
    by_place = {(p.contribution, p.position): p.record for p in placed}
    for row in (0, 7, 35):
        record = by_place[index.place_of(row)]
        coded = encode_record(tokenizer, record.prompt, record.completion)
        said = coded.ids[coded.prompt_tokens :]
        (found,) = find_spans(index.spans, (), said, min_span=len(said))
        assert found.holders == ((row, 0),)


def test_meta_tells_place_and_tokens(built: Built, trained, placed: list[PlacedRecord]) -> None:
    index = Index.open(built.folder, built.root)
    by_place = {(p.contribution, p.position): p.record for p in placed}
    tokenizer = TextTokenizer(trained.base)
    for row in range(index.header.rows):
        record = by_place[index.place_of(row)]
        kept = encode_record(tokenizer, record.prompt, record.completion).kept_tokens
        assert index.leaf(row).kept_tokens == kept


def test_sketch_of_a_record_is_its_row(built: Built, trained, placed: list[PlacedRecord]) -> None:
    """The row map applied to the same text by a loaded sketcher gives the same bytes."""
    from node.attribution.basis import Sketcher
    from node.attribution.gradients import RecordGradients

    index = Index.open(built.folder, built.root)
    sketcher, tokenizer = Sketcher.load(built.folder), TextTokenizer(trained.base)
    coded = [encode_record(tokenizer, p.record.prompt, p.record.completion) for p in placed[:8]]
    folders = (str(trained.base), str(trained.early), str(trained.middle))
    source = RecordGradients(folders, coded, lambda half, matrix, gradient: gradient)
    halves = [
        np.concatenate([sketcher.rows(half, g).numpy() for g in source.batches(half, range(8))])
        for half in (0, 1)
    ]
    rows = np.concatenate(halves, axis=1).astype(np.int64)
    true = index.rows[:8].astype(np.int64)
    assert ((rows * true).sum(1) / (true * true).sum(1)).min() >= 0.999


def test_two_workers_give_the_same_bytes_as_one(
    built: Built, trained, placed: list[PlacedRecord], tmp_path: Path
) -> None:
    assert build(trained, placed, tmp_path, LocalRunner(2)).root == built.root


class Interrupted(Exception):
    pass


class Stopping:
    """A runner that dies after its first few shards."""

    def __init__(self, shards: int) -> None:
        self.left = shards

    def map(self, task: Task, shards: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        for shard in shards:
            if self.left == 0:
                raise Interrupted
            self.left -= 1
            yield shard, task(shard)


@pytest.mark.parametrize("shards", [1, 3])
def test_interrupted_build_goes_on_to_the_same_root(
    built: Built, trained, placed: list[PlacedRecord], tmp_path: Path, shards: int
) -> None:
    with pytest.raises(Interrupted):
        build(trained, placed, tmp_path, Stopping(shards))
    assert not (tmp_path / built.root.hex()).exists()
    again = build(trained, placed, tmp_path)
    assert again.root == built.root
    assert [path.name for path in tmp_path.iterdir()] == [built.root.hex()]


SCRIPT = """
import os, pickle, signal, sys
from pathlib import Path
from node.attribution.building import build_index
from node.attribution.runners import LocalRunner
from node.attribution.tokens import TextTokenizer

class Dying(LocalRunner):
    left = 3

    def map(self, task, shards):
        for shard in shards:
            if Dying.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            Dying.left -= 1
            yield shard, task(shard)

spec, placed = pickle.loads(Path(sys.argv[1]).read_bytes())
build_index(spec, placed, TextTokenizer(Path(spec.base_folder)), Path(sys.argv[2]), Dying())
"""


class Counting(LocalRunner):
    """Notes the shards that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[int] = []

    def map(self, task: Task, shards: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        self.given += shards
        return super().map(task, shards)


def test_build_killed_by_9_goes_on_to_the_same_root(
    built: Built, trained, placed: list[PlacedRecord], tmp_path: Path
) -> None:
    """Sums, moments and the first of three shards of rows are kept."""
    given, out = tmp_path / "given", tmp_path / "out"
    given.write_bytes(pickle.dumps((trained.spec(shard_records=16), placed)))
    words = [sys.executable, "-c", SCRIPT, str(given), str(out)]
    killed = subprocess.run(words, cwd=ROOT, capture_output=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2_000:]
    (work,) = out.iterdir()
    assert work.name.startswith("building-")
    runner = Counting()
    assert build(trained, placed, out, runner).root == built.root
    assert runner.given == [1, 2]
    assert [path.name for path in out.iterdir()] == [built.root.hex()]


def test_records_or_hashes_that_differ_give_another_root(
    built: Built, trained, placed: list[PlacedRecord], tmp_path: Path
) -> None:
    assert build(trained, placed[:-1], tmp_path / "a").root != built.root
    assert build(trained, placed, tmp_path / "b", early=b"\7" * 32).root != built.root


def test_index_without_any_row_is_refused(trained, tmp_path: Path) -> None:
    with pytest.raises(IndexInvalid) as refusal:
        build(trained, [], tmp_path)
    assert refusal.value.reason == "no_rows"


def test_progress_tells_every_stage(trained, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    few = place_records([(1, [make_record("", f"Fact {n} is {n * n}.") for n in range(6)])])
    build_index(
        trained.spec(),
        few,
        TextTokenizer(trained.base),
        tmp_path,
        LocalRunner(),
        lambda *step: told.append(step),
    )
    assert told == [(stage, done, 1) for stage in ("sums", "moments", "rows") for done in (0, 1)]
