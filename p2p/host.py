"""One libp2p stack: built, run, and spoken to by 32-byte keys; a new one for every restart.

TCP, Noise and Yamux only: the library's default also takes an unencrypted transport, in which a
stranger says whose id it has. Why its pruner, dialler, scores and discovery are all off: ours
decide (page 70 §3), and two deciders undo each other's work.
What this file does not know: whom to dial, what is served, what a message means.
"""

import contextlib
import hashlib
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog
import trio
from google.protobuf.message import DecodeError
from libp2p import new_host
from libp2p.abc import INotifee
from libp2p.crypto.ed25519 import Ed25519PublicKey, create_new_key_pair
from libp2p.crypto.exceptions import CryptographyError
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import ParseError
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.peer.peerinfo import PeerInfo
from libp2p.peer.peerstore import PeerStoreError
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from p2p.addresses import Address, parse_address
from p2p.bulk import BYTES_MOVED, credit_frame, greet
from p2p.counters import Counters
from p2p.errors import ListenError, Misbehaving, TooSlow, Unreachable
from p2p.framing import FrameStream
from p2p.gossip import Topics
from p2p.guard import (
    GuardedGossipSub,
    GuardedPubsub,
    GuardedYamux,
    guard_identify,
    guard_swarm,
    id_of,
    patch_library,
    reset_stream,
    shielded,
    untyped,
)
from p2p.limits import (
    ADMITTED_LOOK_S,
    CLOSE_S,
    COME_ANEW_S,
    CONNECTIONS_PER_PEER_MAX,
    CREDIT_SLACK_BYTES,
    DIAL_S,
    HEARTBEAT_S,
    HISTORY,
    HISTORY_WINDOW,
    MESH,
    MESH_HIGH,
    MESH_LOW,
    MESHED_WITHIN_S,
    RELAYED_PROTOCOLS,
    SEEN_S,
    TOPICS,
    TOPICS_MAX,
    UPGRADE_S,
)
from p2p.membership import Membership
from p2p.peers import PeerId, key_of_id_bytes
from p2p.relay import RELAY_ROLE, Relaying, RelayUse, Way, is_circuit
from p2p.requests import Requests
from p2p.streams import Libp2pFrameStream
from p2p.switchboard import TransportLost

log = structlog.get_logger(part="p2p")

MESHSUB: Final = TProtocol("/meshsub/1.1.0")  # 1.2 sends IDONTWANT for each message: CPU × 1.5
MESSAGE_ID_BYTES: Final = 20
PEERS_FAULT: Final = (
    DecodeError, ParseError, CryptographyError, UnicodeDecodeError, Misbehaving
)  # fmt: skip


class Libp2pIdentity:
    """The node's key in libp2p's hands."""

    def __init__(self, seed: bytes) -> None:
        assert len(seed) == 32
        self.pair = create_new_key_pair(seed)
        self.key = PeerId(self.pair.public_key.to_bytes())

    def sign(self, message: bytes) -> bytes:
        signature: bytes = self.pair.private_key.sign(message)
        return signature

    def is_signed_by(self, key: PeerId, message: bytes, signature: bytes) -> bool:
        try:
            return bool(Ed25519PublicKey.from_bytes(key).verify(message, signature))
        except ValueError:  # a key or signature of the wrong size or kind
            return False


def topic_text(topic: str, chain_id: bytes) -> str:
    """The topic's name on the wire: other chains never share one."""
    return f"/olnode/{topic}/1/{chain_id[:8].hex()}"


def protocol_text(protocol: str) -> str:
    return f"/olnode/{protocol}/1"


@dataclass(frozen=True, slots=True)
class StackParts:
    """What outlives a stack and is handed to each new one."""

    identity: Libp2pIdentity
    chain_id: bytes
    members: Membership
    topics: Topics
    requests: Requests
    counters: Counters
    listen: tuple[Address, ...]
    announced: Callable[[], tuple[Address, ...]]
    is_denied: Callable[[PeerId, str], bool]
    private_allowed: bool
    connections_max: int
    relay: RelayUse = "off"


