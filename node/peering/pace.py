"""How long a round waits, and when a new height may begin.

Why timeouts adapt: too short costs rounds, too long makes one dead proposer cost seconds; so each
step's base follows three times the mean of what it took lately, within a profile's bounds.
Why a gate: empty blocks cost every node signatures and disk, so a height begins when there is
work, when others have begun it, or when the heartbeat says that the network should show life.
What this file does not know: any clock; seconds of a monotonic one are given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from consensus.inputs import Step

ROUND_STEP_MS: Final = 250  # each round waits this much longer than the one before
TIMEOUT_MS_MAX: Final = 60_000
MEAN_OVER: Final = 8  # avg += (seen − avg) // 8
MARGIN: Final = 3  # base = 3 · avg


@dataclass(frozen=True, slots=True)
class Profile:
    """Base lengths of the three timers and of the re-send tick."""

    propose_ms: int
    prevote_ms: int
    precommit_ms: int
    resend_ms: int

    def base_ms(self, step: Step) -> int:
        """The base of one step's timer."""
        return (self.propose_ms, self.prevote_ms, self.precommit_ms)[step]


WAN: Final = Profile(propose_ms=1_500, prevote_ms=500, precommit_ms=500, resend_ms=500)
LAN: Final = Profile(propose_ms=400, prevote_ms=200, precommit_ms=200, resend_ms=250)


class Pace:
    """Lengths of timers, following what the steps of this network take."""

    def __init__(self, profile: Profile, *, adapts: bool = True) -> None:
        self.profile = profile
        self._adapts = adapts
        self._mean_ms = [profile.base_ms(step) // MARGIN for step in Step]

    def length_ms(self, round: int, step: Step) -> int:
        """base + 250 ms · round, at most a minute."""
        return min(self._base_ms(step) + ROUND_STEP_MS * round, TIMEOUT_MS_MAX)

    def saw(self, step: Step, took_ms: int) -> None:
        """A step reached its quorum `took_ms` after it began."""
        mean_ms = self._mean_ms[step]
        self._mean_ms[step] = mean_ms + (took_ms - mean_ms) // MEAN_OVER

    def _base_ms(self, step: Step) -> int:
        base_ms = self.profile.base_ms(step)
        if not self._adapts:
            return base_ms
        return max(base_ms // 2, min(4 * base_ms, MARGIN * self._mean_ms[step]))


class Stopwatch:
    """Tells a `Pace` how long the steps of a round took, where they ended in a quorum."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._began: tuple[Step, float] | None = None

    def begin(self, step: Step, now_s: float) -> None:
        """A step begins; what ran before ended without a quorum."""
        self._began = step, now_s

    def reach(self, step: Step, now_s: float) -> None:
        """A step ended with its quorum."""
        if self._began is not None and self._began[0] == step:
            self._pace.saw(step, round((now_s - self._began[1]) * 1_000))
        self._began = None


class Gate:
    """When the next height may begin by itself; messages of others may open it at any time."""

    def __init__(self, *, interval_s: float, now_s: float) -> None:
        self._interval_s = interval_s
        self._since_s = now_s

    def close(self, now_s: float) -> None:
        """A height was committed just now."""
        self._since_s = now_s

    def is_open(self, now_s: float, heartbeat_s: float, has_work: Callable[[], bool]) -> bool:
        """Work waits for the interval, and nothing at all for the heartbeat.

        `has_work` is asked only when the answer depends on it: it looks through the pools.
        """
        # Sums as in `next_s`, never differences: rounded otherwise, a look could come for ever.
        if now_s >= self._since_s + heartbeat_s:
            return True
        return now_s >= self._since_s + self._interval_s and has_work()

    def next_s(self, now_s: float, heartbeat_s: float) -> float:
        """When to look again, if nothing else happens before; something may fall due by time."""
        soon_s = max(self._since_s + self._interval_s, now_s)
        if soon_s <= now_s:
            soon_s = now_s + self._interval_s
        return min(soon_s, max(now_s, self._since_s + heartbeat_s))
