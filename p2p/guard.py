"""Guards around py-libp2p 0.8.1: nothing that one peer sends may end the process or fill memory.

Bare, one garbage gossip frame, one bad key, one raising handler or validator ends the daemon; each
is shown in tests/end_to_end/hostile. Each override below names what it mends, and the defaults
guard test fails on any other version of the library, where these parts have moved.
Only `Exception` is caught here, never a cancel.
What this file does not know: topics' rules, who is admitted, what is served.
"""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any
from weakref import WeakKeyDictionary

import libp2p.network.swarm as swarm_module
import libp2p.protocol_muxer.multiselect_communicator as communicator_module
import libp2p.pubsub.gossipsub as gossipsub_module
import libp2p.pubsub.pubsub as pubsub_module
import libp2p.stream_muxer.muxer_multistream as muxer_module
import libp2p.stream_muxer.yamux.yamux as yamux_module
import trio
from libp2p.exceptions import ParseError
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify.identify import PROTOCOL_VERSION as IDENTIFY_VERSION
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.identity.identify_push.identify_push import ID_PUSH as IDENTIFY_PUSH
from libp2p.network.connection.exceptions import RawConnError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.stream.exceptions import StreamEOF, StreamError
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub, ValidationCache
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.pubsub.utils import safe_bytes_from_hex
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited

from p2p.bulk import patch_streams
from p2p.errors import Misbehaving
from p2p.limits import (
    CLOSE_S,
    NEGOTIATION_LINE_BYTES_MAX,
    OPENED_STREAMS_BURST,
    OPENED_STREAMS_S,
    OUTBOUND_QUEUE,
    OUTBOUND_QUEUE_BYTES_MAX,
    PENDING_MAX,
    PENDING_S,
    PER_ADDRESS_MAX,
    PRUNE_BACKOFF_S_MAX,
    REFUSED_STREAMS_MAX,
    REFUSED_STREAMS_S,
    RPC_BYTES_MAX,
    RPC_CONTROLS_MAX,
    RPC_IDS_MAX,
    RPC_MESSAGES_MAX,
    RPC_SUBSCRIPTIONS_MAX,
    RPC_WANTED_BYTES_MAX,
    STREAMS_PER_CONNECTION_MAX,
    STUCK_WRITE_S,
    UNREAD_SLACK_BYTES,
    TokenBucket,
)

Note = Callable[[Any, str, BaseException], None]  # peer's libp2p id or None, where, what


def shielded(seconds: float) -> trio.CancelScope:
    """A scope that a cancel from outside does not reach, for `seconds` at most."""
    return trio.CancelScope(deadline=trio.current_time() + seconds, shield=True)


# --- gossip


