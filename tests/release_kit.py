"""A release as a creator has it: a base, an adapter trained on a few records, and its index."""

from collections.abc import Sequence
from pathlib import Path

from node.attribution.building import IndexSpec, build_index
from node.attribution.datanets import (
    Record,
    contribution_root,
    make_record,
    place_records,
    snapshot_root,
)
from node.attribution.runners import LocalRunner
from node.attribution.tokens import TextTokenizer
from node.ledger.rules.shares import Mix
from node.ledger.wire.claims import GRADIENT_ONLY
from node.serving.adapters import base_hash
from node.training.finetune import Adapter, TrainingConfig, finetune
from node.training.publish import Release
from node.training.tiny_model import Recipe, make_base

TINY = Recipe(documents=400, merges=40, hidden=16, inner=32, layers=1, heads=2, steps=6, batch=8)
QUICK = TrainingConfig(rank=4, alpha=8, epochs=4, batch=4, rate=5e-3)


def make_release(home: Path) -> Release:
    """Of model 1, on snapshot 1; takes a few seconds of one thread."""
    base = make_base(home / "cache", TINY)
    records = [make_record(f"What is thing {n}?", f"Thing {n} is {n * 7}.") for n in range(12)]
    adapter = finetune(base, records, QUICK, home / "adapter")
    return release_of(base, adapter, [(1, records[:6]), (2, records[6:])], home)


def release_of(
    base: Path,
    adapter: Adapter,
    numbered: Sequence[tuple[int, Sequence[Record]]],
    home: Path,
    mix: Mix = GRADIENT_ONLY,
) -> Release:
    """An adapter trained on these contributions, with its index, built under `home`."""
    spec = IndexSpec(
        base_folder=str(base),
        early_folder=adapter.folder_of("early"),
        middle_folder=adapter.folder_of("middle"),
        base=base_hash(base),
        adapter=adapter.final,
        early=adapter.early,
        middle=adapter.middle,
        snapshot_root=snapshot_root((n, contribution_root(mine)) for n, mine in numbered),
        mix=mix,
    )
    placed = place_records(numbered)
    built = build_index(spec, placed, TextTokenizer(base), home, LocalRunner())
    return Release(
        model=1,
        base_folder=base,
        adapter=adapter,
        snapshot=1,
        index_folder=built.folder,
        index_root=built.root,
        p_in=10,
        p_out=20,
    )
