"""Blobs: every chunk is proven, a liar is left, nothing from the wire becomes a path."""

import os
import random
import time
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import trio
from bundle_kit import party
from exchange_kit import at_once

from consensus.primitives import merkle
from consensus.primitives.encoding import encode
from consensus.primitives.errors import Invalid
from node.peering import blobparts, blobstore
from node.peering.blobparts import CHUNK_BYTES
from node.peering.blobs import READING_RETRY_MS, SETTLE_S, Blobs, _BlobGoods, _check_described
from node.peering.blobstore import (
    ADAPTER,
    FREE_BYTES_MIN,
    PARTS_KEPT_S,
    BlobStore,
    Entry,
    NoRoom,
    check_name,
)
from p2p.errors import Code, Misbehaving, Refused, Unreachable
from p2p.memory import MemoryHub

KEYS = [party(f"node {i}").key for i in range(3)]
IDENTITY = b"\x07" * 32
OTHER_IDENTITY = b"\x08" * 32


def make_folder(root, size: int = CHUNK_BYTES + 17):
    folder = root / "adapter"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.safetensors").write_bytes(random.Random(1).randbytes(size))
    (folder / "sub" / "b.json").write_bytes(b"{}")
    return folder


def store(folder, quota: int = 1 << 30) -> BlobStore:
    return BlobStore(folder / "blobs", quota)


@asynccontextmanager
async def three(tmp_path):
    hub = MemoryHub(seed=3)
    made = []
    async with trio.open_nursery() as nursery:
        for i, key in enumerate(KEYS):
            network = hub.network(key)
            one = Blobs(network=network, store=store(tmp_path / str(i)), run_blocking=at_once)
            one.serve()
            await nursery.start(network.run)
            made.append(one)
        await trio.sleep(3)
        yield made
        nursery.cancel_scope.cancel()


async def fetch(one, tmp_path, peers, check=lambda folder: None, bytes_max=1 << 30):
    return await one.fetch(
        ADAPTER, IDENTITY, tmp_path / "got", peers=peers, bytes_max=bytes_max, check=check
    )


async def test_a_folder_comes_whole_and_is_served_on(tmp_path, autojump_clock) -> None:
    async with three(tmp_path) as nodes:
        folder = make_folder(tmp_path)
        listing = nodes[0]._store.add_folder(ADAPTER, IDENTITY, folder)
        assert [e.name for e in listing] == ["a.safetensors", "sub/b.json"]
        await fetch(nodes[1], tmp_path, [KEYS[0]])
        for name in ("a.safetensors", "sub/b.json"):
            assert (tmp_path / "got" / name).read_bytes() == (folder / name).read_bytes()
        assert nodes[1].counters["fetched_bytes"] == CHUNK_BYTES + 17 + 2
        await nodes[2].fetch(
            ADAPTER, IDENTITY, tmp_path / "again", peers=[KEYS[1]], bytes_max=1 << 30,
            check=lambda folder: None,
        )  # fmt: skip
        assert (tmp_path / "again" / "sub" / "b.json").read_bytes() == b"{}"


async def test_a_listing_outlives_a_restart(tmp_path) -> None:
    first = store(tmp_path)
    listing = first.add_folder(ADAPTER, IDENTITY, make_folder(tmp_path))
    assert store(tmp_path).listing(ADAPTER, IDENTITY) == listing


async def test_a_false_chunk_costs_its_source_and_the_next_is_asked(tmp_path, autojump_clock):
    async with three(tmp_path) as nodes:
        folder = make_folder(tmp_path)
        for one in nodes[:2]:
            one._store.add_folder(ADAPTER, IDENTITY, folder)
        true_chunk = nodes[0]._store.chunk

        def lie(blob_id: bytes, index: int) -> tuple[bytes, tuple[bytes, ...]]:
            data, path = true_chunk(blob_id, index)
            return bytes([data[0] ^ 1]) + data[1:], path

        nodes[0]._store.chunk = lie
        await fetch(nodes[2], tmp_path, KEYS[:2])
        assert nodes[2].counters["chunks_false"] >= 1
        assert (tmp_path / "got" / "sub" / "b.json").read_bytes() == b"{}"


async def test_a_false_identity_is_left_and_nothing_remains(tmp_path, autojump_clock) -> None:
    async with three(tmp_path) as nodes:
        nodes[0]._store.add_folder(ADAPTER, IDENTITY, make_folder(tmp_path))

        def check(folder) -> None:
            raise Invalid("adapter.hash")

        with pytest.raises(Unreachable):
            await fetch(nodes[1], tmp_path, [KEYS[0]], check)
        assert nodes[1].counters["listings_false"] == 1
        assert not (tmp_path / "got").exists()
        assert nodes[1]._store.listing(ADAPTER, IDENTITY) is None


