"""Nothing is sent to the ledger that a provider would refuse, and all that it names is stored."""

import dataclasses
from pathlib import Path

import pytest

from consensus.primitives.digest import sha256
from node.attribution.building import IndexSpec, build_index
from node.attribution.datanets import contribution_root, make_record, place_records, snapshot_root
from node.attribution.index import FILES, IndexInvalid
from node.attribution.runners import LocalRunner
from node.attribution.tokens import TextTokenizer
from node.serving.adapters import base_hash
from node.serving.engine import AdapterInfo, AdapterRef, BadAdapter, WrongBase
from node.serving.manifest import decode_manifest
from node.training.finetune import TrainingConfig, TrainingError, finetune
from node.training.publish import Goods, Release, prepare, publish
from node.training.tiny_model import Recipe, make_base

pytestmark = pytest.mark.ml

TINY = Recipe(documents=400, merges=40, hidden=16, inner=32, layers=1, heads=2, steps=6, batch=8)
QUICK = TrainingConfig(rank=4, alpha=8, epochs=4, batch=4, rate=5e-3)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    pytest.importorskip("torch").set_num_threads(1)
    home = tmp_path_factory.mktemp("release")
    base = make_base(home / "cache", TINY)
    records = [make_record(f"What is thing {n}?", f"Thing {n} is {n * 7}.") for n in range(12)]
    adapter = finetune(base, records, QUICK, home / "adapter")
    numbered = [(1, records[:6]), (2, records[6:])]
    spec = IndexSpec(
        base_folder=str(base),
        early_folder=adapter.folder_of("early"),
        middle_folder=adapter.folder_of("middle"),
        base=base_hash(base),
        adapter=adapter.final,
        early=adapter.early,
        middle=adapter.middle,
        snapshot_root=snapshot_root((n, contribution_root(mine)) for n, mine in numbered),
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


class World:
    """An engine, a blob store and a wallet that note what they are asked."""

    def __init__(self, refuse: bool = False) -> None:
        self.refuse = refuse
        self.done: list[object] = []

    async def load(self, ref: AdapterRef) -> AdapterInfo:
        if self.refuse:
            raise WrongBase(key="x")
        self.done.append(ref.hash)
        return AdapterInfo(ref.hash, 4, 8, (), 0, "ram")

    async def store(self, goods: Goods) -> None:
        self.done.append(goods)

    async def send(self, payload: object) -> bytes:
        self.done.append(payload)
        return b"id"


async def test_release_is_checked_stored_then_sent(release: Release) -> None:
    world, adapter = World(), release.adapter
    assert await publish(release, world.load, world.store, world.send) == b"id"
    assert world.done[:3] == [adapter.early, adapter.middle, adapter.final]
    goods = [entry for entry in world.done if isinstance(entry, Goods)]
    payload = world.done[-1]
    assert [entry.kind for entry in goods] == [1, 1, 1, 2, 3, 5]
    assert {entry.identity for entry in goods} >= {payload.index_root, payload.manifest}
    for entry in goods:
        for content in entry.files.values():
            assert isinstance(content, bytes) or content.is_file()
    assert set(goods[4].files) == set(FILES)
    raw = goods[5].files["content"]
    assert sha256(raw) == payload.manifest
    manifest = decode_manifest(raw)
    assert manifest.checkpoints == (adapter.early, adapter.middle)
    assert (manifest.base, manifest.adapter, manifest.rank) == (
        base_hash(release.base_folder),
        adapter.final,
        4,
    )


async def test_refused_adapter_sends_and_stores_nothing(release: Release) -> None:
    world = World(refuse=True)
    with pytest.raises(WrongBase):
        await publish(release, world.load, world.store, world.send)
    assert world.done == []


def test_index_of_other_checkpoints_is_refused(release: Release) -> None:
    swapped = dataclasses.replace(
        release.adapter, early=release.adapter.middle, middle=release.adapter.early
    )
    with pytest.raises(TrainingError):
        prepare(dataclasses.replace(release, adapter=swapped))


def test_index_of_another_root_is_refused(release: Release) -> None:
    with pytest.raises(IndexInvalid):
        prepare(dataclasses.replace(release, index_root=bytes(32)))


def test_damaged_adapter_is_refused(release: Release, tmp_path: Path) -> None:
    moved = dataclasses.replace(release.adapter, folder=str(tmp_path))
    with pytest.raises(BadAdapter):
        prepare(dataclasses.replace(release, adapter=moved))
