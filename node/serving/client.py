"""The daemon's half of an engine: streams, calls, and what happens when the worker is lost.

Why the same for a process and a thread: only the link differs. A loss ends streams that have
shown tokens (`engine_lost`, with the evidence held here); those without one are asked again once,
on the next worker; a request that lived through two losses is refused as poison. Restarts wait
1, 2, 4 … 60 s; five losses in ten minutes and the engine is down (page 50 §7). A worker that a
GPU's memory did not do for is followed by one of half the rows.
What this file does not know: sockets, torch, receipts.
"""

import dataclasses
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, Protocol

import trio

from node.observe import get_log
from node.serving import frames
from node.serving.engine import (
    AdapterInfo,
    AdapterRef,
    Ending,
    EngineInfo,
    EngineLost,
    EngineSettings,
    EngineStats,
    Finish,
    GenRequest,
    GradItem,
    OutOfMemory,
    Overloaded,
    Score,
    ScoreItem,
    Sketch,
    State,
    Stream,
    TaskStatus,
    Token,
    logprob_bytes,
)

START_S: Final = 180.0
STALL_S: Final = 60.0
LOOK_S: Final = 1.0
BACKOFF_S_MAX: Final = 60
LOSSES_MAX: Final = 5
LOSS_WINDOW_S: Final = 600.0
RESUBMITS_MAX: Final = 1
CALLS_MAX: Final = 4_096
FETCHES_MAX: Final = 4  # adapters at once
FETCH_S: Final = 600.0

log = get_log("engine")

Fetch = Callable[[bytes], Awaitable[str]]  # an adapter's hash → its folder; or FetchFailed
Frame = frames.ToWorker | frames.FromWorker


class LinkLost(Exception):
    """The worker is gone, silent, or speaks garbage."""


class FetchFailed(Exception):
    """Nobody has the adapter, or not whole; its text says why."""


class Link(Protocol):
    """A way to one worker. Leaving its context ends the worker."""

    def send(self, frame: frames.ToWorker) -> None:
        """Queue a frame; never waits."""
        ...

    async def receive(self) -> frames.FromWorker:
        """The next frame; raises LinkLost."""
        ...

    def kill(self) -> None:
        """End the worker now."""
        ...


class _Stream:
    """One request's events; buffers all it can ever get, so nobody waits for a reader."""

    def __init__(self, request: GenRequest, send: Callable[[frames.ToWorker], None]) -> None:
        self.request = request
        self.tokens: list[Token] = []
        self.losses = 0
        self.is_ended = False
        self._send_frame = send
        room = request.sampling.n * request.sampling.max_tokens + 1
        self._events, self._receive = trio.open_memory_channel[Token | Finish](room)
        self._is_read = False

    def push(self, event: Token | Finish) -> None:
        if self.is_ended:
            return
        if isinstance(event, Token):
            self.tokens.append(event)
        else:
            self.is_ended = True
        self._events.send_nowait(event)

    def lose(self) -> None:
        """End with what was delivered."""
        count = self.request.sampling.n
        endings = []
        for choice in range(count):
            mine = [token for token in self.tokens if token.choice == choice]
            logprobs = b"".join(logprob_bytes(token.logprob) for token in mine)
            prints = b"".join(token.fingerprint for token in mine)
            endings.append(Ending("engine_lost", len(mine), b"", logprobs, prints))
        self.push(Finish(len(self.request.prompt), tuple(endings)))

    def reveal(self, seed: bytes) -> None:
        """Give the seed; kept for a second worker, should this one be lost."""
        self.request = dataclasses.replace(self.request, seed=seed)
        if not self.is_ended:
            self._send_frame(frames.Reveal(self.request.id, seed))

    def __aiter__(self) -> AsyncIterator[Token | Finish]:
        return self

    async def __anext__(self) -> Token | Finish:
        if self._is_read:
            raise StopAsyncIteration
        event = await self._receive.receive()
        self._is_read = isinstance(event, Finish)
        return event


