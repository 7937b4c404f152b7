"""One-cycle learning: the rate and the momentum of each step, as plain functions.

Why our own: a resumed training needs the values of step k from k alone, with no scheduler state
on disk. The formulas are those of torch's OneCycleLR with cosine annealing and its defaults.
"""

import math
from typing import Final

_START_DIVISOR: Final = 25.0  # the first rate is peak / 25
_END_DIVISOR: Final = 1e4  # the last is the first / 10,000
_BETA_HIGH: Final = 0.95
_BETA_LOW: Final = 0.85


def _between(start: float, end: float, part: float) -> float:
    return end + (start - end) / 2.0 * (math.cos(math.pi * part) + 1)


def one_cycle(step: int, total: int, peak: float, warm: float) -> tuple[float, float]:
    """(learning rate, first beta) of step 0..total−1; `warm` is the rising share of the steps."""
    first = peak / _START_DIVISOR
    top = warm * total - 1
    if step <= top:
        part = step / top
        return _between(first, peak, part), _between(_BETA_HIGH, _BETA_LOW, part)
    part = (step - top) / (total - 1 - top)
    return _between(peak, first / _END_DIVISOR, part), _between(_BETA_LOW, _BETA_HIGH, part)
