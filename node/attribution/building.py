"""Building an index: clusters, basis, rows, commitment, in shards that survive a kill.

Each shard is a pure function of the specification, written whole with its own hash behind it.
A build that was killed and started again keeps the shards that are sound and makes the others;
it needs no state but the files. Steps: design page 60 §3.
What this file does not know: gradients and bases beyond their names (gradients.py and basis.py
are imported only by the process that computes), who the contributors are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from consensus.primitives.digest import domain_hash, sha256
from consensus.primitives.encoding import encode
from node.attribution import clusters as near
from node.attribution import index as files
from node.attribution import spans
from node.attribution.datanets import PlacedRecord, RecordIds, Tokenizer, encode_record
from node.attribution.runners import Runner
from node.attribution.score import Rows
from node.attribution.shards import Progress, Workshop
from node.ledger.rules.shares import Mix, draw_rows
from node.ledger.wire import claims
from node.ledger.wire.claims import ROW_BYTES

BASIS_RECORDS: Final = 4_096
BASIS_SHARD_RECORDS: Final = 256
SHARD_RECORDS: Final = 4_096
HALVES: Final = (0, 1)  # early, middle

Stage = Literal["sums", "moments", "rows"]


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """What an index is of: the folders to compute with, the hashes to commit to.

    `shard_records` must be a multiple of 16, the batch, so that it does not change the rows.
    """

    base_folder: str
    early_folder: str
    middle_folder: str
    base: bytes
    adapter: bytes
    early: bytes
    middle: bytes
    snapshot_root: bytes
    narrow: int = 128
    mix: Mix = claims.GRADIENT_ONLY
    min_span: int = 6
    shard_records: int = SHARD_RECORDS


@dataclass(frozen=True, slots=True)
class Built:
    """A finished index; `left_out` are the places of canonical records that got no row."""

    root: bytes
    folder: Path
    left_out: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Which records get a row, before any row is computed."""

    leaders: list[int]  # record → its canonical record
    candidates: list[int]  # canonical records with a completion token, ascending
    coded: list[RecordIds]  # of the candidates

    def clusters(self, row_of: dict[int, int]) -> np.ndarray[Any, Any]:
        """clusters.bin, given the row of each candidate that has one."""
        rows = [row_of.get(leader, files.NO_ROW) for leader in self.leaders]
        return np.array(rows, files.CLUSTER)


def build_index(
    spec: IndexSpec,
    records: Sequence[PlacedRecord],
    tokenizer: Tokenizer,
    home: Path,
    runner: Runner,
    on_progress: Progress = lambda stage, done, total: None,
) -> Built:
    """Build the index of `records` (ledger order) under `home/<root in hex>`.

    Killed and called again with the same arguments it goes on where it was. Raises IndexInvalid
    `no_rows`, or ShardLost.
    """
    from node.attribution import basis

    layout = lay_out(records, tokenizer)
    if not layout.candidates:
        raise files.IndexInvalid("no_rows", records=len(records))
    work = Workshop(home, _identity(spec, records), runner, on_progress)
    source = Source(spec, layout.coded)
    drawn = tuple(sorted(draw_for_basis(spec, layout)))
    with basis.one_thread():
        sums = work.shards("sums", source.task("sums", drawn), len(drawn), BASIS_SHARD_RECORDS)
        bases = basis.eigenbases(basis.add_sums(map(basis.decode_tensors, sums)))
        eigen = work.keep("eigenbases", basis.encode_tensors(bases))
        moments = work.shards(
            "moments", source.task("moments", drawn, eigen), len(drawn), BASIS_SHARD_RECORDS
        )
        totals = basis.add_sums(map(basis.decode_tensors, moments))
        fitted = basis.encode_tensors({**bases, **basis.weights(totals, len(drawn))})
    fitted_path = work.keep(files.BASIS_FILE, fitted)
    members = tuple(range(len(layout.candidates)))
    shards = work.shards(
        "rows", source.task("rows", members, fitted_path), len(members), spec.shard_records
    )
    rows = np.frombuffer(b"".join(shards), np.int8).reshape(len(members), ROW_BYTES)
    return _finish(work, spec, records, layout, rows, fitted)


def lay_out(records: Sequence[PlacedRecord], tokenizer: Tokenizer) -> Layout:
    texts = (near.read(placed.record.prompt, placed.record.completion) for placed in records)
    leaders = near.find_leaders(texts)
    candidates, coded = [], []
    for number in sorted(set(leaders)):
        record = records[number].record
        ids = encode_record(tokenizer, record.prompt, record.completion)
        if ids.kept_tokens >= 1:
            candidates.append(number)
            coded.append(ids)
    return Layout(leaders, candidates, coded)


def draw_for_basis(spec: IndexSpec, layout: Layout) -> tuple[int, ...]:
    """Candidates, by their number. The seed holds the clusters as if each candidate got a row:
    which ones do is known only after the basis."""
    row_of = {record: number for number, record in enumerate(layout.candidates)}
    root = files.clusters_root(layout.clusters(row_of))
    seed = domain_hash(b"basis", spec.snapshot_root, root)
    return draw_rows(seed, len(layout.candidates), BASIS_RECORDS)


def _identity(spec: IndexSpec, records: Sequence[PlacedRecord]) -> bytes:
    """Names the work in progress: another specification or record never reuses its shards."""
    numbers = (spec.narrow, spec.mix, spec.min_span, spec.shard_records)
    hashes = (spec.base, spec.adapter, spec.early, spec.middle, spec.snapshot_root)
    places = (
        encode((placed.contribution, placed.position, placed.record.raw)) for placed in records
    )
    return domain_hash(b"building", encode((numbers, hashes)), *places)


