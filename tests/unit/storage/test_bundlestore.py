"""Bodies are found by hash, survive a restart, and go when they are old."""

import random
from pathlib import Path
from threading import Thread

import pytest

from node.ledger.wire.bundles import Bundle
from node.storage.bundlestore import REFUTED_MAX, BundleStore
from node.storage.errors import Damaged
from node.storage.frames import Frame


def bundle(number: int) -> Bundle:
    return Bundle(b"header %d" % number, bytes([number % 256]) * 64, b"body %d " % number * 9)


def fill(path: Path, count: int, segment_bytes: int = 600) -> BundleStore:
    store = BundleStore(path, segment_bytes)
    for number in range(count):
        store.height = number // 2
        store.append(bundle(number))
    store.sync()
    return store


def test_bundle_is_found_by_hash_also_after_a_restart(tmp_path: Path) -> None:
    fill(tmp_path, 20).close()
    store = BundleStore(tmp_path, 600)
    assert len(store) == 20
    for number in range(20):
        assert bundle(number).hash in store
        assert store.get(bundle(number).hash) == bundle(number)
    assert store.get(bytes(32)) is None


def test_same_bundle_is_kept_once(tmp_path: Path) -> None:
    store = fill(tmp_path, 1)
    size = (tmp_path / "000001").stat().st_size
    store.append(bundle(0))
    assert (tmp_path / "000001").stat().st_size == size


def test_bodies_are_durable_only_after_sync(tmp_path: Path) -> None:
    store = fill(tmp_path, 1)
    assert store.is_synced
    store.append(bundle(1))
    assert not store.is_synced
    store.sync()
    assert store.is_synced


def test_old_segments_go_and_younger_bodies_stay(tmp_path: Path) -> None:
    store = fill(tmp_path, 40)
    assert store.prune(0) == 0
    gone = store.prune(10)
    assert 0 < gone <= 20  # bodies 0..19 were dated below height 10
    for number in range(40):
        assert (bundle(number).hash in store) == (number >= gone)
    assert store.prune(10**9) > 0
    assert bundle(39).hash in store  # the newest segment is never dropped
    store.close()
    assert len(BundleStore(tmp_path, 600)) == len(store)


def test_nobody_waits_while_it_is_asked_what_is_settled(tmp_path: Path) -> None:
    store, given = fill(tmp_path, 40), 40

    def settled(name: bytes) -> int:
        nonlocal given
        other = Thread(target=lambda: store.append(bundle(given)), daemon=True)
        other.start()
        other.join(5)
        given += 1
        assert not other.is_alive(), "an append waited"
        return 0

    assert 0 < store.prune(10, settled) <= given - 40
    assert all(bundle(number).hash in store for number in range(20, given))
    store.close()


def test_body_that_came_anew_while_its_old_place_was_found_rotten_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, name = fill(tmp_path, 20), bundle(3).hash

    def read(*_: object) -> Frame:
        store.refute(name)  # as another thread may
        store.append(bundle(3))
        raise Damaged("a record is damaged")

    with monkeypatch.context() as patch:
        patch.setattr(store._log, "read", read)
        assert store.get(name) is None
    assert store.get(name) == bundle(3)
    assert store.damaged_count == 0
    store.close()


def test_segment_with_a_rotten_head_goes_too(tmp_path: Path) -> None:
    """Its bodies are then indexed twice: by heads up to there, and by frames."""
    fill(tmp_path, 40).close()
    path = tmp_path / "000001"
    data = path.read_bytes()
    half = len(data) // 2
    path.write_bytes(data[:half] + bytes(40) + data[half + 40 :])
    store = BundleStore(tmp_path, 600)
    held = len(store)
    gone = store.prune(10**9)
    assert len(store) == held - gone
    assert store.get(bundle(0).hash) is None
    store.close()


def test_pruning_after_a_restart_reads_the_dates_back(tmp_path: Path) -> None:
    expected = fill(tmp_path / "a", 40).prune(10)
    fill(tmp_path / "b", 40).close()
    assert BundleStore(tmp_path / "b", 600).prune(10) == expected


def test_rotted_body_is_forgotten_and_can_be_kept_again(tmp_path: Path) -> None:
    """Peers have it by hash: damage costs one body, never the store."""
    fill(tmp_path, 40).close()
    rng = random.Random(2)
    for path in sorted(tmp_path.iterdir())[:6]:
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(data))
    store = BundleStore(tmp_path, 600)
    lost = [number for number in range(40) if store.get(bundle(number).hash) is None]
    assert 1 <= len(lost) <= 6
    assert store.damaged_count >= 1
    for number in lost:
        store.append(bundle(number))
    for number in range(40):
        assert store.get(bundle(number).hash) == bundle(number)


def test_emptied_older_segment_is_damage(tmp_path: Path) -> None:
    fill(tmp_path, 40).close()
    sorted(tmp_path.iterdir())[1].write_bytes(b"")
    store = BundleStore(tmp_path, 600)
    assert store.damaged_count == 1
    assert store.get(bundle(39).hash) == bundle(39)
    store.close()


def test_torn_tail_costs_only_what_was_not_synced(tmp_path: Path) -> None:
    fill(tmp_path / "base", 3, segment_bytes=1 << 20).close()
    whole = (tmp_path / "base" / "000001").read_bytes()
    (tmp_path / "torn").mkdir()
    size = len(whole) // 3
    for cut in range(size, len(whole)):
        (tmp_path / "torn" / "000001").write_bytes(whole[:cut])
        store = BundleStore(tmp_path / "torn")
        assert len(store) == cut // size
        store.close()


def test_what_was_verified_takes_the_place_of_a_false_signature_for_good(tmp_path: Path) -> None:
    true, store = bundle(3), fill(tmp_path, 2)
    store.append(true._replace(signature=bytes(64)))
    store.confirm(true)
    assert store.get(true.hash) == true
    assert store.take_refuted(true.hash)
    store.append(true._replace(signature=b"x" * 64))
    assert store.get(true.hash) == true, "what is held is not replaced by who knows what"
    size = (tmp_path / "000001").stat().st_size
    store.confirm(true)
    assert (tmp_path / "000001").stat().st_size == size
    store.close()
    assert BundleStore(tmp_path, 600).get(true.hash) == true


def test_what_was_refuted_is_missing_until_it_comes_again(tmp_path: Path) -> None:
    store, true = fill(tmp_path, 2), bundle(1)
    store.refute(true.hash)
    assert true.hash not in store
    assert store.take_refuted(true.hash)
    assert not store.take_refuted(true.hash), "told once"
    store.append(true)
    assert store.get(true.hash) == true


def test_as_many_refuted_are_remembered_as_there_is_room_for(tmp_path: Path) -> None:
    store = fill(tmp_path, 1)
    for number in range(REFUTED_MAX + 1):
        store.refute(number.to_bytes(32, "big"))
    assert not store.take_refuted(bytes(32))
    assert store.take_refuted((1).to_bytes(32, "big"))
