"""Timers of the height being decided, and the tick of asking others for more.

Why not a task for each timer: a height that ends takes all its timers along, and the one task
that handles everything must also be the one that hears them ring.
What this file does not know: any clock; seconds of a monotonic one are given.
"""

from heapq import heappop, heappush

from consensus.inputs import TimedOut

NEVER_S = float("inf")


class Alarms:
    """What falls due by time while a height is being decided."""

    def __init__(self, *, resend_s: float) -> None:
        self._resend_s = resend_s
        self._timers: list[tuple[float, int, TimedOut]] = []
        self._count = 0  # of two timers for one moment the older rings first
        self._tick_s = NEVER_S

    def start(self, now_s: float) -> None:
        """A height begins: no timers, and the first tick after one period."""
        self._timers.clear()
        self._tick_s = now_s + self._resend_s

    def stop(self) -> None:
        """The height has ended: nothing rings any more."""
        self._timers.clear()
        self._tick_s = NEVER_S

    def set(self, due_s: float, timed_out: TimedOut) -> None:
        """Let `timed_out` ring at `due_s`."""
        self._count += 1
        heappush(self._timers, (due_s, self._count, timed_out))

    def take_due(self, now_s: float) -> TimedOut | None:
        """The oldest timer that has run out, or None."""
        if not self._timers or self._timers[0][0] > now_s:
            return None
        return heappop(self._timers)[2]

    def is_tick(self, now_s: float) -> bool:
        """Whether it is time to ask for more; if so the next tick is a period away."""
        if now_s < self._tick_s:
            return False
        self._tick_s = now_s + self._resend_s
        return True

    def next_s(self) -> float:
        """When the next of them falls due."""
        return min(self._timers[0][0] if self._timers else NEVER_S, self._tick_s)
