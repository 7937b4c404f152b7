"""What only all records show of an index: its clusters, its basis, and who was left out."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consensus.primitives.digest import sha256
from node.attribution import index as files
from node.attribution.building import Built
from node.attribution.datanets import PlacedRecord
from node.attribution.index import Index
from node.attribution.rowaudit import Folders, audit_rows
from node.attribution.tokens import TextTokenizer
from node.attribution.wholeaudit import WholeAudit, audit_whole
from node.ledger.wire import claims

pytestmark = pytest.mark.ml


@pytest.fixture
def audited(trained, placed: list[PlacedRecord]) -> Callable[[Index], WholeAudit]:
    folders = Folders(str(trained.base), str(trained.early), str(trained.middle))
    return lambda index: audit_whole(index, placed, folders, TextTokenizer(trained.base))


def falsified(built: Built, home: Path, **changed: Any) -> Index:
    """The same index with other rows, meta, clusters or basis, under its own root."""
    index = Index.open(built.folder, built.root)
    arrays = {"rows": index.rows, "meta": index.meta, "clusters": index.clusters} | changed
    basis = changed.get("basis", files.read_basis(built.folder))
    header = index.header._replace(
        rows=len(arrays["rows"]),
        rows_root=files.rows_root(arrays["rows"], arrays["meta"]),
        clusters_root=files.clusters_root(arrays["clusters"]),
        basis_hash=sha256(basis),
    )
    raw = claims.encode_header(header)
    folder = home / claims.index_root(raw).hex()
    shutil.copytree(built.folder, folder)
    (folder / files.HEADER_FILE).write_bytes(raw)
    for name in ("rows", "meta", "clusters"):
        (folder / f"{name}.bin").write_bytes(arrays[name].tobytes())
    (folder / files.BASIS_FILE).write_bytes(basis)
    return Index.open(folder, claims.index_root(raw))


def test_honest_index_is_what_its_records_give(built, audited) -> None:
    found = audited(Index.open(built.folder, built.root))
    assert found.is_good, found
    assert (found.basis_records, found.joined, found.omitted) == (36, None, ())
    assert found.weight_ppm <= 100


def test_basis_that_weighs_otherwise_is_found_though_all_rows_are_alike(
    built, audited, trained, placed, tmp_path: Path
) -> None:
    """Rows of it are what it gives, so that an audit of rows sees nothing."""
    from node.attribution.basis import Sketcher, decode_tensors, encode_tensors

    tensors = decode_tensors(files.read_basis(built.folder))
    name = next(name for name in sorted(tensors) if name.endswith("weight"))
    tensors[name][0, 0] *= 1.05
    false = falsified(built, tmp_path, basis=encode_tensors(tensors))
    Sketcher.load(false.folder)
    found = audited(false)
    assert not found.is_good
    assert 40_000 <= found.weight_ppm <= 60_000
    folders = Folders(str(trained.base), str(trained.early), str(trained.middle))
    texts = {(p.contribution, p.position): p.record for p in placed}
    assert not audit_rows(false, range(8), texts, folders, TextTokenizer(trained.base)).bad


def test_record_that_is_joined_to_another_is_named(built, audited, tmp_path: Path) -> None:
    clusters = np.array(Index.open(built.folder, built.root).clusters)
    clusters[34] = 7  # a copy of record 2
    assert audited(falsified(built, tmp_path, clusters=clusters)).joined == (8, 2)


def test_record_that_was_left_out_is_named(built, audited, tmp_path: Path) -> None:
    """Its owner would never be paid, and no opened row could show it."""
    index = Index.open(built.folder, built.root)
    kept = np.arange(index.header.rows) != 20
    clusters = np.array(index.clusters)
    clusters[clusters == 20] = files.NO_ROW
    clusters[(clusters != files.NO_ROW) & (clusters > 20)] -= 1
    false = falsified(
        built, tmp_path, rows=np.array(index.rows[kept]), meta=index.meta[kept], clusters=clusters
    )
    found = audited(false)
    assert (found.omitted, found.joined) == ((index.place_of(20),), None)
