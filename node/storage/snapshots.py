"""Snapshots: the whole state after one block, in chunks that anybody can check.

    snapshots/<height>/manifest, 00000, …  (`<height>.part` until it is whole, then `.gone`)

Why chunks by hash: they come from several peers in any order, and a false one is known at once.
Why the cut is fixed by the pairs alone: every node makes the same chunks of the same height.
Why the manifest is believed for nothing but its hashes: its header must be one that the loader
trusts, and the root of what the chunks hold must be that header's (`loading.py`).
What this file does not know: peers, and which headers are trusted.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Final, NamedTuple

from consensus.certificate import decode_certificate, encode_certificate
from consensus.header import Header, decode_header, encode_header
from consensus.primitives.digest import sha256
from consensus.primitives.encoding import U8, U32, U63, Bytes, H, ListOf, Record, decode, encode
from consensus.primitives.errors import Invalid
from consensus.validators import decode_validators, encode_validators
from node.storage import footing as foot
from node.storage import history, keyspace
from node.storage.footing import Footing, verify_footing
from node.storage.segments import sync_directory, write_durably
from node.storage.views import View

VERSION: Final = 1
CHUNK_BYTES_MAX: Final = 4 << 20
PAIRS_MAX: Final = 65_536  # in one chunk
KEY_BYTES_MAX: Final = 256
VALUE_BYTES_MAX: Final = 1 << 20
PAIR_BYTES: Final = 16  # at most, of one pair's encoding beside key and value
CHUNKS_MAX: Final = 16_384  # 64 GiB
MANIFEST_BYTES_MAX: Final = 1 << 20
KEPT: Final = 2
MANIFEST_NAME: Final = "manifest"
PART_SUFFIX: Final = ".part"
GONE_SUFFIX: Final = ".gone"

_CHUNK: Final = ListOf(Record(Bytes(KEY_BYTES_MAX, 1), Bytes(VALUE_BYTES_MAX)), PAIRS_MAX, 1)
_MANIFEST: Final = Record(
    U8,
    H,
    U63,
    H,
    ListOf(Record(H, U32), CHUNKS_MAX, 1),
    foot.PEAKS,
    foot.CERTIFICATE,
    foot.HEADER,
    foot.SIGNERS,
)


class ChunkMark(NamedTuple):
    """What a chunk must be: SHA-256 and length of its bytes."""

    digest: bytes
    length: int


class Manifest(NamedTuple):
    """What a snapshot holds, and the block that it is the state of."""

    chain_id: bytes
    height: int
    state_root: bytes
    chunks: tuple[ChunkMark, ...]
    footing: Footing

    def content_id(self) -> bytes:
        """One value for all manifests of the same chunks; certificates may differ by node."""
        return sha256(encode((self.chain_id, self.height, self.state_root, self.chunks)))

    def total_bytes(self) -> int:
        """Length of all chunks."""
        return sum(mark.length for mark in self.chunks)


def encode_manifest(manifest: Manifest) -> bytes:
    """[version, chain_id, height, state_root, [[hash, length]…], history frontier, certificate,
    header, validators that signed it]."""
    footing = manifest.footing
    return encode(
        (
            VERSION,
            manifest.chain_id,
            manifest.height,
            manifest.state_root,
            manifest.chunks,
            footing.history,
            encode_certificate(footing.certificate),
            encode_header(footing.header),
            encode_validators(footing.signers),
        )
    )


def decode_manifest(raw: bytes) -> Manifest:
    """The manifest; `Invalid` `snapshot.…` if it is none, or its chunks are of no possible size."""
    version, chain_id, height, root, chunks, peaks, certificate, header, signers = decode(
        raw, _MANIFEST, MANIFEST_BYTES_MAX, "snapshot.manifest"
    )
    if version != VERSION:
        raise Invalid("snapshot.version", version=version)
    marks = tuple(ChunkMark(*mark) for mark in chunks)
    for mark in marks:
        if not 0 < mark.length <= CHUNK_BYTES_MAX:
            raise Invalid("snapshot.chunk_length", bytes=mark.length)
    footing = Footing(
        decode_header(header), decode_certificate(certificate), decode_validators(signers), peaks
    )
    return Manifest(chain_id, height, root, marks, footing)


def verify_manifest(manifest: Manifest, trusted: Header) -> None:
    """Raise `Invalid` unless it tells of the state that `trusted` commits to. A quorum's cost.

    The chunks are not looked at: that they hold this state is seen when they are loaded.
    """
    if manifest.chain_id != trusted.chain_id:
        raise Invalid("snapshot.chain")
    if manifest.height != trusted.height:
        raise Invalid("snapshot.height", height=manifest.height)
    if manifest.state_root != trusted.state_root:
        raise Invalid("snapshot.state_root")
    verify_footing(manifest.footing, trusted)


def check_chunk(mark: ChunkMark, raw: bytes) -> None:
    """Raise `Invalid` unless these bytes are the chunk that the manifest names."""
    if len(raw) != mark.length:
        raise Invalid("snapshot.chunk_length", bytes=len(raw), told=mark.length)
    if sha256(raw) != mark.digest:
        raise Invalid("snapshot.chunk_hash")


def decode_chunk(raw: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Flat (key, value) pairs as they stand in the chunk."""
    pairs: tuple[tuple[bytes, bytes], ...] = decode(raw, _CHUNK, CHUNK_BYTES_MAX, "snapshot.chunk")
    return pairs


