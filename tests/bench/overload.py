"""`olnode bench overload`: an engine in a child process, asked for four times what it can do.

A thousand adapters, asked for by Zipf 0.9, on two layers of width 128 with random weights (what is
measured is who waits, not how fast a model is), short requests of sixteen payers. First the
engine's capacity (as many askers as keep it full), then `--load` times as many requests, whether
it answers or not. Refusals must come at once, first tokens within twice the aging time, and the
engine must go on at its pace. Then a storm of cancels, and a kill in the middle of answers. When
all is over nothing may be left: no stream, row or reference, and no memory beyond that of the warm
engine. A ticker tells throughout how late the event loop is, in which consensus would live.
Seconds are of the wall's clock: run it on a quiet machine. What is named `cpu` counts seconds of
the worker's CPU instead: what refusing costs it and how much work a wait was, whatever else runs.
"""

import argparse
import gc
import json
import os
import random
import signal
import tempfile
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Final

import trio
from bench.protocol import AT_LEAST, AT_MOST, Budget, finish, quiet, tell
from bench.random_models import Shape, make_adapters, make_base
from load_kit import Ticker, processor_s, resident_bytes, short_request, zipf_draws

from node.serving import client, scheduler
from node.serving.adapters import CONFIG, WEIGHTS, read_adapter
from node.serving.client import EngineClient
from node.serving.engine import (
    AdapterBusy,
    AdapterRef,
    EngineSettings,
    Finish,
    GenRequest,
    Overloaded,
    Token,
)
from node.serving.worker import ThreadEngine, WorkerEngine

SMALL: Final = Shape("small", 2, 128, 344, 4, 4, 0)
ROWS: Final = 32
RANK: Final = 8
TENANTS: Final = 16
TOKENS: Final = range(4, 13)  # of an answer
PROMPT: Final = 8
LONG: Final = 200  # tokens, where answers shall not end
CANCELS_AT_ONCE: Final = 50
MIB: Final = 1 << 20

BUDGETS: Final = (
    Budget("refused_ms_p99", AT_MOST, 250),
    Budget("first_token_s_p99", AT_MOST, 2 * scheduler.AGING_MS / 1_000),
    Budget("first_token_cpu_s_p99", AT_MOST, 2 * scheduler.AGING_MS / 1_000),
    Budget("goodput_ratio", AT_LEAST, 0.9),
    Budget("goodput_ratio_cpu", AT_LEAST, 0.9),
    Budget("finished", AT_LEAST, 10_000),
    Budget("left_over", AT_MOST, 0),
    Budget("worker_growth_mib", AT_MOST, 32),
    Budget("daemon_growth_mib", AT_MOST, 32),
    Budget("late_ms_max_killed", AT_MOST, 250),
)


@dataclass
class Plan:
    """How much of everything."""

    adapters: int = 1_000
    zipf: float = 0.9
    load: float = 4.0
    rate_min: float = 0.0  # requests a second, however slow this machine is
    idle_s: float = 3.0
    capacity_s: float = 20.0
    seconds: float = 60.0
    finished_min: int = 10_000
    cancels: int = 500
    shape: Shape = SMALL
    in_child: bool = True  # else in a thread of this process, which nobody kills


@dataclass
class Seen:
    """What was measured in one phase."""

    tally: Counter[str] = field(default_factory=Counter)
    refused_s: list[float] = field(default_factory=list)
    first_s: list[tuple[bytes, float, float]] = field(default_factory=list)  # adapter, from, to
    wall_s: float = 0.0
    worker_s: float = 0.0  # of CPU

    def per_s(self, name: str) -> float:
        """A rate by the wall's clock."""
        return self.tally[name] / self.wall_s

    def per_cpu_s(self, name: str) -> float:
        """A rate by the worker's, which shows hundredths of a second."""
        return self.tally[name] / max(self.worker_s, 0.01)


def linked_adapters(base: Path, folder: Path, number: int) -> list[AdapterRef]:
    """Adapters that differ by their scale alone, linked to one file of weights."""
    (first,) = make_adapters(base, folder, 1, rank=RANK)
    source, refs = Path(first.folder), []
    settings = json.loads((source / CONFIG).read_text())
    for place in range(number):
        target = folder / f"scale{place}"
        target.mkdir()
        os.link(source / WEIGHTS, target / WEIGHTS)
        (target / CONFIG).write_text(json.dumps({**settings, "lora_alpha": 8 + place / 64}))
        refs.append(AdapterRef(read_adapter(target).hash, str(target)))
    return refs


