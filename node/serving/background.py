"""Work behind the requests: sketches of answers, and others' answers run again.

Why behind: a payer waits for tokens, nobody waits for these. They run when nothing decodes, or
when the oldest has waited long enough, or when a whole batch is there; one batch, then decoding
goes on (page 50 §9). First come, first served among themselves.
What this file does not know: requests, rows, who asked.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from node.serving.backward import Projector, Work, sketches
from node.serving.bank import AdapterBank, Lease, Packed
from node.serving.engine import (
    CHOICES_MAX,
    SEED_BYTES,
    BadSampling,
    EngineError,
    GradItem,
    Overloaded,
    Score,
    ScoreItem,
    Sketch,
    TooLong,
    check_sampling,
)
from node.serving.lora import LoraStack
from node.serving.scoring import Scorer
from node.serving.timing import Timing

QUEUED_MAX: Final = 256
MAX_WAIT_MS: Final = 2_000
BATCH: Final = 8
BATCH_TOKENS: Final = 4_096
PROJECTORS_MAX: Final = 8

Made = tuple[int, int, Sketch | Score | EngineError]  # call, place in the call's list, result


@dataclass(frozen=True, slots=True, eq=False)
class _Queued:
    call: int
    place: int
    item: GradItem | ScoreItem
    leases: tuple[Lease, ...]
    since_ms: int

    @property
    def error(self) -> EngineError | None:
        return next((lease.error for lease in self.leases if lease.error is not None), None)

    @property
    def adapters(self) -> tuple[Packed, ...] | None:
        """All of them in their order, or None while one is on its way."""
        here = tuple(lease.packed for lease in self.leases if lease.packed is not None)
        return here if len(here) == len(self.leases) else None


class Background:
    """The queue of one engine. Its adapters are referred to from being queued until done."""

    def __init__(
        self,
        *,
        model: Any,
        stack: LoraStack,
        bank: AdapterBank,
        scorer: Scorer,
        length: int,
        vocab: int,
        load_projector: Callable[[str], Projector],
        wait_ms_max: int = MAX_WAIT_MS,
    ) -> None:
        self._model = model
        self._stack = stack
        self._bank = bank
        self._scorer = scorer
        self._length = length
        self._vocab = vocab
        self._load_projector = load_projector
        self._wait_ms_max = wait_ms_max
        self._projectors: dict[str, Projector] = {}
        self._queue: list[_Queued] = []  # whose adapters are here, the oldest first
        self._coming: list[_Queued] = []  # whose adapters are on their way
        self._made: list[Made] = []
        self.gradient_seconds = Timing()  # a batch
        self.sketched = 0
        self.scored = 0

    @property
    def waiting(self) -> int:
        """Items that wait."""
        return len(self._queue) + len(self._coming)

    def add_gradients(self, call: int, items: Sequence[GradItem], now_ms: int) -> None:
        """Queue all or none; raises Overloaded, UnknownAdapter, BadSampling, BadAdapter."""
        for item in items:
            if not item.answers:
                raise BadSampling(field="answers")
            for ids in (item.prompt, *item.answers):
                self._check_ids(ids, "answers")
        self._add(call, [(item.checkpoints, item) for item in items], now_ms)

    def add_scores(self, call: int, items: Sequence[ScoreItem], now_ms: int) -> None:
        """Queue all or none; raises Overloaded, UnknownAdapter, BadSampling, TooLong."""
        for item in items:
            self._check_score(item)
        wanted = [(() if item.adapter is None else (item.adapter,), item) for item in items]
        self._add(call, wanted, now_ms)

    def _check_score(self, item: ScoreItem) -> None:
        check_sampling(item.sampling, self._length)
        if len(item.prompt) + len(item.answer) > self._length:
            raise TooLong(limit=self._length)
        if not item.prompt or not 0 <= item.choice < CHOICES_MAX:
            raise BadSampling(field="choice" if item.prompt else "prompt")
        if item.sampling.temperature_milli and len(item.seed or b"") != SEED_BYTES:
            raise BadSampling(field="seed")
        self._check_ids(item.prompt, "prompt")
        self._check_ids(item.answer, "answer")

    def _check_ids(self, ids: Sequence[int], field: str) -> None:
        if not all(0 <= token < self._vocab for token in ids):
            raise BadSampling(field=field)

    def _add(
        self,
        call: int,
        wanted: Sequence[tuple[Sequence[bytes], GradItem | ScoreItem]],
        now_ms: int,
    ) -> None:
        if self.waiting + len(wanted) > QUEUED_MAX:
            raise Overloaded(retry_after_s=1)
        queued: list[_Queued] = []
        leases: list[Lease] = []
        try:
            for place, (hashes, item) in enumerate(wanted):
                mine = []
                for hash in hashes:
                    mine.append(self._bank.want(hash))
                    leases.append(mine[-1])
                queued.append(_Queued(call, place, item, tuple(mine), now_ms))
        except EngineError:
            for lease in leases:
                self._bank.give_back(lease)
            raise
        self._coming += queued
        self._take_arrived()

    def made(self) -> list[Made]:
        """What was made since last asked."""
        made, self._made = self._made, []
        return made

    def is_due(self, now_ms: int, *, is_idle: bool) -> bool:
        """Nothing else to do, or the oldest waited long enough, or a whole batch waits.

        Items whose adapter is on its way wait for it, and hold nobody up.
        """
        if self._coming:
            self._take_arrived()
        if not self._queue:
            return False
        waited_ms = now_ms - self._queue[0].since_ms
        return is_idle or waited_ms >= self._wait_ms_max or len(self._queue) >= BATCH

    def _take_arrived(self) -> None:
        """Who has its adapters joins the queue by age; a call whose adapter fails does so whole."""
        failed = {entry.call: entry.error for entry in self._coming if entry.error is not None}
        self._made += [(call, 0, error) for call, error in failed.items() if error is not None]
        lost = [entry for entry in (*self._queue, *self._coming) if entry.call in failed]
        for entry in lost:
            self._give_back(entry)
        alive = [entry for entry in self._coming if entry.call not in failed]
        self._coming = [entry for entry in alive if entry.adapters is None]
        self._queue = [entry for entry in self._queue if entry.call not in failed]
        self._queue += [entry for entry in alive if entry.adapters is not None]
        self._queue.sort(key=lambda entry: entry.since_ms)

    def run(self) -> None:
        """One batch: ≤ 8 gradients of ≤ 4,096 tokens (one always fits), or one answer to score."""
        first = self._queue[0]
        if isinstance(first.item, ScoreItem):
            packed = next(iter(first.adapters or ()), None)
            self._finish(first, self._scorer.score(first.item, packed))
            self.scored += 1
            return
        began_s = time.monotonic()
        batch, works = _batch_of(self._queue)
        made = sketches(self._model, self._stack, works, self._projector_of)
        for entry, sketch in zip(batch, made, strict=True):
            self._finish(entry, sketch)
            self.sketched += 1
        self.gradient_seconds.note(time.monotonic() - began_s)

    def _finish(self, entry: _Queued, made: Sketch | Score) -> None:
        self._queue.remove(entry)
        self._made.append((entry.call, entry.place, made))
        self._give_back(entry)

    def _give_back(self, entry: _Queued) -> None:
        for lease in entry.leases:
            self._bank.give_back(lease)

    def _projector_of(self, folder: str) -> Projector:
        known = self._projectors.pop(folder, None) or self._load_projector(folder)
        self._projectors[folder] = known  # the newest last
        if len(self._projectors) > PROJECTORS_MAX:
            del self._projectors[next(iter(self._projectors))]
        return known


def _batch_of(queue: Sequence[_Queued]) -> tuple[list[_Queued], list[Work]]:
    """The gradients at the head, as many as one backward may have."""
    batch: list[_Queued] = []
    works: list[Work] = []
    tokens = 0
    for entry in queue[:BATCH]:
        if not isinstance(entry.item, GradItem):
            break
        early, middle = entry.adapters or ()
        work = Work(entry.item, (early, middle))
        tokens += work.tokens
        if batch and tokens > BATCH_TOKENS:
            break
        batch.append(entry)
        works.append(work)
    return batch, works
