"""`olnode bench gossip`: nodes on loopback, a process each, and messages of 1 KB to all of them.

Each node says its share of `--rate` messages a second on the topic of bundles, within the limits
that this topic has for an author, and notes how old each message of another is when it comes.
`delivery` is the part of all (message, other node) pairs that came within 5 s; what of the rest is
in some node's counters stands in `explained`. CPU is what one message costs one node.
The judge is the bench's own (`gossip_node.py`): these are networks without a ledger.
"""

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

from bench.protocol import AT_LEAST, AT_MOST, Budget, finish, quiet, tell
from child_kit import TellingChild

from p2p.gossip import Verdict
from p2p.limits import TOPICS

BUDGETS: Final = (Budget("delivery", AT_LEAST, 0.999), Budget("p99_ms", AT_MOST, 250))
NODES: Final = 4
RATE: Final = 50.0  # messages a second, of all nodes
SECONDS: Final = 20.0
BYTES: Final = 1_000
WITHIN_MS: Final = 5_000.0
DRAIN_S: Final = 5.5  # after the last message
START_IN_S: Final = 0.5
CHILD: Final = Path(__file__).with_name("gossip_node.py")
# Why a message may be lost: a queue was full, or its author or forwarder over its rate.
EXPLAINS: Final = ("shed", "outbound_full", "oversize", Verdict.IGNORE.value)


class Node(TellingChild):
    """One child; see `gossip_node.py` for what it says."""

    def __init__(self, number: int, **options: object) -> None:
        super().__init__(CHILD, {"number": number, **options})

    def start(self, at_ns: int) -> None:
        """Let it speak from then on."""
        self.tell(f"start {at_ns}")


def measure(
    *, nodes: int = NODES, rate: float = RATE, seconds: float = SECONDS, drain_s: float = DRAIN_S
) -> dict[str, Any]:
    """Start them, let them speak, add up."""
    limits = TOPICS["bundles"]
    every_s, count = nodes / rate, round(rate * seconds / nodes)
    assert count <= limits.author_burst + limits.author_rate_s * seconds, "more than an author may"
    options = {
        "nodes": nodes, "count": count, "every_s": every_s, "size": BYTES, "drain_s": drain_s,
    }  # fmt: skip
    made = [Node(0, peers=[], **options)]
    try:
        address = made[0].told()["address"]
        made += [Node(number, peers=[address], **options) for number in range(1, nodes)]
        for node in made[1:]:
            node.told()
        for node in made:
            node.told()
        tell(f"{nodes} nodes are meshed; {rate:g} messages a second for {seconds:g} s")
        at_ns = time.monotonic_ns() + int(START_IN_S * 1e9)
        for place, node in enumerate(made):
            node.start(at_ns + int(place * 1e9 / rate))
        results = [node.told() for node in made]
    finally:
        for node in made:
            node.kill()
    return figures_of(results, count=count, rate=rate, seconds=seconds)


def figures_of(
    results: Sequence[dict[str, Any]], *, count: int, rate: float, seconds: float
) -> dict[str, Any]:
    """What the nodes told, as one."""
    nodes = len(results)
    late_ms = sorted(chain.from_iterable(each["late_ms"] for each in results))
    in_time = sum(each <= WITHIN_MS for each in late_ms)
    expected = count * nodes * (nodes - 1)
    counters: Counter[str] = Counter()
    for each in results:
        for part in ("messages", "dropped", "faults", "penalties"):
            counters.update(each[part])
    explained = [n for key, n in counters.items() if key.rpartition(" ")[2] in EXPLAINS]
    return {
        "nodes": nodes,
        "rate": rate,
        "seconds": seconds,
        "messages": count * nodes,
        "delivery": round(in_time / expected, 5),
        "lost": expected - len(late_ms),
        "late": len(late_ms) - in_time,
        "explained": sum(explained),
        "p50_ms": late_ms[(len(late_ms) - 1) // 2],
        "p99_ms": late_ms[(len(late_ms) - 1) * 99 // 100],
        "cpu_ms_per_message": round(
            1_000 * sum(each["cpu_s"] for each in results) / (count * nodes * nodes), 2
        ),
        "resident_mb_start": max(each["resident_mb"][0] for each in results),
        "resident_mb_end": max(each["resident_mb"][-1] for each in results),
        "resident_growth": round(
            max(each["resident_mb"][-1] / each["resident_mb"][0] for each in results), 3
        ),
        "restarts": sum(each["restarts"] for each in results),
        "peers_min": min(each["peers"] for each in results),
        "counters": dict(sorted(counters.items())),
    }


def main() -> None:
    """The command line of `olnode bench gossip`."""
    parser = argparse.ArgumentParser(prog="olnode bench gossip")
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--rate", type=float, default=RATE, help="messages a second, of all nodes")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of load")
    parser.add_argument("--minutes", type=float, help="of load, in place of --seconds")
    given = parser.parse_args()
    quiet()
    seconds = given.seconds if given.minutes is None else 60 * given.minutes
    finish(measure(nodes=given.nodes, rate=given.rate, seconds=seconds), BUDGETS)


if __name__ == "__main__":
    main()
