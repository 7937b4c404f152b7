"""Files torn at any byte: what was synced is there, or its loss is told of, and a start goes on.

Journal, signer record, block log and light file are torn at every byte by the tests of their own
files in `tests/unit/storage/`.
"""

import os
import random
from functools import partial
from pathlib import Path

import pytest
from accused_kit import HEIGHT
from bundle_kit import some_bundle
from crashes.homes import KINDS
from crashes.spoiling import DEFECTS, EQUAL, MENDED, Judge

from consensus.primitives.errors import Invalid
from node.storage.bundlestore import BundleStore
from node.storage.errors import DatabaseDamaged
from node.storage.pasts import PastBlocks
from node.storage.snapshots import SnapshotStore, check_chunk, read_manifest
from node.storage.store import LevelKV

CUTS = 8  # of each kind of file in a whole home
TAILS = {"cut": b"", "zeroes": bytes(64)}  # what a file system may leave behind a cut
BATCHES = 6


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read does not depend on it, and a busy disk makes hundreds of syncs a minute."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda descriptor: None)


def tear(home: Path, *, path: str, cut: int, tail: bytes) -> None:
    """Leave `cut` bytes of a file, and what may stand behind them."""
    torn = home / path
    torn.write_bytes(torn.read_bytes()[:cut] + tail)


@pytest.mark.parametrize("kind", KINDS)
def test_home_with_a_torn_file_is_mended_or_tells_of_it(judge: Judge, kind: str) -> None:
    """The database always comes back to the last block: the block log has it all."""
    rng = random.Random(kind)
    for name, home in judge.homes.items():
        files = [path for path in sorted(home.glob(KINDS[kind])) if path.stat().st_size]
        for number in range(CUTS if files else 0):
            path = rng.choice(files)
            tail = list(TAILS.values())[number % 2]
            cut = rng.randrange(path.stat().st_size) if number else 0
            relative = path.relative_to(home).as_posix()

            end, why = judge.judge(name, partial(tear, path=relative, cut=cut, tail=tail))
            assert end not in DEFECTS, (relative, cut, why)
            if path.parent.name == "db" and name != "pruned":
                assert end in (EQUAL, MENDED), (relative, cut, why)


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
def test_bodies_torn_at_every_byte_of_the_last_three_leave_the_others(
    tmp_path: Path, tail: bytes
) -> None:
    made = [some_bundle(seed, sections=1, receipts=1).bundle for seed in range(5)]
    store, sizes = BundleStore(tmp_path / "whole"), [0]
    path = tmp_path / "whole" / "000001"
    for bundle in made:
        store.append(bundle)
        sizes.append(path.stat().st_size)
    store.close()
    whole, torn = path.read_bytes(), tmp_path / "torn"
    torn.mkdir()
    for cut in range(sizes[2], sizes[5] + 1):
        (torn / "000001").write_bytes(whole[:cut] + tail)
        store = BundleStore(torn)
        left = sum(size <= cut for size in sizes) - 1
        assert [store.get(bundle.hash) for bundle in made[:left]] == made[:left]
        assert not any(bundle.hash in store for bundle in made[left:])
        assert (store.cut_bytes, store.damaged_count) == (cut + len(tail) - sizes[left], 0)
        store.append(made[-1])
        assert store.get(made[-1].hash) == made[-1]
        store.close()


def test_kept_past_torn_at_every_byte_is_as_none(judge: Judge, tmp_path: Path) -> None:
    home = judge.homes["begun"]
    whole = (home / "past" / str(HEIGHT)).read_bytes()
    (manifest,) = SnapshotStore(home / "snapshots").manifests()
    pasts = PastBlocks(tmp_path, manifest.footing.header)
    for cut in range(len(whole)):
        (tmp_path / str(HEIGHT)).write_bytes(whole[:cut])
        assert pasts.missing((HEIGHT,)) == (HEIGHT,)
    (tmp_path / str(HEIGHT)).write_bytes(whole)
    assert pasts.missing((HEIGHT,)) == ()


def test_snapshot_torn_at_every_byte_is_none(judge: Judge, tmp_path: Path) -> None:
    source = SnapshotStore(judge.homes["begun"] / "snapshots")
    (manifest,) = source.manifests()
    whole = (source.folder(manifest.height) / "manifest").read_bytes()
    for cut in range(len(whole)):
        (tmp_path / "manifest").write_bytes(whole[:cut])
        assert read_manifest(tmp_path) is None
    chunk = source.chunk(manifest.height, 0)
    assert chunk is not None
    for cut in range(len(chunk)):
        with pytest.raises(Invalid, match="length"):
            check_chunk(manifest.chunks[0], chunk[:cut])


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
def test_database_log_torn_at_every_byte_of_three_batches_splits_none(
    tmp_path: Path, tail: bytes
) -> None:
    """It opens at an older whole batch without a word, or refuses: the block log brings it up."""
    store, sizes = LevelKV(tmp_path / "db"), []
    (log,) = (tmp_path / "db").glob("*.log")
    for number in range(BATCHES):
        store.write([(b"%d %d" % (number, key), b"value") for key in range(3)])
        sizes.append(log.stat().st_size)
    files = {path.name: path.read_bytes() for path in (tmp_path / "db").iterdir()}
    store.close()
    refused = 0
    for cut in range(sizes[-4], sizes[-1] + 1):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        for name, raw in files.items():
            (folder / name).write_bytes(raw[:cut] + tail if name == log.name else raw)
        try:
            torn = LevelKV(folder)
        except DatabaseDamaged:
            refused += 1
            continue
        left = sum(size <= cut for size in sizes)
        found = [key for key, _ in torn.scan(b"", b"\xff")]
        assert found == [b"%d %d" % (n, key) for n in range(left) for key in range(3)], cut
        torn.close()
    assert (refused > 0) == bool(tail)
