"""A snapshot's header is believed as a light client believes: by bisection, and never alone."""

import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from bundle_kit import party
from exchange_kit import at_once
from light_kit import CHAIN_ID, FOUR, LightChain, Powers, a_set, light_block, now_of

from consensus.primitives import merkle
from consensus.primitives.encoding import U8, U63, Record, decode, encode
from consensus.primitives.errors import Invalid
from consensus.skipping import LightBlock, TrustOptions, encode_light_block
from node.peering import trusting
from node.peering.statesync import GAP_BLOCKS, StateSync
from node.peering.trusting import BLOCK_MS_MIN, VERIFY_S, Named, Root, Trusting, find_root
from node.storage.footing import Footing
from node.storage.lightfile import LightFile
from node.storage.snapshots import ChunkMark, Manifest, SnapshotStore, encode_manifest
from node.storage.views import Tip
from p2p.errors import Code, Refused, Unreachable
from p2p.limits import PENALTIES, PROTOCOLS
from p2p.memory import MemoryHub
from p2p.network import PeerId, StatusFacts

HEIGHT = 40
KEYS = [PeerId(party(f"server {i}").key) for i in range(4)]
NEWCOMER = party("newcomer").key
OPTIONS = TrustOptions()
BLOCK, HISTORY, EVIDENCE = 0, 3, 4


def drifting(height: int) -> Powers:
    """One of four leaves at every fourth block, so that no step is longer than a few."""
    first = height // 4
    return {f"v{number}": 1 for number in range(first, first + 4)}


CHAIN = LightChain(HEIGHT, drifting)
FORK = CHAIN.fork(17, HEIGHT, params_hash=b"\7" * 32)
WEAK = CHAIN.fork(17, HEIGHT, params_hash=b"\7" * 32, signers=lambda h: (f"v{h // 4}",))
GENESIS_SET = a_set(drifting(1))


class Server:
    """Tells of one chain, up to `top`, as far as `twist` lets it."""

    def __init__(
        self,
        chain: LightChain = CHAIN,
        top: int = HEIGHT,
        twist: Callable[[LightBlock], LightBlock] = lambda block: block,
        is_silent: bool = False,
    ) -> None:
        self.chain, self.top, self.twist, self.is_silent = chain, top, twist, is_silent
        self.asked: list[tuple[int, int]] = []
        self.reports = 0

    async def answer(self, peer: PeerId, body: bytes) -> bytes:
        if self.is_silent:
            await trio.sleep_forever()
        if body[1] == EVIDENCE:
            self.reports += 1
            return encode(())
        if body[1] == HISTORY:
            _, height, at = decode(body, Record(U8, U63, U63), 64, "test")
        else:
            _, height = decode(body, Record(U8, U63), 64, "test")
            at = 0
        self.asked.append((body[1], height))
        if max(height, at) > self.top:
            raise Refused(Code.NOT_FOUND)
        block = self.twist(self.chain.at(height))
        if body[1] == HISTORY:
            ids = [one.block_id for one in self.chain.blocks[: at - 1]]
            return encode((block.block_id, merkle.prove(ids, height - 1)))
        return encode_light_block(block)


class World:
    """A newcomer and the servers that it has met; each `trusting` is a start of its process."""

    def __init__(self, home: Path, network: Any, servers: list[Server], theirs: list[Any]) -> None:
        self.home, self.network, self.servers, self.theirs = home, network, servers, theirs
        self.now_ms = now_of(CHAIN.at(HEIGHT))
        self.file = LightFile(home, CHAIN_ID)

    def trusting(self, root: Root = GENESIS_SET) -> Trusting:
        return Trusting(
            network=self.network,
            chain_id=CHAIN_ID,
            root=root,
            options=OPTIONS,
            file=self.file,
            evidence=self.home / "evidence",
            now_ms=lambda: self.now_ms,
            run_blocking=at_once,
        )

    def scores(self) -> list[float]:
        found = {view.peer: view.score for view in self.network.peers()}
        return [found.get(key, 1_000.0) for key, _ in zip(KEYS, self.servers, strict=False)]

    def assert_blamed(self, *liars: int) -> None:
        for number, score in enumerate(self.scores()):
            assert (score >= PENALTIES["forged"] - 5) == (number in liars), (number, score)

    def questions(self) -> int:
        return sum(len(server.asked) for server in self.servers)


