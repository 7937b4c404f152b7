"""What a scrape tells, and that the alerts in `configs/rules.yml` speak of nothing else."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from unit.web.behind import STATUS

from node.metrics import Metrics
from node.serving.engine import EngineStats, TierStats
from node.serving.timing import BOUNDS_S
from node.serving.timing import Timing as EngineTiming
from node.shop import Work
from p2p.counters import TIMED_BOUNDS_S, NetworkStatistics, Timing

RULES = Path(__file__).resolve().parents[3] / "configs" / "rules.yml"
NETWORK = NetworkStatistics(
    peers_in=2,
    peers_out=1,
    admitted=3,
    streams=4,
    bans=1,
    restarts=1,
    is_ready=True,
    heartbeat_interval_s=1.0,
    dials={"ok": 1},
    messages={("txs", "accepted"): 5},
    queue_dropped={("votes", "shed"): 6},
    requests={("ping", "asked", 0): 7},
    penalties={"malformed": 8},
    faults={"judge": 9},
    mesh_peers={"txs": 3},
    circuits={"carried": 12},
    bytes_moved={"in": 10, "out": 11},
    message_seconds={},
    request_seconds={},
    ping_seconds=Timing().view(),
)


def timed(*took_s: float) -> Any:
    timing = EngineTiming()
    for one in took_s:
        timing.note(one)
    return timing.view()


ENGINE = EngineStats(
    running=3, waiting=5, prompt_tokens=7, generation_tokens=8, gradients_waiting=9, restarts=10,
    adapters_slot=11, waiting_adapter=2, rows_used=0.25, batch_adapters=4,
    endings={"stop": 12, "length": 13}, rejections={"overloaded": 14},
    times={"time_to_first_token": timed(0.3, 0.6), "inter_token_latency": timed(0.002)},
    tiers=TierStats(15, 16, 17, {"slot": 18, "ram": 19, "disk": 20}, {"disk": timed(0.004)}),
)  # fmt: skip
WORK = Work(True, ENGINE, timed(0.7), {"served": 21})
PAGE_50 = """
    num_requests_running num_requests_waiting kv_cache_usage_ratio prompt_tokens_total
    generation_tokens_total time_to_first_token_seconds inter_token_latency_seconds
    request_queue_time_seconds request_prefill_time_seconds request_decode_time_seconds
    request_success_total admission_rejections_total batch_adapters gradient_queue
    gradient_seconds receipt_delay_seconds engine_up engine_restarts_total
