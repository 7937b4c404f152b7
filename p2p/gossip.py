"""Topics: who may say how much, who judges it, and the bounded queue it waits in.

Why both networks share this file: what a message must pass is the same over libp2p and simulated
(page 70 §5), so a limit tested on one holds on the other. Why the author's bucket is charged only
after its signature was checked: else anyone could spend it.
What this file does not know: libp2p, meshes, what a message means.
"""

from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from enum import Enum

import structlog
import trio

from p2p.counters import Counters
from p2p.limits import (
    AUTHORS_MAX,
    FORWARDER_BURST,
    FORWARDER_BYTES_BURST,
    FORWARDER_BYTES_S,
    FORWARDER_PATIENCE_S,
    FORWARDER_RATE_S,
    GOSSIP_BYTES_MAX,
    JUDGE_MS_MAX,
    TOPICS_MAX,
    TokenBucket,
    TopicLimits,
)
from p2p.peers import PeerId

log = structlog.get_logger(part="p2p")


class Verdict(Enum):
    """What a judge says: IGNORE drops without fault of the forwarder, REJECT scores it."""

    ACCEPT = "accepted"
    IGNORE = "ignored"
    REJECT = "rejected"


@dataclass(frozen=True, slots=True)
class Gossip:
    """One accepted message; `author` signed it, `forwarder` handed it to us."""

    topic: str
    author: PeerId
    forwarder: PeerId
    data: bytes
    received_ms: int


Judge = Callable[[PeerId, PeerId, bytes], Verdict]
Blame = Callable[[PeerId, str], None]


class Inbox(AsyncIterator[Gossip]):
    """The accepted messages of one topic, in a bounded queue; one reader."""

    def __init__(self, topic: str, limits: TopicLimits, counters: Counters) -> None:
        self._topic = topic
        self._limits = limits
        self._counters = counters
        self._held: deque[Gossip] = deque()
        self._arrived = trio.Event()

    def put_nowait(self, message: Gossip) -> None:
        """Keep `message`, or drop and count by the topic's rule when full."""
        if len(self._held) >= self._limits.queue_max:
            self._counters.queue_dropped[self._topic, "shed"] += 1
            if self._limits.full == "drop newest":
                return
            self._held.popleft()
        self._held.append(message)
        self._arrived.set()

    async def __anext__(self) -> Gossip:
        while not self._held:
            self._arrived = trio.Event()
            await self._arrived.wait()
        await trio.lowlevel.checkpoint()  # a full queue must not starve the other tasks
        return self._held.popleft()


@dataclass(frozen=True, slots=True)
class _Topic:
    judge: Judge
    limits: TopicLimits
    inbox: Inbox


class _Forwarder:
    """What one peer may hand us: messages and bytes; `over_since_s` while it sends more."""

    __slots__ = ("bytes", "messages", "over_since_s", "seen_s")

    def __init__(self, now_s: float) -> None:
        self.messages = TokenBucket(FORWARDER_RATE_S, FORWARDER_BURST, now_s)
        self.bytes = TokenBucket(FORWARDER_BYTES_S, FORWARDER_BYTES_BURST, now_s)
        self.over_since_s: float | None = None
        self.seen_s = now_s