@asynccontextmanager
async def world_of(home: Path, *servers: Server) -> AsyncIterator[World]:
    hub = MemoryHub(seed=6)
    network = hub.network(NEWCOMER, chain_id=CHAIN_ID)
    theirs = []
    async with trio.open_nursery() as nursery:
        for key, server in zip(KEYS, servers, strict=False):
            there = hub.network(
                key,
                chain_id=CHAIN_ID,
                facts=lambda top=server.top: StatusFacts(
                    height=top, snapshot_height=top if top == FAR else 0
                ),
            )
            theirs.append(there)
            there.serve("light", server.answer, PROTOCOLS["light"])
            await nursery.start(there.run)
        await nursery.start(network.run)
        await trio.sleep(3)
        yield World(home, network, list(servers), theirs)
        nursery.cancel_scope.cancel()


def named(height: int, chain: LightChain = CHAIN) -> Named:
    return Named(height, chain.at(height).block_id)


ROOTS = [
    ("the set of the genesis", GENESIS_SET),
    ("a block that the operator named", named(5)),
    ("our own newest block", CHAIN.at(9)),
]


@pytest.mark.parametrize(("desc", "root"), ROOTS, ids=[row[0] for row in ROOTS])
async def test_header_is_reached_by_bisection_from(
    desc: str, root: Root, tmp_path: Path, autojump_clock: Any
) -> None:
    async with world_of(tmp_path, Server(), Server(), Server()) as world:
        trust = world.trusting(root)
        assert await trust.verify(38) == CHAIN.at(38).header
        assert trust.counters["verified"] == 1
        assert trust.counters["headers"] == world.questions() < 30, "fewer than there are headers"
        world.assert_blamed()


@pytest.mark.parametrize("height", [HEIGHT - 1, 17, 1])
async def test_header_below_a_named_block_is_proved_by_its_history(
    tmp_path: Path, autojump_clock: Any, height: int
) -> None:
    """By hashes alone: one peer is enough, and the age of the block does not matter."""
    async with world_of(tmp_path, Server()) as world:
        world.now_ms += 2 * OPTIONS.period_ms
        trust = world.trusting(named(HEIGHT))
        assert await trust.verify(height) == CHAIN.at(height).header
        assert await trust.verify(HEIGHT) == CHAIN.at(HEIGHT).header
        assert trust.counters["looked_back"] == 1


