"""A daemon whose devnet is gone ends: at once where it had gone before the daemon asked."""

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the death signal is Linux's")

ASKS = "from node.devnet.orphan import end_with; end_with({}); print('up', flush=True); input()"


def spawn(parent: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-P", "-c", ASKS.format(parent)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_daemon_of_a_devnet_that_is_gone_ends_at_once() -> None:
    with spawn(os.getppid()) as process:
        assert process.communicate()[0] == ""
    assert process.returncode == -signal.SIGTERM


def test_daemon_of_a_devnet_that_stands_goes_on() -> None:
    with spawn(os.getpid()) as process:
        assert process.communicate("go on\n")[0] == "up\n"
    assert process.returncode == 0