class Askers:
    """Whoever asks the engine, and notes what comes of it."""

    def __init__(self, engine: EngineClient, refs: list[AdapterRef], zipf: float) -> None:
        self.engine, self.refs = engine, refs
        self.seen = Seen()
        self.finished = 0
        self._draws = zipf_draws(len(refs), zipf, 1)
        self._chance = random.Random(2)
        self._numbers = count(1)
        self._used_s = self._since_s = 0.0

    def request(self, tokens: int | None = None) -> GenRequest:
        """The next question."""
        return short_request(
            next(self._numbers),
            self.refs[next(self._draws)].hash,
            tenant=bytes([self._chance.randrange(TENANTS)]),
            length=PROMPT,
            max_tokens=tokens or self._chance.choice(TOKENS),
            temperature_milli=self._chance.choice((0, 800)),
        )

    async def ask(self, each: GenRequest) -> None:
        """One request to its end; what ends after its phase counts for none."""
        seen, began_s = self.seen, trio.current_time()
        tokens = 0
        try:
            async with self.engine.submit(each) as stream:
                async for event in stream:
                    if isinstance(event, Token):
                        tokens += 1
                        if tokens == 1:
                            span = began_s, trio.current_time()
                            seen.first_s.append((each.adapter or b"", *span))
                    elif event.reasons == ("length",):
                        self.finished += 1
                        if seen is self.seen:
                            seen.tally["finished"] += 1
                            seen.tally["tokens"] += tokens
        except Overloaded:
            seen.tally["refused"] += 1
            seen.refused_s.append(trio.current_time() - began_s)

    async def keep_asking(self) -> None:
        """One after the other, until cancelled."""
        while True:
            await self.ask(self.request())

    async def arrive(self, nursery: trio.Nursery, rate: float, seconds: float) -> None:
        """So many in a second, whatever becomes of them."""
        now_s = due_s = trio.current_time()
        end_s = now_s + seconds
        while due_s < end_s:
            await trio.sleep_until(due_s)
            self.seen.tally["offered"] += 1
            nursery.start_soon(self.ask, self.request())
            due_s += self._chance.expovariate(rate)

    def take(self) -> Seen:
        """What was seen since last asked."""
        seen, self.seen = self.seen, Seen()
        used_s, self._used_s = self._used_s, processor_s(pid_of(self.engine))
        since_s, self._since_s = self._since_s, trio.current_time()
        seen.worker_s, seen.wall_s = self._used_s - used_s, self._since_s - since_s
        return seen


class Pace:
    """How much CPU time a worker had had at any moment: ten looks a second."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine
        self._looks: list[tuple[float, float]] = []  # time, seconds of CPU

    async def run(self) -> None:
        """Until cancelled; only while the worker lives."""
        while True:
            self._looks.append((trio.current_time(), processor_s(pid_of(self._engine))))
            await trio.sleep(0.1)

    def between(self, start_s: float, stop_s: float) -> float:
        """Seconds of CPU, to the nearest look."""
        last = len(self._looks) - 1
        places = (min(bisect_left(self._looks, (at,)), last) for at in (start_s, stop_s))
        before, after = (self._looks[place][1] for place in places)
        return after - before


# --- phases


async def measure_capacity(askers: Askers, seconds: float) -> Seen:
    """Twice as many askers as rows, after a warm-up of a quarter."""
    async with trio.open_nursery() as nursery:
        for _ in range(2 * ROWS):
            nursery.start_soon(askers.keep_asking)
        await trio.sleep(seconds / 4)
        askers.take()
        while not askers.seen.tally["finished"]:  # noqa: ASYNC110  # a busy machine: go on
            await trio.sleep(seconds)
        seen = askers.take()
        nursery.cancel_scope.cancel()
    return seen


async def measure_overload(askers: Askers, rate: float, seconds: float) -> Seen:
    """Arrivals at `rate`; who was admitted is waited for, but only the phase's own time counts."""
    askers.take()
    async with trio.open_nursery() as nursery:
        await askers.arrive(nursery, rate, seconds)
        seen = askers.take()
    return seen


async def go_on(askers: Askers, finished: int) -> None:
    """Until so many have finished in all."""
    async with trio.open_nursery() as nursery:
        for _ in range(2 * ROWS):
            nursery.start_soon(askers.keep_asking)
        while askers.finished < finished:  # noqa: ASYNC110  # counted by the askers
            await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    askers.take()