class Stack(INotifee):
    """A running libp2p host with gossip; a Transport for the switchboard."""

    def __init__(self, parts: StackParts) -> None:
        patch_library()
        self._parts = parts
        self._nursery: trio.Nursery | None = None
        self._connections: set[Any] = set()
        self._topic_of = {topic_text(name, parts.chain_id): name for name in TOPICS}
        self._host: Any = new_host(
            key_pair=parts.identity.pair,
            sec_opt={NOISE: _noise(parts.identity)},
            muxer_opt={TProtocol(YAMUX): GuardedYamux},
            listen_addrs=[_multiaddr(address) for address in parts.listen],
            addrs_factory=self._announce,
            disable_identify_address_discovery=True,
            negotiate_timeout=int(UPGRADE_S),
            connection_config=ConnectionConfig(
                max_connections=parts.connections_max,
                min_connections=0,
                low_watermark=0,
                high_watermark=parts.connections_max,
                max_connections_per_peer=CONNECTIONS_PER_PEER_MAX,
                dial_timeout=UPGRADE_S,
                inbound_upgrade_timeout=UPGRADE_S,
                outbound_upgrade_timeout=UPGRADE_S,
                outbound_stream_protocol_negotiation_timeout=UPGRADE_S,
                inbound_stream_protocol_negotiation_timeout=UPGRADE_S,
            ),
        )
        self._swarm = untyped(self._host.get_network())
        self._swarm.retry_config = RetryConfig(max_retries=0)
        self._swarm.set_resource_manager(None)  # its limits leak slots; ours are in requests.py
        guard_swarm(self._swarm, self._note, private_allowed=parts.private_allowed)
        guard_identify(self._host)
        self.router = GuardedGossipSub(
            protocols=[MESHSUB],
            degree=MESH,
            degree_low=MESH_LOW,
            degree_high=MESH_HIGH,
            heartbeat_interval=HEARTBEAT_S,
            gossip_window=HISTORY_WINDOW,
            gossip_history=HISTORY,
            do_px=False,
            spam_protection_enabled=False,  # drops above 10 messages/s a topic, our own too
            adaptive_gossip_enabled=False,  # moved the heartbeat from 1 s to 60 s
            eclipse_protection_enabled=False,
            note=self._note,
            count=self._count_drop,
            is_welcome=self._is_welcome,
        )
        self.pubsub = GuardedPubsub(
            self._host,
            self.router,
            strict_signing=True,
            seen_ttl=SEEN_S,
            msg_id_constructor=_message_id,
            max_subscriptions_per_peer=TOPICS_MAX,
            allowed_topics=frozenset(self._topic_of),
            note=self._note,
            admit=self._admit,
            is_relayed=self._is_relayed,
        )
        self._relaying: Relaying | None = None
        if parts.relay != "off":
            way = Way(
                host=self._host,
                swarm=self._swarm,
                is_admitted=parts.members.is_admitted,
                relays=self._find_relays,
                changed=parts.members.hurry_status,
                counters=parts.counters,
            )
            self._relaying = Relaying(way, parts.relay)
        self.pubsub.counter = time.time_ns()  # by the second, a restart reuses sequence numbers
        self._swarm.register_notifee(self)

    # --- running

    async def run(self, started: Callable[["Stack", trio.Nursery], Any]) -> None:
        """Listen, then run `started(self, nursery)`; ends only by a cancel or an exception."""
        for address in self._parts.listen:
            check_port_free(address)
        try:
            async with (
                self._host.run([_multiaddr(address) for address in self._parts.listen]),
                background_trio_service(self.router) as router,
                background_trio_service(self.pubsub) as pubsub,
                trio.open_nursery() as nursery,
            ):
                self._nursery = nursery
                await self.pubsub.wait_until_ready()
                if len(self._host.get_transport_addrs()) < len(self._parts.listen):
                    raise ListenError("libp2p does not listen")
                for service in (self._swarm.manager, router, pubsub):
                    nursery.start_soon(_watch_service, service)
                nursery.start_soon(self._watch_meshes)
                if self._relaying is not None:
                    nursery.start_soon(self._relaying.keep_reserved)
                await started(self, nursery)
        finally:
            self._nursery = None
            await self._close_sockets()

    async def _close_sockets(self) -> None:
        """Cancelled, the library leaves open its listeners, whose tasks are the system's own, and
        the sockets of connections that it marks closed: a next stack would share its port with a
        dead one, and peers would wait for us until their pings fail."""
        for listener in tuple(self._swarm.listeners.values()):
            with shielded(CLOSE_S), contextlib.suppress(Exception):  # it is gone already
                await listener.close()
        for conn in tuple(self._connections):
            with shielded(CLOSE_S), contextlib.suppress(Exception):  # it is gone already
                await conn.muxed_conn.secured_conn.close()

    def listening(self) -> tuple[Address, ...]:
        """Where we listen, with the ports that port 0 became."""
        return tuple(parse_address(str(a)) for a in self._host.get_transport_addrs())

    # --- Transport

    async def open_stream(
        self, peer: PeerId, protocol: str, *, credit_bytes: int = 0
    ) -> FrameStream:
        peer_id = id_of(peer)
        if not self._swarm.get_connections(peer_id):
            raise Unreachable("not connected")
        if protocol not in RELAYED_PROTOCOLS and self._is_relayed(peer_id):
            raise Unreachable(f"{protocol}: connected through a relay only")
        stream = None
        is_open = False
        try:
            with trio.fail_after(UPGRADE_S):
                stream = await self._swarm.new_stream(peer_id)
                await credit_frame(stream.muxed_stream, credit_bytes + CREDIT_SLACK_BYTES)
                await greet(stream, protocol_text(protocol))
            stream.set_protocol(TProtocol(protocol_text(protocol)))
            is_open = True
        except trio.TooSlowError:
            raise TooSlow(f"{protocol}: no agreement in time") from None
        except Exception as error:  # noqa: BLE001  # whatever it raises, there is no stream
            raise Unreachable(f"{protocol}: {error!r}") from None
        finally:
            if stream is not None and not is_open:
                await reset_stream(stream)
        return Libp2pFrameStream(stream)

    async def disconnect(self, peer: PeerId) -> None:
        """Say goodbye where the connection takes it, and cut it after CLOSE_S where it does not.

        A stopped peer's socket is full: the library would wait behind the write that is stuck in
        it, and its cancelled close would leave a connection that nobody ever hears of again.
        """
        peer_id = id_of(peer)
        with shielded(2 * CLOSE_S + 1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cut, tuple(self._swarm.get_connections(peer_id)), CLOSE_S)
                try:
                    await self._host.disconnect(peer_id)
                except Exception as error:  # noqa: BLE001  # it is gone already
                    self._note(peer_id, "disconnect", error)
                nursery.cancel_scope.cancel()
        if not self._is_connected(peer):
            self._drop(peer)

    async def _cut(self, connections: tuple[Any, ...], after_s: float) -> None:
        """Close their sockets without a word: whoever waits for one has an error at once."""
        await trio.sleep(after_s)
        for conn in connections:
            with contextlib.suppress(Exception):  # it is gone already
                await conn.muxed_conn.secured_conn.close()

    async def publish(self, topic: str, data: bytes) -> None:
        await self.pubsub.publish(topic_text(topic, self._parts.chain_id), data)

    def add_topic(self, topic: str) -> None:
        text = topic_text(topic, self._parts.chain_id)
        self._topic_of[text] = topic
        self.pubsub.allowed_topics = frozenset(self._topic_of)
        self.pubsub.set_topic_validator(text, self._judge, False)  # synchronous: no duplicates
        if self._nursery is not None:
            self._nursery.start_soon(self.pubsub.subscribe, text)

    def add_protocol(self, protocol: str) -> None:
        async def handle(stream: Any) -> None:
            try:
                peer = key_of_id_bytes(stream.muxed_conn.peer_id.to_bytes())
            except Misbehaving:
                await stream.reset()
                return
            if protocol not in RELAYED_PROTOCOLS and is_circuit(stream.muxed_conn):
                await stream.reset()
                return
            await self._parts.requests.incoming(peer, protocol, Libp2pFrameStream(stream))

        self._host.set_stream_handler(TProtocol(protocol_text(protocol)), handle)

    def mesh_peers(self) -> Mapping[str, int]:
        return {
            name: len(self.router.mesh.get(text, ()))
            for text, name in self._topic_of.items()
            if text in self.router.mesh
        }

    def bytes_moved(self) -> Mapping[str, int]:
        return BYTES_MOVED

    def heartbeat_interval_s(self) -> float:
        return float(self.router.heartbeat_interval)

    # --- dialling

    async def dial(self, peer: PeerId, address: Address) -> None:
        """Connect to exactly this address; Unreachable if that fails."""
        peer_id = id_of(peer)
        self._swarm.unblock_peer(peer_id)  # after one failure it refuses the peer for 60 s
        self._forget_peer(peer_id)
        try:
            with trio.fail_after(DIAL_S):
                if address.relay is None:
                    await self._host.connect(PeerInfo(peer_id, [_multiaddr(address)]))
                else:
                    await self._dial_through_relay(peer, address, address.relay)
        except Exception as error:  # noqa: BLE001  # whatever it raises, there is no connection
            raise Unreachable(f"dial: {error!r}") from None
        if self._nursery is not None:
            self._nursery.start_soon(self._ensure_gossip, peer)

    async def _dial_through_relay(self, peer: PeerId, address: Address, relay: PeerId) -> None:
        if self._relaying is None:
            raise Unreachable("p2p.relay is off")
        if self._parts.members.find_link(relay) is None:
            await self.dial(relay, replace(address, relay=None))
        while not self._parts.members.is_admitted(relay):  # noqa: ASYNC110  # within DIAL_S
            await trio.sleep(ADMITTED_LOOK_S)
        await self._relaying.dial(peer, address)

    def _find_relays(self) -> tuple[PeerId, ...]:
        return tuple(
            link.peer
            for link in self._parts.members.links()
            if link.admitted and not link.relayed and link.facts.roles & RELAY_ROLE
        )

    def relayed_addresses(self) -> tuple[Address, ...]:
        """Where others may call us through the relays that hold a place for us."""
        found = []
        for relay in self._relaying.reserved() if self._relaying is not None else ():
            link = self._parts.members.find_link(relay)
            if link is not None and link.record is not None:
                found += [replace(a, relay=relay) for a in link.record.addresses if not a.relay]
        return tuple(found)

    def _is_relayed(self, peer_id: Any) -> bool:
        """Whether all that joins us with the peer are circuits."""
        connections = self._swarm.get_connections(peer_id)
        return bool(connections) and all(is_circuit(conn.muxed_conn) for conn in connections)

    async def _ensure_gossip(self, peer: PeerId) -> None:
        try:
            await self.pubsub.ensure_peer_stream(id_of(peer), 5)
        except Exception as error:  # noqa: BLE001  # bare, it would end the stack
            self._note(id_of(peer), "gossip stream", error)

    async def _watch_meshes(self) -> None:
        """A connected peer without a gossip stream: open it again, then redial (1 of 58 runs)."""
        while True:
            await trio.sleep(MESHED_WITHIN_S / 2)
            for link in tuple(self._parts.members.links()):
                age_s = trio.current_time() - link.since_s
                is_meshed = id_of(link.peer) in self.pubsub.peers
                if is_meshed or link.relayed or age_s < MESHED_WITHIN_S:
                    continue
                self._parts.counters.faults["no_gossip_stream"] += 1
                if age_s < 2 * MESHED_WITHIN_S and self._nursery is not None:
                    self._nursery.start_soon(self._ensure_gossip, link.peer)
                else:
                    await self.disconnect(link.peer)

    # --- what the library reports

    async def connected(self, network: Any, conn: Any) -> None:
        self._connections.add(conn)
        peer_id = conn.muxed_conn.peer_id
        remote = conn.muxed_conn.get_remote_address()
        host = remote[0] if remote else ""
        is_outbound = str(conn.direction).lower().endswith("outbound")
        try:
            peer = key_of_id_bytes(peer_id.to_bytes())
        except Misbehaving:
            peer = None
        if peer is not None and not is_outbound:
            self._forget_lost(peer, conn)
        is_kept = (
            peer is not None
            and peer != self._parts.identity.key
            and not self._parts.is_denied(peer, host)
            and self._parts.members.connected(
                peer, outbound=is_outbound, host=host, relayed=is_circuit(conn.muxed_conn)
            )
        )
        if not is_kept and self._nursery is not None:
            self._nursery.start_soon(self._refuse, conn)

    def _forget_lost(self, peer: PeerId, conn: Any) -> None:
        """Nobody dials whom it is linked with: a peer that comes anew has lost what we still have.

        Kept, that half-open connection has the older streams, so the library would put ours on it
        too, and our pings, failing there, would end the new one with it.
        """
        link = self._parts.members.find_link(peer)
        if link is None or trio.current_time() - link.since_s < COME_ANEW_S:
            return  # two that dial each other at once have two connections for a while
        self._parts.counters.faults["came anew"] += 1
        self._parts.members.disconnected(peer)
        self._parts.topics.forget(peer)
        lost = tuple(c for c in self._swarm.get_connections(id_of(peer)) if c is not conn)
        if self._nursery is not None:
            self._nursery.start_soon(self._cut, lost, 0.0)

    async def _refuse(self, conn: Any) -> None:
        with shielded(CLOSE_S + 2):
            try:
                await conn.close()
            except Exception as error:  # noqa: BLE001  # it is gone already
                self._note(None, "refuse", error)

    async def disconnected(self, network: Any, conn: Any) -> None:
        self._connections.discard(conn)
        try:
            peer = key_of_id_bytes(conn.muxed_conn.peer_id.to_bytes())
        except Misbehaving:
            return
        if self._is_connected(peer):
            self.pubsub.drop_stream_of(conn.muxed_conn)
        else:
            self._drop(peer)

    async def opened_stream(self, network: Any, stream: Any) -> None:
        """Not needed."""

    async def closed_stream(self, network: Any, stream: Any) -> None:
        """Not needed."""

    async def listen(self, network: Any, multiaddr: Any) -> None:
        """Not needed."""

    async def listen_close(self, network: Any, multiaddr: Any) -> None:
        """Not needed."""

    def _is_connected(self, peer: PeerId) -> bool:
        return any(not conn.is_closed for conn in self._swarm.get_connections(id_of(peer)))

    def _drop(self, peer: PeerId) -> None:
        self._parts.members.disconnected(peer)
        self._parts.topics.forget(peer)
        self._forget_peer(id_of(peer))

    def _forget_peer(self, peer_id: Any) -> None:
        """Identify keeps the addresses that a peer tells of itself: never to be dialled."""
        with contextlib.suppress(PeerStoreError):
            self._host.get_peerstore().clear_peerdata(peer_id)

    # --- gossip's gates

    def _admit(self, forwarder: Any, message: Any) -> bool:
        peer = key_of_id_bytes(forwarder.to_bytes())
        if len(message.topicIDs) != 1:
            self._parts.members.blame(peer, "malformed")
            return False
        return self._parts.topics.admit(peer, len(message.data))

    def _is_welcome(self, peer_id: Any) -> bool:
        try:
            return self._parts.members.is_welcome(key_of_id_bytes(peer_id.to_bytes()))
        except Misbehaving:
            return False

    def _judge(self, forwarder: Any, message: Any) -> bool:
        """The library's validator, after it has checked the signature: True relays."""
        peer = key_of_id_bytes(forwarder.to_bytes())
        if peer == self._parts.identity.key:
            return True  # our own publication on its way out
        topic, data = self._topic_of[message.topicIDs[0]], message.data
        try:
            author = key_of_id_bytes(message.from_id)
        except Misbehaving:
            self._parts.members.blame(peer, "malformed")
            return False
        if not self._parts.topics.judge(topic, peer, author, data):
            return False
        self._parts.topics.deliver(topic, peer, author, data)
        return True

    def _count_drop(self, reason: str) -> None:
        self._parts.counters.queue_dropped["-", reason] += 1

    def _note(self, peer_id: Any, where: str, error: BaseException) -> None:
        """A guard has caught something: count it, and hold the peer to account."""
        counters = self._parts.counters
        counters.faults[where] += 1
        if counters.faults[where] == 1:
            log.warning("guarded", where=where, error=repr(error))
        if peer_id is None or not isinstance(error, PEERS_FAULT):
            return  # the library's own failures under churn must not make peers ban each other
        with contextlib.suppress(Misbehaving):  # a peer without an Ed25519 key: closed anyway
            self._parts.members.blame(key_of_id_bytes(peer_id.to_bytes()), "malformed")

    def _announce(self, candidates: list[Any]) -> list[Any]:
        """What identify tells: our own announced addresses, never what strangers told us."""
        return [_multiaddr(address) for address in self._parts.announced()]


async def _watch_service(manager: Any) -> None:
    """The library's services run for ever; one that has ended takes the stack with it."""
    await manager.wait_finished()
    raise TransportLost("a service of libp2p has ended")


def check_port_free(address: Address) -> None:
    """ListenError if another process listens there: the library's SO_REUSEPORT would share it."""
    if address.port == 0:
        return
    family = socket.AF_INET6 if address.kind == "ip6" else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            raise ListenError(f"cannot listen on {address.text()}: {error.strerror}") from None


def _noise(identity: Libp2pIdentity) -> Any:
    return NoiseTransport(identity.pair, noise_privkey=create_new_x25519_key_pair().private_key)


def _multiaddr(address: Address) -> Any:
    return Multiaddr(address.text())


def _message_id(message: Any) -> bytes:
    return hashlib.sha256(message.data).digest()[:MESSAGE_ID_BYTES]
