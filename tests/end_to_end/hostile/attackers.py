"""The attackers' process, as a test sees it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from besieged import Besieged

ROOT: Final = Path(__file__).parents[3]


class Attackers:
    """Their process; it is there before the node, which it is told of by `meet`."""

    def __init__(self) -> None:
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("besieger.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
            text=True,
        )

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def meet(self, node: Besieged) -> None:
        self._say(f"{node.address} {node.chain_id.hex()} {node.blob_id.hex()}")

    def _hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def begin(self, name: str) -> None:
        """Returns when it is on."""
        self._say(name)
        self._hear()

    def end(self) -> dict[str, Any]:
        self._say("")
        return dict(json.loads(self._hear()))

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
