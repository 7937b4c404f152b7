"""Files by content: adapters, bases, indices, records, served and fetched in proven chunks.

What the ledger names (an adapter's hash, an index root, …) lists the files that make it up; a
listing is only a hint, since the owner's loader recomputes that identity from what came. So the
listing that most sources tell goes first, its chunks come from all of these at once, and when the
identity is another, they all are its tellers (page 70 §10).
What this file does not know: what a file means, which identities the ledger holds.
"""

import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

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
from node.peering.blobparts import (
    CHUNK_BYTES,
    BlobInvalid,
    BlobPart,
    first_leaf,
    leaf_count,
)
from node.peering.blobstore import BUNDLE, BlobStore, Entry, decode_listing, encode_listing
from node.peering.chunks import ChunkFetch
from p2p.errors import Code, Misbehaving, NetworkError, Refused, Unreachable
from p2p.limits import PENALTIES, PROTOCOLS
from p2p.network import Network, PeerId

PROTOCOL: Final = "blob"
LIMITS: Final = PROTOCOLS[PROTOCOL]
DESCRIBE, CHUNK, LIST = 0, 1, 2
PATH_MAX: Final = 17
HAVE_BYTES_MAX: Final = 8_192
SOURCES_MAX: Final = 16
READING_RETRY_MS: Final = 1_000  # while another blob is read whole, to be served
LISTING_RETRY_MS: Final = 50  # while another body is read whole, to be lent: milliseconds
SETTLE_S: Final = 2.0  # for other sources, once one has answered
BUSY_MAX: Final = 20  # of one question about a blob, that a busy source puts off
BUSY_MIN_S: Final = 0.05
BUSY_MAX_S: Final = 2.0

log = get_log("blobs")

Told = TypeVar("Told")
RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread

_DESCRIPTOR: Final = Record(U63, U32)  # length, chunk size
_PATH: Final = ListOf(H, PATH_MAX)
_ASK: Final = Record(U8, H)
_ASK_CHUNK: Final = Record(U8, H, U32)
_ASK_LIST: Final = Record(U8, U8, H)
_DESCRIBED: Final = Record(_DESCRIPTOR, _PATH, Bytes(HAVE_BYTES_MAX))
_CHUNK: Final = Record(Bytes(CHUNK_BYTES, 1), _PATH)


Description = tuple[int, tuple[bytes, ...], bytes]  # length, path of leaf 0, which chunks
Chunk = tuple[bytes, tuple[bytes, ...]]  # with its path


class Lender(Protocol):
    """Blobs that are served and lie elsewhere than in the store (`bodies.py`). Methods block."""

    def __contains__(self, blob_id: bytes) -> bool: ...
    def is_listed(self, bundle_hash: bytes) -> bool: ...
    def listing(self, bundle_hash: bytes) -> tuple[Entry, ...] | None: ...
    def describe(self, blob_id: bytes) -> Description: ...
    def chunk(self, blob_id: bytes, index: int) -> Chunk: ...


@dataclass(slots=True)
class Coming:
    """How far a fetch is, for whoever looks."""

    kind: int
    identity: bytes
    sources: int
    bytes_total: int
    bytes_here: int = 0  # proven and written, also before this start
    began_s: float = field(default_factory=trio.current_time)