async def storm(askers: Askers, cancels: int) -> None:
    """Requests that their payers leave at a random moment."""
    chance = random.Random(3)

    async def leave() -> None:
        with trio.move_on_after(chance.random()):
            await askers.ask(askers.request(chance.choice((4, LONG))))

    for left in range(cancels, 0, -CANCELS_AT_ONCE):
        async with trio.open_nursery() as nursery:
            for _ in range(min(left, CANCELS_AT_ONCE)):
                nursery.start_soon(leave)
    askers.take()


async def stay_busy(askers: Askers, seconds: float) -> None:
    """All rows with long answers: the daemon only reads."""
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for _ in range(ROWS):
                nursery.start_soon(askers.ask, askers.request(LONG))
            await trio.sleep_forever()
    askers.take()


async def kill(engine: EngineClient, askers: Askers) -> dict[str, float]:
    """The worker dies in the middle of answers: how they end, and when the next one comes."""
    losses: Counter[str] = Counter()

    async def lose(each: GenRequest) -> None:
        async with engine.submit(each) as stream:
            async for event in stream:
                if isinstance(event, Finish):
                    losses[event.reasons[0]] += 1

    async with trio.open_nursery() as nursery:
        for _ in range(ROWS):
            nursery.start_soon(lose, replace(askers.request(LONG), deadline_ms=0))
        await trio.sleep(0.3)
        os.kill(engine._link.pid, signal.SIGKILL)
        began_s = trio.current_time()
    while engine.state != "ready":  # noqa: ASYNC110  # it is told to nobody else
        await trio.sleep(0.01)
    await askers.ask(askers.request())
    return {"ended_by_loss": losses["engine_lost"], "next_answer_s": trio.current_time() - began_s}


async def left_over(engine: EngineClient, refs: list[AdapterRef]) -> int:
    """Requests, rows, streams, calls, and adapters that something still refers to."""
    await trio.sleep(1.0)  # counters come twice a second
    stats = engine.stats()
    left = stats.running + stats.waiting + len(engine._streams) + len(engine._calls)
    for ref in refs:
        try:
            await engine.unload_adapter(ref.hash)
        except AdapterBusy:
            left += 1
    return left


# --- all of it


@asynccontextmanager
async def started(
    kind: type[WorkerEngine] | type[ThreadEngine], base: Path, refs: list[AdapterRef]
) -> AsyncIterator[EngineClient]:
    """An engine that holds every adapter in memory."""
    engine = kind(EngineSettings(str(base), rows=ROWS, threads=1))
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        for ref in refs:
            await engine.load_adapter(ref)
        yield engine
        await engine.aclose(drain_s=0)
        nursery.cancel_scope.cancel()


async def run(plan: Plan, base: Path, refs: list[AdapterRef]) -> dict[str, Any]:
    """Every phase, one after the other, beside a ticker."""
    late: dict[str, dict[str, float]] = {}
    ticker = Ticker()
    kind = WorkerEngine if plan.in_child else ThreadEngine
    async with started(kind, base, refs) as engine, trio.open_nursery() as nursery:
        nursery.start_soon(ticker.run)
        askers = Askers(engine, refs, plan.zipf)
        await trio.sleep(plan.idle_s)
        late["idle"] = ticker.take()
        await stay_busy(askers, plan.idle_s)
        late["busy"] = ticker.take()
        tell("capacity")
        capacity = await measure_capacity(askers, plan.capacity_s)
        late["at_capacity"] = ticker.take()
        warm = resident(engine)
        rate = max(plan.load * capacity.per_s("finished"), plan.rate_min)
        tell(f"overload: {rate:.0f} requests a second for {plan.seconds:.0f} s")
        pace = Pace(engine)
        async with trio.open_nursery() as looking:
            looking.start_soon(pace.run)
            overload = await measure_overload(askers, rate, plan.seconds)
            looking.cancel_scope.cancel()
        late["overload"] = ticker.take()
        tell(f"more, until {plan.finished_min} have finished; then cancels")
        await go_on(askers, plan.finished_min)
        await storm(askers, plan.cancels)
        ticker.take()
        grown = [after - before for before, after in zip(warm, resident(engine), strict=True)]
        lost = {}
        if plan.in_child:
            tell("a kill")
            lost = await kill(engine, askers)
        late["killed"] = ticker.take()
        left = await left_over(engine, refs)
        nursery.cancel_scope.cancel()
    return {
        **figures_of(capacity, overload, pace),
        "finished": askers.finished,
        "cancelled": plan.cancels,
        "left_over": left,
        "worker_growth_mib": round(grown[0] / MIB, 1),
        "daemon_growth_mib": round(grown[1] / MIB, 1),
        "late_ms": late,
        "late_ms_max_killed": late["killed"]["max"],
        **{name: round(value, 2) for name, value in lost.items()},
    }


