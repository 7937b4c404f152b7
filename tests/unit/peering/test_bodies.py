"""Bodies of more than a chunk: from several sources, each chunk proven, gone on with, bounded."""

import errno
import random
from collections import Counter
from contextlib import asynccontextmanager

import pytest
import trio
from bundle_kit import bundle_around, party
from exchange_kit import at_once

from consensus.primitives.encoding import encode
from node.ledger.wire.bundles import BODY_BYTES_MAX, Bundle
from node.peering import bodies
from node.peering.blobparts import CHUNK_BYTES, BlobPart
from node.peering.blobs import Blobs
from node.peering.blobstore import BUNDLE, PASSING_MAX, PASSING_NAME, BlobStore
from node.peering.bodies import LentBodies, fetch_body
from p2p.errors import Code, Refused, Unreachable
from p2p.memory import MemoryHub

KEYS = [party(f"node {i}").key for i in range(4)]


def bundle_of(size: int, seed: int = 1) -> Bundle:
    return bundle_around(random.Random(seed).randbytes(size), seed)


def without_body(bundle: Bundle) -> Bundle:
    return bundle._replace(body=b"")


class Node:
    """`held`: bundles by hash. `penalties`: (whom, why)."""

    def __init__(self, hub: MemoryHub, key: bytes, folder) -> None:
        self.network = hub.network(key)
        self.held: dict[bytes, Bundle] = {}
        self.lent = LentBodies(self.held.get)
        self.blobs = Blobs(
            network=self.network, store=BlobStore(folder / key.hex()[:8], 1), lent=self.lent,
            run_blocking=at_once,
        )  # fmt: skip
        self.penalties: list[tuple[bytes, str]] = []
        self.network.penalise = lambda peer, points, why: self.penalties.append((peer, why))
        self.blobs.serve()

    def hold(self, bundle: Bundle) -> None:
        self.held[bundle.hash] = bundle

    async def fetch(self, bundle: Bundle, *others: "Node") -> Bundle:
        return await fetch_body(
            self.blobs, without_body(bundle), [other.network.me for other in others]
        )


@asynccontextmanager
async def four(tmp_path):
    hub = MemoryHub(seed=5)
    nodes = [Node(hub, key, tmp_path) for key in KEYS]
    async with trio.open_nursery() as nursery:
        for node in nodes:
            await nursery.start(node.network.run)
        await trio.sleep(3)
        yield nodes
        nursery.cancel_scope.cancel()


async def test_two_sources_give_a_chunk_each_though_the_quota_of_blobs_is_full(
    tmp_path, autojump_clock
) -> None:
    async with four(tmp_path) as (one, other, _, mine):
        bundle = bundle_of(BODY_BYTES_MAX)
        for node in (one, other):
            node.hold(bundle)
        assert await mine.fetch(bundle, one, other) == bundle
        assert mine.blobs.counters["chunks"] == 2
        for node in (one, other):
            assert CHUNK_BYTES <= node.blobs.counters["served_bytes"] < CHUNK_BYTES + 1_000
        assert list((tmp_path / KEYS[3].hex()[:8]).glob("??/*")) == []


async def test_a_false_chunk_is_found_by_itself_and_comes_from_the_other(
    tmp_path, autojump_clock
) -> None:
    async with four(tmp_path) as (liar, honest, _, mine):
        bundle = bundle_of(BODY_BYTES_MAX)
        for node in (liar, honest):
            node.hold(bundle)
        true_chunk = liar.lent.chunk

        def lie(blob_id, index):
            data, path = true_chunk(blob_id, index)
            return data[:-1] + bytes([data[-1] ^ 1]), path

        liar.lent.chunk = lie
        assert await mine.fetch(bundle, liar, honest) == bundle
        assert mine.penalties == [(liar.network.me, "false_chunk")]
        assert mine.blobs.counters["chunks_false"] == 1


