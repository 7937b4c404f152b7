"""What the network counts: one mutable book inside, one frozen view outside.

Why: every drop, refusal and caught fault has a counter (page 10 §2, 5), and a counter outlives any
restart of libp2p below. No peer ids: the view goes to metrics.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

TIMED_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


@dataclass(frozen=True, slots=True)
class Timed:
    """How long something took: `counts` by TIMED_BOUNDS_S (at most so long), then longer ones."""

    counts: tuple[int, ...]
    sum_s: float


@dataclass(slots=True)
class Timing:
    """A `Timed` in the making, of bounded size however much is noted."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(TIMED_BOUNDS_S) + 1))
    sum_s: float = 0.0

    def note(self, took_s: float) -> None:
        """One more."""
        self.counts[bisect_left(TIMED_BOUNDS_S, took_s)] += 1
        self.sum_s += took_s

    def view(self) -> Timed:
        """What has been noted so far."""
        return Timed(tuple(self.counts), self.sum_s)


@dataclass(frozen=True, slots=True)
class NetworkStatistics:
    """Counters since start and gauges of now. Keys of the maps as page 70 §13."""

    peers_in: int
    peers_out: int
    admitted: int
    streams: int  # ours, requests being served and duplex streams accepted
    bans: int
    restarts: int
    is_ready: bool
    heartbeat_interval_s: float  # 0 where there is none; must read 1 on libp2p
    dials: Mapping[str, int]  # result: ok, failed
    messages: Mapping[tuple[str, str], int]  # topic, published|accepted|ignored|rejected
    queue_dropped: Mapping[tuple[str, str], int]  # topic or "-", shed|outbound_full|oversize
    requests: Mapping[tuple[str, str, int], int]  # protocol, asked|served, code
    penalties: Mapping[str, int]  # reason
    faults: Mapping[str, int]  # where a guard caught an exception: our bugs, the library's
    mesh_peers: Mapping[str, int]  # topic
    circuits: Mapping[str, int]  # reserved, refused, carried, taken, over bytes, over time
    bytes_moved: Mapping[str, int]  # in, out: over this process's sockets, encrypted
    message_seconds: Mapping[str, Timed]  # topic: what our judge took
    request_seconds: Mapping[str, Timed]  # protocol: our own requests that were answered
    ping_seconds: Timed


class Counters:
    """The counters of one network, for its whole life."""

    def __init__(self) -> None:
        self.restarts = 0
        self.dials: Counter[str] = Counter()
        self.messages: Counter[tuple[str, str]] = Counter()
        self.queue_dropped: Counter[tuple[str, str]] = Counter()
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.penalties: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.circuits: Counter[str] = Counter()
        self.message_seconds: defaultdict[str, Timing] = defaultdict(Timing)
        self.request_seconds: defaultdict[str, Timing] = defaultdict(Timing)
        self.ping_seconds = Timing()
