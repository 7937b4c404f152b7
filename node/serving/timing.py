"""How long things take, counted in buckets: what a histogram of `/metrics` is made of.

Why buckets and no list: a worker counts millions of tokens, and what it tells of them every half
second must stay as small as it was. Why bounds of its own: answers take seconds where a packet of
the network takes milliseconds.
What this file does not know: what is timed, who reads it.
"""

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Final

BOUNDS_S: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
    *(10.0, 30.0, 60.0),
)


@dataclass(frozen=True, slots=True)
class Timed:
    """`counts` by BOUNDS_S (at most so long), then longer ones; `sum_s` of all."""

    counts: tuple[int, ...] = (0,) * (len(BOUNDS_S) + 1)
    sum_s: float = 0.0

    def median_ms(self) -> int:
        """Half of all took at most so long, to the bucket; 0 for none, 60 s for longer."""
        half, seen = sum(self.counts) / 2, 0
        for count, bound_s in zip(self.counts, (*BOUNDS_S, BOUNDS_S[-1]), strict=True):
            seen += count
            if count and seen >= half:
                return round(bound_s * 1_000)
        return 0


@dataclass(slots=True)
class Timing:
    """A `Timed` in the making."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0

    def note(self, took_s: float) -> None:
        """One more."""
        self.counts[bisect_left(BOUNDS_S, took_s)] += 1
        self.sum_s += took_s

    def view(self) -> Timed:
        """What has been noted so far."""
        return Timed(tuple(self.counts), self.sum_s)
