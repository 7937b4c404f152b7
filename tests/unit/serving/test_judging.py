"""Honest answers PASS whatever they were batched with; each way to cheat is found."""

from dataclasses import replace
from pathlib import Path

import pytest
from cheats_kit import changed_adapter, coarse_base, cut_rank, forge
from judging_kit import Asked, Auditor, Told, manifest_of, questions, sampling_of, serve

from consensus.primitives.errors import Invalid
from node.ledger.wire.orders import PAYER_SEEDED, REMOTE_OK, encode_order, encode_sampling, pack_ids
from node.ledger.wire.receipts import PARTIAL, answer_root
from node.serving import verify
from node.serving.engine import AdapterRef, EngineSettings, Score, Token
from node.serving.judging import (
    TABLE,
    Bound,
    Finding,
    Served,
    Vocabulary,
    bounds_of,
    check_answer,
    items_of,
    measure,
    read_claims,
)

pytestmark = pytest.mark.ml

ANSWERS = 12


def core_of(folder: Path, **settings):
    from node.serving.slots import SlotCore

    return SlotCore(EngineSettings(str(folder), rows=16, **settings))


@pytest.fixture(scope="module")
def adapter(make_adapter):
    return make_adapter(11)


@pytest.fixture(scope="module")
def provider(tiny_base, adapter, make_adapter):
    core = core_of(tiny_base)
    for hash, folder in (adapter, make_adapter(12)):
        core.load(AdapterRef(hash, folder))
    return core


@pytest.fixture(scope="module")
def auditor(tiny_base, adapter):
    core = core_of(tiny_base)
    core.load(AdapterRef(*adapter))
    return Auditor(core, manifest_of(core.info.base, adapter[0]))


# --- honest


@pytest.mark.parametrize("batch", [1, 12])
@pytest.mark.parametrize("threads", [1, 2])
def test_honest_answers_pass_in_any_batch_and_with_any_threads(
    provider, auditor, adapter, batch, threads
):
    import torch

    torch.set_num_threads(threads)
    try:
        asked = questions(ANSWERS, top_p_milli=950)
        told = [
            one
            for at in range(0, len(asked), batch)
            for one in serve(provider, asked[at : at + batch], adapter[0])
        ]
    finally:
        torch.set_num_threads(1)
    for one in told:
        assert auditor.judge(one).finding is Finding.PASS


def test_greedy_answers_stops_and_choices_pass(provider, auditor, adapter):
    for sampling in (
        {"temperature_milli": 0, "flags": 0},
        {"n": 3, "stop": (b"e", b"\xff\xfe")},
        {"top_k": 3},
    ):
        for one in serve(provider, questions(3, **sampling), adapter[0]):
            assert auditor.judge(one).finding is Finding.PASS


async def test_whole_check_asks_an_engine_once(provider, auditor, adapter):
    (told,) = serve(provider, questions(1), adapter[0])
    asked = []

    async def score(items):
        asked.append(len(items))
        served = read_claims(told.receipt, told.evidence, auditor.manifest, auditor.vocabulary)
        return auditor.scores(served)

    parts = auditor.manifest, auditor.vocabulary, score
    found = await check_answer(told.receipt, told.evidence, *parts)
    assert (found.finding, found.why, asked) == (Finding.PASS, (), [1])
    lie = told.receipt._replace(tokens_out=3)
    found = await check_answer(lie, told.evidence, *parts)
    assert (found.finding, found.why, found.measures) == (Finding.FAIL, ("answer.counts",), None)
    assert asked == [1], "what is false by itself is not run"


