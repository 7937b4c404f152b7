"""`olnode devnet --no-ml` ends with its daemons: by SIGTERM in order, by SIGKILL nevertheless."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node.storage.errors import HomeInUse
from node.storage.lock import lock_home

COMMAND = (sys.executable, "-P", "-c", "from node.cli.main import main; main()")
NODES = ("n0", "n1", "n2", "n3", "payer")
END_S = 30.0


@contextmanager
def standing(home: Path) -> Iterator[subprocess.Popen[str]]:
    """A devnet without models that has agreed on its first block."""
    process = subprocess.Popen(
        [*COMMAND, "--home", str(home), "devnet", "--no-ml"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    told: list[str] = []
    try:
        for line in process.stdout:
            told.append(line)
            if line.startswith(" first block"):
                break
        assert told[-1].startswith(" first block"), "".join(told)
        yield process
    finally:
        process.kill()
        process.wait()
        for pid in held_by(home).values():
            os.kill(pid, signal.SIGKILL)


def held_by(home: Path) -> dict[str, int]:
    """Which nodes run, and as which process."""
    found = {}
    for name in NODES:
        try:
            lock_home(home / name).release()
        except HomeInUse:
            found[name] = int((home / name / "node.lock").read_text("ascii").split()[0])
    return found


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_no_daemon_outlives_its_devnet(tmp_path: Path, number: int, status: int) -> None:
    home = tmp_path / "net"
    with standing(home) as process:
        running = held_by(home)
        assert tuple(running) == NODES
        process.send_signal(number)
        assert process.wait(END_S) == status
        if number == signal.SIGTERM:
            assert held_by(home) == {}, "they ended before it"
        until_s = time.monotonic() + END_S
        while held_by(home) and time.monotonic() < until_s:
            time.sleep(0.05)
        assert held_by(home) == {}
