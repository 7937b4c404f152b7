"""The disk tier keeps what was packed, within its budget, and believes no byte it did not write."""

import os
import random
from pathlib import Path

import numpy as np
import pytest

from node.serving.packed import Copy, PackedShelf

LAYOUT = b"l" * 32
BYTES = 1_000


def name(number: int) -> bytes:
    return number.to_bytes(32, "big")


def copy(number: int, size: int = BYTES) -> Copy:
    raw = np.random.default_rng(number).integers(0, 256, size, np.uint8)
    return Copy(4, 8, {"layers.0.q_proj": (4, 0.1), "layers.1.v_proj": (4, 2.0)}, raw)


def shelf(folder: Path, bytes_max: int = 10**6, layout: bytes = LAYOUT) -> PackedShelf:
    return PackedShelf(folder, layout, bytes_max, free_bytes_min=0)


def use(at: PackedShelf, number: int, when_s: int) -> None:
    """Read it, as at that time: a disk may count in coarse steps."""
    assert at.read(name(number)) is not None
    os.utime(at._path(name(number)), (when_s, when_s))


def test_what_is_written_is_read_also_after_a_restart(tmp_path: Path) -> None:
    at = shelf(tmp_path)
    assert at.read(name(1)) is None
    at.write(name(1), copy(1))
    for there in (at, shelf(tmp_path)):
        found = there.read(name(1))
        assert found is not None
        assert found[:3] == copy(1)[:3]
        assert np.array_equal(found.raw, copy(1).raw)
        assert there.bytes == at._path(name(1)).stat().st_size


def test_no_flipped_bit_and_no_lost_end_is_believed(tmp_path: Path) -> None:
    """In digest, head or data alike: the copy goes, and is counted."""
    at, rng = shelf(tmp_path), random.Random(1)
    at.write(name(1), copy(1, 64))
    path = at._path(name(1))
    whole = path.read_bytes()
    places = {*range(48), *(rng.randrange(len(whole)) for _ in range(20))}
    spoilt = [bytes(b ^ (i == place) << place % 8 for i, b in enumerate(whole)) for place in places]
    spoilt += [whole[:cut] for cut in (0, 10, 34, 60, len(whole) - 1)] + [whole + b"\0"]
    for count, raw in enumerate(spoilt, 1):
        path.write_bytes(raw)
        assert at.read(name(1)) is None
        assert (at.rotten, at.bytes, path.exists()) == (count, 0, False)
        at.write(name(1), copy(1, 64))
    assert at.read(name(1)) is not None


def test_copy_of_another_adapter_or_layout_is_as_none(tmp_path: Path) -> None:
    at = shelf(tmp_path)
    at.write(name(1), copy(1))
    other = at._path(name(2))
    other.write_bytes(at._path(name(1)).read_bytes())
    assert shelf(tmp_path).read(name(2)) is None
    assert shelf(tmp_path, layout=b"m" * 32).read(name(1)) is None
    assert not other.exists()


def test_longest_unused_goes_when_the_budget_ends(tmp_path: Path) -> None:
    at = shelf(tmp_path)
    at.write(name(0), copy(0))
    size = at.bytes
    at = shelf(tmp_path, 3 * size)
    for number in (1, 2):
        at.write(name(number), copy(number))
    for when_s, number in enumerate((1, 0, 2), 1_000):
        use(at, number, when_s)
    at.write(name(3), copy(3))
    assert (at.read(name(1)), at.evicted, at.bytes) == (None, 1, 3 * size)
    smaller = shelf(tmp_path, 2 * size)
    assert smaller.count == 2, "a smaller budget holds at once"
    assert smaller.read(name(0)) is None, "in the order of use before the restart"
    assert smaller.read(name(3)) is not None


def test_what_cannot_be_kept_evicts_nothing(tmp_path: Path) -> None:
    at = shelf(tmp_path, 2 * BYTES)
    at.write(name(1), copy(1))
    at.write(name(2), copy(2, 3 * BYTES))
    assert (at.count, at.unwritten) == (1, 1)
    full = PackedShelf(tmp_path, LAYOUT, 10**6, free_bytes_min=2**62)
    full.write(name(3), copy(3))
    assert (full.count, full.unwritten) == (1, 1), "the disk is others' too"


def test_halves_of_an_earlier_run_go(tmp_path: Path) -> None:
    (tmp_path / f"{name(1).hex()}.part77").write_bytes(b"half")
    assert shelf(tmp_path).count == 0
    assert list(tmp_path.iterdir()) == []


def test_disk_that_refuses_costs_the_copy_alone(tmp_path: Path, monkeypatch) -> None:
    at = shelf(tmp_path)

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    at.write(name(1), copy(1))
    assert (at.count, at.bytes, at.unwritten) == (0, 0, 1)
    assert list(tmp_path.iterdir()) == []


def test_disk_that_fails_at_every_turn_raises_nothing(tmp_path: Path, monkeypatch) -> None:
    at = shelf(tmp_path, 2_000)
    at.write(name(1), copy(1))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    at.write(name(2), copy(2))
    assert (at.read(name(1)), at.read(name(2)), at.bytes) == (None, None, 0)
    monkeypatch.setattr("shutil.disk_usage", refuse)
    at.write(name(3), copy(3))
    assert at.unwritten == 2


@pytest.mark.parametrize("gone", ["file", "folder"])
def test_copy_that_another_took_away_is_as_none(tmp_path: Path, gone: str) -> None:
    at = shelf(tmp_path / "shelf")
    at.write(name(1), copy(1))
    at._path(name(1)).unlink()
    if gone == "folder":
        (tmp_path / "shelf").rmdir()
    assert (at.read(name(1)), at.bytes, at.rotten) == (None, 0, 0)
