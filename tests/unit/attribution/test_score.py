"""Every kernel that is used equals plain Python integers, whatever the rows."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from node.attribution import score
from node.ledger.rules import shares


def random_rows(rows: int, seed: int = 1) -> NDArray[np.int8]:
    return np.random.default_rng(seed).integers(-127, 128, (rows, 1_024), np.int8)


@pytest.mark.parametrize("rows", [1, 3, 4_095, 4_096, 4_097])
def test_scan_equals_plain_integers(rows: int) -> None:
    table, sketch = random_rows(rows), random_rows(1, seed=2)[0].tobytes()
    scores = score.scan(table, sketch)
    assert scores.dtype == np.int32
    for row in {0, rows // 2, rows - 1}:
        assert scores[row] == shares.score(table[row].tobytes(), sketch)


def test_scan_reads_a_mapped_file_with_a_torn_last_shard(tmp_path: Path) -> None:
    table, sketch = random_rows(5_000), random_rows(1, seed=2)[0]
    table.tofile(tmp_path / "rows.bin")
    mapped = np.memmap(tmp_path / "rows.bin", np.int8, "r", shape=(5_000, 1_024))
    wanted = table.astype(np.int64) @ sketch.astype(np.int64)
    assert (score.scan(mapped, sketch.tobytes()) == wanted).all()


def test_extremes_do_not_overflow() -> None:
    table = np.full((2, 1_024), 127, np.int8)
    table[1] = -127
    assert score.scan(table, table[0].tobytes()).tolist() == [16_516_096, -16_516_096]


@pytest.mark.parametrize("sketches", [0, 1, 2, 31, 32, 33, 70])
def test_many_sketches_score_as_each_alone(sketches: int) -> None:
    table, asked = random_rows(5_000), [row.tobytes() for row in random_rows(sketches, seed=3)]
    together = list(score.scan_each(table, asked))
    assert len(together) == sketches
    for found, sketch in zip(together, asked, strict=True):
        assert (found == score.scan(table, sketch)).all()


def test_batch_is_as_large_as_its_scores_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a great index fewer sketches are scanned at once, and one in any case."""
    seen: list[tuple[int, int]] = []

    def kernel(rows: score.Rows, sketches: score.Sketches) -> score.Scores:
        seen.append((len(sketches), len(rows)))
        return score.integers(rows, sketches)

    asked = [row.tobytes() for row in random_rows(5, seed=3)]
    monkeypatch.setattr(score, "SCORES_MAX", 25)
    assert len(list(score.scan_each(random_rows(10), asked, kernel))) == 5
    assert len(list(score.scan_each(random_rows(26), asked[:2], kernel))) == 2
    assert seen == [(2, 10), (2, 10), (1, 10), (1, 26), (1, 26)]


def saturating(rows: score.Rows, sketches: score.Sketches) -> score.Scores:
    return np.clip(score.integers(rows, sketches), -(2**23), 2**23)


def in_turn_alone(rows: score.Rows, sketches: score.Sketches) -> score.Scores:
    """Right for one sketch, and takes several for the first."""
    return np.repeat(score.integers(rows, sketches[:1]), len(sketches), axis=0)


def absent(rows: score.Rows, sketches: score.Sketches) -> score.Scores:
    raise RuntimeError("no such instruction")


@pytest.mark.parametrize("kernel", [saturating, in_turn_alone, absent])
def test_kernel_that_differs_is_not_used(kernel: score.Kernel) -> None:
    assert not score.is_exact(kernel)
    assert score.choose_kernel([kernel]) in (score.products, score.integers)


@pytest.mark.parametrize("sketches", [1, 2, 32])
def test_products_are_exact_at_the_extremes(sketches: int) -> None:
    """The greatest sums there are, and one less: float32 would round beyond 2^24."""
    table = np.full((3, 1_024), 127, np.int8)
    table[1], table[2, 0] = -127, 126
    asked = np.full((sketches, 1_024), 127, np.int8)
    wanted = [[16_516_096, -16_516_096, 16_515_969]] * sketches
    found = score.products(table, asked)
    assert (found.dtype, found.tolist()) == (np.int32, wanted)


def test_quicker_of_two_exact_kernels_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(rows: score.Rows, sketches: score.Sketches) -> score.Scores:
        for _ in range(19):
            numpys(rows, sketches)
        return numpys(rows, sketches)

    numpys = score.integers
    monkeypatch.setattr(score, "products", saturating)
    monkeypatch.setattr(score, "SHARD_ROWS", 512)  # an eighth of what is tried
    assert score.choose_kernel([slow]) is numpys
    monkeypatch.setattr(score, "integers", slow)
    assert score.choose_kernel([numpys]) is numpys


def test_without_an_exact_kernel_attribution_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("integers", "products"):
        monkeypatch.setattr(score, name, saturating)
    with pytest.raises(score.NoExactKernel):
        score.choose_kernel()
