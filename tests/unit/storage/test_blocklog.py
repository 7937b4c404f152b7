"""The block log keeps what was synced, cuts what was torn, and stops at what is damaged."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from node.storage.blocklog import BlockLog
from node.storage.errors import Damaged, StorageError


def block(height: int) -> bytes:
    return b"block %d " % height * (1 + height % 5)


def make(path: Path, heights: int, segment_bytes: int = 1 << 20) -> list[int]:
    """A log of blocks 1..heights; gives the file size after each (one segment)."""
    log, sizes = BlockLog(path, segment_bytes), []
    for height in range(1, heights + 1):
        log.append(height, block(height), b"certificate %d" % height)
        log.sync()
        sizes.append((path / "000001").stat().st_size)
    log.close()
    return sizes


def test_blocks_come_back_in_order(tmp_path: Path) -> None:
    make(tmp_path, 10)
    log = BlockLog(tmp_path)
    assert log.height == 10
    found = list(log.records_from(4))
    assert [record.height for _, record in found] == list(range(4, 11))
    place, record = found[0]
    assert record == log.read(place)
    assert (record.block, record.certificate) == (block(4), b"certificate 4")
    log.close()


def test_log_goes_on_over_many_segments(tmp_path: Path) -> None:
    make(tmp_path, 30, segment_bytes=200)
    log = BlockLog(tmp_path, segment_bytes=200)
    assert len(list(tmp_path.iterdir())) > 5
    assert log.height == 30
    for start in (1, 2, 17, 30, 31):
        assert [r.height for _, r in log.records_from(start)] == list(range(start, 31))
    log.append(31, block(31), b"")
    log.close()
    assert BlockLog(tmp_path, segment_bytes=200).height == 31


def test_torn_at_every_byte_of_the_last_three_blocks_is_cut(tmp_path: Path) -> None:
    sizes = make(tmp_path / "base", 6)
    whole = (tmp_path / "base" / "000001").read_bytes()
    torn = tmp_path / "torn"
    torn.mkdir()
    for cut in range(sizes[2], sizes[5] + 1):
        for tail in (b"", bytes(64)):
            (torn / "000001").write_bytes(whole[:cut] + tail)
            log = BlockLog(torn)
            left = sum(cut >= size for size in sizes)
            assert log.height == left
            assert log.cut_bytes == cut + len(tail) - sizes[left - 1]
            log.append(left + 1, b"again", b"")
            log.close()
            again = BlockLog(torn)
            assert again.height == left + 1
            again.close()


def test_damage_before_the_end_is_named_not_cut(tmp_path: Path) -> None:
    sizes = make(tmp_path, 6)
    path = tmp_path / "000001"
    good, rng = path.read_bytes(), random.Random(1)
    for _ in range(60):
        at = rng.randrange(sizes[4])
        path.write_bytes(good[:at] + bytes([good[at] ^ (1 << rng.randrange(8))]) + good[at + 1 :])
        with pytest.raises(Damaged, match="block log"):
            BlockLog(tmp_path)
    assert len(path.read_bytes()) == len(good)


def group(path: Path, synced: int, behind: int) -> list[int]:
    """Blocks each synced, then more without a sync between; gives the file size after each."""
    sizes = make(path, synced)
    log = BlockLog(path)
    for height in range(synced + 1, synced + behind + 1):
        log.append(height, block(height), b"certificate %d" % height)
        sizes.append((path / "000001").stat().st_size)
    log.close()
    return sizes


def test_hole_among_unsynced_blocks_is_cut_whatever_stands_behind_it(tmp_path: Path) -> None:
    """A power cut writes pages in any order: the later of 64 blocks may be there alone."""
    sizes = group(tmp_path / "base", 3, 6)
    whole = (tmp_path / "base" / "000001").read_bytes()
    torn = tmp_path / "torn"
    torn.mkdir()
    rng = random.Random(8)
    for _ in range(80):
        data = bytearray(whole)
        start = rng.randrange(sizes[2], len(whole))
        stop = min(len(whole), start + rng.randrange(1, 60))
        data[start:stop] = bytes(stop - start)
        first = sum(size <= start for size in sizes)
        if data == whole:  # zeroes were there before
            continue
        (torn / "000001").write_bytes(bytes(data))
        log = BlockLog(torn)
        assert first <= log.height < 9
        assert log.cut_bytes == len(whole) - sizes[log.height - 1]
        assert [r.height for _, r in log.records_from(1)] == list(range(1, log.height + 1))
        log.close()
        assert (torn / "000001").read_bytes() == whole[: sizes[log.height - 1]]


def test_hole_before_a_block_that_followed_a_sync_is_damage(tmp_path: Path) -> None:
    sizes = group(tmp_path, 3, 6)
    path = tmp_path / "000001"
    good = path.read_bytes()
    log = BlockLog(tmp_path)
    log.append(10, block(10), b"")
    log.close()
    whole = path.read_bytes()
    for at in (sizes[2] - 1, sizes[2] + 1, sizes[7] - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(Damaged, match="block log"):
            BlockLog(tmp_path)
        assert len(path.read_bytes()) > len(good)


def test_what_a_killed_process_wrote_is_synced_when_it_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the database could become durable before the blocks that it is an index of."""
    make(tmp_path, 3)
    synced: list[int] = []
    monkeypatch.setattr("node.storage.segments.os.fsync", synced.append)
    BlockLog(tmp_path)
    assert len(synced) == 1


