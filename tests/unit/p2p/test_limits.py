"""The token bucket, and that the tables fit the frames they are sent in."""

import pytest

from p2p.limits import (
    FRAME_BYTES_MAX,
    GOSSIP_BYTES_MAX,
    OPENED_STREAMS_S,
    PROTOCOLS,
    STREAMS_PER_CONNECTION_MAX,
    STREAMS_PER_PEER_MAX,
    TOPICS,
    TokenBucket,
)


def test_bucket_gives_its_burst_then_its_rate():
    bucket = TokenBucket(rate_s=2, burst=3, now_s=0)
    assert [bucket.take(0) for _ in range(4)] == [True, True, True, False]
    assert bucket.wait_s(0) == pytest.approx(0.5)
    assert not bucket.take(0.49)
    assert bucket.take(0.5)
    assert [bucket.take(1_000) for _ in range(4)] == [True, True, True, False]


def test_refused_take_costs_nothing_and_time_never_runs_back():
    bucket = TokenBucket(rate_s=1, burst=10, now_s=100)
    assert not bucket.take(100, 11)
    assert bucket.take(50, 10)
    assert not bucket.take(99)


def test_tables_fit_a_frame():
    assert all(limits.bytes_max <= GOSSIP_BYTES_MAX for limits in TOPICS.values())
    for limits in PROTOCOLS.values():
        assert max(limits.request_max, limits.reply_max) <= FRAME_BYTES_MAX


def test_a_connection_carries_all_that_one_peer_may_have_at_once():
    """Else the answers that it pays for are reset, and its pings with them."""
    streams = [limits for limits in PROTOCOLS.values() if limits.timeout_s == float("inf")]
    gossip = 2  # one that ends, one anew
    refused = STREAMS_PER_PEER_MAX  # they take a moment to part
    at_once = sum(limits.at_once_max for limits in streams) + STREAMS_PER_PEER_MAX
    assert at_once + gossip + refused <= STREAMS_PER_CONNECTION_MAX


def test_a_connection_opens_streams_as_fast_as_all_protocols_let_it():
    assert sum(limits.rate_s for limits in PROTOCOLS.values()) <= OPENED_STREAMS_S