def test_answers_are_judged_by_the_class_that_their_version_pins(smooth_base, adapter):
    """A bf16 version's may be computed in either class, a fp32 version's not in bf16. (A model of
    width 32 is so small that fp32 is SUSPECT to a bf16 auditor by its fingerprints; never FAIL.)"""
    cores = {name: core_of(smooth_base, dtype_class=name) for name in ("fp32", "bf16")}
    for core in cores.values():
        core.load(AdapterRef(*adapter))
    base = cores["fp32"].info.base
    findings = {}
    for pinned, judge_core in cores.items():
        judge = Auditor(judge_core, manifest_of(base, adapter[0], dtype=pinned))
        for computed, core in cores.items():
            told = serve(core, questions(8), adapter[0])
            judged = [judge.judge(one.changed(dtype_class=pinned.encode())) for one in told]
            findings[pinned, computed] = {one.finding for one in judged}
            if computed == "fp32":
                assert {why for one in judged for why in one.why} <= {"fingerprint"}
    assert findings["fp32", "fp32"] == findings["bf16", "bf16"] == {Finding.PASS}
    assert findings["fp32", "bf16"] == {Finding.FAIL}
    assert Finding.FAIL not in findings["bf16", "fp32"]


async def test_records_before_a_prompt_are_run_again_with_it(provider, auditor, adapter):
    """Whoever holds the texts knows what the engine read; without them the answer is another's."""
    (asked,) = questions(1, temperature_milli=0, flags=0)
    before = tuple(b"[1] Belnis is amber.\n")
    provider.submit(replace(asked.request(0, adapter[0]), prompt=before + asked.tokens))
    tokens, finish = [], None
    while finish is None:
        for _, event in provider.step():
            if isinstance(event, Token):
                tokens.append(event)
            else:
                finish = event
    told = asked.told(provider.info, adapter[0], tokens, finish)

    async def score(items):
        return auditor.run(items)

    parts = told.receipt, told.evidence, auditor.manifest, auditor.vocabulary, score
    found = await check_answer(*parts, lambda prompt, max_out: (*before, *prompt))
    assert found.finding is Finding.PASS
    assert (await check_answer(*parts)).finding is Finding.FAIL


def test_records_are_looked_up_by_the_orders_length():
    """As the provider did: with two choices it is twice that of each."""
    asked = Asked((5, 6, 7), sampling_of(n=2, max_tokens=4, temperature_milli=0))
    evidence = verify.Evidence(1, b"", b"", b"", b"", b"", b"", b"", b"", b"", ())
    served = Served(evidence, asked.order, asked.sampling, asked.tokens, ((1, 2), (3,)))
    rooms = []

    def retrieve(prompt, max_out):
        rooms.append(max_out)
        return (9, *prompt)

    items = items_of(served, TABLE["fp32"], retrieve)
    assert ([item.prompt for item in items], rooms) == ([(9, 5, 6, 7)] * 2, [8])


# --- cheats with other weights, told as the true ones


def caught(auditor: Auditor, told: list[Told]) -> float:
    """The share found by one receipt alone."""
    return sum(auditor.judge(one).finding is Finding.FAIL for one in told) / len(told)


def claim(auditor: Auditor, adapter) -> tuple[object, bytes]:
    return auditor.core.info, adapter[0]


def test_answers_without_the_adapter_or_of_another_fail(provider, auditor, adapter, make_adapter):
    for served_with in (None, make_adapter(12)[0]):
        told = serve(provider, questions(6), served_with, claimed=claim(auditor, adapter))
        assert caught(auditor, told) == 1


def test_newer_adapters_and_lower_ranks_fail(provider, auditor, adapter, tmp_path):
    import torch

    torch.manual_seed(1)

    def newer(a, b):
        return a, b + 0.01 * b.abs().mean() * torch.randn_like(b)

    for number, change in enumerate((newer, cut_rank(4), cut_rank(7))):
        ref = changed_adapter(Path(adapter[1]), tmp_path / str(number), change)
        provider.load(ref)
        told = serve(provider, questions(6), ref.hash, claimed=claim(auditor, adapter))
        assert caught(auditor, told) == 1


@pytest.fixture(scope="module")
def cheap_core(tiny_base, adapter, tmp_path_factory):
    """The same base at four bits a weight."""
    core = core_of(coarse_base(tiny_base, tmp_path_factory.mktemp("int4") / "base", bits=4))
    core.load(AdapterRef(*adapter))
    return core


def test_cheaper_base_fails(cheap_core, auditor, adapter):
    told = serve(cheap_core, questions(6), adapter[0], claimed=claim(auditor, adapter))
    assert caught(auditor, told) == 1