async def test_a_false_listing_ends_nothing_that_another_fetch_has_under_way(
    tmp_path, autojump_clock
) -> None:
    """A liar may list another's blobs; what came of them was thrown away with its lie."""
    async with three(tmp_path) as nodes:
        folder = make_folder(tmp_path)
        listing = nodes[0]._store.add_folder(ADAPTER, IDENTITY, folder)
        nodes[1]._store.add_folder(ADAPTER, OTHER_IDENTITY, folder)
        mine, large = nodes[2], listing[0]
        true_take_in, has_lied = mine._take_in, trio.Event()

        async def wait_for_the_lie(kind, identity, *rest):
            if identity == IDENTITY:
                await has_lied.wait()
            return await true_take_in(kind, identity, *rest)

        def refuse(folder) -> None:
            raise Invalid("adapter.hash")

        mine._take_in = wait_for_the_lie
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch, mine, tmp_path, [KEYS[0]])
            await trio.sleep(SETTLE_S)
            with pytest.raises(Unreachable):
                await mine.fetch(
                    ADAPTER, OTHER_IDENTITY, tmp_path / "false", peers=[KEYS[1]],
                    bytes_max=1 << 30, check=refuse,
                )  # fmt: skip
            assert mine._store.has(large.blob_id)
            has_lied.set()
        assert (tmp_path / "got" / large.name).read_bytes() == (folder / large.name).read_bytes()
        assert not mine._in_use


async def test_a_listing_that_makes_no_folder_costs_its_source_and_the_next_is_asked(
    tmp_path, autojump_clock
) -> None:
    """A file where another one wants its folder: it broke off the whole fetch."""
    async with three(tmp_path) as nodes:
        nodes[1]._store.add_folder(ADAPTER, IDENTITY, make_folder(tmp_path))
        (_, entry) = nodes[1]._store.listing(ADAPTER, IDENTITY)
        nodes[0]._store.add_folder(ADAPTER, IDENTITY, make_folder(tmp_path / "same"))
        nodes[0]._store._listings[ADAPTER, IDENTITY] = (
            entry._replace(name="sub"),
            entry._replace(name="sub-"),  # between the two in order
            entry,
        )
        await fetch(nodes[2], tmp_path, KEYS[:2])
        assert nodes[2].counters["sources_false"] == 1
        assert (tmp_path / "got" / "sub" / "b.json").read_bytes() == b"{}"


async def test_a_blob_that_rotted_here_is_fetched_anew_and_its_source_not_blamed(
    tmp_path, autojump_clock
) -> None:
    async with three(tmp_path) as nodes:
        nodes[0]._store.add_folder(ADAPTER, IDENTITY, make_folder(tmp_path))
        await fetch(nodes[1], tmp_path, [KEYS[0]])
        rotted = tmp_path / "got" / "sub" / "b.json"
        with rotted.open("r+b") as file:
            file.write(b"]")

        def check(folder) -> None:
            if (folder / "sub" / "b.json").read_bytes() != b"{}":
                raise Invalid("adapter.hash")

        await fetch(nodes[1], tmp_path, [KEYS[0]], check)
        assert rotted.read_bytes() == b"{}"
        assert nodes[1].counters["listings_false"] == 0
        assert nodes[1].counters["fetched_bytes"] == CHUNK_BYTES + 19 + 2  # the one file again


async def test_a_blob_that_a_power_cut_emptied_is_fetched_anew_and_no_source_blamed(
    tmp_path, autojump_clock
) -> None:
    async with three(tmp_path) as nodes:
        listing = nodes[0]._store.add_folder(ADAPTER, IDENTITY, make_folder(tmp_path))
        emptied = nodes[1]._store.path(listing[1].blob_id)
        emptied.parent.mkdir()
        emptied.touch()
        with pytest.raises(Refused):
            await nodes[1].answer(KEYS[2], encode((0, listing[1].blob_id)))
        emptied.touch()
        await fetch(nodes[1], tmp_path, [KEYS[0]])
        assert (tmp_path / "got" / "sub" / "b.json").read_bytes() == b"{}"
        assert nodes[1].counters["sources_false"] == 0