def resident(engine: EngineClient) -> tuple[int, int]:
    """Bytes of the worker, and of ourselves."""
    return resident_bytes(pid_of(engine)), resident_bytes()


def pid_of(engine: EngineClient) -> int | None:
    """The worker's; None of an engine in a thread."""
    return getattr(engine._link, "pid", None)


def figures_of(capacity: Seen, overload: Seen, pace: Pace) -> dict[str, Any]:
    """Rates of both phases side by side; goodput counts tokens of answers that were finished."""
    first_s = [stop - start for _, start, stop in overload.first_s]
    first_cpu_s = [pace.between(start, stop) for _, start, stop in overload.first_s]
    ratio = overload.per_s("tokens") / capacity.per_s("tokens")
    ratio_cpu = overload.per_cpu_s("tokens") / capacity.per_cpu_s("tokens")
    return {
        "capacity_requests_per_s": round(capacity.per_s("finished"), 1),
        "capacity_tokens_per_s": round(capacity.per_s("tokens"), 1),
        "offered": overload.tally["offered"],
        "refused": overload.tally["refused"],
        "refused_ms_p50": round(1e3 * part_of(overload.refused_s, 0.5), 1),
        "refused_ms_p99": round(1e3 * part_of(overload.refused_s, 0.99), 1),
        "goodput_ratio": round(ratio, 3),
        "goodput_ratio_cpu": round(ratio_cpu, 3),
        "first_token_s_p50": round(part_of(first_s, 0.5), 3),
        "first_token_s_p99": round(part_of(first_s, 0.99), 3),
        "first_token_s_max": round(part_of(first_s, 1.0), 3),
        "first_token_cpu_s_p99": round(part_of(first_cpu_s, 0.99), 2),
        "first_token_cpu_s_max": round(part_of(first_cpu_s, 1.0), 2),
        "adapters_served": len({adapter for adapter, *_ in overload.first_s}),
    }


def part_of(values: list[float], part: float) -> float:
    """A percentile; infinite where nothing was measured."""
    if not values:
        return float("inf")
    return sorted(values)[min(int(part * len(values)), len(values) - 1)]


@asynccontextmanager
async def no_waiting_after_a_loss() -> AsyncIterator[None]:
    """The way back is measured, not the pause before it."""
    before, client.BACKOFF_S_MAX = client.BACKOFF_S_MAX, 0
    yield
    client.BACKOFF_S_MAX = before


def measure(plan: Plan) -> dict[str, Any]:
    """The figures of one run."""

    async def whole(base: Path, refs: list[AdapterRef]) -> dict[str, Any]:
        async with no_waiting_after_a_loss():
            return await run(plan, base, refs)

    with tempfile.TemporaryDirectory(prefix="olnode-bench-") as name:
        folder = Path(name)
        tell(f"a base and {plan.adapters} adapters")
        make_base(folder / "base", plan.shape)
        refs = linked_adapters(folder / "base", folder, plan.adapters)
        gc.collect()
        gc.freeze()  # what torch brought: the daemon has none of it to look through for cycles
        try:
            return trio.run(whole, folder / "base", refs)
        finally:
            gc.unfreeze()


def main() -> None:
    """The command line of `olnode bench overload`."""
    parser = argparse.ArgumentParser(prog="olnode bench overload")
    parser.add_argument("--adapters", type=int, default=1_000)
    parser.add_argument("--zipf", type=float, default=0.9)
    parser.add_argument("--load", type=float, default=4.0, help="times the capacity")
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload")
    parser.add_argument("--finished", type=int, default=10_000, help="requests, at least, in all")
    given = parser.parse_args()
    quiet()
    plan = Plan(
        adapters=given.adapters,
        zipf=given.zipf,
        load=given.load,
        seconds=given.seconds,
        finished_min=given.finished,
    )
    finish(measure(plan), BUDGETS)


if __name__ == "__main__":
    main()
