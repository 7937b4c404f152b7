"""The real core under load: nobody starves, cancels free everything, refusals keep nothing."""

import random
from collections import Counter
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from load_kit import (
    assert_nothing_left,
    longest_by,
    resident_bytes,
    short_request,
    zipf_draws,
)

from node.serving import scheduler as rules
from node.serving.engine import AdapterRef, EngineSettings, Finish, Overloaded, Token

pytestmark = pytest.mark.ml

ADAPTERS = 220
ROWS = 8
SLOTS = 4  # fewer than rows: slots are short all the time
STEP_MS = 100  # of the clock that the core is given
GROWTH_BYTES_MAX = 16 << 20  # after the warm-up


class Clock:
    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


class Loaded:
    """A core, its clock, and every adapter that it knows."""

    def __init__(self, base: Path, refs: list[AdapterRef]) -> None:
        from node.serving.slots import SlotCore

        self.clock = Clock()
        settings = EngineSettings(str(base), rows=ROWS, slots=SLOTS, threads=1)
        self.core = SlotCore(settings, now_ms=self.clock)
        self.hashes = [ref.hash for ref in refs]
        for ref in refs:
            self.core.load(ref)
        self.numbers = count(1)

    def step(self):
        self.clock.now_ms += STEP_MS
        return self.core.step()

    def answer(self, number: int, adapter: bytes | None) -> list[int]:
        """The tokens of one request alone."""
        self.core.submit(short_request(number, adapter))
        ids = []
        while self.core.live:
            ids += [event.id for _, event in self.step() if isinstance(event, Token)]
        return ids