def test_a_rotted_blob_is_replaced_by_the_true_file_that_is_added(tmp_path) -> None:
    """Else we would serve the rotted bytes with the true file's proofs, and be penalised."""
    held = store(tmp_path)
    folder = make_folder(tmp_path)
    listing = held.add_folder(ADAPTER, IDENTITY, folder)
    rotted = folder / "sub" / "b.json"
    with rotted.open("r+b") as file:  # the blob is the same file by a second name
        file.write(b"]")
    rotted.unlink()
    rotted.write_bytes(b"{}")
    assert held.add_folder(ADAPTER, IDENTITY, folder) == listing
    assert held.path(listing[1].blob_id).read_bytes() == b"{}"


def test_adding_a_folder_again_leaves_no_part_behind(tmp_path) -> None:
    """A rename onto another name of the same file does nothing, also not away with the old one."""
    held, folder = store(tmp_path), make_folder(tmp_path)
    for _ in range(2):
        held.add_folder(ADAPTER, IDENTITY, folder)
    assert list((tmp_path / "blobs").rglob("*.part")) == []


async def test_no_room_here_blames_no_source(tmp_path, autojump_clock) -> None:
    async with three(tmp_path) as nodes:
        nodes[0]._store.add_folder(ADAPTER, IDENTITY, make_folder(tmp_path))
        nodes[1]._store = store(tmp_path / "small", quota=CHUNK_BYTES)
        blamed = []
        nodes[1]._blame = lambda peer, reason: blamed.append(peer)
        with pytest.raises(Invalid, match=r"blob\.quota"):
            await fetch(nodes[1], tmp_path, KEYS[:1])
        assert blamed == []
        assert nodes[1].counters["fetched_bytes"] == 0
        assert list((tmp_path / "small" / "blobs").glob("??/*")) == [], "not one byte"


async def test_a_full_disk_is_told_before_a_byte(tmp_path, autojump_clock, monkeypatch) -> None:
    async with three(tmp_path) as nodes:
        nodes[0]._store.add_folder(ADAPTER, IDENTITY, make_folder(tmp_path))
        free = FREE_BYTES_MIN + CHUNK_BYTES + 18
        monkeypatch.setattr(
            blobstore.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free)
        )
        with pytest.raises(NoRoom, match=r"blob\.disk"):
            await fetch(nodes[1], tmp_path, KEYS[:1])
        assert nodes[1].counters["fetched_bytes"] == 0
        free += 1
        await fetch(nodes[1], tmp_path, KEYS[:1])


def test_a_part_takes_no_room_twice(tmp_path) -> None:
    """A fetch that goes on near the quota is not refused for what it has itself."""
    held = store(tmp_path, quota=4 * CHUNK_BYTES)
    entry, other = (Entry("a", name * 32, 3 * CHUNK_BYTES) for name in (b"a", b"b"))
    held.part(entry.blob_id, entry.length).close()
    held.check_room([entry])
    with pytest.raises(NoRoom):
        held.check_room([other])


def test_a_part_that_nobody_goes_on_with_is_dropped_after_a_week(tmp_path) -> None:
    held = store(tmp_path)
    for name, age_s in ((b"a", PARTS_KEPT_S + 60), (b"b", 60)):
        held.part(name * 32, 5).close()
        for path in blobparts.part_paths(held.path(name * 32)):
            os.utime(path, (time.time() - age_s,) * 2)
    store(tmp_path)
    left = {path.name.partition(".")[0] for path in (tmp_path / "blobs").glob("??/*")}
    assert left == {(b"b" * 32).hex()}


async def test_more_than_the_caller_wants_is_refused_before_a_byte(tmp_path, autojump_clock):
    async with three(tmp_path) as nodes:
        nodes[0]._store.add_folder(ADAPTER, IDENTITY, make_folder(tmp_path))
        total = CHUNK_BYTES + 19
        with pytest.raises(Unreachable):
            await fetch(nodes[1], tmp_path, [KEYS[0]], bytes_max=total - 1)
        assert nodes[1].counters["fetched_bytes"] == 0
        await fetch(nodes[2], tmp_path, [KEYS[0]], bytes_max=total)


async def test_a_source_that_hangs_holds_up_nothing(tmp_path, autojump_clock) -> None:
    async with three(tmp_path) as nodes:
        nodes[0]._store.add_folder(ADAPTER, IDENTITY, make_folder(tmp_path))
        true_request = nodes[2]._network.request

        async def hang(peer, *told, **more):
            if peer == KEYS[1]:
                await trio.sleep_forever()
            return await true_request(peer, *told, **more)

        nodes[2]._network.request = hang
        began_s = trio.current_time()
        await fetch(nodes[2], tmp_path, [KEYS[1], KEYS[0]])
        assert trio.current_time() - began_s < 4 * SETTLE_S


