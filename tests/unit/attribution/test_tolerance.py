"""Tolerances as integers: the same verdict on the same bytes, and the figures of page 60 §9."""

import math
import random

import numpy as np
import pytest
from attribution_kit import sound_rows

from node.attribution.tolerance import (
    Verdict,
    cosine_ppm,
    halves,
    is_alike,
    judge_sketch,
    moved_bps,
)


def turned(row: bytes, cosine: float, seed: int = 1) -> bytes:
    """A row whose halves have about this cosine with those of `row`."""
    noise = sound_rows(1, seed)[0].astype(float).reshape(2, 512)
    own = np.frombuffer(row, np.int8).astype(float).reshape(2, 512)
    unit = own / np.linalg.norm(own, axis=1, keepdims=True)
    noise -= (noise * unit).sum(1, keepdims=True) * unit
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    made = cosine * unit + math.sqrt(1 - cosine**2) * noise
    made *= np.sqrt(512) * 127 / 4
    return np.clip(np.rint(made), -127, 127).astype(np.int8).tobytes()


ROW = sound_rows(1, 5)[0].tobytes()


@pytest.mark.parametrize("cosine", [-1.0, -0.5, 0.0, 0.3, 0.9, 0.98, 0.995, 0.999, 1.0])
def test_cosine_in_millionths_is_the_floats(cosine: float) -> None:
    for one, other in zip(halves(ROW), halves(turned(ROW, cosine)), strict=True):
        a, b = (np.frombuffer(half, np.int8).astype(float) for half in (one, other))
        true = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        assert abs(cosine_ppm(one, other) - true * 1e6) <= 1
        for mille in (900, 980, 995):
            assert is_alike(one, other, mille) == (true >= mille / 1_000)


def test_limit_itself_passes() -> None:
    """4 of 5: a cosine of exactly 0.8."""
    one = bytes([5]) + bytes(511)
    other = bytes([4, 3]) + bytes(510)
    assert cosine_ppm(one, other) == 800_000
    assert is_alike(one, other, 800)
    assert not is_alike(one, other, 801)


def test_zero_and_opposite_halves_are_not_alike() -> None:
    zero, half = bytes(512), ROW[:512]
    opposite = bytes((256 - x) % 256 for x in half)
    assert cosine_ppm(zero, half) == 0
    assert cosine_ppm(half, opposite) == -1_000_000
    assert not is_alike(zero, half, 1)
    assert not is_alike(half, opposite, 1)


@pytest.mark.parametrize(
    ("one", "other", "moved"),
    [
        ((), (), 0),
        (((1, 10_000),), (), 10_000),
        ((), ((1, 10_000),), 10_000),
        (((1, 10_000),), ((2, 10_000),), 10_000),
        (((1, 6_000), (2, 4_000)), ((1, 5_000), (3, 5_000)), 5_000),
        (((1, 6_000), (2, 4_000)), ((1, 6_000), (2, 4_000)), 0),
        (((0, 9_900), (1, 100)), (), 100),
    ],
)
def test_moved_shares_are_what_goes_to_somebody_else(one, other, moved) -> None:
    assert moved_bps(one, other) == moved


@pytest.mark.parametrize(
    ("cosine", "moved", "swing", "dtype", "verdict"),
    [
        (0.999, 50, 0, "fp32", Verdict.PASS),
        (0.999, 51, 0, "fp32", Verdict.SUSPECT),
        (0.99, 0, 0, "fp32", Verdict.SUSPECT),
        (0.99, 300, 0, "bf16", Verdict.PASS),
        (0.99, 301, 0, "bf16", Verdict.SUSPECT),
        (0.95, 0, 0, "bf16", Verdict.SUSPECT),
        (0.88, 0, 0, "bf16", Verdict.FAIL),
        (0.999, 1_500, 0, "fp32", Verdict.SUSPECT),
        (0.999, 1_501, 0, "fp32", Verdict.FAIL),
        (0.0, 0, 0, "fp32", Verdict.FAIL),
        (0.999, 0, 1_500, "fp32", Verdict.PASS),
        (0.999, 0, 1_501, "fp32", Verdict.SUSPECT),
        (0.99, 0, 3_000, "bf16", Verdict.PASS),
        (0.99, 0, 3_001, "bf16", Verdict.SUSPECT),
    ],
)
def test_verdict_is_the_design_pages(cosine, moved, swing, dtype, verdict) -> None:
    assert judge_sketch(ROW, turned(ROW, cosine), moved, swing, dtype) is verdict


def test_one_bad_half_is_enough() -> None:
    good, bad = halves(turned(ROW, 0.999)), halves(turned(ROW, 0.5))
    assert judge_sketch(ROW, good[0] + bad[1], 0, 0, "fp32") is Verdict.FAIL
    assert judge_sketch(ROW, bad[0] + good[1], 0, 0, "bf16") is Verdict.FAIL


def test_judging_does_not_depend_on_the_order() -> None:
    chance = random.Random(1)
    for _ in range(50):
        one, other = (chance.randbytes(512) for _ in range(2))
        assert cosine_ppm(one, other) == cosine_ppm(other, one)
