"""What attribution is compared with: gradient dot, DataInf, TRAK and BM25; and the measure, LDS.

They exist for the bench alone: none is exact, so no mix may name one (page 60 §6). Scores are
(questions, records), the higher the more a record helped.
What this file does not know: worlds, adapters, who is paid.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import log, sqrt
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Gradients = Mapping[str, Tensor]  # matrix name → (records, out, in)

DAMPING: Final = 0.1
TRAK_WIDTH: Final = 1_024
BM25_K1: Final = 1.5
BM25_B: Final = 0.75


def linear_datamodelling(scores: Tensor, masks: Tensor, losses: Tensor) -> Tensor:
    """LDS of each question: Spearman's rank correlation, over subsets of the records, of what
    the scores of a subset sum to with minus the loss of the adapter trained on it.

    `scores` (questions, records), `masks` (subsets, records), `losses` (subsets, questions).
    """
    predicted = (scores.double() @ masks.double().T).numpy()
    actual = -losses.double().T.numpy()
    return torch.tensor([_spearman(p, a) for p, a in zip(predicted, actual, strict=True)])


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    norm = sqrt(float((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / norm if norm else 0.0


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 0; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: NDArray[np.float64] = (ends - (counts + 1) / 2)[places]
    return means


def _flat(gradients: Gradients) -> Tensor:
    return torch.cat([gradient.flatten(1) for gradient in gradients.values()], 1)


def gradient_dot(questions: Gradients, records: Gradients) -> Tensor:
    """TracIn at one checkpoint."""
    return _flat(questions) @ _flat(records).T


def datainf(questions: Gradients, records: Gradients) -> Tensor:
    """DataInf's closed form, matrix by matrix (arXiv 2310.00902)."""
    scores = torch.zeros(1)
    for name, tensor in records.items():
        g, q = tensor.flatten(1), questions[name].flatten(1)
        count, width = g.shape
        norms = (g * g).sum(1)
        damping = DAMPING * norms.mean() / width
        inverse = (q - ((q @ g.T) / (damping + norms) @ g) / count) / damping
        scores = scores + inverse @ g.T
    return scores


def trak(questions: Gradients, records: Gradients) -> Tensor:
    """TRAK with one checkpoint (arXiv 2303.14186): random projection, then whitening."""
    g, q = _flat(records), _flat(questions)
    draw = torch.Generator().manual_seed(3)
    signs = torch.randint(0, 2, (g.shape[1], TRAK_WIDTH), generator=draw).float() * 2 - 1
    g, q = g @ signs / sqrt(TRAK_WIDTH), q @ signs / sqrt(TRAK_WIDTH)
    values, vectors = torch.linalg.eigh((g.T @ g / len(g)).double())
    values = values.clamp(min=0)
    half = (vectors * (values + DAMPING * values.mean()).rsqrt()).float()
    return (q @ half) @ (g @ half).T


def bm25(questions: Sequence[str], records: Sequence[str]) -> Tensor:
    """Text search: each question's words, answer included, looked up in each record."""
    words = [Counter(text.split()) for text in records]
    mean = sum(count.total() for count in words) / len(words)
    holders = Counter(word for count in words for word in count)
    scores = torch.zeros(len(questions), len(records))
    for i, question in enumerate(questions):
        for word in question.split():
            rarity = log(1 + (len(words) - holders[word] + 0.5) / (holders[word] + 0.5))
            for j, count in enumerate(words):
                if times := count[word]:
                    length = 1 - BM25_B + BM25_B * count.total() / mean
                    scores[i, j] += rarity * times * (BM25_K1 + 1) / (times + BM25_K1 * length)
    return scores
