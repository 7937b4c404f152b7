"""An index on disk: its files, their commitment, and the checks before it is believed.

A folder named by its root, made of blobs, never changed (design page 60 §3). The root is the
SHA-256 of the header, which holds RFC 6962 roots over rows and clusters and the basis's hash, so
whoever fetched the folder from strangers can trust it wholly or not at all. Rows stay on disk,
mapped; opening reads each once.
What this file does not know: torch, how rows were made (building.py), how they are scored.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from consensus.primitives import merkle
from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid
from node.attribution import spans
from node.attribution.score import SHARD_ROWS, Rows
from node.attribution.spans import SpanText
from node.ledger.rules.shares import NORM_MAX, NORM_MIN
from node.ledger.wire import claims
from node.ledger.wire.claims import HALF_BYTES, META_BYTES, ROW_BYTES, IndexHeader, RowLeaf
from node.ledger.wire.openings import NormOpened
from node.ledger.wire.receipts import NO_CONTRIBUTION

HEADER_FILE: Final = "header"
ROWS_FILE: Final = "rows.bin"
META_FILE: Final = "meta.bin"
CLUSTERS_FILE: Final = "clusters.bin"
BASIS_FILE: Final = "basis.safetensors"
FILES: Final = (HEADER_FILE, ROWS_FILE, META_FILE, CLUSTERS_FILE, BASIS_FILE)

NO_ROW: Final = 2**32 - 1  # in clusters.bin: the record's idea has no row
BASIS_BYTES_MAX: Final = 2 * 1024**3
SPANS_BYTES_MAX: Final = 4 * spans.TOKENS_MAX
META: Final = np.dtype([("contribution", ">u8"), ("position", ">u4"), ("kept_tokens", ">u4")])
CLUSTER: Final = np.dtype(">u4")
assert META.itemsize == META_BYTES


class IndexInvalid(Invalid):
    """An index folder breaks a rule and is never used; `code` is `index.<reason>`."""

    def __init__(self, reason: str, **facts: object) -> None:
        super().__init__(f"index.{reason}", **facts)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Index:
    """A checked index. `rows` int8 (N, 1,024) mapped; `meta` and `clusters` in memory."""

    folder: Path
    root: bytes
    header: IndexHeader
    rows: Rows
    meta: NDArray[Any]
    clusters: NDArray[Any]
    spans: SpanText | None  # where the mix has spans

    @classmethod
    def open(cls, folder: str | Path, root: bytes) -> "Index":
        """The index in `folder`, if it is wholly the one that `root` names.

        Raises IndexInvalid: `header`, `root`, `size`, `rows` (an entry −128 or a norm out of
        bounds), `meta` (not ascending, or of no contribution), `clusters`, `rows_root`,
        `clusters_root`, `basis_hash`, `missing`, `spans`, `spans_root`. Without
        `basis.safetensors` it can rescan and verify, not sketch.
        """
        folder = Path(folder)
        header = read_header(folder)
        if claims.index_root(claims.encode_header(header)) != root:
            raise IndexInvalid("root")
        n = header.rows
        rows = _map(folder / ROWS_FILE, np.dtype(np.int8), (n, ROW_BYTES))
        meta = np.array(_map(folder / META_FILE, META, (n,)))
        clusters = np.array(_map(folder / CLUSTERS_FILE, CLUSTER, (header.records,)))
        _check_rows(rows)
        _check_meta(meta)
        _check_clusters(clusters, n)
        if rows_root(rows, meta) != header.rows_root:
            raise IndexInvalid("rows_root")
        if clusters_root(clusters) != header.clusters_root:
            raise IndexInvalid("clusters_root")
        text = _open_spans(folder, header) if claims.SPAN in dict(header.mix) else None
        index = cls(folder, root, header, rows, meta, clusters, text)
        if index.has_basis and sha256(read_basis(folder)) != header.basis_hash:
            raise IndexInvalid("basis_hash")
        return index

    @property
    def has_basis(self) -> bool:
        """Whether answers can be sketched with it; rescans need none."""
        return (self.folder / BASIS_FILE).is_file()

    @property
    def contents(self) -> dict[str, Path]:
        """The files that the root vouches for, by name: what is published of it."""
        names = FILES if self.spans is None else (*FILES, *spans.FILES)
        return {name: self.folder / name for name in names}

    def contribution_of(self, row: int) -> int:
        """The contribution that is paid for `row`."""
        return int(self.meta["contribution"][row])

    def place_of(self, row: int) -> tuple[int, int]:
        """(contribution, position in it) of the canonical record of `row`."""
        return int(self.meta["contribution"][row]), int(self.meta["position"][row])

    def leaf(self, row: int) -> RowLeaf:
        """The row as it is opened under the header's rows root."""
        contribution, position, kept = (int(value) for value in self.meta[row])
        return RowLeaf(row, contribution, position, kept, self.rows[row].tobytes())

    def prove_row(self, row: int) -> tuple[bytes, ...]:
        """The path of `leaf(row)`; hashes all rows, 0.2 s per 100,000."""
        return merkle.path_in(self.hash_levels(), row)

    def hash_levels(self) -> merkle.Levels:
        """The whole tree over the row leaves, for many paths; 155 bytes a row."""
        return merkle.levels_of(list(_leaf_hashes(self.rows, self.meta)))


