"""Fetching the chunks of one snapshot: from several peers, each checked, each kept as it comes.

Why each chunk is a file at once: an ended process goes on where it was. Why a false one bars its
sender and a slow one only costs it its place: the first is a lie, the second may be our own line.
What this file does not know: whether the snapshot is true. Its loader finds out.
"""

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import trio

from consensus.primitives.encoding import decode, encode
from consensus.primitives.errors import Invalid
from node.observe import get_log
from node.peering.snapshotting import CHUNK, CHUNK_REPLY, PROTOCOL, REPLY_BYTES_MAX
from node.storage.snapshots import Manifest, check_chunk, read_chunk, write_chunk
from p2p.errors import Code, NetworkError, Refused
from p2p.limits import PENALTIES, PROTOCOLS
from p2p.network import Network, PeerId

SOURCES_AT_ONCE_MAX: Final = 4
IN_FLIGHT_PER_SOURCE: Final = 2  # so at most 32 MiB wait in memory
FAILURES_MAX: Final = 3  # of one source, then another takes its place
REST_MIN_S: Final = 0.05  # of a source that is busy and does not say for how long
REST_MAX_S: Final = 2.0
RESTS_MAX: Final = 1_000  # of one source that is always busy
PROGRESS_S: Final = 10.0  # between two lines that tell how far we are

RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread

log = get_log("statesync")


class ChunkFetch:
    """The chunks of a verified manifest on their way into `folder`."""

    def __init__(
        self,
        *,
        network: Network,
        manifest: Manifest,
        folder: Path,
        sources: Sequence[PeerId],
        counters: Counter[str],
        run_blocking: RunBlocking,
    ) -> None:
        self._network = network
        self._manifest = manifest
        self._folder = folder
        self._spare = deque(sources)
        self._counters = counters
        self._run_blocking = run_blocking
        self._wanted: deque[int] = deque()
        self._in_flight = 0
        self._failures: Counter[PeerId] = Counter()
        self._rests: Counter[PeerId] = Counter()
        self._left: set[PeerId] = set()
        self._changed = trio.Event()
        self._told_s = 0.0

    async def run(self) -> bool:
        """Until every chunk is here (True), or no source is left. What came is kept either way."""
        self._told_s = trio.current_time()
        self._wanted.extend(await self._run_blocking(self._missing))
        self._counters["chunks_resumed"] += len(self._manifest.chunks) - len(self._wanted)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for _ in range(SOURCES_AT_ONCE_MAX):
                self._start_next_source()
        return not self._wanted

    def _missing(self) -> list[int]:
        """Chunks that are not on the disk as they should be."""
        missing = []
        for index, mark in enumerate(self._manifest.chunks):
            raw = read_chunk(self._folder, index)
            try:
                if raw is None:
                    raise Invalid("snapshot.chunk_missing")
                check_chunk(mark, raw)
            except Invalid:
                missing.append(index)
        return missing

    def _start_next_source(self) -> None:
        if self._spare:
            peer = self._spare.popleft()
            for _ in range(IN_FLIGHT_PER_SOURCE):
                self._nursery.start_soon(self._fetch_from, peer)

    async def _fetch_from(self, peer: PeerId) -> None:
        while (index := await self._next(peer)) is not None:
            is_here = False
            try:
                is_here = await self._fetch(peer, index)
            finally:
                self._in_flight -= 1
                if not is_here:
                    self._wanted.appendleft(index)
                self._tell()

    async def _next(self, peer: PeerId) -> int | None:
        """A chunk to fetch; waits while others may still fail; None when `peer` is done."""
        while peer not in self._left:
            if self._wanted:
                self._in_flight += 1
                return self._wanted.popleft()
            if not self._in_flight:
                break
            await self._changed.wait()
        return None

    async def _fetch(self, peer: PeerId, index: int) -> bool:
        try:
            await self._run_blocking(self._keep, index, await self._ask(peer, index))
        except Invalid as refusal:
            self._counters["chunks_false"] += 1
            log.warning("a peer sent a false chunk", peer=peer, code=refusal.code)
            self._network.penalise(peer, PENALTIES["false_chunk"], "false_chunk")
            self._leave(peer)
        except NetworkError as error:
            await self._fail(peer, error)
        else:
            self._counters["chunks"] += 1
            self._tell_progress()
            return True
        return False

    def _tell_progress(self) -> None:
        now_s = trio.current_time()
        if now_s - self._told_s >= PROGRESS_S:
            self._told_s = now_s
            count = len(self._manifest.chunks)
            log.info("fetching a snapshot", chunks=count, missing=len(self._wanted))

    async def _ask(self, peer: PeerId, index: int) -> bytes:
        raw = await self._network.request(
            peer,
            PROTOCOL,
            encode((CHUNK, self._manifest.height, index)),
            timeout_s=PROTOCOLS[PROTOCOL].timeout_s,
            bytes_max=REPLY_BYTES_MAX,
        )
        (chunk,) = decode(raw, CHUNK_REPLY, REPLY_BYTES_MAX, "snapshot.reply")
        return bytes(chunk)

    def _keep(self, index: int, raw: bytes) -> None:
        check_chunk(self._manifest.chunks[index], raw)
        write_chunk(self._folder, index, raw)

    async def _fail(self, peer: PeerId, error: NetworkError) -> None:
        if isinstance(error, Refused) and error.code in (Code.RATE_EXCEEDED, Code.BUSY):
            self._rests[peer] += 1
            if self._rests[peer] < RESTS_MAX:
                await trio.sleep(min(REST_MAX_S, max(REST_MIN_S, error.retry_ms / 1_000)))
                return
        self._counters["chunks_failed"] += 1
        self._failures[peer] += 1
        if self._failures[peer] >= FAILURES_MAX:
            self._leave(peer)

    def _leave(self, peer: PeerId) -> None:
        """Ask this source for nothing more, and another in its place."""
        if peer not in self._left:
            self._left.add(peer)
            self._start_next_source()
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
