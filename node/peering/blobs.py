"""Files by content: adapters, bases, indices, records, cut into chunks that prove themselves.

Why a tree over the chunks: each chunk of 1 MiB is checked as it comes, with at most 17 hashes, so a
source can waste one chunk's time and no more; leaf 0 binds the length. What the ledger names (an
adapter's hash, an index root, …) lists the files that make it up; a listing is only a hint, since
the owner's loader recomputes that identity from what came (page 70 §10).
Why nothing from the wire becomes a path: names are letters, digits and few marks, or refused.
What this file does not know: what a file means, which identities the ledger holds.
"""

import os
import re
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio

from consensus.primitives import merkle
from consensus.primitives.encoding import (
    U8,
    U32,
    U63,
    Bytes,
    H,
    ListOf,
    Record,
    decode,
    encode,
)
from consensus.primitives.errors import Invalid
from node.observe import get_log
from p2p.errors import Code, Misbehaving, NetworkError, Refused, Unreachable
from p2p.limits import PENALTIES, PROTOCOLS
from p2p.network import Network, PeerId

CHUNK_BYTES: Final = 1 << 20
LENGTH_MAX: Final = 64 << 30
PATH_MAX: Final = 17
NAMES_MAX: Final = 4_096
SOURCES_MAX: Final = 16
SYNC_EVERY: Final = 16  # chunks
RATE_RETRIES_MAX: Final = 100  # of one question that a busy source puts off
REPLY_BYTES_MAX: Final = CHUNK_BYTES + (64 << 10)
NAME: Final = re.compile(
    r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,63}){0,2}"
)

ADAPTER, BASE, INDEX, CONTRIBUTION, CONTENT = 1, 2, 3, 4, 5
KINDS: Final = (ADAPTER, BASE, INDEX, CONTRIBUTION, CONTENT)
FREE_BYTES_MIN: Final = 1 << 30  # below it nothing is fetched: blobs never cost a vote

log = get_log("blobs")

RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread

_DESCRIPTOR: Final = Record(U63, U32)  # length, chunk size
_PATH: Final = ListOf(H, PATH_MAX)
_ASK: Final = Record(U8, H)
_ASK_CHUNK: Final = Record(U8, H, U32)
_ASK_LIST: Final = Record(U8, U8, H)
_DESCRIBED: Final = Record(_DESCRIPTOR, _PATH, Bytes(8_192))
_CHUNK: Final = Record(Bytes(CHUNK_BYTES, 1), _PATH)
_LISTING: Final = ListOf(Record(Bytes(200, 1), H, U63), NAMES_MAX)


class Entry(NamedTuple):
    """One file of a listing."""

    name: str
    blob_id: bytes
    length: int


class BlobInvalid(Invalid):
    """What a peer sent, or what stands on the disk, is not the blob that was asked for."""


class NoRoom(Invalid):
    """This node may not or cannot keep so much; whoever offers it is not at fault."""


def first_leaf(length: int) -> bytes:
    """Leaf 0: binds length and chunk size."""
    return b"olnode/1/blob\0" + length.to_bytes(8, "big") + CHUNK_BYTES.to_bytes(4, "big")


