"""One long-lived stream to each other validator, and one from each: votes must not wait for dials.

Why held open: dialling costs 252 ms and a round of votes 30. Why a full queue drops the oldest
round first: what is old is re-sent when a peer's status asks for it, what is new decides.
What this file does not know: what a frame says.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import trio

from consensus.messages import FRAME_BYTES_MAX, decode_frame
from consensus.primitives.errors import Invalid
from node.observe import get_log
from p2p.errors import NetworkError
from p2p.limits import PENALTIES, PROTOCOLS, TokenBucket
from p2p.network import FrameStream, Network, PeerId

PROTOCOL: Final = "consensus"
QUEUE_FRAMES_MAX: Final = 256
WRITE_S: Final = 4.0
REOPEN_S: Final = 1.0
FRAMES_S: Final = 20  # and 4 more for each member
FRAMES_PER_MEMBER_S: Final = 4
BURST_S: Final = 3  # seconds of frames that may come at once
BYTES_S: Final = 4 << 20

log = get_log("consensus")

FindPeer = Callable[[bytes], PeerId | None]  # validator key → where it runs
OnFrame = Callable[[PeerId, int, bytes], None]  # peer, kind, body
Place = tuple[int, int]  # (height, round)


@dataclass(slots=True)
class _Outbound:
    """What waits for one validator."""

    frames: deque[tuple[Place, bytes]]
    came: trio.Event
    scope: trio.CancelScope
    is_live: bool = False


class ValidatorStreams:
    """Streams to and from the validators of the current set. Started once by `run`."""

    def __init__(self, *, network: Network, find_peer: FindPeer, on_frame: OnFrame) -> None:
        self._network = network
        self._find_peer = find_peer
        self._on_frame = on_frame
        self._out: dict[bytes, _Outbound] = {}
        self._welcome: tuple[bytes, ...] = ()  # members of the current set, to read from
        self._me: bytes | None = None
        self._readers: dict[PeerId, FrameStream] = {}
        self._nursery: trio.Nursery | None = None
        self.counters: Counter[str] = Counter()

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Take streams from validators, and keep one open to each, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._network.accept(PROTOCOL, self._read, PROTOCOLS[PROTOCOL])
            for key in self._out:
                nursery.start_soon(self._keep_open, key)
            task_status.started()
            await trio.sleep_forever()

    def set_members(self, members: Iterable[bytes], me: bytes | None) -> None:
        """The validators of the current set. Only a member opens streams to the others."""
        self._welcome, self._me = tuple(members), me
        wanted = [key for key in self._welcome if key != me] if me in self._welcome else []
        for key in [key for key in self._out if key not in wanted]:
            self._out.pop(key).scope.cancel()
        for key in wanted:
            if key not in self._out:
                self._out[key] = _Outbound(deque(), trio.Event(), trio.CancelScope())
                if self._nursery is not None:
                    self._nursery.start_soon(self._keep_open, key)

    def send_to_all(self, frame: bytes, place: Place) -> None:
        """Queue a frame to every other validator."""
        for outbound in self._out.values():
            self._put(outbound, place, frame)

    def send(self, peer: PeerId, frame: bytes, place: Place) -> None:
        """Queue a frame to the validator that runs at `peer`, if we have a stream to it."""
        for key, outbound in self._out.items():
            if self._find_peer(key) == peer:
                self._put(outbound, place, frame)
                return
        self.counters["no_stream"] += 1

    def find_others(self) -> list[PeerId]:
        """Where the other validators run, of those whose node we know."""
        keys = [key for key in self._welcome if key != self._me]
        return [peer for key in keys if (peer := self._find_peer(key)) is not None]

    def are_all_live(self) -> bool:
        """Whether every other validator has an open stream from us."""
        return all(outbound.is_live for outbound in self._out.values())

    def live_count(self) -> int:
        """How many validators we have an open stream to."""
        return sum(outbound.is_live for outbound in self._out.values())

    def _put(self, outbound: _Outbound, place: Place, frame: bytes) -> None:
        if len(outbound.frames) >= QUEUE_FRAMES_MAX:
            self.counters["dropped_out"] += 1
            oldest = min(outbound.frames, key=_place_of)
            outbound.frames.remove(oldest)
        outbound.frames.append((place, frame))
        outbound.came.set()

    async def _keep_open(self, key: bytes) -> None:
        outbound = self._out.get(key)
        if outbound is None:  # left the set before this task ran
            return
        with outbound.scope:
            while True:
                peer = self._find_peer(key)
                if peer is not None:
                    try:
                        await self._write_all(peer, outbound)
                    except NetworkError as error:
                        self._lose(peer, error)
                    finally:
                        outbound.is_live = False
                await trio.sleep(REOPEN_S)

    def _lose(self, peer: PeerId, error: NetworkError) -> None:
        self.counters["out_broken"] += 1
        log.debug("stream to a validator lost", peer=peer, why=str(error))

    async def _write_all(self, peer: PeerId, outbound: _Outbound) -> None:
        stream = await self._network.open(peer, PROTOCOL)
        outbound.is_live = True
        try:
            async with trio.open_nursery() as nursery:
                scope = nursery.cancel_scope
                nursery.start_soon(self._notice_end, peer, stream, scope)
                nursery.start_soon(self._write_frames, peer, stream, outbound, scope)
        finally:
            with trio.CancelScope(shield=True):
                await stream.reset()

    async def _notice_end(self, peer: PeerId, stream: FrameStream, scope: trio.CancelScope) -> None:
        """Nothing is told us here: a read ends when the stream does, long before our next word."""
        try:
            await stream.read(FRAME_BYTES_MAX, float("inf"))
        except NetworkError as error:
            self._lose(peer, error)
        scope.cancel()

    async def _write_frames(
        self, peer: PeerId, stream: FrameStream, outbound: _Outbound, scope: trio.CancelScope
    ) -> None:
        try:
            while True:
                while outbound.frames:
                    entry = outbound.frames[0]
                    await stream.write(entry[1], WRITE_S)
                    # Only now: what met a broken stream waits for the next one.
                    if outbound.frames and outbound.frames[0] is entry:
                        outbound.frames.popleft()
                outbound.came = trio.Event()
                await outbound.came.wait()
        except NetworkError as error:
            self._lose(peer, error)
            scope.cancel()

    def _is_welcome(self, peer: PeerId) -> bool:
        return any(self._find_peer(key) == peer for key in self._welcome)

    async def _read(self, peer: PeerId, stream: FrameStream) -> None:
        if not self._is_welcome(peer):
            self.counters["strangers"] += 1
            await stream.reset()
            return
        before = self._readers.get(peer)
        self._readers[peer] = stream
        if before is not None:
            await before.reset()  # a new stream from the same peer replaces the old one
        try:
            await self._read_all(peer, stream)
        finally:
            if self._readers.get(peer) is stream:
                del self._readers[peer]

    async def _read_all(self, peer: PeerId, stream: FrameStream) -> None:
        rate_s = FRAMES_S + FRAMES_PER_MEMBER_S * len(self._welcome)
        now_s = trio.current_time()
        frames = TokenBucket(rate_s, BURST_S * rate_s, now_s)
        volume = TokenBucket(BYTES_S, BURST_S * BYTES_S, now_s)
        while True:
            raw = await stream.read(FRAME_BYTES_MAX, float("inf"))
            now_s = trio.current_time()
            if not frames.take(now_s) or not volume.take(now_s, len(raw)):
                self.counters["dropped_rate"] += 1
                continue
            try:
                kind, body = decode_frame(raw)
            except Invalid as refusal:
                self.counters["malformed"] += 1
                self._network.penalise(peer, PENALTIES["malformed"], "malformed")
                log.warning("malformed frame from a validator", peer=peer, code=refusal.code)
                continue
            self._on_frame(peer, kind, body)


def _place_of(entry: tuple[Place, bytes]) -> Place:
    return entry[0]
