"""A program of the tests in a process of its own, which tells what it has to say in JSON lines.

It is given its options as one JSON object, and ends when its standard input does: with us.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

TESTS: Final = Path(__file__).resolve().parent


class TellingChild:
    """`script`, run by this very Python with the checkout on its path."""

    def __init__(self, script: Path, options: dict[str, Any]) -> None:
        paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
        self._process = subprocess.Popen(
            [sys.executable, str(script), json.dumps(options, default=str)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
            text=True,
        )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def told(self) -> dict[str, Any]:
        """The next thing it says; AssertionError if it ended instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process ended"
        return dict(json.loads(line))

    def tell(self, line: str) -> None:
        """One line to it."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        """As a power switch would, for all that it knows."""
        self._process.kill()
        self._process.communicate()
