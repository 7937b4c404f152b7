"""Fetching chunks from several peers at once: each checked, each kept as it comes.

Snapshots and blobs both come this way; what a chunk is, and when it is true, their `Goods` say.
Why each chunk is kept at once: an ended process goes on where it was. Why a false one bars its
sender and a slow one only costs it its place: the first is a lie, the second may be our own line.
Why a chunk is checked and written before its asker asks again: a slow disk then slows the asking,
and no stream ever waits half read for it. Why the last chunks are asked for twice: else the
slowest source would decide when all is here. Why a busy source rests with empty hands: what it did
not give is for whoever is free.
What this file does not know: whether the whole is true. Its loader finds out.
"""

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import trio

from consensus.primitives.errors import Invalid
from node.observe import get_log
from p2p.errors import Code, NetworkError, Refused, TooSlow
from p2p.limits import PENALTIES
from p2p.network import Network, PeerId

SOURCES_AT_ONCE_MAX: Final = 4
IN_FLIGHT_MAX: Final = 8  # of all sources: as many chunks wait in memory
IN_FLIGHT_PER_SOURCE: Final = 2  # or more where sources are few, if they answer more at once
FAILURES_MAX: Final = 3  # of one source in a row, then another takes its place
REST_MIN_S: Final = 0.05  # of a source that is busy and does not say for how long
REST_MAX_S: Final = 2.0
REST_IN_VAIN_S: Final = 5.0  # busy for so long in a row, another source takes its place
REST_ALONE_S: Final = 600.0  # the same where none waits: it is always busy
LATE_S: Final = 2.0  # on its way for so long, one of the last chunks is asked for twice
ASKED_TWICE_MAX: Final = 4  # of them
SLOW_BYTES_S: Final = 64 << 10
SLOW_S: Final = 20.0  # below that rate for so long, another source takes its place if there is one
PROGRESS_S: Final = 10.0  # between two lines that tell how far we are

RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread

log = get_log("chunks")


class Goods(Protocol):
    """What is fetched. `missing` and `keep` block, and run in threads."""

    @property
    def name(self) -> str:
        """For the log."""
        ...

    @property
    def chunks(self) -> int:
        """How many it has in all."""
        ...

    @property
    def at_once_max(self) -> int:
        """How many one source answers at once."""
        ...

    def missing(self) -> list[int]:
        """Chunks that are not on the disk as they should be."""
        ...

    def is_at(self, peer: PeerId, index: int) -> bool:
        """Whether that source says that it has this chunk."""
        ...

    async def ask(self, peer: PeerId, index: int) -> bytes:
        """What a source sends; raises NetworkError."""
        ...

    def keep(self, index: int, raw: bytes) -> None:
        """Write it to the disk; raises Invalid where it is false."""
        ...

    def note_kept(self, index: int) -> None:
        """It is on the disk now."""
        ...


@dataclass(slots=True)
class _Source:
    """One peer, and how it does."""

    peer: PeerId
    askers_max: int
    askers: int = 0
    failures: int = 0
    rests_until_s: float = 0.0  # it is busy
    busy_since_s: float | None = None  # ever since
    is_left: bool = False
    bytes: int = 0  # since `since_s`
    since_s: float = field(default_factory=trio.current_time)


@dataclass(slots=True)
class _Asked:
    """A chunk on its way, and from whom."""

    since_s: float  # of whomever, for the first time
    of: list[PeerId] = field(default_factory=list)


