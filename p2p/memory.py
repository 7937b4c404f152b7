"""The network simulated in one process: same interface, same limits, seeded delays and faults.

Why: agreement under loss, partition and crash can be shown only where a run can be repeated. Time
is trio's clock (`MockClock` in tests); each draw comes from the seed, the two ends and a counter of
their own, so that one more node or message shifts no other draw. `trace_hash()` tells two runs
apart. Gossip floods over six seeded links with seen marks, so that a relay can censor.
What it does not model: addresses, dialling, TCP, signatures (an author is who it says).
"""

import hashlib
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import trio

from p2p.errors import EndOfStream, Misbehaving, TooSlow, Unreachable
from p2p.framing import FrameStream
from p2p.limits import (
    FRAME_BYTES_MAX,
    MESH,
    PING_EVERY_S,
    SEEN_S,
    STREAMS_MAX,
)
from p2p.network import TaskStatus
from p2p.peers import PeerId, StatusFacts
from p2p.records import AddressRecord, make_record
from p2p.switchboard import Switchboard

WINDOW_BYTES: Final = 1 << 20  # written and not yet read; beyond it a writer waits
WINDOW_WAIT_S: Final = 5.0  # then its stream is reset, as libp2p's Yamux does
REDIAL_S: Final = 1.0
CONNECTIONS_MAX: Final = 1_024  # simulated nodes meet without a dialler, so not 64
CHAIN: Final = bytes(32)


@dataclass(frozen=True, slots=True)
class Link:
    """One direction between two nodes. Loss, duplicates and reordering act on gossip only."""

    delay_ms: tuple[float, float] = (5, 20)
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    bytes_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Identity:
    """A key that signs by hashing: nobody lies about who they are in a simulation."""

    key: PeerId

    def sign(self, message: bytes) -> bytes:
        return hashlib.sha512(self.key + message).digest()

    def is_signed_by(self, key: PeerId, message: bytes, signature: bytes) -> bool:
        return signature == hashlib.sha512(key + message).digest()