def cut_chunks(pairs: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """Encoded chunks of sorted pairs, each as full as its bounds let it be."""
    held: list[tuple[bytes, bytes]] = []
    size = PAIR_BYTES
    for key, value in pairs:
        pair_bytes = len(key) + len(value) + PAIR_BYTES
        if held and (size + pair_bytes > CHUNK_BYTES_MAX or len(held) == PAIRS_MAX):
            yield encode(held)
            held, size = [], PAIR_BYTES
        held.append((key, value))
        size += pair_bytes
    if held:
        yield encode(held)


class SnapshotStore:
    """The snapshots of one home. All calls block; any thread."""

    def __init__(self, directory: Path, kept: int = KEPT) -> None:
        self._directory = directory
        self._kept = kept
        self._lock = Lock()  # of the folder's entries
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in directory.glob(f"*{GONE_SUFFIX}"):
            shutil.rmtree(path, ignore_errors=True)
        found = {height: read_manifest(self.folder(height)) for height in self._heights()}
        self._manifests = {height: one for height, one in found.items() if one is not None}
        self.unreadable = tuple(sorted(found.keys() - self._manifests.keys()))
        """Heights whose folder holds no manifest that can be read, as of the opening."""

    # -- what is whole

    def manifests(self) -> list[Manifest]:
        """Newest first."""
        with self._lock:
            return [self._manifests[height] for height in sorted(self._manifests, reverse=True)]

    def oldest_height(self, earliest: int = 1) -> int:
        """Height of the oldest that is whole and not below `earliest`; 0: there is none."""
        with self._lock:
            return min((height for height in self._manifests if height >= earliest), default=0)

    def find(self, height: int) -> Manifest | None:
        """The snapshot of a height, if it is here whole."""
        with self._lock:
            return self._manifests.get(height)

    def folder(self, height: int) -> Path:
        """Where the snapshot of a height lies or would lie."""
        return self._directory / str(height)

    def chunk(self, height: int, index: int) -> bytes | None:
        """The bytes of one chunk as they are on the disk; None if there is no such chunk."""
        manifest = self.find(height)
        if manifest is None or index >= len(manifest.chunks):
            return None
        return read_chunk(self.folder(height), index)

    def make(self, view: View, should_end: Callable[[], bool] = lambda: False) -> Manifest | None:
        """Write the snapshot of a view's moment. Blocks for seconds; for a thread.

        The view's database snapshot keeps the moment while the chain goes on. None if it is here
        already, or `should_end()`, asked at each chunk, said so. Raises OSError of the disk.
        """
        tip = view.tip
        assert tip.header is not None
        assert tip.certificate is not None
        assert tip.signers is not None
        if self.find(tip.height) is not None:
            return None
        peaks = history.frontier(view.reader, tip.height - 1).hashes
        footing = Footing(tip.header, tip.certificate, tip.signers, peaks)
        part = self._fresh_part(tip.height)
        try:
            marks = _write_state(part, view, should_end)
            if marks is None:
                shutil.rmtree(part)
                return None
            chain_id, state_root = tip.header.chain_id, tip.header.state_root
            manifest = Manifest(chain_id, tip.height, state_root, marks, footing)
            write_manifest(part, manifest)
        except OSError:
            shutil.rmtree(part, ignore_errors=True)
            raise
        self.adopt(part, manifest)
        return manifest

    def adopt(self, part: Path, manifest: Manifest) -> None:
        """A folder with all chunks and its manifest becomes the snapshot of its height."""
        with self._lock:
            target = self.folder(manifest.height)
            self._remove(manifest.height)
            os.replace(part, target)
            sync_directory(self._directory)
            self._manifests[manifest.height] = manifest

    def copy_out(self, manifest: Manifest, target: Path) -> None:
        """Copy a snapshot into a new folder; it appears whole or not at all."""
        making = target.with_name(target.name + PART_SUFFIX)
        shutil.rmtree(making, ignore_errors=True)
        shutil.copytree(self.folder(manifest.height), making)
        os.replace(making, target)

    def copy_in(self, manifest: Manifest, source: Path) -> None:
        """Copy chunks from a folder to where a load expects them; raises `Invalid` at a bad one."""
        part = self._fresh_part(manifest.height)
        for index, mark in enumerate(manifest.chunks):
            raw = read_chunk(source, index)
            if raw is None:
                raise Invalid("snapshot.chunk_missing", index=index)
            check_chunk(mark, raw)
            write_chunk(part, index, raw)
        write_manifest(part, manifest)

    def prune(self, pinned: int = 0) -> int:
        """Remove all but the newest ones and the pinned height; returns how many went."""
        with self._lock:
            newest = sorted(self._manifests, reverse=True)
            gone = [height for height in newest[self._kept :] if height != pinned]
            for height in gone:
                del self._manifests[height]
                self._remove(height)
            return len(gone)

    def _remove(self, height: int) -> None:
        """An end in the middle leaves no snapshot that looks whole and lacks a chunk."""
        gone = self._directory / f"{height}{GONE_SUFFIX}"
        shutil.rmtree(gone, ignore_errors=True)
        with suppress(FileNotFoundError):
            os.replace(self.folder(height), gone)
            shutil.rmtree(gone, ignore_errors=True)

    # -- what is on its way

    def part(self, height: int) -> Path:
        """The folder of a snapshot in the making."""
        return self._directory / f"{height}{PART_SUFFIX}"

    def drop_parts(self, but: int = 0) -> None:
        """Forget unfinished snapshots of all other heights."""
        for path in self._directory.glob(f"*{PART_SUFFIX}"):
            if path != self.part(but):
                shutil.rmtree(path, ignore_errors=True)

    def _fresh_part(self, height: int) -> Path:
        part = self.part(height)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(mode=0o700)
        return part

    def _heights(self) -> list[int]:
        names = [path.name for path in self._directory.iterdir()]
        return [int(name) for name in names if name.isascii() and name.isdigit()]


def _write_state(
    folder: Path, view: View, should_end: Callable[[], bool]
) -> tuple[ChunkMark, ...] | None:
    stop = keyspace.after(keyspace.STATE)
    pairs = ((key[1:], value) for key, value in view.reader.scan(keyspace.STATE, stop))
    marks = []
    for index, raw in enumerate(cut_chunks(pairs)):
        if should_end():
            return None
        write_chunk(folder, index, raw)
        marks.append(ChunkMark(sha256(raw), len(raw)))
    return tuple(marks)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Make the manifest durable, and every chunk beside it named."""
    write_durably(folder / MANIFEST_NAME, encode_manifest(manifest))
    sync_directory(folder)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in a folder; None if there is none that can be read."""
    try:
        return decode_manifest((folder / MANIFEST_NAME).read_bytes())
    except (OSError, Invalid):
        return None


def write_chunk(folder: Path, index: int, raw: bytes) -> None:
    """Make one chunk durable: it is there whole or not at all."""
    write_durably(folder / _chunk_name(index), raw)


def read_chunk(folder: Path, index: int) -> bytes | None:
    """The bytes of one chunk, unchecked; None if they cannot be read."""
    try:
        return (folder / _chunk_name(index)).read_bytes()
    except OSError:
        return None


def _chunk_name(index: int) -> str:
    return f"{index:05d}"


assert CHUNKS_MAX * 48 + foot.FOOTING_BYTES_MAX < MANIFEST_BYTES_MAX
