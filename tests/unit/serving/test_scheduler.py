"""The queue is fair, starves nobody, refuses at its limits, and loses no request."""

import random

import pytest

from node.serving import scheduler as rules
from node.serving.engine import DeadlinePassed, Overloaded
from node.serving.scheduler import Job, Scheduler


def job(
    number: int,
    tenant: str = "a",
    tokens: int = 100,
    *,
    rows: int = 1,
    bucket: int = 8,
    deadline_ms: int = 0,
    priority: int = 0,
    adapter: bytes | None = None,
) -> Job:
    return Job(
        number.to_bytes(4, "big"),
        tenant.encode(),
        adapter,
        bucket,
        0,
        tokens // rows,
        rows,
        deadline_ms,
        priority,
    )


def anything(_: Job) -> bool:
    return True


def drain(queue: Scheduler, now_ms: int = 0) -> list[int]:
    """Start one by one; numbers in the order of their starts."""
    order = []
    while plan := queue.plan(now_ms, 1, False, anything).start:
        order += [int.from_bytes(id, "big") for id in plan]
        queue.done(plan[0], 100)
    return order


@pytest.mark.parametrize(("bucket", "cost"), [(0, 100), (8, 100), (16, 200), (32, 400), (64, 400)])
def test_cost_grows_with_the_bucket_up_to_four(bucket: int, cost: int) -> None:
    assert job(1, bucket=bucket).cost == cost


def test_one_tenant_is_served_in_order() -> None:
    queue = Scheduler()
    for number in range(20):
        queue.admit(job(number), 0)
    assert drain(queue) == list(range(20))


def test_two_tenants_share_by_cost_not_by_count() -> None:
    """One sends four times longer requests: its served cost stays within a quantum and one job."""
    queue = Scheduler()
    for number in range(20):
        queue.admit(job(number, "long", 512), 0)
    for number in range(100, 160):
        queue.admit(job(number, "short", 128), 0)
    served = {"long": 0, "short": 0}
    for _ in range(45):
        (id,) = queue.plan(0, 1, False, anything).start
        number = int.from_bytes(id, "big")
        name, cost = ("long", 512) if number < 100 else ("short", 128)
        served[name] += cost
        queue.done(id, cost)
        assert abs(served["long"] - served["short"]) <= rules.QUANTUM + 512


def test_a_late_tenant_does_not_wait_for_the_queue_of_another() -> None:
    queue = Scheduler()
    for number in range(50):
        queue.admit(job(number, "a", 512), 0)
    queue.admit(job(99, "b", 512), 0)
    assert drain(queue).index(99) <= 2


def test_unused_cost_returns_to_its_tenant() -> None:
    queue = Scheduler()
    for number in range(4):
        queue.admit(job(number, "a", 512), 0)
        queue.admit(job(10 + number, "b", 512), 0)
    first = queue.plan(0, 1, False, anything).start[0]
    queue.done(first, 0)  # cancelled at once: its turn is not over
    assert drain(queue)[:1] == [1]


def test_long_waiting_go_first_for_half_of_the_rows() -> None:
    queue = Scheduler()
    for number in range(4):
        queue.admit(job(number, "old", 1_500), 0)
    for number in range(10, 30):
        queue.admit(job(number, "new", 100), 2_000)
    now = rules.AGING_MS + 1
    order = []
    for _ in range(8):
        (id,) = queue.plan(now, 1, True, anything).start
        order.append(int.from_bytes(id, "big"))
        queue.done(id, 100)
    assert order[::2] == [0, 1, 2, 3]


def test_nobody_is_aged_at_the_limit_itself() -> None:
    queue = Scheduler()
    queue.admit(job(1, "old", 1_500), 0)
    queue.admit(job(2, "new", 100), 0)
    assert queue.plan(rules.AGING_MS, 1, True, anything).start == (job(2).id,)


def test_low_priority_runs_only_when_nobody_waits() -> None:
    queue = Scheduler()
    queue.admit(job(1, priority=1), 0)
    queue.admit(job(2), 0)
    assert drain(queue) == [2, 1]


def test_adapter_that_cannot_start_blocks_nobody() -> None:
    queue = Scheduler()
    queue.admit(job(1, adapter=b"x"), 0)
    queue.admit(job(2, adapter=b"y"), 0)
    plan = queue.plan(0, 4, False, lambda each: each.adapter == b"y")
    assert plan.start == (job(2).id,)
    assert queue.waiting == 1


def test_request_of_many_rows_waits_for_them() -> None:
    queue = Scheduler()
    queue.admit(job(1, rows=4), 0)
    queue.admit(job(2), 0)
    assert queue.plan(0, 3, True, anything).start == ()
    assert len(queue.plan(0, 4, True, anything).start) == 1


def test_queue_takes_its_limits_and_not_one_more() -> None:
    queue = Scheduler()
    for number in range(rules.QUEUED_TENANT_MAX):
        queue.admit(job(number), 0)
    with pytest.raises(Overloaded):
        queue.admit(job(999), 0)
    for number in range(rules.QUEUED_TENANT_MAX, rules.QUEUED_MAX):
        queue.admit(job(number, str(number)), 0)
    with pytest.raises(Overloaded):
        queue.admit(job(999, "fresh"), 0)
    assert queue.refused == 2