class MemoryHub:
    """All simulated nodes, the links between them, and what is wrong with those."""

    def __init__(self, seed: int, link: Link | None = None) -> None:
        self._seed = seed
        self._link = link or Link()
        self._links: dict[tuple[PeerId, PeerId], Link] = {}
        self._nodes: dict[PeerId, MemoryNetwork] = {}
        self._group: dict[PeerId, int] = {}
        self._stopped: dict[PeerId, None] = {}
        self._counters: dict[tuple[PeerId, PeerId], int] = {}
        self._busy_until_s: dict[tuple[PeerId, PeerId], float] = {}
        self._held: dict[tuple[PeerId, PeerId], list[Callable[[], None]]] = {}
        self._weights: dict[tuple[PeerId, PeerId], bytes] = {}
        self._trace = hashlib.sha256()

    def network(
        self,
        key: bytes,
        *,
        chain_id: bytes = CHAIN,
        software: str = "olnode-memory",
        facts: Callable[[], StatusFacts] = StatusFacts,
        binding: bytes = b"",
        judge_binding: Callable[[PeerId, bytes], bool] | None = None,
        reserved: Iterable[PeerId] = (),
        ping_every_s: float = PING_EVERY_S,
        connections_max: int = CONNECTIONS_MAX,
        inbound_max: int = CONNECTIONS_MAX,
        epoch_ms: int = 1_700_000_000_000,
    ) -> "MemoryNetwork":
        """A node named by 32 bytes; a second one of the same key replaces the first."""
        assert len(key) == 32
        node = MemoryNetwork(
            hub=self,
            key=PeerId(key),
            chain_id=chain_id,
            software=software,
            facts=facts,
            binding=binding,
            judge_binding=judge_binding or (lambda peer, told: True),
            reserved=reserved,
            ping_every_s=ping_every_s,
            connections_max=connections_max,
            inbound_max=inbound_max,
            epoch_ms=epoch_ms,
            rng=self._random(b"node", key),
        )
        return node

    # --- faults

    def set_link(self, sender: PeerId, receiver: PeerId, link: Link) -> None:
        """One way only."""
        self._links[sender, receiver] = link

    def partition(self, groups: Iterable[Iterable[PeerId]]) -> None:
        """Only nodes of one group hear each other; who is in none is alone with its like."""
        self._group = {key: i for i, group in enumerate(groups) for key in group}
        self._release()

    def heal(self) -> None:
        """End every partition; what streams held back arrives now."""
        self._group = {}
        self._release()

    def stop(self, key: PeerId) -> None:
        """As SIGSTOP: connections stand, nothing goes in or out."""
        self._stopped[key] = None

    def resume(self, key: PeerId) -> None:
        self._stopped.pop(key, None)
        self._release()

    def crash(self, key: PeerId) -> None:
        """As kill -9: its streams and connections break at once. Its `run` only waits for its
        owner's cancel; `network(key)` makes its successor."""
        node = self._nodes.pop(key, None)
        if node is not None:
            node.die()
        self._stopped.pop(key, None)

    def trace_hash(self) -> bytes:
        """A hash of every delivery so far: when, from whom, to whom, what."""
        return self._trace.copy().digest()

    # --- for the nodes

    def attach(self, node: "MemoryNetwork") -> None:
        before = self._nodes.get(node.me)
        if before is not None and before is not node:
            before.die()
        self._nodes[node.me] = node

    def detach(self, node: "MemoryNetwork") -> None:
        if self._nodes.get(node.me) is node:
            del self._nodes[node.me]

    def find_node(self, key: PeerId) -> "MemoryNetwork | None":
        return self._nodes.get(key)

    def nodes(self) -> tuple["MemoryNetwork", ...]:
        return tuple(self._nodes[key] for key in sorted(self._nodes))

    def is_open(self, sender: PeerId, receiver: PeerId) -> bool:
        """Does anything get from one to the other now?"""
        if sender in self._stopped or receiver in self._stopped:
            return False
        return self._group.get(sender, -1) == self._group.get(receiver, -1)

    def link(self, sender: PeerId, receiver: PeerId) -> Link:
        return self._links.get((sender, receiver), self._link)

    def draw(self, sender: PeerId, receiver: PeerId) -> random.Random:
        """Chance for one message of this direction."""
        count = self._counters[sender, receiver] = self._counters.get((sender, receiver), 0) + 1
        return self._random(sender, receiver, count.to_bytes(8, "big"))

    def delay_s(self, sender: PeerId, receiver: PeerId, size: int, chance: random.Random) -> float:
        """From now to arrival: the link's delay after the bytes before it have gone."""
        link = self.link(sender, receiver)
        delay_s = chance.uniform(*link.delay_ms) / 1_000
        if link.bytes_s is None:
            return delay_s
        now_s = trio.current_time()
        free_s = max(now_s, self._busy_until_s.get((sender, receiver), now_s))
        self._busy_until_s[sender, receiver] = free_s + size / link.bytes_s
        return free_s + size / link.bytes_s - now_s + delay_s

    def hold(self, sender: PeerId, receiver: PeerId, deliver: Callable[[], None]) -> None:
        """Keep part of a stream until the way is open again."""
        self._held.setdefault((sender, receiver), []).append(deliver)

    def note(self, at_s: float, sender: PeerId, receiver: PeerId, kind: bytes, data: bytes) -> None:
        """One delivery into the trace."""
        self._trace.update(round(at_s * 1_000_000).to_bytes(8, "big") + sender + receiver + kind)
        self._trace.update(hashlib.sha256(data).digest())

    def mesh(self, of: PeerId, topic: str) -> tuple[PeerId, ...]:
        """The peers that `of` gossips with: six by seeded rank, and whoever ranks it so."""
        near = self._nearest(of, topic)
        node = self._nodes[of]
        others = [
            peer
            for peer in node.linked()
            if peer in near or (peer in self._nodes and of in self._nearest(peer, topic))
        ]
        return tuple(sorted(others))

    def _nearest(self, of: PeerId, topic: str) -> list[PeerId]:
        peers = [
            peer
            for peer in self._nodes[of].linked()
            if peer in self._nodes and topic in self._nodes[peer].topics.names()
        ]
        return sorted(peers, key=lambda peer: self._weight(of, peer))[:MESH]

    def _weight(self, a: PeerId, b: PeerId) -> bytes:
        weight = self._weights.get((a, b))
        if weight is None:
            low, high = min(a, b), max(a, b)
            weight = hashlib.sha256(b"mesh%d" % self._seed + low + high).digest()
            self._weights[a, b] = self._weights[b, a] = weight
        return weight

    def _release(self) -> None:
        for (sender, receiver), waiting in sorted(self._held.items()):
            if self.is_open(sender, receiver):
                del self._held[sender, receiver]
                for deliver in waiting:
                    deliver()

    def _random(self, *parts: bytes) -> random.Random:
        seed = hashlib.sha256(b"%d" % self._seed + b"".join(parts)).digest()
        return random.Random(seed)


