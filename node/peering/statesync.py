"""Starting from a snapshot: whom to believe, what to fetch, and when to leave it to block sync.

    peers tell manifests → a header of that height is verified → chunks → root compared → adopted

Why the header is verified first: a manifest is only somebody's word, and its header must be one
that a light client would believe (`trusting.py`) before a byte is fetched. Why nothing else runs
meanwhile: the state is about to be replaced whole. So whoever is slow must not hold us: a height
is tried once, and only a peer that comes new to it is a reason to try it again.
What this file does not know: how a header is verified, and how a database is made.
"""

import shutil
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from consensus.header import Header
from consensus.primitives.encoding import decode, encode
from consensus.primitives.errors import Invalid
from node.observe import get_log
from node.peering.chunks import ChunkFetch
from node.peering.snapshotting import (
    CHUNK,
    CHUNK_REPLY,
    LIST,
    LIST_REPLY,
    PROTOCOL,
    REPLY_BYTES_MAX,
)
from node.storage.snapshots import (
    Manifest,
    SnapshotStore,
    check_chunk,
    decode_manifest,
    read_chunk,
    read_manifest,
    verify_manifest,
    write_chunk,
    write_manifest,
)
from p2p.errors import NetworkError
from p2p.limits import PENALTIES, PROTOCOLS
from p2p.network import Network, PeerId, PeerView

GAP_BLOCKS: Final = 10_000  # behind by more: a snapshot is cheaper than the blocks
GATHER_S: Final = 15.0  # for peers that have a snapshot to appear
GATHER_UNSURE_S: Final = 5.0  # the same, where we do not know that we are far behind
SETTLE_S: Final = 2.0  # for more of them, once there is one
LOOK_EVERY_S: Final = 0.25
PEERS_ASKED_MAX: Final = 16
ROUNDS_MAX: Final = 3  # then block sync does it
ROOM_FACTOR: Final = 3  # chunks, the new database, and what LevelDB writes twice

RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread
VerifyHeader = Callable[[int], Awaitable[Header]]  # raises Invalid or NetworkError
TakeIn = Callable[[Manifest], None]  # blocks; raises Invalid when the root is another

log = get_log("statesync")


@dataclass(slots=True)
class _Offer:
    """One set of chunks, and who has it; manifests of one offer differ in their certificates."""

    height: int
    told: dict[PeerId, Manifest] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SnapshotGoods:
    """The chunks of a manifest that verified, each of them a file of `folder`."""

    network: Network
    manifest: Manifest
    folder: Path

    @property
    def name(self) -> str:
        return f"snapshot {self.manifest.height}"

    @property
    def chunks(self) -> int:
        return len(self.manifest.chunks)

    @property
    def at_once_max(self) -> int:
        return PROTOCOLS[PROTOCOL].at_once_max

    def missing(self) -> list[int]:
        missing = []
        for index, mark in enumerate(self.manifest.chunks):
            raw = read_chunk(self.folder, index)
            try:
                if raw is None:
                    raise Invalid("snapshot.chunk_missing")
                check_chunk(mark, raw)
            except Invalid:
                missing.append(index)
        return missing

    def is_at(self, peer: PeerId, index: int) -> bool:
        return True  # whoever told the manifest has all of it

    async def ask(self, peer: PeerId, index: int) -> bytes:
        return await self.network.request(
            peer,
            PROTOCOL,
            encode((CHUNK, self.manifest.height, index)),
            timeout_s=PROTOCOLS[PROTOCOL].timeout_s,
            bytes_max=REPLY_BYTES_MAX,
        )

    def keep(self, index: int, raw: bytes) -> None:
        (chunk,) = decode(raw, CHUNK_REPLY, REPLY_BYTES_MAX, "snapshot.reply")
        check_chunk(self.manifest.chunks[index], chunk)
        write_chunk(self.folder, index, chunk)

    def note_kept(self, index: int) -> None:
        """The folder tells."""


