"""A snapshot is made of one moment, believed for nothing but hashes, and refused for any fault."""

import random
from pathlib import Path
from typing import Any

import pytest
from chain_kit import PAYER, VALIDATORS
from snapshot_kit import SMALL_CHUNK_BYTES, Pairs, Snapped, put_part, spoiled
from stored_kit import GENESIS

from consensus.certificate import decode_certificate
from consensus.primitives.digest import sha256
from consensus.primitives.encoding import encode
from consensus.primitives.errors import Invalid
from consensus.validators import ValidatorSet
from node.storage import snapshots
from node.storage.adopting import LOADING_NAME, PREPARED_NAME, take_in
from node.storage.loading import ReadChunk, load
from node.storage.snapshots import (
    CHUNK_BYTES_MAX,
    PAIRS_MAX,
    ChunkMark,
    Manifest,
    SnapshotStore,
    cut_chunks,
    decode_chunk,
    decode_manifest,
    encode_manifest,
    verify_manifest,
)
from node.storage.store import MemoryKV


@pytest.fixture(scope="module")
def snapped(tmp_path_factory: pytest.TempPathFactory) -> Snapped:
    return Snapped(tmp_path_factory.mktemp("snapped"))


# ---- making


def test_snapshot_is_the_state_of_its_moment(snapped: Snapped) -> None:
    """The chain went on meanwhile: five more blocks."""
    assert snapped.made.chain.height == snapped.height + 5
    store = MemoryKV()
    load(store, snapped.manifest, snapped.read)
    assert [key for key, _ in snapped.pairs()] == sorted(key for key, _ in snapped.pairs())
    assert store.get(b"mheight") == snapped.height.to_bytes(8, "big")


def test_same_state_gives_the_same_chunks_on_every_node(snapped: Snapped, tmp_path: Path) -> None:
    again = Snapped(tmp_path, behind=0)
    assert again.manifest.content_id() == snapped.manifest.content_id()
    assert len(again.manifest.chunks) > 3


def test_snapshot_of_a_height_is_made_once(snapped: Snapped, tmp_path: Path) -> None:
    store, view = SnapshotStore(tmp_path), snapped.made.chain.view()
    assert store.make(view) is not None
    assert store.make(view) is None


def test_restart_finds_what_is_whole_and_nothing_else(snapped: Snapped, tmp_path: Path) -> None:
    first = SnapshotStore(tmp_path)
    made = first.make(snapped.made.chain.view())
    (tmp_path / "7.part").mkdir()
    (tmp_path / "9").mkdir()
    (tmp_path / "9" / "manifest").write_bytes(b"rotten")
    again = SnapshotStore(tmp_path)
    assert made is not None
    assert [encode_manifest(found) for found in again.manifests()] == [encode_manifest(made)]
    again.drop_parts()
    assert not (tmp_path / "7.part").exists()


def test_two_newest_are_kept_and_the_one_we_stand_on(snapped: Snapped, tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    for height in (10, 20, 30, 40):
        part = store.part(height)
        part.mkdir()
        manifest = snapped.manifest._replace(height=height)
        snapshots.write_manifest(part, manifest)
        store.adopt(part, manifest)
    assert store.prune(pinned=10) == 1
    assert [found.height for found in store.manifests()] == [40, 30, 10]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "30", "40"]