class Blobs:
    """Serves what the store lists and `lent` has, and fetches what the ledger names."""

    def __init__(
        self,
        *,
        network: Network,
        store: BlobStore,
        lent: Lender | None = None,
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        self._network = network
        self._store = store
        self._lent = lent
        self._run_blocking = run_blocking
        self._reading = trio.Lock()  # one blob at a time is read whole for its proofs
        self._lending = trio.Lock()  # and one body at a time for its tree
        self._locks: dict[bytes, trio.Lock] = {}  # of blobs that are fetched now
        self._coming: list[Coming] = []
        self._in_use: Counter[bytes] = Counter()  # blobs that a listing of a fetch names
        self.counters: Counter[str] = Counter()

    def statistics(self) -> Mapping[str, int]:
        """Counters since the start."""
        return dict(self.counters)

    def coming(self) -> tuple[Coming, ...]:
        """Every fetch that goes on now, and how far it is."""
        return tuple(self._coming)

    # -- answering

    def serve(self) -> None:
        """Answer on the network from now on."""
        self._network.serve(PROTOCOL, self.answer, LIMITS)

    async def answer(self, peer: PeerId, body: bytes) -> bytes:
        """[0, blob id], [1, blob id, index], [2, kind, identity]."""
        kind = body[1] if len(body) > 1 else None
        self.counters["asked"] += 1
        if kind == DESCRIBE:
            _, blob_id = _decoded(body, _ASK)
            await self._be_ready(blob_id)
            describe = self._who_has(blob_id).describe
            length, path, have = await self._run_blocking(describe, blob_id)
            return encode(((length, CHUNK_BYTES), path, have))
        if kind == CHUNK:
            _, blob_id, index = _decoded(body, _ASK_CHUNK)
            await self._be_ready(blob_id)
            raw: bytes = await self._run_blocking(self._encoded_chunk, blob_id, index)
            self.counters["served_bytes"] += len(raw)
            return raw
        if kind == LIST:
            _, what, identity = _decoded(body, _ASK_LIST)
            listing = await self._list(what, identity)
            if listing is None:
                raise Refused(Code.NOT_FOUND)
            return encode_listing(listing)
        raise Misbehaving("no such question about blobs")

    async def _be_ready(self, blob_id: bytes) -> None:
        """Large files are read whole once after a start: by one thread, however many ask."""
        if self._who_has(blob_id) is not self._store or self._store.is_known(blob_id):
            return
        if self._reading.locked():
            raise Refused(Code.BUSY, READING_RETRY_MS)
        async with self._reading:
            await self._run_blocking(self._store.describe, blob_id)

    def _who_has(self, blob_id: bytes) -> BlobStore | Lender:
        return self._lent if self._lent is not None and blob_id in self._lent else self._store

    async def _list(self, kind: int, identity: bytes) -> tuple[Entry, ...] | None:
        if kind != BUNDLE or self._lent is None:
            return self._store.listing(kind, identity)
        if self._lent.is_listed(identity):
            return self._lent.listing(identity)
        if self._lending.locked():
            raise Refused(Code.BUSY, LISTING_RETRY_MS)
        listing: tuple[Entry, ...] | None
        async with self._lending:
            listing = await self._run_blocking(self._lent.listing, identity)
        return listing

    def _encoded_chunk(self, blob_id: bytes, index: int) -> bytes:
        return encode(self._who_has(blob_id).chunk(blob_id, index))

    # -- fetching

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
        """Make `folder` hold the files of an identity, from all peers that tell the same of it.

        `check(folder)` recomputes the identity, in a thread, and raises Invalid where it differs:
        its tellers are penalised and the next listing is tried. OSError, where this machine could
        not read, is nobody's fault and raised on. At the end we serve the files too.
        Raises Unreachable when no source gave them, NoRoom where they do not fit here, before
        any of them is asked for; then nothing is at `folder`. What came is gone on with by the
        next call, also of another process.
        """
        for entries, tellers in await self._gather(kind, identity, _few(peers)):
            total = sum(entry.length for entry in entries)
            if total > bytes_max:
                self.counters["listings_too_large"] += 1
                log.warning("a listing larger than may be", bytes=total, bytes_max=bytes_max)
                continue
            coming = Coming(kind, identity, len(tellers), total)
            with self._using(coming, entries):
                try:
                    await self._fetch_listing(coming, entries, tellers)
                except NetworkError as error:
                    self.counters["sources_failed"] += 1
                    log.info("not all came", identity=identity, why=str(error))
                    continue
                if await self._take_in(kind, identity, entries, folder, check):
                    return entries
            for peer in tellers:
                self._blame(peer, "forged")
        raise Unreachable(f"no source for {identity.hex()[:16]}")

    async def fetch_bytes(
        self,
        kind: int,
        identity: bytes,
        *,
        peers: Sequence[PeerId],
        length: int,
        check: Callable[[bytes], None],
    ) -> bytes:
        """The one file of an identity, `length` bytes, which is kept elsewhere than here.

        As `fetch`, with `check(content)`, but returned: the caller bounds `length`. No quota of
        blobs can be in its way. Raises Unreachable also where this disk does not take it.
        """
        for entries, tellers in await self._gather(kind, identity, _few(peers)):
            if [entry.length for entry in entries] == [length]:
                try:
                    content = await self._fetch_passing(kind, identity, entries[0], tellers)
                except NetworkError as error:
                    self.counters["sources_failed"] += 1
                    log.info("not all came", identity=identity, why=str(error))
                    continue
                try:
                    await self._run_blocking(check, content)
                except Invalid as refusal:
                    log.warning("not what the ledger names", identity=identity, why=str(refusal))
                else:
                    self.counters["fetched"] += 1
                    return content
            self.counters["listings_false"] += 1
            for peer in tellers:
                self._blame(peer, "forged")
        raise Unreachable(f"no source for {identity.hex()[:16]}")

    async def _fetch_passing(
        self, kind: int, identity: bytes, entry: Entry, peers: Sequence[PeerId]
    ) -> bytes:
        coming = Coming(kind, identity, len(peers), entry.length)
        async with self._alone(entry.blob_id):
            having = await self._find_having(entry, peers)
            try:
                part = await self._run_blocking(self._store.passing, entry.blob_id, entry.length)
                try:
                    await self._fill(coming, entry, part, having)
                    content: bytes | None = await self._run_blocking(part.whole)
                finally:
                    part.close()
            except OSError as error:
                raise Unreachable(f"the disk does not take {entry.name}: {error}") from error
        if content is None:
            raise Unreachable(f"what was kept of {entry.name} has rotted")
        return content

    async def _gather(
        self, kind: int, identity: bytes, peers: Sequence[PeerId]
    ) -> list[tuple[tuple[Entry, ...], list[PeerId]]]:
        """Listings and who tells them, those told by most first. All are asked at once."""
        told = await self._ask_all(peers, (LIST, kind, identity), decode_listing)
        groups: dict[tuple[Entry, ...], list[PeerId]] = {}
        for peer, entries in told.items():
            groups.setdefault(entries, []).append(peer)
        return sorted(groups.items(), key=lambda group: -len(group[1]))

    async def _take_in(
        self,
        kind: int,
        identity: bytes,
        entries: tuple[Entry, ...],
        folder: Path,
        check: Callable[[Path], None],
    ) -> bool:
        """Whether what came is the identity; then it is served, else nothing of it remains."""
        await self._run_blocking(self._store.link_into, entries, folder)
        try:
            await self._run_blocking(check, folder)
        except Invalid as refusal:
            self.counters["listings_false"] += 1
            log.warning("not what the ledger names", identity=identity, why=str(refusal))
            await self._run_blocking(shutil.rmtree, folder)
            # A liar may list what another fetch has under way, which is not the liar's to end.
            alone = [entry for entry in entries if self._in_use[entry.blob_id] == 1]
            await self._run_blocking(self._store.discard, alone)
            return False
        except OSError:  # ours: the blobs stay, and are checked again
            await self._run_blocking(partial(shutil.rmtree, folder, ignore_errors=True))
            raise
        await self._run_blocking(self._store.add_listing, kind, identity, entries)
        self.counters["fetched"] += 1
        return True

    async def _fetch_listing(
        self, coming: Coming, entries: Sequence[Entry], peers: Sequence[PeerId]
    ) -> None:
        await self._run_blocking(self._store.check_room, entries)
        for entry in entries:
            async with self._alone(entry.blob_id):
                if await self._run_blocking(self._store.is_whole, entry.blob_id):
                    coming.bytes_here += entry.length
                else:
                    await self._fetch_blob(coming, entry, peers)

    @contextmanager
    def _using(self, coming: Coming, entries: Sequence[Entry]) -> Iterator[None]:
        """A fetch of a listing, as long as it lasts."""
        blob_ids = {entry.blob_id for entry in entries}
        self._coming.append(coming)
        self._in_use.update(blob_ids)
        try:
            yield
        finally:
            self._in_use.subtract(blob_ids)
            self._in_use = +self._in_use
            self._coming.remove(coming)

    @asynccontextmanager
    async def _alone(self, blob_id: bytes) -> AsyncIterator[None]:
        """Two identities may share a file, and two fetches would share its part."""
        lock = self._locks.setdefault(blob_id, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.statistics().tasks_waiting and not lock.locked():
                self._locks.pop(blob_id, None)

    async def _fetch_blob(self, coming: Coming, entry: Entry, peers: Sequence[PeerId]) -> None:
        having = await self._find_having(entry, peers)
        part = await self._run_blocking(self._store.part, entry.blob_id, entry.length)
        try:
            await self._fill(coming, entry, part, having)
            if not await self._run_blocking(part.finish):
                raise Unreachable(f"what was kept of {entry.name} has rotted")
        finally:
            part.close()

    async def _find_having(self, entry: Entry, peers: Sequence[PeerId]) -> dict[PeerId, bytes]:
        """Who has which chunks of a blob; raises Unreachable where nobody has any."""
        question = DESCRIBE, entry.blob_id
        having = await self._ask_all(peers, question, partial(_check_described, entry))
        if not having:
            raise Unreachable(f"nobody has {entry.name}")
        return having

    async def _fill(
        self, coming: Coming, entry: Entry, part: BlobPart, having: Mapping[PeerId, bytes]
    ) -> None:
        """Have every chunk of a blob kept in `part`; raises Unreachable where not all came."""
        fetch = ChunkFetch(
            network=self._network,
            goods=_BlobGoods(self, coming, entry, part, having),
            sources=list(having),
            counters=self.counters,
            run_blocking=self._run_blocking,
        )
        if not await fetch.run():
            raise Unreachable(f"sources of {entry.name} are gone")

    async def ask_chunk(self, peer: PeerId, blob_id: bytes, index: int) -> bytes:
        """[chunk, path], not looked at yet; raises NetworkError."""
        return await self._request(peer, (CHUNK, blob_id, index))

    async def _ask_all(
        self, peers: Sequence[PeerId], question: tuple[object, ...], read: Callable[[bytes], Told]
    ) -> dict[PeerId, Told]:
        """What each of them answers, in the order of `peers`; `read` raises Invalid at a lie.

        A peer that hangs holds up nothing: once one has answered, the others have SETTLE_S.
        """
        told: dict[PeerId, Told] = {}

        async def ask(peer: PeerId) -> None:
            try:
                told[peer] = read(await self._ask(peer, question))
                latest_s = trio.current_time() + SETTLE_S
                nursery.cancel_scope.deadline = min(nursery.cancel_scope.deadline, latest_s)
            except NetworkError:
                self.counters["sources_failed"] += 1
            except Invalid:
                self.counters["sources_false"] += 1
                self._blame(peer, "forged")

        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(ask, peer)
        return {peer: told[peer] for peer in peers if peer in told}

    async def _ask(self, peer: PeerId, question: tuple[object, ...]) -> bytes:
        """The answer, when a source that is busy has come to it."""
        for _ in range(BUSY_MAX):
            try:
                return await self._request(peer, question)
            except Refused as refused:
                if refused.code not in (Code.RATE_EXCEEDED, Code.BUSY):
                    raise
                self.counters["waited"] += 1
                await trio.sleep(min(BUSY_MAX_S, max(BUSY_MIN_S, refused.retry_ms / 1_000)))
        raise Unreachable("busy for too long")

    async def _request(self, peer: PeerId, question: tuple[object, ...]) -> bytes:
        return await self._network.request(
            peer,
            PROTOCOL,
            encode(question),
            timeout_s=LIMITS.timeout_s,
            bytes_max=LIMITS.reply_max,
        )

    def _blame(self, peer: PeerId, reason: str) -> None:
        self._network.penalise(peer, PENALTIES[reason], reason)


@dataclass(frozen=True, slots=True)
class _BlobGoods:
    """The chunks of one blob, for `chunks.py`."""

    blobs: Blobs
    coming: Coming
    entry: Entry
    part: BlobPart
    having: Mapping[PeerId, bytes]

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def chunks(self) -> int:
        return self.part.chunks

    @property
    def at_once_max(self) -> int:
        return LIMITS.at_once_max

    def missing(self) -> list[int]:
        missing = self.part.missing()
        self.coming.bytes_here += self.entry.length - sum(map(self.part.size_of, missing))
        return missing

    def is_at(self, peer: PeerId, index: int) -> bool:
        return bool(self.having[peer][index // 8] >> index % 8 & 1)  # low bit first

    async def ask(self, peer: PeerId, index: int) -> bytes:
        return await self.blobs.ask_chunk(peer, self.entry.blob_id, index)

    def keep(self, index: int, raw: bytes) -> None:
        data, path = _reply(raw, _CHUNK)
        self.part.keep(index, data, path)

    def note_kept(self, index: int) -> None:
        size = self.part.size_of(index)
        self.blobs.counters["fetched_bytes"] += size
        self.coming.bytes_here += size


def _few(peers: Sequence[PeerId]) -> list[PeerId]:
    """The first SOURCES_MAX of them, each once."""
    return list(dict.fromkeys(peers))[:SOURCES_MAX]


def _check_described(entry: Entry, raw: bytes) -> bytes:
    """The bitmap of a description that proves the length; raises Invalid."""
    (length, chunk_bytes), path, have = _reply(raw, _DESCRIBED)
    if length != entry.length or chunk_bytes != CHUNK_BYTES:
        raise BlobInvalid("blob.length", length=length)
    leaves = leaf_count(length)
    if len(have) != -(-(leaves - 1) // 8):
        raise BlobInvalid("blob.have", bytes=len(have))
    merkle.verify_path(entry.blob_id, merkle.leaf_hash(first_leaf(length)), 0, leaves, path)
    assert isinstance(have, bytes)
    return have


def _reply(raw: bytes, shape: Any) -> Any:
    return decode(raw, shape, LIMITS.reply_max, "blob")


def _decoded(body: bytes, shape: Any) -> Any:
    try:
        return decode(body, shape, LIMITS.request_max, "blob.request")
    except Invalid as refusal:
        raise Misbehaving(str(refusal)) from None
