"""Vectors made by another process, with another salt of hashes."""

import os
import subprocess
import sys

from vectors.make import HERE, ROOT


def printed(name: str, salt: str) -> str:
    """The vector file `name` as it is made under that PYTHONHASHSEED."""
    done = subprocess.run(
        [sys.executable, str(HERE / "make.py"), "--print", name],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": salt},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout
