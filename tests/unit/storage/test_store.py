"""Both maps keep one contract, and LevelDB refuses what it cannot vouch for."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import plyvel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.storage.errors import Damaged, DatabaseDamaged, DiskRefused, find_refusal
from node.storage.store import KV, LevelKV, MemoryKV, _Health, suspect, why_suspected

SOME = [b"a", b"ab", b"b", b"b\x00", b"c\xff"]


@pytest.fixture(params=["level", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KV]:
    made: KV = LevelKV(tmp_path / "db") if request.param == "level" else MemoryKV()
    yield made
    made.close()


def test_what_was_written_is_read(store: KV) -> None:
    store.write([(b"k", b"v"), (b"empty", b"")])
    assert store.get(b"k") == b"v"
    assert store.get(b"empty") == b""
    assert store.get(b"absent") is None


def test_scan_gives_start_inclusive_stop_exclusive_in_order(store: KV) -> None:
    store.write((key, key * 2) for key in reversed(SOME))
    assert [key for key, _ in store.scan(b"ab", b"c\xff")] == [b"ab", b"b", b"b\x00"]
    assert list(store.scan(b"b", b"b\x00")) == [(b"b", b"bb")]


def test_reversed_or_empty_range_gives_nothing(store: KV) -> None:
    store.write([(b"k", b"v")])
    assert list(store.scan(b"z", b"a")) == []
    assert list(store.scan(b"k", b"k")) == []


def test_delete_comes_before_put_in_one_write(store: KV) -> None:
    store.write([(b"k", b"old")])
    store.write([(b"k", b"new")], [b"k", b"never was"])
    assert store.get(b"k") == b"new"
    store.write([], [b"k"])
    assert store.get(b"k") is None
    assert list(store.scan(b"", b"z")) == []


def test_failing_write_changes_nothing(store: KV) -> None:
    def puts() -> Iterator[tuple[bytes, bytes]]:
        yield b"k", b"v"
        raise RuntimeError("halfway")

    store.write([(b"old", b"1")])
    with pytest.raises(RuntimeError):
        store.write(puts(), [b"old"])
    assert store.get(b"k") is None
    assert store.get(b"old") == b"1"


def test_snapshot_does_not_see_later_writes(store: KV) -> None:
    store.write([(b"k", b"1"), (b"l", b"1")])
    before = store.snapshot()
    store.write([(b"k", b"2"), (b"n", b"2")], [b"l"])
    assert before.get(b"k") == b"1"
    assert list(before.scan(b"a", b"z")) == [(b"k", b"1"), (b"l", b"1")]
    after = store.snapshot()
    assert list(after.scan(b"a", b"z")) == [(b"k", b"2"), (b"n", b"2")]
    before.close()
    after.close()


KEYS = st.binary(min_size=1, max_size=3)
WRITES = st.lists(
    st.tuples(st.dictionaries(KEYS, st.binary(max_size=4), max_size=5), st.lists(KEYS, max_size=4)),
    max_size=12,
)


@given(WRITES)
@settings(max_examples=60, deadline=None)
def test_memory_map_equals_a_dict(writes: list[tuple[dict[bytes, bytes], list[bytes]]]) -> None:
    store, model = MemoryKV(), {}
    for puts, deletes in writes:
        held, was = store.snapshot(), dict(model)
        store.write(puts.items(), deletes)
        for key in deletes:
            model.pop(key, None)
        model.update(puts)
        assert list(store.scan(b"", b"\xff" * 4)) == sorted(model.items())
        assert list(held.scan(b"", b"\xff" * 4)) == sorted(was.items())


def test_level_map_is_there_after_reopening(tmp_path: Path) -> None:
    first = LevelKV(tmp_path / "db")
    first.write([(b"k", b"v")])
    first.close()
    second = LevelKV(tmp_path / "db")
    assert second.get(b"k") == b"v"
    second.close()


def filled(path: Path) -> None:
    store = LevelKV(path)
    for height in range(60):
        store.write((b"%03d %02d" % (height, j), bytes([j]) * 50) for j in range(20))
    store.close()
    LevelKV(path).close()  # a second opening turns the log into a table


@pytest.mark.parametrize("kind", [".ldb", "MANIFEST", "CURRENT"])
def test_flipped_bit_is_refused_or_harmless(tmp_path: Path, kind: str) -> None:
    """Never a wrong value: without checks these flips gave silent holes and wrong values."""
    rng = random.Random(kind)
    filled(tmp_path / "base")
    for number in range(20):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(tmp_path / "base", copy)
        path = next(p for p in sorted(copy.iterdir()) if kind in p.name and p.stat().st_size)
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(data))
        try:
            store = LevelKV(copy)
        except Damaged:
            continue
        try:
            for key, value in store.scan(b"", b"\xff"):
                assert value == bytes([int(key[-2:])]) * 50
        except Damaged:
            pass
        store.close()


WRITER = """
import sys
from pathlib import Path
from node.storage.store import LevelKV
store = LevelKV(Path(sys.argv[1]))
height = int(store.get(b"height") or b"0")
while True:
    height += 1
    puts = [(b"b%08d %02d" % (height, j), b"%d" % height * 30) for j in range(height % 40)]
    store.write([*puts, (b"height", b"%d" % height)])
    print(height, flush=True)
