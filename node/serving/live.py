"""A request in flight: its adapter, its rows in the cache, and what each of them has made.

What this file does not know: when a row runs, where its keys and values lie.
"""

from dataclasses import dataclass, field

from torch import Tensor

from node.serving.bank import Lease, Packed
from node.serving.engine import Ending, GenRequest
from node.serving.sampling import StopFilter


@dataclass(slots=True, eq=False)
class Row:
    """One choice of a live request, in one row of the cache."""

    live: "Live"
    choice: int
    text: StopFilter
    position: int = 0  # tokens in the cache
    last: int = 0  # sampled, not yet in the cache
    last_s: float = 0.0  # when
    made: int = 0
    logprobs: bytearray = field(default_factory=bytearray)
    prints: bytearray = field(default_factory=bytearray)


@dataclass(slots=True, eq=False)
class Live:
    """A request that has rows, or waits for them; `call` is its submitting, where that waits."""

    request: GenRequest
    seed: bytes | None
    lease: Lease | None
    call: int | None
    queued_s: float
    since_s: float  # it was queued, started, filled, or showed its first token
    slot: int | None = None
    filled: int = 0  # prompt tokens in the cache
    first: tuple[Tensor, Tensor] | None = None  # logits and hidden state, waiting for the seed
    rows: list[Row] = field(default_factory=list)
    endings: dict[int, Ending] = field(default_factory=dict)
    answered: int = 0

    @property
    def adapter(self) -> Packed | None:
        """None for the base alone, or on its way."""
        return None if self.lease is None else self.lease.packed

    @property
    def place(self) -> tuple[int, int] | None:
        """(bucket, slot), or None for the base alone."""
        if self.adapter is None or self.slot is None:
            return None
        return self.adapter.bucket, self.slot
