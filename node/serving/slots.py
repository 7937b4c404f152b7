"""The engine's core: continuous batching of many adapters over one base, one step at a time.

Why our own loop: each row needs its own adapter, seed, stops and deadline, and must get the same
tokens in a batch as alone. A step admits, prefills a bounded number of tokens, decodes one token
of every live row, and samples. Rows in flight lie dense at the front of the cache; those that
still prefill or wait for a seed lie behind them (page 50 §2).
Runs in one thread that owns the model; nothing here waits. What this file does not know: frames,
processes, payers.
"""

import dataclasses
import hashlib
import math
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from consensus.primitives.digest import domain_hash
from node.attribution.tokens import TextTokenizer
from node.serving.adapters import BUCKETS, base_hash
from node.serving.background import Background, Made
from node.serving.backward import Projector
from node.serving.bank import AdapterBank, Packed
from node.serving.basefacts import padded
from node.serving.cache import ROWS_MIN, SlotCache
from node.serving.engine import (
    FINGERPRINT_STRIDE,
    FINGERPRINT_UNIT,
    FINGERPRINT_WIDTH,
    IGNORE_EOS,
    SEED_BYTES,
    AdapterInfo,
    AdapterRef,
    BadSampling,
    Ending,
    EngineInfo,
    EngineSettings,
    EngineStats,
    Finish,
    GenRequest,
    GradItem,
    Reason,
    ScoreItem,
    Token,
    TooLong,
    check_sampling,
    fixed_point,
    logprob_bytes,
)
from node.serving.lora import LoraStack, groups_of
from node.serving.model import length_of, load_base
from node.serving.sampling import StopFilter, choose, noise_key, noise_words, selftest
from node.serving.scheduler import Job, Scheduler
from node.serving.scoring import Scorer

PREFILL_CHUNK: Final = 512

Event = tuple[bytes, Token | Finish]


@dataclass(slots=True, eq=False)
class _Row:
    """One choice of a live request, in one row of the cache."""

    live: "_Live"
    choice: int
    text: StopFilter
    position: int = 0  # tokens in the cache
    last: int = 0  # sampled, not yet in the cache
    made: int = 0
    logprobs: bytearray = field(default_factory=bytearray)
    prints: bytearray = field(default_factory=bytearray)


@dataclass(slots=True, eq=False)
class _Live:
    """A request that has rows, or waits for them."""

    request: GenRequest
    seed: bytes | None
    adapter: Packed | None
    slot: int | None = None
    filled: int = 0  # prompt tokens in the cache
    first: tuple[Tensor, Tensor] | None = None  # logits and hidden state, waiting for the seed
    rows: list[_Row] = field(default_factory=list)
    endings: dict[int, Ending] = field(default_factory=dict)
    answered: int = 0

    @property
    def place(self) -> tuple[int, int] | None:
        """(bucket, slot), or None for the base alone."""
        if self.adapter is None or self.slot is None:
            return None
        return self.adapter.bucket, self.slot


