"""Exact scores of one sketch against many rows, by the fastest kernel that is proven equal.

Why a self-test: credits must be equal to the bit on every node, and a kernel may go through
float units or saturate on some processor. So each is compared with plain Python integers before
it is used; numpy's integer kernel is the portable one. Figures: design page 60 §4.
What this file does not know: torch (kernels.py hands over its kernel), what a row means.
"""

import time
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
TRIALS: Final = 5  # of each kernel, a few milliseconds each


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


def choose_kernel(others: Sequence[Kernel] = ()) -> Kernel:
    """The quickest exact one here of `others` and numpy's; raises NoExactKernel.

    Tried and not ranked beforehand: torch's is 5 times as quick as numpy's where the processor
    multiplies bytes (VNNI), and 2.3 times as slow on one that has AVX2 alone.
    """
    exact = [kernel for kernel in (*others, integers) if is_exact(kernel)]
    if not exact:
        raise NoExactKernel("numpy's integer kernel differs from plain integers")
    return min(exact, key=_cpu_s) if len(exact) > 1 else exact[0]


def _cpu_s(kernel: Kernel) -> float:
    """The least CPU time of a few scans of one shard."""
    rows = np.ones((SHARD_ROWS, ROW_BYTES), np.int8)
    took = []
    for _ in range(TRIALS):
        began = time.process_time()
        kernel(rows, rows[0])
        took.append(time.process_time() - began)
    return min(took)


def scan(rows: Rows, sketch: bytes, kernel: Kernel = integers) -> Scores:
    """Scores int32 (rows,) of `rows` (N, 1,024), which may be a mapped file, shard by shard."""
    assert len(sketch) == ROW_BYTES
    query = np.frombuffer(sketch, np.int8)
    scores = np.empty(len(rows), np.int32)
    for start in range(0, len(rows), SHARD_ROWS):
        shard = rows[start : start + SHARD_ROWS]
        scores[start : start + len(shard)] = kernel(shard, query)
    return scores