def leaf_count(length: int) -> int:
    """Leaves of a blob: one for the length, one per chunk."""
    return 1 + -(-length // CHUNK_BYTES)


def leaves_of(path: Path) -> list[bytes]:
    """Leaf hashes of a file; reads it whole."""
    length = path.stat().st_size
    if not 1 <= length <= LENGTH_MAX:
        raise BlobInvalid("blob.length", length=length)
    hashes = [merkle.leaf_hash(first_leaf(length))]
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            hashes.append(merkle.leaf_hash(chunk))
    return hashes


def _whole_leaves(blob_id: bytes, path: Path) -> list[bytes] | None:
    """The leaf hashes of the file at `path`, or None where it is not the blob (any more)."""
    try:
        leaves = leaves_of(path)
    except BlobInvalid:  # a power cut may leave a file without its bytes
        return None
    return leaves if merkle.root_of_hashes(leaves) == blob_id else None


def check_name(name: str) -> str:
    """`name`, if it may become a file below a folder of ours; raises BlobInvalid `blob.name`."""
    if not NAME.fullmatch(name):
        raise BlobInvalid("blob.name", name=name[:80])
    return name


class BlobStore:
    """Blobs by id under `blobs/<2 hex>/<id>`, and the listings we may serve. Methods block."""

    def __init__(self, directory: Path, quota_bytes: int) -> None:
        self._directory = directory
        self._quota_bytes = quota_bytes
        self._leaves: dict[bytes, list[bytes]] = {}
        self._listings: dict[tuple[int, bytes], tuple[Entry, ...]] = {}
        (directory / "listings").mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in sorted((directory / "listings").glob("?-*")):
            if path.suffix != ".part":
                self._load_listing(path)

    def _load_listing(self, path: Path) -> None:
        """What is no listing is left out and told: other content is served all the same."""
        kind, _, identity = path.name.partition("-")
        try:
            entries = _decode_listing(path.read_bytes())
            self._listings[int(kind), bytes.fromhex(identity)] = entries
        except (Invalid, ValueError, OSError) as error:
            log.warning(
                "a listing of blobs cannot be read", path=str(path), why=str(error),
                mend="remove it, and give the folder to the node again",
            )  # fmt: skip

    # -- what we hold

    def has(self, blob_id: bytes) -> bool:
        """Whether the whole blob is here."""
        return self.path(blob_id).is_file()

    def is_whole(self, blob_id: bytes) -> bool:
        """Whether the blob is here and still is what its id says; reads it, and drops a rotted one.

        Before it is used beside what a peer sends: our own rot must not be taken for its lie.
        """
        self._leaves.pop(blob_id, None)
        with suppress(Refused):
            self._leaves_of(blob_id)
        return self.has(blob_id)

    def path(self, blob_id: bytes) -> Path:
        """Where a blob lies or would lie."""
        name = blob_id.hex()
        return self._directory / name[:2] / name

    def listing(self, kind: int, identity: bytes) -> tuple[Entry, ...] | None:
        """The files of an identity that we may serve."""
        return self._listings.get((kind, identity))

    def add_folder(self, kind: int, identity: bytes, folder: Path) -> tuple[Entry, ...]:
        """Serve the files of `folder` (or one file) as that identity; linked where that can be.

        Raises BlobInvalid for a name or length that no blob may have.
        """
        assert kind in KINDS
        files = [folder] if folder.is_file() else [p for p in folder.rglob("*") if p.is_file()]
        root = folder.parent if folder.is_file() else folder
        entries = []
        for file in files:
            name = check_name(file.relative_to(root).as_posix())
            entries.append(Entry(name, self._add_file(file), file.stat().st_size))
        listing = tuple(sorted(entries))
        if not 1 <= len(listing) <= NAMES_MAX:
            raise BlobInvalid("blob.names", names=len(listing))
        path = self._directory / "listings" / f"{kind}-{identity.hex()}"
        _write_durably(path, encode([(e.name.encode(), e.blob_id, e.length) for e in listing]))
        self._listings[kind, identity] = listing
        return listing

    def _add_file(self, file: Path) -> bytes:
        """Keep `file`, also in place of what stands there: that may have rotted, this was read."""
        leaves = leaves_of(file)
        blob_id = merkle.root_of_hashes(leaves)
        target = self.path(blob_id)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        part = target.with_suffix(".part")
        part.unlink(missing_ok=True)
        try:
            os.link(file, part)
        except OSError:  # another file system
            shutil.copyfile(file, part)
        with part.open("rb") as written:
            os.fsync(written.fileno())  # its listing is durable, so must be what it lists
        os.replace(part, target)
        part.unlink(missing_ok=True)  # a rename onto the same file by another name does nothing
        self._leaves[blob_id] = leaves
        return blob_id

    def check_room(self, length: int) -> None:
        """Raise NoRoom `blob.quota` or `blob.disk` where `length` more bytes do not fit."""
        held = sum(p.stat().st_size for p in self._directory.glob("??/*") if p.is_file())
        if held + length > self._quota_bytes:
            raise NoRoom("blob.quota", held=held, length=length)
        if shutil.disk_usage(self._directory).free - length < FREE_BYTES_MIN:
            raise NoRoom("blob.disk", length=length)

    # -- answers

    def describe(self, blob_id: bytes) -> bytes:
        """[descriptor, path of leaf 0, which chunks we have]; raises Refused not found."""
        leaves = self._leaves_of(blob_id)
        length = self.path(blob_id).stat().st_size
        chunks = len(leaves) - 1
        have = bytearray(b"\xff" * min(8_192, -(-chunks // 8)))
        if chunks % 8 and len(have) == -(-chunks // 8):
            have[-1] = (1 << chunks % 8) - 1  # low bit first
        return encode(((length, CHUNK_BYTES), merkle.prove_hashes(leaves, 0), bytes(have)))

    def chunk(self, blob_id: bytes, index: int) -> bytes:
        """[chunk, path]; raises Refused not found."""
        leaves = self._leaves_of(blob_id)
        if index >= len(leaves) - 1:
            raise Refused(Code.NOT_FOUND)
        with self.path(blob_id).open("rb") as file:
            file.seek(index * CHUNK_BYTES)
            data = file.read(CHUNK_BYTES)
        return encode((data, merkle.prove_hashes(leaves, index + 1)))

    def _leaves_of(self, blob_id: bytes) -> list[bytes]:
        leaves = self._leaves.get(blob_id)
        if leaves is None:
            if not self.has(blob_id):
                raise Refused(Code.NOT_FOUND)
            leaves = _whole_leaves(blob_id, self.path(blob_id))
            if leaves is None:
                self.path(blob_id).unlink()  # rotted: fetched again by whoever needs it
                raise Refused(Code.NOT_FOUND)
            self._leaves[blob_id] = leaves
        return leaves

    # -- receiving

    def part(self, blob_id: bytes) -> "BlobPart":
        """A file to write a blob's chunks into."""
        return BlobPart(self, blob_id)

    def link_into(self, entries: Iterable[Entry], folder: Path) -> None:
        """Make `folder` from complete blobs, all at once: it appears whole or not at all."""
        making = folder.with_name(folder.name + ".part")
        shutil.rmtree(making, ignore_errors=True)
        for entry in entries:
            target = making / check_name(entry.name)
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                os.link(self.path(entry.blob_id), target)
            except OSError:
                shutil.copyfile(self.path(entry.blob_id), target)
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.replace(making, folder)


class BlobPart:
    """One blob on its way in."""

    def __init__(self, store: BlobStore, blob_id: bytes) -> None:
        self._blob_id = blob_id
        self._target = store.path(blob_id)
        self._part = self._target.with_suffix(".part")
        self._target.parent.mkdir(mode=0o700, exist_ok=True)
        self._file = self._part.open("wb")
        self._leaves: list[bytes] = []

    def begin(self, length: int, path: Sequence[bytes]) -> int:
        """Believe the length, if its leaf is proven; returns the number of chunks."""
        leaf = merkle.leaf_hash(first_leaf(length))
        merkle.verify_path(self._blob_id, leaf, 0, leaf_count(length), path)
        self._length, self._leaves = length, [leaf]
        return leaf_count(length) - 1

    def write(self, index: int, data: bytes, path: Sequence[bytes]) -> None:
        """Take the next chunk, if it is proven; raises Invalid `blob.chunk`, `merkle.…`."""
        assert index == len(self._leaves) - 1, "chunks come in order from one source"
        expected = min(CHUNK_BYTES, self._length - index * CHUNK_BYTES)
        if len(data) != expected:
            raise BlobInvalid("blob.chunk", bytes=len(data), expected=expected)
        leaf = merkle.leaf_hash(data)
        merkle.verify_path(self._blob_id, leaf, index + 1, leaf_count(self._length), path)
        self._file.write(data)
        self._leaves.append(leaf)
        if index % SYNC_EVERY == SYNC_EVERY - 1:
            self._file.flush()
            os.fdatasync(self._file.fileno())

    def finish(self) -> None:
        """Make the whole blob durable under its id."""
        assert merkle.root_of_hashes(self._leaves) == self._blob_id
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._part, self._target)

    def abandon(self) -> None:
        """Forget what came."""
        self._file.close()
        self._part.unlink(missing_ok=True)


class Blobs:
    """Serves what the store lists, and fetches what the ledger names."""

    def __init__(
        self,
        *,
        network: Network,
        store: BlobStore,
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        self._network = network
        self._store = store
        self._run_blocking = run_blocking
        self.counters: Counter[str] = Counter()

    def serve(self) -> None:
        """Answer on the network from now on."""
        self._network.serve("blob", self.answer, PROTOCOLS["blob"])

    async def answer(self, peer: PeerId, body: bytes) -> bytes:
        """[0, blob id], [1, blob id, index], [2, kind, identity]."""
        kind = body[1] if len(body) > 1 else None
        self.counters["asked"] += 1
        if kind == 0:
            _, blob_id = _decoded(body, _ASK)
            raw: bytes = await self._run_blocking(self._store.describe, blob_id)
            return raw
        if kind == 1:
            _, blob_id, index = _decoded(body, _ASK_CHUNK)
            raw = await self._run_blocking(self._store.chunk, blob_id, index)
            self.counters["served_bytes"] += len(raw)
            return raw
        if kind == 2:
            _, what, identity = _decoded(body, _ASK_LIST)
            listing = self._store.listing(what, identity)
            if listing is None:
                raise Refused(Code.NOT_FOUND)
            return encode([(e.name.encode(), e.blob_id, e.length) for e in listing])
        raise Misbehaving("no such question about blobs")

    async def fetch(
        self,
        kind: int,
        identity: bytes,
        folder: Path,
        *,
        peers: Sequence[PeerId],
        bytes_max: int,
        check: Callable[[Path], None],
    ) -> tuple[Entry, ...]:
        """Make `folder` hold the files of an identity, from the first peer that has them true.

        `check(folder)` recomputes the identity, in a thread, and raises Invalid where it differs:
        its teller is penalised and the next is asked. At the end we serve the files too. Raises
        Unreachable when no source gave them, NoRoom where they do not fit here; then nothing is
        at `folder`.
        """
        for peer in peers[:SOURCES_MAX]:
            try:
                entries = await self._fetch_from(peer, kind, identity, bytes_max)
            except NetworkError:
                self.counters["sources_failed"] += 1
                continue
            except NoRoom:
                raise
            except Invalid:
                self.counters["sources_false"] += 1
                self._blame(peer, "false_chunk")
                continue
            await self._run_blocking(self._store.link_into, entries, folder)
            try:
                await self._run_blocking(check, folder)
            except Invalid:
                self.counters["listings_false"] += 1
                self._blame(peer, "forged")
                await self._run_blocking(shutil.rmtree, folder)
                continue
            await self._run_blocking(self._store.add_folder, kind, identity, folder)
            self.counters["fetched"] += 1
            return entries
        raise Unreachable(f"no source for {identity.hex()[:16]}")

    async def _fetch_from(
        self, peer: PeerId, kind: int, identity: bytes, bytes_max: int
    ) -> tuple[Entry, ...]:
        entries = _decode_listing(await self._ask(peer, (2, kind, identity)))
        total = sum(entry.length for entry in entries)
        if total > bytes_max:
            raise BlobInvalid("blob.too_large", bytes=total, bytes_max=bytes_max)
        for entry in entries:
            if not await self._run_blocking(self._store.is_whole, entry.blob_id):
                await self._fetch_blob(peer, entry)
        return entries

    async def _fetch_blob(self, peer: PeerId, entry: Entry) -> None:
        (length, chunk_bytes), path, _ = _reply(
            await self._ask(peer, (0, entry.blob_id)), _DESCRIBED
        )
        if length != entry.length or chunk_bytes != CHUNK_BYTES:
            raise BlobInvalid("blob.length", length=length)
        await self._run_blocking(self._store.check_room, length)
        part = self._store.part(entry.blob_id)
        try:
            for index in range(part.begin(length, path)):
                raw = await self._ask(peer, (1, entry.blob_id, index))
                data, chunk_path = _reply(raw, _CHUNK)
                await self._run_blocking(part.write, index, data, chunk_path)
                self.counters["fetched_bytes"] += len(data)
            await self._run_blocking(part.finish)
        except BaseException:
            part.abandon()
            raise

    async def _ask(self, peer: PeerId, question: tuple[object, ...]) -> bytes:
        limits = PROTOCOLS["blob"]
        for _ in range(RATE_RETRIES_MAX):
            try:
                return await self._network.request(
                    peer,
                    "blob",
                    encode(question),
                    timeout_s=limits.timeout_s,
                    bytes_max=REPLY_BYTES_MAX,
                )
            except Refused as refused:
                if refused.code not in (Code.RATE_EXCEEDED, Code.BUSY):
                    raise
                self.counters["waited"] += 1
                await trio.sleep(max(0.05, refused.retry_ms / 1_000))
        raise Unreachable("busy for too long")

    def _blame(self, peer: PeerId, reason: str) -> None:
        self._network.penalise(peer, PENALTIES[reason], reason)

    def statistics(self) -> Mapping[str, int]:
        """Counters since the start."""
        return dict(self.counters)


def _decode_listing(raw: bytes) -> tuple[Entry, ...]:
    entries = []
    for name, blob_id, length in _reply(raw, _LISTING):
        try:
            text = name.decode("ascii")
        except UnicodeDecodeError:
            raise BlobInvalid("blob.name") from None
        if not 1 <= length <= LENGTH_MAX:
            raise BlobInvalid("blob.length", length=length)
        entries.append(Entry(check_name(text), blob_id, length))
    names = [entry.name for entry in entries]
    folders = {name[:at] for name in names for at, mark in enumerate(name) if mark == "/"}
    if not names or names != sorted(set(names)) or folders & set(names):
        raise BlobInvalid("blob.names", names=len(names))
    return tuple(entries)


def _reply(raw: bytes, shape: Any) -> Any:
    return decode(raw, shape, REPLY_BYTES_MAX, "blob")


def _decoded(body: bytes, shape: Any) -> Any:
    try:
        return decode(body, shape, PROTOCOLS["blob"].request_max, "blob.request")
    except Invalid as refusal:
        raise Misbehaving(str(refusal)) from None


def _write_durably(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
