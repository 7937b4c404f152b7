"""State sync: several sources, every chunk checked, liars scored, and no beginning is lost."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from bundle_kit import party
from exchange_kit import at_once
from network_kit import wait_until
from snapshot_kit import Snapped, put_part
from stored_kit import GENESIS

from consensus.header import Header
from consensus.primitives.digest import sha256
from consensus.primitives.encoding import encode
from consensus.primitives.errors import Invalid
from node.peering import statesync
from node.peering.chunks import FAILURES_MAX
from node.peering.snapshotting import CHUNK, SnapshotKeeper
from node.peering.statesync import StateSync
from node.storage.adopting import PREPARED_NAME, take_in
from node.storage.chain import Chain
from node.storage.snapshots import Manifest, SnapshotStore, encode_manifest
from p2p.errors import Code, Refused
from p2p.limits import PENALTIES, PROTOCOLS
from p2p.memory import MemoryHub
from p2p.network import PeerId, StatusFacts

CHAIN_ID = sha256(GENESIS)
KEYS = [PeerId(party(f"server {i}").key) for i in range(6)]
Answer = Callable[[PeerId, bytes], Awaitable[bytes]]
Twist = Callable[[Answer], Answer]


@pytest.fixture(scope="module")
def snapped(tmp_path_factory: pytest.TempPathFactory) -> Snapped:
    return Snapped(tmp_path_factory.mktemp("snapped"))


def honest(answer: Answer) -> Answer:
    return answer


def _chunks_only(change: Callable[[bytes], Awaitable[bytes]]) -> Twist:
    def twist(answer: Answer) -> Answer:
        async def changed(peer: PeerId, body: bytes) -> bytes:
            raw = await answer(peer, body)
            return await change(raw) if body[1] == CHUNK else raw

        return changed

    return twist


async def _flip(raw: bytes) -> bytes:
    return raw[:-1] + bytes([raw[-1] ^ 1])


async def _stall(raw: bytes) -> bytes:
    await trio.sleep_forever()
    raise AssertionError


async def _linger(raw: bytes) -> bytes:
    await trio.sleep(0.3)
    return raw


lying, stalling, slow = _chunks_only(_flip), _chunks_only(_stall), _chunks_only(_linger)


def dying_after(count: int) -> Twist:
    """Gives so many chunks, then has none any more."""
    given = [0]

    async def few(raw: bytes) -> bytes:
        given[0] += 1
        if given[0] > count:
            raise Refused(Code.NOT_FOUND)
        return raw

    return _chunks_only(few)


def telling(manifest: Manifest) -> Twist:
    """Tells of a snapshot that is not the one it has."""

    def twist(answer: Answer) -> Answer:
        async def changed(peer: PeerId, body: bytes) -> bytes:
            told = encode((encode_manifest(manifest),))
            return await answer(peer, body) if body[1] == CHUNK else told

        return changed

    return twist


class World:
    """A node without blocks, and servers with a snapshot, each with its manners."""

    def __init__(self, snapped: Snapped, home: Path) -> None:
        self.hub = MemoryHub(seed=5)
        self.snapped, self.home = snapped, home
        self.network = self.hub.network(party("newcomer").key, chain_id=CHAIN_ID)
        self.asked: list[tuple[PeerId, int]] = []  # chunks
        self.heights: list[int] = []  # headers

    def server(self, key: PeerId, twist: Twist, store: SnapshotStore | None = None) -> Any:
        store = store or self.snapped.store
        keeper = SnapshotKeeper(
            store=store, get_view=self.snapped.made.chain.view, run_blocking=at_once
        )
        network = self.hub.network(
            key,
            chain_id=CHAIN_ID,
            facts=lambda: StatusFacts(height=keeper.height, snapshot_height=keeper.height),
        )
        answer = twist(keeper.answer)

        async def counted(peer: PeerId, body: bytes) -> bytes:
            if body[1] == CHUNK:
                self.asked.append((key, body[-1]))
            return await answer(peer, body)

        network.serve("snapshot", counted, PROTOCOLS["snapshot"])
        return network

    def sync(self, **changed: Any) -> StateSync:
        """As a start of the process makes it."""
        store = SnapshotStore(self.home / "snapshots")
        options = {
            "get_height": lambda: 0,
            "verify_header": self.vouch,
            "take_in": lambda manifest: take_in(self.home, store, manifest),
            "gap_blocks": 5,
        }
        return StateSync(
            network=self.network, store=store, run_blocking=at_once, **options | changed
        )

    async def vouch(self, height: int) -> Header:
        await trio.lowlevel.checkpoint()
        self.heights.append(height)
        return self.snapped.header

    def score(self, key: PeerId) -> float:
        return next((view.score for view in self.network.peers() if view.peer == key), 1_000)

    def questions(self, key: PeerId) -> int:
        return sum(peer == key for peer, _ in self.asked)

    def assert_synced(self, found: Manifest | None) -> None:
        assert found is not None
        chain = Chain.open(self.home, GENESIS)
        assert chain.tip == self.snapped.tip
        chain.commit_many(self.snapped.made.decided[self.snapped.height :])
        assert chain.tip == self.snapped.made.chain.tip
        chain.close()

    def assert_nothing_used(self, found: Manifest | None) -> None:
        assert found is None
        assert not (self.home / PREPARED_NAME).exists()
        chain = Chain.open(self.home, GENESIS)
        assert chain.height == 0
        chain.close()


@asynccontextmanager
async def world_of(snapped: Snapped, home: Path, *servers: Twist) -> AsyncIterator[World]:
    world = World(snapped, home)
    async with trio.open_nursery() as nursery:
        for key, twist in zip(KEYS, servers, strict=False):
            await nursery.start(world.server(key, twist).run)
        await nursery.start(world.network.run)
        await trio.sleep(3)  # everybody has told everybody a status
        yield world
        nursery.cancel_scope.cancel()


async def test_new_node_starts_from_chunks_of_several_peers(
    snapped: Snapped, tmp_path: Path, autojump_clock: Any
) -> None:
    async with world_of(snapped, tmp_path, slow, slow, slow) as world:
        sync = world.sync()
        world.assert_synced(await sync.run())
        assert all(world.questions(key) > 0 for key in KEYS[:3])
        assert sync.counters["chunks"] == len(world.asked) == len(snapped.manifest.chunks)
        assert world.heights == [snapped.height]


async def test_lying_peers_chunk_is_refused_and_the_other_peer_used(
    snapped: Snapped, tmp_path: Path, autojump_clock: Any
) -> None:
    async with world_of(snapped, tmp_path, lying, honest) as world:
        sync = world.sync()
        world.assert_synced(await sync.run())
        assert sync.counters["chunks_false"] >= 1
        assert world.questions(KEYS[0]) <= 2, "what it was asked for at once, and no more"
        assert world.score(KEYS[0]) >= PENALTIES["false_chunk"] - 1
        assert world.score(KEYS[1]) == 0


async def test_silent_source_is_replaced(
    snapped: Snapped, tmp_path: Path, autojump_clock: Any
) -> None:
    async with world_of(snapped, tmp_path, *[stalling] * 4, honest) as world:
        sync = world.sync()
        world.assert_synced(await sync.run())
        assert sync.counters["chunks_failed"] >= FAILURES_MAX
        assert world.questions(KEYS[4]) >= len(snapped.manifest.chunks)


async def test_snapshot_of_another_root_is_left_for_a_true_one(
    snapped: Snapped, tmp_path: Path, autojump_clock: Any
) -> None:
    """Two peers agree on a state with one record less; each chunk is what they said."""
    manifest, read = snapped.of_chunks([snapped.pairs()[:-1]])
    store = SnapshotStore(tmp_path / "false")
    put_part(store, manifest, read)
    store.adopt(store.part(manifest.height), manifest)
    async with world_of(snapped, tmp_path / "home", honest) as world, trio.open_nursery() as more:
        for key in KEYS[1:3]:
            await more.start(world.server(key, honest, store).run)
        await trio.sleep(3)
        sync = world.sync()
        world.assert_synced(await sync.run())
        assert sync.counters["false"] == 2
        assert all(world.score(key) >= PENALTIES["forged"] - 1 for key in KEYS[1:3])
        assert world.score(KEYS[0]) == 0
        more.cancel_scope.cancel()


async def test_false_manifest_costs_its_teller_before_a_chunk_is_asked(
    snapped: Snapped, tmp_path: Path, autojump_clock: Any
) -> None:
    later = snapped.made.chain.tip
    footing = snapped.manifest.footing
    false = (
        snapped.manifest._replace(chain_id=bytes(32)),
        snapped.manifest._replace(state_root=bytes(32)),
        snapped.manifest._replace(footing=footing._replace(header=later.header)),
        snapped.manifest._replace(footing=footing._replace(certificate=later.certificate)),
    )
    async with world_of(snapped, tmp_path, *map(telling, false)) as world:
        world.assert_nothing_used(await world.sync().run())
        assert world.asked == []
        assert all(world.score(key) >= PENALTIES["forged"] - 1 for key in KEYS[:4])


async def test_one_peers_forged_certificate_does_not_spoil_the_offer(
    snapped: Snapped, tmp_path: Path, autojump_clock: Any
) -> None:
    certificate = snapped.made.chain.tip.certificate
    footing = snapped.manifest.footing._replace(certificate=certificate)
    false = telling(snapped.manifest._replace(footing=footing))
    async with world_of(snapped, tmp_path, false, honest) as world:
        world.assert_synced(await world.sync().run())
        assert world.questions(KEYS[0]) == 0


async def test_header_that_nobody_vouches_for_leads_to_nothing(
    snapped: Snapped, tmp_path: Path, autojump_clock: Any
) -> None:
    async def refuse(height: int) -> Header:
        await trio.lowlevel.checkpoint()
        raise Invalid("header.not_vouched", height=height)

    async with world_of(snapped, tmp_path, honest) as world:
        sync = world.sync(verify_header=refuse)
        world.assert_nothing_used(await sync.run())
        assert world.asked == []
        assert sync.counters["not_vouched"] == 1, "not again in each round"
        assert world.score(KEYS[0]) == 0, "it may be right"


async def test_doubted_height_is_tried_again_when_another_peer_has_it(
    snapped: Snapped, tmp_path: Path, autojump_clock: Any
) -> None:
    """It may be the witness that was lacking."""
    async with world_of(snapped, tmp_path, honest) as world, trio.open_nursery() as more:

        async def vouch_late(height: int) -> Header:
            header = await world.vouch(height)
            if len(world.network.peers()) == 2:
                return header
            await more.start(world.server(KEYS[1], honest).run)
            raise Invalid("trust.no_witness", height=height)

        world.assert_synced(await world.sync(verify_header=vouch_late).run())
        assert world.heights == [snapped.height] * 2
        more.cancel_scope.cancel()


def invented(manifest: Manifest, height: int) -> Manifest:
    footing = manifest.footing
    header = footing.header._replace(height=height)
    return manifest._replace(height=height, footing=footing._replace(header=header))


async def test_what_most_peers_tell_is_tried_before_what_is_newest(
    snapped: Snapped, tmp_path: Path, autojump_clock: Any
) -> None:
    far = telling(invented(snapped.manifest, 10**12))
    async with world_of(snapped, tmp_path, far, honest, honest) as world:
        world.assert_synced(await world.sync().run())
        assert world.heights == [snapped.height]


def silent(answer: Answer) -> Answer:
    async def stall(peer: PeerId, body: bytes) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    return stall


async def test_many_silent_sources_hold_us_no_longer_than_one(
    snapped: Snapped, tmp_path: Path, autojump_clock: Any
) -> None:
    async with world_of(snapped, tmp_path, *[silent] * 5, honest) as world:
        begun_s = trio.current_time()
        world.assert_synced(await world.sync().run())
        limit_s = PROTOCOLS["snapshot"].timeout_s + statesync.SETTLE_S + 1
        assert trio.current_time() - begun_s < limit_s
        assert all(world.score(key) > 0 for key in KEYS[:5])


@pytest.mark.parametrize(("gap_blocks", "is_used"), [(-1, True), (0, False)])
async def test_only_a_node_far_behind_is_synced(
    snapped: Snapped, tmp_path: Path, autojump_clock: Any, gap_blocks: int, is_used: bool
) -> None:
    """Behind by more than the gap, and not by just the gap."""
    async with world_of(snapped, tmp_path, honest) as world:
        sync = world.sync(gap_blocks=snapped.height + gap_blocks)
        found = await sync.run()
        assert (found is not None) == is_used
        assert bool(world.asked) == is_used


@pytest.mark.parametrize("gather_s", [statesync.GATHER_S, statesync.GATHER_UNSURE_S])
async def test_snapshot_is_not_waited_for_longer_than_told(
    snapped: Snapped, tmp_path: Path, autojump_clock: Any, gather_s: float
) -> None:
    async with world_of(snapped, tmp_path) as world:
        begun_s = trio.current_time()
        world.assert_nothing_used(await world.sync(gather_s=gather_s).run())
        assert trio.current_time() - begun_s == pytest.approx(gather_s)


async def test_sync_that_ran_out_of_sources_goes_on_where_it_was(
    snapped: Snapped, tmp_path: Path, autojump_clock: Any
) -> None:
    async with world_of(snapped, tmp_path, dying_after(3)) as world:
        first = world.sync()
        world.assert_nothing_used(await first.run())
        assert first.counters["chunks"] == 3
        async with trio.open_nursery() as more:
            await more.start(world.server(KEYS[1], honest).run)
            await trio.sleep(3)
            second = world.sync()
            world.assert_synced(await second.run())
            assert second.counters["chunks_resumed"] == 3
            assert second.counters["chunks"] == len(snapped.manifest.chunks) - 3
            more.cancel_scope.cancel()


async def test_process_killed_in_the_middle_resumes_and_refetches_what_rotted(
    snapped: Snapped, tmp_path: Path, autojump_clock: Any
) -> None:
    part = SnapshotStore(tmp_path / "snapshots").part(snapped.height)
    async with world_of(snapped, tmp_path, slow) as world:
        async with trio.open_nursery() as life:
            life.start_soon(world.sync().run)
            await wait_until(lambda: (part / "00003").exists())
            life.cancel_scope.cancel()
        (part / "00005.new").write_bytes(b"half a chunk")
        (part / "00001").write_bytes(b"rotten")
        (part / "00002").write_bytes((part / "00002").read_bytes()[:-1])
        whole = sum(
            (part / f"{index:05d}").is_file() for index in range(len(snapped.manifest.chunks))
        )
        again = world.sync()
        world.assert_synced(await again.run())
        assert again.counters["chunks_resumed"] == whole - 2


async def test_beginning_of_another_snapshot_is_forgotten(
    snapped: Snapped, tmp_path: Path, autojump_clock: Any
) -> None:
    store = SnapshotStore(tmp_path / "snapshots")
    manifest, read = snapped.of_chunks([snapped.pairs()])
    put_part(store, manifest, read)
    put_part(store, manifest._replace(height=7), read)
    async with world_of(snapped, tmp_path, honest) as world:
        sync = world.sync()
        world.assert_synced(await sync.run())
        assert sync.counters["chunks_resumed"] == 0
        assert not store.part(7).exists()


async def test_too_small_a_disk_is_told_and_nothing_is_fetched(
    snapped: Snapped, tmp_path: Path, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statesync, "ROOM_FACTOR", 1 << 60)
    async with world_of(snapped, tmp_path, honest) as world:
        world.assert_nothing_used(await world.sync().run())
        assert world.asked == []


async def test_disk_that_fills_on_the_way_ends_no_node_and_what_came_stays(
    snapped: Snapped, tmp_path: Path, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = statesync.write_chunk, []

    def write_first(folder: Path, index: int, raw: bytes) -> None:
        if written:
            raise OSError(28, "No space left on device")
        written.append(index)
        write(folder, index, raw)

    async with world_of(snapped, tmp_path, honest) as world:
        with monkeypatch.context() as full:
            full.setattr(statesync, "write_chunk", write_first)
            first = world.sync()
            world.assert_nothing_used(await first.run())
        assert first.counters["disk_failed"] == statesync.ROUNDS_MAX
        assert world.score(KEYS[0]) == 0
        second = world.sync()
        world.assert_synced(await second.run())
        assert second.counters["chunks_resumed"] == 1
