"""Snapshots as the chain goes on: made every so many blocks, beside it, and handed to peers.

Why from a view: it keeps the moment of one block while the next ones are written, so nothing stops.
Why a chunk is checked before it is sent: what rotted on our disk would be a lie of ours to others.
What this file does not know: what a snapshot is good for.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from consensus.primitives.encoding import U8, U32, U63, Bytes, ListOf, Record, decode, encode
from consensus.primitives.errors import Invalid
from node.observe import get_log
from node.storage.snapshots import (
    CHUNK_BYTES_MAX,
    MANIFEST_BYTES_MAX,
    SnapshotStore,
    check_chunk,
    encode_manifest,
)
from node.storage.views import Tip, View
from p2p.errors import Code, Misbehaving, Refused
from p2p.limits import PROTOCOLS
from p2p.network import Network, PeerId

PROTOCOL: Final = "snapshot"
LIST, CHUNK = 0, 1
TOLD_MAX: Final = 2  # manifests in one answer, newest first
REPLY_BYTES_MAX: Final = PROTOCOLS[PROTOCOL].reply_max
EVERY: Final = 10_000  # blocks

LIST_REPLY: Final = ListOf(Bytes(MANIFEST_BYTES_MAX, 1), TOLD_MAX)
CHUNK_REPLY: Final = Record(Bytes(CHUNK_BYTES_MAX, 1))
_LIST: Final = Record(U8)
_CHUNK: Final = Record(U8, U63, U32)

RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread

log = get_log("snapshots")


class SnapshotKeeper:
    """Makes the snapshots of a node and serves them (`snapshot` of page 70 §6)."""

    def __init__(
        self,
        *,
        store: SnapshotStore,
        get_view: Callable[[], View],
        every: int = EVERY,
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        self._store = store
        self._get_view = get_view
        self._every = every
        self._run_blocking = run_blocking
        self._due: View | None = None
        self._came = trio.Event()
        self._is_ending = False
        self.counters: Counter[str] = Counter()

    @property
    def height(self) -> int:
        """Height of the newest snapshot that is whole; 0: none."""
        return max((found.height for found in self._store.manifests()), default=0)

    def note(self, tip: Tip) -> None:
        """A block was committed, and the view is still of it."""
        if tip.height % self._every == 0:
            self._due = self._get_view()  # a newer one replaces one that still waits
            self._came.set()

    async def run(self) -> None:
        """Make what is due, one at a time, for ever. A full disk costs the snapshot, not a vote."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_the_end)
            while True:
                await self._came.wait()
                self._came, view, self._due = trio.Event(), self._due, None
                if view is not None:
                    await self._make(view)

    async def _make(self, view: View) -> None:
        begun_s = trio.current_time()
        try:
            made = await self._run_blocking(self._store.make, view, lambda: self._is_ending)
        except OSError as error:
            self.counters["failed"] += 1
            log.warning("a snapshot could not be written", height=view.height, why=str(error))
            return
        if made is not None:
            self.counters["made"] += 1
            took_ms = round((trio.current_time() - begun_s) * 1_000)
            log.info("snapshot made", height=made.height, chunks=len(made.chunks), took_ms=took_ms)
            await self._run_blocking(self._store.prune, view.needed_snapshot)

    async def _tell_the_end(self) -> None:
        """A thread cannot be cancelled: it looks at this between two chunks."""
        try:
            await trio.sleep_forever()
        finally:
            self._is_ending = True

    # -- for peers

    def serve(self, network: Network) -> None:
        """Answer on this network from now on."""
        network.serve(PROTOCOL, self.answer, PROTOCOLS[PROTOCOL])

    async def answer(self, peer: PeerId, body: bytes) -> bytes:
        """[0] → [manifest…]; [1, height, index] → [chunk]."""
        kind = body[1] if len(body) > 1 else None  # behind the one byte of the array's head
        if kind == LIST:
            _decoded(body, _LIST)
            told = self._store.manifests()[:TOLD_MAX]
            return encode([encode_manifest(manifest) for manifest in told])
        if kind == CHUNK:
            _, height, index = _decoded(body, _CHUNK)
            raw: bytes | None = await self._run_blocking(self._good_chunk, height, index)
            if raw is None:
                raise Refused(Code.NOT_FOUND)
            self.counters["served"] += 1
            return encode((raw,))
        raise Misbehaving("no such question about snapshots")

    def _good_chunk(self, height: int, index: int) -> bytes | None:
        manifest, raw = self._store.find(height), self._store.chunk(height, index)
        if manifest is None or raw is None:
            return None
        try:
            check_chunk(manifest.chunks[index], raw)
        except Invalid as rotten:
            self.counters["rotten"] += 1
            log.warning("a chunk of a snapshot has rotted", height=height, code=rotten.code)
            return None
        return raw


def _decoded(body: bytes, shape: Any) -> Any:
    try:
        return decode(body, shape, PROTOCOLS[PROTOCOL].request_max, "snapshot.request")
    except Invalid as refusal:
        raise Misbehaving(str(refusal)) from None
