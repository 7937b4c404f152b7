"""Noise is a vector that never changes; filters and stops keep their rules at every border."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.serving.engine import Sampling, sampling_hash
from node.serving.sampling import (
    StopFilter,
    allowed,
    choose_plain,
    noise,
    noise_key,
    noise_word,
    unfinished_utf8,
)

SEED = bytes(range(32))
KEY = noise_key(SEED, 0, 7)


def test_noise_vector_of_the_design() -> None:
    assert (hex(KEY[0]), hex(KEY[1])) == ("0xbdeb85df", "0x124574c6")
    assert [noise_word(KEY, token) for token in (0, 1, 999)] == [1643123951, 87046916, 2719816702]


@pytest.mark.parametrize("change", [(bytes(32), 0, 7), (SEED, 1, 7), (SEED, 0, 8)])
def test_noise_depends_on_seed_choice_and_position(change: tuple[bytes, int, int]) -> None:
    assert noise_key(*change) != KEY


def test_noise_has_the_mean_of_gumbel() -> None:
    mean = math.fsum(noise(KEY, token) for token in range(20_000)) / 20_000
    assert abs(mean - 0.5772) < 0.02


def test_sampling_hash_is_promised() -> None:
    whole = Sampling(48, 800, 950, 40, 2, (b"\n", b"END"), 0, 1)
    assert sampling_hash(whole) != sampling_hash(Sampling(48, 800, 950, 40, 2, (b"\n",), 0, 1))
    assert sampling_hash(Sampling(48)).hex() == (
        "24fe165577c18c43d3f1a6cf249846014652547c7a1c7b23dba1a3e8847d2709"
    )


@pytest.mark.parametrize(
    ("top_k", "top_p_milli", "kept"),
    [
        (0, 1_000, {0, 1, 2, 3}),
        (2, 1_000, {0, 1}),
        (0, 1, {0}),
        (0, 400, {0}),  # exactly the mass of the first
        (0, 401, {0, 1}),
        (0, 700, {0, 1}),
        (0, 701, {0, 1, 2}),
        (1, 999, {0}),
    ],
)
def test_filters_keep_the_smallest_prefix(top_k: int, top_p_milli: int, kept: set[int]) -> None:
    masses = [0.4000001, 0.3, 0.2, 0.0999999]
    assert allowed([math.log(mass) for mass in masses], top_k, top_p_milli) == kept


def test_filters_prefer_the_lower_id_of_equals() -> None:
    assert allowed([1.0, 2.0, 2.0, 2.0], 2, 1_000) == {1, 2}


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    assert choose_plain([0.0, 3.0, 3.0], Sampling(1), None) == 1


@pytest.mark.ml
def test_tensor_twin_equals_the_plain_rule() -> None:
    torch = pytest.importorskip("torch")
    from node.serving.sampling import choose, noise_words, selftest

    selftest("cpu")
    words = noise_words([KEY], torch.arange(50_000, dtype=torch.int32))[0].tolist()
    assert [w & 0xFFFFFFFF for w in words] == [noise_word(KEY, t) for t in range(50_000)]
    rng = random.Random(2)
    rows, samplings, keys = [], [], []
    for number in range(60):
        rows.append([rng.gauss(0, 3) for _ in range(97)])
        heat = rng.choice((0, 200, 1_000, 2_000))
        samplings.append(Sampling(1, heat, rng.choice((1_000, 900, 300)), rng.choice((0, 1, 5))))
        keys.append(noise_key(SEED, number, 0) if heat else None)
    logits = torch.tensor(rows, dtype=torch.float32)
    plain = [
        choose_plain(row, sampling, key)
        for row, sampling, key in zip(logits.tolist(), samplings, keys, strict=True)
    ]
    assert choose(logits, samplings, keys).tolist() == plain


@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=4), max_size=4), st.data())
def test_stops_do_not_depend_on_where_tokens_break(
    text: str, stop_texts: list[str], data: st.DataObject
) -> None:
    raw, stops = text.encode(), [stop.encode() for stop in stop_texts]
    keeper, shown, at = StopFilter(stops), b"", 0
    stopped = False
    while at < len(raw) and not stopped:
        size = data.draw(st.integers(1, 5))
        piece, stopped = keeper.push(raw[at : at + size])
        shown += piece
        assert not unfinished_utf8(shown) or stopped
        at += size
    if not stopped:
        shown += keeper.flush()
        assert shown == raw
        assert not any(stop in raw for stop in stops)
    else:
        assert raw.startswith(shown)
        assert not any(stop in shown for stop in stops)
        assert any(stop in raw[:at] for stop in stops)


def test_held_text_is_less_than_the_longest_stop() -> None:
    keeper = StopFilter([b"abcd"])
    assert keeper.push(b"xxabc") == (b"xx", False)
    assert keeper.push(b"z") == (b"a", False)
    assert keeper.flush() == b"bcz"


@pytest.mark.parametrize(
    ("text", "held"),
    [(b"", 0), (b"a", 0), ("é".encode(), 0), ("é".encode()[:1], 1), ("😀".encode()[:3], 3),
     ("😀".encode(), 0), (b"\x80\x80\x80\x80", 0), (b"a\xe2\x82", 2)],
)  # fmt: skip
def test_unfinished_characters_are_counted(text: bytes, held: int) -> None:
    assert unfinished_utf8(text) == held
