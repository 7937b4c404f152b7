"""Exact scores of sketches against many rows, by the fastest kernel that is proven equal.

Why a self-test: credits must be equal to the bit on every node, and a kernel may go through
float units or saturate on some processor. So each is compared with plain Python integers before
it is used; numpy's are the portable ones. Why many sketches at once: a scan takes as
long as the rows take to come from memory, so whoever rechecks a bundle reads them once for
`BATCH_MAX` answers. Figures: ARCHITECTURE.md §6.
What this file does not know: torch, which kernel an index has (kernels.py), what a row means.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from node.ledger.rules import shares
from node.ledger.wire.claims import ROW_BYTES

Rows = NDArray[np.int8]  # (rows, 1,024)
Sketches = NDArray[np.int8]  # (sketches, 1,024)
Scores = NDArray[np.int32]  # (sketches, rows), or (rows,) of one
Kernel = Callable[[Rows, Sketches], Scores]

BATCH_MAX: Final = 32  # sketches that read the rows together
SCORES_MAX: Final = 2**24  # of a batch: 64 MiB, beside those of the batch before it
SHARD_ROWS: Final = 4_096  # scanned at a time: 4 MiB of a mapped file, never the whole of it
PRODUCT_ROWS: Final = 1_024  # made floats at a time: 4 MiB
SELF_TEST_ROWS: Final = 64
TRIALS: Final = 3  # of each kernel, of some milliseconds each
TRIED_SKETCHES: Final = 8


class NoExactKernel(Exception):
    """No kernel equals plain integers on this machine: attribution must not start."""


def integers(rows: Rows, sketches: Sketches) -> Scores:
    """The portable kernel: numpy, 32-bit integers throughout; 27 ms per sketch and 100,000 rows."""
    return np.stack([np.einsum("nk,k->n", rows, sketch, dtype=np.int32) for sketch in sketches])


def products(rows: Rows, sketches: Sketches) -> Scores:
    """float32 products by BLAS, exact in any order as 127² × 1,024 < 2^24: 32 sketches cost two to
    four times what one does, where `integers` costs 32 times as much."""
    queries = sketches.astype(np.float32)
    scores = np.empty((len(sketches), len(rows)), np.int32)
    for start in range(0, len(rows), PRODUCT_ROWS):
        floats = rows[start : start + PRODUCT_ROWS].astype(np.float32)
        scores[:, start : start + len(floats)] = queries @ floats.T
    return scores


def is_exact(kernel: Kernel) -> bool:
    """Whether `kernel` equals Python integers on 64 rows: extremes, alternating, random; of one
    sketch and of several."""
    random = np.random.default_rng(7)
    rows = random.integers(-127, 128, (SELF_TEST_ROWS, ROW_BYTES), np.int8)
    rows[0], rows[1], rows[2] = 127, -127, np.resize(np.array([127, -127], np.int8), ROW_BYTES)
    sketches = random.integers(-127, 128, (3, ROW_BYTES), np.int8)
    sketches[0], sketches[1] = 127, -127
    wanted = [[shares.score(r.tobytes(), q.tobytes()) for r in rows] for q in sketches]
    try:
        together, alone = kernel(rows, sketches), kernel(rows, sketches[2:])
    except RuntimeError:  # torch: no such instruction on this processor
        return False
    are_integers = together.dtype == alone.dtype == np.int32
    return are_integers and together.tolist() == wanted and alone.tolist() == wanted[2:]


def choose_kernel(others: Sequence[Kernel] = ()) -> Kernel:
    """The quickest exact one here of `others` and numpy's two; raises NoExactKernel. Takes 0.1 s.

    Tried and not ranked beforehand: torch's is 5 times as quick as `integers` where the processor
    multiplies bytes (VNNI), and 2.3 times as slow on one that has AVX2 alone.
    """
    exact = [kernel for kernel in (*others, products, integers) if is_exact(kernel)]
    if not exact:
        raise NoExactKernel
    return min(exact, key=_cpu_s) if len(exact) > 1 else exact[0]


def _cpu_s(kernel: Kernel) -> float:
    """The least CPU time of a few scans of one shard, by some sketches: those who recheck scan
    most, and they scan for many."""
    rows = np.ones((SHARD_ROWS, ROW_BYTES), np.int8)
    took = []
    for _ in range(TRIALS):
        began = time.process_time()
        kernel(rows, rows[:TRIED_SKETCHES])
        took.append(time.process_time() - began)
    return min(took)


def scan(rows: Rows, sketch: bytes, kernel: Kernel = integers) -> Scores:
    """Scores int32 (rows,) of `rows` (N, 1,024), which may be a mapped file."""
    return next(scan_each(rows, (sketch,), kernel))


def scan_each(rows: Rows, sketches: Sequence[bytes], kernel: Kernel = integers) -> Iterator[Scores]:
    """The same of each of many sketches, in their order; the rows are read once for a batch."""
    count = max(1, min(BATCH_MAX, SCORES_MAX // len(rows)))
    for first in range(0, len(sketches), count):
        yield from _scan_batch(rows, sketches[first : first + count], kernel)


def _scan_batch(rows: Rows, sketches: Sequence[bytes], kernel: Kernel) -> Scores:
    """int32 (sketches, rows), shard by shard."""
    assert all(len(sketch) == ROW_BYTES for sketch in sketches)
    queries = np.frombuffer(b"".join(sketches), np.int8).reshape(-1, ROW_BYTES)
    scores = np.empty((len(queries), len(rows)), np.int32)
    for start in range(0, len(rows), SHARD_ROWS):
        shard = rows[start : start + SHARD_ROWS]
        scores[:, start : start + len(shard)] = kernel(shard, queries)
    return scores