async def test_the_listing_that_two_tell_goes_before_that_of_one(tmp_path, autojump_clock) -> None:
    async with three(tmp_path) as nodes:
        true, other = make_folder(tmp_path), make_folder(tmp_path / "other", size=5)
        nodes[0]._store.add_folder(ADAPTER, IDENTITY, other)
        blamed = []
        async with more_of(nodes, tmp_path, 2) as (third, fourth):
            for one in (nodes[1], third):
                one._store.add_folder(ADAPTER, IDENTITY, true)
            fourth._blame = lambda peer, reason: blamed.append(peer)
            sources = [KEYS[0], KEYS[1], third._network.me]
            await fetch(fourth, tmp_path, sources)
        assert (tmp_path / "got" / "a.safetensors").stat().st_size == CHUNK_BYTES + 17
        assert blamed == []


@asynccontextmanager
async def more_of(nodes, tmp_path, count):
    """More nodes on the hub of those."""
    hub = nodes[0]._network._hub
    async with trio.open_nursery() as nursery:
        made = []
        for i in range(count):
            network = hub.network(party(f"more {i}").key)
            one = Blobs(network=network, store=store(tmp_path / f"m{i}"), run_blocking=at_once)
            one.serve()
            await nursery.start(network.run)
            made.append(one)
        await trio.sleep(3)
        yield made
        nursery.cancel_scope.cancel()


async def test_of_a_false_identity_no_blob_stays_but_those_of_a_true_one(
    tmp_path, autojump_clock
) -> None:
    """Else a liar fills our quota with what nobody asks for."""
    async with three(tmp_path) as nodes:
        folder = make_folder(tmp_path)
        nodes[0]._store.add_folder(ADAPTER, IDENTITY, folder)
        shared = folder / "sub"
        nodes[1]._store.add_folder(ADAPTER, b"\x08" * 32, shared)

        def check(folder) -> None:
            raise Invalid("adapter.hash")

        with pytest.raises(Unreachable):
            await fetch(nodes[1], tmp_path, [KEYS[0]], check)
        left = list((tmp_path / "1" / "blobs").glob("??/*"))
        assert [path.read_bytes() for path in left] == [b"{}"]


async def test_what_rotted_on_our_disk_is_not_sent(tmp_path, autojump_clock) -> None:
    """It would be a lie of ours: 50 points."""
    async with three(tmp_path) as nodes:
        listing = nodes[0]._store.add_folder(ADAPTER, IDENTITY, make_folder(tmp_path))
        with nodes[0]._store.path(listing[0].blob_id).open("r+b") as file:
            file.write(b"rot")
        with pytest.raises(Unreachable):
            await fetch(nodes[1], tmp_path, [KEYS[0]])
        assert nodes[1].counters["chunks_false"] == nodes[1].counters["sources_false"] == 0
        assert not nodes[0]._store.has(listing[0].blob_id)


async def test_one_blob_at_a_time_is_read_whole_and_others_are_told_to_wait(
    tmp_path, autojump_clock
) -> None:
    """After a start each thread of ours could else be made to read a file of gigabytes."""
    store(tmp_path).add_folder(ADAPTER, IDENTITY, make_folder(tmp_path))
    reading = trio.Event()

    async def slow(function, *arguments):
        reading.set()
        await trio.sleep(60)
        return function(*arguments)

    started = store(tmp_path)
    one = Blobs(network=MemoryHub(1).network(KEYS[0]), store=started, run_blocking=slow)
    (first, _) = started.listing(ADAPTER, IDENTITY)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.answer, KEYS[1], encode((0, first.blob_id)))
        await reading.wait()
        with pytest.raises(Refused) as refused:
            await one.answer(KEYS[2], encode((1, first.blob_id, 0)))
        assert (refused.value.code, refused.value.retry_ms) == (Code.BUSY, READING_RETRY_MS)
    await one.answer(KEYS[2], encode((1, first.blob_id, 0)))


async def test_how_far_a_fetch_is_can_be_seen(tmp_path, autojump_clock) -> None:
    async with three(tmp_path) as nodes:
        nodes[0]._store.add_folder(ADAPTER, IDENTITY, make_folder(tmp_path))
        seen = []

        true_note = _BlobGoods.note_kept

        def note(goods, index) -> None:
            true_note(goods, index)
            seen.extend((each.bytes_here, each.bytes_total) for each in nodes[1].coming())

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_BlobGoods, "note_kept", note)
            await fetch(nodes[1], tmp_path, [KEYS[0]])
        total = CHUNK_BYTES + 19
        assert {of for _, of in seen} == {total}
        assert [here for here, _ in seen] == sorted(here for here, _ in seen)
        assert seen[-1] == (total, total)
        assert nodes[1].coming() == ()


