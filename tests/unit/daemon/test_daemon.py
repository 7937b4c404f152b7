"""What the composition root decides by itself, which is little."""

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from node import daemon
from node.cli.faults import tell
from node.cli.frame import FAILED
from node.config import Engine, Metrics, P2p, Serving
from node.serving.engine import AUTO, EngineSettings
from node.storage.errors import DatabaseDamaged
from node.storage.store import why_suspected
from node.telling import LAG_BLOCKS_MAX, is_behind
from node.wishes import engine_settings

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


def test_engine_is_wished_for_as_the_operator_says() -> None:
    chosen = Engine(
        rows=3, slots=5, slot_budget_mb=7, kv_budget_mb=9, ram_budget_mb=11, disk_budget_gb=13,
        threads=2, prefill_chunk=17, queue_tokens=19, queue_requests=23, aging_ms=29,
        gradient_max_wait_ms=31, device="cuda:1", dtype="bfloat16",
    )  # fmt: skip
    assert wish_of(chosen) == EngineSettings(
        base_folder="", rows=3, slots=5, slot_bytes=7 << 20, kv_bytes=9 << 20, ram_bytes=11 << 20,
        disk_folder="/home/packed", disk_bytes=13 << 30, disk_free_bytes=37, threads=2,
        prefill_chunk=17, queue_tokens=19, queue_requests=23, aging_ms=29, gradient_wait_ms=31,
        device="cuda:1", dtype_class="bf16",
    )  # fmt: skip
    nothing = wish_of(Engine(disk_budget_gb=0))
    assert (nothing.rows, nothing.disk_bytes) == (0, 0)
    assert wish_of(Engine()) == EngineSettings(
        base_folder="", disk_folder="/home/packed", disk_free_bytes=37,
        rows=0, device=AUTO, dtype_class=AUTO,
    ), "what is not said is the engine's own"  # fmt: skip
    assert wish_of(Engine(dtype="float32")).dtype_class == "fp32"


def wish_of(engine: Engine) -> EngineSettings:
    return engine_settings(engine, packed_folder="/home/packed", free_bytes=37)


class Life:
    """A ground and a node that only run until they fall, or not."""

    def __init__(self, monkeypatch: Any, home: Path, error: Exception | None) -> None:
        happened = self.happened = []

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
                if error is not None:
                    raise error
                return False

            def close(self) -> None:
                happened.append("parts closed")

        monkeypatch.setattr(daemon, "open_ground", lambda *_, **__: Ground())
        monkeypatch.setattr(daemon, "Node", Node)
        storage = SimpleNamespace(keep_versions=1, cache_mb=1)
        chain = SimpleNamespace(genesis="genesis")
        parts = {"p2p": P2p(), "serving": Serving(), "engine": Engine(), "metrics": Metrics()}
        config = SimpleNamespace(chain=chain, storage=storage, **parts)
        self.settings: Any = SimpleNamespace(home=home, config=config)

    async def run(self) -> None:
        await daemon.run(self.settings, daemon.Keys(node=None, validator=None, spending=None))


@pytest.mark.parametrize("fails", [False, True])
async def test_files_of_the_parts_are_closed_before_the_ground_they_stand_on(
    monkeypatch, tmp_path, fails: bool
) -> None:
    """Closing syncs what waits in them, such as acknowledgements that came last."""
    life = Life(monkeypatch, tmp_path, OSError("a part fell") if fails else None)
    with suppress(OSError):
        await life.run()
    assert life.happened == ["ran", "parts closed", "ground closed"]


async def test_database_that_failed_is_made_again_by_the_next_start(monkeypatch, tmp_path) -> None:
    (tmp_path / "db").mkdir()
    life = Life(monkeypatch, tmp_path, DatabaseDamaged("the state tree lacks a node"))
    with pytest.RaisesGroup(DatabaseDamaged) as ended:
        await life.run()
    assert tell(ended.value, as_json=False) == FAILED, "a service manager starts it again"
    assert "lacks a node" in why_suspected(tmp_path / "db")


async def test_node_ends_once_a_reader_met_damage(autojump_clock) -> None:
    """Routes and peers are only told of an error: nobody else would end it."""
    damage = DatabaseDamaged("a block of a table")
    chain = SimpleNamespace(damage=None)
    node: Any = SimpleNamespace(_chain=chain)
    with pytest.RaisesGroup(DatabaseDamaged):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(daemon.Node._watch_database, node)
            await trio.sleep(60)
            chain.damage = damage
