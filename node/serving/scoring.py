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
MASS_SLACK: Final = 1e-3  # of probability, at the edge of top_p


class Scorer:
    """Scores answers with one model; `hidden` gives what its output layer was last given."""

    def __init__(self, model: Any, stack: LoraStack, prints: Tensor, hidden: Any) -> None:
        self._model = model
        self._stack = stack
        self._prints = prints
        self._hidden = hidden

    def score(self, item: ScoreItem, packed: Packed | None) -> Score:
        """All of the answer in one forward; the adapter's matrices are used where they lie."""
        if not item.answer:
            return Score((), (), ())
        with torch.inference_mode():
            logits, hidden = self._forward(item, packed)
            chosen = torch.tensor(item.answer, device=logits.device)
            parts = [
                self._tokens(item, start, logits[start:stop], chosen[start:stop])
                for start, stop in _spans(len(item.answer))
            ]
            marks = hidden[::FINGERPRINT_STRIDE].float() @ self._prints
        return Score(
            tuple(value for logprobs, _ in parts for value in logprobs),
            tuple(value for _, margins in parts for value in margins),
            tuple(tuple(row) for row in marks.tolist()),
        )

    def _forward(self, item: ScoreItem, packed: Packed | None) -> tuple[Tensor, Tensor]:
        """Logits [answer, vocab] and hidden states [answer, width] that foretell each token."""
        if packed is None:
            self._stack.off()
        else:
            self._stack.use_rows(packed.bucket, [packed.flat], frozenset(packed.modules))
        ids = torch.tensor([(*item.prompt, *item.answer[:-1])], device=self._stack.device)
        try:
            out = self._model(input_ids=ids, use_cache=False, logits_to_keep=len(item.answer))
        finally:
            self._stack.off()
        return out.logits[0], self._hidden()[0]

    def _tokens(
        self, item: ScoreItem, start: int, logits: Tensor, chosen: Tensor
    ) -> tuple[list[float], list[float]]:
        logits = logits.float()
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


def _spans(count: int) -> list[tuple[int, int]]:
    step = POSITIONS_AT_ONCE
    return [(start, min(start + step, count)) for start in range(0, count, step)]
