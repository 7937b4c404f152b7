"""What a node counts, as Prometheus reads it: gauges of now, counters since the start.

Why read when asked and never pushed: the parts keep their own statistics for their own sake, and a
scrape that nobody makes costs nothing. No label holds a peer, an account or free text, so the
number of series is bounded by our own words.
What this file does not know: who scrapes, and over which socket (`web/metrics.py`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from node import observe
from node.serving import timing
from node.serving.engine import EngineStats, TierStats
from node.shop import Work
from node.telling import Telling
from p2p.counters import TIMED_BOUNDS_S, NetworkStatistics, Timed

PREFIX: Final = "olnode_"

Counts = Callable[[], Mapping[str, int]]


@dataclass(frozen=True, slots=True, eq=False)  # the registry hashes it
class Metrics:
    """Every metric of one node; `events`: the counters of each part, by the part's name."""

    telling: Telling
    events: Mapping[str, Counts]

    def text(self) -> bytes:
        """All of it in Prometheus' text format, with the process's own CPU, memory and files."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        ProcessCollector(registry=registry)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """As the library asks for it."""
        yield from self._node()
        yield from self._ledger()
        yield from p2p_metrics(self.telling.network.statistics())
        if self.telling.shop is not None:
            yield from engine_metrics(self.telling.shop.work())
        yield from _blobs(self.events["blobs"]())
        yield _counter(
            "events",
            "What each part has counted.",
            ("part", "event"),
            (
                ((part, event), count)
                for part, counts in self.events.items()
                for event, count in counts().items()
            ),
        )

    def _node(self) -> Iterator[Metric]:
        status = self.telling.status()
        build = (status.build, status.chain_id.hex())
        yield _gauge("build_info", "This build and its chain.", ("version", "chain"), [(build, 1)])
        checks = [((name,), int(is_well)) for name, is_well in status.checks.items()]
        yield _gauge("ready", "What readiness is made of, each 0 or 1.", ("check",), checks)
        errors = [((where,), count) for where, count in observe.statistics().items()]
        yield _counter("contained_errors", "Errors that ended one task only.", ("where",), errors)
        yield _one("disk_free_bytes", "Free space below the home.", self.telling.disk.free_bytes)

    def _ledger(self) -> Iterator[Metric]:
        status, replica = self.telling.status(), self.telling.replica.statistics()
        pools = self.telling.transactions.statistics(), self.telling.bundles.statistics()
        held = sum(pool.bytes for pool in pools)
        for name, help, value in (
            ("consensus_height", "Blocks committed.", status.height),
            ("consensus_round", "The round of the height being decided.", replica.round),
            ("consensus_validators", "Validators of the next height.", status.validators),
            ("consensus_signing", "1 while this node votes.", int(status.signing)),
            ("consensus_last_signed_height", "What we signed last.", status.last_signed_height),
            ("ledger_pool_transactions", "Transactions that wait.", status.pool_transactions),
            ("ledger_pool_bundles", "Bundles that wait.", status.pool_bundles),
            ("ledger_pool_bytes", "Bytes of both.", held),
            ("ledger_supply_grains", "All grains there are.", status.supply),
            ("ledger_sync_lag_blocks", "How far behind the highest peer.", status.lag_blocks),
        ):
            yield _one(name, help, value)


def p2p_metrics(network: NetworkStatistics) -> Iterator[Metric]:
    """The list of page 70 §13."""
    directions = [(("in",), network.peers_in), (("out",), network.peers_out)]
    yield _gauge("p2p_peers", "Connected peers.", ("direction",), directions)
    for name, help, value in (
        ("p2p_admitted", "Peers that told their status.", network.admitted),
        ("p2p_streams", "Requests and streams of others being served.", network.streams),
        ("p2p_bans", "Peers banned now.", network.bans),
        ("p2p_ready", "0 after too many restarts.", int(network.is_ready)),
        ("p2p_heartbeat_interval_seconds", "Gossip's; 0: none.", network.heartbeat_interval_s),
    ):
        yield _one(name, help, value)
    meshes = [((topic,), peers) for topic, peers in network.mesh_peers.items()]
    yield _gauge("p2p_mesh_peers", "Peers of our mesh.", ("topic",), meshes)
    restarts = [((), network.restarts)]
    yield _counter("p2p_restarts", "Restarts of the peer-to-peer stack.", (), restarts)
    for name, help, labels, counts in (
        ("p2p_dials", "Dials.", ("result",), network.dials),
        ("p2p_bytes", "Bytes over connections, encrypted.", ("direction",), network.bytes_moved),
        ("p2p_messages", "Gossip.", ("topic", "verdict"), network.messages),
        ("p2p_queue_dropped", "Dropped by full queues.", ("queue", "why"), network.queue_dropped),
        ("p2p_requests", "Requests.", ("protocol", "side", "code"), network.requests),
        ("p2p_penalties", "Penalties and bans given.", ("reason",), network.penalties),
        ("p2p_faults", "Exceptions that a guard caught.", ("where",), network.faults),
        ("p2p_circuits", "Connections through relays, and places.", ("what",), network.circuits),
    ):
        yield _counter(name, help, labels, _labelled(counts))
    judged, asked = network.message_seconds, network.request_seconds
    yield _histogram("p2p_message_seconds", "Judging a message.", ("topic",), _labelled(judged))
    yield _histogram("p2p_request_seconds", "Our own requests.", ("protocol",), _labelled(asked))
    yield _histogram("p2p_ping_seconds", "Round trips.", (), [((), network.ping_seconds)])


def engine_metrics(work: Work) -> Iterator[Metric]:
    """The list of page 50 §12: what the engine does, and where its adapters lie."""
    engine = work.engine
    yield _one("inference_engine_up", "1 while a worker serves.", int(work.is_up))
    for name, help, value in (
        ("num_requests_running", "Requests with rows.", engine.running),
        ("kv_cache_usage_ratio", "The part of the rows that is taken.", engine.rows_used),
        ("batch_adapters", "Adapters that the newest batch mixes.", engine.batch_adapters),
        ("gradient_queue", "Sketches and checks that wait.", engine.gradients_waiting),
    ):
        yield _one(f"inference_{name}", help, value)
    waiting = [
        (("capacity",), engine.waiting - engine.waiting_adapter),
        (("adapter",), engine.waiting_adapter),
    ]
    help = "Requests that wait for rows, or for their adapter."
    yield _gauge("inference_num_requests_waiting", help, ("reason",), waiting)
    for name, help, count in (
        ("prompt_tokens", "Tokens of prompts computed.", engine.prompt_tokens),
        ("generation_tokens", "Tokens made.", engine.generation_tokens),
        ("engine_restarts", "Workers that were lost and replaced.", engine.restarts),
    ):
        yield _counter(f"inference_{name}", help, (), [((), count)])
    for name, help, counts in (
        ("request_success", "Requests that were taken, by how they ended.", engine.endings),
        ("admission_rejections", "Requests that were not taken.", engine.rejections),
    ):
        yield _counter(f"inference_{name}", help, ("reason",), _labelled(counts))
    yield from _engine_times(engine, work.receipt_delay)
    yield from _tiers(engine, engine.tiers)


def _engine_times(engine: EngineStats, receipt_delay: timing.Timed) -> Iterator[Metric]:
    times = {**engine.times, "receipt_delay": receipt_delay}
    for name, help in (
        ("time_to_first_token", "From taken to the first token."),
        ("inter_token_latency", "From a row's token to its next."),
        ("request_queue_time", "From taken to rows, the adapter's way included."),
        ("request_prefill_time", "From rows to a filled prompt."),
        ("request_decode_time", "From the first token to the end."),
        ("gradient", "A batch of gradients for sketches."),
        ("receipt_delay", "From the last token to the receipt, sketch and credits included."),
    ):
        rows = [((), times.get(name, timing.Timed()))]
        yield _histogram(f"inference_{name}_seconds", help, (), rows, timing.BOUNDS_S)


def _tiers(engine: EngineStats, tiers: TierStats) -> Iterator[Metric]:
    for name, help, value in (
        ("slots", "Adapters in slots.", engine.adapters_slot),
        ("ram_bytes", "Adapters in memory.", tiers.ram_bytes),
        ("disk_bytes", "Copies of adapters as they are loaded.", tiers.disk_bytes),
        ("registered", "Adapters that could be asked for.", tiers.registered),
    ):
        yield _one(f"adapter_{name}", help, value)
    loads = _labelled(tiers.load_times)
    help = "Loading, by where from: ram into a slot; disk, folder or peers into memory."
    yield _histogram("adapter_load_seconds", help, ("tier",), loads, timing.BOUNDS_S)
    evictions = _labelled(tiers.evictions)
    yield _counter("adapter_evictions", "Adapters that made room.", ("tier",), evictions)


def _blobs(counts: Mapping[str, int]) -> Iterator[Metric]:
    moved = [
        (("in",), counts.get("fetched_bytes", 0)),
        (("out",), counts.get("served_bytes", 0)),
    ]
    yield _counter("p2p_blob_bytes", "Content moved by hash.", ("direction",), moved)
    refused = [((), counts.get("chunks_false", 0) + counts.get("sources_false", 0))]
    yield _counter("p2p_blob_chunks_refused", "Chunks that were not what they said.", (), refused)


Labels = tuple[str, ...]


def _labelled(counts: Mapping[Any, Any]) -> Iterable[tuple[Labels, Any]]:
    """Keys that are a word, or a tuple of words and numbers, as label values."""
    for key, value in counts.items():
        yield tuple(map(str, key)) if isinstance(key, tuple) else (str(key),), value


def _one(name: str, help: str, value: float) -> Metric:
    return _gauge(name, help, (), [((), value)])


def _gauge(name: str, help: str, labels: Labels, rows: Iterable[tuple[Labels, float]]) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, help, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _counter(name: str, help: str, labels: Labels, rows: Iterable[tuple[Labels, float]]) -> Metric:
    family = CounterMetricFamily(PREFIX + name, help, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _histogram(
    name: str,
    help: str,
    labels: Labels,
    rows: Iterable[tuple[Labels, Timed | timing.Timed]],
    bounds_s: Iterable[float] = TIMED_BOUNDS_S,
) -> Metric:
    family = HistogramMetricFamily(PREFIX + name, help, labels=labels)
    bounds = [*map(str, bounds_s), "+Inf"]
    for values, timed in rows:
        buckets = [*zip(bounds, accumulate(timed.counts), strict=True)]
        family.add_metric(values, buckets, timed.sum_s)
    return family
