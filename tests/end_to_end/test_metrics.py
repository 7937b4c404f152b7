"""Two `olnode start` processes; one is scraped as Prometheus would.

No more than two of four validators, so that nothing is decided: metrics must not wait for that.
"""

import re
import time
import urllib.request
from pathlib import Path

import trio
from prometheus_client.parser import text_string_to_metric_families

from node.devnet.children import read, stop_all, wait_answering
from node.devnet.people import settle
from node.devnet.ports import free_ports
from p2p.peers import key_of_peer_id

P2P = """
    admitted bans blob_bytes blob_chunks_refused bytes circuits dials faults
    heartbeat_interval_seconds mesh_peers message_seconds messages peers penalties ping_seconds
    queue_dropped ready request_seconds requests restarts streams
"""  # page 70 §13
MEETING_S = 30.0


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text: str = answer.read().decode()
        return text


def samples(text: str) -> dict[str, float]:
    """Value by name and labels, as written: `olnode_ready{check="peers"}`."""
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if not line.startswith("#")
    }


async def test_scraper_sees_peers_meet_and_learns_no_name(tmp_path: Path, monkeypatch) -> None:
    ports = free_ports()
    land = settle(tmp_path, time_ms=time.time_ns() // 1_000_000, ports=ports, models=())
    (one, two), free = land.validators[:2], ports[-1]
    try:
        two.start()
        monkeypatch.setenv("OLNODE_METRICS__LISTEN", f"127.0.0.1:{free}")
        one.start()
        for child in (one, two):
            await wait_answering(child)
        with trio.fail_after(MEETING_S):
            while True:
                text = await trio.to_thread.run_sync(scrape, free)
                seen = samples(text)
                if seen["olnode_p2p_ping_seconds_count"] and seen['olnode_ready{check="peers"}']:
                    break
                await trio.sleep(0.5)
        (peer,) = (await read(one, "/peers"))["peers"]
    finally:
        await stop_all([one, two])
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {name for name in families if name.startswith("olnode_p2p_")} == {
        f"olnode_p2p_{name}" for name in P2P.split()
    }
    assert seen["olnode_p2p_heartbeat_interval_seconds"] == 1
    assert seen['olnode_p2p_bytes_total{direction="in"}'] > 1_000
    assert seen['olnode_p2p_requests_total{code="0",protocol="ping",side="asked"}'] >= 1
    assert seen["olnode_consensus_height"] == 0
    assert seen["olnode_inference_engine_up"] == 0, "a provider with nothing to serve yet"
    assert seen["olnode_adapter_registered"] == 0
    assert seen["process_resident_memory_bytes"] > 1e7
    for secret in (peer["peer_id"], key_of_peer_id(peer["peer_id"]).hex(), str(tmp_path)):
        assert secret not in text
    assert not re.search(r'="[^"]{65,}"', text), "labels are words"
