"""The disk guard: low below the floor, open again only well above it, told once each time."""

from pathlib import Path

import trio

from node.diskguard import LOOK_EVERY_S, DiskGuard

FLOOR = 1_000


class Disk:
    def __init__(self, free: int) -> None:
        self.free, self.changes = free, 0
        self.guard = DiskGuard(
            Path("/home"), FLOOR, on_change=self.note, measure=lambda home: self.free
        )

    def note(self) -> None:
        self.changes += 1


async def test_it_closes_at_the_floor_and_opens_well_above_it(autojump_clock: object) -> None:
    disk = Disk(FLOOR)
    seen = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.guard.run)
        for free in (FLOOR - 1, FLOOR, FLOOR + 199, FLOOR + 200, FLOOR, FLOOR - 1):
            disk.free = free
            await trio.sleep(LOOK_EVERY_S + 0.1)
            seen.append((free, disk.guard.is_low))
        nursery.cancel_scope.cancel()
    assert [is_low for _, is_low in seen] == [True, True, True, False, False, True], seen
    assert disk.changes == 3


def test_a_node_may_start_on_a_full_disk_and_says_why_it_is_silent() -> None:
    disk = Disk(0)
    assert disk.guard.is_low
    assert "/home" in disk.guard.why_low
    assert disk.changes == 0, "nobody is there yet to be told"
    assert Disk(FLOOR).guard.why_low == ""


def test_no_floor_means_no_guard() -> None:
    assert not DiskGuard(Path("/home"), 0, measure=lambda home: 0).is_low


def test_it_measures_the_real_disk(tmp_path: Path) -> None:
    assert not DiskGuard(tmp_path, 1).is_low
    assert DiskGuard(tmp_path, 2**62).is_low
