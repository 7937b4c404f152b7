"""Circuit relay v2, experimental: a short, narrow way to a peer that nobody can dial.

The wire is libp2p's (specs/relay/circuit-v2.md), its messages are the library's; the rest is ours,
because the library's server lets one stranger reserve every place under made-up ids, ends a
circuit at its deadline only when bytes come, and dials through whatever relay it has heard of.
A circuit carries a whole connection with its own Noise handshake: the relay sees and changes
nothing, it can only cut. It is for requests, never for gossip, consensus or blobs (host.py, which
sees to that). Hole punching is not here: the library's was never shown to work.
What this file does not know: whom to dial, who is admitted, what is asked for.
"""

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import trio
from libp2p.custom_types import TProtocol
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.relay.circuit_v2.pb import circuit_pb2
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from p2p.addresses import Address
from p2p.counters import Counters
from p2p.errors import Misbehaving, Unreachable
from p2p.framing import part
from p2p.guard import id_of, reset_stream
from p2p.limits import (
    CIRCUIT_BYTES_MAX,
    CIRCUIT_S,
    CIRCUITS_MAX,
    OPEN_S,
    RELAY_LOOK_S,
    RELAY_MESSAGE_BYTES_MAX,
    RELAY_READ_BYTES,
    RELAYS_USED_MAX,
    RESERVATION_S,
    RESERVATIONS_MAX,
)
from p2p.peers import PeerId, key_of_id_bytes, peer_id_text
from p2p.streams import Libp2pFrameStream

RelayUse = Literal["off", "client", "server"]  # `p2p.relay` of the config

HOP: Final = TProtocol("/libp2p/circuit/relay/0.2.0/hop")
STOP: Final = TProtocol("/libp2p/circuit/relay/0.2.0/stop")
RELAY_ROLE: Final = 1 << 3  # in `status`: serves as a relay

pb: Any = circuit_pb2  # generated: its names are made at run time


class CircuitConnection(RawConnection):
    """A stream to a relay as the raw bytes of a connection; its address is nobody's."""

    def get_remote_address(self) -> None:
        return None


def is_circuit(muxed: Any) -> bool:
    """Whether a connection of the library runs through a relay."""
    with contextlib.suppress(AttributeError):
        raw = muxed.secured_conn.conn.read_writer.read_write_closer
        return isinstance(raw, CircuitConnection)
    return False


@dataclass(frozen=True, slots=True)
class Way:
    """What the stack gives: its swarm and host, and who may use us."""

    host: Any
    swarm: Any
    is_admitted: Callable[[PeerId], bool]
    relays: Callable[[], Iterable[PeerId]]  # admitted, directly connected, and saying that they are
    changed: Callable[[], None]  # where we can be called is not what it was
    counters: Counters


class _Place(NamedTuple):
    """At a relay: the connection it was given on, and when to ask again."""

    muxed: Any
    due_s: float


