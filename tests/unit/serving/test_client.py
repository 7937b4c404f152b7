"""A client's own life: closed while its first worker starts, it ends with that start; cancelled,
it leaves no process behind, and stops nothing else."""

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import structlog
import trio
import trio.testing

from node.serving import frames, worker
from node.serving.client import EngineClient, LinkLost
from node.serving.engine import (
    BadAdapter,
    EngineInfo,
    EngineSettings,
    EngineStats,
    OutOfMemory,
)
from node.serving.worker import WorkerEngine


class Starting:
    """A worker that loads its base until it is told that it has."""

    def __init__(self) -> None:
        self.has_loaded = trio.Event()
        self.is_ready = False

    def send(self, frame: frames.ToWorker) -> None:
        assert isinstance(frame, frames.Hello), "it serves nobody"

    async def receive(self) -> frames.FromWorker:
        await self.has_loaded.wait()
        if self.is_ready:
            await trio.sleep_forever()  # it would serve
        self.is_ready = True
        return frames.Ready(EngineInfo("torch", b"", "fp32", "cpu", 1, 1, 1, 1, (), b""))

    def kill(self) -> None:
        raise AssertionError("leaving the context does that")


async def test_closed_while_its_worker_starts_it_ends(autojump_clock) -> None:
    link, is_open = Starting(), False

    @asynccontextmanager
    async def opened() -> AsyncIterator[Starting]:
        nonlocal is_open
        is_open = True
        try:
            yield link
        finally:
            is_open = False

    engine = EngineClient(EngineSettings("base"), opened)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.run)
            await trio.testing.wait_all_tasks_blocked()
            await engine.aclose(0)
            link.has_loaded.set()
    assert (engine.state, is_open) == ("closed", False)


async def test_cancelled_engine_has_buried_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is free when the next one starts."""
    spawned: list[subprocess.Popen[bytes]] = []
    kept: list[socket.socket] = []  # closed, it would be a lost worker

    def spawn(threads: int) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair()
        kept.append(theirs)
        forever = [sys.executable, "-c", "import signal; signal.pause()"]
        spawned.append(subprocess.Popen(forever))
        return spawned[-1], ours

    monkeypatch.setattr(worker, "_spawn", spawn)
    engine = WorkerEngine(EngineSettings("base"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        while not spawned:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    kept[0].close()
    assert [one.returncode for one in spawned] == [-signal.SIGKILL]


class Small:
    """A worker on a GPU whose memory does for one row and no more."""

    def __init__(self) -> None:
        self.asked_rows = 0
        self._frames: list[frames.FromWorker] = []

    def send(self, frame: frames.ToWorker) -> None:
        assert isinstance(frame, frames.Hello)
        self.asked_rows = frame.settings.rows
        info = EngineInfo("torch", b"", "bf16", "cuda:0", self.asked_rows or 9, 1, 1, 1, (), b"")
        told = frames.failure(0, OutOfMemory(device="cuda:0", rows=info.rows))
        other = frames.failure(0, BadAdapter(key="r"))  # of one that was pinned
        ready = [frames.Ready(info), frames.Stats(EngineStats()), other]
        # The second has not even room to start.
        self._frames = [told] if info.rows == 4 else ready if info.rows == 1 else [*ready, told]

    async def receive(self) -> frames.FromWorker:
        if self._frames:
            return self._frames.pop(0)
        if self.asked_rows == 1:
            await trio.sleep_forever()
        raise LinkLost("end of file")

    def kill(self) -> None:
        raise AssertionError("leaving the context does that")


async def test_rows_are_halved_for_each_worker_that_ran_out_of_memory(autojump_clock) -> None:
    workers: list[Small] = []

    @asynccontextmanager
    async def opened() -> AsyncIterator[Small]:
        workers.append(Small())
        yield workers[-1]

    engine = EngineClient(EngineSettings("base", rows=0), opened)
    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            await nursery.start(engine.run)
            with trio.fail_after(60):
                while engine.state != "ready" or engine.info.rows > 1:  # noqa: ASYNC110
                    await trio.sleep(1)
            nursery.cancel_scope.cancel()
    assert [each.asked_rows for each in workers] == [0, 4, 2, 1]
    assert [(each["event"], each["rows"]) for each in logs] == [
        ("out of memory: rows are halved", rows) for rows in (4, 2, 1)
    ]


class Dying:
    """A process that ends only when the event loop has gone on."""

    def __init__(self) -> None:
        self.is_killed = False
        self.others_ran = threading.Event()
        self.has_ended: bool | None = None

    def poll(self) -> None:
        return None

    def kill(self) -> None:
        self.is_killed = True

    def wait(self) -> None:
        self.has_ended = self.others_ran.wait(timeout=5)


async def test_worker_that_ends_slowly_stops_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may take seconds to free what it held; no vote waits for that."""
    process = Dying()
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(worker, "_spawn", lambda threads: (process, ours))
    engine = WorkerEngine(EngineSettings("base"))

    async def live_on() -> None:
        while not process.is_killed:
            await trio.lowlevel.checkpoint()
        process.others_ran.set()

    async with trio.open_nursery() as others:
        others.start_soon(live_on)
        with trio.move_on_after(0.05):
            await engine.run()
    theirs.close()
    assert process.has_ended