class GuardedGossipSub(GossipSub):
    """No exception of one peer's control message, or of one heartbeat, leaves the router."""

    def __init__(
        self,
        *,
        note: Note,
        count: Callable[[str], None],
        is_welcome: Callable[[Any], bool],
        **more: Any,
    ) -> None:
        super().__init__(
            max_pending_messages_per_peer=PENDING_MAX,
            pending_messages_ttl=PENDING_S,
            **more,
        )
        self._note = note
        self._count = count
        self._is_welcome = is_welcome  # the peer of this id: then we answer it

    async def handle_rpc(self, rpc: Any, sender_peer_id: Any) -> None:
        try:
            _prune_control(rpc.control, set(self.mesh))
            if not self._is_welcome(sender_peer_id):
                # It may join our meshes already, or ours and its own would differ for a while.
                for kind in ("ihave", "iwant", "idontwant"):
                    rpc.control.ClearField(kind)
            self._bound_wanted(rpc.control)
            await super().handle_rpc(rpc, sender_peer_id)
        except Exception as error:  # noqa: BLE001  # bare, it ends the process
            self._note(sender_peer_id, "gossip control", error)

    def _bound_wanted(self, control: Any) -> None:
        """Leave one IWANT: each message once, RPC_WANTED_BYTES_MAX of them together.

        The library copies a message for each time that it is named: 188 KB of ids became 347 MB.
        """
        names = (safe_bytes_from_hex(told) for want in control.iwant for told in want.messageIDs)
        wanted, size = [], 0
        for name in dict.fromkeys(name for name in names if name is not None):
            message = self.mcache.get(name)
            if message is not None and size + message.ByteSize() <= RPC_WANTED_BYTES_MAX:
                size += message.ByteSize()
                wanted.append(name.hex().encode())  # taken by the library for what it is
        control.ClearField("iwant")
        if wanted:
            control.iwant.add(messageIDs=wanted)

    async def heartbeat(self) -> None:
        while True:
            try:
                await super().heartbeat()
            except Exception as error:  # noqa: BLE001  # bare, it ends the process
                self._note(None, "heartbeat", error)
                await trio.sleep(1)

    def _handle_dropped_rpc(self, peer_id: Any, rpc: Any, reason: str) -> None:
        self._count("oversize" if reason == "oversized" else "outbound_full")
        super()._handle_dropped_rpc(peer_id, rpc, reason)

    def _prune_pending_messages(self, peer_id: Any) -> None:
        """As the library's, without a warning for each message to a peer of few topics."""
        held = self._pending_messages.get(peer_id)
        if held is not None:
            del held[: max(0, len(held) - PENDING_MAX + 1)]

    def _check_equivocation(self, msg: Any) -> bool:
        """The library keeps 500 to 1,000 whole messages to compare: up to 500 MB of ours."""
        return True

    def _periodic_security_cleanup(self) -> None:
        """With adaptive gossip off, a float a message is appended for ever."""
        super()._periodic_security_cleanup()
        self.equivocation_detection.clear()
        self.recent_message_deliveries.clear()
        now_s = time.time()
        for topic, until_s in self.back_off.items():  # kept for every peer there ever was
            self.back_off[topic] = {peer: s for peer, s in until_s.items() if s > now_s}


def _prune_control(control: Any, topics: Collection[str]) -> None:
    """Leave what is of our topics and no stranger's word on whom to dial; Misbehaving for too much.

    The library keeps something for every topic that is named, and would dial the peers of a PRUNE.
    """
    entries = [control.ihave, control.iwant, control.graft, control.prune, control.idontwant]
    if max(map(len, entries)) > RPC_CONTROLS_MAX:
        raise Misbehaving("too many control messages in one gossip frame")
    listed = [*control.ihave, *control.iwant, *control.idontwant]
    if sum(len(each.messageIDs) for each in listed) > RPC_IDS_MAX:
        raise Misbehaving("too many message ids in one gossip frame")
    for named in (control.ihave, control.graft, control.prune):
        ours = [each for each in named if each.topicID in topics]
        if len(ours) < len(named):
            del named[:]
            named.extend(ours)
    for prune in control.prune:
        prune.ClearField("peers")
        prune.backoff = min(prune.backoff, PRUNE_BACKOFF_S_MAX)


class NoCache(ValidationCache):
    """Verdicts cached by a content id let one author's refusal silence the same bytes of all."""

    def get(self, msg_id: bytes) -> None:
        return None

    def put(self, msg_id: bytes, result: Any) -> None:
        return None