class Relaying:
    """Both sides of the protocol in one node: a server also reserves with others."""

    def __init__(self, way: Way, use: RelayUse) -> None:
        assert use != "off"
        self._way = way
        self._places: dict[PeerId, float] = {}  # as a server: who may be called, until when
        self._circuits: list[tuple[PeerId, PeerId]] = []  # that we carry: from, to
        self._reserved: dict[PeerId, _Place] = {}  # as a client: our places, by relay
        self._taken = 0  # circuits that end here
        if use == "server":
            way.host.set_stream_handler(HOP, self._hop)
        way.host.set_stream_handler(STOP, self._stop)

    def reserved(self) -> tuple[PeerId, ...]:
        """The relays that we can be called through."""
        return tuple(self._reserved)

    # --- as a server

    async def _hop(self, stream: Any) -> None:
        """One message: RESERVE is answered, CONNECT becomes a circuit."""
        peer = key_of_id_bytes(stream.muxed_conn.peer_id.to_bytes())
        try:
            if is_circuit(stream.muxed_conn) or not self._way.is_admitted(peer):
                await _say_hop(stream, pb.PERMISSION_DENIED)
                return
            message = await _read(stream, pb.HopMessage)
            if message.type == pb.HopMessage.RESERVE:
                await self._give_place(stream, peer)
            elif message.type == pb.HopMessage.CONNECT:
                await self._carry(stream, peer, message)
            else:
                await _say_hop(stream, pb.MALFORMED_MESSAGE)
        finally:
            await part(Libp2pFrameStream(stream), RELAY_MESSAGE_BYTES_MAX)

    async def _give_place(self, stream: Any, peer: PeerId) -> None:
        """To the peer of this very connection, whatever the message says."""
        now_s = trio.current_time()
        here = self._way.swarm.connections
        self._places = {
            held: until
            for held, until in self._places.items()
            if until > now_s and id_of(held) in here
        }
        if peer not in self._places and len(self._places) >= RESERVATIONS_MAX:
            self._count("refused")
            await _say_hop(stream, pb.RESERVATION_REFUSED)
            return
        self._places[peer] = now_s + RESERVATION_S
        self._count("reserved")
        place = pb.Reservation(expire=round(time.time() + RESERVATION_S))
        await _say_hop(stream, pb.OK, reservation=place, limit=_limit())

    async def _carry(self, stream: Any, caller: PeerId, message: Any) -> None:
        try:
            called = key_of_id_bytes(message.peer.id)
        except Misbehaving:
            await _say_hop(stream, pb.MALFORMED_MESSAGE)
            return
        if self._places.get(called, 0.0) <= trio.current_time():
            await _say_hop(stream, pb.NO_RESERVATION)
            return
        if len(self._circuits) >= CIRCUITS_MAX or (caller, called) in self._circuits:
            self._count("refused")
            await _say_hop(stream, pb.RESOURCE_LIMIT_EXCEEDED)
            return
        self._circuits.append((caller, called))
        other = None
        try:
            with trio.move_on_after(OPEN_S), contextlib.suppress(Exception):  # then there is none
                other = await self._call(caller, called)
            if other is None:
                await _say_hop(stream, pb.CONNECTION_FAILED)
                return
            await _say_hop(stream, pb.OK, limit=_limit())
            self._count("carried")
            await _join(stream, other, self._way.counters)
        finally:
            self._circuits.remove((caller, called))
            if other is not None:
                await reset_stream(other)

    async def _call(self, caller: PeerId, called: PeerId) -> Any:
        """A stream to the one who is called, once it has agreed; None if it has not."""
        if not self._way.swarm.get_connections(id_of(called)):
            return None
        stream = await self._way.host.new_stream(id_of(called), [STOP])
        is_agreed = False
        try:
            who = pb.PeerId(id=id_of(caller).to_bytes())
            await _write(
                stream, pb.StopMessage(type=pb.StopMessage.CONNECT, peer=who, limit=_limit())
            )
            answer = await _read(stream, pb.StopMessage)
            is_agreed = answer.type == pb.StopMessage.STATUS and answer.status == pb.OK
        finally:
            if not is_agreed:
                await reset_stream(stream)
        return stream if is_agreed else None

    # --- as a client

    async def keep_reserved(self) -> None:
        """Forever: a place at RELAYS_USED_MAX relays, asked for again at half its time.

        A place ends with its connection: a relay that was started anew knows of none.
        """
        while True:
            relays, before = tuple(self._way.relays()), self.reserved()
            self._reserved = {
                relay: place
                for relay, place in self._reserved.items()
                if relay in relays and self._stands(relay, place)
            }
            for relay in relays:
                place = self._reserved.get(relay)
                is_wanted = place is None and len(self._reserved) < RELAYS_USED_MAX
                if is_wanted or (place is not None and place.due_s <= trio.current_time()):
                    self._reserved.pop(relay, None)
                    if (muxed := await self._reserve(relay)) is not None:
                        due_s = trio.current_time() + RESERVATION_S / 2
                        self._reserved[relay] = _Place(muxed, due_s)
            if self.reserved() != before:
                self._way.changed()
            await trio.sleep(RELAY_LOOK_S)

    def _stands(self, relay: PeerId, place: "_Place") -> bool:
        here = self._way.swarm.get_connections(id_of(relay))
        return any(connection.muxed_conn is place.muxed for connection in here)

    async def _reserve(self, relay: PeerId) -> Any:
        """The connection on which we were given a place; None where there is none for us."""
        message = pb.HopMessage(type=pb.HopMessage.RESERVE)
        with trio.move_on_after(OPEN_S):
            try:
                stream, status = await self._ask(relay, message)
            except Exception:  # noqa: BLE001  # whatever it raises, there is no place for us
                return None
            await reset_stream(stream)
            return stream.muxed_conn if status == pb.OK else None
        return None

    async def _ask(self, relay: PeerId, message: Any) -> tuple[Any, int]:
        """The relay's stream and its status; the stream is reset if there is none."""
        stream = await self._way.host.new_stream(id_of(relay), [HOP])
        is_answered = False
        try:
            await _write(stream, message)
            answer = await _read(stream, pb.HopMessage)
            is_answered = answer.type == pb.HopMessage.STATUS
            if not is_answered:
                raise Misbehaving("relay: no status")
        finally:
            if not is_answered:
                await reset_stream(stream)
        return stream, answer.status

    async def dial(self, peer: PeerId, address: Address) -> None:
        """Connect through the relay of `address`, to which we are connected; Unreachable."""
        assert address.relay is not None
        who = pb.PeerId(id=id_of(peer).to_bytes())
        message = pb.HopMessage(type=pb.HopMessage.CONNECT, peer=who)
        stream, status = await self._ask(address.relay, message)
        is_open = False
        try:
            if status != pb.OK:
                raise Unreachable(f"relay: {pb.Status.Name(status)}")
            await self._way.swarm.upgrade_outbound_raw_conn(
                CircuitConnection(stream, True), id_of(peer)
            )
            is_open = True
        finally:
            if not is_open:
                await reset_stream(stream)

    async def _stop(self, stream: Any) -> None:
        """Somebody calls us through a relay; who it is, its handshake will show."""
        relay = key_of_id_bytes(stream.muxed_conn.peer_id.to_bytes())
        try:
            if relay not in self._reserved or self._taken >= CIRCUITS_MAX:
                self._count("refused")
                await _say_stop(stream, pb.PERMISSION_DENIED)
                return
            message = await _read(stream, pb.StopMessage)
            if message.type != pb.StopMessage.CONNECT:
                await _say_stop(stream, pb.MALFORMED_MESSAGE)
                return
            await _say_stop(stream, pb.OK)
            await self._take(stream, relay)
        finally:
            await part(Libp2pFrameStream(stream), RELAY_MESSAGE_BYTES_MAX)

    async def _take(self, stream: Any, relay: PeerId) -> None:
        self._taken += 1
        self._count("taken")
        try:
            where = Multiaddr(f"/p2p/{peer_id_text(relay)}/p2p-circuit")
            muxed = await self._way.swarm.upgrade_inbound_raw_conn(
                CircuitConnection(stream, False), where
            )
            with trio.move_on_after(CIRCUIT_S):
                await muxed.event_closed.wait()
            await muxed.close()
        finally:
            self._taken -= 1

    def _count(self, what: str) -> None:
        self._way.counters.circuits[what] += 1


