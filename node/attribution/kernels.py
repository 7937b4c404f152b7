"""The scan kernel of torch: the same integers as numpy's, many times faster.

Why apart: it needs torch, so it is imported only by processes that have loaded torch anyway.
`torch._int_mm` is private to torch and may vanish: `score.choose_kernel` tests it before use.
"""

import warnings

import numpy as np
import torch

from node.attribution.score import Rows, Scores, Sketches


def int_mm(rows: Rows, sketches: Sketches) -> Scores:
    """int8 × int8 → int32: one sketch as fast as memory gives the rows, 32 as fast as one;
    slower than numpy's where the processor has AVX2 and no instruction for bytes, which is why
    score.choose_kernel tries."""
    with warnings.catch_warnings():
        # A mapped file is read-only, and so are its tensors here: nothing writes to them.
        warnings.simplefilter("ignore", UserWarning)
        left = torch.from_numpy(np.ascontiguousarray(rows))
        right = torch.from_numpy(sketches).T
    product: Scores = torch._int_mm(left, right).numpy().T
    return product