def test_tokens_of_a_cheaper_base_are_found_though_all_else_is_forged(cheap_core, auditor, adapter):
    """Log-probabilities and fingerprints can be forged by one true forward; the tokens cannot."""
    told = serve(cheap_core, questions(ANSWERS), adapter[0], claimed=claim(auditor, adapter))
    forged = [forge(auditor, one) for one in told]
    for one in forged:
        judged = auditor.judge(one)
        assert set(judged.why) <= {"margin"}
    assert any(auditor.judge(one).finding is Finding.FAIL for one in forged)


# --- cheats with the true weights


def test_another_temperature_fails(provider, auditor, adapter):
    told = serve(provider, questions(6), adapter[0], temperature_milli=1_250)
    assert caught(auditor, told) == 1


def test_altered_token_fails(provider, auditor, adapter):
    for one in serve(provider, questions(4), adapter[0]):
        evidence = verify.decode_evidence(one.evidence)
        (choice,) = evidence.choices
        ids = bytearray(choice.ids)
        ids[20 * 4 + 3] ^= 1
        answers = [[int.from_bytes(ids[at : at + 4], "big") for at in range(0, len(ids), 4)]]
        salt = bytes(16)
        root = answer_root(salt, evidence.payer_nonce, evidence.provider_nonce, answers)
        lie = replace(one, receipt=one.receipt._replace(answer_root=root))
        judged = auditor.judge(lie.changed(choices=(choice._replace(ids=bytes(ids)),)))
        assert judged.finding is Finding.FAIL
        assert "margin" in judged.why


# --- claims that need no model

VOCABULARY = Vocabulary([bytes([n]) for n in range(256)], frozenset({10}))


@pytest.fixture(scope="module")
def honest(provider, adapter) -> Told:
    (told,) = serve(provider, questions(1, max_tokens=20), adapter[0])
    return told


def refusal(told: Told, auditor: Auditor, vocabulary: Vocabulary | None = None) -> str:
    with pytest.raises(Invalid) as refused:
        read_claims(told.receipt, told.evidence, auditor.manifest, vocabulary or auditor.vocabulary)
    return str(refused.value.code)


def test_false_claims_are_refused_by_name(honest, auditor):
    evidence = verify.decode_evidence(honest.evidence)
    (choice,) = evidence.choices
    receipt = honest.receipt
    other = bytes([1]) * 32
    cold = encode_sampling(sampling_of(temperature_milli=1, max_tokens=20, flags=1))
    order = evidence.order[:-1] + b"\x01"
    told = [
        (replace(honest, receipt=receipt._replace(fingerprint_hash=other)), "answer.evidence"),
        (honest.changed(order=order), "answer.order"),
        (replace(honest, receipt=receipt._replace(model=2)), "answer.order"),
        (honest.changed(base=other), "answer.weights"),
        (honest.changed(adapter=b""), "answer.weights"),
        (honest.changed(dtype_class=b"bf16"), "answer.weights"),
        (honest.changed(sampling=cold), "answer.sampling"),
        (honest.changed(prompt=pack_ids((1, 2))), "answer.prompt"),
        (honest.changed(prompt=b"abc"), "answer.tokens"),
        (honest.changed(payer_nonce=other), "answer.seed"),
        (honest.changed(provider_nonce=other), "answer.root"),
        (replace(honest, receipt=receipt._replace(tokens_out=19)), "answer.counts"),
        (honest.changed(choices=(choice, choice)), "answer.counts"),
        (honest.changed(choices=(choice._replace(logprobs=b""),)), "answer.tokens"),
        (honest.changed(choices=(choice._replace(fingerprints=b""),)), "answer.tokens"),
        (honest.changed(choices=(choice._replace(reason=0),)), "answer.stop"),
        (honest.changed(choices=(choice._replace(reason=2),)), "answer.stop"),
    ]
    assert [refusal(one, auditor) for one, _ in told] == [code for _, code in told]