@pytest.fixture(scope="module")
def loaded(tiny_base: Path, make_adapter) -> Loaded:
    """Eleven sets of weights, each at twenty scales."""
    made = [make_adapter(number % 11, 4, alpha=8 + number // 11) for number in range(ADAPTERS)]
    return Loaded(tiny_base, [AdapterRef(hash, folder) for hash, folder in made])


@pytest.fixture(autouse=True)
def nothing_left(loaded: Loaded):
    yield
    assert_nothing_left(loaded.core)


def drive(loaded: Loaded, exponent: float, seed: int, requests: int) -> Counter[str]:
    """Offer `requests` at twice what the rows can do, and step until the last has ended.

    Every adapter is asked for at least once. Each wait for the first token is bounded: by aging,
    and twice what the rows need for what waited before and for one service.
    """
    chance, core = random.Random(seed), loaded.core
    draws = zipf_draws(ADAPTERS, exponent, seed)
    places = [*range(ADAPTERS), *(next(draws) for _ in range(requests - ADAPTERS))]
    chance.shuffle(places)
    services = {}  # id → steps of a row, of those that show nothing yet
    asked: dict[bytes, tuple[int, int, float]] = {}  # adapter, when, bound in ms
    waits: list[tuple[int, float]] = []
    tally: Counter[str] = Counter()
    for _ in range(4 * requests):
        if not places and not core.live:
            break
        for _ in range(min(len(places), chance.choice((2, 3, 4)))):
            place = places.pop()
            steps = chance.randrange(3, 9)
            tenant = chance.choice(b"aaab").to_bytes(1, "big")
            each = short_request(
                next(loaded.numbers), loaded.hashes[place], tenant=tenant, max_tokens=steps - 1
            )
            ahead_ms = STEP_MS * sum(services.values())
            try:
                core.submit(each)
            except Overloaded as refusal:
                tally["refused"] += 1
                tally["told to wait"] += 1 <= refusal.retry_after_s <= rules.RETRY_S_MAX
                continue
            bound = rules.AGING_MS + 2 * (8 * STEP_MS + ahead_ms / ROWS)
            services[each.id] = steps
            asked[each.id] = place, loaded.clock.now_ms, bound
        for id, event in loaded.step():
            place, since, bound = asked[id]
            if services.pop(id, 0):
                waits.append((place, loaded.clock.now_ms - since))
                assert waits[-1][1] <= bound, f"adapter {place} waited too long"
            tally["finished"] += isinstance(event, Finish)
    assert tally["finished"] == len(asked)
    assert services == {}
    tally["adapters"] = len(longest_by(waits))
    tally["longest_ms"] = int(max(longest_by(waits).values()))
    return tally


def test_no_adapter_starves_and_nothing_leaks_over_a_thousand_requests(loaded: Loaded) -> None:
    """Zipf 0.9 to 1.5 over 220 adapters on four slots, twice what the engine can do."""
    expected = loaded.answer(7, loaded.hashes[3])
    drive(loaded, 1.2, 1, 400)  # warm: slots, caches, the allocator's own room
    before = resident_bytes()
    tallies = [drive(loaded, exponent, 2, 1_050) for exponent in (0.9, 1.5)]
    assert resident_bytes() - before <= GROWTH_BYTES_MAX
    finished = sum(tally["finished"] for tally in tallies)
    assert finished >= 1_000
    assert all(0 < tally["refused"] == tally["told to wait"] for tally in tallies)
    assert min(tally["adapters"] for tally in tallies) >= 150  # the others were refused
    assert loaded.answer(7, loaded.hashes[3]) == expected


def test_rare_adapter_gets_a_slot_though_the_popular_never_leave_theirs(loaded: Loaded) -> None:
    """As many popular adapters as slots, each asked for again before its last answer ends."""
    core, popular, rare = loaded.core, loaded.hashes[:SLOTS], loaded.hashes[SLOTS]
    waits = short_request(next(loaded.numbers), rare)
    live: list[bytes] = []
    asked_ms = 0
    for step in range(200):
        for number, adapter in enumerate(popular):  # two rows each, in turns
            if step % 4 == number:
                each = short_request(next(loaded.numbers), adapter, max_tokens=7)
                core.submit(each)
                live.append(each.id)
        if step == 20:
            core.submit(waits)
            asked_ms = loaded.clock.now_ms
        if waits.id in {id for id, _ in loaded.step()}:
            break
    assert step > 20
    assert loaded.clock.now_ms - asked_ms <= rules.AGING_MS + 2 * 8 * STEP_MS
    for id in (waits.id, *live):
        core.cancel(id)


def stage_of(core, id: bytes) -> str:
    """Where a request is."""
    live = core._live.get(id)
    if live is None:
        return "ended"
    if not live.rows:
        return "queued"
    if live in core._prefilling:
        return "in prefill"
    return "waits for its seed" if live.first is not None else "decoding"


def submit_any(loaded: Loaded, chance: random.Random) -> bytes:
    """One of any kind; some wait for a seed that never comes."""
    each = short_request(
        next(loaded.numbers),
        chance.choice([None, *loaded.hashes]),
        tenant=chance.choice(b"abcdefgh").to_bytes(1, "big"),
        length=chance.choice((4, 8, 120)),
        max_tokens=chance.randrange(1, 12),
        n=chance.choice((1, 1, 3)),
        temperature_milli=chance.choice((0, 900)),
    )
    if each.sampling.temperature_milli and chance.random() < 0.5:
        each = replace(each, seed=None)
    loaded.core.submit(each)
    return each.id


def test_storm_of_cancels_at_every_stage_frees_everything(loaded: Loaded, monkeypatch) -> None:
    """After it rows, slots, references and queues are empty, and answers are right."""
    monkeypatch.setattr(loaded.core, "_chunk", 32)
    monkeypatch.setattr(loaded.core._scheduler, "_prefill_tokens", 48)
    core, chance = loaded.core, random.Random(9)
    expected = loaded.answer(11, loaded.hashes[200])
    stages: Counter[str] = Counter()
    asked: list[bytes] = []
    ended: Counter[bytes] = Counter()
    for _ in range(240):
        asked += [submit_any(loaded, chance) for _ in range(chance.randrange(4))]
        by_stage: dict[str, list[bytes]] = {}
        for id in asked[-80:]:
            by_stage.setdefault(stage_of(core, id), []).append(id)
        for stage, ids in chance.sample(sorted(by_stage.items()), min(2, len(by_stage))):
            stages[stage] += 1
            ended.update(id for id, _ in core.cancel(chance.choice(ids)))
        ended.update(id for id, event in loaded.step() if isinstance(event, Finish))
    for id in asked:
        ended.update(id for id, _ in core.cancel(id))
    assert set(stages) == {"ended", "queued", "in prefill", "waits for its seed", "decoding"}
    assert min(stages.values()) >= 20, stages
    assert ended == Counter(asked), "each has one end"
    assert_nothing_left(core)
    assert loaded.answer(11, loaded.hashes[200]) == expected


def test_cancel_gives_its_slot_to_another_adapter_in_the_next_step(loaded: Loaded) -> None:
    core = loaded.core
    holding = [
        short_request(next(loaded.numbers), one, max_tokens=200) for one in loaded.hashes[:4]
    ]
    waits = short_request(next(loaded.numbers), loaded.hashes[9])
    for each in (*holding, waits):
        core.submit(each)
    for _ in range(5):
        assert waits.id not in {id for id, _ in loaded.step()}
    core.cancel(holding[2].id)
    assert waits.id in {id for id, _ in loaded.step()}
    for each in (*holding, waits):
        core.cancel(each.id)


def test_more_than_the_queue_takes_is_refused_at_once_and_forgotten(loaded: Loaded) -> None:
    """Not one step is made meanwhile, and what was refused is never heard of again."""
    core = loaded.core
    loaded.clock.now_ms += rules.RATE_WINDOW_MS + 1  # no pace is known: the queue's limits are left
    steps = core.stats().steps
    requests = [
        short_request(next(loaded.numbers), one, tenant=bytes([number % 8]))
        for number, one in enumerate(loaded.hashes + loaded.hashes)
    ]
    refused = []
    for each in requests:
        before = core._scheduler._queued_cost
        try:
            core.submit(each)
        except Overloaded:
            refused.append(each)
            assert core._scheduler._queued_cost == before
    assert len(refused) == len(requests) - rules.QUEUED_MAX
    assert core.stats().steps == steps
    assert core.live == core._scheduler.waiting == rules.QUEUED_MAX
    assert sum(packed.refs for packed in core._bank._packed.values()) == rules.QUEUED_MAX
    heard: set[bytes] = set()
    while core.live:
        heard |= {id for id, _ in loaded.step()}
    assert heard == {each.id for each in requests} - {each.id for each in refused}
