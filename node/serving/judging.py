"""The judgement of one answer by running it again: PASS, SUSPECT or FAIL, and why.

Why two kinds of checks: what can be known exactly (hashes, counts, where an answer had to stop) is
wrong or right; what two machines compute with other rounding is measured and compared with what
honest machines were seen to differ by. Why three measures: a provider that makes tokens with
cheaper weights can forge log-probabilities and fingerprints afterwards by one true forward, but
not the tokens; one that changes a weight a little is seen in the other two first (page 50 §8).
What this file does not know: torch, who is audited, what a finding costs.
"""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import IntEnum
from statistics import mean, median
from types import MappingProxyType
from typing import Final, NamedTuple

from consensus.primitives.errors import Invalid
from node.ledger.wire.orders import (
    PAYER_SEEDED,
    REMOTE_OK,
    ZERO_HASH,
    Order,
    OrderSampling,
    decode_order,
    decode_sampling,
    order_hash,
    prompt_commit,
    seed_commit,
)
from node.ledger.wire.receipts import COMPLETE, Receipt, answer_root
from node.serving.engine import (
    FINGERPRINT_STRIDE,
    FINGERPRINT_UNIT,
    FINGERPRINT_WIDTH,
    IGNORE_EOS,
    LOGPROB_UNIT,
    Sampling,
    Score,
    ScoreItem,
)
from node.serving.manifest import Manifest
from node.serving.sampling import StopFilter, joint_seed
from node.serving.verify import REASONS, ChoiceEvidence, Evidence, decode_evidence, fingerprint_hash

LOGPROB_CLAMP: Final = 4.0  # nats: one wild token must not decide a mean
_MILLIONTH: Final = 1e-6
_I32_BYTES: Final = 4


class Finding(IntEnum):
    """What is thought of an answer; of several the worst counts."""

    PASS = 0
    SUSPECT = 1
    FAIL = 2


class Bound(NamedTuple):
    """Above `suspect` a measure is SUSPECT, above `fail` it is FAIL."""

    suspect: float
    fail: float

    def finding(self, measured: float) -> Finding:
        """Of one measure; no number at all is FAIL."""
        if not measured <= self.fail:
            return Finding.FAIL
        return Finding.SUSPECT if measured > self.suspect else Finding.PASS


class Bounds(NamedTuple):
    """Of the greatest margin (nats), the mean log-probability difference (nats), and the median
    relative distance of fingerprints."""

    margin: Bound
    logprob: Bound
    fingerprint: Bound


TABLE: Final[Mapping[str, Bounds]] = MappingProxyType(
    {  # page 50 §8: above every honest run that was measured
        "fp32": Bounds(Bound(1e-3, 1e-2), Bound(1e-4, 1e-3), Bound(1e-4, 1e-3)),
        "bf16": Bounds(Bound(0.11, 0.5), Bound(0.015, 0.075), Bound(0.0125, 0.06)),
    }
)


class Measures(NamedTuple):
    """How far an answer is from what it should be, as `Bounds` bound it."""

    margin: float
    logprob: float
    fingerprint: float


class Judgement(NamedTuple):
    """`why`: the words of what is not PASS; `measures` of the worst choice, none before a run."""

    finding: Finding
    why: tuple[str, ...]
    measures: Measures | None


class Served(NamedTuple):
    """An answer as its receipt and evidence claim it, once both agree."""

    evidence: Evidence
    order: Order
    sampling: OrderSampling
    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


class Vocabulary(NamedTuple):
    """What the base's tokenizer says: the bytes of each token id, and which ids end an answer."""

    pieces: Sequence[bytes]
    ends: frozenset[int]


def bounds_of(manifest: Manifest) -> Bounds:
    """A version's own calibrated thresholds, or the table of page 50 §8."""
    for row in manifest.thresholds:
        if row[0] == manifest.dtype_class:
            values = [value * _MILLIONTH for value in row[1:]]
            return Bounds(Bound(*values[:2]), Bound(*values[2:4]), Bound(*values[4:]))
    return TABLE[manifest.dtype_word]


def may_be_remote(order: Order, sampling: OrderSampling) -> bool:
    """Whether the order lets an engine answer that has neither our noise nor fingerprints."""
    return not sampling.temperature_milli or bool(order.flags & REMOTE_OK)


Retrieve = Callable[[Sequence[int], int], Sequence[int]]  # of prompt, and the order's max_out


def nothing_retrieved(prompt: Sequence[int], max_out: int) -> Sequence[int]:
    """Of a version that cites nothing: the engine read the prompt as it is."""
    return prompt


