"""The inference worker: a child process (or a thread) around one SlotCore.

Why a child: a CUDA fault, an out-of-memory kill or a busy interpreter lock must never stop
consensus. It is spawned, speaks frames over a socketpair, dies with its parent, and is the first
that the kernel kills. The thread is for tests and `--embedded`: same loop, same frames.
What this file does not know: requests' meaning, models, payers.
"""

import contextlib
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import trio

from node.serving import frames
from node.serving.client import STALL_S, EngineClient, Fetch, Link, LinkLost
from node.serving.engine import (
    EngineError,
    EngineSettings,
    Finish,
    OutOfMemory,
    Score,
    Sketch,
    Token,
)

if TYPE_CHECKING:
    from node.serving.slots import SlotCore

    Inbox = queue.SimpleQueue[frames.ToWorker | Literal["woken"] | None]

STATS_S: Final = 0.5
IDLE_S: Final = 0.05  # how often deadlines are looked at while nothing can move
OUT_FRAMES_MAX: Final = 8_192
READ_BYTES: Final = 65_536
EXIT_S: Final = 5.0
_PR_SET_PDEATHSIG: Final = 1
_SIGKILL: Final = 9
_OOM_SCORE: Final = "500"

WOKEN: Final = "woken"  # beside frames in a worker's inbox: an adapter was read

MakeCore = Callable[[EngineSettings], "SlotCore"]


# --- the worker's side: one thread owns the core


class Loop:
    """Frames in, steps, frames out. `inbox` gives frames, and None when the parent is gone."""

    def __init__(
        self,
        core: "SlotCore",
        inbox: "Inbox",
        emit: Callable[[frames.FromWorker], None],
    ) -> None:
        self._core, self._inbox, self._emit = core, inbox, emit
        core.tiers.call_when_read(lambda: inbox.put(WOKEN))
        self._calls: dict[int, list[Sketch | Score | None]] = {}  # filled place by place
        self._close_at: float | None = None
        self._told_at = 0.0
        self._is_over = False

    def run(self) -> None:
        """Until the parent is gone, or told to close and drained."""
        self._tell(force=True)
        moves = False
        while not self._is_over:
            self._listen(wait_s=0.0 if moves else IDLE_S if self._core.has_work else STATS_S)
            moves = False
            if self._core.has_work:
                events = self._core.step()
                self._send_settled()
                self._send_events(events)
                self._send_made()
                moves = self._core.made_progress
            else:
                self._core.poll()
                self._send_settled()
            self._tell()
            drained = not self._core.has_work
            if self._close_at is not None and (drained or time.monotonic() >= self._close_at):
                self._is_over = True

    def _listen(self, wait_s: float) -> None:
        """Take what has come; wait for the first only if a step could not move anything."""
        try:
            frame = self._inbox.get(timeout=wait_s) if wait_s else self._inbox.get_nowait()
            while True:
                if frame is None:
                    self._is_over = True
                    return
                if not isinstance(frame, str):
                    self._take(frame)
                frame = self._inbox.get_nowait()
        except queue.Empty:
            return

    def _take(self, frame: frames.ToWorker) -> None:
        core = self._core
        match frame:
            case frames.Load(call, ref, pin):
                self._answer(call, lambda: core.tiers.begin_load(call, ref, pin))
            case frames.Register(ref):
                core.register(ref)
            case frames.Unload(call, adapter, drain):
                self._answer(call, lambda: core.unload(adapter, drain), frames.Done(call))
            case frames.List(call):
                self._answer(call, lambda: frames.Listed(call, tuple(core.adapters())))
            case frames.Submit(call, request):
                self._answer(
                    call, lambda: frames.Done(call) if core.submit(request, call) else None
                )
            case frames.Found(ref):
                core.tiers.bank.found(ref)
            case frames.Missing(adapter, why):
                core.tiers.bank.missing(adapter, why)
            case frames.Reveal(id, seed):
                core.reveal(id, seed)
            case frames.Cancel(id):
                self._send_events(core.cancel(id))
            case frames.Gradients(call, items):
                self._begin(call, len(items), lambda: core.add_gradients(call, items))
            case frames.Scores(call, answers):
                self._begin(call, len(answers), lambda: core.add_scores(call, answers))
            case frames.Close(drain_ms):
                self._close_at = time.monotonic() + drain_ms / 1_000
            case frames.Hello():
                self._is_over = True  # a second start: the parent is confused

    def _begin(self, call: int, count: int, ask: Callable[[], None]) -> None:
        """A call whose answer is made in the background."""
        self._calls[call] = [None] * count
        if not self._answer(call, ask):
            del self._calls[call]

    def _answer(
        self,
        call: int,
        ask: Callable[[], frames.FromWorker | None],
        done: frames.FromWorker | None = None,
    ) -> bool:
        """Emit what `ask` gives, or `done`, or its refusal; False when it was refused."""
        try:
            frame = ask() or done
        except EngineError as error:
            self._emit(frames.failure(call, error))
            return False
        if frame is not None:
            self._emit(frame)
        return True

    def _send_events(self, events: list[tuple[bytes, Token | Finish]]) -> None:
        """One frame for all tokens of a step; an end follows its last token."""
        tokens = tuple((id, event) for id, event in events if isinstance(event, Token))
        if tokens:
            self._emit(frames.Tokens(tokens))
        for id, event in events:
            if isinstance(event, Finish):
                self._emit(frames.Finished(id, event))

    def _send_made(self) -> None:
        for call, place, one in self._core.made():
            if isinstance(one, EngineError):
                del self._calls[call]
                self._emit(frames.failure(call, one))
                continue
            made = self._calls[call]
            made[place] = one
            if all(made):
                del self._calls[call]
                self._emit(_answer_of(call, made))

    def _send_settled(self) -> None:
        """Calls that waited for an adapter, and what the daemon is to fetch for them."""
        for call, came in self._core.settled():
            if isinstance(came, EngineError):
                self._emit(frames.failure(call, came))
            else:
                self._emit(frames.Done(call) if came is None else frames.Loaded(call, came))
        for adapter in self._core.tiers.bank.wanted():
            self._emit(frames.Wanted(adapter))

    def _tell(self, force: bool = False) -> None:
        now = time.monotonic()
        if force or now - self._told_at >= STATS_S:
            self._told_at = now
            self._emit(frames.Stats(self._core.stats()))


