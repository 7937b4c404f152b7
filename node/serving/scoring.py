"""Another's answer run again in one forward: what each of its tokens should have been.

Why one forward is enough: the noise depends on seed, choice and position alone, so with the
answer's own tokens before it each position can be judged alone, at a small part of what making the
answer cost (page 50 §8). A token is measured by its margin: how much better the best rival was, or
how far outside the filters it stood. Rivals at the very edge of a filter do not count: which side
of it they are on is rounding.
What this file does not know: who made the answer, what a margin means for it.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from node.serving.bank import Packed
from node.serving.engine import FINGERPRINT_STRIDE, Sampling, Score, ScoreItem
from node.serving.lora import LoraStack
from node.serving.sampling import Key, noise_key, noise_tensor

POSITIONS_AT_ONCE: Final = 64  # of noise over the whole vocabulary
LOGITS_BYTES_MAX: Final = 256 << 20
MASS_SLACK: Final = 1e-3  # of probability, at the edge of top_p


class Scorer:
    """Scores answers with one model; `hidden` gives what its output layer was last given."""

    def __init__(self, model: Any, stack: LoraStack, prints: Tensor, hidden: Any) -> None:
        self._model = model
        self._vocab = int(model.config.vocab_size)
        self._stack = stack
        self._prints = prints
        self._hidden = hidden

    def score(self, item: ScoreItem, packed: Packed | None) -> Score:
        """All of the answer in one forward; the adapter's matrices are used where they lie."""
        if not item.answer:
            return Score((), (), ())
        logprobs: list[float] = []
        found: list[float] = []
        marks: list[tuple[float, ...]] = []
        with torch.inference_mode():
            for span in self._spans(len(item.answer)):
                logits, hidden = self._forward(item, packed, span)
                for start, stop in _cut(span, POSITIONS_AT_ONCE):
                    part = logits[start - span.start : stop - span.start]
                    told = self._tokens(item, start, part)
                    logprobs += told[0]
                    found += told[1]
                first = -span.start % FINGERPRINT_STRIDE
                marks += map(
                    tuple, (hidden[first::FINGERPRINT_STRIDE].float() @ self._prints).tolist()
                )
        return Score(tuple(logprobs), tuple(found), tuple(marks))

    def _spans(self, count: int) -> list[range]:
        """Parts of an answer whose logits fit: a long one is gone through more than once."""
        most = max(POSITIONS_AT_ONCE, LOGITS_BYTES_MAX // (4 * self._vocab))
        return [range(start, stop) for start, stop in _cut(range(count), most)]

    def _forward(
        self, item: ScoreItem, packed: Packed | None, span: range
    ) -> tuple[Tensor, Tensor]:
        """Logits [span, vocab] and hidden states [span, width] that foretell each token of it."""
        if packed is None:
            self._stack.off()
        else:
            self._stack.use_rows(packed.bucket, [packed.flat], frozenset(packed.modules))
        device = self._stack.device
        ids = torch.tensor([(*item.prompt, *item.answer[: span.stop - 1])], device=device)
        kept = torch.arange(span.start, span.stop, device=device) + len(item.prompt) - 1
        try:
            out = self._model(input_ids=ids, use_cache=False, logits_to_keep=kept)
        finally:
            self._stack.off()
        return out.logits[0], self._hidden()[0]

    def _tokens(
        self, item: ScoreItem, start: int, logits: Tensor
    ) -> tuple[list[float], list[float]]:
        """Log-probabilities and margins of the tokens from `start` on."""
        logits = logits.float()
        chosen = torch.tensor(item.answer[start : start + len(logits)], device=logits.device)
        raw = torch.log_softmax(logits, -1).gather(1, chosen[:, None])[:, 0]
        keys = None
        if item.sampling.temperature_milli:
            assert item.seed is not None, "checked when it was queued"
            places = range(start, start + len(chosen))
            keys = [noise_key(item.seed, item.choice, place) for place in places]
        found = margins(logits, chosen, item.sampling, keys, item.slack)
        return raw.tolist(), found.tolist()


def margins(
    logits: Tensor, chosen: Tensor, sampling: Sampling, keys: Sequence[Key] | None, slack: float
) -> Tensor:
    """Nats [positions] of float32 logits [positions, vocab] and token ids [positions], each ≥ 0.

    `keys` is None exactly for temperature 0. With no rounding, 0 is what `sampling.choose` takes.
    """
    if keys is None:
        own = logits.gather(1, chosen[:, None])[:, 0]
        return logits.max(-1).values - own
    scaled = logits / (sampling.temperature_milli / 1_000)
    ids = torch.arange(logits.shape[1], device=logits.device, dtype=torch.int32)
    noisy = scaled + noise_tensor(keys, ids)
    rivals = noisy
    short = torch.zeros(len(chosen), device=logits.device)
    if sampling.top_k or sampling.top_p_milli < 1_000:
        edges = [_edges(row, sampling.top_k, sampling.top_p_milli) for row in scaled]
        wide, narrow = torch.tensor(edges, device=logits.device).t()
        own = scaled.gather(1, chosen[:, None])[:, 0]
        short = (wide - own).clamp(min=0)
        inside = scaled > narrow[:, None] + slack
        rivals = noisy.masked_fill(~inside, -math.inf)
    best = rivals.max(-1).values
    return torch.maximum(best - noisy.gather(1, chosen[:, None])[:, 0], short).clamp(min=0)


def _edges(scaled: Tensor, top_k: int, top_p_milli: int) -> tuple[float, float]:
    """The lowest value of one row [vocab] that is inside: at most, and at least."""
    values = torch.sort(scaled, descending=True).values
    if top_k:
        values = values[:top_k]
    if top_p_milli == 1_000:
        return float(values[-1]), float(values[-1])
    mass = (values - values[0]).double().exp()
    mass = mass / mass.sum()
    before = mass.cumsum(0) - mass
    need = top_p_milli / 1_000
    wide, narrow = (max(1, int((before < need + by).sum())) for by in (MASS_SLACK, -MASS_SLACK))
    return float(values[wide - 1]), float(values[narrow - 1])


def _cut(span: range, step: int) -> list[tuple[int, int]]:
    return [(start, min(start + step, span.stop)) for start in range(span.start, span.stop, step)]