def find_inflated(folder: str | Path, root: bytes) -> NormOpened | None:
    """What shows every validator that the index in `folder` has a row that no honest builder makes:
    the first such row. None where its rows are sound, or are not those that `root` names.

    `open` refuses such an index, so nobody who is honest can recompute what it pays.
    """
    folder = Path(folder)
    try:
        header = read_header(folder)
        rows = _map(folder / ROWS_FILE, np.dtype(np.int8), (header.rows, ROW_BYTES))
        meta = np.array(_map(folder / META_FILE, META, (header.rows,)))
    except IndexInvalid:
        return None
    raw, row = claims.encode_header(header), _first_unsound(rows)
    if row is None or claims.index_root(raw) != root:
        return None
    hashes = list(_leaf_hashes(rows, meta))
    if merkle.root_of_hashes(hashes) != header.rows_root:
        return None
    leaf = row.to_bytes(4) + meta[row].tobytes() + rows[row].tobytes()
    return NormOpened(raw, leaf, merkle.path_in(merkle.levels_of(hashes), row))


def read_header(folder: Path) -> IndexHeader:
    """The header in `folder`; raises IndexInvalid `missing` or `header`."""
    raw = _read(folder / HEADER_FILE, claims.HEADER_BYTES_MAX)
    try:
        return claims.decode_header(raw)
    except Invalid as refusal:
        raise IndexInvalid("header", why=refusal.code) from None


def read_basis(folder: Path) -> bytes:
    """The bytes of the basis; raises IndexInvalid `missing` or `size`."""
    return _read(folder / BASIS_FILE, BASIS_BYTES_MAX)


def rows_root(rows: Rows, meta: NDArray[Any]) -> bytes:
    """RFC 6962 root over the row leaves, 1,044 bytes each."""
    return merkle.root_of_hashes(list(_leaf_hashes(rows, meta)))


def clusters_root(clusters: NDArray[Any]) -> bytes:
    """RFC 6962 root over one u32 a record: its canonical row, or 2^32 − 1."""
    return merkle.root(int(row).to_bytes(4) for row in clusters)


def make_meta(places: Sequence[tuple[int, int, int]]) -> NDArray[Any]:
    """meta.bin from (contribution, position, kept tokens) by row."""
    return np.array(places, META)


def _leaf_hashes(rows: Rows, meta: NDArray[Any]) -> Iterator[bytes]:
    for start in range(0, len(rows), SHARD_ROWS):
        data = rows[start : start + SHARD_ROWS].tobytes()
        about = meta[start : start + SHARD_ROWS].tobytes()
        for i in range(len(data) // ROW_BYTES):
            yield merkle.leaf_hash(
                (start + i).to_bytes(4)
                + about[i * META_BYTES : (i + 1) * META_BYTES]
                + data[i * ROW_BYTES : (i + 1) * ROW_BYTES]
            )


def _read(path: Path, bytes_max: int) -> bytes:
    try:
        if path.stat().st_size > bytes_max:
            raise IndexInvalid("size", file=path.name)
        return path.read_bytes()
    except OSError as error:
        raise IndexInvalid("missing", file=path.name, why=error.strerror) from None


def _map(path: Path, dtype: "np.dtype[Any]", shape: tuple[int, ...]) -> NDArray[Any]:
    wanted = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    try:
        if path.stat().st_size != wanted:
            raise IndexInvalid("size", file=path.name, bytes=path.stat().st_size, wanted=wanted)
        return np.memmap(path, dtype, "r", shape=shape)
    except OSError as error:
        raise IndexInvalid("missing", file=path.name, why=error.strerror) from None


def _open_spans(folder: Path, header: IndexHeader) -> SpanText:
    files = {name: _read(folder / name, SPANS_BYTES_MAX) for name in spans.FILES}
    if spans.spans_root(files) != header.spans_root:
        raise IndexInvalid("spans_root")
    try:
        return spans.decode(files, header.rows)
    except Invalid as refusal:
        raise IndexInvalid("spans", why=refusal.code) from None


def _check_rows(rows: Rows) -> None:
    row = _first_unsound(rows)
    if row is not None:
        why = "−128" if (rows[row] == -128).any() else "norm"
        raise IndexInvalid("rows", why=why, row=row)


def _first_unsound(rows: Rows) -> int | None:
    """The first row that `shares.is_sound_row` refuses."""
    for start in range(0, len(rows), SHARD_ROWS):
        shard = rows[start : start + SHARD_ROWS]
        is_unsound = (shard == -128).any(axis=1)
        for half in (shard[:, :HALF_BYTES], shard[:, HALF_BYTES:]):
            norms = np.einsum("nk,nk->n", half, half, dtype=np.int32)
            is_unsound |= (norms < NORM_MIN) | (norms > NORM_MAX)
        if is_unsound.any():
            return start + int(is_unsound.argmax())
    return None


def _check_meta(meta: NDArray[Any]) -> None:
    # 2^63 keeps contributions within what the ledger can name. A row of none would pay the fund,
    # and row audits could not make it again. Then compare pairs as one number.
    contributions, positions = meta["contribution"], meta["position"]
    if ((contributions == NO_CONTRIBUTION) | (contributions >= 2**63)).any():
        raise IndexInvalid("meta", why="contribution")
    before, after = contributions[:-1], contributions[1:]
    is_ascending = (before < after) | ((before == after) & (positions[:-1] < positions[1:]))
    if not is_ascending.all():
        raise IndexInvalid("meta", why="not ascending")


def _check_clusters(clusters: NDArray[Any], rows: int) -> None:
    if ((clusters >= rows) & (clusters != NO_ROW)).any():
        raise IndexInvalid("clusters", why="names a row that is not there")
    if len(np.unique(clusters[clusters != NO_ROW])) != rows:
        raise IndexInvalid("clusters", why="a row without a record")
