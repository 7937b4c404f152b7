"""Who runs next: deficit round robin over tenants, with aging, and refusal before queueing.

Why round robin by cost: a tenant with long requests must not crowd out one with short ones. Why
aging: a request that waited long goes first for at most half of the rows, so neither an adapter
nor a tenant starves, and nobody can buy the whole engine by waiting. Why promises: where adapters
find no slot, popular ones would keep theirs for ever by being joined, so those that waited long
are promised the next slots, and the adapters that give them up are joined no more. What cannot be
served in time is refused at once, never queued: in time for its deadline, and before it would be
aged, so that aging mends estimates and the first token comes within twice that. The estimate: what
is served before it by its tenant's turns, at the pace of late while somebody waited.
Page 50 §4, §5.
Pure: time and free rows are arguments. What this file does not know: tensors, slots, streams.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from node.serving.devices import PREFILL_CPU
from node.serving.engine import DeadlinePassed, Overloaded

QUANTUM: Final = 512  # cost units a tenant gets in each turn
AGING_MS: Final = 2_000
QUEUED_COST_MAX: Final = 65_536
QUEUED_MAX: Final = 256
QUEUED_TENANT_MAX: Final = 64
BUCKET_FACTOR_MAX: Final = 4
RATE_WINDOW_MS: Final = 30_000
RATE_KNOWN_MS: Final = 1_000  # less of being full tells nothing: long answers end together
RETRY_S_MAX: Final = 60
PREFILL_UNBOUNDED: Final = 2**31


@dataclass(frozen=True, slots=True)
class Job:
    """What the scheduler knows of a request; `rows` is its number of choices, `bucket` 0 of the
    base alone, or of an adapter that was never read."""

    id: bytes
    tenant: bytes
    adapter: bytes | None
    bucket: int
    prompt_tokens: int
    max_tokens: int
    rows: int
    deadline_ms: int
    priority: int

    @property
    def cost(self) -> int:
        """(prompt + n × max_tokens) × bucket / 8, the factor between 1 and 4."""
        factor = min(max(self.bucket // 8, 1), BUCKET_FACTOR_MAX)
        return (self.prompt_tokens + self.rows * self.max_tokens) * factor


@dataclass(frozen=True, slots=True)
class Plan:
    """What one step may do: requests to start, requests that are too late, prefill budget."""

    start: tuple[bytes, ...]
    expired: tuple[bytes, ...]
    prefill_tokens: int


@dataclass(frozen=True, slots=True)
class _Promise:
    """Who may start in a bucket whose slots are short: those who were promised the next one, and
    those who run and are not asked to leave."""

    promised: frozenset[bytes]
    joinable: frozenset[bytes]


@dataclass(slots=True)
class _Tenant:
    waiting: OrderedDict[bytes, Job]
    cost: int = 0  # of all that wait
    deficit: int = 0
    has_quantum: bool = False


class Scheduler:
    """The queue before the rows. Every admitted request is started, expired or cancelled once."""

    def __init__(
        self,
        aging_ms: int = AGING_MS,
        queued_cost_max: int = QUEUED_COST_MAX,
        queued_max: int = QUEUED_MAX,
        prefill_tokens: int = PREFILL_CPU,
    ) -> None:
        """`prefill_tokens`: of prompts in one step, while rows decode."""
        self._aging_ms = aging_ms
        self._prefill_tokens = prefill_tokens
        self._queued_cost_max, self._queued_max = queued_cost_max, queued_max
        self._tenants: dict[bytes, _Tenant] = {}
        self._ring: deque[bytes] = deque()  # tenants with waiting requests; the head has the turn
        self._low: OrderedDict[bytes, Job] = OrderedDict()
        self._arrived: OrderedDict[bytes, int] = OrderedDict()
        self._jobs: dict[bytes, Job] = {}  # waiting or running
        self._running: dict[bytes, Job] = {}  # in the order of their starts
        self._promises: dict[int, _Promise] = {}  # by bucket, where slots are short
        self._queued_cost = self._queued_rows = 0
        self._free_rows = 0  # that the next plan will find
        self._aged_rows = 0  # rows given to the long waiting, and by turns, while busy
        self._fair_rows = 0
        self._paces: deque[tuple[int, int, int]] = deque()  # (time, ms, cost) while full, of 30 s
        self._paced_ms = self._paced_cost = 0  # their sums: refusing must cost little
        self._served_cost = 0  # since the last plan
        self._planned_ms = 0
        self._is_full = False  # that plan left somebody waiting who only lacked room
        self.refused = 0

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._arrived)

    def learn_bucket(self, id: bytes, bucket: int) -> None:
        """A waiting request's adapter is known now, and with it what the request costs."""
        if id not in self._arrived:
            return
        old = self._jobs[id]
        job = self._jobs[id] = replace(old, bucket=bucket)
        self._queued_cost += job.cost - old.cost
        if job.priority:
            self._low[id] = job
        else:
            tenant = self._tenants[job.tenant]
            tenant.cost += job.cost - old.cost
            tenant.waiting[id] = job

    def admit(self, job: Job, now_ms: int) -> None:
        """Queue `job`, or raise Overloaded or DeadlinePassed; what is refused is forgotten."""
        assert job.id not in self._jobs
        if job.deadline_ms and job.deadline_ms <= now_ms:
            self.refused += 1
            raise DeadlinePassed()
        tenant = self._tenants.get(job.tenant)
        wait_ms = self._time_of(self._cost_before(job), now_ms)
        if (
            len(self._arrived) >= self._queued_max
            or self._queued_cost + job.cost > self._queued_cost_max
            or (tenant is not None and len(tenant.waiting) >= QUEUED_TENANT_MAX)
            or wait_ms > self._aging_ms
            or (job.deadline_ms and now_ms + wait_ms > job.deadline_ms)
        ):
            self.refused += 1
            empty_s = -(-self._time_of(self._queued_cost, now_ms) // 1_000)
            raise Overloaded(retry_after_s=min(max(empty_s, 1), RETRY_S_MAX))
        self._jobs[job.id] = job
        self._arrived[job.id] = now_ms
        self._queued_cost += job.cost
        self._queued_rows += job.rows
        if job.priority:
            self._low[job.id] = job
            return
        if tenant is None:
            tenant = self._tenants[job.tenant] = _Tenant(OrderedDict())
        if not tenant.waiting:
            self._ring.append(job.tenant)
        tenant.waiting[job.id] = job
        tenant.cost += job.cost

    def plan(
        self,
        now_ms: int,
        free_rows: int,
        decoding: bool,
        startable: Callable[[Job], bool],
        begin: Callable[[Job], None] = lambda job: None,
        is_loaded: Callable[[Job], bool] = lambda job: True,
    ) -> Plan:
        """Requests to start now: aged ones for half of the rows, then by turns, then the low.

        `startable` says whether a request's adapter can be in a slot; another's is never blocked.
        `begin` is told of each before `startable` is asked again: it may have taken the last slot.
        `is_loaded`: its adapter is in memory, so if it cannot start, it lacks a slot.
        """
        self._note_pace(now_ms)
        expired = tuple(
            id
            for id in list(self._arrived)
            if 0 < self._jobs[id].deadline_ms <= now_ms and self._forget_waiting(id)
        )
        for id in expired:
            del self._jobs[id]
        if not self._arrived:
            self._aged_rows = self._fair_rows = 0
        self._promise(now_ms, startable, is_loaded)

        def may_start(job: Job) -> bool:
            return self._is_allowed(job) and startable(job)

        start: list[bytes] = []
        free = free_rows
        while free > 0 and self._arrived:
            job = self._next_aged(now_ms, free, may_start) or self._next_fair(free, may_start)
            if job is None:
                break
            free -= job.rows
            start.append(job.id)
            self._running[job.id] = job
            begin(job)
        self._is_full = any(is_loaded(self._jobs[id]) for id in self._arrived)
        self._free_rows = 0 if self._is_full else free
        return Plan(tuple(start), expired, self._prefill_tokens if decoding else PREFILL_UNBOUNDED)

    def done(self, id: bytes, used: int) -> None:
        """A started request has ended; `used` tokens of prompt and answer. The rest returns."""
        job = self._jobs.pop(id)
        del self._running[id]
        self._free_rows += job.rows
        # What it did not use is done with as well: the queue is counted in whole costs.
        self._served_cost += max(job.cost - used, 0)
        tenant = self._tenants.get(job.tenant)
        if tenant is not None and not job.priority:
            whole = job.prompt_tokens + job.rows * job.max_tokens
            tenant.deficit += job.cost * max(whole - used, 0) // whole

    def cancel(self, id: bytes) -> bool:
        """Forget a waiting request; False when it is not waiting (then `done` ends it)."""
        if not self._forget_waiting(id):
            return False
        del self._jobs[id]
        return True

    def note_served(self, tokens: int) -> None:
        """Tokens computed in a step: what waiting times are estimated from."""
        self._served_cost += tokens

    def _note_pace(self, now_ms: int) -> None:
        """What was done since the last plan counts where somebody waited for room all the while:
        what an engine does for the few who ask it says little of what it can do."""
        took_ms = now_ms - self._planned_ms
        if self._is_full and took_ms > 0:
            self._paces.append((now_ms, took_ms, self._served_cost))
            self._paced_ms += took_ms
            self._paced_cost += self._served_cost
        if took_ms or not self._is_full:
            self._planned_ms, self._served_cost = now_ms, 0
        self._forget_paces(now_ms)

    def _forget_paces(self, now_ms: int) -> None:
        while self._paces and self._paces[0][0] < now_ms - RATE_WINDOW_MS:
            _, took_ms, cost = self._paces.popleft()
            self._paced_ms -= took_ms
            self._paced_cost -= cost

    def _time_of(self, cost: int, now_ms: int) -> int:
        """Milliseconds that a full engine needs for it; 0 where nobody knows."""
        self._forget_paces(now_ms)
        if self._paced_ms < RATE_KNOWN_MS or not self._paced_cost:
            return 0
        return cost * self._paced_ms // self._paced_cost

    def _cost_before(self, job: Job) -> int:
        """What must be done before `job` would start: all of its own tenant's, and of each other's
        as much as turns give it meanwhile, so a long queue of one keeps no other out. Less what
        starts at once: rows may be free since the last plan."""
        if self._queued_rows + job.rows <= self._free_rows:
            return 0
        ahead = self._queued_cost
        if not job.priority:
            own = self._tenants.get(job.tenant)
            mine = 0 if own is None else own.cost
            others = (tenant for tenant in self._tenants.values() if tenant is not own)
            ahead = mine + sum(min(tenant.cost, mine + job.cost) for tenant in others)
        lacking = max(self._queued_rows - self._free_rows, 0)
        return ahead * lacking // max(self._queued_rows, 1)

    def _promise(
        self, now_ms: int, startable: Callable[[Job], bool], is_loaded: Callable[[Job], bool]
    ) -> None:
        """Promise the next slots of each bucket that has too few to those who waited longest."""
        running: dict[int, dict[bytes, None]] = {}  # bucket → adapters, by their newest start
        for job in self._running.values():
            if job.adapter is not None:
                adapters = running.setdefault(job.bucket, {})
                adapters.pop(job.adapter, None)
                adapters[job.adapter] = None
        promises = {}
        for bucket, oldest in self._aged_adapters(now_ms, running, is_loaded).items():
            is_short = not startable(next(iter(oldest.values())))
            if is_short or bucket in self._promises:
                held = list(running.get(bucket, ()))
                share = list(oldest)[: -(-len(held) // 2) or 1]  # half of the slots, as of rows
                leaving = len(share) if is_short else 0
                promises[bucket] = _Promise(frozenset(share), frozenset(held[leaving:]))
        self._promises = promises  # until they are met: a slot that is free is nobody else's

    def _aged_adapters(
        self,
        now_ms: int,
        running: Mapping[int, Mapping[bytes, None]],
        is_loaded: Callable[[Job], bool],
    ) -> dict[int, dict[bytes, Job]]:
        """Bucket → adapters that waited long and do not run → their oldest; the oldest first."""
        found: dict[int, dict[bytes, Job]] = {}
        for id, since in self._arrived.items():
            if now_ms - since <= self._aging_ms:
                break
            job = self._jobs[id]
            if job.adapter is None or job.priority or job.adapter in running.get(job.bucket, {}):
                continue
            if not is_loaded(job):
                continue
            found.setdefault(job.bucket, {}).setdefault(job.adapter, job)
        return found

    def _is_allowed(self, job: Job) -> bool:
        promise = self._promises.get(job.bucket)
        if promise is None or job.adapter is None:
            return True
        return job.adapter in promise.promised or job.adapter in promise.joinable

    def _next_aged(self, now_ms: int, free: int, startable: Callable[[Job], bool]) -> Job | None:
        if self._aged_rows > self._fair_rows:
            return None
        for id, since in self._arrived.items():
            if now_ms - since <= self._aging_ms:
                return None
            job = self._jobs[id]
            if not job.priority and job.rows <= free and startable(job):
                self._aged_rows += job.rows
                return self._take(job)
        return None

    def _next_fair(self, free: int, startable: Callable[[Job], bool]) -> Job | None:
        """The next by turns. A head that does not fit the free rows is waited for, not passed."""
        skipped = 0  # tenants in a row that could not start anything
        short: int | None = None  # the fewest quanta that would let a skipped one start
        while self._ring and skipped < len(self._ring):
            tenant = self._tenants[self._ring[0]]
            if not tenant.has_quantum:
                tenant.deficit += QUANTUM
                tenant.has_quantum = True
            job = next((job for job in tenant.waiting.values() if startable(job)), None)
            if job is not None and job.cost <= tenant.deficit:
                if job.rows > free:
                    return None
                self._fair_rows += job.rows
                return self._take(job)
            if job is not None:
                need = -(-(job.cost - tenant.deficit) // QUANTUM)
                short = need if short is None else min(short, need)
            tenant.has_quantum = False
            self._ring.rotate(-1)
            skipped += 1
            if skipped == len(self._ring) and short is not None:
                # Nobody can pay yet: the turns that would only hand out quanta, all at once.
                for name in self._ring:
                    self._tenants[name].deficit += (short - 1) * QUANTUM
                skipped, short = 0, None
        if self._tenants:  # somebody of normal priority waits
            return None
        low = next((j for j in self._low.values() if j.rows <= free and startable(j)), None)
        return self._take(low) if low is not None else None

    def _take(self, job: Job) -> Job:
        if not job.priority:
            self._tenants[job.tenant].deficit -= job.cost
        assert self._forget_waiting(job.id)
        return job

    def _forget_waiting(self, id: bytes) -> bool:
        if self._arrived.pop(id, None) is None:
            return False
        job = self._jobs[id]
        self._queued_cost -= job.cost
        self._queued_rows -= job.rows
        if job.priority:
            del self._low[id]
            return True
        tenant = self._tenants[job.tenant]
        del tenant.waiting[id]
        tenant.cost -= job.cost
        if not tenant.waiting:  # an idle tenant saves nothing up
            self._ring.remove(job.tenant)
            del self._tenants[job.tenant]
        return True
