"""Who is connected, who is admitted, who is banned; `status` and `ping` between the two.

Why admission: only a peer that has told its chain may gossip and ask. The dialler sends `status`
within 5 s of connecting, both sides admit each other by that one exchange (page 70 §6).
Why pings of our own: the library notices a killed peer, but never a stopped one.
Heights and roles told here steer nothing; they are shown to the operator.
What this file does not know: libp2p, who dials whom, how bytes travel.
"""

import os
import random
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog
import trio

from p2p.addresses import group_of
from p2p.counters import Counters
from p2p.errors import Code, Misbehaving, NetworkError, Refused
from p2p.framing import Value, decode, encode, fields
from p2p.limits import (
    BOOK_ENTRIES_MAX,
    CLOCK_SKEW_MS_MAX,
    CLOSE_S,
    CONNECTIONS_MAX,
    EVENTS_QUEUE_MAX,
    INBOUND_MAX,
    PENALTIES,
    PER_ADDRESS_MAX,
    PER_GROUP_MAX,
    PING_AGAIN,
    PING_BYTES_MAX,
    PING_JITTER,
    PING_MISSES_MAX,
    PING_S,
    SOFTWARE_BYTES_MAX,
    STATUS_BYTES_MAX,
    STATUS_EVERY_S,
    STATUS_WITHIN_S,
)
from p2p.peers import Joined, Left, PeerId, PeerView, Scores, StatusFacts, peer_id_text
from p2p.records import AddressRecord, Identity, read_record

log = structlog.get_logger(part="p2p")

STATUS_VERSION: Final = 1


class Ask(Protocol):
    """One request to a connected peer, as Network.request."""

    async def __call__(
        self, peer: PeerId, protocol: str, body: bytes, *, timeout_s: float, bytes_max: int
    ) -> bytes: ...


@dataclass(slots=True)
class Link:
    """One connected peer."""

    peer: PeerId
    outbound: bool  # one of its connections was dialled by us: then we send `status`
    host: str  # its IP address as we see it, or "" where there is none
    since_s: float
    since_ms: int
    relayed: bool = False  # through a relay: not for gossip, and not one of our outbound peers
    admitted: bool = False
    software: str = ""
    facts: StatusFacts = field(default_factory=StatusFacts)
    record: AddressRecord | None = None
    binding: bytes = b""
    ping_ms: int | None = None
    misses: int = 0
    status_due_s: float = 0.0  # when the dialler tells its own anew
    stirred: trio.Event = field(default_factory=trio.Event)  # dialled by us, or admitted
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class EventStream(AsyncIterator[Joined | Left]):
    """What happens, for one reader; drops the oldest when the reader sleeps too long."""

    def __init__(self, first: Iterable[Joined | Left], counters: Counters) -> None:
        self._held: deque[Joined | Left] = deque(first)
        self._arrived = trio.Event()
        self._counters = counters

    def put_nowait(self, event: Joined | Left) -> None:
        if len(self._held) >= EVENTS_QUEUE_MAX:
            self._held.popleft()
            self._counters.queue_dropped["events", "shed"] += 1
        self._held.append(event)
        self._arrived.set()

    async def __anext__(self) -> Joined | Left:
        while not self._held:
            self._arrived = trio.Event()
            await self._arrived.wait()
        await trio.lowlevel.checkpoint()
        return self._held.popleft()