def _answer_of(call: int, made: Sequence[Sketch | Score | None]) -> frames.FromWorker:
    """What one call has made: all of one kind."""
    scores = tuple(one for one in made if isinstance(one, Score))
    if scores:
        return frames.Scored(call, scores)
    return frames.Sketched(call, tuple(one for one in made if isinstance(one, Sketch)))


def make_core(settings: EngineSettings) -> "SlotCore":
    """Threads set, model loaded; imports torch. Raises OutOfMemory, beside what SlotCore does."""
    import torch

    from node.serving.model import use_threads
    from node.serving.slots import SlotCore

    use_threads(settings.threads)
    try:
        return SlotCore(settings)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(device=settings.device, rows=settings.rows) from error


def _start(
    frame: "frames.ToWorker | str | None", make: MakeCore, emit: Callable[[frames.FromWorker], None]
) -> "SlotCore | None":
    """The core that the first frame asks for, told by Ready; or None, told by Failed."""
    if not isinstance(frame, frames.Hello):
        return None
    try:
        core = make(frame.settings)
    except (EngineError, OSError, ValueError, RuntimeError) as error:  # torch's are RuntimeErrors
        known = error if isinstance(error, EngineError) else EngineError(why=str(error))
        emit(frames.failure(0, known))
        return None
    emit(frames.Ready(core.info))
    return core


def _work(inbox: "Inbox", make: MakeCore, emit: Callable[[frames.FromWorker], None]) -> None:
    """A worker's whole life. A GPU's memory that does not do is told at its end: the next worker
    is to ask for less."""
    core = _start(inbox.get(), make, emit)
    if core is None:
        return
    try:
        Loop(core, inbox, emit).run()
    except OutOfMemory as error:
        emit(frames.failure(0, error))


def main() -> None:
    """The child process: `argv[1]` is the number of its socket."""
    _die_with_parent()
    link = socket.socket(fileno=int(sys.argv[1]))
    inbox: Inbox = queue.SimpleQueue()
    threading.Thread(target=_read_frames, args=(link, inbox), daemon=True).start()

    def emit(frame: frames.FromWorker) -> None:
        link.sendall(frames.encode_frame(frame))

    with contextlib.suppress(OSError):  # the parent closed the socket
        _work(inbox, make_core, emit)
    # Not an orderly exit: nothing of this process is worth waiting for.
    os._exit(0)


def _read_frames(link: socket.socket, inbox: "Inbox") -> None:
    try:
        with link.makefile("rb") as stream:
            while head := stream.read(frames.LENGTH_BYTES):
                body = stream.read(frames.body_length(head))
                inbox.put(frames.decode_to_worker(body))
    except (OSError, ValueError, frames.BadFrame):
        pass  # the parent is gone, or speaks garbage: the same to us
    inbox.put(None)