def test_damage_in_an_older_segment_is_found_when_read(tmp_path: Path) -> None:
    make(tmp_path, 30, segment_bytes=200)
    path = tmp_path / "000002"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    log = BlockLog(tmp_path, segment_bytes=200)
    with pytest.raises(Damaged):
        list(log.records_from(1))
    log.close()


def test_missing_segment_is_named(tmp_path: Path) -> None:
    make(tmp_path, 30, segment_bytes=200)
    (tmp_path / "000003").unlink()
    with pytest.raises(Damaged, match="segment is missing"):
        BlockLog(tmp_path)


def test_empty_newest_segment_is_what_a_crash_may_leave(tmp_path: Path) -> None:
    make(tmp_path, 3)
    (tmp_path / "000002").touch()
    log = BlockLog(tmp_path)
    assert log.height == 3
    log.append(4, b"", b"")
    assert [record.height for _, record in log.records_from(1)] == [1, 2, 3, 4]
    log.close()


def test_hole_in_the_heights_is_our_own_fault(tmp_path: Path) -> None:
    log = BlockLog(tmp_path)
    log.append(1, b"", b"")
    with pytest.raises(AssertionError):
        log.append(3, b"", b"")
    log.close()


def test_closed_log_refuses_to_write(tmp_path: Path) -> None:
    log = BlockLog(tmp_path)
    log.close()
    with pytest.raises(StorageError):
        log.append(1, b"", b"")


def test_log_that_begins_again_holds_only_what_comes_after(tmp_path: Path) -> None:
    make(tmp_path, 30, segment_bytes=200)
    log = BlockLog(tmp_path, segment_bytes=200)
    assert (log.first, log.footing) == (1, b"")
    with pytest.raises(AssertionError):
        log.rebase(30, b"no newer ground")
    log.rebase(100, b"ground")
    for _ in range(2):
        assert (log.first, log.height, log.footing) == (101, 100, b"ground")
        assert list(log.records_from(101)) == []
        log.close()
        log = BlockLog(tmp_path, segment_bytes=200)
    for height in range(101, 130):
        log.append(height, block(height), b"")
    log.close()
    log = BlockLog(tmp_path, segment_bytes=200)
    assert (log.first, log.height, log.footing) == (101, 129, b"ground")
    for start in (101, 115):
        assert [r.height for _, r in log.records_from(start)] == list(range(start, 130))
    log.rebase(500, b"newer ground")
    assert (log.first, log.height, log.footing) == (501, 500, b"newer ground")
    log.close()
    assert len(list(tmp_path.iterdir())) == 1


def test_beginning_again_that_was_cut_off_leaves_the_old_blocks(tmp_path: Path) -> None:
    make(tmp_path / "base", 6)
    log = BlockLog(tmp_path / "base")
    before = (tmp_path / "base" / "000001").read_bytes()
    log.rebase(100, b"ground" * 20)
    log.close()
    footing = (tmp_path / "base" / "000002").read_bytes()
    for cut in range(len(footing) + 1):
        home = tmp_path / str(cut)
        home.mkdir()
        (home / "000001").write_bytes(before)
        (home / "000002").write_bytes(footing[:cut])
        log = BlockLog(home)
        is_whole = cut == len(footing)
        assert (log.height, log.first) == ((100, 101) if is_whole else (6, 1))
        log.append(log.height + 1, b"next", b"")
        log.close()
        assert len(list(home.iterdir())) == (1 if is_whole else 2)


WRITER = """
import sys
from pathlib import Path
from node.storage.blocklog import BlockLog
log = BlockLog(Path(sys.argv[1]), 4_000)
while True:
    height = log.height + 1
    log.append(height, b"%d," % height * (height % 300), b"c")
    log.sync()
    print(height, flush=True)
"""


def test_killed_writer_loses_no_synced_block(tmp_path: Path) -> None:
    rng = random.Random(3)
    for _ in range(10):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(rng.random() * 0.03)
        writer.send_signal(signal.SIGKILL)
        told = writer.stdout.read().split(b"\n")
        writer.wait()
        log = BlockLog(tmp_path, 4_000)
        assert log.height >= max((int(line) for line in told[:-1]), default=1)
        for expected, (_, record) in enumerate(log.records_from(1), start=1):
            assert record.height == expected
            assert record.block == b"%d," % expected * (expected % 300)
        log.close()
