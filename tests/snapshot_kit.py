"""A chain with a story, its snapshot in many small chunks, and ways to spoil one."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from chain_kit import golden_answer
from stored_kit import CREDITS, Stored

from consensus.primitives.digest import sha256
from consensus.primitives.encoding import encode
from node.storage import snapshots
from node.storage.loading import ReadChunk
from node.storage.snapshots import (
    ChunkMark,
    Manifest,
    SnapshotStore,
    decode_chunk,
    read_chunk,
    write_chunk,
    write_manifest,
)
from node.storage.store import MemoryKV

SMALL_CHUNK_BYTES = 1_000
Pairs = list[tuple[bytes, bytes]]


class Snapped:
    """A whole story; `manifest` is of the block `height`, after which `behind` more came."""

    def __init__(self, home: Path, behind: int = 5, before: int = 3) -> None:
        self.made = Stored(home / "source", MemoryKV())
        self.made.tell_story()
        session = self.made.open_channel()
        golden_answer(session, CREDITS)
        self.made.block(bundles=(self.made.bundle(session),))
        for _ in range(before):
            self.made.block(self.made.pay())
        self.store = SnapshotStore(home / "made")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(snapshots, "CHUNK_BYTES_MAX", SMALL_CHUNK_BYTES)
            manifest = self.store.make(self.made.chain.view())
        assert manifest is not None
        self.manifest: Manifest = manifest
        self.height = manifest.height
        self.header = manifest.footing.header
        self.tip = self.made.chain.tip
        for _ in range(behind):
            self.made.block(self.made.pay())

    def read(self, index: int) -> bytes | None:
        return read_chunk(self.store.folder(self.height), index)

    def pairs(self) -> Pairs:
        chunks = [self.read(index) for index in range(len(self.manifest.chunks))]
        return [pair for raw in chunks if raw is not None for pair in decode_chunk(raw)]

    def put_part(self, store: SnapshotStore) -> None:
        put_part(store, self.manifest, self.read)

    def of_chunks(self, chunks: Iterable[Pairs]) -> tuple[Manifest, ReadChunk]:
        """A manifest whose hashes are those of other chunks."""
        raws = [encode(pairs) for pairs in chunks]
        marks = tuple(ChunkMark(sha256(raw), len(raw)) for raw in raws)
        return self.manifest._replace(chunks=marks), raws.__getitem__


def put_part(store: SnapshotStore, manifest: Manifest, read: ReadChunk) -> None:
    """All chunks where a loader expects them; those that `read` lacks are left out."""
    part = store.part(manifest.height)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for index in range(len(manifest.chunks)):
        raw = read(index)
        if raw is not None:
            write_chunk(part, index, raw)
    write_manifest(part, manifest)


def spoiled(read: ReadChunk, index: int, change: Callable[[bytes], bytes | None]) -> ReadChunk:
    """`read`, but for one chunk."""

    def reading(asked: int) -> bytes | None:
        raw = read(asked)
        return change(raw) if asked == index and raw is not None else raw

    return reading
