"""One process per home."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from node.storage.errors import HomeInUse, StorageError
from node.storage.lock import LOCK_NAME, lock_home

OTHER = """
import sys
from pathlib import Path
from node.storage.errors import HomeInUse
from node.storage.lock import lock_home
try:
    lock_home(Path(sys.argv[1]))
    print("held")
except HomeInUse as error:
    print(error)
"""


def ask_another_process(home: Path) -> str:
    asked = subprocess.run(
        [sys.executable, "-c", OTHER, str(home)], capture_output=True, text=True, check=True
    )
    return asked.stdout.strip()


def test_second_process_on_one_home_is_refused_with_the_pid(tmp_path: Path) -> None:
    with lock_home(tmp_path):
        (tmp_path / LOCK_NAME).read_bytes()  # reading it must not lose it
        told = ask_another_process(tmp_path)
        assert "another olnode uses this directory" in told
        assert f"pid {os.getpid()}" in told
    assert ask_another_process(tmp_path) == "held"


def test_second_lock_in_one_process_is_refused(tmp_path: Path) -> None:
    with lock_home(tmp_path), pytest.raises(HomeInUse):
        lock_home(tmp_path)


def test_released_home_can_be_locked_again(tmp_path: Path) -> None:
    lock = lock_home(tmp_path)
    lock.release()
    lock.release()
    lock_home(tmp_path).release()


def test_missing_home_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot open"):
        lock_home(tmp_path / "nowhere")
