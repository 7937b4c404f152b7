"""The network as the rest of the house sees it: gossip, requests, streams, peers.

Why one small interface: the daemon runs on libp2p, tests on `p2p/memory.py`, and no caller can
tell which. Subscriptions, handlers, scores and counters belong to the network and outlive any
restart of libp2p below it.
What this file does not know: libp2p, and what any body means.
"""

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Protocol

import trio

from p2p.counters import NetworkStatistics
from p2p.framing import FrameStream
from p2p.gossip import Gossip, Judge, Verdict
from p2p.limits import ServeLimits, TopicLimits
from p2p.peers import Joined, Left, PeerId, PeerView, StatusFacts
from p2p.requests import Handler, StreamHandler

__all__ = [
    "FrameStream",
    "Gossip",
    "Handler",
    "Joined",
    "Judge",
    "Left",
    "Network",
    "NetworkStatistics",
    "PeerId",
    "PeerView",
    "ServeLimits",
    "StatusFacts",
    "StreamHandler",
    "TaskStatus",
    "TopicLimits",
    "Verdict",
]


class TaskStatus(Protocol):
    """What `nursery.start` hands to a task: `started()` says that it is ready."""

    def started(self) -> None: ...


class Network(Protocol):
    """Bytes to and from peers. Topics and protocols go by short names: "votes", "blocks".

    On the wire they are `/olnode/<name>/1/<chain>` and `/olnode/<name>/1`.
    """

    me: PeerId

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Forever; started once it listens. Restarts libp2p inside; ListenError at first start."""
        ...

    async def publish(self, topic: str, data: bytes) -> None:
        """Gossip `data`; ValueError above the topic's limit or for a topic not subscribed.

        It does not come back to us. With nobody to hear it is lost: gossip promises nothing.
        """
        ...

    def subscribe(self, topic: str, judge: Judge, limits: TopicLimits) -> AsyncIterator[Gossip]:
        """Messages that `judge(forwarder, author, data)` accepted, from now on; once per topic.

        `judge` is synchronous, takes at most 2 ms and never raises: a raise counts as IGNORE and
        as our bug. We relay what it accepts, whether or not the iterator is read.
        """
        ...

    async def request(
        self, peer: PeerId, protocol: str, body: bytes, *, timeout_s: float, bytes_max: int
    ) -> bytes:
        """The reply's body. Refused with the peer's code, Unreachable at once if not connected,
        TooSlow, or Misbehaving for a reply longer than `bytes_max` or malformed."""
        ...

    def serve(self, protocol: str, handler: Handler, limits: ServeLimits) -> None:
        """Answer requests: `handler(peer, body)` returns the reply's body or raises Refused.

        Misbehaving out of it answers 1 and counts against the caller; any other exception answers
        10 and counts as our bug.
        """
        ...

    async def open(self, peer: PeerId, protocol: str) -> FrameStream:
        """A duplex stream; Unreachable if not connected or the peer knows no such protocol."""
        ...

    def accept(self, protocol: str, handler: StreamHandler, limits: ServeLimits) -> None:
        """Take duplex streams; each lives as long as its call of `handler`, then it is closed.

        Who comes uninvited (not admitted, over `limits`) is reset before the handler sees it.
        """
        ...

    def peers(self) -> tuple[PeerView, ...]:
        """Every connected peer."""
        ...

    def events(self) -> AsyncIterator[Joined | Left]:
        """A Joined for each peer admitted now, then what happens; any number of readers."""
        ...

    def bindings(self) -> Mapping[PeerId, bytes]:
        """Every binding judged good, of connected peers and of others in the book."""
        ...

    def admit(self, peer: PeerId) -> None:
        """Admit a connected peer without waiting for its `status`."""
        ...

    def penalise(self, peer: PeerId, points: int, reason: str) -> None:
        """Add points; at 100 it is banned and disconnected. `reason` is one fixed word."""
        ...

    def keep(self, peers: Iterable[PeerId]) -> None:
        """These peers, and those configured, are never pruned and always redialled."""
        ...

    def statistics(self) -> NetworkStatistics: ...
