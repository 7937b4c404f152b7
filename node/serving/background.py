"""Work behind the requests: sketches of answers, and others' answers run again.

Why behind: a payer waits for tokens, nobody waits for these. They run when nothing decodes, or
when the oldest has waited long enough, or when a whole batch is there; one batch, then decoding
goes on (page 50 §9). First come, first served among themselves.
What this file does not know: requests, rows, who asked.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from node.serving.backward import Projector, Work, sketches
from node.serving.bank import AdapterBank, Packed
from node.serving.engine import (
    CHOICES_MAX,
    SEED_BYTES,
    BadSampling,
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

QUEUED_MAX: Final = 256
MAX_WAIT_MS: Final = 2_000
BATCH: Final = 8
BATCH_TOKENS: Final = 4_096
PROJECTORS_MAX: Final = 8

Made = tuple[int, int, Sketch | Score]  # call, place in the call's list, result


@dataclass(frozen=True, slots=True)
class _ToScore:
    item: ScoreItem
    packed: Packed | None

    @property
    def adapters(self) -> tuple[Packed, ...]:
        return () if self.packed is None else (self.packed,)


@dataclass(frozen=True, slots=True)
class _Queued:
    call: int
    place: int
    work: Work | _ToScore
    since_ms: int


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
    ) -> None:
        self._model = model
        self._stack = stack
        self._bank = bank
        self._scorer = scorer
        self._length = length
        self._vocab = vocab
        self._load_projector = load_projector
        self._projectors: dict[str, Projector] = {}
        self._queue: deque[_Queued] = deque()
        self._made: list[Made] = []
        self.sketched = 0
        self.scored = 0

    @property
    def waiting(self) -> int:
        """Items that wait."""
        return len(self._queue)

    def add_gradients(self, call: int, items: Sequence[GradItem], now_ms: int) -> None:
        """Queue all or none; raises Overloaded, UnknownAdapter, BadSampling, BadAdapter."""
        for item in items:
            if not item.answers:
                raise BadSampling(field="answers")
            for ids in (item.prompt, *item.answers):
                self._check_ids(ids, "answers")
        self._add(call, [(item.checkpoints, _gradient_of(item)) for item in items], now_ms)

    def add_scores(self, call: int, items: Sequence[ScoreItem], now_ms: int) -> None:
        """Queue all or none; raises Overloaded, UnknownAdapter, BadSampling, TooLong."""
        for item in items:
            self._check_score(item)
        wanted = [
            (() if item.adapter is None else (item.adapter,), _score_of(item)) for item in items
        ]
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
        wanted: Sequence[tuple[Sequence[bytes], Callable[[list[Packed]], Work | _ToScore]]],
        now_ms: int,
    ) -> None:
        if len(self._queue) + len(wanted) > QUEUED_MAX:
            raise Overloaded(retry_after_s=1)
        referred: list[Packed] = []
        queued = []
        try:
            for place, (hashes, make) in enumerate(wanted):
                mine = []
                for hash in hashes:
                    mine.append(self._bank.refer(hash))
                    referred.append(mine[-1])
                queued.append(_Queued(call, place, make(mine), now_ms))
        except Exception:
            for packed in referred:
                self._bank.release(packed)
            raise
        self._queue.extend(queued)

    def made(self) -> list[Made]:
        """What was made since last asked."""
        made, self._made = self._made, []
        return made

    def is_due(self, now_ms: int, *, is_idle: bool) -> bool:
        """Nothing else to do, or the oldest waited long enough, or a whole batch waits."""
        if not self._queue:
            return False
        waited_ms = now_ms - self._queue[0].since_ms
        return is_idle or waited_ms >= MAX_WAIT_MS or len(self._queue) >= BATCH

    def run(self) -> None:
        """One batch: ≤ 8 gradients of ≤ 4,096 tokens (one always fits), or one answer to score."""
        first = self._queue[0].work
        if isinstance(first, _ToScore):
            entry = self._queue.popleft()
            self._finish(entry, self._scorer.score(first.item, first.packed))
            self.scored += 1
            return
        batch: list[_Queued] = []
        works: list[Work] = []
        tokens = 0
        while self._queue and len(batch) < BATCH:
            work = self._queue[0].work
            if not isinstance(work, Work):
                break
            tokens += work.tokens
            if batch and tokens > BATCH_TOKENS:
                break
            batch.append(self._queue.popleft())
            works.append(work)
        made = sketches(self._model, self._stack, works, self._projector_of)
        for entry, sketch in zip(batch, made, strict=True):
            self._finish(entry, sketch)
            self.sketched += 1

    def _finish(self, entry: _Queued, made: Sketch | Score) -> None:
        self._made.append((entry.call, entry.place, made))
        for packed in entry.work.adapters:
            self._bank.release(packed)

    def _projector_of(self, folder: str) -> Projector:
        known = self._projectors.pop(folder, None) or self._load_projector(folder)
        self._projectors[folder] = known  # the newest last
        if len(self._projectors) > PROJECTORS_MAX:
            del self._projectors[next(iter(self._projectors))]
        return known


def _gradient_of(item: GradItem) -> Callable[[list[Packed]], Work]:
    return lambda adapters: Work(item, (adapters[0], adapters[1]))


def _score_of(item: ScoreItem) -> Callable[[list[Packed]], _ToScore]:
    return lambda adapters: _ToScore(item, adapters[0] if adapters else None)