def _die_with_parent() -> None:
    """Killed when the spawning thread ends, and killed first when memory runs out."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    with contextlib.suppress(OSError):  # a sandbox may forbid it; we still end with our parent
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)


# --- the daemon's side: links


class _ProcessLink:
    def __init__(self, process: "subprocess.Popen[bytes]", stream: trio.SocketStream) -> None:
        self._process, self._stream = process, stream
        self._out, self._queued = trio.open_memory_channel[frames.ToWorker](OUT_FRAMES_MAX)
        self._buffer = bytearray()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, frame: frames.ToWorker) -> None:
        try:
            self._out.send_nowait(frame)
        except trio.WouldBlock:  # it has not read for thousands of frames
            self.kill()

    async def write(self) -> None:
        """Hand queued frames on until the worker is gone."""
        async for frame in self._queued:
            try:
                await self._stream.send_all(frames.encode_frame(frame))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # `receive` tells

    async def receive(self) -> frames.FromWorker:
        try:
            head = await self._exactly(frames.LENGTH_BYTES)
            return frames.decode_from_worker(await self._exactly(frames.body_length(head)))
        except (trio.BrokenResourceError, trio.ClosedResourceError, frames.BadFrame) as error:
            raise LinkLost(str(error)) from None

    async def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            data = await self._stream.receive_some(READ_BYTES)
            if not data:
                raise trio.BrokenResourceError("end of file")
            self._buffer += data
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()


def _spawn(threads: int) -> "tuple[subprocess.Popen[bytes], socket.socket]":
    """The child and our end of its socket.

    Spawned here, in the thread of the event loop: the death signal follows that thread's life.
    """
    ours, theirs = socket.socketpair()
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    count = str(threads or max(1, (os.cpu_count() or 2) - 1))
    command = "from node.serving.worker import main; main()"
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", command, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": count},
            start_new_session=True,  # a Ctrl-C is for the daemon, which then drains
        )
    return process, ours


@asynccontextmanager
async def _open_process(settings: EngineSettings) -> AsyncIterator[Link]:
    process, ours = _spawn(settings.threads)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    link = _ProcessLink(process, stream)
    lost: LinkLost | EngineError | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.write)
            try:
                yield link
            except (LinkLost, EngineError) as error:  # caught inside: a nursery wraps in groups
                lost = error
            nursery.cancel_scope.cancel()
    finally:
        link.kill()
        # Killed, it may still take seconds to give back its memory, or a GPU: blocks go on. A
        # cancel has to wait as well, or the next worker would find that memory taken.
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(process.wait)
            await trio.aclose_forcefully(stream)
    if lost is not None:
        raise lost


class WorkerEngine(EngineClient):
    """The daemon's default: the engine in a child process."""

    def __init__(
        self, settings: EngineSettings, fetch: Fetch | None = None, stall_s: float = STALL_S
    ) -> None:
        def open_link() -> AbstractAsyncContextManager[Link]:
            return _open_process(settings)

        super().__init__(settings, open_link, stall_s, fetch)


class _ThreadLink:
    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self.inbox: Inbox = queue.SimpleQueue()
        self._token = token
        self._in, self._out = trio.open_memory_channel[frames.FromWorker](OUT_FRAMES_MAX)

    def send(self, frame: frames.ToWorker) -> None:
        self.inbox.put(frame)

    async def receive(self) -> frames.FromWorker:
        try:
            return await self._out.receive()
        except trio.EndOfChannel:
            raise LinkLost("the thread has ended") from None

    def kill(self) -> None:
        self.inbox.put(None)

    def emit(self, frame: frames.FromWorker) -> None:
        """From the engine's thread."""
        self._token.run_sync_soon(self._deliver, frame)

    def _deliver(self, frame: frames.FromWorker) -> None:
        try:
            self._in.send_nowait(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # nobody listens any more
        except trio.WouldBlock:
            self._in.close()  # thousands unread: as good as lost

    def end(self) -> None:
        """From the engine's thread: nothing follows."""
        self._token.run_sync_soon(self._in.close)

    def work(self, make: MakeCore) -> None:
        """The thread's whole life; what it raises is raised by the engine's `run`."""
        try:
            _work(self.inbox, make, self.emit)
        finally:
            self.end()


@asynccontextmanager
async def _open_thread(make: MakeCore) -> AsyncIterator[Link]:
    link = _ThreadLink(trio.lowlevel.current_trio_token())
    lost: LinkLost | EngineError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, link.work, make)
        try:
            yield link
        except (LinkLost, EngineError) as error:
            lost = error
        finally:
            link.kill()
    if lost is not None:
        raise lost


class ThreadEngine(EngineClient):
    """For tests and `--embedded`: the same loop in a thread of this process."""

    def __init__(
        self,
        settings: EngineSettings,
        fetch: Fetch | None = None,
        make: MakeCore = make_core,
        stall_s: float = STALL_S,
    ) -> None:
        def open_link() -> AbstractAsyncContextManager[Link]:
            return _open_thread(make)

        super().__init__(settings, open_link, stall_s, fetch)
