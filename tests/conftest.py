"""Refuse to test another checkout's code, and skip by name what this machine cannot run.

Why the first: other published packages are called `node`, `consensus` and `p2p` too, and a
folder `tests/consensus` would shadow ours; a green run over strange code is worse than none.
"""

import importlib.util
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Two threads of torch that spin for each other cost ten times their work on a machine that is
# busy; to be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_configure() -> None:
    for name in ("consensus", "node", "p2p"):
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin or "").resolve() if spec else None
        if origin is None or ROOT not in origin.parents:
            pytest.exit(f"{name} comes from {origin}, not from {ROOT}: run `make`", returncode=2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("torch") is not None:
        return
    absent = pytest.mark.skip(reason="torch is not installed (make TORCH= left it out)")
    for item in items:
        if item.get_closest_marker("ml") is not None:
            item.add_marker(absent)