class _Call:
    """A question that has one answer; asked again once when the worker is lost."""

    def __init__(self, frame: frames.ToWorker) -> None:
        self.frame = frame
        self.losses = 0
        self.done = trio.Event()
        self.answer: frames.FromWorker | EngineLost | None = None

    def settle(self, answer: "frames.FromWorker | EngineLost") -> None:
        self.answer = answer
        self.done.set()


class EngineClient:
    """An Engine over a link. Start `run` in a nursery; it reports the first readiness.

    `fetch` gets an adapter's files anew, where those that the worker was told of are gone.
    """

    def __init__(
        self,
        settings: EngineSettings,
        open_link: Callable[[], AbstractAsyncContextManager[Link]],
        stall_s: float = STALL_S,
        fetch: Fetch | None = None,
    ) -> None:
        self.settings = dataclasses.replace(settings, can_fetch=fetch is not None)
        self._fetch = fetch
        self._fetching = trio.CapacityLimiter(FETCHES_MAX)
        self.state: State = "starting"
        self._open_link = open_link
        self._stall_s = stall_s
        self._info: EngineInfo | None = None
        self._link: Link | None = None
        self._streams: dict[bytes, _Stream] = {}
        self._calls: dict[int, _Call] = {}
        self._next_call = 1
        self._asked_again: dict[int, bytes] = {}  # call → stream that is admitted a second time
        self._refs: dict[bytes, tuple[AdapterRef, bool]] = {}
        self._stats = EngineStats()
        self._lost_streams = 0
        self._heard = 0.0
        self._restarts = 0
        self._losses: deque[float] = deque()
        self._ready = trio.Event()  # a new one after each loss
        self._closed = trio.Event()
        self._closing = False

    # --- the Engine protocol

    @property
    def info(self) -> EngineInfo:
        """What this engine is; known once `run` has reported."""
        assert self._info is not None, "ask after the start"
        return self._info

    async def load_adapter(self, ref: AdapterRef, pin: bool = False) -> AdapterInfo:
        """Read, check and keep an adapter, also in workers to come."""
        answer = await self._ask(lambda call: frames.Load(call, ref, pin))
        assert isinstance(answer, frames.Loaded)
        self._refs[ref.hash] = ref, pin
        return answer.info

    def register(self, ref: AdapterRef) -> None:
        """Know an adapter that was checked elsewhere: it is read when it is first wanted."""
        self._refs[ref.hash] = ref, False
        self._send_if_linked(frames.Register(ref))

    def forget(self, adapter: bytes) -> None:
        """Workers to come need not know it."""
        self._refs.pop(adapter, None)

    async def unload_adapter(self, adapter: bytes, drain: bool = False) -> None:
        """Forget an adapter."""
        await self._ask(lambda call: frames.Unload(call, adapter, drain))
        self._refs.pop(adapter, None)

    async def adapters(self) -> list[AdapterInfo]:
        """Every adapter that the worker knows."""
        answer = await self._ask(frames.List)
        assert isinstance(answer, frames.Listed)
        return list(answer.infos)

    @asynccontextmanager
    async def submit(self, request: GenRequest) -> AsyncIterator[Stream]:
        """Queue a request; leaving the context cancels what is left of it."""
        stream = _Stream(request, self._send_if_linked)
        assert request.id not in self._streams, "an id names one request"
        self._streams[request.id] = stream
        try:
            await self._ask(lambda call: frames.Submit(call, stream.request))
            yield stream
        finally:
            del self._streams[request.id]
            if not stream.is_ended:
                self._send_if_linked(frames.Cancel(request.id))

    async def gradients(self, items: Sequence[GradItem]) -> list[Sketch]:
        """The sketches of answers, in order."""
        if not items:
            return []
        answer = await self._ask(lambda call: frames.Gradients(call, tuple(items)))
        assert isinstance(answer, frames.Sketched)
        return list(answer.sketches)

    async def score(self, items: Sequence[ScoreItem]) -> list[Score]:
        """Others' answers run again, in order."""
        if not items:
            return []
        answer = await self._ask(lambda call: frames.Scores(call, tuple(items)))
        assert isinstance(answer, frames.Scored)
        return list(answer.scores)

    def stats(self) -> EngineStats:
        """The newest counters, since its worker's start; how often one was replaced, and how many
        streams were lost, since ours."""
        endings = {**self._stats.endings, "engine_lost": self._lost_streams}
        return dataclasses.replace(self._stats, restarts=self._restarts, endings=endings)

    async def wait_ready(self) -> None:
        """Until a worker serves; for ever when the engine is down: give it a deadline."""
        await self._ready.wait()

    async def aclose(self, drain_s: float = 10.0) -> None:
        """Stop: live streams get up to `drain_s` to end; then the worker ends, and `run`."""
        self._closing = True
        link = self._link
        if link is None:
            self.state = "closed"
            return
        self._send_if_linked(frames.Close(int(drain_s * 1_000)))
        with trio.move_on_after(drain_s + LOOK_S):
            await self._closed.wait()
        link.kill()

    # --- calls

    async def _ask(self, make: Callable[[int], frames.ToWorker]) -> frames.FromWorker:
        if self._link is None:
            raise EngineLost(state=self.state)
        if len(self._calls) >= CALLS_MAX:
            raise Overloaded(retry_after_s=1)
        number, self._next_call = self._next_call, self._next_call + 1
        call = self._calls[number] = _Call(make(number))
        try:
            self._link.send(call.frame)
            await call.done.wait()
        finally:
            del self._calls[number]
        if isinstance(call.answer, frames.Failed):
            raise frames.error_of(call.answer)
        if isinstance(call.answer, EngineLost):
            raise call.answer
        assert call.answer is not None
        return call.answer

    def _send_if_linked(self, frame: frames.ToWorker) -> None:
        if self._link is not None:
            self._link.send(frame)

    # --- the worker's life

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a worker alive until `aclose`; if the first start fails, raises its reason."""
        told = False

        def ready() -> None:
            nonlocal told
            if not told:
                told = True
                task_status.started()

        try:
            while not self._closing:
                try:
                    async with self._open_link() as link:
                        await self._serve(link, ready)
                except LinkLost:
                    self._link = None
                if self._closing:
                    break
                if not await self._recover():
                    self.state = "down"
                    await trio.sleep_forever()
        finally:
            self._link = None
            self._give_up()
            self.state = "closed"
            self._closed.set()

    async def _recover(self) -> bool:
        """After a loss: end or keep what lived, then wait. False when the engine is down."""
        self._restarts += 1
        self.state = "restarting"
        self._ready = trio.Event()
        now = trio.current_time()
        self._losses.append(now)
        while self._losses[0] < now - LOSS_WINDOW_S:
            self._losses.popleft()
        self._lose_all()
        if len(self._losses) >= LOSSES_MAX:
            self._give_up()
            return False
        await trio.sleep(min(2 ** (len(self._losses) - 1), BACKOFF_S_MAX))
        return True

    def _lose_all(self) -> None:
        for stream in self._streams.values():
            stream.losses += 1
            deadline = stream.request.deadline_ms
            late = 0 < deadline <= time.time_ns() // 1_000_000
            if stream.tokens or stream.losses > RESUBMITS_MAX or late:
                self._lose(stream)
        for call in self._calls.values():
            call.losses += 1
            if call.losses > RESUBMITS_MAX:
                call.settle(EngineLost(losses=call.losses))

    def _lose(self, stream: _Stream) -> None:
        self._lost_streams += not stream.is_ended
        stream.lose()

    def _give_up(self) -> None:
        for stream in self._streams.values():
            self._lose(stream)
        for call in self._calls.values():
            call.settle(EngineLost(state="down"))

    async def _serve(self, link: Link, ready: Callable[[], None]) -> None:
        """One worker's life; raises LinkLost at its end, or the error of its start."""
        link.send(frames.Hello(self.settings))
        first: frames.FromWorker | None = None
        with trio.move_on_after(START_S):
            first = await link.receive()
        if isinstance(first, frames.Failed) and self._info is None:
            raise frames.error_of(first)
        if not isinstance(first, frames.Ready):
            if isinstance(first, frames.Failed):
                self._note_failed(first)
            raise LinkLost("no sign of life")
        if self._closing:
            raise LinkLost("closed while it started")
        self._info = first.info
        self._link = link
        self._ask_again(link)
        self._heard = trio.current_time()
        lost: LinkLost | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, link)
            try:
                while True:
                    frame = await link.receive()
                    self._heard = trio.current_time()
                    if isinstance(frame, frames.Wanted):
                        nursery.start_soon(self._fetch_for, link, frame.adapter)
                    self._take(frame)
                    if isinstance(frame, frames.Stats) and self.state != "ready":
                        self.state = "ready"
                        self._ready.set()
                        ready()
            except LinkLost as error:  # caught inside: a nursery would wrap it in a group
                lost = error
            nursery.cancel_scope.cancel()
        assert lost is not None
        raise lost

    def _note_failed(self, failed: frames.Failed) -> None:
        """A worker whose device had no memory left says so; the next has half of its rows."""
        if failed.code != OutOfMemory.code:
            return
        rows = max(1, min(self.settings.rows or self.info.rows, self.info.rows) // 2)
        log.warning("out of memory: rows are halved", device=self.info.device, rows=rows)
        self.settings = dataclasses.replace(self.settings, rows=rows)

    def _ask_again(self, link: Link) -> None:
        """Adapters first, then calls, then streams that had shown nothing."""
        for ref, pin in self._refs.values():
            link.send(frames.Load(0, ref, pin) if pin else frames.Register(ref))
        waiting = set()
        for call in self._calls.values():
            frame = call.frame
            if isinstance(frame, frames.Submit):
                waiting.add(frame.request.id)
                stream = self._streams.get(frame.request.id)
                if stream is not None:  # with the seed, if it came meanwhile
                    frame = frames.Submit(frame.call, stream.request)
            link.send(frame)
        self._asked_again.clear()
        for id, stream in self._streams.items():
            if id not in waiting and not stream.is_ended:
                number, self._next_call = self._next_call, self._next_call + 1
                self._asked_again[number] = id
                link.send(frames.Submit(number, stream.request))

    async def _fetch_for(self, link: Link, adapter: bytes) -> None:
        """Get an adapter's files and tell the worker, so or so."""
        assert self._fetch is not None, "its settings say so"
        try:
            async with self._fetching:
                with trio.fail_after(FETCH_S):
                    folder = await self._fetch(adapter)
        except (FetchFailed, trio.TooSlowError) as error:
            link.send(frames.Missing(adapter, str(error) or "took too long"))
            return
        ref = AdapterRef(adapter, folder)
        if adapter in self._refs:
            self._refs[adapter] = ref, self._refs[adapter][1]
        link.send(frames.Found(ref))

    async def _watch(self, link: Link) -> None:
        """Kill a worker that is silent while something lives."""
        while True:
            await trio.sleep(LOOK_S)
            busy = self._calls or any(not s.is_ended for s in self._streams.values())
            now = trio.current_time()
            if not busy:  # it owes us nothing: silence counts from the next request on
                self._heard = now
            elif now - self._heard > self._stall_s:
                link.kill()

    def _take(self, frame: frames.FromWorker) -> None:
        match frame:
            case frames.Tokens(batch):
                for id, token in batch:
                    if stream := self._streams.get(id):
                        stream.push(token)
            case frames.Finished(id, finish):
                if stream := self._streams.get(id):
                    stream.push(finish)
            case frames.Stats(stats):
                self._stats = stats
            case (
                frames.Done(number)
                | frames.Loaded(number)
                | frames.Listed(number)
                | frames.Sketched(number)
                | frames.Scored(number)
            ):
                if call := self._calls.get(number):
                    call.settle(frame)
            case frames.Failed(0):
                self._note_failed(frame)
            case frames.Failed(number):
                if call := self._calls.get(number):
                    call.settle(frame)
                elif stream := self._streams.get(self._asked_again.get(number, b"")):
                    self._lose(stream)  # refused on the second worker: no token was shown
            case frames.Wanted():
                pass  # `_serve` has a task fetch it
            case frames.Ready():
                raise LinkLost("ready twice")
