"""The devnet's daemons: real processes of `olnode start`, watched and restarted.

Why real processes: what is shown must be what an operator runs, and a `kill -9` must show a real
recovery. A child that dies is started again; one that dies too often ends the devnet with its
last lines of log, for a loop of crashes helps nobody. One that `olnode stop` ended was meant to.
What this file does not know: what the daemons are for.
"""

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from consensus.primitives.errors import Invalid
from node.config import socket_path
from node.web.ask import Node, Refusal, Unreachable

DEATHS_MAX: Final = 3
DEATHS_WINDOW_S: Final = 60.0
RESTART_PAUSE_S: Final = 0.5
STOP_S: Final = 20.0  # then SIGKILL
LOG_LINES: Final = 20
POLL_S: Final = 0.1
START_S: Final = 60.0
READ_S: Final = 30.0

MAIN: Final = "from node.cli.main import main; main()"

T = TypeVar("T")


class ChildFailed(Exception):
    """A daemon died too often, or never answered; `log` holds its last lines."""

    def __init__(self, name: str, why: str, log: str) -> None:
        super().__init__(f"{name}: {why}")
        self.log = log


@dataclass
class Child:
    """One daemon with its own home; `deaths` are the times of the ends nobody asked for."""

    name: str
    home: Path
    roles: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None
    stopping: bool = False
    restarts: int = 0
    deaths: deque[float] = field(default_factory=lambda: deque(maxlen=DEATHS_MAX))

    @property
    def node(self) -> Node:
        """Its admin socket."""
        return Node(socket_path(self.home), timeout_s=60.0)

    @property
    def log_path(self) -> Path:
        """Where its standard error goes."""
        return self.home / "log"

    def last_lines(self) -> str:
        """The end of its log."""
        if not self.log_path.exists():
            return ""
        lines = self.log_path.read_text("utf-8", "replace").splitlines()
        return "\n".join(lines[-LOG_LINES:])

    @property
    def command(self) -> list[str]:
        """`olnode start` on its home, by this very Python; ends when we do, also by SIGKILL."""
        main = f"from node.devnet.orphan import end_with; end_with({os.getpid()}); {MAIN}"
        return [sys.executable, "-P", "-c", main, "--home", str(self.home), "start"]

    def start(self) -> None:
        """Spawn it; its group of its own, so Ctrl-C reaches us alone."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def ask_to_stop(self) -> None:
        """SIGTERM: an orderly end."""
        self.stopping = True
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to its whole group; its engine, in a session of its own, dies with it."""
        self.stopping = True
        if self.process is not None and self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


async def watch(
    child: Child, *, on_restart: Callable[[Child], None], on_stop: Callable[[Child], None]
) -> None:
    """Restart `child` whenever it dies; ChildFailed after three deaths in a minute.

    An orderly end (status 0) is its operator's doing: it is left alone from then on.
    """
    while not child.stopping:
        await trio.sleep(POLL_S)
        if child.process is None or child.process.poll() is None or child.stopping:
            continue
        if child.process.returncode == 0:
            on_stop(child)
            return
        now = trio.current_time()
        child.deaths.append(now)
        if len(child.deaths) == DEATHS_MAX and now - child.deaths[0] < DEATHS_WINDOW_S:
            why = f"died {DEATHS_MAX} times in {DEATHS_WINDOW_S:.0f} s"
            raise ChildFailed(child.name, why, child.last_lines())
        await trio.sleep(RESTART_PAUSE_S)
        child.start()
        child.restarts += 1
        on_restart(child)


async def wait_answering(child: Child) -> None:
    """Until its socket answers; ChildFailed after START_S."""
    with trio.move_on_after(START_S):
        while True:
            with suppress(Unreachable, Refusal):
                await in_thread(lambda: child.node.get("/status"))
                return
            await trio.sleep(POLL_S)
    raise ChildFailed(child.name, f"did not answer within {START_S:.0f} s", child.last_lines())


async def read(child: Child, route: str) -> dict[str, Any]:
    """The JSON at `route`, as soon as there is any; Invalid after READ_S."""
    return await patiently(route, READ_S, lambda: in_thread(lambda: child.node.get(route)))


async def read_proof(child: Child, route: str) -> bytes:
    """The proof file at `route`, as soon as the node can make it; Invalid after READ_S."""
    return await patiently(route, READ_S, lambda: in_thread(lambda: child.node.get_bytes(route)))


async def in_thread(call: Callable[[], T]) -> T:
    """A blocking call to a node; a deadline or Ctrl-C leaves it to its own timeout, unheard."""
    run_sync: Any = trio.to_thread.run_sync  # libp2p brings old types for trio
    answer: T = await run_sync(call, abandon_on_cancel=True)
    return answer


async def patiently(what: str, seconds: float, once: Callable[[], Awaitable[T]]) -> T:
    """`once()`, again while a node refuses or is away; Invalid `devnet.in_vain` with its word."""
    last: Refusal | Unreachable | None = None
    with trio.move_on_after(seconds):
        while True:
            try:
                return await once()
            except (Refusal, Unreachable) as error:
                last = error
                await trio.sleep(POLL_S)
    raise Invalid("devnet.in_vain", what=what, seconds=seconds, why=str(last))


async def stop_all(children: list[Child]) -> None:
    """SIGTERM to all, SIGKILL to those that are still there after STOP_S. Not cancellable."""
    with trio.CancelScope(shield=True):
        for child in children:
            child.ask_to_stop()
        with trio.move_on_after(STOP_S):
            while any(_alive(children)):  # noqa: ASYNC110  # a process ends without an event
                await trio.sleep(POLL_S)
        for child in children:
            child.kill()


def _alive(children: list[Child]) -> Iterator[Child]:
    for child in children:
        if child.process is not None and child.process.poll() is None:
            yield child