class Topics:
    """All topics of one node. The transport asks `admit`, then `judge`, then `deliver`."""

    def __init__(
        self,
        *,
        me: PeerId,
        counters: Counters,
        is_welcome: Callable[[PeerId], bool],
        blame: Blame,
        now_ms: Callable[[], int],
    ) -> None:
        self._me = me
        self._counters = counters
        self._is_welcome = is_welcome
        self._blame = blame
        self._now_ms = now_ms
        self._topics: dict[str, _Topic] = {}
        self._forwarders: OrderedDict[PeerId, _Forwarder] = OrderedDict()
        self._authors: OrderedDict[tuple[PeerId, str], TokenBucket] = OrderedDict()

    def subscribe(self, topic: str, judge: Judge, limits: TopicLimits) -> Inbox:
        """Take part in `topic`; ValueError the second time or above TOPICS_MAX."""
        if topic in self._topics:
            raise ValueError(f"subscribed twice to {topic}")
        if len(self._topics) == TOPICS_MAX:
            raise ValueError("too many topics")
        if limits.bytes_max > GOSSIP_BYTES_MAX:
            raise ValueError("gossip is limited to 512 KiB")
        inbox = Inbox(topic, limits, self._counters)
        self._topics[topic] = _Topic(judge, limits, inbox)
        return inbox

    def names(self) -> Collection[str]:
        return self._topics.keys()

    def check_publish(self, topic: str, data: bytes) -> None:
        """ValueError unless we may publish `data`: the caller's bug, not a peer's."""
        if topic not in self._topics:
            raise ValueError(f"not subscribed to {topic}")
        if len(data) > self._topics[topic].limits.bytes_max:
            self._counters.queue_dropped[topic, "oversize"] += 1
            raise ValueError(f"{len(data)} bytes on {topic}, limit exceeded")
        self._counters.messages[topic, "published"] += 1

    def admit(self, forwarder: PeerId, size: int) -> bool:
        """First gate, before any work: is the forwarder welcome, and within its bucket?"""
        if not self._is_welcome(forwarder):
            self._counters.messages["-", Verdict.IGNORE.value] += 1
            return False
        now_s = trio.current_time()
        state = self._forwarders.get(forwarder)
        if state is None:
            while len(self._forwarders) >= AUTHORS_MAX:
                self._forwarders.popitem(last=False)
            state = self._forwarders[forwarder] = _Forwarder(now_s)
        self._forwarders.move_to_end(forwarder)
        if state.messages.take(now_s) and state.bytes.take(now_s, size):
            # A quiet second ends a flood; single messages let through amid it do not.
            if state.over_since_s is not None and now_s - state.seen_s > 1:
                state.over_since_s = None
            return True
        state.seen_s = now_s
        self._counters.messages["-", Verdict.IGNORE.value] += 1
        if state.over_since_s is None:
            state.over_since_s = now_s
        elif now_s - state.over_since_s >= FORWARDER_PATIENCE_S:
            state.over_since_s = now_s
            self._blame(forwarder, "flooding")
        return False

    def judge(self, topic: str, forwarder: PeerId, author: PeerId, data: bytes) -> bool:
        """Second gate, after the author's signature: size, the author's bucket, the judge."""
        verdict = self._verdict(topic, forwarder, author, data)
        self._counters.messages[topic, verdict.value] += 1
        if verdict is Verdict.REJECT:
            self._blame(forwarder, "rejected")
        return verdict is Verdict.ACCEPT

    def _verdict(self, topic: str, forwarder: PeerId, author: PeerId, data: bytes) -> Verdict:
        entry = self._topics.get(topic)
        if entry is None:
            return Verdict.IGNORE
        if not data or len(data) > entry.limits.bytes_max:
            return Verdict.REJECT
        if author == self._me:
            return Verdict.IGNORE  # ours, come round: nothing new
        if not self._author_bucket(author, topic, entry.limits).take(trio.current_time()):
            return Verdict.IGNORE
        began_s = trio.current_time()
        try:
            verdict = entry.judge(forwarder, author, data)
        except Exception:  # a judge's bug must not end the library's own task
            self._counters.faults["judge"] += 1
            if self._counters.faults["judge"] == 1:
                log.exception("judge raised", topic=topic)
            return Verdict.IGNORE
        took_s = trio.current_time() - began_s
        self._counters.message_seconds[topic].note(took_s)
        if took_s * 1_000 > JUDGE_MS_MAX:
            self._counters.faults["slow_judge"] += 1
        return verdict

    def deliver(self, topic: str, forwarder: PeerId, author: PeerId, data: bytes) -> None:
        """Queue an accepted message for its reader."""
        message = Gossip(topic, author, forwarder, data, self._now_ms())
        self._topics[topic].inbox.put_nowait(message)

    def forget(self, peer: PeerId) -> None:
        """A peer left: its forwarder's bucket goes, its author's stays."""
        self._forwarders.pop(peer, None)

    def _author_bucket(self, author: PeerId, topic: str, limits: TopicLimits) -> TokenBucket:
        key = author, topic
        bucket = self._authors.get(key)
        if bucket is None:
            while len(self._authors) >= AUTHORS_MAX:
                self._authors.popitem(last=False)
            now_s = trio.current_time()
            bucket = TokenBucket(limits.author_rate_s, limits.author_burst, now_s)
            self._authors[key] = bucket
        self._authors.move_to_end(key)
        return bucket
