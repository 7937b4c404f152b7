"""Nothing is sent to the ledger that a provider would refuse, and all that it names is stored."""

import dataclasses
from pathlib import Path

import pytest
from release_kit import make_release

from consensus.primitives.digest import sha256
from node.attribution.index import FILES, IndexInvalid
from node.serving.adapters import base_hash
from node.serving.engine import AdapterInfo, AdapterRef, BadAdapter, WrongBase
from node.serving.manifest import decode_manifest
from node.training.finetune import TrainingError
from node.training.publish import Goods, Release, prepare, publish

pytestmark = pytest.mark.ml


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    pytest.importorskip("torch").set_num_threads(1)
    return make_release(tmp_path_factory.mktemp("release"))


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
