"""Answers run again: what was chosen honestly has no margin, whatever the filters."""

import random

import pytest

from node.serving.engine import (
    AdapterRef,
    BadSampling,
    EngineSettings,
    GenRequest,
    Overloaded,
    Sampling,
    ScoreItem,
    TooLong,
    UnknownAdapter,
)
from node.serving.sampling import choose_plain, noise_key

pytestmark = pytest.mark.ml

SEED = bytes(range(32))


@pytest.fixture(scope="module")
def core(tiny_base):
    from node.serving.slots import SlotCore

    return SlotCore(EngineSettings(str(tiny_base), rows=8))


def generate(core, **fields):
    """(ids, logprobs, fingerprints) of one request, alone."""
    prompt = tuple(random.Random(3).randrange(256) for _ in range(20))
    sampling = Sampling(**{"max_tokens": 40, "flags": 1, **fields.pop("sampling", {})})
    request = GenRequest(b"r", b"t", fields.get("adapter"), prompt, sampling, SEED)
    core.submit(request)
    tokens = []
    while core.live:
        tokens += [event for _, event in core.step() if hasattr(event, "id")]
    return request, tokens


def score(core, *items):
    core.add_scores(1, items)
    made = []
    while len(made) < len(items):
        core.step()
        made += core.made()
    return [one for _, _, one in sorted(made, key=lambda entry: entry[1])]


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature_milli": 800},
        {"temperature_milli": 1_000, "top_k": 5},
        {"temperature_milli": 1_300, "top_p_milli": 700},
        {"temperature_milli": 1_000, "top_k": 20, "top_p_milli": 900},
    ],
)
@pytest.mark.parametrize("rank", [0, 8, 32])
def test_honest_answer_has_no_margin_and_its_own_logprobs(core, make_adapter, sampling, rank):
    adapter = None
    if rank:
        adapter, folder = make_adapter(5, rank)
        core.load(AdapterRef(adapter, folder))
    request, tokens = generate(core, adapter=adapter, sampling=sampling)
    ids = tuple(token.id for token in tokens)
    (found,) = score(core, ScoreItem(adapter, request.prompt, ids, request.sampling, SEED, 0, 1e-3))
    assert max(found.margins) < 1e-3
    assert found.logprobs == pytest.approx([token.logprob for token in tokens], abs=1e-4)
    assert len(found.fingerprints) == 3
    assert core.stats().scored > 0


def test_margin_tells_another_token_temperature_choice_and_seed(core):
    request, tokens = generate(core, sampling={"temperature_milli": 1_000, "n": 2})
    ids = tuple(token.id for token in tokens if token.choice == 1)
    right = ScoreItem(None, request.prompt, ids, request.sampling, SEED, 1, 1e-3)
    wrong = [
        ScoreItem(None, request.prompt, ids, request.sampling, SEED, 0, 1e-3),
        ScoreItem(None, request.prompt, ids, request.sampling, bytes(32), 1, 1e-3),
        ScoreItem(None, request.prompt, ids, Sampling(40, temperature_milli=1_500), SEED, 1, 1e-3),
        ScoreItem(
            None,
            request.prompt,
            (*ids[:7], (ids[7] + 1) % 256, *ids[8:]),
            request.sampling,
            SEED,
            1,
            1e-3,
        ),
    ]
    good, *bad = score(core, right, *wrong)
    assert max(good.margins) < 1e-3
    assert all(max(one.margins) > 0.1 for one in bad)


def test_token_outside_a_filter_is_as_far_off_as_it_stands_below_the_edge(core):
    import torch

    from node.serving.scoring import margins

    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    top_2 = Sampling(4, temperature_milli=1_000, top_k=2)
    keys = [noise_key(SEED, 0, 0)]
    (outside,) = margins(logits, torch.tensor([3]), top_2, keys, 1e-3).tolist()
    assert outside >= 2.0
    inside = choose_plain(logits[0].tolist(), top_2, keys[0])
    assert margins(logits, torch.tensor([inside]), top_2, keys, 1e-3).tolist() == [0.0]


def test_rival_at_the_edge_does_not_count(core):
    """Which of two equal logits top_k keeps is rounding: neither choice may be held against."""
    import torch

    from node.serving.scoring import margins

    logits = torch.tensor([[1.0, 0.5, 0.5 + 1e-6, -9.0]])
    for position in range(40):
        keys = [noise_key(SEED, 0, position)]
        sampling = Sampling(4, temperature_milli=1_000, top_k=2)
        chosen = choose_plain(logits[0].tolist(), sampling, keys[0])
        other = choose_plain(logits[0, [0, 2, 1, 3]].tolist(), sampling, keys[0])
        for token in {chosen, other}:
            if token in (1, 2):
                (found,) = margins(logits, torch.tensor([token]), sampling, keys, 1e-3).tolist()
                assert found < 1e-3


def test_many_positions_are_scored_in_parts(core, monkeypatch):
    from node.serving import scoring

    request, tokens = generate(core, sampling={"temperature_milli": 900})
    item = ScoreItem(None, request.prompt, tuple(t.id for t in tokens), request.sampling, SEED)
    (whole,) = score(core, item)
    monkeypatch.setattr(scoring, "POSITIONS_AT_ONCE", 7)
    (parts,) = score(core, item)
    assert parts == whole
    monkeypatch.setattr(scoring, "LOGITS_BYTES_MAX", 0)  # six forwards of seven tokens
    (parts,) = score(core, item)
    assert parts.logprobs == pytest.approx(whole.logprobs, abs=1e-5)
    assert len(parts.fingerprints) == len(whole.fingerprints) == 3
    for mine, other in zip(parts.fingerprints, whole.fingerprints, strict=True):
        assert mine == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"prompt": ()}, BadSampling),
        ({"prompt": (100_000,)}, BadSampling),
        ({"answer": (-1,)}, BadSampling),
        ({"answer": (1,) * 300}, TooLong),
        ({"choice": 8}, BadSampling),
        ({"seed": b"short"}, BadSampling),
        ({"seed": None}, BadSampling),
        ({"adapter": bytes(32)}, UnknownAdapter),
        ({"sampling": Sampling(0)}, BadSampling),
    ],
)
def test_what_cannot_be_scored_is_refused_and_nothing_is_kept(core, fields, error):
    good = {
        "adapter": None,
        "prompt": (1, 2),
        "answer": (3,),
        "sampling": Sampling(4, temperature_milli=1_000),
        "seed": SEED,
    }
    with pytest.raises(error):
        core.add_scores(1, [ScoreItem(**good), ScoreItem(**{**good, **fields})])
    assert core.stats().gradients_waiting == 0


def test_full_queue_refuses(core):
    from node.serving.background import QUEUED_MAX

    item = ScoreItem(None, (1,), (2,), Sampling(4))
    with pytest.raises(Overloaded):
        core.add_scores(1, [item] * (QUEUED_MAX + 1))
    assert score(core, ScoreItem(None, (1,), (), Sampling(4)))[0].logprobs == ()