class SlotCore:
    """Model, rows, adapters and queues. Every method is called by the thread that made it."""

    def __init__(
        self,
        settings: EngineSettings,
        now_ms: Callable[[], int] | None = None,
        load_projector: Callable[[str], Projector] | None = None,
    ) -> None:
        self._now_ms = now_ms or (lambda: time.time_ns() // 1_000_000)
        selftest(settings.device)
        self._model = load_base(settings.base_folder, settings.dtype_class, settings.device)
        longest = length_of(self._model)
        self._length = min(settings.max_model_len or longest, longest)
        tokenizer = TextTokenizer(settings.base_folder)
        self._pieces = padded(tokenizer.pieces(), int(self._model.config.vocab_size))
        self._eos = _stop_tokens(self._model, tokenizer)
        self._device = settings.device
        self._rows_max = settings.rows
        slots = settings.slots or max(2 * settings.rows, 64)
        self._stack = LoraStack(self._model, slots)
        self._bank = AdapterBank(self._stack, settings.ram_bytes)
        self._cache = SlotCache(self._model, settings.rows, self._length)
        self._scheduler = Scheduler()
        self._live: dict[bytes, _Live] = {}
        self._prefilling: deque[_Live] = deque()
        self._rows: list[_Row] = []  # by cache row; the first `_decoding` decode
        self._decoding = 0
        self._reserved = 0  # rows promised to started requests
        self._changed = True
        self.made_progress = False
        self._hidden: Tensor | None = None
        self._model.get_output_embeddings().register_forward_pre_hook(self._keep_hidden)
        self._counts = dict.fromkeys(
            ("steps", "prompt", "generated", "cancelled", "finished", "mixed"), 0
        )
        base = base_hash(settings.base_folder)
        self._prints = _fingerprint_matrix(base, self._model.config.hidden_size).to(self._device)
        self.info = EngineInfo(
            kind="torch",
            base=base,
            dtype_class=settings.dtype_class,
            device=settings.device,
            rows=settings.rows,
            max_model_len=self._length,
            max_rank=BUCKETS[-1],
            vocab=int(self._model.config.vocab_size),
            can=("exact_sampling", "hidden", "gradients"),
            build=_build(settings.device),
        )
        self._background = Background(
            model=self._model,
            stack=self._stack,
            bank=self._bank,
            scorer=Scorer(self._model, self._stack, self._prints, lambda: self._hidden),
            length=self._length,
            vocab=self.info.vocab,
            load_projector=load_projector or _sketcher,
        )

    # --- requests

    def load(self, ref: AdapterRef, pin: bool = False) -> AdapterInfo:
        """Read, check and keep an adapter; raises BadAdapter, WrongBase, Overloaded."""
        return self._bank.load(ref, pin)

    def register(self, ref: AdapterRef) -> None:
        """Know an adapter that was checked before; it is read when it is first wanted."""
        self._bank.register(ref)

    def unload(self, adapter: bytes, drain: bool = False) -> None:
        """Forget an adapter; raises UnknownAdapter, AdapterBusy."""
        self._bank.unload(adapter, drain)

    def adapters(self) -> list[AdapterInfo]:
        """Every adapter that is known, with its tier."""
        return self._bank.infos()

    def submit(self, request: GenRequest) -> None:
        """Queue a request; raises an EngineError and keeps nothing then."""
        sampling = request.sampling
        check_sampling(sampling, self._length)
        if not request.prompt or len(request.prompt) + sampling.max_tokens > self._length:
            raise TooLong(limit=self._length)
        if not all(0 <= token < self.info.vocab for token in request.prompt):
            raise BadSampling(field="prompt")
        if sampling.n > self._rows_max:
            raise BadSampling(field="n", value=sampling.n)
        if request.id in self._live or request.priority not in (0, 1):
            raise BadSampling(field="id" if request.id in self._live else "priority")
        if request.seed is not None and len(request.seed) != SEED_BYTES:
            raise BadSampling(field="seed")
        packed = None if request.adapter is None else self._bank.refer(request.adapter)
        job = Job(
            request.id,
            request.tenant,
            request.adapter,
            0 if packed is None else packed.bucket,
            len(request.prompt),
            sampling.max_tokens,
            sampling.n,
            request.deadline_ms,
            request.priority,
        )
        try:
            self._scheduler.admit(job, self._now_ms())
        except Exception:
            if packed is not None:
                self._bank.release(packed)
            raise
        self._live[request.id] = _Live(request, request.seed, packed)

    def reveal(self, id: bytes, seed: bytes) -> None:
        """The seed a request waits for; of an ended or already seeded one, nothing happens."""
        live = self._live.get(id)
        if live is not None and live.seed is None and len(seed) == SEED_BYTES:
            live.seed = seed

    def cancel(self, id: bytes) -> list[Event]:
        """End a request now: its rows, its place in the queue and its adapter are free."""
        live = self._live.get(id)
        if live is None:
            return []
        self._counts["cancelled"] += 1
        return self._end(live, "cancelled")

    def add_gradients(self, call: int, items: Sequence[GradItem]) -> None:
        """Queue all or none; `made` gives (call, place, Sketch) later. Raises Overloaded,
        UnknownAdapter, BadSampling, BadAdapter."""
        self._background.add_gradients(call, items, self._now_ms())

    def add_scores(self, call: int, items: Sequence[ScoreItem]) -> None:
        """Queue all or none; `made` gives (call, place, Score) later. Raises Overloaded,
        UnknownAdapter, BadSampling, TooLong."""
        self._background.add_scores(call, items, self._now_ms())

    def made(self) -> list[Made]:
        """Sketches and scores made since last asked."""
        return self._background.made()

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything, now or when a seed comes."""
        return bool(self._live or self._background.waiting)

    @property
    def live(self) -> int:
        """Requests that wait or run."""
        return len(self._live)

    def stats(self) -> EngineStats:
        """Counters since the start."""
        counts = self._counts
        return EngineStats(
            running=len(self._live) - self._scheduler.waiting,
            waiting=self._scheduler.waiting,
            steps=counts["steps"],
            prompt_tokens=counts["prompt"],
            generation_tokens=counts["generated"],
            refused=self._scheduler.refused,
            cancelled=counts["cancelled"],
            finished=counts["finished"],
            gradients_waiting=self._background.waiting,
            gradients_done=self._background.sketched,
            scored=self._background.scored,
            adapters_ram=self._bank.in_ram,
            adapters_slot=self._bank.in_slots,
            slot_loads=self._bank.slot_loads,
            batch_adapters_max=counts["mixed"],
        )

    # --- one step

    def step(self) -> list[Event]:
        """Start, prefill, decode, sample; then gradients when it is their time."""
        now = self._now_ms()
        events: list[Event] = []
        for live in list(self._live.values()):
            deadline = live.request.deadline_ms
            if live.rows and 0 < deadline <= now:
                events += self._end(live, "deadline")
        free = self._rows_max - self._reserved
        plan = self._scheduler.plan(now, free, self._decoding > 0, self._can_start, self._begin)
        for id in plan.expired:
            events += self._end(self._live[id], "deadline")
        with torch.inference_mode():
            computed = self._prefill(plan.prefill_tokens)
            events += self._release_parked()
            computed += self._decoding
            if self._decoding:
                events += self._decode()
        if computed:
            self._counts["steps"] += 1
            self._scheduler.note_served(computed, now)
        is_idle = not (self._decoding or self._prefilling or self._scheduler.waiting)
        due = self._background.is_due(now, is_idle=is_idle)
        if due:
            self._changed = True
            self._background.run()
        # Requests that wait for a seed are alive, but a step cannot move them.
        self.made_progress = bool(computed or events or due)
        return events

    def _can_start(self, job: Job) -> bool:
        return job.adapter is None or self._bank.can_take_slot(job.adapter)

    def _begin(self, job: Job) -> None:
        live = self._live[job.id]
        request = live.request
        if live.adapter is not None:
            live.slot = self._bank.take_slot(live.adapter)
        self._reserved += request.sampling.n
        live.rows = [_Row(live, 0, StopFilter(request.sampling.stop))]
        self._rows.append(live.rows[0])
        self._prefilling.append(live)

    def _prefill(self, budget: int) -> int:
        """Fill prompts, first come first, at most `budget` tokens; how many were computed."""
        done = 0
        while self._prefilling and done < budget:
            live = self._prefilling[0]
            prompt = live.request.prompt
            start = live.filled
            stop = min(len(prompt), start + PREFILL_CHUNK, start + budget - done)
            row = self._rows.index(live.rows[0])
            logits = self._forward_prompt(live, row, start, stop)
            live.filled, live.rows[0].position = stop, stop
            done += stop - start
            self._counts["prompt"] += stop - start
            if stop == len(prompt):
                self._prefilling.popleft()
                assert self._hidden is not None
                live.first = logits, self._hidden[:, -1]
        return done

    def _forward_prompt(self, live: _Live, row: int, start: int, stop: int) -> Tensor:
        """Logits float32 [1, vocab] of the last token of prompt[start:stop]."""
        self._stack.use(groups_of([live.place]))
        self._changed = True
        self._cache.prefill(row, start, stop)
        positions = torch.arange(start, stop, device=self._device)
        mask = torch.arange(stop, device=self._device)[None, :] <= positions[:, None]
        ids = torch.tensor([live.request.prompt[start:stop]], device=self._device)
        out = self._model(
            input_ids=ids,
            position_ids=positions[None],
            attention_mask=mask[None, None],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = out.logits[:, -1].float()
        return logits

    def _release_parked(self) -> list[Event]:
        """Sample the first tokens of requests whose prompt is filled and whose seed is known."""
        events: list[Event] = []
        for live in list(self._live.values()):
            if live.first is None:
                continue
            sampling = live.request.sampling
            if live.seed is None and sampling.temperature_milli:
                continue
            logits, hidden = live.first
            live.first = None
            self._copy_choices(live)
            for row in live.rows:
                self._promote(row)
            count = len(live.rows)
            rows = list(live.rows)
            events += self._sample(rows, logits.expand(count, -1), hidden.expand(count, -1))
        return events

    def _copy_choices(self, live: _Live) -> None:
        """n > 1: the prompt is filled once, then its row is copied."""
        first = live.rows[0]
        source = self._rows.index(first)
        for choice in range(1, live.request.sampling.n):
            row = _Row(live, choice, StopFilter(live.request.sampling.stop), first.position)
            self._cache.move(source, len(self._rows), first.position)
            self._rows.append(row)
            live.rows.append(row)

    def _promote(self, row: _Row) -> None:
        """Move a row from the waiting ones to the end of those that decode."""
        at, to = self._rows.index(row), self._decoding
        if at != to:
            other = self._rows[to]
            self._cache.swap(at, to, max(row.position, other.position))
            self._rows[at], self._rows[to] = other, row
        self._decoding += 1
        self._changed = True

    def _remove(self, row: _Row) -> None:
        """Free a row: the last decoding one takes its place, the last waiting one the hole."""
        hole = self._rows.index(row)
        if hole < self._decoding:
            self._fill_hole(self._decoding - 1, hole)
            hole = self._decoding - 1
            self._decoding -= 1
        self._fill_hole(len(self._rows) - 1, hole)
        self._rows.pop()
        self._changed = True

    def _fill_hole(self, source: int, hole: int) -> None:
        if source != hole:
            self._cache.move(source, hole, self._rows[source].position)
            self._rows[hole] = self._rows[source]

    def _decode(self) -> list[Event]:
        """One token of every decoding row."""
        rows = self._rows[: self._decoding]
        if self._changed:
            places = [row.live.place for row in rows]
            self._stack.use(groups_of(places))
            self._changed = False
            mixed = len({place for place in places if place is not None})
            self._counts["mixed"] = max(self._counts["mixed"], mixed)
        count = len(rows)
        batch = max(count, ROWS_MIN)
        pad = [0] * (batch - count)
        positions = torch.tensor([row.position for row in rows], device=self._device)
        at = torch.tensor([row.position for row in rows] + pad, device=self._device)
        ids = torch.tensor([[row.last] for row in rows] + [[0]] * len(pad), device=self._device)
        longest = max(row.position for row in rows) + 1
        mask = torch.arange(longest, device=self._device)[None] <= at[:, None]
        self._cache.decode(positions, batch, longest)
        out = self._model(
            input_ids=ids,
            position_ids=at[:, None],
            attention_mask=mask[:, None, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        for row in rows:
            row.position += 1
        assert self._hidden is not None
        return self._sample(rows, out.logits[:count, -1].float(), self._hidden[:count, -1])

    # --- tokens

    def _keep_hidden(self, module: Any, args: tuple[Tensor, ...]) -> None:
        self._hidden = args[0].detach()

    def _sample(self, rows: Sequence[_Row], logits: Tensor, hidden: Tensor) -> list[Event]:
        """Choose a token per row, note evidence, emit, and end what has ended."""
        samplings = [row.live.request.sampling for row in rows]
        keys = [
            noise_key(row.live.seed, row.choice, row.made)
            if row.live.seed is not None and sampling.temperature_milli
            else None
            for row, sampling in zip(rows, samplings, strict=True)
        ]
        chosen = choose(logits, samplings, keys)
        raw = torch.log_softmax(logits, -1)
        logprobs = raw.gather(1, chosen[:, None])[:, 0].tolist()
        prints = self._fingerprints(rows, hidden)
        events: list[Event] = []
        for at, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
            shown = Token(
                row.choice,
                row.made,
                token,
                b"",
                logprobs[at],
                _top(raw[at], samplings[at].logprobs),
                prints.get(at, b""),
            )
            events += self._emit(row, shown)
        return events

    def _fingerprints(self, rows: Sequence[_Row], hidden: Tensor) -> dict[int, bytes]:
        """32 bytes for each row (by place) that is at a position 0, 16, 32 …"""
        due = [at for at, row in enumerate(rows) if row.made % FINGERPRINT_STRIDE == 0]
        if not due:
            return {}
        values = (hidden[due].float() @ self._prints).tolist()
        return {
            at: b"".join(fixed_point(value, FINGERPRINT_UNIT) for value in eight)
            for at, eight in zip(due, values, strict=True)
        }

    def _emit(self, row: _Row, token: Token) -> list[Event]:
        """Note and show one token, and end the choice where it stops."""
        live = row.live
        sampling = live.request.sampling
        row.made, row.last = row.made + 1, token.id
        row.logprobs += logprob_bytes(token.logprob)
        row.prints += token.fingerprint
        live.answered += 1
        self._counts["generated"] += 1
        shown, stopped = row.text.push(self._pieces[token.id])
        if token.id in self._eos and not sampling.flags & IGNORE_EOS:
            stopped = True
            shown += row.text.flush()
        events: list[Event] = [(live.request.id, dataclasses.replace(token, text=shown))]
        if stopped:
            events += self._end_choice(row, "stop")
        elif row.made == sampling.max_tokens:
            events += self._end_choice(row, "length")
        return events

    def _end_choice(self, row: _Row, reason: Reason) -> list[Event]:
        live = row.live
        tail = row.text.flush()
        live.endings[row.choice] = Ending(
            reason, row.made, tail, bytes(row.logprobs), bytes(row.prints)
        )
        self._remove(row)
        self._reserved -= 1
        live.rows.remove(row)
        return [] if live.rows else self._finish(live)

    def _end(self, live: _Live, reason: Reason) -> list[Event]:
        """End a request wherever it is; choices that were never copied end with no token."""
        if not live.rows and not live.endings:  # still in the queue, or expired from it
            self._scheduler.cancel(live.request.id)
            return self._finish(live, reason, was_started=False)
        if live in self._prefilling:
            self._prefilling.remove(live)
        begun = {row.choice for row in live.rows} | set(live.endings)
        self._reserved -= live.request.sampling.n - len(begun)
        for row in list(live.rows):
            done = self._end_choice(row, reason)
            if done:
                return self._with_missing(done, live, reason)
        raise AssertionError("a live request has a row")

    def _with_missing(self, events: list[Event], live: _Live, reason: Reason) -> list[Event]:
        """Fill the endings of choices that never began."""
        _, finish = events[-1]
        assert isinstance(finish, Finish)
        missing = live.request.sampling.n - len(finish.choices)
        blank = Ending(reason, 0, b"", b"", b"")
        whole = Finish(finish.prompt_tokens, finish.choices + (blank,) * missing)
        return [*events[:-1], (live.request.id, whole)]

    def _finish(
        self, live: _Live, reason: Reason = "stop", was_started: bool = True
    ) -> list[Event]:
        request = live.request
        del self._live[request.id]
        if was_started:
            if live.adapter is not None:
                self._bank.leave_slot(live.adapter)
            self._scheduler.done(request.id, live.filled + live.answered)
        if live.adapter is not None:
            self._bank.release(live.adapter)
        self._counts["finished"] += 1
        if was_started:
            choices = tuple(live.endings[choice] for choice in sorted(live.endings))
        else:
            choices = (Ending(reason, 0, b"", b"", b""),) * request.sampling.n
        return [(request.id, Finish(len(request.prompt), choices))]


def _sketcher(folder: str) -> Projector:
    from node.attribution.basis import Sketcher

    sketcher: Projector = Sketcher.load(folder)
    return sketcher


def _stop_tokens(model: Any, tokenizer: TextTokenizer) -> frozenset[int]:
    listed = model.generation_config.eos_token_id
    ids = set(listed if isinstance(listed, list) else [] if listed is None else [listed])
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return frozenset(int(token) for token in ids)


def _top(raw: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    if not count:
        return ()
    values, ids = torch.topk(raw, min(count, len(raw)))
    return tuple(zip(ids.tolist(), values.tolist(), strict=True))


def _fingerprint_matrix(base: bytes, hidden: int) -> Tensor:
    """hidden × 8 of ±1/√hidden; an even word is plus (page 50 §8)."""
    digest = domain_hash(b"fp", base)
    key = int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")
    ids = torch.arange(hidden * FINGERPRINT_WIDTH, dtype=torch.int32)
    signs = 1.0 - 2.0 * (noise_words([key], ids)[0] & 1).float()
    return signs.view(hidden, FINGERPRINT_WIDTH) / math.sqrt(hidden)


def _build(device: str) -> bytes:
    """What could make two engines compute differently: versions and the device's name."""
    import platform

    import transformers

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    text = f"{torch.__version__}/{transformers.__version__}/{name}"
    return hashlib.sha256(text.encode()).digest()


def use_threads(count: int) -> None:
    """Compute with `count` threads, or all cores but one: the daemon needs the other."""
    torch.set_num_threads(count or max(1, (os.cpu_count() or 2) - 1))