class StateSync:
    """Brings a node that is far behind to a snapshot. `run` once, before the chain goes on.

    `verify_header(height)` vouches for a header; `take_in(manifest)` loads the chunks that lie in
    `store.part(height)`, compares the root, and leaves a database for the next opening.
    `gather_s`: how long to wait for the first peer with a snapshot.
    """

    def __init__(
        self,
        *,
        network: Network,
        store: SnapshotStore,
        get_height: Callable[[], int],
        verify_header: VerifyHeader,
        take_in: TakeIn,
        gap_blocks: int = GAP_BLOCKS,
        gather_s: float = GATHER_S,
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        self._network = network
        self._store = store
        self._get_height = get_height
        self._verify_header = verify_header
        self._take_in = take_in
        self._gap_blocks = gap_blocks
        self._gather_s = gather_s
        self._run_blocking = run_blocking
        self._doubted: dict[int, frozenset[PeerId]] = {}  # height → who had it when none vouched
        self.counters: Counter[str] = Counter()

    async def run(self) -> Manifest | None:
        """The snapshot that the next opening stands on; None: block sync will do, or must."""
        for _ in range(ROUNDS_MAX):
            offers = await self._gather()
            if not offers:
                return None
            for offer in offers:
                manifest = await self._try(offer)
                if manifest is not None:
                    return manifest
            await trio.sleep(SETTLE_S)
        log.warning("no snapshot could be used; fetching blocks instead")
        return None

    # -- what there is

    async def _gather(self) -> list[_Offer]:
        """Offers far enough above us: those told by most first, of these the newest."""
        with trio.move_on_after(self._gather_s):
            while not self._find_sources():  # noqa: ASYNC110  # peers come; no event tells of it
                await trio.sleep(LOOK_EVERY_S)
            await trio.sleep(SETTLE_S)
        offers: dict[bytes, _Offer] = {}
        for peer, manifests in (await self._ask_all()).items():
            for manifest in manifests:
                if manifest.height > self._get_height() + self._gap_blocks:
                    offer = offers.setdefault(manifest.content_id(), _Offer(manifest.height))
                    offer.told[peer] = manifest
        return sorted(offers.values(), key=lambda offer: (-len(offer.told), -offer.height))

    def _find_sources(self) -> list[PeerView]:
        """Peers that let us believe in a useful snapshot: a claim that only makes us ask."""
        floor = self._get_height() + self._gap_blocks
        views = [view for view in self._network.peers() if view.admitted]
        return [view for view in views if view.facts.snapshot_height > floor][:PEERS_ASKED_MAX]

    async def _ask_all(self) -> dict[PeerId, list[Manifest]]:
        """What each source tells. At once, so that many slow ones take no longer than one."""
        told: dict[PeerId, list[Manifest]] = {}

        async def ask(peer: PeerId) -> None:
            told[peer] = await self._ask_manifests(peer)

        async with trio.open_nursery() as nursery:
            for view in self._find_sources():
                nursery.start_soon(ask, view.peer)
        return told

    async def _ask_manifests(self, peer: PeerId) -> list[Manifest]:
        try:
            raw = await self._network.request(
                peer,
                PROTOCOL,
                encode((LIST,)),
                timeout_s=PROTOCOLS[PROTOCOL].timeout_s,
                bytes_max=REPLY_BYTES_MAX,
            )
            told = decode(raw, LIST_REPLY, REPLY_BYTES_MAX, "snapshot.reply")
            return [decode_manifest(manifest) for manifest in told]
        except NetworkError as error:
            self.counters["failed"] += 1
            log.debug("no snapshots from a peer", peer=peer, why=str(error))
        except Invalid as refusal:
            self._blame(peer, refusal)
        return []

    # -- one of them

    async def _try(self, offer: _Offer) -> Manifest | None:
        header = await self._find_header(offer.height)
        if header is None:
            return None
        true = await self._without_liars(offer, header)
        if not true:
            return None
        manifest = next(iter(true.values()))
        try:
            return await self._fetch(manifest, list(true))
        except OSError as error:
            self.counters["disk_failed"] += 1
            log.error(
                "the disk takes no snapshot",
                height=manifest.height,
                why=str(error),
                mend="free space or mend the disk; what came is gone on with",
            )
            return None

    async def _fetch(self, manifest: Manifest, sources: list[PeerId]) -> Manifest | None:
        """Fetch and load it; raises OSError where the disk takes no more."""
        if not await self._begin(manifest):
            return None
        height = manifest.height
        log.info("state sync", height=height, chunks=len(manifest.chunks), peers=len(sources))
        fetch = ChunkFetch(
            network=self._network,
            goods=SnapshotGoods(self._network, manifest, self._store.part(height)),
            sources=sources,
            counters=self.counters,
            run_blocking=self._run_blocking,
        )
        if not await fetch.run():
            log.info("sources of a snapshot are gone", height=height)
            return None
        try:
            await self._run_blocking(self._take_in, manifest)
        except Invalid as refusal:
            for peer in sources:  # every chunk was what they said: the lie is their manifest
                self._blame(peer, refusal)
            await self._run_blocking(self._store.drop_parts)
            return None
        log.info("state synced", height=height, bytes=manifest.total_bytes())
        return manifest

    async def _find_header(self, height: int) -> Header | None:
        """The verified header; a height that nobody vouched for waits for a peer that is new."""
        having = self._find_having(height)
        if height in self._doubted and having <= self._doubted[height]:
            return None
        try:
            return await self._verify_header(height)
        except (Invalid, NetworkError) as error:
            self._doubted[height] = having
            self.counters["not_vouched"] += 1
            log.info("nobody vouches for a snapshot", height=height, why=str(error))
            return None

    def _find_having(self, height: int) -> frozenset[PeerId]:
        """Who says that it has a block of this height."""
        views = [view for view in self._network.peers() if view.admitted]
        return frozenset(view.peer for view in views if view.facts.height >= height)

    async def _without_liars(self, offer: _Offer, header: Header) -> dict[PeerId, Manifest]:
        """Who told a manifest that belongs to the verified header."""
        true = {}
        for peer, manifest in offer.told.items():
            try:
                await self._run_blocking(verify_manifest, manifest, header)
            except Invalid as refusal:
                self._blame(peer, refusal)
            else:
                true[peer] = manifest
        return true

    async def _begin(self, manifest: Manifest) -> bool:
        """Make the folder of its chunks, or find it with some of them from before."""
        return bool(await self._run_blocking(self._begin_now, manifest))

    def _begin_now(self, manifest: Manifest) -> bool:
        folder = self._store.part(manifest.height)
        self._store.drop_parts(but=manifest.height)
        before = read_manifest(folder)
        if before is None or before.content_id() != manifest.content_id():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
        free = shutil.disk_usage(folder).free
        if free < ROOM_FACTOR * manifest.total_bytes():
            log.error(
                "too little disk for a snapshot",
                bytes=manifest.total_bytes(),
                free=free,
                mend="free space, or let the node fetch all blocks",
            )
            return False
        write_manifest(folder, manifest)
        return True

    def _blame(self, peer: PeerId, refusal: Invalid) -> None:
        self.counters["false"] += 1
        log.warning("a peer told of a false snapshot", peer=peer, code=refusal.code)
        self._network.penalise(peer, PENALTIES["forged"], "forged")
