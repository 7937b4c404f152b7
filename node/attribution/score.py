"""Exact scores of one sketch against many rows, by the fastest kernel that is proven equal.

Why a self-test: credits must be equal to the bit on every node, and a kernel may go through
float units or saturate on some processor. So each is compared with plain Python integers before
it is used; numpy's integer kernel is the portable one. Figures: design page 60 §4.
What this file does not know: torch (kernels.py hands over its kernel), what a row means.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from node.ledger.rules import shares
from node.ledger.wire.claims import ROW_BYTES

Rows = NDArray[np.int8]  # (rows, 1,024)
Scores = NDArray[np.int32]  # (rows,)
Kernel = Callable[[Rows, NDArray[np.int8]], Scores]

SHARD_ROWS: Final = 4_096  # scanned at a time: 4 MiB of a mapped file, never the whole of it
SELF_TEST_ROWS: Final = 64


class NoExactKernel(Exception):
    """No kernel equals plain integers on this machine: attribution must not start."""


def integers(rows: Rows, sketch: NDArray[np.int8]) -> Scores:
    """The portable kernel: numpy, 32-bit integers throughout; 27 ms per 100,000 rows."""
    scores: Scores = np.einsum("nk,k->n", rows, sketch, dtype=np.int32)
    return scores


def is_exact(kernel: Kernel) -> bool:
    """Whether `kernel` equals Python integers on 64 rows: extremes, alternating, random."""
    random = np.random.default_rng(7)
    rows = random.integers(-127, 128, (SELF_TEST_ROWS, ROW_BYTES), np.int8)
    rows[0], rows[1], rows[2] = 127, -127, np.resize(np.array([127, -127], np.int8), ROW_BYTES)
    extremes = [np.full(ROW_BYTES, value, np.int8) for value in (127, -127)]
    for sketch in (*extremes, random.integers(-127, 128, ROW_BYTES, np.int8)):
        wanted = [shares.score(row.tobytes(), sketch.tobytes()) for row in rows]
        try:
            found = kernel(rows, sketch)
        except RuntimeError:  # torch: no such instruction on this processor
            return False
        if found.dtype != np.int32 or found.tolist() != wanted:
            return False
    return True


def choose_kernel(preferred: Sequence[Kernel] = ()) -> Kernel:
    """The first exact one of `preferred` (best first), else numpy's; raises NoExactKernel."""
    for kernel in (*preferred, integers):
        if is_exact(kernel):
            return kernel
    raise NoExactKernel("numpy's integer kernel differs from plain integers")


def scan(rows: Rows, sketch: bytes, kernel: Kernel = integers) -> Scores:
    """Scores int32 (rows,) of `rows` (N, 1,024), which may be a mapped file, shard by shard."""
    assert len(sketch) == ROW_BYTES
    query = np.frombuffer(sketch, np.int8)
    scores = np.empty(len(rows), np.int32)
    for start in range(0, len(rows), SHARD_ROWS):
        shard = rows[start : start + SHARD_ROWS]
        scores[start : start + len(shard)] = kernel(shard, query)
    return scores