class GuardedPubsub(Pubsub):
    """Garbage frames, bad keys and raising validators stay inside the peer's own stream.

    `admit(forwarder id, message)` is the first gate, before any work on a message. Accepted
    messages are taken by the topic's validator itself, so the library's own queues stay empty.
    """

    def __init__(
        self,
        host: Any,
        router: Any,
        *,
        note: Note,
        admit: Callable[[Any, Any], bool],
        is_relayed: Callable[[Any], bool],
        **more: Any,
    ) -> None:
        super().__init__(host, router, max_inbound_rpc_size=RPC_BYTES_MAX, **more)
        self.validation_cache = NoCache()
        self._note = note
        self._admit = admit
        self._is_relayed = is_relayed  # the peer of this id, through nothing but relays

    async def continuously_read_stream(self, stream: Any) -> None:
        """The library's loop, with bounds on what one frame may make us do.

        It begins a task for each message named; a megabyte of empty ones stopped us for 2 s.
        """
        peer = stream.muxed_conn.peer_id
        if self._is_relayed(peer):
            await reset_stream(stream)
            return
        try:
            while self.manager.is_running:
                raw = await read_varint_prefixed_bytes_limited(stream, RPC_BYTES_MAX)
                await self._take_rpc(peer, raw)
        except (StreamEOF, StreamError):
            return  # it went away
        except Exception as error:  # noqa: BLE001  # bare, it ends the process
            self._note(peer, "gossip stream", error)
            await reset_stream(stream)
            self._handle_dead_peer(peer)

    async def _take_rpc(self, peer: Any, raw: bytes) -> None:
        """One frame of gossip; raises for one that is none, or is worse."""
        rpc: Any = rpc_pb2.RPC()
        rpc.ParseFromString(raw)
        if len(rpc.publish) > RPC_MESSAGES_MAX or len(rpc.subscriptions) > RPC_SUBSCRIPTIONS_MAX:
            raise Misbehaving("too many items in one gossip frame")
        if not untyped(pubsub_module).maybe_consume_signed_record(rpc, self.host, peer):
            return
        for message in rpc.publish:
            if self._is_subscribed_to_msg(message) and self._is_admitted(peer, message):
                self.manager.run_task(self.push_msg, peer, message)
        for told in rpc.subscriptions:
            self.handle_subscription(peer, told)
        if rpc.HasField("control"):
            await self.router.handle_rpc(rpc, peer)

    def _is_admitted(self, forwarder: Any, message: Any) -> bool:
        try:
            return self._admit(forwarder, message)
        except Exception as error:  # noqa: BLE001  # of a forwarder whose key is none
            self._note(forwarder, "gossip message", error)
            return False

    async def _handle_new_peer(self, peer_id: Any) -> None:
        """Gossip would fill a circuit within minutes, and votes have no business in one."""
        if not self._is_relayed(peer_id):
            await super()._handle_new_peer(peer_id)

    async def push_msg(self, msg_forwarder: Any, msg: Any) -> None:
        try:
            await super().push_msg(msg_forwarder, msg)
        except Exception as error:  # noqa: BLE001  # bare, it ends the process
            self._note(msg_forwarder, "gossip message", error)

    def _handle_dead_peer(self, peer_id: Any) -> None:
        """A peer that has come anew told its topics on its new stream: they must not go with the
        old one, or we never send it anything."""
        told = []
        if self._peer_is_connected(peer_id):
            told = [topic for topic, peers in self.peer_topics.items() if peer_id in peers]
        super()._handle_dead_peer(peer_id)
        for topic in told:
            self.peer_topics.setdefault(topic, set()).add(peer_id)
        if told:
            self._peer_subscription_count[peer_id] = len(told)

    def drop_stream_of(self, muxed_conn: Any) -> None:
        """This connection has closed: if our stream to its peer was on it, open another.

        The library does so only when a write fails, and writes nothing while the peer, not having
        heard our topics, sends nothing: the hang of 1 in 58 runs.
        """
        stream = self.peers.get(muxed_conn.peer_id)
        if stream is not None and stream.muxed_conn is muxed_conn:
            self._handle_dead_peer(muxed_conn.peer_id)

    def notify_subscriptions(self, publish_message: Any) -> None:
        """Nothing: the validator has handed the message on already."""


class _LongQueue(RpcQueue):
    """The library's holds 32 messages for a peer, of any size, and drops the rest in silence."""

    def __init__(self) -> None:
        super().__init__(OUTBOUND_QUEUE, RPC_BYTES_MAX)
        self._bytes = 0

    def push(self, rpc: Any, priority: bool = False) -> bool:
        """False when it is full, as the library's."""
        size = rpc.ByteSize()
        if self._bytes + size > OUTBOUND_QUEUE_BYTES_MAX or not super().push(rpc, priority):
            return False
        self._bytes += size
        return True

    async def pop(self) -> Any:
        """As the library's."""
        rpc = await super().pop()
        if rpc is not None:
            self._bytes -= rpc.ByteSize()
        return rpc


# --- connections and streams