def test_queued_cost_is_bounded() -> None:
    queue = Scheduler()
    queue.admit(job(1, tokens=rules.QUEUED_COST_MAX - 1), 0)
    queue.admit(job(2, tokens=1), 0)
    with pytest.raises(Overloaded):
        queue.admit(job(3, tokens=1), 0)


def test_operator_may_set_the_limits_of_the_queue() -> None:
    queue = Scheduler(aging_ms=5, queued_cost_max=300, queued_max=2)
    queue.admit(job(1), 0)
    with pytest.raises(Overloaded):
        queue.admit(job(2, tokens=201), 0)
    queue.admit(job(2), 0)
    with pytest.raises(Overloaded):
        queue.admit(job(3, tokens=1), 0)


@pytest.mark.parametrize("priority", [0, 1])
def test_cost_is_corrected_when_an_adapter_turns_out_larger(priority: int) -> None:
    queue = Scheduler(queued_cost_max=1_000)
    queue.admit(job(1, priority=priority), 0)
    queue.learn_bucket(job(1).id, 64)
    assert [waiting.bucket for waiting in queue.jobs_waiting()] == [64]
    with pytest.raises(Overloaded):
        queue.admit(job(2, tokens=601), 0)
    queue.admit(job(2, tokens=600), 0)
    queue.learn_bucket(b"gone", 8)
    assert sorted(drain(queue)) == [1, 2]
    queue.admit(job(3, tokens=1_000), 0)


def test_each_start_is_told_of_before_the_next_is_asked_about() -> None:
    """What the first one takes may have been the last of it."""
    queue, left = Scheduler(), [1]
    for number in range(3):
        queue.admit(job(number, str(number)), 0)
    plan = queue.plan(0, 3, True, lambda _: bool(left), lambda _: left.clear())
    assert plan.start == (job(0).id,)


def test_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    queue = Scheduler()
    with pytest.raises(DeadlinePassed):
        queue.admit(job(1, deadline_ms=1_000), 1_000)
    queue.note_served(1_000, 0)
    queue.note_served(0, 1_000)  # a thousand tokens a second
    queue.admit(job(2, tokens=4_000), 1_000)
    with pytest.raises(Overloaded) as refusal:
        queue.admit(job(3, deadline_ms=4_900), 1_000)
    assert refusal.value.retry_after_s == 4
    queue.admit(job(4, deadline_ms=5_100), 1_000)


def test_deadline_passed_in_the_queue_is_told() -> None:
    queue = Scheduler()
    queue.admit(job(1, deadline_ms=50), 0)
    assert queue.plan(49, 0, True, anything).expired == ()
    assert queue.plan(50, 1, True, anything) == rules.Plan((), (job(1).id,), rules.PREFILL_TOKENS)
    assert queue.waiting == 0


def test_prefill_is_bounded_only_while_rows_decode() -> None:
    queue = Scheduler()
    assert queue.plan(0, 1, True, anything).prefill_tokens == rules.PREFILL_TOKENS
    assert queue.plan(0, 1, False, anything).prefill_tokens == rules.PREFILL_UNBOUNDED


@pytest.mark.parametrize("seed", range(4))
def test_every_admitted_request_ends_exactly_once(seed: int) -> None:
    """Ten thousand random arrivals, starts, ends and cancels in all; nobody waits for ever."""
    rng = random.Random(seed)
    queue, now, rows = Scheduler(), 0, 16
    state: dict[bytes, str] = {}
    running: dict[bytes, Job] = {}
    admitted_at: dict[bytes, int] = {}
    longest_wait = 0
    for number in range(2_500):
        now += rng.randrange(0, 40)
        each = job(
            number,
            rng.choice("abcde"),
            rng.randrange(8, 400),
            rows=rng.choice((1, 1, 1, 3)),
            bucket=rng.choice((0, 8, 64)),
            priority=int(rng.random() < 0.1),
            deadline_ms=rng.choice((0, 0, now + rng.randrange(1, 5_000))),
        )
        try:
            queue.admit(each, now)
            state[each.id], admitted_at[each.id] = "waiting", now
        except Overloaded:
            continue
        if rng.random() < 0.05:
            victim = rng.choice(list(state))
            if queue.cancel(victim):
                assert state[victim] == "waiting"
                state[victim] = "cancelled"
        plan = queue.plan(now, rows, bool(running), anything)
        for id in plan.expired:
            assert state[id] == "waiting"
            state[id] = "expired"
        for id in plan.start:
            assert state[id] == "waiting"
            state[id] = "running"
            running[id] = queue._jobs[id]
            rows -= running[id].rows
            longest_wait = max(longest_wait, now - admitted_at[id])
        assert rows >= 0
        for id in list(running):
            if rng.random() < 0.3:
                rows += running.pop(id).rows
                queue.done(id, rng.randrange(200))
                state[id] = "done"
    for id in list(running):
        queue.done(id, 10)
        state[id] = "done"
    while plan := queue.plan(0, 16, False, anything).start:
        for id in plan:
            state[id] = "done"
            queue.done(id, 1)
    assert set(state.values()) <= {"done", "cancelled", "expired"}
    assert (queue.waiting, queue._queued_cost, queue._jobs, queue._tenants) == (0, 0, {}, {})
    assert longest_wait < 20_000
