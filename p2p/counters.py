"""What the network counts: one mutable book inside, one frozen view outside.

Why: every drop, refusal and caught fault has a counter (page 10 §2, 5), and a counter outlives any
restart of libp2p below. No peer ids: the view goes to metrics.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass


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
