"""What both networks are: gossip, requests and membership, joined over some transport.

Why one class for two networks: the real and the simulated one differ only in how bytes travel, so
codes, limits, admission, bans and counters are one code, tested once on both (page 70 §11).
What this file does not know: libp2p, addresses, how a peer is found.
"""

import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Protocol

import trio

from p2p.addresses import Reach, are_tellable
from p2p.counters import Counters, NetworkStatistics
from p2p.errors import Unreachable
from p2p.framing import FrameStream
from p2p.gossip import Gossip, Judge, Topics
from p2p.limits import PING_MISSES_MAX, PROTOCOLS, ServeLimits, TopicLimits
from p2p.membership import Membership
from p2p.peers import Joined, Left, PeerId, PeerView, StatusFacts
from p2p.records import AddressRecord, Identity
from p2p.requests import Handler, Requests, StreamHandler


class Transport(Protocol):
    """How bytes travel, for as long as one libp2p stack (or one simulated node) lives."""

    async def open_stream(
        self, peer: PeerId, protocol: str, *, credit_bytes: int = 0
    ) -> FrameStream:
        """Never dials: Unreachable at once when not connected. The peer may send `credit_bytes`
        before we read any: what the caller will hold anyway."""
        ...

    async def disconnect(self, peer: PeerId) -> None:
        """Close every connection to `peer`; never raises."""
        ...

    async def publish(self, topic: str, data: bytes) -> None: ...

    def add_topic(self, topic: str) -> None: ...

    def add_protocol(self, protocol: str) -> None: ...

    def mesh_peers(self) -> Mapping[str, int]: ...

    def heartbeat_interval_s(self) -> float: ...

    def bytes_moved(self) -> Mapping[str, int]: ...


class TransportLost(Exception):
    """A task that the transport needs has ended; the supervisor builds a new one."""