def test_answer_must_end_where_the_rules_end_it(provider, auditor, adapter):
    (told,) = serve(provider, questions(1, max_tokens=20, flags=0), adapter[0])
    (choice,) = verify.decode_evidence(told.evidence).choices
    ids = [int.from_bytes(choice.ids[at : at + 4], "big") for at in range(0, len(choice.ids), 4)]
    pieces = auditor.vocabulary.pieces
    went_on = Vocabulary(pieces, frozenset({ids[3]}))
    assert refusal(told, auditor, went_on) == "answer.stop"
    cut = told.changed(choices=(choice._replace(reason=verify.REASONS.index("cancelled")),))
    partial = replace(cut, receipt=cut.receipt._replace(status=PARTIAL))
    read_claims(partial.receipt, partial.evidence, auditor.manifest, auditor.vocabulary)


def test_seed_of_a_payer_is_the_payers_alone(provider, auditor, adapter):
    asked = [
        replace(one, flags=PAYER_SEEDED, provider_nonce=nonce)
        for one, nonce in zip(questions(2), (bytes(32), bytes([1]) * 32), strict=True)
    ]
    good, bad = serve(provider, asked, adapter[0])
    assert auditor.judge(good).finding is Finding.PASS
    assert refusal(bad, auditor) == "answer.seed"


def test_order_is_the_payers_own_bytes(honest):
    assert (
        encode_order(questions(1, max_tokens=20)[0].order)
        == verify.decode_evidence(honest.evidence).order
    )


def test_answers_of_a_remote_engine_pass_where_the_order_allows_them(provider, auditor, adapter):
    """No fingerprints, and at a temperature none of our noise: what is left is still checked."""
    cold, *_ = serve(provider, questions(1, temperature_milli=0), adapter[0])
    hot, loose = (
        serve(provider, [replace(questions(1)[0], flags=flags)], adapter[0], temperature_milli=900)
        for flags in (0, REMOTE_OK)
    )
    bare = [without_fingerprints(one) for one in (cold, *loose)]
    assert [auditor.judge(one).finding for one in bare] == [Finding.PASS, Finding.PASS]
    assert refusal(without_fingerprints(hot[0]), auditor) == "answer.tokens"
    other = serve(provider, [replace(questions(1)[0], flags=REMOTE_OK)], None)
    lie = other[0].changed(adapter=adapter[0])
    assert auditor.judge(without_fingerprints(lie)).why == ("logprob",)


def without_fingerprints(told: Told) -> Told:
    (choice,) = verify.decode_evidence(told.evidence).choices
    return told.changed(choices=(choice._replace(fingerprints=b""),))


# --- measures and bounds


def test_bounds_of_a_manifest_go_before_the_table(auditor):
    manifest = auditor.manifest
    assert bounds_of(manifest) is TABLE["fp32"]
    calibrated = manifest._replace(thresholds=((0, 1_000, 2_000, 3, 4, 5, 6),))
    assert bounds_of(calibrated).margin == Bound(pytest.approx(0.001), pytest.approx(0.002))
    assert bounds_of(calibrated._replace(dtype_class=1)) is TABLE["bf16"]


@pytest.mark.parametrize(
    ("measured", "finding"),
    [
        (0.0, Finding.PASS),
        (1.0, Finding.PASS),
        (1.01, Finding.SUSPECT),
        (2.0, Finding.SUSPECT),
        (2.01, Finding.FAIL),
        (float("inf"), Finding.FAIL),
        (float("nan"), Finding.FAIL),
    ],
)
def test_bound_sorts_a_measure(measured, finding):
    assert Bound(1.0, 2.0).finding(measured) is finding


def test_wild_token_does_not_decide_the_mean_and_zero_fingerprints_are_far(honest):
    (choice,) = verify.decode_evidence(honest.evidence).choices
    one = choice._replace(ids=bytes(4), logprobs=bytes(4), fingerprints=bytes(32))
    found = measure(one, Score((-100.0,), (0.0,), ((1.0,) * 8,)))
    assert found.logprob == 4.0
    assert found.fingerprint == 1.0
    nothing = one._replace(ids=b"", logprobs=b"", fingerprints=b"")
    assert measure(nothing, Score((), (), ())) == (0.0, 0.0, 0.0)
