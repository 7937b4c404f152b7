"""Who runs next: deficit round robin over tenants, with aging, and refusal before queueing.

Why round robin by cost: a tenant with long requests must not crowd out one with short ones. Why
aging: a request that waited long goes first for at most half of the rows, so neither an adapter
nor a tenant starves, and nobody can buy the whole engine by waiting. What cannot be served in
time is refused at once, never queued. Page 50 §5.
Pure: time and free rows are arguments. What this file does not know: tensors, slots, streams.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from node.serving.engine import DeadlinePassed, Overloaded

QUANTUM: Final = 512  # cost units a tenant gets in each turn
AGING_MS: Final = 2_000
QUEUED_COST_MAX: Final = 65_536
QUEUED_MAX: Final = 256
QUEUED_TENANT_MAX: Final = 64
BUCKET_FACTOR_MAX: Final = 4
RATE_WINDOW_MS: Final = 30_000
RETRY_S_MAX: Final = 60
PREFILL_TOKENS: Final = 512  # a step, while rows decode
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


@dataclass(slots=True)
class _Tenant:
    waiting: OrderedDict[bytes, Job]
    deficit: int = 0
    has_quantum: bool = False


class Scheduler:
    """The queue before the rows. Every admitted request is started, expired or cancelled once."""

    def __init__(
        self,
        aging_ms: int = AGING_MS,
        queued_cost_max: int = QUEUED_COST_MAX,
        queued_max: int = QUEUED_MAX,
    ) -> None:
        self._aging_ms = aging_ms
        self._queued_cost_max, self._queued_max = queued_cost_max, queued_max
        self._tenants: dict[bytes, _Tenant] = {}
        self._ring: deque[bytes] = deque()  # tenants with waiting requests; the head has the turn
        self._low: OrderedDict[bytes, Job] = OrderedDict()
        self._arrived: OrderedDict[bytes, int] = OrderedDict()
        self._jobs: dict[bytes, Job] = {}  # waiting or running
        self._queued_cost = 0
        self._aged_rows = 0  # rows given to the long waiting, and by turns, while busy
        self._fair_rows = 0
        self._served: deque[tuple[int, int]] = deque()  # (time, tokens) of the last 30 s
        self._served_tokens = 0  # their sum: refusing must cost little
        self.refused = 0

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._arrived)

    def jobs_waiting(self) -> Iterator[Job]:
        """Those that wait, the oldest first."""
        return (self._jobs[id] for id in self._arrived)

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
            self._tenants[job.tenant].waiting[id] = job

    def admit(self, job: Job, now_ms: int) -> None:
        """Queue `job`, or raise Overloaded or DeadlinePassed; what is refused is forgotten."""
        assert job.id not in self._jobs
        if job.deadline_ms and job.deadline_ms <= now_ms:
            self.refused += 1
            raise DeadlinePassed()
        tenant = self._tenants.get(job.tenant)
        wait_ms = self._expected_wait_ms(now_ms)
        if (
            len(self._arrived) >= self._queued_max
            or self._queued_cost + job.cost > self._queued_cost_max
            or (tenant is not None and len(tenant.waiting) >= QUEUED_TENANT_MAX)
            or (job.deadline_ms and now_ms + wait_ms > job.deadline_ms)
        ):
            self.refused += 1
            raise Overloaded(retry_after_s=min(max(-(-wait_ms // 1_000), 1), RETRY_S_MAX))
        self._jobs[job.id] = job
        self._arrived[job.id] = now_ms
        self._queued_cost += job.cost
        if job.priority:
            self._low[job.id] = job
            return
        if tenant is None:
            tenant = self._tenants[job.tenant] = _Tenant(OrderedDict())
        if not tenant.waiting:
            self._ring.append(job.tenant)
        tenant.waiting[job.id] = job

    def plan(
        self,
        now_ms: int,
        free_rows: int,
        decoding: bool,
        startable: Callable[[Job], bool],
        note_chosen: Callable[[Job], None] = lambda job: None,
    ) -> Plan:
        """Requests to start now: aged ones for half of the rows, then by turns, then the low.

        `startable` says whether a request's adapter can be in a slot; another's is never blocked.
        `note_chosen` is told of each that starts before the next is asked about.
        """
        expired = tuple(
            id
            for id in list(self._arrived)
            if 0 < self._jobs[id].deadline_ms <= now_ms and self._forget_waiting(id)
        )
        for id in expired:
            del self._jobs[id]
        start: list[bytes] = []
        free = free_rows
        if not self._arrived:
            self._aged_rows = self._fair_rows = 0
        while free > 0 and self._arrived:
            job = self._next_aged(now_ms, free, startable) or self._next_fair(free, startable)
            if job is None:
                break
            note_chosen(job)
            free -= job.rows
            start.append(job.id)
        return Plan(tuple(start), expired, PREFILL_TOKENS if decoding else PREFILL_UNBOUNDED)

    def done(self, id: bytes, used: int) -> None:
        """A started request has ended; `used` tokens of prompt and answer. The rest returns."""
        job = self._jobs.pop(id)
        assert id not in self._arrived
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

    def note_served(self, tokens: int, now_ms: int) -> None:
        """Tokens computed in a step: what waiting times are estimated from."""
        self._served.append((now_ms, tokens))
        self._served_tokens += tokens
        self._forget_served(now_ms)

    def _forget_served(self, now_ms: int) -> None:
        while self._served and self._served[0][0] < now_ms - RATE_WINDOW_MS:
            self._served_tokens -= self._served.popleft()[1]

    def _expected_wait_ms(self, now_ms: int) -> int:
        self._forget_served(now_ms)
        if not self._served_tokens:
            return 0
        span_ms = max(now_ms - self._served[0][0], 1)
        return self._queued_cost * span_ms // self._served_tokens

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
        if job.priority:
            del self._low[id]
            return True
        tenant = self._tenants[job.tenant]
        del tenant.waiting[id]
        if not tenant.waiting:  # an idle tenant saves nothing up
            self._ring.remove(job.tenant)
            del self._tenants[job.tenant]
        return True
