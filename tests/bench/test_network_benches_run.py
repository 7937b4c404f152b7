"""The benches of gossip and blobs still run; their figures are for a quiet machine."""

import json
from pathlib import Path
from typing import Any

import pytest
from bench import blobs, gossip

SCHEMAS = json.loads((Path(__file__).parents[1] / "vectors/cli/schemas.json").read_text())
SHELL = {"budgets", "machine", "versions", "load"}  # added by `olnode bench`


def promised(bench: str) -> set[str]:
    return set(SCHEMAS[f"olnode.bench.{bench}/1"]) - SHELL


def test_a_blob_is_measured_beside_a_bare_stream(tmp_path: Path) -> None:
    figures = blobs.measure(tmp_path, megabytes=8, rounds=1)
    assert promised("blobs") == figures.keys()
    assert min(figures.values()) > 0
    assert {budget.key for budget in blobs.BUDGETS} <= figures.keys()


def test_gossip_between_processes_is_measured_and_nothing_is_lost() -> None:
    figures = gossip.measure(nodes=3, rate=60, seconds=0.5)
    assert promised("gossip") == figures.keys()
    assert {budget.key for budget in gossip.BUDGETS} <= figures.keys()
    assert (figures["messages"], figures["lost"], figures["restarts"]) == (30, 0, 0)


@pytest.mark.slow
def test_four_nodes_hear_all_of_fifty_messages_a_second_for_20_s() -> None:
    figures = gossip.measure()
    assert figures["delivery"] >= 0.999
    assert figures["lost"] <= figures["explained"]
    assert figures["resident_growth"] <= 1.10


def node(late_ms: list[float], **more: Any) -> dict[str, Any]:
    told = {
        "late_ms": late_ms, "cpu_s": 0.25, "resident_mb": [100.0, 110.0], "messages": {},
        "dropped": {}, "faults": {}, "penalties": {}, "restarts": 0, "peers": 1,
    }  # fmt: skip
    return told | more


def test_what_came_late_or_never_is_not_delivered() -> None:
    """Of ten messages to each, one was late here; there one was shed, one over a rate."""
    told = [
        node([10.0] * 9 + [5_001.0]),
        node(
            [20.0] * 8,
            dropped={"bundles shed": 1},
            messages={"bundles ignored": 1},
            resident_mb=[100.0, 120.0],
        ),
    ]
    figures = gossip.figures_of(told, count=10, rate=1, seconds=20)
    assert figures["delivery"] == 17 / 20
    assert (figures["late"], figures["lost"], figures["explained"]) == (1, 2, 2)
    assert (figures["p50_ms"], figures["p99_ms"]) == (10.0, 20.0)
    assert figures["cpu_ms_per_message"] == 1_000 * 0.5 / (20 * 2)
    assert figures["resident_growth"] == 1.2


def test_more_than_an_author_may_say_is_no_measure_of_gossip() -> None:
    with pytest.raises(AssertionError, match="author"):
        gossip.measure(nodes=4, rate=60, seconds=60)
