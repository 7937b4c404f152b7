"""Audits by all records of a snapshot: the clusters, the basis, and records that have no row.

Why beside the rows: a row made again with the posted basis is alike whatever that basis is. So
whoever publishes could weigh the directions of its own records, join others' records to them, or
leave others' out; each needs all records to be seen (page 60 §9).
What this file does not know: what a bad index costs its creator.
Needs torch: imported only where rows are made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from node.attribution.attribute import Place
from node.attribution.building import (
    BASIS_SHARD_RECORDS,
    Layout,
    Source,
    draw_for_basis,
    lay_out,
)
from node.attribution.datanets import PlacedRecord, Tokenizer
from node.attribution.index import BASIS_FILE, Index
from node.attribution.rowaudit import Folders, make_rows, spec_of
from node.attribution.tolerance import PPM

WEIGHT_PPM: Final = 20_000  # by how much a weight may differ from the refitted one


@dataclass(frozen=True, slots=True)
class WholeAudit:
    """What all records show; all is well where `is_good`.

    `weight_ppm`: by how much the worst of the basis' weights differs, in millionths of what the
    records give. `joined`: the first record that is not in its cluster. `omitted`: records that
    have a gradient and no row.
    """

    basis_records: int
    weight_ppm: int
    joined: Place | None
    omitted: tuple[Place, ...]

    @property
    def is_good(self) -> bool:
        """Whether nothing was found."""
        return self.weight_ppm <= WEIGHT_PPM and self.joined is None and not self.omitted


def audit_whole(
    index: Index, records: Sequence[PlacedRecord], folders: Folders, tokenizer: Tokenizer
) -> WholeAudit:
    """Recompute clusters and the basis' weights from `records`, the whole snapshot in ledger order.

    Takes two passes forward and backward for each of up to 4,096 drawn records.
    """
    layout = lay_out(records, tokenizer)
    numbers = {(p.contribution, p.position): number for number, p in enumerate(records)}
    row_of = {
        numbers[place]: row
        for row in range(index.header.rows)
        if (place := index.place_of(row)) in numbers
    }
    differs = (layout.clusters(row_of) != index.clusters).nonzero()[0]
    without = [at for at, record in enumerate(layout.candidates) if record not in row_of]
    made = make_rows(index, folders, [layout.coded[at] for at in without])
    omitted = [at for at, row in zip(without, made, strict=True) if any(row)]
    drawn, worst = _refit(index, layout, folders)
    return WholeAudit(
        drawn,
        worst,
        _place(records[int(differs[0])]) if len(differs) else None,
        tuple(_place(records[layout.candidates[at]]) for at in omitted),
    )


def _refit(index: Index, layout: Layout, folders: Folders) -> tuple[int, int]:
    """How many records are drawn, and the worst weight's difference in millionths."""
    from node.attribution import basis

    spec, path = spec_of(index, folders), index.folder / BASIS_FILE
    drawn = tuple(sorted(draw_for_basis(spec, layout)))
    task = Source(spec, layout.coded).task("moments", drawn, path)
    shards = -(-len(drawn) // BASIS_SHARD_RECORDS)
    totals = basis.add_sums(basis.decode_tensors(task(shard)) for shard in range(shards))
    posted = basis.decode_tensors(path.read_bytes())
    return len(drawn), max(
        _difference_ppm(posted[name], made)
        for name, made in basis.weights(totals, len(drawn)).items()
    )


def _difference_ppm(posted: Any, made: Any) -> int:
    """The largest relative difference of two weights; a matrix that weighs nothing must do so."""
    differs = (posted - made).abs()
    if not made.any():
        return PPM if posted.any() else 0
    return int((differs / made.abs().clamp(min=1e-30)).max() * PPM)


def _place(placed: PlacedRecord) -> Place:
    return placed.contribution, placed.position