class _BoundedBuffer(bytearray):
    """What a stream has received and nobody read: the library only logs an exceeded window."""

    stream: YamuxStream | None = None

    def extend(self, data: Any) -> None:
        most = self.stream.target_recv_window if self.stream is not None else 0
        if len(self) + len(data) > max(most, yamux_module.DEFAULT_WINDOW_SIZE) + UNREAD_SLACK_BYTES:
            raise BufferError("the peer sent more than its window")
        super().extend(data)


class _BoundedBuffers(dict[int, bytearray]):
    def __init__(self, streams: dict[int, YamuxStream]) -> None:
        super().__init__()
        self._streams = streams

    def __setitem__(self, stream_id: int, buffer: bytearray) -> None:
        bounded = _BoundedBuffer(buffer)
        bounded.stream = self._streams.get(stream_id)
        super().__setitem__(stream_id, bounded)


class GuardedYamux(Yamux):
    """Unread bytes are bounded, and a cancelled writer never leaves half a frame on the wire."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.stream_buffers = _BoundedBuffers(self.streams)

    async def _write_frame(self, data: bytes) -> None:
        async with self._write_lock:
            # Half a Noise frame would break every stream of the connection, so the write goes on
            # when its own task is cancelled; stuck for long, the connection is given up.
            with shielded(STUCK_WRITE_S) as scope:
                await self.secured_conn.write(data)
        if scope.cancelled_caught:
            await self._cleanup_on_error()
            raise RawConnError("connection stuck")


async def reset_stream(stream: Any) -> None:
    """Reset, whatever state it is in; never raises, ends within CLOSE_S also when cancelled."""
    try:
        with shielded(CLOSE_S), contextlib.suppress(Exception):  # it is gone already
            await stream.reset()
    finally:  # the library forgets it only behind the reset's write, which we may have given up
        stream.swarm_conn.remove_stream(stream)


def count_theirs(link: Any) -> int:
    """Streams that the peer has opened on this connection and that we still serve.

    Our own are no stranger's doing: counted too, they would shut out the peer's pings.
    """
    return sum(not stream.muxed_stream.is_initiator for stream in link.get_streams())


class _Streams:
    """What a peer may open on one connection: each stream costs us more than it costs the peer."""

    def __init__(self) -> None:
        now_s = trio.current_time()
        self._opened = TokenBucket(OPENED_STREAMS_S, OPENED_STREAMS_BURST, now_s)
        self._refused = TokenBucket(REFUSED_STREAMS_S, REFUSED_STREAMS_MAX, now_s)
        self.is_cut = False

    def take(self) -> bool:
        """One is opened; False when they came too fast, whether they live or not."""
        return self._opened.take(trio.current_time())

    def refuse(self) -> bool:
        """One is one too many at once; False when such have been too many."""
        return self._refused.take(trio.current_time())


def guard_swarm(swarm: Any, note: Note, *, private_allowed: bool) -> None:
    """Wrap what the swarm does with strangers' connections and streams."""
    inner = swarm.common_stream_handler

    streams_of: WeakKeyDictionary[Any, _Streams] = WeakKeyDictionary()  # by connection

    async def is_refused(stream: Any) -> bool:
        """Reset one too many. Who goes on and on is cut off."""
        link = stream.swarm_conn
        streams = streams_of.setdefault(link, _Streams())
        is_patient = streams.take()
        if is_patient and count_theirs(link) <= STREAMS_PER_CONNECTION_MAX:
            return False
        await reset_stream(stream)
        if not (is_patient and streams.refuse()) and not streams.is_cut:
            streams.is_cut = True
            note(stream.muxed_conn.peer_id, "stream flood", Misbehaving("too many streams"))
            await link.close()
        return True

    async def handle_stream(stream: Any) -> None:
        peer = stream.muxed_conn.peer_id
        try:
            if await is_refused(stream):
                return
            await inner(stream)
        except Exception as error:  # noqa: BLE001  # bare, it ends the process
            note(peer, "stream handler", error)
            await reset_stream(stream)

    handshakes: Counter[str] = Counter()

    async def handle_inbound(connection: Any, maddr: Any, failure: Any) -> None:
        """The library keeps an inbound slot for ever: after 64 connections, none comes in."""
        remote = connection.get_remote_address()
        host = remote[0] if remote else ""
        if not host or (not private_allowed and handshakes[host] >= PER_ADDRESS_MAX):
            await connection.close()  # without an address it has gone already
            return
        handshakes[host] += 1
        muxed = None
        try:
            muxed = await swarm.upgrade_inbound_raw_conn(RawConnection(connection, False), maddr)
        except Exception:  # noqa: BLE001  # a failed handshake is the stranger's affair
            await connection.close()
        finally:
            handshakes[host] -= 1
            if not handshakes[host]:
                del handshakes[host]
        if muxed is not None:
            await muxed.event_closed.wait()

    async def connect_nobody() -> None:
        """The library dials half its limit of whatever public address identify has told it."""

    swarm.auto_connector.maybe_connect = connect_nobody
    swarm.common_stream_handler = handle_stream
    swarm._do_handle_inbound_connection = handle_inbound


