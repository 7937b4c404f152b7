"""Real processes, tiny ones: restarted when killed, given up when they die too often."""

import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from unit.web.behind import Behind, served

from consensus.primitives.errors import Invalid
from node.devnet.children import (
    DEATHS_MAX,
    DEATHS_WINDOW_S,
    LOG_LINES,
    READ_S,
    STOP_S,
    Child,
    ChildFailed,
    in_thread,
    patiently,
    read,
    stop_all,
    wait_answering,
    watch,
)
from node.web.ask import Refusal, Unreachable

LIVES = "exec sleep 600"
DIES = "for i in $(seq 30); do echo line $i >&2; done; exit 1"


@dataclass
class Tiny(Child):
    """A child that runs a line of shell instead of a daemon.

    The clock of these tests jumps while a process needs real milliseconds, so an end that is
    sure to come is waited for here and never by the clock.
    """

    script: str = LIVES
    ends: bool = False

    @property
    def command(self) -> list[str]:
        return ["sh", "-c", self.script]

    def start(self) -> None:
        super().start()
        if self.ends:
            self.process.wait()

    def shoot(self) -> None:
        """As the operator's `kill -9`."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def children(tmp_path: Path) -> Iterator[list[Child]]:
    """Whatever a test starts is gone when it ends."""
    made: list[Child] = []
    yield made
    for child in made:
        child.kill()


def tiny(children: list[Child], folder: Path, script: str = LIVES, **fields: bool) -> Tiny:
    home = folder / f"n{len(children)}"
    home.mkdir()
    child = Tiny(home.name, home, ("validator",), script=script, **fields)
    children.append(child)
    child.start()
    return child


@asynccontextmanager
async def watched(child: Child) -> AsyncIterator[list[str]]:
    told: list[str] = []
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await watch(
                child,
                on_restart=lambda one: told.append(one.name),
                on_stop=lambda one: told.append(f"{one.name} stopped"),
            )

        nursery.start_soon(run)
        yield told
        nursery.cancel_scope.cancel()


def test_command_is_what_an_operator_runs(tmp_path: Path) -> None:
    words = Child("n0", tmp_path, ("validator",)).command
    assert words[-3:] == ["--home", str(tmp_path), "start"]


async def test_killed_child_is_started_again(children, tmp_path, autojump_clock) -> None:
    child = tiny(children, tmp_path)
    first = child.process.pid
    async with watched(child) as told:
        await trio.sleep(5)
        assert (child.restarts, told) == (0, [])
        child.shoot()
        await trio.sleep(5)
        assert (child.restarts, told) == (1, ["n0"])
        assert child.process.pid != first
        assert child.process.poll() is None


async def test_child_that_its_operator_stopped_is_left_alone(
    children, tmp_path, autojump_clock
) -> None:
    """`olnode stop`, then `olnode db check`: a restart would take the home away again."""
    child = tiny(children, tmp_path, "exit 0", ends=True)
    async with watched(child) as told:
        await trio.sleep(5)
        assert (child.restarts, told) == (0, ["n0 stopped"])


async def test_three_deaths_in_a_minute_end_it_with_its_last_lines(
    children, tmp_path, autojump_clock
) -> None:
    child = tiny(children, tmp_path, DIES, ends=True)
    with pytest.raises(ChildFailed) as failure:
        await watch(child, on_restart=lambda one: None, on_stop=lambda one: None)
    assert child.restarts == DEATHS_MAX - 1
    assert str(failure.value) == "n0: died 3 times in 60 s"
    assert failure.value.log.splitlines() == [f"line {i}" for i in range(11, 31)]
    assert len(failure.value.log.splitlines()) == LOG_LINES


async def test_three_deaths_in_more_than_a_minute_are_bad_luck(
    children, tmp_path, autojump_clock
) -> None:
    child = tiny(children, tmp_path)
    async with watched(child):
        for _ in range(2 * DEATHS_MAX):
            child.shoot()
            await trio.sleep(DEATHS_WINDOW_S / 2 + 1)
        assert child.restarts == 2 * DEATHS_MAX


async def test_child_that_was_asked_to_stop_stays_down(children, tmp_path, autojump_clock) -> None:
    child = tiny(children, tmp_path)
    async with watched(child) as told:
        child.ask_to_stop()
        assert child.process.wait() == -signal.SIGTERM
        await trio.sleep(5)
        assert (child.restarts, told) == (0, [])


async def test_child_that_ignores_the_stop_is_killed_in_the_end(
    children, tmp_path, autojump_clock
) -> None:
    fifo = tmp_path / "up"
    os.mkfifo(fifo)
    deaf = tiny(children, tmp_path, f"trap '' TERM; echo up > {fifo}; {LIVES}")
    fifo.read_text()  # its trap is set
    began = trio.current_time()
    await stop_all(children)
    assert deaf.process.returncode == -signal.SIGKILL
    assert trio.current_time() - began >= STOP_S


async def test_all_children_are_stopped_even_when_cancelled(
    children, tmp_path, autojump_clock
) -> None:
    tiny(children, tmp_path)
    tiny(children, tmp_path)
    with trio.CancelScope() as scope:
        scope.cancel()
        await stop_all(children)
    assert all(child.process.returncode is not None for child in children)


async def test_kill_reaches_the_whole_group(children, tmp_path) -> None:
    """What a child has started must not outlive the devnet."""
    fifo = tmp_path / "pid"
    os.mkfifo(fifo)
    child = tiny(children, tmp_path, f"sleep 600 & echo $! > {fifo}; wait")
    grandchild = int(fifo.read_text())
    child.kill()
    state = Path(f"/proc/{grandchild}/stat")
    with trio.fail_after(5):  # init takes a moment to bury it
        while state.exists() and state.read_text().split()[2] != "Z":  # noqa: ASYNC110, ASYNC240
            await trio.sleep(0.001)


async def test_child_that_answers_is_waited_for(children, tmp_path) -> None:
    child = tiny(children, tmp_path)
    (child.home / "run").mkdir()
    async with served(Behind(), child.home / "run"):
        await wait_answering(child)


async def test_child_that_never_answers_is_named_with_its_log(
    children, tmp_path, autojump_clock
) -> None:
    child = tiny(children, tmp_path, "echo no key >&2", ends=True)
    with pytest.raises(ChildFailed, match=r"n0: did not answer within 60 s") as failure:
        await wait_answering(child)
    assert failure.value.log == "no key"


async def test_deadline_does_not_wait_for_a_silent_node(autojump_clock) -> None:
    """A socket waits 60 s: thirty seconds of patience, and Ctrl-C, once took so much longer."""
    answered = threading.Event()

    class Silent:
        def get(self, route: str) -> dict[str, int]:
            answered.wait(5)  # in real time, and only where nobody gives up
            return {}

    child: Any = SimpleNamespace(node=Silent())
    began_s = trio.current_time()
    with pytest.raises(Invalid, match=r"/status"):
        await read(child, "/status")
    assert trio.current_time() - began_s == pytest.approx(READ_S)
    with trio.move_on_after(1) as scope:
        await in_thread(lambda: answered.wait(5))
    assert scope.cancelled_caught
    answered.set()


async def test_node_that_refuses_is_asked_again_and_its_last_word_told(autojump_clock) -> None:
    words = iter(["one", "two"])

    async def once() -> str:
        await trio.lowlevel.checkpoint()
        word = next(words, None)
        if word is not None:
            raise Refusal(503, "node.busy", word, {})
        return "done"

    async def never() -> str:
        raise Unreachable(Path("/nowhere"), "away")

    assert await patiently("a thing", 1.0, once) == "done"
    with pytest.raises(Invalid, match="no node answers") as refusal:
        await patiently("a thing", 1.0, never)
    assert refusal.value.code == "devnet.in_vain"


def test_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert Child("n0", tmp_path, ()).last_lines() == ""
