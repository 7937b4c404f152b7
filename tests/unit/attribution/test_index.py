"""An index folder is believed wholly or not at all."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from attribution_kit import CITING, open_index, sound_rows, write_index

from consensus.primitives import merkle
from node.attribution import index as files
from node.attribution.index import Index, IndexInvalid, find_inflated
from node.ledger.rules import refuting
from node.ledger.wire import claims


def flip(name: str, at: int) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[at] ^= 1
        (folder / name).write_bytes(data)

    return tamper


def put(name: str, at: int, value: bytes) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[at : at + len(value)] = value
        (folder / name).write_bytes(data)

    return tamper


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1])


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def test_whole_index_opens(tmp_path: Path) -> None:
    index = open_index(tmp_path, rows=40)
    assert index.header.rows == 40
    assert index.has_basis
    assert (index.contribution_of(39), index.place_of(5)) == (10, (2, 5))


def test_index_without_basis_opens_and_says_so(tmp_path: Path) -> None:
    folder, root = write_index(tmp_path, sound_rows(3))
    (folder / files.BASIS_FILE).unlink()
    assert not Index.open(folder, root).has_basis


@pytest.mark.parametrize(
    ("reason", "tamper"),
    [
        ("missing", drop("header")),
        ("missing", drop("rows.bin")),
        ("missing", drop("meta.bin")),
        ("missing", drop("clusters.bin")),
        ("size", cut("rows.bin")),
        ("size", cut("meta.bin")),
        ("size", cut("clusters.bin")),
        ("size", lambda folder: (folder / "header").write_bytes(bytes(4_097))),
        ("header", put("header", 0, b"\x90")),
        ("root", flip("header", 40)),
        ("rows", put("rows.bin", 700, b"\x80")),
        ("rows", put("rows.bin", 1_024, bytes(512))),
        ("rows_root", flip("rows.bin", 5)),
        ("rows_root", flip("meta.bin", 15)),
        ("meta", put("meta.bin", 0, b"\x7f")),
        ("meta", put("meta.bin", 16 * 39, b"\x80")),
        ("meta", put("meta.bin", 0, bytes(8))),
        ("clusters", put("clusters.bin", 0, (40).to_bytes(4))),
        ("clusters", put("clusters.bin", 0, (1).to_bytes(4))),
        ("basis_hash", flip("basis.safetensors", 3)),
    ],
)
def test_tampered_index_is_refused_by_its_reason(
    tmp_path: Path, reason: str, tamper: Callable[[Path], None]
) -> None:
    folder, root = write_index(tmp_path, sound_rows(40))
    tamper(folder)
    with pytest.raises(IndexInvalid) as refusal:
        Index.open(folder, root)
    assert (refusal.value.reason, refusal.value.code) == (reason, f"index.{reason}")


def test_index_with_swapped_clusters_is_refused(tmp_path: Path) -> None:
    """Each cluster is still there, so only the commitment sees it."""
    folder, root = write_index(tmp_path, sound_rows(40))
    put("clusters.bin", 0, (1).to_bytes(4) + (0).to_bytes(4))(folder)
    with pytest.raises(IndexInvalid) as refusal:
        Index.open(folder, root)
    assert refusal.value.reason == "clusters_root"


def test_index_of_a_mix_with_citations_opens(tmp_path: Path) -> None:
    folder, root = write_index(tmp_path, sound_rows(3), plain=CITING)
    assert Index.open(folder, root).header.mix == CITING


@pytest.mark.parametrize(
    ("desc", "start", "stop", "value"),
    [
        ("inflated", 0, 1_024, 127),
        ("one half alone", 512, 1_024, 127),
        ("shrunk", 0, 512, 1),
        ("an entry that no clamp leaves", 5, 6, -128),
    ],
)
def test_row_that_no_builder_makes_is_opened_for_all_to_see(
    tmp_path: Path, desc: str, start: int, stop: int, value: int
) -> None:
    rows = sound_rows(40)
    rows[7, start:stop] = rows[30] = value
    folder, root = write_index(tmp_path, rows)
    found = find_inflated(folder, root)
    assert found is not None
    opened = refuting.open_row(root, *found)
    assert (opened.leaf.number, refuting.is_inflated(opened)) == (7, True), desc
    with pytest.raises(IndexInvalid) as refusal:
        Index.open(folder, root)
    assert (refusal.value.reason, refusal.value.facts["row"]) == ("rows", 7)


def test_row_that_the_root_does_not_name_accuses_nobody(tmp_path: Path) -> None:
    """Whoever passes an index on could else have its creator punished."""
    folder, root = write_index(tmp_path, sound_rows(40))
    assert find_inflated(folder, root) is None, "all its rows are sound"
    put("rows.bin", 0, bytes([127] * 1_024))(folder)
    assert find_inflated(folder, root) is None, "not the committed row"
    false = sound_rows(40)
    false[3] = 127
    inflated, other = write_index(tmp_path / "other", false)
    assert find_inflated(inflated, root) is None, "another index"
    cut("meta.bin")(inflated)
    assert find_inflated(inflated, other) is None
    assert find_inflated(tmp_path / "absent", root) is None


@pytest.mark.parametrize("rows", [1, 2, 40])
def test_row_is_opened_by_its_leaf_and_one_path(tmp_path: Path, rows: int) -> None:
    index = open_index(tmp_path, rows)
    for row in {0, rows // 2, rows - 1}:
        leaf = merkle.leaf_hash(claims.encode_row_leaf(index.leaf(row)))
        merkle.verify_path(index.header.rows_root, leaf, row, rows, index.prove_row(row))


def test_roots_do_not_depend_on_the_scan_shard(tmp_path: Path) -> None:
    rows = sound_rows(1)[np.zeros(4_100, dtype=int)]
    meta = files.make_meta([(1, row, 1) for row in range(4_100)])
    leaves = [row.to_bytes(4) + meta[row].tobytes() + rows[row].tobytes() for row in range(4_100)]
    assert files.rows_root(rows, meta) == merkle.root(leaves)