class MemoryStream:
    """One end of a simulated stream; the other end is `twin`."""

    has_stalled = False  # frames come whole

    def __init__(self, hub: MemoryHub, owner: PeerId, other: PeerId) -> None:
        self._hub = hub
        self.owner = owner
        self.other = other
        self.twin: MemoryStream
        self._frames: deque[bytes] = deque()
        self._unread_bytes = 0  # written by the twin, under way or waiting here
        self._changed = trio.Event()
        self._has_ended = self.has_broken_rules = False
        self._broken = ""
        self._has_closed = False
        self._arrives_s = 0.0  # nothing of ours arrives before this: a stream keeps its order

    async def read(self, bytes_max: int, timeout_s: float) -> bytes:
        try:
            with trio.fail_after(timeout_s):
                while not self._frames and not self._has_ended and not self._broken:
                    await self._wait_change()
        except trio.TooSlowError:
            await self.reset()
            raise TooSlow(f"nothing to read for {timeout_s} s") from None
        except trio.Cancelled:
            self._reset_nowait()
            raise
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._broken:
            raise Unreachable(self._broken)
        if not self._frames:
            raise EndOfStream("closed by the peer")
        body = self._frames.popleft()
        self._unread_bytes -= len(body)
        self.twin._tell()
        if not 0 < len(body) <= bytes_max:
            self.has_broken_rules = True
            await self.reset()
            raise Misbehaving(f"a frame of {len(body)} bytes, {bytes_max} allowed")
        return body

    async def write(self, body: bytes, timeout_s: float) -> None:
        assert 0 < len(body) <= FRAME_BYTES_MAX
        assert not self._has_closed
        try:
            with trio.fail_after(min(timeout_s, WINDOW_WAIT_S)):
                while self.twin._unread_bytes > WINDOW_BYTES and not self._broken:
                    await self._wait_change()
        except trio.TooSlowError:
            await self.reset()
            raise TooSlow("the peer does not read") from None
        except trio.Cancelled:
            self._reset_nowait()
            raise
        await trio.lowlevel.checkpoint()
        if self._broken:
            raise Unreachable(self._broken)
        self.twin._unread_bytes += len(body)
        self._send(b"frame", len(body), lambda: self.twin._take(body), body)

    async def close(self) -> None:
        if not self._has_closed and not self._broken:
            self._has_closed = True
            self._send(b"close", 0, self.twin._end)

    async def reset(self) -> None:
        self._reset_nowait()

    def break_nowait(self, why: str) -> None:
        """The connection is gone; both ends notice by themselves."""
        if not self._broken:
            self._broken = why
            self._frames.clear()
            self._tell()

    def _reset_nowait(self) -> None:
        if self._has_closed and self._has_ended:
            self.break_nowait("closed")  # both sides were done: nothing to tell
        elif not self._broken:
            self.break_nowait("reset by us")
            self._send(b"reset", 0, lambda: self.twin.break_nowait("reset by the peer"))

    def _send(self, kind: bytes, size: int, deliver: Callable[[], None], data: bytes = b"") -> None:
        receiver = self._hub.find_node(self.other)
        if receiver is None:
            return
        hub, owner, other = self._hub, self.owner, self.other
        at_s = trio.current_time() + hub.delay_s(owner, other, size, hub.draw(owner, other))
        self._arrives_s = max(self._arrives_s, at_s)
        receiver.schedule(self._arrives_s, owner, kind, data, deliver, is_stream=True)

    def _take(self, body: bytes) -> None:
        if not self._broken:
            self._frames.append(body)
            self._tell()

    def _end(self) -> None:
        self._has_ended = True
        self._tell()

    def _tell(self) -> None:
        self._changed.set()

    async def _wait_change(self) -> None:
        if self._changed.is_set():  # else a reader and a writer wait for this one
            self._changed = trio.Event()
        await self._changed.wait()


