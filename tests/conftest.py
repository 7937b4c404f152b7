"""Refuse to test another checkout's code, skip what this machine cannot run, share out the rest.

Why the first: other published packages are called `node`, `consensus` and `p2p` too, and a
folder `tests/consensus` would shadow ours; a green run over strange code is worse than none.
Why the last: tests that start daemons mostly wait, and want ports of their own, so one worker of
pytest-xdist runs all of them, first; the others take the rest, a folder at a time.
"""

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROCESSES = "processes"

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
    _skip_absent(items)
    items.sort(key=lambda item: _group(item.nodeid) != PROCESSES)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What a worker takes at once; the marks of `--dist loadgroup` are lost with this pytest."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return ByGroup(config, log)


def _group(nodeid: str) -> str:
    _, *parts = nodeid.partition("::")[0].split("/")
    return PROCESSES if parts[0] == "end_to_end" else "/".join(parts[:2])


def _skip_absent(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("torch") is not None:
        return
    absent = pytest.mark.skip(reason="torch is not installed (make TORCH= left it out)")
    for item in items:
        if item.get_closest_marker("ml") is not None:
            item.add_marker(absent)