async def test_what_came_before_a_source_ended_is_not_asked_for_again(
    tmp_path, autojump_clock
) -> None:
    async with four(tmp_path) as (ending, other, _, mine):
        bundle = bundle_of(CHUNK_BYTES + 1)
        for node in (ending, other):
            node.hold(bundle)
        true_chunk = ending.lent.chunk

        def end_after_the_first(blob_id, index):
            if index:
                raise Refused(Code.CLOSING)
            return true_chunk(blob_id, index)

        ending.lent.chunk = end_after_the_first
        with pytest.raises(Unreachable):
            await mine.fetch(bundle, ending)
        assert await mine.fetch(bundle, other) == bundle
        assert mine.blobs.counters["chunks_resumed"] == 1
        assert other.blobs.counters["served_bytes"] < 1_000, "one byte was missing"
        assert mine.penalties == []


async def test_a_false_tree_costs_its_teller_and_the_next_one_is_tried(
    tmp_path, autojump_clock
) -> None:
    async with four(tmp_path) as (liar, honest, shorter, mine):
        bundle = bundle_of(CHUNK_BYTES + 9)
        liar.held[bundle.hash] = bundle_of(len(bundle.body), seed=2)
        shorter.held[bundle.hash] = bundle_of(len(bundle.body) - 1, seed=3)
        honest.hold(bundle)
        assert await mine.fetch(bundle, liar, shorter, honest) == bundle
        assert sorted(mine.penalties) == sorted(
            (node.network.me, "forged") for node in (liar, shorter)
        )
        with pytest.raises(Unreachable):
            await mine.fetch(bundle, liar)


@pytest.mark.parametrize(("size", "is_lent"), [(CHUNK_BYTES, False), (CHUNK_BYTES + 1, True)])
def test_only_what_is_more_than_a_chunk_is_lent(size: int, is_lent: bool) -> None:
    bundle = bundle_of(size)
    assert (LentBodies({bundle.hash: bundle}.get).listing(bundle.hash) is not None) == is_lent


def test_a_body_that_is_gone_or_a_chunk_that_is_none_is_not_found() -> None:
    bundle = bundle_of(CHUNK_BYTES + 1)
    held = {bundle.hash: bundle}
    lent = LentBodies(held.get)
    assert lent.listing(bytes(32)) is None
    (entry,) = lent.listing(bundle.hash)
    assert lent.chunk(entry.blob_id, 1)[0] == bundle.body[-1:]
    with pytest.raises(Refused):
        lent.chunk(entry.blob_id, 2)
    held.clear()
    with pytest.raises(Refused):
        lent.chunk(entry.blob_id, 0)
    with pytest.raises(Refused):
        lent.describe(bytes(32))


def test_a_body_is_read_whole_once_however_often_it_is_listed() -> None:
    """Else 36 bytes of a peer's would have us read and hash 2 MiB, each time."""
    bundle, read = bundle_of(BODY_BYTES_MAX), []
    lent = LentBodies(lambda name: read.append(name) or bundle)
    assert not lent.is_listed(bundle.hash)
    (entry,) = lent.listing(bundle.hash)
    for _ in range(3):
        assert lent.is_listed(bundle.hash)
        assert lent.listing(bundle.hash) == (entry,)
        assert lent.describe(entry.blob_id)[0] == BODY_BYTES_MAX
    assert len(read) == 1


async def test_bodies_are_read_one_after_the_other_for_their_first_listing(
    tmp_path, autojump_clock
) -> None:
    async with four(tmp_path) as (one, _, _, mine):
        bundles = [bundle_of(CHUNK_BYTES + 1, seed) for seed in range(3)]
        for bundle in bundles:
            one.hold(bundle)
        reading = 0

        async def slowly(function, *arguments):
            nonlocal reading
            reading += 1
            assert reading == 1
            await trio.sleep(0.01)
            reading -= 1
            return function(*arguments)

        one.blobs._run_blocking = slowly
        codes = Counter()

        async def ask(bundle: Bundle) -> None:
            question = encode((2, BUNDLE, bundle.hash))
            try:
                await one.blobs.answer(mine.network.me, question)
            except Refused as refused:
                codes[refused.code] += 1

        async with trio.open_nursery() as nursery:
            for bundle in bundles:
                nursery.start_soon(ask, bundle)
        assert codes == {Code.BUSY: 2}


