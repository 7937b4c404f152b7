"""What the composition root decides by itself, which is little."""

from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from node import daemon
from node.config import P2p, Serving
from node.telling import LAG_BLOCKS_MAX, is_behind

AT = 100
NEAR, FAR = AT + LAG_BLOCKS_MAX, AT + LAG_BLOCKS_MAX + 1


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([], False),  # alone: there is nobody to be behind of
        ([NEAR], False),
        ([FAR], True),
        ([AT - 50], False),
        ([AT, 2**62], False),
        ([AT, FAR, FAR], True),
        ([AT, AT, 2**62], False),
    ],
)
def test_node_is_behind_when_most_peers_are_far_ahead(told: list[int], expected: bool) -> None:
    """One liar among the peers must neither close a provider's shop nor keep it open."""
    assert is_behind(told, AT) is expected


@pytest.mark.parametrize("fails", [False, True])
async def test_files_of_the_parts_are_closed_before_the_ground_they_stand_on(
    monkeypatch, tmp_path, fails: bool
) -> None:
    """Closing syncs what waits in them, such as acknowledgements that came last."""
    happened: list[str] = []

    class Ground:
        why_silent = None
        journal = None
        chain = SimpleNamespace(steps=())

        def close(self) -> None:
            happened.append("ground closed")

    class Node:
        def __init__(self, *_: Any) -> None:
            pass

        async def run(self) -> bool:
            await trio.lowlevel.checkpoint()
            happened.append("ran")
            if fails:
                raise OSError("a part fell")
            return False

        def close(self) -> None:
            happened.append("parts closed")

    monkeypatch.setattr(daemon, "open_ground", lambda *_, **__: Ground())
    monkeypatch.setattr(daemon, "Node", Node)
    storage = SimpleNamespace(keep_versions=1, cache_mb=1)
    chain = SimpleNamespace(genesis="genesis")
    config = SimpleNamespace(chain=chain, storage=storage, p2p=P2p(), serving=Serving())
    settings: Any = SimpleNamespace(home=tmp_path, config=config)
    keys = daemon.Keys(node=None, validator=None, spending=None)
    with suppress(OSError):
        await daemon.run(settings, keys)
    assert happened == ["ran", "parts closed", "ground closed"]
