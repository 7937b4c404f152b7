"""Requests and duplex streams: limits before work, one reply envelope, no exception let out.

A request is one frame out and one frame back, `[code, retry_ms, body]` (page 70 §6). Why the server
waits a moment after its reply: to drop the stream at once would drop bytes not read yet.
Why both networks share this file: codes, rates and limits hold on both or on none.
What this file does not know: libp2p, what a body means, who is connected how.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import structlog
import trio

from p2p.counters import Counters
from p2p.errors import (
    UNKNOWN_CODE,
    Code,
    Misbehaving,
    NetworkError,
    Refused,
    TooSlow,
    Unreachable,
)
from p2p.framing import FrameStream, decode_reply, encode_reply, part
from p2p.limits import (
    AUTHORS_MAX,
    BULK_BYTES,
    BUSY_RETRY_MS,
    ENVELOPE_BYTES_MAX,
    FRAME_BYTES_MAX,
    GONE_S,
    LARGE_BYTES,
    OPEN_S,
    REPLIES_BYTES_MAX,
    REPLIES_BYTES_PER_PEER_MAX,
    REPLIES_BYTES_STRANGERS_MAX,
    STREAMS_MAX,
    STREAMS_PER_PEER_MAX,
    UPLOAD_QUEUE_MAX,
    ServeLimits,
    TokenBucket,
)
from p2p.peers import PeerId

log = structlog.get_logger(part="p2p")

KNOWN_CODES = frozenset(int(code) for code in Code)
NO_ANSWER = -1

Handler = Callable[[PeerId, bytes], Awaitable[bytes]]
StreamHandler = Callable[[PeerId, FrameStream], Awaitable[None]]
Blame = Callable[[PeerId, str], None]


def _drop(counter: Counter[Any], name: Any, count: int) -> None:
    """Count down, and keep no zero: the keys are as many as peers ever seen."""
    counter[name] -= count
    if counter[name] <= 0:
        del counter[name]


class Opener(Protocol):
    """Opens streams to connected peers; raises Unreachable or TooSlow."""

    async def open_stream(
        self, peer: PeerId, protocol: str, *, credit_bytes: int = 0
    ) -> FrameStream: ...


@dataclass(frozen=True, slots=True)
class _Served:
    limits: ServeLimits
    handler: Handler | None = None
    stream_handler: StreamHandler | None = None


class Requests:
    """Everything asked of others and everything others ask of us."""

    def __init__(
        self,
        *,
        counters: Counters,
        is_admitted: Callable[[PeerId], bool],
        is_banned: Callable[[PeerId], bool],
        is_reserved: Callable[[PeerId], bool],
        blame: Blame,
        upload_bytes_s: int,
    ) -> None:
        self._counters = counters
        self._is_admitted = is_admitted
        self._is_banned = is_banned
        self._is_reserved = is_reserved
        self._blame = blame
        self._served: dict[str, _Served] = {}
        self._running: Counter[tuple[PeerId, str]] = Counter()
        self._running_of_peer: Counter[PeerId] = Counter()  # requests only, not duplex streams
        self._running_of_protocol: Counter[str] = Counter()
        self._requests_running = 0
        # Of ours, until their owners forget them: no stream tells us of its end.
        self._opened: WeakKeyDictionary[FrameStream, PeerId] = WeakKeyDictionary()
        self._bulk_bytes = 0  # of large replies, for all peers and for each: what one may become,
        self._bulk_bytes_of_peer: Counter[PeerId] = Counter()  # then what it is, until it is taken
        self._buckets: OrderedDict[tuple[PeerId, str], TokenBucket] = OrderedDict()
        self._turns: dict[PeerId, trio.Lock] = {}  # of large replies to a peer
        self._upload_bytes_s = upload_bytes_s
        self._upload_due_s = -math.inf
        self._idle = trio.Event()
        self.is_closing = False

    # --- asking

    async def request(
        self,
        opener: Opener,
        peer: PeerId,
        protocol: str,
        body: bytes,
        *,
        timeout_s: float,
        bytes_max: int,
    ) -> bytes:
        """One exchange on its own stream, all of it within `timeout_s`; see Network.request."""
        assert 0 < len(body) <= FRAME_BYTES_MAX
        assert bytes_max <= FRAME_BYTES_MAX
        code, began_s = NO_ANSWER, trio.current_time()
        try:
            reply = await self._exchange(opener, peer, protocol, body, timeout_s, bytes_max)
            code = 0
            return reply
        except Refused as refusal:
            code = refusal.code if refusal.code in KNOWN_CODES else UNKNOWN_CODE
            raise
        except TooSlow:
            self._blame(peer, "timeout")
            raise
        except Misbehaving:
            self._blame(peer, "malformed")
            raise
        finally:
            self._counters.requests[protocol, "asked", code] += 1
            if code != NO_ANSWER:
                self._counters.request_seconds[protocol].note(trio.current_time() - began_s)

    async def _exchange(
        self,
        opener: Opener,
        peer: PeerId,
        protocol: str,
        body: bytes,
        timeout_s: float,
        bytes_max: int,
    ) -> bytes:
        stream: FrameStream | None = None
        is_done = False
        try:
            with trio.fail_after(timeout_s):
                stream = await opener.open_stream(peer, protocol, credit_bytes=bytes_max)
                self._opened[stream] = peer
                await stream.write(body, timeout_s)
                raw = await stream.read(bytes_max + ENVELOPE_BYTES_MAX, timeout_s)
                is_done = True
        except trio.TooSlowError:
            raise TooSlow(f"{protocol}: no reply within {timeout_s} s") from None
        finally:
            if stream is not None:
                self._opened.pop(stream, None)  # a cancel's trace would keep it for a long time
                if is_done:
                    await stream.close()
                await stream.reset()
        code, retry_ms, reply = decode_reply(raw)
        if code != Code.OK:
            raise Refused(code, retry_ms, reply)
        if len(reply) > bytes_max:
            raise Misbehaving(f"a reply of {len(reply)} bytes, {bytes_max} asked for")
        return reply

    async def open(self, opener: Opener, peer: PeerId, protocol: str) -> FrameStream:
        """A duplex stream, opened within OPEN_S."""
        try:
            with trio.fail_after(OPEN_S):
                stream = await opener.open_stream(peer, protocol)
        except trio.TooSlowError:
            raise TooSlow(f"{protocol}: not opened within {OPEN_S} s") from None
        self._opened[stream] = peer
        return stream

    def is_in_use(self, peer: PeerId) -> bool:
        """Whether a stream runs to it or from it: its link should not be ended for another's."""
        return peer in self._opened.values() or any(who == peer for who, _ in self._running)

    # --- answering

    def serve(self, protocol: str, handler: Handler, limits: ServeLimits) -> None:
        self._register(protocol, _Served(limits, handler=handler))

    def accept(self, protocol: str, handler: StreamHandler, limits: ServeLimits) -> None:
        self._register(protocol, _Served(limits, stream_handler=handler))

    def _register(self, protocol: str, served: _Served) -> None:
        if protocol in self._served:
            raise ValueError(f"{protocol} is served already")
        if served.handler is not None and served.limits.reply_max > FRAME_BYTES_MAX:
            raise ValueError("replies are limited to one frame")
        self._served[protocol] = served

    def names(self) -> Collection[str]:
        return self._served.keys()

    def running(self) -> int:
        """Requests being answered now."""
        return self._requests_running

    async def wait_idle(self) -> None:
        """Until no request is being answered."""
        while self._requests_running:
            self._idle = trio.Event()
            await self._idle.wait()

    def streams(self) -> int:
        """Requests and duplex streams of others being served now."""
        return sum(self._running_of_protocol.values())

    async def incoming(self, peer: PeerId, protocol: str, stream: FrameStream) -> None:
        """Serve one stream of a peer to its end. Only a cancel leaves this function."""
        served = self._served.get(protocol)
        if served is None or self._is_banned(peer):
            await stream.reset()
            return
        key = peer, protocol
        refusal = self._find_refusal(peer, protocol, served)
        if refusal is not None:
            await self._turn_away(peer, protocol, served, stream, refusal)
            return
        is_request = served.handler is not None
        self._running[key] += 1
        self._running_of_protocol[protocol] += 1
        self._running_of_peer[peer] += is_request
        self._requests_running += is_request
        is_done = False
        try:
            if served.handler is not None:
                await self._answer(peer, protocol, served, served.handler, stream)
            elif served.stream_handler is not None:
                await self._hand_over(peer, protocol, served.limits, served.stream_handler, stream)
            is_done = True
        finally:
            if not is_done:
                await stream.reset()
            self._requests_running -= is_request
            if not self._requests_running:
                self._idle.set()
            _drop(self._running, key, 1)
            _drop(self._running_of_protocol, protocol, 1)
            _drop(self._running_of_peer, peer, int(is_request))

    def _find_refusal(self, peer: PeerId, protocol: str, served: _Served) -> Refused | None:
        """Cheapest checks first; None when the stream may be served."""
        limits = served.limits
        if self.is_closing:
            return Refused(Code.CLOSING)
        if limits.admitted_only and not self._is_admitted(peer):
            return Refused(Code.NOT_ADMITTED)
        busy = (
            self._running[peer, protocol] >= limits.at_once_max
            or self._running_of_protocol[protocol] >= limits.total_max
            or (
                served.handler is not None
                and (
                    self._requests_running >= STREAMS_MAX
                    or self._running_of_peer[peer] >= STREAMS_PER_PEER_MAX
                )
            )
        )
        if busy:
            return Refused(Code.BUSY, BUSY_RETRY_MS)
        now_s = trio.current_time()
        bucket = self._bucket(peer, protocol, limits, now_s)
        if not bucket.take(now_s):
            return Refused(Code.RATE_EXCEEDED, math.ceil(bucket.wait_s(now_s) * 1_000))
        return None

    def _bucket(
        self, peer: PeerId, protocol: str, limits: ServeLimits, now_s: float
    ) -> TokenBucket:
        key = peer, protocol
        bucket = self._buckets.get(key)
        if bucket is None:
            while len(self._buckets) >= AUTHORS_MAX:
                self._buckets.popitem(last=False)
            bucket = self._buckets[key] = TokenBucket(limits.rate_s, limits.burst, now_s)
        self._buckets.move_to_end(key)
        return bucket

    async def _turn_away(
        self, peer: PeerId, protocol: str, served: _Served, stream: FrameStream, refusal: Refused
    ) -> None:
        """Say no without reading; a duplex stream has no reply to say it in."""
        self._counters.requests[protocol, "served", refusal.code] += 1
        if served.handler is None:
            await stream.reset()
            return
        limits = served.limits
        reply = refusal.code, refusal.retry_ms, refusal.body
        if await self._reply(stream, *reply, OPEN_S):
            await part(stream, limits.request_max)

    async def _answer(
        self, peer: PeerId, protocol: str, served: _Served, handler: Handler, stream: FrameStream
    ) -> None:
        limits = served.limits
        code, retry_ms, reply, held = int(Code.OUR_FAILURE), 0, b"", 0
        begins_s = -math.inf  # its place in the upload queue
        try:
            body = await stream.read(limits.request_max, limits.timeout_s)
            held = self._hold(peer, limits)
            with trio.fail_after(limits.timeout_s):
                reply = await handler(peer, body)
            code = Code.OK
            if len(reply) > limits.reply_max:
                code, reply = Code.REPLY_TOO_LARGE, b""
            begins_s = self._queue_upload(len(reply), limits)
        except Refused as refusal:
            code, retry_ms, reply = refusal.code, refusal.retry_ms, refusal.body
        except Misbehaving:
            code = Code.MALFORMED
            self._blame(peer, "malformed")
        except TooSlow:
            self._blame(peer, "timeout")
            await stream.reset()
            return
        except Unreachable:
            await stream.reset()
            return
        except trio.TooSlowError:
            self._counters.faults["slow_handler"] += 1
        except Exception as error:  # noqa: BLE001  # our bug must not end the library's own task
            self._note_fault(protocol, error)
        finally:
            self._counters.requests[protocol, "served", int(code)] += 1
            kept = min(held, len(reply))
            self._release(peer, held - kept)
        try:
            if begins_s > trio.current_time():
                await trio.sleep_until(begins_s)
            envelope = encode_reply(int(code), retry_ms, reply)
            queued = 0 if begins_s == -math.inf else len(reply)
            is_written = await self._write_reply(peer, stream, envelope, queued, limits.timeout_s)
        finally:
            self._release(peer, kept)
        if is_written:
            await part(stream, limits.request_max)

    def _hold(self, peer: PeerId, limits: ServeLimits) -> int:
        """Count the largest reply before it is made; Refused when too much is held already.

        Why only then: who has not asked to the end must not keep others from asking. Why small
        replies are free: who reads slowly keeps nobody's vote or light client waiting.
        """
        size = limits.reply_max
        if size <= BULK_BYTES:
            return 0
        queue_s = self._upload_queue_s()
        if queue_s > UPLOAD_QUEUE_MAX * limits.timeout_s:
            raise Refused(Code.BUSY, math.ceil(queue_s * 1_000))
        # Validators have a share that no crowd of strangers which does not read can take.
        most = REPLIES_BYTES_MAX if self._is_reserved(peer) else REPLIES_BYTES_STRANGERS_MAX
        if (
            self._bulk_bytes + size > most
            or self._bulk_bytes_of_peer[peer] + size > REPLIES_BYTES_PER_PEER_MAX
        ):
            raise Refused(Code.BUSY, BUSY_RETRY_MS)
        self._bulk_bytes += size
        self._bulk_bytes_of_peer[peer] += size
        return size

    def _release(self, peer: PeerId, size: int) -> None:
        self._bulk_bytes -= size
        _drop(self._bulk_bytes_of_peer, peer, size)

    async def _hand_over(
        self,
        peer: PeerId,
        protocol: str,
        limits: ServeLimits,
        handler: StreamHandler,
        stream: FrameStream,
    ) -> None:
        code = int(Code.OK)
        try:
            await handler(peer, stream)
        except Misbehaving:
            code = Code.MALFORMED
        except NetworkError:
            code = Code.EXPIRED
        except Exception as error:  # noqa: BLE001  # our bug must not end the library's own task
            code = Code.OUR_FAILURE
            self._note_fault(protocol, error)
        if stream.has_broken_rules or code == Code.MALFORMED:  # a handler may keep it to itself
            self._blame(peer, "malformed")
        if stream.has_stalled:
            self._blame(peer, "timeout")
        self._counters.requests[protocol, "served", int(code)] += 1
        await (part(stream, limits.request_max) if code == Code.OK else stream.reset())

    def _note_fault(self, protocol: str, error: Exception) -> None:
        where = f"handler {protocol}"
        self._counters.faults[where] += 1
        if self._counters.faults[where] == 1:  # once with its trace, then only counted
            log.error("handler raised", protocol=protocol, exc_info=error)

    async def _reply(
        self, stream: FrameStream, code: int, retry_ms: int, body: bytes, timeout_s: float
    ) -> bool:
        try:
            await stream.write(encode_reply(int(code), retry_ms, body), timeout_s)
        except NetworkError:
            return False  # it went away; the stream is reset already
        return True

    async def _write_reply(
        self, peer: PeerId, stream: FrameStream, envelope: bytes, queued: int, timeout_s: float
    ) -> bool:
        """Whether the peer took it within `timeout_s`, its turn included; else it is reset.

        `queued`: its bytes in the upload queue.

        Why the turn counts: what a peer waits for there is its own reading of earlier replies.
        """
        is_large, began_s = len(envelope) > LARGE_BYTES, math.inf
        try:
            with trio.fail_after(timeout_s):
                async with self._turn(peer, len(envelope)):
                    began_s = trio.current_time()
                    await stream.write(envelope, timeout_s)
            return True
        except (trio.TooSlowError, TooSlow):
            if is_large:
                self._blame(peer, "timeout")
        except NetworkError:
            pass  # it went away
        if queued and trio.current_time() - began_s < GONE_S:
            self._upload_due_s -= queued / self._upload_bytes_s  # nobody should wait for it
        await stream.reset()
        return False

    @asynccontextmanager
    async def _turn(self, peer: PeerId, size: int) -> AsyncIterator[None]:
        """Large replies to one peer go one after the other: it looks at the first meanwhile.

        Side by side they would all be there at once, and each side would wait for the other.
        """
        if size <= LARGE_BYTES:
            yield
            return
        lock = self._turns.setdefault(peer, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._turns.pop(peer, None)

    def _upload_queue_s(self) -> float:
        return max(0.0, self._upload_due_s - trio.current_time())

    def _queue_upload(self, size: int, limits: ServeLimits) -> float:
        """When a reply may be written, by the upload rate; small ones (status, light) never wait.

        Refused where it would come too late. With nothing before it, none does: else what takes
        longer than that at our rate were never given.
        """
        if not self._upload_bytes_s or size <= LARGE_BYTES:
            return -math.inf
        queue_s, takes_s = self._upload_queue_s(), size / self._upload_bytes_s
        if queue_s and queue_s + takes_s > UPLOAD_QUEUE_MAX * limits.timeout_s:
            raise Refused(Code.BUSY, math.ceil(queue_s * 1_000))
        begins_s = trio.current_time() + queue_s
        self._upload_due_s = begins_s + takes_s
        return begins_s