def test_trees_that_are_remembered_are_bounded(monkeypatch) -> None:
    monkeypatch.setattr(bodies, "LENT_MAX", 2)
    held = {bundle.hash: bundle for bundle in (bundle_of(CHUNK_BYTES + 1, n) for n in range(3))}
    lent = LentBodies(held.get)
    names = [lent.listing(name)[0].blob_id for name in held]
    assert [name in lent for name in names] == [False, True, True]


async def test_halves_that_wait_on_the_disk_are_bounded(tmp_path, autojump_clock) -> None:
    """The oldest goes first, by what a store finds at its start too."""
    async with four(tmp_path) as (ending, _, _, mine):
        true_chunk = ending.lent.chunk
        ending.lent.chunk = lambda blob_id, index: true_chunk(blob_id, 2 if index else 0)
        folder = tmp_path / KEYS[3].hex()[:8]
        bundles = [bundle_of(CHUNK_BYTES + 1, seed) for seed in range(PASSING_MAX + 2)]
        for bundle in bundles:
            if bundle is bundles[-1]:
                mine.blobs._store = BlobStore(folder, 1)
            ending.hold(bundle)
            with pytest.raises(Unreachable):
                await mine.fetch(bundle, ending)
        newest = {ending.lent.listing(bundle.hash)[0].blob_id.hex() for bundle in bundles[2:]}
        assert {path.stem for path in (folder / PASSING_NAME).glob("*.part")} == newest
        assert {path.stem for path in (folder / PASSING_NAME).glob("*.notes")} == newest


async def test_a_disk_that_takes_nothing_is_nobodys_fault(
    tmp_path, autojump_clock, monkeypatch
) -> None:
    async with four(tmp_path) as (one, _, _, mine):
        bundle = bundle_of(BODY_BYTES_MAX)
        one.hold(bundle)

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "full")

        with monkeypatch.context() as patch:
            patch.setattr("node.peering.blobparts._write_all", full)
            with pytest.raises(Unreachable):
                await mine.fetch(bundle, one)
        assert mine.penalties == []
        assert await mine.fetch(bundle, one) == bundle, "once there is room"


async def test_what_rots_while_it_waits_is_dropped_and_fetched_again(
    tmp_path, autojump_clock, monkeypatch
) -> None:
    async with four(tmp_path) as (one, _, _, mine):
        bundle = bundle_of(BODY_BYTES_MAX)
        one.hold(bundle)
        true_whole = BlobPart.whole

        def rot(part: BlobPart) -> bytes | None:
            (path,) = (tmp_path / KEYS[3].hex()[:8] / PASSING_NAME).glob("*.part")
            path.write_bytes(b"\0" * path.stat().st_size)
            return true_whole(part)

        with monkeypatch.context() as patch:
            patch.setattr(BlobPart, "whole", rot)
            with pytest.raises(Unreachable):
                await mine.fetch(bundle, one)
        assert mine.penalties == []
        assert await mine.fetch(bundle, one) == bundle


async def test_a_lent_body_is_none_of_the_files_that_are_listed(tmp_path, autojump_clock) -> None:
    """The kind is part of the name: no other content has a bundle's hash for an identity."""
    async with four(tmp_path) as (one, _, _, mine):
        bundle = bundle_of(CHUNK_BYTES + 1)
        one.hold(bundle)
        for kind in range(1, 8):
            question = encode((2, kind, bundle.hash))
            asked = mine.network.request(
                one.network.me, "blob", question, timeout_s=5, bytes_max=1_000
            )
            if kind == BUNDLE:
                await asked
            else:
                with pytest.raises(Refused):
                    await asked