class MemoryNetwork(Switchboard):
    """A Network whose wires are a MemoryHub's; made by `hub.network(key)`."""

    def __init__(
        self,
        *,
        hub: MemoryHub,
        key: PeerId,
        chain_id: bytes,
        software: str,
        facts: Callable[[], StatusFacts],
        binding: bytes,
        judge_binding: Callable[[PeerId, bytes], bool],
        reserved: Iterable[PeerId],
        ping_every_s: float,
        connections_max: int,
        inbound_max: int,
        epoch_ms: int,
        rng: random.Random,
    ) -> None:
        identity = _Identity(key)

        def now_ms() -> int:
            return epoch_ms + round(trio.current_time() * 1_000)

        def own_record() -> AddressRecord:
            return make_record(
                identity,
                chain_id,
                seq_ms=now_ms(),
                addresses=(),
                roles=facts().roles,
                binding=binding,
            )

        super().__init__(
            identity=identity,
            chain_id=chain_id,
            software=software,
            facts=facts,
            own_record=own_record,
            judge_binding=judge_binding,
            reserved=reserved,
            now_ms=now_ms,
            ping_every_s=ping_every_s,
            private_allowed=True,
            upload_bytes_s=0,
            connections_max=connections_max,
            inbound_max=inbound_max,
            rng=rng,
        )
        self._hub = hub
        self._streams: dict[int, MemoryStream] = {}
        self._stream_count = itertools.count()
        self._mail: list[tuple[float, PeerId, int, bytes, bytes, bool, Callable[[], None]]] = []
        self._mail_count = itertools.count()
        self._mail_came = trio.Event()
        self._seen: dict[bytes, float] = {}
        self._is_alive = False

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """See Network.run; a cancel closes every connection in order."""
        async with trio.open_nursery() as nursery:

            def begin() -> None:
                self._is_alive = True
                self._hub.attach(self)
                nursery.start_soon(self._carry)
                nursery.start_soon(self._redial)
                task_status.started()

            try:
                await self._run_with(self, nursery, begin)
            finally:
                self._hub.detach(self)
                self.die()

    def die(self) -> None:
        """Break all connections now, on both sides."""
        self._is_alive = False
        for peer in sorted({stream.other for stream in self._streams.values()}):
            self._part(peer, "the connection broke")
        for other in self._hub.nodes():
            if other is not self and self._hub.is_open(self.me, other.me):
                other._part(self.me, "the connection broke")
        self._mail.clear()

    def linked(self) -> tuple[PeerId, ...]:
        return tuple(link.peer for link in self.members.links())

    # --- Transport

    async def open_stream(
        self, peer: PeerId, protocol: str, *, credit_bytes: int = 0
    ) -> FrameStream:
        await trio.lowlevel.checkpoint()
        other = self._hub.find_node(peer)
        if other is None or not self._is_alive:
            raise Unreachable("not connected")
        if protocol not in other.requests.names():
            raise Unreachable(f"the peer knows no {protocol}")
        ours, theirs = self._new_stream(peer), other._new_stream(self.me)
        ours.twin, theirs.twin = theirs, ours

        def arrive() -> None:
            if other.members.find_link(self.me) is None or other._nursery is None:
                theirs._reset_nowait()  # half-open: it has dropped us meanwhile
            else:
                other._nursery.start_soon(other.requests.incoming, self.me, protocol, theirs)

        ours._send(b"open", 0, arrive, protocol.encode())
        return ours

    async def reach(self, peer: PeerId, addresses: Iterable[bytes]) -> None:
        """Its hub links all who can be linked: there is nothing to dial."""
        await trio.lowlevel.checkpoint()
        if not self.members.is_admitted(peer):
            raise Unreachable("not connected")

    async def disconnect(self, peer: PeerId) -> None:
        await trio.lowlevel.checkpoint()
        self._part(peer, "disconnected")

    async def publish(self, topic: str, data: bytes) -> None:
        self.topics.check_publish(topic, data)
        await trio.lowlevel.checkpoint()
        if self._is_alive and self._mark_seen(data):
            self._flood(topic, self.me, self.me, data)

    def add_topic(self, topic: str) -> None:
        """Nothing to prepare: peers look at `topics.names()`."""

    def add_protocol(self, protocol: str) -> None:
        """Nothing to prepare: peers look at `requests.names()`."""

    def mesh_peers(self) -> Mapping[str, int]:
        if not self._is_alive:
            return {}
        return {topic: len(self._hub.mesh(self.me, topic)) for topic in self.topics.names()}

    def bytes_moved(self) -> Mapping[str, int]:
        return {}  # there are no sockets

    def heartbeat_interval_s(self) -> float:
        return 0.0

    # --- mail

    def schedule(
        self,
        at_s: float,
        sender: PeerId,
        kind: bytes,
        data: bytes,
        deliver: Callable[[], None],
        *,
        is_stream: bool,
    ) -> None:
        """Let `deliver` happen here at `at_s`, unless the way is closed then."""
        entry = (at_s, sender, next(self._mail_count), kind, data, is_stream, deliver)
        heapq.heappush(self._mail, entry)
        if self._mail[0] is entry:
            self._mail_came.set()

    async def _carry(self) -> None:
        while True:
            self._mail_came = trio.Event()
            wait_until_s = self._mail[0][0] if self._mail else float("inf")
            with trio.move_on_at(wait_until_s):
                await self._mail_came.wait()
            while self._mail and self._mail[0][0] <= trio.current_time():
                at_s, sender, _, kind, data, is_stream, deliver = heapq.heappop(self._mail)
                if self._hub.is_open(sender, self.me):
                    self._hub.note(at_s, sender, self.me, kind, data)
                    deliver()
                elif is_stream:
                    self._hub.hold(sender, self.me, deliver)

    # --- connections

    async def _redial(self) -> None:
        """Meet every reachable node; of two, the lower key dials."""
        while True:
            for other in self._hub.nodes():
                if other is not self and self._is_alive and other._is_alive:
                    lower, higher = (self, other) if self.me < other.me else (other, self)
                    lower._meet(higher)
            await trio.sleep(REDIAL_S)

    def _meet(self, other: "MemoryNetwork") -> None:
        ours, theirs = self.members.find_link(other.me), other.members.find_link(self.me)
        is_open = self._hub.is_open(self.me, other.me) and self._hub.is_open(other.me, self.me)
        if (ours and theirs) or not is_open or None in (self._nursery, other._nursery):
            return
        if theirs:
            other._part(self.me, "the peer came anew")  # half-open until now
        if ours:
            self._part(other.me, "the peer came anew")
        if self.members.is_banned(other.me) or other.members.is_banned(self.me):
            return
        if not other.members.connected(self.me, outbound=False, host=""):
            self.counters.dials["failed"] += 1
            return
        self.counters.dials["ok"] += 1
        if not self.members.connected(other.me, outbound=True, host=""):
            other._part(self.me, "refused")

    def _part(self, peer: PeerId, why: str) -> None:
        """Our side drops the connection; the other side hears of it if the way is open."""
        for number, stream in tuple(self._streams.items()):
            if stream.other == peer:
                stream.break_nowait(why)
                del self._streams[number]
        if self.members.find_link(peer) is None:
            return
        self.members.disconnected(peer)
        self.topics.forget(peer)
        other = self._hub.find_node(peer)
        if other is not None and self._hub.is_open(self.me, peer):
            other._part(self.me, why)

    def _new_stream(self, peer: PeerId) -> MemoryStream:
        if len(self._streams) >= STREAMS_MAX:
            gone = [number for number, stream in self._streams.items() if stream._broken]
            for number in gone:
                del self._streams[number]
        stream = MemoryStream(self._hub, self.me, peer)
        self._streams[next(self._stream_count)] = stream
        return stream

    # --- gossip

    def _flood(self, topic: str, forwarder: PeerId, author: PeerId, data: bytes) -> None:
        for peer in self._hub.mesh(self.me, topic):
            if peer not in (forwarder, author):
                self._send_gossip(peer, topic, author, data)

    def _send_gossip(self, peer: PeerId, topic: str, author: PeerId, data: bytes) -> None:
        hub, receiver = self._hub, self._hub.find_node(peer)
        chance, link = hub.draw(self.me, peer), hub.link(self.me, peer)
        if receiver is None or chance.random() < link.loss:
            return
        for _ in range(2 if chance.random() < link.duplicate else 1):
            delay_s = hub.delay_s(self.me, peer, len(data), chance)
            if chance.random() < link.reorder:
                delay_s += chance.uniform(0, 4 * link.delay_ms[1]) / 1_000
            receiver.schedule(
                trio.current_time() + delay_s,
                self.me,
                b"gossip",
                data,
                lambda: receiver._hear(topic, self.me, author, data),
                is_stream=False,
            )

    def _hear(self, topic: str, forwarder: PeerId, author: PeerId, data: bytes) -> None:
        """The order of page 70 §5: forwarder, its bucket, seen, author's bucket, judge."""
        if not self.topics.admit(forwarder, len(data)) or self._is_seen(data):
            return
        if self.topics.judge(topic, forwarder, author, data):
            self._mark_seen(data)
            self.topics.deliver(topic, forwarder, author, data)
            self._flood(topic, forwarder, author, data)

    def _is_seen(self, data: bytes) -> bool:
        mark, now_s = hashlib.sha256(data).digest()[:20], trio.current_time()
        if self._seen.get(mark, -1.0) < now_s:
            return False
        self._seen[mark] = now_s + SEEN_S  # each hit renews it, as the library does
        return True

    def _mark_seen(self, data: bytes) -> bool:
        """False if it was marked already: bytes gossiped again go nowhere."""
        if self._is_seen(data):
            return False
        now_s = trio.current_time()
        if len(self._seen) >= 65_536:
            self._seen = {mark: until for mark, until in self._seen.items() if until >= now_s}
        self._seen[hashlib.sha256(data).digest()[:20]] = now_s + SEEN_S
        return True