def _finish(
    work: Workshop,
    spec: IndexSpec,
    records: Sequence[PlacedRecord],
    layout: Layout,
    rows: Rows,
    basis: bytes,
) -> Built:
    has_row = rows.any(axis=1)
    kept = np.flatnonzero(has_row).tolist()
    if not kept:
        raise files.IndexInvalid("no_rows", records=len(records))
    row_of = {layout.candidates[number]: row for row, number in enumerate(kept)}
    clusters = layout.clusters(row_of)
    places = []
    for number in kept:
        placed = records[layout.candidates[number]]
        places.append((placed.contribution, placed.position, layout.coded[number].kept_tokens))
    rows, meta = rows[has_row], files.make_meta(places)
    verbatim = _span_files([layout.coded[number] for number in kept]) if _has_spans(spec) else {}
    header = claims.encode_header(
        claims.IndexHeader(
            version=claims.HEADER_VERSION,
            base=spec.base,
            adapter=spec.adapter,
            early=spec.early,
            middle=spec.middle,
            snapshot_root=spec.snapshot_root,
            basis_hash=sha256(basis),
            rows=len(rows),
            records=len(records),
            rule=claims.RULE_ATTR_V1,
            narrow=spec.narrow,
            mix=spec.mix,
            min_span=spec.min_span,
            rows_root=files.rows_root(rows, meta),
            clusters_root=files.clusters_root(clusters),
            spans_root=spans.spans_root(verbatim) if verbatim else claims.NO_SPANS,
        )
    )
    root = claims.index_root(header)
    folder = work.publish(
        root.hex(),
        {
            files.HEADER_FILE: header,
            files.ROWS_FILE: rows.tobytes(),
            files.META_FILE: meta.tobytes(),
            files.CLUSTERS_FILE: clusters.tobytes(),
            files.BASIS_FILE: basis,
            **verbatim,
        },
    )
    without = (records[layout.candidates[int(i)]] for i in np.flatnonzero(~has_row))
    return Built(root, folder, tuple((p.contribution, p.position) for p in without))


def _has_spans(spec: IndexSpec) -> bool:
    return claims.SPAN in dict(spec.mix)


def _span_files(coded: Sequence[RecordIds]) -> dict[str, bytes]:
    """Of the completion tokens of each row."""
    return spans.build([ids.ids[ids.prompt_tokens :] for ids in coded]).files()


# --- what a worker computes


class Source:
    """The gradients of one build; loads the model in whichever process first asks."""

    def __init__(self, spec: IndexSpec, coded: Sequence[RecordIds]) -> None:
        self.spec = spec
        self.coded = coded
        self._gradients: Any = None

    def __getstate__(self) -> tuple[IndexSpec, Sequence[RecordIds]]:
        return self.spec, self.coded  # a model does not travel to a spawned process

    def __setstate__(self, state: tuple[IndexSpec, Sequence[RecordIds]]) -> None:
        self.__init__(*state)  # type: ignore[misc]  # the one way in

    def task(self, stage: Stage, members: tuple[int, ...], tensors: Path | None = None) -> "Shard":
        """The task of one stage over `members` (candidate numbers)."""
        size = self.spec.shard_records if stage == "rows" else BASIS_SHARD_RECORDS
        return Shard(self, stage, members, size, tensors)

    def batches(self, half: int, members: Sequence[int]) -> Iterator[Any]:
        """Narrowed gradients, batch by batch."""
        if self._gradients is None:
            from node.attribution.basis import Checkpoint, Narrowing
            from node.attribution.gradients import RecordGradients

            spec = self.spec
            narrowing = [
                Narrowing(Checkpoint(spec.base, adapter, number, spec.narrow))
                for number, adapter in enumerate((spec.early, spec.middle))
            ]
            self._gradients = RecordGradients(
                (spec.base_folder, spec.early_folder, spec.middle_folder),
                self.coded,
                lambda half, matrix, gradient: narrowing[half].apply(matrix, gradient),
            )
        return self._gradients.batches(half, members)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Shard:
    """One stage's work on one shard, as a task for a runner."""

    source: Source
    stage: Stage
    members: tuple[int, ...]
    size: int
    tensors: Path | None

    def __call__(self, shard: int) -> bytes:
        """safetensors of float64 sums; for rows, 1,024 bytes a member, zeros for no row."""
        from node.attribution import basis

        members = self.members[shard * self.size : (shard + 1) * self.size]
        with basis.one_thread():
            if self.stage == "rows":
                return self._rows(members)
            bases = self._decoded() if self.stage == "moments" else {}
            sums: dict[str, Any] = {}
            for half in HALVES:
                for batch in self.source.batches(half, members):
                    if self.stage == "sums":
                        part = basis.covariance_sums(half, batch)
                    else:
                        part = basis.moment_sums(half, batch, bases)
                    sums = basis.add_sums((sums, part))
            return basis.encode_tensors(sums)

    def _rows(self, members: Sequence[int]) -> bytes:
        from node.attribution.basis import Sketcher

        spec = self.source.spec
        sketcher = Sketcher(
            base=spec.base,
            early=spec.early,
            middle=spec.middle,
            narrow=spec.narrow,
            basis=self._decoded(),
        )
        halves = [
            np.concatenate(
                [sketcher.rows(half, b).numpy() for b in self.source.batches(half, members)]
            )
            for half in HALVES
        ]
        rows = np.concatenate(halves, axis=1)
        # One half alone is no row: its score would have half the range of the others.
        rows[~(halves[0].any(axis=1) & halves[1].any(axis=1))] = 0
        return rows.tobytes()

    def _decoded(self) -> dict[str, Any]:
        from node.attribution.basis import decode_tensors

        assert self.tensors is not None
        return decode_tensors(self.tensors.read_bytes())