async def _join(one: Any, other: Any, counters: Counters) -> None:
    """Bytes both ways until either ends, CIRCUIT_S are over, or CIRCUIT_BYTES_MAX have passed."""
    left = CIRCUIT_BYTES_MAX

    async def pass_on(source: Any, sink: Any, scope: trio.CancelScope) -> None:
        nonlocal left
        with contextlib.suppress(Exception):  # one side is gone, and with it the circuit
            while some := await source.read(RELAY_READ_BYTES):
                left -= len(some)
                if left < 0:
                    counters.circuits["over bytes"] += 1
                    break
                await sink.write(some)
        scope.cancel()

    with trio.move_on_after(CIRCUIT_S) as clock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pass_on, one, other, nursery.cancel_scope)
            nursery.start_soon(pass_on, other, one, nursery.cancel_scope)
    counters.circuits["over time"] += clock.cancelled_caught


def _limit() -> Any:
    return pb.Limit(duration=round(CIRCUIT_S), data=CIRCUIT_BYTES_MAX)


async def _say_hop(stream: Any, status: int, **more: Any) -> None:
    await _write(stream, pb.HopMessage(type=pb.HopMessage.STATUS, status=status, **more))


async def _say_stop(stream: Any, status: int) -> None:
    await _write(stream, pb.StopMessage(type=pb.StopMessage.STATUS, status=status))


async def _write(stream: Any, message: Any) -> None:
    with trio.fail_after(OPEN_S):
        await stream.write(encode_varint_prefixed(message.SerializeToString()))


async def _read(stream: Any, kind: Any) -> Any:
    """One message; a DecodeError of protobuf's is for the guard, which blames the peer."""
    with trio.fail_after(OPEN_S):
        raw = await read_varint_prefixed_bytes_limited(stream, RELAY_MESSAGE_BYTES_MAX)
    message = kind()
    message.ParseFromString(raw)
    return message