# --- what is exact


def read_claims(
    receipt: Receipt, evidence_raw: bytes, manifest: Manifest, vocabulary: Vocabulary
) -> Served:
    """What was served, if the evidence is the receipt's and keeps every rule that needs no model.

    Raises Invalid `answer.evidence`, `.order`, `.weights`, `.sampling`, `.prompt`, `.seed`,
    `.counts`, `.root`, `.tokens`, `.stop`, in this order: each of them is FAIL.
    """
    if fingerprint_hash(evidence_raw) != receipt.fingerprint_hash:
        raise Invalid("answer.evidence", why="another hash")
    try:
        evidence = decode_evidence(evidence_raw)
        order = decode_order(evidence.order)
        sampling = decode_sampling(evidence.sampling)
    except Invalid as error:
        raise Invalid("answer.evidence", why=error.code) from None
    ordered = (order_hash(evidence.order), order.model, order.model_version)
    if ordered != (receipt.order_hash, receipt.model, receipt.model_version):
        raise Invalid("answer.order")
    weights = (manifest.base, manifest.adapter, manifest.dtype_word.encode())
    if (evidence.base, evidence.adapter, evidence.dtype_class) != weights:
        raise Invalid("answer.weights")
    if fingerprint_hash(evidence.sampling) != order.sampling_hash:
        raise Invalid("answer.sampling")
    answers = tuple(_ids(choice.ids) for choice in evidence.choices)
    served = Served(evidence, order, sampling, _ids(evidence.prompt), answers)
    _check_commitments(served, receipt)
    for choice, ids in zip(evidence.choices, answers, strict=True):
        _check_choice(served, choice, ids, vocabulary)
    _check_status(receipt, evidence)
    return served


def _check_commitments(served: Served, receipt: Receipt) -> None:
    order, evidence = served.order, served.evidence
    if prompt_commit(order.salt16, served.prompt) != order.prompt_commit:
        raise Invalid("answer.prompt")
    if served.sampling.temperature_milli:
        is_own = order.flags & PAYER_SEEDED and evidence.provider_nonce != ZERO_HASH
        if seed_commit(evidence.payer_nonce) != order.seed_commit or is_own:
            raise Invalid("answer.seed")
    counts = len(served.prompt), sum(map(len, served.answers)), len(served.answers)
    if counts != (receipt.tokens_in, receipt.tokens_out, served.sampling.n):
        raise Invalid("answer.counts")
    nonces = evidence.payer_nonce, evidence.provider_nonce
    if answer_root(order.salt16, *nonces, served.answers) != receipt.answer_root:
        raise Invalid("answer.root")


