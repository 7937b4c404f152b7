"""Two nodes joined by a wire that is listened in on: each frame as it travels, in order.

Why not libp2p: above a stream both networks are one code (`p2p/switchboard.py`), and libp2p's own
bytes are others' to write down. Signatures are real here, unlike in the simulated network.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import trio
from bundle_kit import Party

from consensus.primitives.keys import is_signed_by
from p2p.addresses import Address, addresses_of
from p2p.discovery import Discovery
from p2p.errors import EndOfStream, TooSlow, Unreachable
from p2p.framing import LENGTH_BYTES, frame, frame_length
from p2p.limits import PROTOCOLS, ServeLimits
from p2p.network import Handler, PeerId, StatusFacts
from p2p.records import AddressRecord, make_record
from p2p.switchboard import Switchboard

PING_EVERY_S = 15.0
QUEUE_FRAMES = 64


class Talk(NamedTuple):
    """What went over one stream: frames with their length, and whether its opener said them."""

    protocol: str
    said: list[tuple[bool, bytes]]

    @property
    def request(self) -> bytes:
        return next(raw for is_opener, raw in self.said if is_opener)

    @property
    def reply(self) -> bytes:
        return next(raw for is_opener, raw in self.said if not is_opener)


class TappedEnd:
    """One end of a stream (`FrameStream`); what it writes is noted."""

    has_stalled = has_broken_rules = False  # frames come whole

    def __init__(self, talk: Talk, is_opener: bool, ways: tuple[Any, Any]) -> None:
        self._talk, self._is_opener = talk, is_opener
        self._out, self._in = ways

    async def read(self, bytes_max: int, timeout_s: float) -> bytes:
        try:
            with trio.fail_after(timeout_s):
                raw: bytes = await self._in.receive()
        except trio.TooSlowError:
            raise TooSlow("nothing came") from None
        except trio.EndOfChannel:
            raise EndOfStream("closed") from None
        except trio.ClosedResourceError:
            raise Unreachable("reset") from None
        assert frame_length(raw[:LENGTH_BYTES], bytes_max) == len(raw) - LENGTH_BYTES
        return raw[LENGTH_BYTES:]

    async def write(self, body: bytes, timeout_s: float) -> None:
        self._talk.said.append((self._is_opener, frame(body)))
        try:
            await self._out.send(frame(body))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise Unreachable("reset") from None

    async def close(self) -> None:
        self._out.close()

    async def reset(self) -> None:
        self._out.close()
        self._in.close()


class KeyIdentity:
    """A key as the peer floor wants it, without libp2p."""

    def __init__(self, who: Party) -> None:
        self.who, self.key = who, PeerId(who.key)

    def sign(self, message: bytes) -> bytes:
        return self.who.sign(message)

    def is_signed_by(self, key: PeerId, message: bytes, signature: bytes) -> bool:
        return is_signed_by(key, message, signature)


class TappedNode(Switchboard):
    """A Network with one neighbour, `other`; talks that it opens are in `talks`.

    Gossip that it publishes is in `gossip`, and reaches the neighbour but for topics in `lost`.
    What its handlers answer goes through `spoil`.
    """

    spoil: Callable[[str, bytes], bytes] = staticmethod(lambda protocol, body: body)

    def __init__(
        self,
        who: Party,
        *,
        chain_id: bytes,
        address: str,
        facts: StatusFacts,
        binding: bytes,
        judge_binding: Callable[[PeerId, bytes], bool],
        now_ms: int,
        rng: Any,
    ) -> None:
        self.identity = KeyIdentity(who)
        self.record = make_record(
            self.identity,
            chain_id,
            seq_ms=now_ms,
            addresses=addresses_of([address], with_peer=False),
            roles=facts.roles,
            binding=binding,
        )
        super().__init__(
            identity=self.identity,
            chain_id=chain_id,
            software="olnode/1.0.0",
            facts=lambda: facts,
            own_record=lambda: self.record,
            judge_binding=judge_binding,
            reserved=(),
            now_ms=lambda: now_ms,
            ping_every_s=PING_EVERY_S,
            private_allowed=True,
            upload_bytes_s=0,
            connections_max=8,
            inbound_max=8,
            rng=rng,
        )
        self.discovery = Discovery(
            identity=self.identity,
            chain_id=chain_id,
            members=self.members,
            counters=self.counters,
            ask=self.request,
            reach="lan",
            bootstrap=(),
            book_path=None,
            is_denied=lambda peer, host: False,
            is_in_use=self.requests.is_in_use,
            now_ms=lambda: now_ms,
        )
        self.serve("peers", self.discovery.answer_peers, PROTOCOLS["peers"])
        self.other: TappedNode
        self.talks: list[Talk] = []
        self.gossip: list[tuple[str, bytes]] = []
        self.lost: frozenset[str] = frozenset()

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            await self._run_with(self, nursery, task_status.started)

    def learn(self, record: AddressRecord) -> None:
        """Know a third peer, as if it had told its record itself."""
        self.members.learn_record(record, record.peer)

    def serve(self, protocol: str, handler: Handler, limits: ServeLimits) -> None:
        async def answer(peer: PeerId, body: bytes) -> bytes:
            return self.spoil(protocol, await handler(peer, body))

        super().serve(protocol, answer, limits)

    # --- the transport

    async def open_stream(self, peer: PeerId, protocol: str, *, credit_bytes: int = 0) -> TappedEnd:
        ours, theirs = self._tap(protocol)
        assert peer == self.other.me
        assert self.other._nursery is not None
        self.other._nursery.start_soon(self.other.requests.incoming, self.me, protocol, theirs)
        await trio.lowlevel.checkpoint()
        return ours

    def _tap(self, protocol: str) -> tuple[TappedEnd, TappedEnd]:
        talk = Talk(protocol, [])
        self.talks.append(talk)
        to_them, from_us = trio.open_memory_channel[bytes](QUEUE_FRAMES)
        to_us, from_them = trio.open_memory_channel[bytes](QUEUE_FRAMES)
        return TappedEnd(talk, True, (to_them, from_them)), TappedEnd(talk, False, (to_us, from_us))

    async def disconnect(self, peer: PeerId) -> None:
        raise AssertionError("nobody is sent away here")

    async def publish(self, topic: str, data: bytes) -> None:
        self.topics.check_publish(topic, data)
        self.gossip.append((topic, data))
        heard = self.other.topics
        is_new = topic not in self.lost and heard.admit(self.me, len(data))
        if is_new and heard.judge(topic, self.me, self.me, data):
            heard.deliver(topic, self.me, self.me, data)
        await trio.lowlevel.checkpoint()

    def add_topic(self, topic: str) -> None:
        """All topics go over the one wire."""

    def add_protocol(self, protocol: str) -> None:
        """All protocols go over the one wire."""

    def mesh_peers(self) -> Mapping[str, int]:
        return {}

    def heartbeat_interval_s(self) -> float:
        return 1.0


async def never_dial(peer: PeerId, address: Address) -> None:
    raise Unreachable("there is one wire, and it stands")


async def join(
    dialler: TappedNode, other: TappedNode, start: Callable[..., Awaitable[Any]]
) -> None:
    """Run both, connected; each admits the other by `status` soon."""
    dialler.other, other.other = other, dialler
    await start(dialler.run)
    await start(other.run)
    assert other.members.connected(dialler.me, outbound=False, host="192.0.2.2")
    assert dialler.members.connected(other.me, outbound=True, host="192.0.2.1")
