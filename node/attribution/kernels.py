"""Which kernel scans an index: the quickest that is exact here, torch's only for a large one.

Why by size: torch costs whoever imports it a second and 250 MB, and a daemon that holds a small
index can do without; numpy's takes 15 ms for a sketch and `LARGE_ROWS`.
`torch._int_mm` is private to torch and may vanish: `score.choose_kernel` tests it before use.
"""

import warnings
from functools import lru_cache
from typing import Final

import numpy as np

from node.attribution.score import Kernel, Rows, Scores, Sketches, choose_kernel
from node.observe import get_log

LARGE_ROWS: Final = 32_768

log = get_log("attribution")


def kernel_for(rows: int) -> Kernel:
    """The kernel for an index of `rows`; the first of its kind takes 0.1 s, or torch's import.

    Raises NoExactKernel.
    """
    return _large() if rows >= LARGE_ROWS else _small()


def int_mm(rows: Rows, sketches: Sketches) -> Scores:
    """int8 × int8 → int32: one sketch as fast as memory gives the rows, 32 as fast as one;
    slower than numpy's where the processor has AVX2 and no instruction for bytes."""
    import torch

    from node.attribution.basis import one_thread

    with warnings.catch_warnings():
        # A mapped file is read-only, and so are its tensors here: nothing writes to them.
        warnings.simplefilter("ignore", UserWarning)
        left = torch.from_numpy(np.ascontiguousarray(rows))
        right = torch.from_numpy(sketches).T
    with one_thread():
        product: Scores = torch._int_mm(left, right).numpy().T
    return product


@lru_cache(1)
def _small() -> Kernel:
    return _told(choose_kernel())


@lru_cache(1)
def _large() -> Kernel:
    try:
        return _told(choose_kernel([int_mm]))
    except ImportError:
        return _small()


def _told(kernel: Kernel) -> Kernel:
    log.info("scan kernel", kernel=kernel.__name__)
    return kernel