def _check_choice(
    served: Served, choice: ChoiceEvidence, ids: Sequence[int], vocabulary: Vocabulary
) -> None:
    """As many values as tokens, and an end where the rules put it: neither earlier nor later."""
    marks = -(-len(ids) // FINGERPRINT_STRIDE)
    sizes = {_I32_BYTES * FINGERPRINT_WIDTH * marks}
    if may_be_remote(served.order, served.sampling):
        sizes.add(0)
    if len(choice.logprobs) != _I32_BYTES * len(ids) or len(choice.fingerprints) not in sizes:
        raise Invalid("answer.tokens", why="lengths")
    if any(token >= len(vocabulary.pieces) for token in (*ids, *served.prompt)):
        raise Invalid("answer.tokens", why="vocabulary")
    if len(ids) > served.sampling.max_tokens:
        raise Invalid("answer.stop", why="too long")
    stopped_at = _stop_of(ids, served.sampling, vocabulary)
    reason = REASONS[choice.reason]
    if stopped_at is not None and stopped_at < len(ids):
        raise Invalid("answer.stop", why="went on")
    if reason == "stop" and stopped_at is None:
        raise Invalid("answer.stop", why="no stop")
    if reason == "length" and (len(ids) != served.sampling.max_tokens or stopped_at is not None):
        raise Invalid("answer.stop", why="not that long")


def _stop_of(ids: Sequence[int], sampling: OrderSampling, vocabulary: Vocabulary) -> int | None:
    """After how many tokens the answer had to stop, or None."""
    text = StopFilter(sampling.stop)
    for place, token in enumerate(ids):
        is_end = token in vocabulary.ends and not sampling.flags & IGNORE_EOS
        if text.push(vocabulary.pieces[token])[1] or is_end:
            return place + 1
    return None


def _check_status(receipt: Receipt, evidence: Evidence) -> None:
    """Who says complete must have ended by itself."""
    natural = {REASONS.index("stop"), REASONS.index("length")}
    is_whole = all(choice.reason in natural for choice in evidence.choices)
    if receipt.status == COMPLETE and not is_whole:
        raise Invalid("answer.stop", why="cut short")


# --- what is measured


def items_of(
    served: Served, bounds: Bounds, retrieve: Retrieve = nothing_retrieved
) -> list[ScoreItem]:
    """What an engine is asked to run again, one for each choice.

    `retrieve` gives what the engine read in place of the prompt: of a version whose mix has
    citations, whoever holds its records knows it.
    """
    evidence, sampling = served.evidence, served.sampling
    seed = None
    if sampling.temperature_milli:
        nonces = evidence.payer_nonce, evidence.provider_nonce
        seed = joint_seed(order_hash(evidence.order), *nonces)
    asked = Sampling(
        sampling.max_tokens,
        sampling.temperature_milli,
        sampling.top_p_milli,
        sampling.top_k,
        sampling.n,
        sampling.stop,
        flags=sampling.flags,
    )
    adapter = evidence.adapter or None
    prompt = tuple(retrieve(served.prompt, served.order.max_out))
    return [
        ScoreItem(adapter, prompt, ids, asked, seed, place, bounds.margin.suspect)
        for place, ids in enumerate(served.answers)
    ]


def measure(choice: ChoiceEvidence, score: Score) -> Measures:
    """One choice against the auditor's own run of it; zeros for one without a token, and for
    fingerprints that were not made."""
    told = [value / LOGPROB_UNIT for value in _signed(choice.logprobs)]
    marks = [value / FINGERPRINT_UNIT for value in _signed(choice.fingerprints)]
    away = [
        min(abs(mine - theirs), LOGPROB_CLAMP) if math.isfinite(mine) else LOGPROB_CLAMP
        for mine, theirs in zip(score.logprobs, told, strict=True)
    ]
    distances = [
        _distance(mine, marks[place * FINGERPRINT_WIDTH : (place + 1) * FINGERPRINT_WIDTH])
        for place, mine in enumerate(score.fingerprints if marks else ())
    ]
    return Measures(
        max(score.margins, default=0.0),
        mean(away) if away else 0.0,
        median(distances) if distances else 0.0,
    )


def judge(served: Served, scores: Sequence[Score], bounds: Bounds) -> Judgement:
    """The worst finding over choices and measures.

    Where the payer took an answer without our noise, its tokens were drawn as nobody can repeat.
    """
    measured = [
        measure(choice, score)
        for choice, score in zip(served.evidence.choices, scores, strict=True)
    ]
    worst = Measures(*(max(values) for values in zip(*measured, strict=True)))
    if served.order.flags & REMOTE_OK and served.sampling.temperature_milli:
        worst = worst._replace(margin=0.0)
    findings = {
        name: bound.finding(value)
        for name, bound, value in zip(Measures._fields, bounds, worst, strict=True)
    }
    why = tuple(name for name, finding in findings.items() if finding is not Finding.PASS)
    return Judgement(max(findings.values()), why, worst)


async def check_answer(
    receipt: Receipt,
    evidence_raw: bytes,
    manifest: Manifest,
    vocabulary: Vocabulary,
    score: Callable[[Sequence[ScoreItem]], Awaitable[Sequence[Score]]],
    retrieve: Retrieve = nothing_retrieved,
) -> Judgement:
    """All of it; `score` is `Engine.score` of an engine that has the version's weights, `retrieve`
    as in `items_of`."""
    bounds = bounds_of(manifest)
    try:
        served = read_claims(receipt, evidence_raw, manifest, vocabulary)
    except Invalid as error:
        return Judgement(Finding.FAIL, (error.code,), None)
    return judge(served, await score(items_of(served, bounds, retrieve)), bounds)


def _distance(mine: Sequence[float], theirs: Sequence[float]) -> float:
    """Relative to our own: |theirs − mine| ÷ |mine|."""
    size = math.hypot(*mine)
    gap = math.dist(mine, theirs)
    return gap / size if size else (0.0 if not gap else math.inf)


def _signed(raw: bytes) -> list[int]:
    return [
        int.from_bytes(raw[at : at + _I32_BYTES], "big", signed=True)
        for at in range(0, len(raw), _I32_BYTES)
    ]


def _ids(raw: bytes) -> tuple[int, ...]:
    if len(raw) % _I32_BYTES:
        raise Invalid("answer.tokens", why="not whole")
    return tuple(
        int.from_bytes(raw[at : at + _I32_BYTES], "big") for at in range(0, len(raw), _I32_BYTES)
    )
