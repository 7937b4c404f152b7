"""The stream of one request: frames in by queue, frames out until the payer is gone.

Why a queue: what the payer says and what the engine makes are told in one order. Why a payer that
is gone is no error: what it had is billed all the same.
What this file does not know: what a frame means.
"""

from typing import Final, Protocol

import trio

from node.ledger.wire import exchange
from node.ledger.wire.exchange import Alive, Cancel, Reveal, Start, Tick
from node.serving.engine import Finish, Token

WRITE_S: Final = 5.0


class FrameStream(Protocol):
    """What we need of a duplex stream; its own errors are given to the service by class."""

    async def read(self, bytes_max: int, timeout_s: float) -> bytes: ...
    async def write(self, body: bytes, timeout_s: float) -> None: ...
    async def close(self) -> None: ...


PayerFrame = Start | Tick | Reveal | Cancel


class Lost:
    """The payer's side of the stream is gone."""


Event = Tick | Reveal | Cancel | Start | Lost | Token | Finish


class Line:
    """A stream as its one request sees it; the reader of the stream feeds `receive`."""

    def __init__(
        self,
        stream: FrameStream,
        receive: "trio.MemoryReceiveChannel[Event]",
        errors: tuple[type[Exception], ...],
    ) -> None:
        self._stream = stream
        self._receive = receive
        self._errors = errors
        self._is_lost = False
        self._held: list[Event] = []
        self.start: PayerFrame | None = None

    async def next(self, timeout_s: float) -> PayerFrame | None:
        """The payer's next frame; None when it is gone or silent for so long."""
        if self._is_lost and not self._held:
            event = self.next_nowait()  # nothing more can come: no time to lose
        else:
            event = await self.next_event(timeout_s)
        if event is None or isinstance(event, (Lost, Token, Finish)):
            return None
        if self.start is None:
            self.start = event
        return event

    async def next_event(self, timeout_s: float) -> Event | None:
        """The next thing that happens, from payer or engine; None after `timeout_s`."""
        if self._held:
            return self._held.pop(0)
        event: Event | None = None
        with trio.move_on_after(max(0.0, timeout_s)):
            event = await self._receive.receive()
        self._is_lost = self._is_lost or isinstance(event, Lost)
        return event

    def next_nowait(self) -> Event | None:
        """What has happened already, if anything."""
        try:
            event = self._receive.receive_nowait()
        except trio.WouldBlock:
            return None
        self._is_lost = self._is_lost or isinstance(event, Lost)
        return event

    def put_back(self, event: Event) -> None:
        """Have `next_event` give this one first."""
        self._held.append(event)

    async def write(self, frame: exchange.Frame) -> bool:
        """Send a frame; False once the payer is gone."""
        if self._is_lost:
            return False
        try:
            await self._stream.write(exchange.encode_frame(frame), WRITE_S)
        except self._errors:
            self._is_lost = True
        return not self._is_lost

    async def stay_alive(self) -> None:
        """Say so every two seconds, until cancelled. Cancels hit the wait, not the write."""
        while True:
            await trio.sleep(exchange.ALIVE_EVERY_S)
            with trio.CancelScope(shield=True):
                await self.write(Alive())

    async def wait_end(self, timeout_s: float) -> None:
        """Close our side, and let the payer close its own: a reset would drop what we sent."""
        await self._stream.close()
        with trio.move_on_after(timeout_s):
            while not self._is_lost:
                self._is_lost = isinstance(await self._receive.receive(), Lost)
