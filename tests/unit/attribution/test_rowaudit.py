"""Rows made again: those of an honest index are alike, one that was changed is named."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from attribution_kit import sound_rows

from consensus.primitives.errors import Invalid
from node.attribution import index as files
from node.attribution import spans
from node.attribution.building import Built, build_index
from node.attribution.datanets import PlacedRecord, make_record
from node.attribution.index import Index
from node.attribution.rowaudit import Folders, audit_rows, draw
from node.attribution.runners import LocalRunner
from node.attribution.tokens import TextTokenizer
from node.ledger.wire import claims

pytestmark = pytest.mark.ml


@pytest.fixture
def folders(trained) -> Folders:
    return Folders(str(trained.base), str(trained.early), str(trained.middle))


def texts(placed: list[PlacedRecord]) -> dict:
    return {(p.contribution, p.position): p.record for p in placed}


def falsified(built: Built, home: Path, row: int) -> Index:
    """The same index with another sound row in the place of one, under its own root."""
    index = Index.open(built.folder, built.root)
    rows = np.array(index.rows)
    rows[row] = sound_rows(1, 99)[0]
    header = index.header._replace(rows_root=files.rows_root(rows, index.meta))
    raw = claims.encode_header(header)
    folder = home / claims.index_root(raw).hex()
    shutil.copytree(built.folder, folder)
    (folder / files.HEADER_FILE).write_bytes(raw)
    (folder / files.ROWS_FILE).write_bytes(rows.tobytes())
    return Index.open(folder, claims.index_root(raw))


def test_rows_of_an_honest_index_are_made_again(built, trained, placed, folders) -> None:
    index = Index.open(built.folder, built.root)
    found = audit_rows(
        index, draw(bytes(32), index, 20), texts(placed), folders, TextTokenizer(trained.base)
    )
    assert (found.rows, found.missing, found.bad) == (20, 0, ())
    assert found.least_ppm >= 999_000


def test_changed_row_is_named_and_a_missing_record_says_nothing(
    built, trained, placed, folders, tmp_path: Path
) -> None:
    index = falsified(built, tmp_path, 7)
    known = texts(placed)
    del known[index.place_of(3)]
    rows = range(10)
    found = audit_rows(index, rows, known, folders, TextTokenizer(trained.base))
    assert (found.rows, found.missing) == (9, 1)
    ((row, why),) = [(bad.row, bad.why) for bad in found.bad]
    assert (row, why) == (7, "cosine")
    assert found.least_ppm < 500_000


def test_record_with_other_tokens_is_named(built, trained, placed, folders) -> None:
    index = Index.open(built.folder, built.root)
    known = texts(placed) | {index.place_of(2): make_record("Who?", "Somebody else entirely.")}
    found = audit_rows(index, [1, 2], known, folders, TextTokenizer(trained.base))
    assert [(bad.row, bad.why) for bad in found.bad] == [(2, "tokens")]


def test_text_that_is_not_the_records_is_named(
    trained, placed: list[PlacedRecord], folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who puts popular words into its rows is paid for each answer that says them."""
    mix = ((claims.GRADIENT, 7_000), (claims.SPAN, 3_000))
    tokenizer, whole = TextTokenizer(trained.base), spans.build

    def build(name: str):
        spec = dataclasses.replace(trained.spec(), mix=mix)
        made = build_index(spec, placed, tokenizer, tmp_path / name, LocalRunner())
        return Index.open(made.folder, made.root)

    honest = build("honest")
    monkeypatch.setattr(
        spans, "build", lambda rows: whole([*rows[:4], [*rows[4], *rows[5]], *rows[5:]])
    )
    false = build("false")
    audits = [audit_rows(i, range(8), texts(placed), folders, tokenizer) for i in (honest, false)]
    assert [[(bad.row, bad.why) for bad in a.bad] for a in audits] == [[], [(4, "spans")]]


def test_index_without_its_basis_cannot_be_audited(
    built, trained, placed, folders, tmp_path: Path
) -> None:
    folder = tmp_path / built.root.hex()
    shutil.copytree(built.folder, folder)
    (folder / files.BASIS_FILE).unlink()
    index = Index.open(folder, built.root)
    with pytest.raises(Invalid, match=r"index\.basis"):
        audit_rows(index, [0], texts(placed), folders, TextTokenizer(trained.base))


def test_draw_is_the_seeds(built) -> None:
    index = Index.open(built.folder, built.root)
    assert draw(b"\1" * 32, index, 9) == draw(b"\1" * 32, index, 9) != draw(b"\2" * 32, index, 9)
    assert draw(b"\1" * 32, index) == tuple(range(index.header.rows)), "no more than there are"
