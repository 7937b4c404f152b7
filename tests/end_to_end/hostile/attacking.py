"""What attacks are made of: bare libp2p peers that keep no rule of ours, and raw sockets.

An attacker speaks for itself only where that is part of its attack: it can be admitted, sign
gossip, and carry the binding of a validator whose key it has.
"""

import contextlib
import hashlib
import itertools
import random
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import libp2p.network.swarm as swarm_module
import trio
from bundle_kit import Party
from libp2p import new_host
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.pb import rpc_pb2
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.utils import encode_varint_prefixed
from multiaddr import Multiaddr

from consensus.primitives.digest import signing_bytes
from node.peering.bindings import make_binding
from p2p.addresses import Address
from p2p.framing import encode, frame
from p2p.host import Libp2pIdentity, _noise, topic_text
from p2p.peers import peer_id_text
from p2p.records import make_record

MESH: Final = "/meshsub/1.1.0"
LIBRARY: Final = ("/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0", "/ipfs/ping/1.0.0", MESH)
CUT_OFF: Final = (
    BaseLibp2pError, OSError, trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError
)  # fmt: skip
swarm_module._HAPPY_EYEBALLS_DELAY = 0.01  # as ours: there is one address to dial
PATIENCE_S: Final = 3.0  # for one stream of an attacker: it may be left without an answer
AT_ONCE: Final = 8


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def protocol_text(protocol: str) -> str:
    return f"/olnode/{protocol}/1"


class Evil:
    """One hostile peer, connected."""

    def __init__(self, siege: "Siege", host: Any, identity: Libp2pIdentity) -> None:
        self.siege, self.host, self.identity = siege, host, identity
        self.seqnos = itertools.count(time.time_ns())

    @property
    def muxed(self) -> Any:
        """The newest connection's muxer."""
        return self.host.get_network().get_connections(self.siege.target.peer_id)[-1].muxed_conn

    def is_connected(self) -> bool:
        return bool(self.host.get_network().get_connections(self.siege.target.peer_id))

    async def stream(self, protocol: str) -> Any:
        self.host.get_network().unblock_peer(self.siege.target.peer_id)
        await self.host.connect(self.siege.target)
        stream = await self.host.new_stream(self.siege.target.peer_id, [TProtocol(protocol)])
        self.siege.reached.add(protocol)
        return stream

    async def say(self, protocol: str, *pieces: bytes, then: str = "wait") -> bytes:
        """Write what it likes, read a little; being cut off is no failure of the attack."""
        reply = b""
        self.siege.sent += 1
        with trio.move_on_after(PATIENCE_S), contextlib.suppress(Exception):
            stream = await self.stream(protocol)
            try:
                for piece in pieces:
                    await stream.write(piece)
                if then == "read":
                    reply = await stream.read(65_536)
            finally:
                with trio.CancelScope(deadline=trio.current_time() + 1, shield=True):
                    await (stream.reset() if then == "reset" else stream.close())
        return reply

    async def say_all(self, said: Iterable[tuple[str, tuple[bytes, ...], str]]) -> None:
        """Many streams, a few at once."""
        limit = trio.Semaphore(AT_ONCE)

        async def one(protocol: str, pieces: tuple[bytes, ...], then: str) -> None:
            try:
                await self.say(protocol, *pieces, then=then)
            finally:
                limit.release()

        async with trio.open_nursery() as nursery:
            for row in said:
                await limit.acquire()
                nursery.start_soon(one, *row)

    async def leave(self) -> None:
        """A host that ends leaves its sockets open: the node would hold its place for a while."""
        with trio.CancelScope(deadline=trio.current_time() + 1, shield=True):
            for connection in self.host.get_network().get_connections(self.siege.target.peer_id):
                with contextlib.suppress(Exception):
                    await connection.muxed_conn.secured_conn.close()

    # --- admission

    def status(
        self,
        *,
        binding: bytes = b"",
        seq_ms: int | None = None,
        height: int = 0,
        addresses: tuple[Address, ...] = (),
    ) -> bytes:
        chain_id = self.siege.chain_id
        record = make_record(
            self.identity, chain_id, seq_ms=now_ms() if seq_ms is None else seq_ms,
            addresses=addresses, roles=0, binding=binding,
        )  # fmt: skip
        return encode((1, chain_id, b"evil", 0, height, b"", 0, 0, now_ms(), record.value))

    async def be_admitted(self, binding: bytes = b"") -> None:
        stream = await self.stream("/olnode/status/1")
        await stream.write(frame(self.status(binding=binding)))
        await stream.read(65_536)

    def binding_of(self, validator: Party) -> bytes:
        """Says that `validator` runs here; only its key can sign that."""

        def sign(tag: bytes, body: bytes) -> bytes:
            return validator.sign(signing_bytes(tag, self.siege.chain_id, body))

        return make_binding(validator.key, bytes(self.identity.key), now_ms(), sign)

    # --- gossip

    def message(self, topic: str, data: bytes, **changes: Any) -> Any:
        """A gossip message of its own, signed; `changes` come behind the signature."""
        self.siege.reached.add(topic)
        made = rpc_pb2.Message(
            from_id=bytes.fromhex("002408011220") + self.identity.key,
            data=data,
            seqno=struct.pack(">Q", next(self.seqnos)),
            topicIDs=[topic_text(topic, self.siege.chain_id)],
        )
        made.signature = self.identity.sign(b"libp2p-pubsub:" + made.SerializeToString())
        for name, value in changes.items():
            made.ClearField(name)
            getattr(made, name).extend(value) if isinstance(value, list) else setattr(
                made, name, value
            )
        return made

    def resigned(self, made: Any) -> Any:
        """The same message, truly signed as it stands."""
        made.ClearField("signature")
        made.ClearField("key")
        made.signature = self.identity.sign(b"libp2p-pubsub:" + made.SerializeToString())
        return made

    async def gossip(self, rpcs: Iterable[Any]) -> None:
        """RPCs on one stream, until it is cut off."""
        with contextlib.suppress(Exception):
            stream = await self.stream(MESH)
            for rpc in rpcs:
                await stream.write(encode_varint_prefixed(rpc.SerializeToString()))
                self.siege.sent += 1


