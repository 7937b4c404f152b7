"""Our frames on the library's streams: whole, in time, or the stream is reset.

Why a frame once begun has a time of its own: a stream may wait for the next one for ever, and half
a one, or half its length, would wait with it. Why every error is one of ours: whatever the library
raises, the stream is gone.
What this file does not know: what is in a frame, who may open a stream.
"""

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from libp2p.network.stream.exceptions import StreamEOF

from p2p.bulk import credit_frame, take
from p2p.errors import EndOfStream, Misbehaving, NetworkError, TooSlow, Unreachable
from p2p.framing import LENGTH_BYTES, frame, frame_head, frame_length
from p2p.guard import reset_stream
from p2p.limits import CLOSE_S, COPIED_BYTES_MAX, FRAME_BODY_S, FRAME_BYTES_S_MIN, STREAM_READ_BYTES


class Libp2pFrameStream:
    """A FrameStream over one libp2p stream; any error of the library is `Unreachable`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._held = bytearray()
        self._is_reset = False
        self._has_read = False  # a whole frame
        self.has_stalled = self.has_broken_rules = False

    async def read(self, bytes_max: int, timeout_s: float) -> bytes:
        is_whole = has_begun = False
        try:
            with trio.fail_after(timeout_s):
                if not self._held:
                    await self._hold_more()
                has_begun = True
                with trio.fail_after(FRAME_BODY_S):
                    length = frame_length(await self._read_length(), bytes_max)
                missing = length - len(self._held)
                if missing <= 0:
                    body = bytes(self._held[:length])
                    del self._held[:length]
                    await trio.lowlevel.checkpoint()  # many small frames must not starve others
                else:
                    with trio.fail_after(FRAME_BODY_S + length / FRAME_BYTES_S_MIN):
                        rest = await self._read_rest(missing)
                    body = bytes(self._held) + rest
                    self._held.clear()
            is_whole = self._has_read = True
            return body
        except Misbehaving:
            self.has_broken_rules = True
            raise
        except trio.TooSlowError:
            self.has_stalled = has_begun
            raise TooSlow("no whole frame in time") from None
        except trio.Cancelled:
            self.has_stalled = has_begun and not self._has_read
            raise
        finally:
            if not is_whole:
                await self.reset()

    async def _hold_more(self) -> None:
        part = await self._take(self._stream.read, STREAM_READ_BYTES)
        if not part:
            raise self._cut_off() if self._held else EndOfStream("closed by the peer")
        self._held += part

    async def _read_length(self) -> bytes:
        while len(self._held) < LENGTH_BYTES:
            await self._hold_more()
        head = bytes(self._held[:LENGTH_BYTES])
        del self._held[:LENGTH_BYTES]
        return head

    async def _read_rest(self, missing: int) -> bytes:
        """What is missing of a frame: it is held here anyway, so all of it may come at once."""
        await self._take(credit_frame, self._stream.muxed_stream, missing)
        rest: bytes = await self._take(take, self._stream.muxed_stream, missing)
        if len(rest) < missing:
            raise self._cut_off()
        return rest

    def _cut_off(self) -> NetworkError:
        """Half a frame is the peer's fault only while its connection stands: it may have died."""
        if self._stream.muxed_stream.conn.event_shutting_down.is_set():
            return Unreachable("the connection broke inside a frame")
        return Misbehaving("the stream ended inside a frame")

    async def _take(self, read: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """What the library reads; b"" at the end of the stream."""
        if self._is_reset:
            raise Unreachable("the stream was reset")
        try:
            return await read(*arguments)
        except StreamEOF:
            return b""
        except Exception as error:  # noqa: BLE001  # whatever it raises, the stream is gone
            raise Unreachable(f"the stream broke: {error!r}") from None

    async def write(self, body: bytes, timeout_s: float) -> None:
        is_done = False
        try:
            with trio.fail_after(timeout_s):
                if self._is_reset:
                    raise Unreachable("the stream was reset")
                try:
                    for piece in _pieces(body):
                        await self._stream.write(piece)
                except Exception as error:  # noqa: BLE001  # whatever it raises, it is gone
                    raise Unreachable(f"the stream broke: {error!r}") from None
            is_done = True
        except trio.TooSlowError:
            raise TooSlow("not written in time") from None
        finally:
            if not is_done:
                await self.reset()

    async def close(self) -> None:
        if self._is_reset:
            return
        with trio.move_on_after(CLOSE_S):
            with contextlib.suppress(Exception):  # it is gone already
                await self._stream.close_write()

    async def reset(self) -> None:
        if not self._is_reset:
            self._is_reset = True
            await reset_stream(self._stream)


def _pieces(body: bytes) -> tuple[bytes, ...]:
    """A frame as it is written: a large body is not copied behind its length."""
    if len(body) < COPIED_BYTES_MAX:
        return (frame(body),)
    return frame_head(body), body