class Membership:
    """The links of one node, and what each peer has done to us."""

    def __init__(
        self,
        *,
        identity: Identity,
        chain_id: bytes,
        software: str,
        facts: Callable[[], StatusFacts],
        own_record: Callable[[], AddressRecord],
        judge_binding: Callable[[PeerId, bytes], bool],
        reserved: Iterable[PeerId],
        counters: Counters,
        ask: Ask,
        disconnect: Callable[[PeerId], None],
        now_ms: Callable[[], int],
        ping_every_s: float,
        private_allowed: bool,
        connections_max: int = CONNECTIONS_MAX,
        inbound_max: int = INBOUND_MAX,
        ping_misses_max: int = PING_MISSES_MAX,
        rng: random.Random | None = None,
    ) -> None:
        assert len(software.encode()) <= SOFTWARE_BYTES_MAX
        self._identity = identity
        self._chain_id = chain_id
        self._software = software
        self._facts = facts
        self._own_record = own_record
        self._judge_binding = judge_binding
        self._configured = frozenset(reserved)
        self._kept: frozenset[PeerId] = frozenset()
        self._counters = counters
        self._ask = ask
        self._disconnect = disconnect
        self._now_ms = now_ms
        self._ping_every_s = ping_every_s
        self._ping_misses_max = ping_misses_max
        self._private_allowed = private_allowed
        self.connections_max = connections_max
        self._inbound_max = inbound_max
        self._rng = rng or random.Random(os.urandom(8))
        self._links: dict[PeerId, Link] = {}
        self._bindings: dict[PeerId, tuple[int, bytes]] = {}
        self._readers: list[weakref.ref[EventStream]] = []  # in order: a set's order is chance
        self._nursery: trio.Nursery | None = None
        self.scores = Scores()
        self.on_record: list[Callable[[AddressRecord, PeerId], None]] = []  # record, its teller
        self.on_admitted: list[Callable[[PeerId], None]] = []
        self.on_wrong_chain: list[Callable[[PeerId], None]] = []

    # --- looking

    def find_link(self, peer: PeerId) -> Link | None:
        return self._links.get(peer)

    def links(self) -> Iterable[Link]:
        return self._links.values()

    def is_admitted(self, peer: PeerId) -> bool:
        link = self._links.get(peer)
        return link is not None and link.admitted

    def is_banned(self, peer: PeerId) -> bool:
        return self.scores.is_banned(peer, trio.current_time())

    def is_welcome(self, peer: PeerId) -> bool:
        return self.is_admitted(peer) and not self.is_banned(peer)

    def is_reserved(self, peer: PeerId) -> bool:
        return peer in self._configured or peer in self._kept

    def reserved(self) -> frozenset[PeerId]:
        return self._configured | self._kept

    def bindings(self) -> Mapping[PeerId, bytes]:
        """Asked in other threads too: of a copy, which is made in one step."""
        told = list(self._bindings.items())
        return {peer: binding for peer, (_, binding) in told if binding}

    def views(self) -> tuple[PeerView, ...]:
        now_s = trio.current_time()
        return tuple(
            PeerView(
                peer=link.peer,
                outbound=link.outbound,
                admitted=link.admitted,
                reserved=self.is_reserved(link.peer),
                since_ms=link.since_ms,
                score=self.scores.score(link.peer, now_s),
                ping_ms=link.ping_ms,
                software=link.software,
                facts=link.facts,
                addresses=tuple(a.text() for a in link.record.addresses) if link.record else (),
                binding=link.binding,
            )
            for link in self._links.values()
        )

    def events(self) -> EventStream:
        first = [self._joined(link) for link in self._links.values() if link.admitted]
        reader = EventStream(first, self._counters)
        self._readers = [held for held in self._readers if held() is not None]
        self._readers.append(weakref.ref(reader))
        return reader

    # --- what the owner asks for

    def keep(self, peers: Iterable[PeerId]) -> None:
        self._kept = frozenset(peers) - {self._identity.key}

    def hurry_status(self) -> None:
        """Our own record has changed: those we dialled hear of it with the next ping."""
        for link in self._links.values():
            link.status_due_s = 0.0

    def reserve(self, peer: PeerId) -> None:
        """One more that the operator named."""
        self._configured |= {peer}

    def admit(self, peer: PeerId) -> None:
        link = self._links.get(peer)
        if link is not None and not link.admitted and not self.is_banned(peer):
            link.admitted = True
            link.stirred.set()
            log.info("peer joined", peer=peer_id_text(peer), outbound=link.outbound)
            self._tell(self._joined(link))
            for call in self.on_admitted:
                call(peer)

    def penalise(self, peer: PeerId, points: int, reason: str) -> None:
        self._counters.penalties[reason] += 1
        begins = self.scores.penalise(
            peer, points, trio.current_time(), reserved=self.is_reserved(peer)
        )
        if begins:
            self._counters.penalties["ban"] += 1
            log.warning("peer banned", peer=peer_id_text(peer), reason=reason)
            self._disconnect(peer)

    def ban(self, peer: PeerId, length_s: float) -> None:
        self.scores.ban(peer, length_s, trio.current_time())
        log.warning("peer banned", peer=peer_id_text(peer), reason="asked", seconds=length_s)
        self._disconnect(peer)

    def unban(self, peer: PeerId) -> bool:
        if not self.is_banned(peer):
            return False
        self.scores.forgive(peer)
        return True

    def part_from(self, peer: PeerId) -> None:
        """It has done nothing; we have no more room for it."""
        self._disconnect(peer)

    def bans(self) -> Mapping[PeerId, float]:
        return self.scores.bans(trio.current_time())

    def blame(self, peer: PeerId, reason: str) -> None:
        """Penalise by the points of PENALTIES."""
        self.penalise(peer, PENALTIES[reason], reason)

    # --- what the transport reports

    async def run(self, started: Callable[[], None]) -> None:
        """Owns the tasks of all links; cancelled by its owner. Links may come once `started`."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def connected(self, peer: PeerId, *, outbound: bool, host: str, relayed: bool = False) -> bool:
        """A connection stands; False if it must be closed again. A second one is no new link."""
        assert peer != self._identity.key
        if self.is_banned(peer):
            return False
        known = self._links.get(peer)
        if known is not None:
            # Two that dial each other may each see the other's connection first: both send status.
            known.outbound = known.outbound or outbound
            if known.relayed and not relayed:
                known.relayed, known.host = False, host
            if outbound:
                known.stirred.set()
            return True
        if not self.is_reserved(peer) and not self._has_room(outbound, host):
            return False
        assert self._nursery is not None
        link = Link(peer, outbound, host, trio.current_time(), self._now_ms(), relayed)
        if outbound:
            link.stirred.set()
        self._links[peer] = link
        self._nursery.start_soon(self._watch, link)
        return True

    def disconnected(self, peer: PeerId) -> None:
        """The last connection to `peer` is gone."""
        link = self._links.pop(peer, None)
        if link is None:
            return
        link.scope.cancel()
        if link.admitted:
            log.info("peer left", peer=peer_id_text(peer))
            self._tell(Left(peer))

    def _has_room(self, outbound: bool, host: str) -> bool:
        """May one more unreserved peer stay? Over a limit the newest of the fullest group goes."""
        others = [link for link in self._links.values() if not self.is_reserved(link.peer)]
        if not self._private_allowed and host:
            group = group_of(host)
            if sum(link.host == host for link in others) >= PER_ADDRESS_MAX:
                return False
            if sum(group_of(link.host) == group for link in others) >= PER_GROUP_MAX:
                return False
        inbound = [link for link in others if not link.outbound]
        full = len(self._links) >= self.connections_max
        if not full and (outbound or len(inbound) < self._inbound_max):
            return True
        if outbound or not inbound:
            return False
        sizes: dict[str, int] = {}
        for link in inbound:
            sizes[group_of(link.host)] = sizes.get(group_of(link.host), 0) + 1
        if sizes.get(group_of(host), 0) + 1 >= max(sizes.values()):
            return False  # the newcomer itself is the newest of the fullest group
        fullest = max(sizes, key=sizes.__getitem__)
        victim = max((x for x in inbound if group_of(x.host) == fullest), key=lambda x: x.since_s)
        self._disconnect(victim.peer)
        return True

    # --- one link

    async def _watch(self, link: Link) -> None:
        """The life of a link: status, then pings, and status again each minute from the dialler."""
        with link.scope:
            if not await self._settle(link):
                self._disconnect(link.peer)
                return
            link.status_due_s = trio.current_time() + STATUS_EVERY_S
            while True:
                share = PING_AGAIN if link.misses else 1.0
                await trio.sleep(self._ping_every_s * self._jitter() * share)
                if not await self._ping(link):
                    self._disconnect(link.peer)
                    return
                if link.outbound and trio.current_time() >= link.status_due_s:
                    link.status_due_s = trio.current_time() + STATUS_EVERY_S
                    await self._exchange_status(link)

    async def _settle(self, link: Link) -> bool:
        """Be admitted by each other, or not at all."""
        with trio.move_on_after(STATUS_WITHIN_S):
            await link.stirred.wait()
        if link.outbound:
            return await self._exchange_status(link) or link.admitted
        if not link.admitted:
            self.blame(link.peer, "no_status")
        return link.admitted

    async def _exchange_status(self, link: Link) -> bool:
        try:
            raw = await self._ask(
                link.peer,
                "status",
                self._status(),
                timeout_s=STATUS_WITHIN_S,
                bytes_max=STATUS_BYTES_MAX,
            )
            self._learn(link, decode(raw, STATUS_BYTES_MAX))
        except Refused as refusal:
            if refusal.code == Code.WRONG_CHAIN:
                self._set_aside(link.peer)
            return False
        except Misbehaving:
            self.blame(link.peer, "malformed")
            return False
        except NetworkError:
            return False
        return True

    async def _ping(self, link: Link) -> bool:
        """False at the last miss allowed."""
        nonce, began_s = self._rng.randbytes(8), trio.current_time()
        try:
            raw = await self._ask(
                link.peer,
                "ping",
                encode((nonce,)),
                timeout_s=PING_S,
                bytes_max=PING_BYTES_MAX,
            )
        except Refused:
            raw = encode((nonce,))  # it lives, and is busy
        except NetworkError:
            raw = b""
        if raw == encode((nonce,)):
            link.misses = 0
            took_s = trio.current_time() - began_s
            link.ping_ms = round(took_s * 1_000)
            self._counters.ping_seconds.note(took_s)
        else:
            link.misses += 1
        return link.misses < self._ping_misses_max

    def _jitter(self) -> float:
        return self._rng.uniform(1 - PING_JITTER, 1 + PING_JITTER)

    # --- the two protocols' other side

    async def answer_ping(self, peer: PeerId, body: bytes) -> bytes:
        (nonce,) = fields(decode(body, PING_BYTES_MAX), bytes, what="ping")
        if len(nonce) != 8:
            raise Misbehaving("ping: nonce")
        return encode((nonce,))

    async def answer_status(self, peer: PeerId, body: bytes) -> bytes:
        link = self._links.get(peer)
        if link is None:
            raise Refused(Code.BUSY, 1_000)  # its connection is being closed
        try:
            self._learn(link, decode(body, STATUS_BYTES_MAX))
        except Refused:
            assert self._nursery is not None
            self._nursery.start_soon(self._set_aside_later, peer)
            raise
        return self._status()

    def _status(self) -> bytes:
        facts = self._facts()
        return encode(
            (
                STATUS_VERSION,
                self._chain_id,
                self._software.encode(),
                facts.roles,
                facts.height,
                facts.block_id,
                facts.earliest,
                facts.snapshot_height,
                self._now_ms(),
                self._own_record().value,
            )
        )

    def _learn(self, link: Link, status: Value) -> None:
        """Take a peer's status; raises Misbehaving, or Refused for another chain or version."""
        kinds = (int, bytes, bytes, int, int, bytes, int, int, int, tuple)
        parts = fields(status, *kinds, what="status")
        version, chain_id, software, roles, height, block_id, earliest, snapshot, time_ms = parts[
            :9
        ]
        if version != STATUS_VERSION or len(chain_id) != 32 or chain_id != self._chain_id:
            raise Refused(Code.WRONG_CHAIN)
        if len(software) > SOFTWARE_BYTES_MAX or len(block_id) not in (0, 32):
            raise Misbehaving("status: too long")
        record = read_record(parts[9], self._identity, self._chain_id, self._now_ms())
        if record.peer != link.peer:
            raise Misbehaving("status: another peer's record")
        if abs(time_ms - self._now_ms()) > CLOCK_SKEW_MS_MAX:
            self._counters.faults["clock_skew"] += 1
        link.software = software.decode("ascii", "replace")
        link.facts = StatusFacts(roles, height, block_id, earliest, snapshot)
        link.record = record
        before = link.binding
        self.learn_record(record, link.peer)
        link.binding = self.bindings().get(link.peer, b"")
        if link.admitted and link.binding != before:
            self._tell(self._joined(link))
        self.admit(link.peer)

    def learn_record(self, record: AddressRecord, teller: PeerId) -> None:
        """A checked record came in: its binding is judged if it is newer, the book is told."""
        known_ms = self._bindings.get(record.peer, (-1, b""))[0]
        if record.seq_ms > known_ms:
            is_good = bool(record.binding) and self._judge_binding(record.peer, record.binding)
            if record.binding and not is_good:
                self._counters.faults["binding_refused"] += 1
            has_room = len(self._bindings) < BOOK_ENTRIES_MAX
            if record.peer in self._bindings or (is_good and has_room):
                self._bindings[record.peer] = record.seq_ms, record.binding if is_good else b""
        for call in self.on_record:
            call(record, teller)

    async def _set_aside_later(self, peer: PeerId) -> None:
        """Once it has been told why."""
        await trio.sleep(CLOSE_S)
        self._set_aside(peer)

    def _set_aside(self, peer: PeerId) -> None:
        for call in self.on_wrong_chain:
            call(peer)
        self._disconnect(peer)

    def _joined(self, link: Link) -> Joined:
        return Joined(link.peer, link.outbound, link.facts, link.binding)

    def _tell(self, event: Joined | Left) -> None:
        for held in self._readers:
            reader = held()
            if reader is not None:
                reader.put_nowait(event)