class Switchboard:
    """The half of a Network that does not depend on how bytes travel."""

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
        now_ms: Callable[[], int],
        ping_every_s: float,
        private_allowed: bool,
        upload_bytes_s: int,
        connections_max: int,
        inbound_max: int,
        ping_misses_max: int = PING_MISSES_MAX,
        rng: random.Random | None = None,
    ) -> None:
        assert len(chain_id) == 32
        self.me = identity.key
        self.counters = Counters()
        self._transport: Transport | None = None
        self._nursery: trio.Nursery | None = None
        self._is_ready = True
        self._tells: Reach = "lan" if private_allowed else "public"
        self.members = Membership(
            identity=identity,
            chain_id=chain_id,
            software=software,
            facts=facts,
            own_record=own_record,
            judge_binding=judge_binding,
            reserved=reserved,
            counters=self.counters,
            ask=self.request,
            disconnect=self._disconnect_soon,
            now_ms=now_ms,
            ping_every_s=ping_every_s,
            ping_misses_max=ping_misses_max,
            private_allowed=private_allowed,
            connections_max=connections_max,
            inbound_max=inbound_max,
            rng=rng,
        )
        self.topics = Topics(
            me=self.me,
            counters=self.counters,
            is_welcome=self.members.is_welcome,
            blame=self.members.blame,
            now_ms=now_ms,
        )
        self.requests = Requests(
            counters=self.counters,
            is_admitted=self.members.is_admitted,
            is_banned=self.members.is_banned,
            is_reserved=self.members.is_reserved,
            blame=self.members.blame,
            upload_bytes_s=upload_bytes_s,
        )
        self.serve("status", self.members.answer_status, PROTOCOLS["status"])
        self.serve("ping", self.members.answer_ping, PROTOCOLS["ping"])

    # --- the interface of p2p/network.py

    async def publish(self, topic: str, data: bytes) -> None:
        self.topics.check_publish(topic, data)
        if self._transport is not None:
            await self._transport.publish(topic, data)
        else:
            await trio.lowlevel.checkpoint()

    def subscribe(self, topic: str, judge: Judge, limits: TopicLimits) -> AsyncIterator[Gossip]:
        inbox = self.topics.subscribe(topic, judge, limits)
        if self._transport is not None:
            self._transport.add_topic(topic)
        return inbox

    async def request(
        self, peer: PeerId, protocol: str, body: bytes, *, timeout_s: float, bytes_max: int
    ) -> bytes:
        return await self.requests.request(
            self._way_to(peer), peer, protocol, body, timeout_s=timeout_s, bytes_max=bytes_max
        )

    def may_tell(self, addresses: Iterable[bytes]) -> bool:
        return are_tellable(addresses, self._tells)

    def serve(self, protocol: str, handler: Handler, limits: ServeLimits) -> None:
        self.requests.serve(protocol, handler, limits)
        if self._transport is not None:
            self._transport.add_protocol(protocol)

    async def open(self, peer: PeerId, protocol: str) -> FrameStream:
        return await self.requests.open(self._way_to(peer), peer, protocol)

    def accept(self, protocol: str, handler: StreamHandler, limits: ServeLimits) -> None:
        self.requests.accept(protocol, handler, limits)
        if self._transport is not None:
            self._transport.add_protocol(protocol)

    def peers(self) -> tuple[PeerView, ...]:
        return self.members.views()

    def events(self) -> AsyncIterator[Joined | Left]:
        return self.members.events()

    def bindings(self) -> Mapping[PeerId, bytes]:
        return self.members.bindings()

    def admit(self, peer: PeerId) -> None:
        self.members.admit(peer)

    def penalise(self, peer: PeerId, points: int, reason: str) -> None:
        self.members.penalise(peer, points, reason)

    def ban(self, peer: PeerId, length_s: float) -> None:
        self.members.ban(peer, length_s)

    def unban(self, peer: PeerId) -> bool:
        return self.members.unban(peer)

    def bans(self) -> Mapping[PeerId, float]:
        return self.members.bans()

    def keep(self, peers: Iterable[PeerId]) -> None:
        self.members.keep(peers)

    def statistics(self) -> NetworkStatistics:
        links = tuple(self.members.links())
        counters, transport = self.counters, self._transport
        return NetworkStatistics(
            peers_in=sum(not link.outbound for link in links),
            peers_out=sum(link.outbound for link in links),
            admitted=sum(link.admitted for link in links),
            streams=self.requests.streams(),
            bans=len(self.bans()),
            restarts=counters.restarts,
            is_ready=self._is_ready,
            heartbeat_interval_s=transport.heartbeat_interval_s() if transport else 0.0,
            dials=dict(counters.dials),
            messages=dict(counters.messages),
            queue_dropped=dict(counters.queue_dropped),
            requests=dict(counters.requests),
            penalties=dict(counters.penalties),
            faults=dict(counters.faults),
            mesh_peers=dict(transport.mesh_peers()) if transport else {},
            circuits=dict(counters.circuits),
            bytes_moved=dict(transport.bytes_moved()) if transport else {},
            message_seconds={name: t.view() for name, t in counters.message_seconds.items()},
            request_seconds={name: t.view() for name, t in counters.request_seconds.items()},
            ping_seconds=counters.ping_seconds.view(),
        )

    # --- for the transport and its owner

    def _way_to(self, peer: PeerId) -> Transport:
        if self._transport is None or self.members.find_link(peer) is None:
            raise Unreachable("not connected")
        return self._transport

    def _disconnect_soon(self, peer: PeerId) -> None:
        if self._nursery is not None and self._transport is not None:
            self._nursery.start_soon(self._transport.disconnect, peer)

    async def _run_with(
        self, transport: Transport, nursery: trio.Nursery, started: Callable[[], None]
    ) -> None:
        """Attach `transport`, replay registrations on it, say `started`, and watch links."""
        self._transport, self._nursery = transport, nursery
        for topic in self.topics.names():
            transport.add_topic(topic)
        for protocol in self.requests.names():
            transport.add_protocol(protocol)
        try:
            await self.members.run(started)
        finally:
            self._transport = self._nursery = None
            for link in tuple(self.members.links()):
                self.members.disconnected(link.peer)
                self.topics.forget(link.peer)