"""  # §12, with `verify_total` to come with what verifies
TIERS = "slots ram_bytes disk_bytes registered load_seconds evictions_total"


def metrics(network: NetworkStatistics = NETWORK, work: Work | None = WORK) -> Metrics:
    pool = SimpleNamespace(statistics=lambda: SimpleNamespace(bytes=21))
    telling: Any = SimpleNamespace(
        status=lambda: STATUS,
        network=SimpleNamespace(statistics=lambda: network),
        replica=SimpleNamespace(statistics=lambda: SimpleNamespace(round=2)),
        transactions=pool,
        bundles=pool,
        disk=SimpleNamespace(free_bytes=12),
        shop=None if work is None else SimpleNamespace(work=lambda: work),
    )
    counts = Counter(served_bytes=13, fetched_bytes=14, sources_false=15, chunks_false=2)
    return Metrics(telling, {"blobs": lambda: counts})


def test_counters_and_gauges_stand_under_their_names() -> None:
    lines = metrics().text().decode().splitlines()
    for line in (
        'olnode_p2p_peers{direction="in"} 2.0',
        "olnode_p2p_restarts_total 1.0",
        'olnode_p2p_circuits_total{what="carried"} 12.0',
        'olnode_p2p_messages_total{topic="txs",verdict="accepted"} 5.0',
        'olnode_p2p_queue_dropped_total{queue="votes",why="shed"} 6.0',
        'olnode_p2p_requests_total{code="0",protocol="ping",side="asked"} 7.0',
        'olnode_p2p_blob_bytes_total{direction="out"} 13.0',
        "olnode_p2p_blob_chunks_refused_total 17.0",
        'olnode_events_total{event="sources_false",part="blobs"} 15.0',
        "olnode_consensus_height 7.0",
        "olnode_consensus_round 2.0",
        "olnode_ledger_pool_bytes 42.0",
        "olnode_disk_free_bytes 12.0",
        'olnode_ready{check="storage"} 1.0',
    ):
        assert line in lines


def test_times_are_cumulative_in_the_buckets_of_a_histogram() -> None:
    timing = Timing()
    for took_s in (0.0005, 0.001, 0.02, 99.0):
        timing.note(took_s)
    text = metrics(replace(NETWORK, ping_seconds=timing.view())).text()
    lines = text.decode().splitlines()
    for bound, count in (("0.001", 2), ("0.01", 2), ("0.025", 3), ("10", 3), ("+Inf", 4)):
        assert f'olnode_p2p_ping_seconds_bucket{{le="{bound}"}} {count}.0' in lines
    assert "olnode_p2p_ping_seconds_count 4.0" in lines
    assert f"olnode_p2p_ping_seconds_sum {0.0005 + 0.001 + 0.02 + 99.0}" in lines
    assert sum(timing.view().counts) == 4
    assert len(timing.view().counts) == len(TIMED_BOUNDS_S) + 1


def test_engine_and_tiers_stand_under_the_names_of_the_design() -> None:
    text = metrics().text().decode()
    lines = text.splitlines()
    for line in (
        "olnode_inference_num_requests_running 3.0",
        'olnode_inference_num_requests_waiting{reason="capacity"} 3.0',
        'olnode_inference_num_requests_waiting{reason="adapter"} 2.0',
        "olnode_inference_kv_cache_usage_ratio 0.25",
        "olnode_inference_prompt_tokens_total 7.0",
        'olnode_inference_request_success_total{reason="length"} 13.0',
        'olnode_inference_admission_rejections_total{reason="overloaded"} 14.0',
        'olnode_inference_time_to_first_token_seconds_bucket{le="0.5"} 1.0',
        "olnode_inference_time_to_first_token_seconds_count 2.0",
        "olnode_inference_receipt_delay_seconds_sum 0.7",
        "olnode_inference_gradient_seconds_count 0.0",
        "olnode_inference_engine_up 1.0",
        "olnode_inference_engine_restarts_total 10.0",
        "olnode_adapter_registered 15.0",
        "olnode_adapter_disk_bytes 17.0",
        'olnode_adapter_evictions_total{tier="ram"} 19.0',
        'olnode_adapter_load_seconds_bucket{le="0.005",tier="disk"} 1.0',
    ):
        assert line in lines
    samples = {line.partition("{")[0].partition(" ")[0] for line in lines if line[:1] != "#"}
    wanted = [f"olnode_inference_{name}" for name in PAGE_50.split()]
    wanted += [f"olnode_adapter_{name}" for name in TIERS.split()]
    for name in wanted:
        parts = ("_bucket", "_sum", "_count") if name.endswith("_seconds") else ("",)
        assert {name + part for part in parts} <= samples
    assert f'le="{BOUNDS_S[-1]}"' in text


def test_node_that_serves_nothing_tells_of_no_engine() -> None:
    text = metrics(work=None).text().decode()
    assert "olnode_inference" not in text
    assert "olnode_adapter" not in text


def test_alerts_speak_of_metrics_that_there_are() -> None:
    families = text_string_to_metric_families(metrics().text().decode())
    told = {sample.name for family in families for sample in family.samples}
    told |= {"olnode_contained_errors_total"}  # none so far: no series yet
    asked = set(re.findall(r"olnode_[a-z0-9_]+", RULES.read_text()))
    assert len(asked) > 5
    assert asked <= told