async def test_chain_signed_by_too_little_power_costs_its_teller(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with world_of(tmp_path, Server(WEAK), Server(), Server()) as world:
        assert await world.trusting().verify(HEIGHT) == CHAIN.at(HEIGHT).header
        world.assert_blamed(0)
        assert not (tmp_path / "evidence").exists()


async def test_false_history_costs_its_teller_and_another_is_asked(
    tmp_path: Path, autojump_clock: Any
) -> None:
    def other(block: LightBlock) -> LightBlock:
        return FORK.at(block.height) if block.height == 30 else block

    found = 0
    for liar in (0, 1):  # one of them is asked first
        servers = [Server(), Server()]
        servers[liar].twist = other
        async with world_of(tmp_path, *servers) as world:
            trust = world.trusting(named(HEIGHT))
            assert await trust.verify(30) == CHAIN.at(30).header
            world.assert_blamed(*([liar] if servers[liar].asked[1:] else []))
            found += trust.counters["false"]
    assert found == 1


async def test_who_lacks_the_header_is_not_blamed(tmp_path: Path, autojump_clock: Any) -> None:
    behind = Server(top=HEIGHT)
    async with world_of(tmp_path, behind, Server(), Server()) as world:
        behind.top = 20  # it told of more than it has
        assert await world.trusting().verify(HEIGHT) == CHAIN.at(HEIGHT).header
        world.assert_blamed()


async def test_two_chains_of_one_set_are_kept_as_evidence_and_neither_is_believed(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with world_of(tmp_path, Server(), Server(FORK), Server()) as world:
        trust = world.trusting()
        for _ in range(2):
            with pytest.raises(Invalid, match=r"trust\.attacked"):
                await trust.verify(HEIGHT)
        assert trust.counters["attacks"] == 1
        assert len(list((tmp_path / "evidence").iterdir())) == 2
        assert world.servers[1].reports > 0
        assert world.file.load() == ()
        world.assert_blamed()


async def test_attack_is_kept_though_its_author_answers_the_report_with_too_much(
    tmp_path: Path, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Rude(Server):
        async def answer(self, peer: PeerId, body: bytes) -> bytes:
            return bytes(300_000) if body[1] == EVIDENCE else await super().answer(peer, body)

    its_own = replace(PROTOCOLS["light"], reply_max=1 << 20)
    monkeypatch.setitem(globals(), "PROTOCOLS", {**PROTOCOLS, "light": its_own})
    async with world_of(tmp_path, Server(), Rude(FORK), Server()) as world:
        trust = world.trusting()
        with pytest.raises(Invalid, match=r"trust\.attacked"):
            await trust.verify(HEIGHT)
        assert trust.counters["attacks"] == 1
        assert len(list((tmp_path / "evidence").iterdir())) == 2
        world.assert_blamed(1)


async def test_nothing_is_believed_that_one_peer_alone_tells(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with world_of(tmp_path, Server(WEAK)) as world:
        with pytest.raises(Unreachable):
            await world.trusting().verify(HEIGHT)
        world.assert_blamed(0)
    async with world_of(tmp_path, Server(), Server(top=HEIGHT, is_silent=True)) as world:
        trust = world.trusting()
        with pytest.raises(Invalid, match=r"trust\.no_witness"):
            await trust.verify(HEIGHT)
        assert trust.counters["no_witness"] == 1
        assert world.file.load() == ()
        world.assert_blamed()


async def test_nobody_answering_ends_within_the_limit(tmp_path: Path, autojump_clock: Any) -> None:
    silent = [Server(is_silent=True) for _ in range(3)]
    async with world_of(tmp_path, *silent) as world:
        begun_s = trio.current_time()
        with pytest.raises(Unreachable):
            await world.trusting().verify(HEIGHT)
        assert trio.current_time() - begun_s < VERIFY_S
    async with world_of(tmp_path, Server(top=9)) as world:
        with pytest.raises(Unreachable):
            await world.trusting().verify(HEIGHT)
        assert world.questions() == 0, "it does not say that it has that height"


async def test_all_headers_of_a_start_have_one_limit_of_time(
    tmp_path: Path, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many heights liars claim; the first takes half of it and leaves time for others."""
    monkeypatch.setattr(trusting, "SHARES", 1)
    async with world_of(tmp_path, *[Server(is_silent=True) for _ in range(4)]) as world:
        trust = world.trusting()
        begun_s = trio.current_time()
        for height in range(HEIGHT, 1, -1):
            with pytest.raises(Unreachable):
                await trust.verify(height)
        assert trust.counters["too_slow"] > 0
        assert trio.current_time() - begun_s <= VERIFY_S


FAR = 10**12  # a height that only liars claim


def invented(height: int) -> LightBlock:
    """Consistent in itself, signed by strangers; a bisection towards it ends only in block 2."""
    time_ms = CHAIN.at(1).header.time_ms + 1 + height * 30_000 // FAR
    header = CHAIN.at(HEIGHT).header._replace(height=height, time_ms=time_ms)
    return light_block(header, FOUR, FOUR)


class SlowLiar(Server):
    """Answers just in time, with the true block 1 and with what it invents."""

    def __init__(self) -> None:
        super().__init__(top=FAR)

    async def answer(self, peer: PeerId, body: bytes) -> bytes:
        _, height = decode(body, Record(U8, U63), 64, "test")
        if height == 1:
            return encode_light_block(CHAIN.at(1))
        await trio.sleep(4.8)
        self.asked.append((BLOCK, height))
        return encode_light_block(invented(height))


@pytest.mark.parametrize("liars", [1, 2])
async def test_slow_liars_take_their_share_of_the_time_and_the_true_header_is_verified(
    tmp_path: Path, autojump_clock: Any, liars: int
) -> None:
    slow = [SlowLiar() for _ in range(liars)]
    async with world_of(tmp_path, *slow, *[Server() for _ in range(4 - liars)]) as world:
        trust = world.trusting()
        begun_s = trio.current_time()
        for height in (FAR, FAR - 1, FAR - 2):
            with pytest.raises(Unreachable):
                await trust.verify(height)
        assert trio.current_time() - begun_s < liars * (VERIFY_S / trusting.SHARES + 5)
        assert await trust.verify(HEIGHT) == CHAIN.at(HEIGHT).header
        assert all(score > 0 for score in world.scores()[:liars])
        assert all(score == 0 for score in world.scores()[liars:])


async def test_state_sync_is_not_held_up_by_one_slow_liar(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async def tell(peer: PeerId, body: bytes) -> bytes:
        blocks = [invented(height) for height in (FAR, FAR - 1)]
        footings = [Footing(one.header, one.certificate, one.validators, ()) for one in blocks]
        marks = (ChunkMark(bytes(32), 5),)
        return encode([encode_manifest(manifest_of(footing, marks)) for footing in footings])

    def manifest_of(footing: Footing, marks: tuple[ChunkMark, ...]) -> Manifest:
        return Manifest(CHAIN_ID, footing.height, footing.header.state_root, marks, footing)

    async with world_of(tmp_path, SlowLiar(), Server(), Server(), Server()) as world:
        world.theirs[0].serve("snapshot", tell, PROTOCOLS["snapshot"])
        sync = StateSync(
            network=world.network,
            store=SnapshotStore(tmp_path / "snapshots"),
            get_height=lambda: HEIGHT,
            verify_header=world.trusting().verify,
            take_in=lambda manifest: None,
            run_blocking=at_once,
        )
        begun_s = trio.current_time()
        assert await sync.run() is None
        assert trio.current_time() - begun_s < 30
        assert sync.counters["not_vouched"] == 2
        assert world.scores()[0] > 0


async def test_ended_process_goes_on_from_what_was_verified(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with world_of(tmp_path, Server(), Server()) as world:
        await world.trusting().verify(20)
        kept = [block.height for block in world.file.load()]
        assert kept[0] == 1
        assert kept[-1] == 20
        again = world.trusting()
        with trio.move_on_after(0.05):
            await again.verify(HEIGHT)  # killed in the middle
        for server in world.servers:
            server.asked.clear()
        assert await world.trusting().verify(HEIGHT) == CHAIN.at(HEIGHT).header
        assert min(height for server in world.servers for _, height in server.asked) > 20
        for server in world.servers:
            server.asked.clear()
        assert await world.trusting().verify(HEIGHT) == CHAIN.at(HEIGHT).header
        assert world.questions() == 0


async def test_damaged_file_is_as_none_and_the_next_header_replaces_it(
    tmp_path: Path, autojump_clock: Any
) -> None:
    """It is only what spares us questions: a start must not end for it."""
    async with world_of(tmp_path, Server(), Server()) as world:
        world.file.path.write_bytes(b"rotten")
        trust = world.trusting()
        assert await trust.verify(HEIGHT) == CHAIN.at(HEIGHT).header
        assert trust.counters["file_damaged"] > 0
        assert world.file.load()[-1].block_id == CHAIN.at(HEIGHT).block_id


async def test_file_damaged_while_headers_are_verified_is_written_anew(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with world_of(tmp_path, Server(), Server()) as world:
        trust = world.trusting()
        await trust.verify(20)
        world.file.path.write_bytes(b"rotten")
        assert await trust.verify(HEIGHT) == CHAIN.at(HEIGHT).header
        assert world.file.load()[0].height == 1


@pytest.mark.parametrize("what", ["load", "save"])
async def test_header_is_verified_though_the_disk_refuses(
    tmp_path: Path, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """And what could not be read is not written over."""

    def refuse(*blocks: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    async with world_of(tmp_path, Server(), Server()) as world:
        world.file.save([CHAIN.at(1), CHAIN.at(20)])
        before = world.file.path.read_bytes()
        trust = world.trusting()
        monkeypatch.setattr(world.file, what, refuse)
        assert await trust.verify(HEIGHT) == CHAIN.at(HEIGHT).header
        assert trust.counters["file_refused"] > 0
        assert world.file.path.read_bytes() == before


async def test_attack_is_told_though_its_proof_cannot_be_kept(
    tmp_path: Path, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*parts: Any) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(trusting, "keep_attack", refuse)
    async with world_of(tmp_path, Server(), Server(FORK), Server()) as world:
        trust = world.trusting()
        with pytest.raises(Invalid, match=r"trust\.attacked"):
            await trust.verify(HEIGHT)
        assert trust.counters["file_refused"] == 1


async def test_expired_trust_is_told_and_leads_nowhere(tmp_path: Path, autojump_clock: Any) -> None:
    async with world_of(tmp_path, Server(), Server()) as world:
        world.now_ms = CHAIN.at(5).header.time_ms + OPTIONS.period_ms
        trust = world.trusting(named(5))
        with pytest.raises(Invalid, match=r"trust\.expired"):
            await trust.verify(HEIGHT)
        assert trust.counters["expired"] == 1
        world.now_ms -= 1
        assert await world.trusting(named(5)).verify(HEIGHT) == CHAIN.at(HEIGHT).header


async def test_named_block_of_no_chain_leads_to_nothing_and_blames_nobody(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with world_of(tmp_path, Server(), Server()) as world:
        with pytest.raises(Unreachable, match="other_block"):
            await world.trusting(Named(30, bytes(32))).verify(20)
        world.assert_blamed()


async def test_home_that_trusts_another_block_is_told_so(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with world_of(tmp_path, Server(), Server()) as world:
        world.file.save([FORK.at(30)])
        for root in (named(30), CHAIN.at(30)):
            trust = world.trusting(root)
            with pytest.raises(Invalid, match=r"trust\.contradicted"):
                await trust.verify(HEIGHT)
        world.file.save([FORK.at(HEIGHT)])
        with pytest.raises(Invalid, match=r"trust\.contradicted"):
            await world.trusting(named(30)).verify(HEIGHT)


async def test_other_genesis_than_the_kept_one_is_not_followed(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with world_of(tmp_path, Server(), Server()) as world:
        world.file.save([light_block(CHAIN.at(1).header, {"liar": 1})])
        with pytest.raises(Invalid, match=r"trust\.contradicted"):
            await world.trusting().verify(HEIGHT)


# --- by what a node believes


TIP = CHAIN.at(9)
OURS = Tip(
    9, TIP.block_id, TIP.header.time_ms, TIP.header, TIP.certificate, TIP.validators,
    TIP.next_validators,
)  # fmt: skip
NEW = Tip(0, CHAIN_ID, TIP.header.time_ms, None, None, None, GENESIS_SET)
FARTHER, NEAR = Named(9 + GAP_BLOCKS + 1, bytes(32)), Named(9 + GAP_BLOCKS, bytes(32))
OLD_MS = GAP_BLOCKS * BLOCK_MS_MIN
CHOICES = [
    ("a block named far above us, always", OURS, FARTHER, 0, FARTHER),
    ("nothing while we cannot be far behind", OURS, NEAR, OLD_MS - 1, None),
    ("our own block", OURS, None, OLD_MS, TIP),
    ("our own block, though one is named near us", OURS, NEAR, OPTIONS.period_ms - 1, TIP),
    ("our genesis, when we have no block", NEW, None, OLD_MS, GENESIS_SET),
    ("the named block, when ours has expired", OURS, NEAR, OPTIONS.period_ms, NEAR),
    ("nothing, when ours has expired", OURS, None, OPTIONS.period_ms, None),
    ("nothing, when the named one is older", OURS, Named(9, bytes(32)), OPTIONS.period_ms, None),
]


@pytest.mark.parametrize(
    ("desc", "tip", "told", "age_ms", "expected"), CHOICES, ids=[row[0] for row in CHOICES]
)
def test_snapshot_is_believed_by(
    desc: str, tip: Tip, told: Named | None, age_ms: int, expected: Root | None
) -> None:
    found = find_root(
        tip, told, gap_blocks=GAP_BLOCKS, options=OPTIONS, now_ms=tip.time_ms + age_ms
    )
    assert found == expected
