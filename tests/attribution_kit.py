"""A small index without torch: random sound rows, so that the exact part is tested alone."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from consensus.primitives.digest import sha256
from node.attribution import index as files
from node.attribution import spans
from node.attribution.attribute import Version
from node.attribution.index import Index
from node.ledger.rules.shares import Mix
from node.ledger.wire import claims

VERSION = Version(chain_id=b"\1" * 32, model=3, version=2, published_ms=1_800_000_000_000)
CITING = ((claims.GRADIENT, 8_000), (claims.RETRIEVAL, 2_000))
MIXED = ((claims.GRADIENT, 7_000), (claims.SPAN, 3_000))
BASIS = b"not read by the exact part"


def sound_rows(rows: int, seed: int = 1) -> NDArray[np.int8]:
    """Random unit halves, rounded as real ones are; (rows, 1,024)."""
    halves = np.random.default_rng(seed).standard_normal((rows, 2, 512))
    halves *= np.sqrt(512) * 127 / 4 / np.linalg.norm(halves, axis=2, keepdims=True)
    return np.clip(np.rint(halves), -127, 127).astype(np.int8).reshape(rows, 1_024)


def mix_rows(parts: list[tuple[float, NDArray[np.int8]]], seed: int = 9) -> bytes:
    """A sound sketch that leans towards `parts`: (weight, row)."""
    noise = sound_rows(1, seed)[0].astype(float)
    whole = sum((weight * row.astype(float) for weight, row in parts), noise).reshape(2, 512)
    whole *= np.sqrt(512) * 127 / 4 / np.linalg.norm(whole, axis=1, keepdims=True)
    return np.clip(np.rint(whole), -127, 127).astype(np.int8).tobytes()


def write_index(
    home: Path,
    rows: NDArray[np.int8],
    contributions: list[int] | None = None,
    completions: list[list[int]] | None = None,
    plain: Mix = claims.GRADIENT_ONLY,
) -> tuple[Path, bytes]:
    """(folder, root) of an index whose records are its rows, four to a contribution.

    With `completions`, token ids by row, spans have 3,000 bps of its mix; else it is `plain`.
    """
    verbatim = {} if completions is None else spans.build(completions).files()
    n = len(rows)
    owners = contributions or [1 + row // 4 for row in range(n)]
    meta = files.make_meta([(owner, row, 20) for row, owner in enumerate(owners)])
    clusters = np.arange(n, dtype=files.CLUSTER)
    header = claims.IndexHeader(
        version=1,
        base=b"\2" * 32,
        adapter=b"\3" * 32,
        early=b"\4" * 32,
        middle=b"\5" * 32,
        snapshot_root=b"\6" * 32,
        basis_hash=sha256(BASIS),
        rows=n,
        records=n,
        rule=1,
        narrow=128,
        mix=MIXED if verbatim else plain,
        min_span=6,
        rows_root=files.rows_root(rows, meta),
        clusters_root=files.clusters_root(clusters),
        spans_root=spans.spans_root(verbatim) if verbatim else claims.NO_SPANS,
    )
    raw = claims.encode_header(header)
    folder = home / claims.index_root(raw).hex()
    folder.mkdir(parents=True)
    contents = {
        files.HEADER_FILE: raw,
        files.ROWS_FILE: rows.tobytes(),
        files.META_FILE: meta.tobytes(),
        files.CLUSTERS_FILE: clusters.tobytes(),
        files.BASIS_FILE: BASIS,
        **verbatim,
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return folder, claims.index_root(raw)


def open_unchecked(folder: Path, root: bytes) -> Index:
    """As a cheat's own software opens it: rows of any length."""
    header = files.read_header(folder)
    rows = np.fromfile(folder / files.ROWS_FILE, np.int8).reshape(header.rows, -1)
    meta = np.fromfile(folder / files.META_FILE, files.META)
    clusters = np.fromfile(folder / files.CLUSTERS_FILE, files.CLUSTER)
    return Index(folder, root, header, rows, meta, clusters, None)


def open_index(home: Path, rows: int = 40) -> Index:
    return Index.open(*write_index(home, sound_rows(rows)))
