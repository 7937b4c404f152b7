"""Load for an engine's core: popular and rare adapters, and what must be gone when it is over."""

import gc
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import trio

from node.serving.engine import GenRequest, Sampling
from node.serving.scheduler import Job

PAGE: Final = os.sysconf("SC_PAGE_SIZE")
TICKS: Final = os.sysconf("SC_CLK_TCK")


def zipf_draws(count: int, exponent: float, seed: int) -> Iterator[int]:
    """Places 0..count−1, the first most often, for ever."""
    chance = random.Random(seed)
    weights = [1 / (place + 1) ** exponent for place in range(count)]
    places = range(count)
    while True:
        yield from chance.choices(places, weights, k=256)


def short_request(
    number: int, adapter: bytes | None, *, tenant: bytes = b"t", length: int = 8, **sampling: Any
) -> GenRequest:
    """A prompt of bytes that follows from `number`; its seed too."""
    chance = random.Random(number)
    prompt = tuple(chance.randrange(256) for _ in range(length))
    fields = {"max_tokens": 6, "flags": 1, **sampling}
    seed = number.to_bytes(32, "big")
    return GenRequest(number.to_bytes(8, "big"), tenant, adapter, prompt, Sampling(**fields), seed)


def assert_nothing_left(core: Any) -> None:
    """No request, row, promise, queue place, reference or slot in use, nor any object of one."""
    from node.serving.live import Live, Row

    queue = core._scheduler
    assert (core.live, core._reserved, core._decoding) == (0, 0, 0)
    assert (core._rows, list(core._prefilling)) == ([], [])
    assert (queue.waiting, queue._queued_cost, core._background.waiting) == (0, 0, 0)
    assert (queue._jobs, queue._tenants, queue._low) == ({}, {}, {})
    assert all(packed.refs == packed.rows == 0 for packed in core._bank._packed.values())
    gc.collect()
    kept = [one for one in gc.get_objects() if type(one) in (Live, Row, Job)]
    assert kept == []


def resident_bytes(pid: int | None = None) -> int:
    """Of a process, ours if none is named."""
    text = Path(f"/proc/{pid or os.getpid()}/statm").read_text("ascii")
    return int(text.split()[1]) * PAGE


def processor_s(pid: int | None = None) -> float:
    """CPU time of a process so far, ours if none is named."""
    text = Path(f"/proc/{pid or os.getpid()}/stat").read_text("ascii", "replace")
    user, system = text.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / TICKS


def longest_by(waits: Sequence[tuple[Any, float]]) -> dict[Any, float]:
    """The longest wait of each name."""
    longest: dict[Any, float] = {}
    for name, wait in waits:
        longest[name] = max(wait, longest.get(name, 0.0))
    return longest


class Ticker:
    """How late a task of this event loop is woken, as consensus would be: every 10 ms."""

    EVERY_S: Final = 0.01

    def __init__(self) -> None:
        self.late_ms: list[float] = []

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            due = trio.current_time() + self.EVERY_S
            await trio.sleep_until(due)
            self.late_ms.append(1_000 * (trio.current_time() - due))

    def take(self) -> dict[str, float]:
        """Percentiles since last asked."""
        late, self.late_ms = sorted(self.late_ms) or [0.0], []
        places = {"p50": 0.5, "p99": 0.99, "max": 1.0}
        return {
            name: round(late[min(int(part * len(late)), len(late) - 1)], 2)
            for name, part in places.items()
        }