"""


def test_killed_writer_splits_no_batch_and_loses_none_acknowledged(tmp_path: Path) -> None:
    rng, checked = random.Random(5), 0
    for _ in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "db")], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        writer.stdout.readline()  # it is writing
        time.sleep(rng.random() * 0.05)
        writer.send_signal(signal.SIGKILL)
        told = writer.stdout.read().split(b"\n")
        writer.wait()
        acknowledged = max((int(line) for line in told[:-1]), default=0)
        store = LevelKV(tmp_path / "db")
        height = int(store.get(b"height") or b"0")
        assert height >= acknowledged
        for h in range(checked + 1, height + 1):
            assert len(list(store.scan(b"b%08d" % h, b"b%08d~" % h))) == h % 40
        assert not list(store.scan(b"b%08d" % (height + 1), b"c"))
        checked = height
        store.close()


@pytest.mark.parametrize("why", ["No space left on device", "Permission denied"])
def test_what_the_system_refuses_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """Damage makes the database again, which a full disk would only spoil once more."""

    def fail(path: str, **options: object) -> None:
        raise plyvel.IOError(b"IO error: /x/000005.ldb: " + why.encode())  # as LevelDB says it

    monkeypatch.setattr(plyvel, "DB", fail)
    with pytest.raises(DiskRefused, match=why) as refused:
        LevelKV(tmp_path / "db")
    assert "b'" not in refused.value.why
    assert refused.value.mend
    assert not isinstance(refused.value, Damaged)


@pytest.mark.parametrize(
    ("error", "mend"),
    [
        (OSError(errno.ENFILE, os.strerror(errno.ENFILE)), "no file handles left"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "ulimit"),
        (plyvel.IOError(b"IO error: /x: " + os.strerror(errno.ENFILE).encode()), "no file handles"),
        (plyvel.IOError(b"IO error: /x: " + os.strerror(errno.EMFILE).encode()), "ulimit"),
    ],
)
def test_each_refusal_has_its_own_mend(error: Exception, mend: str) -> None:
    found = find_refusal("what", error)
    assert found is not None
    assert mend in found.mend


def test_what_is_no_refusal_of_the_system_is_none() -> None:
    assert find_refusal("what", OSError(errno.EIO, "Input/output error")) is None
    assert find_refusal("what", plyvel.CorruptionError(b"Corruption: bad block")) is None


def test_failure_is_noted_for_the_next_start_and_for_all_readers(tmp_path: Path) -> None:
    filled(tmp_path / "db")
    (table,) = (tmp_path / "db").glob("*.ldb")
    raw = bytearray(table.read_bytes())
    raw[100] ^= 1
    table.write_bytes(bytes(raw))
    store = LevelKV(tmp_path / "db")
    assert (store.damage, why_suspected(tmp_path / "db")) == (None, "")
    with pytest.raises(DatabaseDamaged) as failed:
        list(store.snapshot().scan(b"", b"\xff"))
    assert store.damage is failed.value
    assert "checksum" in why_suspected(tmp_path / "db")
    store.close()


def test_refusal_of_the_system_leaves_the_database_unsuspected(tmp_path: Path) -> None:
    filled(tmp_path / "db")
    with pytest.raises(DiskRefused):
        raise _Health(tmp_path / "db").failed(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert why_suspected(tmp_path / "db") == ""
    suspect(tmp_path / "gone", "what has no folder cannot be noted")