@pytest.mark.parametrize(
    "described",
    [
        lambda length, path, have: ((length + 1, CHUNK_BYTES), path, have),
        lambda length, path, have: ((length, CHUNK_BYTES - 1), path, have),
        lambda length, path, have: ((length, CHUNK_BYTES), path[:-1], have),
        lambda length, path, have: ((length, CHUNK_BYTES), [*path[:-1], bytes(32)], have),
        lambda length, path, have: ((length, CHUNK_BYTES), path, have + b"\0"),
        lambda length, path, have: ((length, CHUNK_BYTES), path, b""),
    ],
)
def test_a_description_that_proves_no_length_is_false(tmp_path, described) -> None:
    held = store(tmp_path)
    entry = held.add_folder(ADAPTER, IDENTITY, make_folder(tmp_path))[0]
    length, path, have = held.describe(entry.blob_id)
    assert _check_described(entry, encode(((length, CHUNK_BYTES), path, have))) == b"\x03"
    with pytest.raises(Invalid):
        _check_described(entry, encode(described(length, list(path), have)))


async def test_no_source_is_unreachable(tmp_path, autojump_clock) -> None:
    async with three(tmp_path) as nodes:
        with pytest.raises(Unreachable):
            await fetch(nodes[1], tmp_path, KEYS)


def test_above_the_quota_nothing_is_taken(tmp_path) -> None:
    held = store(tmp_path, quota=100)
    held.check_room([Entry("a", bytes(32), 60), Entry("b", b"b" * 32, 40)])
    with pytest.raises(Invalid, match=r"blob\.quota"):
        held.check_room([Entry("a", bytes(32), 60), Entry("b", b"b" * 32, 41)])


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../b", ".hidden", "a//b", "a\\b", "", "é", "a/b/c/d", "a\0"]
)
def test_a_name_that_could_leave_its_folder_is_refused(name: str) -> None:
    with pytest.raises(Invalid, match=r"blob\.name"):
        check_name(name)


def test_a_listing_with_a_bad_name_order_or_length_is_refused() -> None:
    good = [(b"a", bytes(32), 5), (b"b", bytes(32), 5)]
    blobstore.decode_listing(encode(good))
    for bad in (
        good[::-1], [good[0], good[0]], [(b"../a", bytes(32), 5)], [(b"a", bytes(32), 0)], [],
        [(b"\xff", bytes(32), 1)],
    ):  # fmt: skip
        with pytest.raises(Invalid):
            blobstore.decode_listing(encode(bad))


@pytest.mark.parametrize("size", [1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_an_id_binds_every_chunk_and_the_length(tmp_path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    path = tmp_path / "file"
    path.write_bytes(data)
    chunks = [data[i : i + CHUNK_BYTES] for i in range(0, size, CHUNK_BYTES)]
    leaves = [blobparts.first_leaf(size), *chunks]
    assert merkle.root_of_hashes(blobstore.leaves_of(path)) == merkle.root(leaves)
    assert len(leaves) == blobparts.leaf_count(size)


def test_an_empty_file_is_no_blob(tmp_path) -> None:
    path = tmp_path / "empty"
    path.touch()
    with pytest.raises(Invalid, match=r"blob\.length"):
        blobstore.leaves_of(path)


async def test_questions_that_make_no_sense_count_against_who_asks(tmp_path) -> None:
    one = Blobs(network=MemoryHub(1).network(KEYS[0]), store=store(tmp_path), run_blocking=at_once)
    for body in (b"", b"\xc1", b"\x92\x09\xc4\x00", b"\x92\x00\xc4\x01a"):
        with pytest.raises(Misbehaving):
            await one.answer(KEYS[1], body)
    with pytest.raises(Refused):
        await one.answer(KEYS[1], encode((0, bytes(32))))
    with pytest.raises(Refused):
        await one.answer(KEYS[1], encode((2, 1, bytes(32))))


@pytest.mark.parametrize("junk", ["3-old", "9-zz", "1-" + "0" * 64])
def test_a_listing_that_cannot_be_read_keeps_no_node_from_its_start(tmp_path, junk: str) -> None:
    made = store(tmp_path)
    made.add_folder(ADAPTER, IDENTITY, make_folder(tmp_path))
    (tmp_path / "blobs" / "listings" / junk).write_bytes(b"no listing")
    (tmp_path / "blobs" / "listings" / "2-folder").mkdir()
    assert store(tmp_path).listing(ADAPTER, IDENTITY) == made.listing(ADAPTER, IDENTITY)