def guard_identify(host: Any) -> None:
    """Ask nobody who it is, have nobody push it to us, and tell what we announce and no more.

    What identify tells we use for nothing: addresses come in signed records, protocols show when a
    stream is opened. A megabyte of both cost us eight times the CPU that it cost its sender, in a
    system task, where an exception ends the process. And where nothing is announced the library
    looks for half a second each time, then tells the private addresses that it listens on.
    """

    async def tell(stream: Any) -> None:
        told = Identify(
            protocol_version=IDENTIFY_VERSION,
            public_key=host.get_public_key().serialize(),
            listen_addrs=[address.to_bytes() for address in host.get_addrs()],
            protocols=[str(name) for name in host.get_mux().get_protocols() if name is not None],
        )
        await stream.write(encode_varint_prefixed(told.SerializeToString()))
        await stream.close()

    def ask_nobody(peer_id: Any, *, reason: str) -> None:
        """The library begins a task here for each connection."""

    host._schedule_identify = ask_nobody
    host.set_stream_handler(IDENTIFY, tell)
    host.remove_stream_handler(IDENTIFY_PUSH)


async def _read_line(reader: Any) -> bytes:
    """A line of multistream-select. The library reads as many bytes as a stranger says there are,
    before any handshake: 600 MB in a second and a half (measured)."""
    raw = await read_varint_prefixed_bytes_limited(reader, NEGOTIATION_LINE_BYTES_MAX)
    if raw[-1:] != b"\n":
        raise ParseError("a line without its end")
    return raw[:-1]


def patch_library() -> None:
    """What the library reads from its modules, set once: queues, credit, records, sockets."""
    # Its errors are each failed dial and each stranger's noise; ours are counted and told once.
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    pubsub, gossipsub = untyped(pubsub_module), untyped(gossipsub_module)
    pubsub.RpcQueue = _LongQueue
    untyped(communicator_module).read_delim = _read_line
    untyped(
        muxer_module
    ).Yamux = GuardedYamux  # it makes its own and ignores the class that it is given
    patch_streams()
    untyped(swarm_module)._HAPPY_EYEBALLS_DELAY = 0.01  # we dial one address: no second one
    consume = getattr(
        pubsub.maybe_consume_signed_record, "inner", pubsub.maybe_consume_signed_record
    )

    def consume_if_there(rpc: Any, host: Any, peer: Any) -> bool:
        return not rpc.senderRecord or bool(consume(rpc, host, peer))

    untyped(consume_if_there).inner = consume
    for module in (pubsub, gossipsub):
        # Each RPC would carry our signed record, checked twice: 3–14 % of the CPU.
        module.env_to_send_in_RPC = lambda host: (b"", False)
        module.maybe_consume_signed_record = consume_if_there


def untyped(thing: Any) -> Any:
    """A part of the library whose attributes we replace at run time: types cannot follow."""
    return thing


def id_of(key: bytes) -> Any:
    """The library's id of a 32-byte key."""
    return ID(bytes.fromhex("002408011220") + key)
