"""A torn tail is cut, damage is found, whatever byte it starts at."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.storage.frames import CANDIDATES_MAX, FrameFormat, Gap, read_all

LOG = FrameFormat(b"OLBF", has_height=True, payload_bytes_max=1_000)
PAYLOADS = [b"first", b"", b"third" * 20]
WHOLE = b"".join(LOG.encode(7, payload, n) for n, payload in enumerate(PAYLOADS))
ENDS = [sum(LOG.overhead_bytes + len(p) for p in PAYLOADS[: n + 1]) for n in range(3)]


def test_frames_come_back_as_they_were() -> None:
    frames, gaps, end = read_all(LOG, WHOLE)
    assert [(f.kind, f.height, f.payload) for f in frames] == [
        (7, n, payload) for n, payload in enumerate(PAYLOADS)
    ]
    assert (gaps, end) == ([], len(WHOLE))


@pytest.mark.parametrize("tail", [b"", bytes(50)], ids=["cut", "zeroes"])
def test_torn_at_every_byte_leaves_the_whole_frames(tail: bytes) -> None:
    for cut in range(len(WHOLE) + 1):
        frames, gaps, end = read_all(LOG, WHOLE[:cut] + tail)
        assert len(frames) == sum(cut >= e for e in ENDS)
        assert gaps == []
        assert end == (ENDS[len(frames) - 1] if frames else 0)


def test_every_flipped_bit_is_a_gap_or_a_bad_tail() -> None:
    for at in range(len(WHOLE)):
        for bit in range(8):
            data = bytearray(WHOLE)
            data[at] ^= 1 << bit
            frames, gaps, _ = read_all(LOG, bytes(data))
            hit = sum(at >= e for e in ENDS)
            assert [f.height for f in frames] == [n for n in range(3) if n != hit]
            assert len(gaps) == (hit < 2)  # the last one looks torn: nothing follows it


def test_payload_at_its_limit_is_read_and_one_above_is_not() -> None:
    assert len(read_all(LOG, LOG.encode(1, bytes(1_000)))[0]) == 1
    larger = FrameFormat(b"OLBF", has_height=True, payload_bytes_max=1_001)
    assert read_all(LOG, larger.encode(1, bytes(1_001)))[0] == []
    with pytest.raises(AssertionError):
        LOG.encode(1, bytes(1_001))


def test_search_for_a_good_frame_is_bounded_and_then_says_damage() -> None:
    """A peer's bytes inside a torn frame cannot make the start slow, nor pass for a torn tail."""
    data = WHOLE + b"x" + LOG.magic * (CANDIDATES_MAX + 1)
    frames, gaps, end = read_all(LOG, data)
    assert (len(frames), end) == (3, len(WHOLE))
    assert gaps == [Gap(len(WHOLE), gaps[0].stop)]


@given(st.binary(max_size=300), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_scanned_without_an_error(noise: bytes, seed: int) -> None:
    at = random.Random(seed).randrange(len(WHOLE))
    frames, _, end = read_all(LOG, WHOLE[:at] + noise + WHOLE[at:])
    assert end <= len(WHOLE) + len(noise)
    assert all(frame.payload in PAYLOADS or frame.payload in noise for frame in frames)
