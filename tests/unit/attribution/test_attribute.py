"""One answer's statement is exact, pays the row it leans on, and is explained from itself."""

from pathlib import Path

import numpy as np
import pytest
from attribution_kit import VERSION, mix_rows, open_index, sound_rows, write_index

from consensus.primitives.errors import Invalid
from node.attribution.attribute import attribute, explain, snippet
from node.attribution.datanets import make_record
from node.attribution.index import Index
from node.ledger.rules import shares
from node.ledger.wire import claims


def test_answer_that_leans_on_two_rows_pays_their_contributions(tmp_path: Path) -> None:
    index = open_index(tmp_path, 200)
    made = attribute(index, mix_rows([(1.0, index.rows[9]), (0.6, index.rows[150])]), VERSION)
    paid = [row for row, _, _ in made.statement.paid]
    assert {9, 150} <= set(paid)
    credits = dict(made.credits)
    assert credits[1 + 9 // 4] > credits[1 + 150 // 4] > 0
    assert sum(credits.values()) == 10_000


def test_statement_passes_its_own_checks_and_binds_the_sketch(tmp_path: Path) -> None:
    index = open_index(tmp_path, 200)
    sketch = mix_rows([(1.0, index.rows[9])])
    made = attribute(index, sketch, VERSION)
    assert claims.decode_statement(made.statement_bytes) == made.statement
    shares.check_statement(made.statement, index.header, index.root)
    assert made.sketch_hash == claims.sketch_hash(sketch, made.statement_bytes)
    seed = shares.panel_seed(index_root=index.root, **VERSION._asdict())
    for seat, row in enumerate(shares.draw_panel(seed, 200)):
        assert made.statement.floors[seat] == abs(shares.score(index.rows[row].tobytes(), sketch))


def test_statement_depends_on_the_version_through_the_panel_alone(tmp_path: Path) -> None:
    index = open_index(tmp_path, 200)
    sketch = mix_rows([(1.0, index.rows[9])])
    one = attribute(index, sketch, VERSION)
    other = attribute(index, sketch, VERSION._replace(published_ms=1))
    assert one.statement.floors != other.statement.floors
    assert set(one.statement.floors) != set(range(127))
    small = open_index(tmp_path / "small", 127)
    assert attribute(small, sketch, VERSION) == attribute(
        small, sketch, VERSION._replace(published_ms=1)
    )


def test_noise_seldom_stands_above_the_threshold(tmp_path: Path) -> None:
    """tau is the expected maximum of noise, so about one noise answer in twelve passes it."""
    index = open_index(tmp_path, 200)
    paid = [attribute(index, mix_rows([], seed=seed), VERSION).credits for seed in range(5, 65)]
    assert sum(credits != () for credits in paid) <= 12


def test_index_of_one_row_pays_nobody(tmp_path: Path) -> None:
    index = open_index(tmp_path, 1)
    assert attribute(index, index.rows[0].tobytes(), VERSION).credits == ()


def test_of_65_equal_rows_the_last_is_not_paid(tmp_path: Path) -> None:
    rows = sound_rows(300)
    rows[:65] = rows[0]
    index = Index.open(*write_index(tmp_path, rows, [row + 1 for row in range(300)]))
    made = attribute(index, rows[0].tobytes(), VERSION)
    assert [row for row, _, _ in made.statement.paid] == list(range(64))
    assert len(made.credits) == 64


@pytest.mark.parametrize("sketch", [b"", bytes(1_024), bytes([31] * 1_023)])
def test_malformed_sketch_is_refused(tmp_path: Path, sketch: bytes) -> None:
    with pytest.raises(Invalid) as refusal:
        attribute(open_index(tmp_path, 3), sketch, VERSION)
    assert refusal.value.code == "sketch.malformed"


def test_shares_follow_rows_and_not_their_grouping(tmp_path: Path) -> None:
    """Rows under two contributions or under 120: sums are equal to the basis point.

    120 rows are all in the panel, so the two roots do not draw two floors.
    """
    rows = sound_rows(120)
    sketch = mix_rows([(1.0, rows[9]), (0.9, rows[11]), (0.8, rows[110])])
    two = Index.open(*write_index(tmp_path / "two", rows, [1] * 60 + [2] * 60))
    many = Index.open(*write_index(tmp_path / "many", rows, [row + 1 for row in range(120)]))
    merged = {1: 0, 2: 0}
    for contribution, bps in attribute(many, sketch, VERSION).credits:
        merged[1 if contribution <= 60 else 2] += bps
    assert dict(attribute(two, sketch, VERSION).credits) == merged


def test_explanation_ranks_rows_and_shows_only_text_that_is_held(tmp_path: Path) -> None:
    index = open_index(tmp_path, 200)
    made = attribute(index, mix_rows([(1.0, index.rows[9]), (0.6, index.rows[150])]), VERSION)
    held = {index.place_of(9): make_record("Who?", "Ann.")}
    told = explain(made.statement, index, held)
    assert [row.rank for row in told.rows] == list(range(1, len(told.rows) + 1))
    assert [row.row for row in told.rows[:2]] == [9, 150]
    assert [row.snippet for row in told.rows[:2]] == ["Who? Ann.", None]
    assert sum(row.bps for row in told.rows) == 10_000
    assert all(row.score_bps > 10_000 for row in told.rows)
    assert (told.index_rows, told.tau) == (200, shares.Z[8] * told.floor)


def test_explanation_of_a_silent_answer_shows_rows_without_a_share(tmp_path: Path) -> None:
    index = open_index(tmp_path, 200)
    made = attribute(index, mix_rows([(0.2, index.rows[9])]), VERSION)
    told = explain(made.statement, index)
    assert made.credits == ()
    assert [(row.row, row.bps) for row in told.rows] == [(9, 0)]
    assert told.rows[0].score_bps < 25_000


def test_snippet_is_one_line_of_at_most_160_characters() -> None:
    assert snippet(make_record("", "a\nb")) == "a b"
    assert snippet(make_record("", "x" * 160)) == "x" * 160
    assert snippet(make_record("", "x" * 161)) == "x" * 159 + "…"


def test_kernel_does_not_change_the_statement(tmp_path: Path) -> None:
    index = open_index(tmp_path, 200)
    sketch = mix_rows([(1.0, index.rows[9])])

    def plain(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
        return np.array([shares.score(r.tobytes(), query.tobytes()) for r in rows], np.int32)

    assert attribute(index, sketch, VERSION, plain) == attribute(index, sketch, VERSION)