def test_removal_that_was_ended_in_the_middle_leaves_no_snapshot(
    snapped: Snapped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one that looks whole and lacks a chunk."""
    store = SnapshotStore(tmp_path, kept=0)
    snapped.put_part(store)
    store.adopt(store.part(snapped.height), snapped.manifest)
    with monkeypatch.context() as patch:
        patch.setattr("node.storage.snapshots.shutil.rmtree", lambda *_, **__: None)
        assert store.prune() == 1
    assert [path.name for path in tmp_path.iterdir()] == [f"{snapped.height}.gone"]
    assert SnapshotStore(tmp_path).manifests() == []
    assert list(tmp_path.iterdir()) == []


def test_chunks_end_at_both_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(b"%06d" % i, bytes(30)) for i in range(PAIRS_MAX + 1)]
    by_count = [decode_chunk(raw) for raw in cut_chunks(pairs)]
    assert [len(chunk) for chunk in by_count] == [PAIRS_MAX, 1]
    assert [pair for chunk in by_count for pair in chunk] == pairs
    large = [(b"%06d" % i, bytes(1 << 20)) for i in range(5)]
    by_size = list(cut_chunks(large))
    assert [len(decode_chunk(raw)) for raw in by_size] == [3, 2]
    assert all(len(raw) <= CHUNK_BYTES_MAX for raw in by_size)
    assert list(cut_chunks([])) == []


# ---- manifests


def test_manifest_comes_back_from_its_bytes(snapped: Snapped) -> None:
    raw = encode_manifest(snapped.manifest)
    assert encode_manifest(decode_manifest(raw)) == raw
    verify_manifest(snapped.manifest, snapped.header)


def test_manifest_of_any_other_bytes_is_invalid_and_nothing_else(snapped: Snapped) -> None:
    raw, rng = encode_manifest(snapped.manifest), random.Random(3)
    for _ in range(3_000):
        bad = bytearray(raw)
        for _ in range(rng.randrange(1, 4)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        cut = bytes(bad[: rng.randrange(len(bad) + 1)]) if rng.random() < 0.3 else bytes(bad)
        try:
            decode_manifest(cut)
        except Invalid:
            continue


@pytest.mark.parametrize(
    ("length", "is_good"), [(0, False), (1, True), (CHUNK_BYTES_MAX, True), (1 << 23, False)]
)
def test_declared_length_of_a_chunk_has_bounds(
    snapped: Snapped, length: int, is_good: bool
) -> None:
    raw = encode_manifest(snapped.manifest._replace(chunks=(ChunkMark(bytes(32), length),)))
    if is_good:
        assert decode_manifest(raw).chunks[0].length == length
    else:
        with pytest.raises(Invalid, match=r"snapshot\.chunk_length"):
            decode_manifest(raw)


def _of_other_signers(manifest: Manifest) -> Manifest:
    others = ValidatorSet.found({who.key: 1 for who in VALIDATORS[:2]})
    return manifest._replace(footing=manifest.footing._replace(signers=others))


def _footed(manifest: Manifest, **fields: Any) -> Manifest:
    return manifest._replace(footing=manifest.footing._replace(**fields))


def test_manifest_of_another_chain_or_block_is_refused(snapped: Snapped) -> None:
    manifest, header, made = snapped.manifest, snapped.header, snapped.made
    later = made.chain.tip
    weak = decode_certificate(made.certify(header.height, header.block_id(), signers=2))
    cases = {
        "snapshot.chain": manifest._replace(chain_id=bytes(32)),
        "snapshot.height": manifest._replace(height=header.height + 1),
        "snapshot.state_root": manifest._replace(state_root=bytes(32)),
        "footing.header": _footed(manifest, header=later.header),
        "footing.history": _footed(manifest, history=manifest.footing.history[:-1]),
        "footing.signers": _of_other_signers(manifest),
        "footing.certificate": _footed(manifest, certificate=later.certificate),
        "certificate.power": _footed(manifest, certificate=weak),
    }
    for code, false in cases.items():
        with pytest.raises(Invalid) as refused:
            verify_manifest(false, header)
        assert refused.value.code == code
    forged = _footed(manifest, history=(bytes(32), *manifest.footing.history[1:]))
    with pytest.raises(Invalid, match=r"footing\.history"):
        verify_manifest(forged, header)


def test_manifest_of_a_header_that_nobody_vouched_for_is_refused(snapped: Snapped) -> None:
    other = snapped.header._replace(supply=snapped.header.supply - 1)
    with pytest.raises(Invalid, match=r"footing\.header"):
        verify_manifest(snapped.manifest, other)


# ---- chunks


def refused(home: Path, manifest: Manifest, read: ReadChunk, code: str) -> None:
    store = SnapshotStore(home / "snapshots")
    put_part(store, manifest, read)
    with pytest.raises(Invalid) as refusal:
        take_in(home, store, manifest)
    assert refusal.value.code == code
    assert store.manifests() == []
    for name in (LOADING_NAME, PREPARED_NAME):
        assert not (home / name).exists(), "nothing is left to be used"


def test_chunk_with_one_flipped_bit_is_refused(snapped: Snapped, tmp_path: Path) -> None:
    rng = random.Random(4)
    for index in range(len(snapped.manifest.chunks)):

        def flip(raw: bytes) -> bytes:
            at = rng.randrange(len(raw))
            return raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :]

        read = spoiled(snapped.read, index, flip)
        refused(tmp_path, snapped.manifest, read, "snapshot.chunk_hash")


def test_chunk_of_another_length_than_declared_is_refused(snapped: Snapped, tmp_path: Path) -> None:
    for change in (lambda raw: raw[:-1], lambda raw: raw + b"\0"):
        read = spoiled(snapped.read, 1, change)
        refused(tmp_path, snapped.manifest, read, "snapshot.chunk_length")


def test_missing_chunk_is_refused(snapped: Snapped, tmp_path: Path) -> None:
    last = len(snapped.manifest.chunks) - 1
    for index in (0, last):
        read = spoiled(snapped.read, index, lambda raw: None)
        refused(tmp_path, snapped.manifest, read, "snapshot.chunk_missing")


def _swapped(pairs: Pairs) -> list[Pairs]:
    return [[pairs[1], pairs[0], *pairs[2:]]]


def _swapped_over_chunks(pairs: Pairs) -> list[Pairs]:
    return [pairs[10:], pairs[:10]]


def _twice(pairs: Pairs) -> list[Pairs]:
    return [pairs[:5], pairs[4:]]


@pytest.mark.parametrize("spoil", [_swapped, _swapped_over_chunks, _twice])
def test_keys_out_of_order_are_refused(snapped: Snapped, tmp_path: Path, spoil: Any) -> None:
    manifest, read = snapped.of_chunks(spoil(snapped.pairs()))
    refused(tmp_path, manifest, read, "snapshot.order")


def test_state_of_another_root_is_refused(snapped: Snapped, tmp_path: Path) -> None:
    """All hashes of the manifest hold; only the tree shows that one grain was added."""
    pairs = snapped.pairs()
    key, value = pairs[20]
    changed = [*pairs[:20], (key, value[:-1] + bytes([value[-1] ^ 1])), *pairs[21:]]
    for spoiled_pairs in (changed, pairs[:-1], [*pairs, (b"\xff", b"")]):
        manifest, read = snapped.of_chunks([spoiled_pairs])
        refused(tmp_path, manifest, read, "snapshot.root")
    manifest, read = snapped.of_chunks([pairs])
    store = SnapshotStore(tmp_path / "snapshots")
    put_part(store, manifest, read)
    take_in(tmp_path, store, manifest)
    assert (tmp_path / PREPARED_NAME).exists()


def test_chunk_that_is_no_list_of_pairs_is_refused(snapped: Snapped, tmp_path: Path) -> None:
    raw = encode((1, 2))
    manifest = snapped.manifest._replace(chunks=(ChunkMark(sha256(raw), len(raw)),))
    refused(tmp_path, manifest, lambda index: raw, "snapshot.chunk.malformed")


def test_kit_cuts_small_chunks_of_a_real_story(snapped: Snapped) -> None:
    assert all(mark.length <= SMALL_CHUNK_BYTES for mark in snapped.manifest.chunks)
    assert snapped.manifest.chain_id == sha256(GENESIS)
    assert any(PAYER.key in key for key, _ in snapped.pairs())