def published(*messages: Any) -> Any:
    return rpc_pb2.RPC(publish=messages)


Run = Callable[["Siege"], Awaitable[None]]


class Attack(NamedTuple):
    """`has_points`: whether who took part must have points against it or a ban at the end.

    Some attacks are nobody's provable fault, and cost their sender only time.
    """

    run: Run
    has_points: bool


class Attacks(dict[str, Attack]):
    """By name; each goes on until it is cancelled."""

    def note(self, name: str, *, has_points: bool) -> Callable[[Run], Run]:
        """Decorates an attack."""

        def note(run: Run) -> Run:
            self[name] = Attack(run, has_points)
            return run

        return note


@dataclass
class Siege:
    """What every attack is given: whom to attack, what is known of it, and what was done."""

    address: str
    chain_id: bytes
    blob_id: bytes
    sent: int = 0
    peers: list[str] = field(default_factory=list)  # ids of all that took part
    reached: set[str] = field(default_factory=set)  # protocols that were agreed on, topics
    _seeds: Any = field(default_factory=lambda: itertools.count(time.time_ns()))

    def __post_init__(self) -> None:
        self.target = info_from_p2p_addr(Multiaddr(self.address))
        self.rng = random.Random(f"siege {self.chain_id.hex()}")
        parts = self.address.split("/")
        self.place = parts[2], int(parts[4])

    @asynccontextmanager
    async def peer(
        self, *, admitted: bool = True, validator: Party | None = None
    ) -> AsyncIterator[Evil]:
        """A new peer, which nobody has banned yet; `validator`: it says that this runs on it."""
        seed = hashlib.sha256(b"evil %d" % next(self._seeds)).digest()
        identity = Libp2pIdentity(seed)
        host: Any = new_host(
            key_pair=identity.pair,
            sec_opt={NOISE: _noise(identity)},
            muxer_opt={TProtocol(YAMUX): Yamux},
        )
        self.peers.append(peer_id_text(identity.key))
        async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
            evil = Evil(self, host, identity)
            try:
                with trio.fail_after(10):
                    await host.connect(self.target)
                    if admitted:
                        await evil.be_admitted(evil.binding_of(validator) if validator else b"")
                yield evil
            finally:
                await evil.leave()

    async def raw(self) -> trio.SocketStream:
        return await trio.open_tcp_stream(*self.place)

    async def meet(self, once: Callable[[Evil], Awaitable[None]], **how: Any) -> None:
        """`once(evil)` with a new peer; that it is shut out or cut off is no failure."""
        try:
            async with self.peer(**how) as evil:
                with contextlib.suppress(*CUT_OFF):
                    await once(evil)
        except* CUT_OFF:
            pass

    async def again(self, once: Callable[[Evil], Awaitable[None]], **how: Any) -> None:
        """The same with one new peer after another, for as long as the attack lasts."""
        while True:
            await self.meet(once, **how)
            await trio.sleep(0.01)
