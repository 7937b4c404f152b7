"""What an engine's core counts while it works: steps, tokens, times, ends and refusals.

What this file does not know: how any of it comes about, what a metric is called.
"""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from node.serving.engine import EngineError
from node.serving.live import Live, Row
from node.serving.timing import Timed, Timing

TIMED: Final = (
    *("time_to_first_token", "inter_token_latency", "request_queue_time"),
    *("request_prefill_time", "request_decode_time"),
)


@dataclass(slots=True)
class Tally:
    """Counters since the start."""

    steps: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    cancelled: int = 0
    finished: int = 0
    mixed: int = 0  # adapters in the newest batch
    mixed_max: int = 0
    endings: Counter[str] = field(default_factory=Counter)  # requests by their last reason
    rejections: Counter[str] = field(default_factory=Counter)  # by the last word of the code
    times: dict[str, Timing] = field(default_factory=lambda: {name: Timing() for name in TIMED})

    def note_rejected(self, error: EngineError) -> None:
        """A request that was not taken, or whose adapter did not come."""
        self.rejections[error.code.rpartition(".")[2]] += 1

    def note_stage(self, live: Live, name: str) -> None:
        """A stage of a request is over, and the next one begins."""
        now_s = time.monotonic()
        self.times[name].note(now_s - live.since_s)
        live.since_s = now_s

    def note_token(self, row: Row, now_s: float) -> None:
        """A row's token, before it is counted there."""
        if row.made:
            self.times["inter_token_latency"].note(now_s - row.last_s)
        elif not row.live.answered:
            self.times["time_to_first_token"].note(now_s - row.live.queued_s)
            row.live.since_s = now_s
        row.last_s = now_s

    def note_batch(self, adapters: int) -> None:
        """How many adapters the rows of a batch have."""
        self.mixed, self.mixed_max = adapters, max(self.mixed_max, adapters)

    def timed(self, gradient: Timing) -> dict[str, Timed]:
        """All times, with those of gradients."""
        return {name: one.view() for name, one in {**self.times, "gradient": gradient}.items()}
