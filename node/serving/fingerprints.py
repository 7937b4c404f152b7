"""Fingerprints of hidden states: eight numbers that say which model computed a token.

Why a fixed matrix of signs: both sides project with the same one, made from the base's hash, and
compare what is left in 32 bytes (page 50 §8).
What this file does not know: which tokens are marked, how far two prints may differ.
"""

import math

import torch
from torch import Tensor

from consensus.primitives.digest import domain_hash
from node.serving.engine import FINGERPRINT_UNIT, FINGERPRINT_WIDTH, fixed_point
from node.serving.sampling import noise_words


def fingerprint_matrix(base: bytes, hidden: int) -> Tensor:
    """hidden × 8 of ±1/√hidden; an even word is plus (page 50 §8)."""
    digest = domain_hash(b"fp", base)
    key = int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")
    ids = torch.arange(hidden * FINGERPRINT_WIDTH, dtype=torch.int32)
    signs = 1.0 - 2.0 * (noise_words([key], ids)[0] & 1).float()
    return signs.view(hidden, FINGERPRINT_WIDTH) / math.sqrt(hidden)


def fingerprints(hidden: Tensor, matrix: Tensor) -> list[bytes]:
    """32 bytes of each row of [rows, hidden]: 8 × i32 big-endian, 2^-16 units."""
    return [
        b"".join(fixed_point(value, FINGERPRINT_UNIT) for value in eight)
        for eight in (hidden.float() @ matrix).tolist()
    ]
