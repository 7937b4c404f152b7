"""The scrub of a running node: when it is due, how slow it is, and what becomes of findings."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from node import scrubber
from node.scrubber import DAY_MS, FINDINGS_MAX, LOOK_EVERY_S, Scrubber
from node.storage.checking import Finding
from node.storage.errors import DatabaseDamaged
from node.storage.scrubbing import Progress, Step, load_progress, save_progress

ROTTEN = Finding("blocks", "block 3: damaged", "start a fresh home")


class Pass:
    """A pass of made-up steps."""

    def __init__(self, steps: Sequence[Step | Exception], progress: Progress) -> None:
        self._steps = list(steps)
        self.progress = progress

    @property
    def is_over(self) -> bool:
        return not self._steps

    def step(self) -> Step:
        step = self._steps.pop(0)
        if isinstance(step, Exception):
            raise step
        self.progress = Progress(height=self.progress.height + 1)
        return step

    def end(self, now_ms: int) -> None:
        self.progress = Progress(ended_ms=now_ms)


class Scene:
    """A scrubber on a mock clock; `passes` are taken one after another, then empty ones."""

    def __init__(self, home: Path, *passes: Sequence[Step | Exception]) -> None:
        self.begun: list[tuple[float, Progress]] = []
        self.asked: list[bytes] = []
        self.nobody_has: set[bytes] = set()
        self._passes = list(passes)
        self.scrubber = Scrubber(
            home=home,
            begin=self._begin,
            fetch_bodies=self._fetch,
            every_days=7,
            bytes_s=1_000,
            now_ms=lambda: 30 * DAY_MS + int(trio.current_time() * 1_000),
            run_blocking=self._run,
        )

    def _begin(self, progress: Progress) -> Any:
        self.begun.append((trio.current_time(), progress))
        return Pass(self._passes.pop(0) if self._passes else [], progress)

    async def _fetch(self, names: Sequence[bytes]) -> Sequence[bytes]:
        self.asked += names
        return [name for name in names if name in self.nobody_has]

    async def _run(self, call: Any, *arguments: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return call(*arguments)

    async def run(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self.scrubber.run()


async def test_pass_is_as_slow_as_it_is_told(tmp_path: Path, autojump_clock: Any) -> None:
    scene = Scene(tmp_path, [Step(5_000)] * 10)
    await scene.run(49)
    assert scene.scrubber.counters["passes"] == 0
    scene = Scene(tmp_path / "other", [Step(5_000)] * 10)
    (tmp_path / "other").mkdir()
    await scene.run(51)
    assert scene.scrubber.counters["passes"] == 1
    assert scene.scrubber.counters["bytes"] == 50_000


async def test_next_pass_comes_after_so_many_days_also_after_a_restart(
    tmp_path: Path, autojump_clock: Any
) -> None:
    first = Scene(tmp_path, [Step(1_000)])
    await first.run(60)
    again = Scene(tmp_path)
    began_s = trio.current_time()
    await again.run(7 * 86_400 + LOOK_EVERY_S)
    (at, progress) = again.begun[0]
    assert len(first.begun) == len(again.begun) == 1
    assert 6.9 * 86_400 < at - began_s <= 7 * 86_400 + LOOK_EVERY_S
    assert not progress.is_begun


async def test_pass_that_a_stop_cut_off_goes_on(tmp_path: Path, autojump_clock: Any) -> None:
    await Scene(tmp_path, [Step(10_000)] * 20).run(75)  # saved once
    height = load_progress(tmp_path).height
    assert 5 <= height <= 8
    again = Scene(tmp_path)
    await again.run(1)
    assert again.begun[0][1] == Progress(height=height)


async def test_finding_is_counted_and_told_until_a_pass_is_clean(
    tmp_path: Path, autojump_clock: Any
) -> None:
    scene = Scene(tmp_path, [Step(10, (ROTTEN, ROTTEN))], [Step(10)])
    await scene.run(60)
    assert scene.scrubber.counters["errors"] == 2
    assert scene.scrubber.damage == "block 3: damaged and 1 more; mend: start a fresh home"
    await scene.run(8 * 86_400)
    assert scene.scrubber.damage == ""
    assert scene.scrubber.counters["errors"] == 2


async def test_lost_bodies_are_fetched_and_only_the_others_are_told(
    tmp_path: Path, autojump_clock: Any
) -> None:
    scene = Scene(tmp_path, [Step(10, (), (b"a" * 32, b"b" * 32))])
    scene.nobody_has = {b"b" * 32}
    await scene.run(60)
    assert scene.asked == [b"a" * 32, b"b" * 32]
    assert (scene.scrubber.counters["bodies_fetched"], scene.scrubber.counters["errors"]) == (1, 1)
    assert "62" * 32 in scene.scrubber.damage


async def test_log_holds_only_so_many_findings_of_a_pass(
    tmp_path: Path, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[object] = []
    log = SimpleNamespace(error=lambda *_, **told: said.append(told), info=lambda *_, **_told: None)
    monkeypatch.setattr(scrubber, "log", log)
    scene = Scene(tmp_path, [Step(10, (ROTTEN,) * (FINDINGS_MAX + 5))])
    await scene.run(60)
    assert len(said) == FINDINGS_MAX
    assert scene.scrubber.counters["errors"] == FINDINGS_MAX + 5


async def test_damage_of_the_database_ends_it(tmp_path: Path, autojump_clock: Any) -> None:
    scene = Scene(tmp_path, [Step(10), DatabaseDamaged("a record is not in its tree")])
    with pytest.raises(DatabaseDamaged):
        await scene.run(60)


async def test_disk_that_keeps_no_progress_costs_only_that(
    tmp_path: Path, autojump_clock: Any
) -> None:
    scene = Scene(tmp_path / "nowhere", [Step(10)])
    await scene.run(60)
    assert scene.scrubber.counters["passes"] == 1
    assert len(scene.begun) == 1
    with pytest.raises(OSError, match="nowhere"):
        save_progress(tmp_path / "nowhere", Progress())