class ChunkFetch:
    """The chunks of some goods on their way to the disk."""

    def __init__(
        self,
        *,
        network: Network,
        goods: Goods,
        sources: Sequence[PeerId],
        counters: Counter[str],
        run_blocking: RunBlocking,
    ) -> None:
        self._network = network
        self._goods = goods
        self._spare = deque(sources)
        self._counters = counters
        self._run_blocking = run_blocking
        self._wanted: deque[int] = deque()
        self._asked: dict[int, _Asked] = {}  # chunks on their way
        self._asked_since_s: dict[int, float] = {}  # also of those that came back to us
        self._keeping: set[int] = set()  # of these, what is being written
        at_once = min(SOURCES_AT_ONCE_MAX, max(1, len(sources)))
        most = max(IN_FLIGHT_PER_SOURCE, IN_FLIGHT_MAX // at_once)
        fair = -(-goods.chunks // at_once)  # of few chunks, each source has its share
        self._askers_each = min(goods.at_once_max, most, fair)
        self._changed = trio.Event()
        self._disk_error: OSError | None = None
        self._told_s = 0.0

    async def run(self) -> bool:
        """Until every chunk is here (True), or no source is left. What came is kept either way.

        Raises OSError where the disk takes no more.
        """
        self._told_s = trio.current_time()
        self._wanted.extend(await self._run_blocking(self._goods.missing))
        self._counters["chunks_resumed"] += self._goods.chunks - len(self._wanted)
        if not self._wanted:
            return True
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for _ in range(SOURCES_AT_ONCE_MAX):
                self._start_next_source()
        if self._disk_error is not None:
            raise self._disk_error
        return not self.missing

    @property
    def missing(self) -> int:
        """Chunks that are not here yet."""
        return len(self._wanted) + len(self._asked)

    # -- sources

    def _start_next_source(self) -> None:
        if not self._spare:
            return
        source = _Source(self._spare.popleft(), self._askers_each)
        for _ in range(source.askers_max):
            source.askers += 1
            self._nursery.start_soon(self._fetch_from, source)

    def _leave(self, source: _Source) -> None:
        """Ask this source for nothing more, and another in its place."""
        if not source.is_left:
            source.is_left = True
            self._start_next_source()
            self._tell()

    async def _fetch_from(self, source: _Source) -> None:
        try:
            while (index := await self._next(source)) is not None:
                await self._fetch_one(source, index)
        finally:
            source.askers -= 1

    async def _next(self, source: _Source) -> int | None:
        """A chunk to ask for; waits while others may still fail; None when there is no more."""
        while not source.is_left and source.askers <= source.askers_max:
            rest_s = source.rests_until_s - trio.current_time()
            if rest_s > 0:
                await trio.sleep(rest_s)
                continue
            index = self._choose(source.peer)
            if index is not None:
                since_s = self._asked_since_s.setdefault(index, trio.current_time())
                self._asked.setdefault(index, _Asked(since_s)).of.append(source.peer)
                return index
            if not self._asked:
                break  # all is here, or nobody is at work on what this source has not
            with trio.move_on_after(LATE_S):
                await self._changed.wait()
        return None

    def _choose(self, peer: PeerId) -> int | None:
        for place, index in enumerate(self._wanted):
            if self._goods.is_at(peer, index):
                del self._wanted[place]
                return index
        if self._wanted or len(self._asked) > ASKED_TWICE_MAX:
            return None
        late_s = trio.current_time() - LATE_S
        for index, asked in self._asked.items():
            is_late = len(asked.of) == 1 and asked.since_s <= late_s
            if is_late and peer not in asked.of and self._goods.is_at(peer, index):
                return index
        return None

    # -- one chunk

    async def _fetch_one(self, source: _Source, index: int) -> None:
        is_here, failure = False, None
        try:
            is_here = await self._try(source, index)
        except NetworkError as error:
            failure = error
        finally:
            self._settle(source, index, is_here=is_here)
        if failure is not None:
            self._fail(source, failure)

    def _settle(self, source: _Source, index: int, *, is_here: bool) -> None:
        asked = self._asked.get(index)
        if asked is None:
            return  # another source was quicker
        asked.of.remove(source.peer)
        if is_here:
            del self._asked[index], self._asked_since_s[index]
            self._counters["chunks"] += 1
            self._goods.note_kept(index)
            if not self.missing:
                self._nursery.cancel_scope.cancel()  # what was asked for twice
        elif not asked.of:
            del self._asked[index]
            self._wanted.appendleft(index)
        self._tell()

    async def _try(self, source: _Source, index: int) -> bool:
        """Whether the chunk is on the disk now; raises NetworkError where the source failed."""
        try:
            raw = await self._goods.ask(source.peer, index)
            source.bytes += len(raw)
            if index not in self._asked or index in self._keeping:
                return False  # asked for twice, and this is the second
            await self._keep(index, raw)
        except Invalid as refusal:
            self._counters["chunks_false"] += 1
            log.warning(
                "a peer sent a false chunk", what=self._goods.name, peer=source.peer,
                code=refusal.code,
            )  # fmt: skip
            self._network.penalise(source.peer, PENALTIES["false_chunk"], "false_chunk")
            self._leave(source)
            return False
        except OSError as error:  # ours: no other source would help
            self._disk_error = error
            self._nursery.cancel_scope.cancel()
            return False
        source.failures, source.rests_until_s, source.busy_since_s = 0, 0.0, None
        self._tell_progress()
        self._replace_if_slow(source)
        return True

    async def _keep(self, index: int, raw: bytes) -> None:
        self._keeping.add(index)
        try:
            await self._run_blocking(self._goods.keep, index, raw)
        finally:
            self._keeping.discard(index)

    def _fail(self, source: _Source, error: NetworkError) -> None:
        """Note it; a busy source rests, and holds no chunk meanwhile."""
        if isinstance(error, Refused) and error.code in (Code.RATE_EXCEEDED, Code.BUSY):
            self._rest(source, error.retry_ms / 1_000)
            return
        if isinstance(error, TooSlow):
            source.askers_max = 1  # one chunk may come in time where two together do not
        self._counters["chunks_failed"] += 1
        source.failures += 1
        if source.failures >= FAILURES_MAX:
            self._leave(source)
        else:
            self._replace_if_slow(source)

    def _rest(self, source: _Source, asked_s: float) -> None:
        now_s = trio.current_time()
        if source.busy_since_s is None:
            source.busy_since_s = now_s
        if now_s - source.busy_since_s >= (REST_IN_VAIN_S if self._spare else REST_ALONE_S):
            self._counters["sources_busy"] += 1
            self._leave(source)
            return
        source.rests_until_s = now_s + min(REST_MAX_S, max(REST_MIN_S, asked_s))

    def _replace_if_slow(self, source: _Source) -> None:
        """Only where another waits: a slow source is better than none."""
        took_s = trio.current_time() - source.since_s
        if took_s < SLOW_S:
            return
        if source.bytes < SLOW_BYTES_S * took_s and self._spare:
            self._counters["sources_slow"] += 1
            self._leave(source)
        source.bytes, source.since_s = 0, trio.current_time()

    # -- telling

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _tell_progress(self) -> None:
        now_s = trio.current_time()
        if now_s - self._told_s >= PROGRESS_S:
            self._told_s = now_s
            name, count = self._goods.name, self._goods.chunks
            log.info("fetching", what=name, chunks=count, missing=self.missing)
