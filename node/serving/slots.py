"""The engine's core: continuous batching of many adapters over one base, one step at a time.

Why our own loop: each row needs its own adapter, seed, stops and deadline, and must get the same
tokens in a batch as alone. A step admits, prefills a bounded number of tokens, decodes one token
of every live row, and samples. Rows in flight lie dense at the front of the cache; those that
still prefill or wait for a seed lie behind them (page 50 §2).
Runs in one thread that owns the model; nothing here waits. What this file does not know: frames,
processes, payers.
"""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from node.attribution.tokens import TextTokenizer
from node.serving.adapters import BUCKETS, base_hash
from node.serving.background import Background, Made
from node.serving.backward import Projector
from node.serving.basefacts import padded
from node.serving.cache import ROWS_MIN, SlotCache, row_bytes
from node.serving.devices import choose_device, prefill_of, rows_of, slot_bytes_of
from node.serving.engine import (
    FINGERPRINT_STRIDE,
    IGNORE_EOS,
    SEED_BYTES,
    AdapterInfo,
    AdapterRef,
    BadSampling,
    DeadlinePassed,
    Ending,
    EngineError,
    EngineInfo,
    EngineSettings,
    EngineStats,
    Finish,
    GenRequest,
    GradItem,
    OutOfMemory,
    Reason,
    ScoreItem,
    Token,
    check_request,
    logprob_bytes,
)
from node.serving.fingerprints import fingerprint_matrix, fingerprints
from node.serving.live import Live, Row
from node.serving.lora import LoraStack, groups_of
from node.serving.model import (
    build_of,
    count_gpus,
    free_bytes,
    length_of,
    load_base,
    stop_tokens,
)
from node.serving.sampling import StopFilter, choose, noise_key, selftest
from node.serving.scheduler import Job, Scheduler
from node.serving.scoring import Scorer
from node.serving.tally import Tally
from node.serving.tiers import Settled, Tiers

Event = tuple[bytes, Token | Finish]


class SlotCore:
    """Model, rows, adapters and queues. Every method is called by the thread that made it.

    `tiers`: where adapters lie, and how they come.
    """

    def __init__(
        self,
        settings: EngineSettings,
        now_ms: Callable[[], int] | None = None,
        load_projector: Callable[[str], Projector] | None = None,
    ) -> None:
        self._now_ms = now_ms or (lambda: time.time_ns() // 1_000_000)
        self._device = choose_device(settings.device, count_gpus())
        selftest(self._device)
        self._model = load_base(settings.base_folder, settings.dtype_class, self._device)
        longest = length_of(self._model)
        self._length = min(settings.max_model_len or longest, longest)
        tokenizer = TextTokenizer(settings.base_folder)
        self._pieces = padded(tokenizer.pieces(), int(self._model.config.vocab_size))
        self._eos = stop_tokens(self._model, tokenizer)
        self._rows_max = rows_of(settings.rows, self._device)
        if settings.kv_bytes:
            fit = settings.kv_bytes // row_bytes(self._model, self._length)
            self._rows_max = max(1, min(self._rows_max, fit))
        slots = settings.slots or max(2 * self._rows_max, 64)
        base = base_hash(settings.base_folder)
        slot_bytes = slot_bytes_of(settings, free_bytes(self._device), len(BUCKETS))
        self._stack = LoraStack(self._model, slots, slot_bytes)
        self.tiers = Tiers(self._stack, base, settings)
        self._bank = self.tiers.bank
        self._cache = SlotCache(self._model, self._rows_max, self._length)
        self._chunk = settings.prefill_chunk
        self._scheduler = Scheduler(
            settings.aging_ms,
            settings.queue_tokens,
            settings.queue_requests,
            prefill_of(self._device),
        )
        self._live: dict[bytes, Live] = {}
        self._coming: dict[bytes, Live] = {}  # of those: whose adapter is on its way
        self._prefilling: deque[Live] = deque()
        self._rows: list[Row] = []  # by cache row; the first `_decoding` decode
        self._decoding = 0
        self._reserved = 0  # rows promised to started requests
        self._changed = True
        self.made_progress = False
        self._hidden: Tensor | None = None
        self._model.get_output_embeddings().register_forward_pre_hook(self._keep_hidden)
        self._tally = Tally()
        self._settled: list[Settled] = []
        self._prints = fingerprint_matrix(base, self._model.config.hidden_size).to(self._device)
        self.info = EngineInfo(
            kind="torch",
            base=base,
            dtype_class=settings.dtype_class,
            device=self._device,
            rows=self._rows_max,
            max_model_len=self._length,
            max_rank=BUCKETS[-1],
            vocab=int(self._model.config.vocab_size),
            can=("exact_sampling", "hidden", "gradients"),
            build=build_of(self._device),
        )
        self._background = Background(
            model=self._model,
            stack=self._stack,
            bank=self._bank,
            scorer=Scorer(self._model, self._stack, self._prints, lambda: self._hidden),
            length=self._length,
            vocab=self.info.vocab,
            load_projector=load_projector or _sketcher,
            wait_ms_max=settings.gradient_wait_ms,
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

    def submit(self, request: GenRequest, call: int | None = None) -> bool:
        """Queue a request; raises an EngineError and keeps nothing then.

        With a `call`: False while its adapter is on its way, and `settled` tells of it. Without
        one it waits for the adapter.
        """
        try:
            return self._submit(request, call)
        except EngineError as error:
            self._tally.note_rejected(error)
            raise

    def _submit(self, request: GenRequest, call: int | None) -> bool:
        check_request(request, self._length, self.info.vocab, self._rows_max)
        if request.id in self._live:
            raise BadSampling(field="id")
        sampling, adapter = request.sampling, request.adapter
        job = Job(
            request.id,
            request.tenant,
            adapter,
            0 if adapter is None else self._bank.bucket_of(adapter),
            len(request.prompt),
            sampling.max_tokens,
            sampling.n,
            request.deadline_ms,
            request.priority,
        )
        self._scheduler.admit(job, self._now_ms())
        lease = None
        try:
            if adapter is not None:
                lease = self._bank.want(adapter)
                if call is None:
                    self._bank.wait(lease)
                if lease.error is not None:
                    raise lease.error
        except EngineError:
            self._scheduler.cancel(request.id)
            raise
        now_s = time.monotonic()
        live = Live(request, request.seed, lease, None, now_s, now_s)
        self._live[request.id] = live
        if lease is not None and lease.is_waiting:
            live.call = call
            self._coming[request.id] = live
            return False
        self._learn(live)
        return True

    def _learn(self, live: Live) -> None:
        """What a request costs is known once its adapter was read."""
        if live.adapter is not None:
            self._scheduler.learn_bucket(live.request.id, live.adapter.bucket)

    # --- adapters on their way

    def poll(self) -> None:
        """Take adapters that were read; never waits."""
        self._settled += self.tiers.poll()
        for live in list(self._coming.values()):
            assert live.lease is not None
            if live.lease.error is not None:
                self._refuse(live, live.lease.error)
            elif live.lease.packed is not None:
                self._learn(live)
                self._settle(live, None)

    def settled(self) -> list[Settled]:
        """Calls that waited for an adapter, since last asked."""
        settled, self._settled = self._settled, []
        return settled

    def _refuse(self, live: Live, error: EngineError) -> None:
        self._tally.note_rejected(error)
        self._scheduler.cancel(live.request.id)
        del self._live[live.request.id]
        self._settle(live, error)

    def _settle(self, live: Live, error: EngineError | None) -> None:
        if self._coming.pop(live.request.id, None) is not None and live.call is not None:
            self._settled.append((live.call, error))

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
        self._tally.cancelled += 1
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
        tally = self._tally
        return EngineStats(
            running=len(self._live) - self._scheduler.waiting,
            waiting=self._scheduler.waiting,
            steps=tally.steps,
            prompt_tokens=tally.prompt_tokens,
            generation_tokens=tally.generation_tokens,
            refused=self._scheduler.refused,
            cancelled=tally.cancelled,
            finished=tally.finished,
            gradients_waiting=self._background.waiting,
            gradients_done=self._background.sketched,
            scored=self._background.scored,
            adapters_ram=self._bank.in_ram,
            adapters_slot=self._bank.in_slots,
            slot_loads=self._bank.slot_loads,
            batch_adapters_max=tally.mixed_max,
            waiting_adapter=len(self._coming),
            rows_used=self._reserved / self._rows_max,
            batch_adapters=tally.mixed if self._decoding else 0,
            endings=dict(tally.endings),
            rejections=dict(tally.rejections),
            times=tally.timed(self._background.gradient_seconds),
            tiers=self.tiers.stats(),
        )

    # --- one step

    def step(self) -> list[Event]:
        """Start, prefill, decode, sample; then gradients when it is their time.

        Raises OutOfMemory where a GPU has no more: what lives is lost with this core.
        """
        try:
            return self._step()
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(device=self._device, rows=self._rows_max) from error

    def _step(self) -> list[Event]:
        self.poll()
        now = self._now_ms()
        events: list[Event] = []
        for live in list(self._live.values()):
            deadline = live.request.deadline_ms
            if live.rows and 0 < deadline <= now:
                events += self._end(live, "deadline")
        free = self._rows_max - self._reserved
        plan = self._scheduler.plan(
            now, free, self._decoding > 0, self._can_start, self._begin, self._is_loaded
        )
        for id in plan.expired:
            events += self._end(self._live[id], "deadline")
        with torch.inference_mode():
            computed = self._prefill(plan.prefill_tokens)
            events += self._release_parked()
            computed += self._decoding
            if self._decoding:
                events += self._decode()
        if computed:
            self._tally.steps += 1
            self._scheduler.note_served(computed)
        waiting = self._scheduler.waiting - len(self._coming)
        is_idle = not (self._decoding or self._prefilling or waiting)
        due = self._background.is_due(now, is_idle=is_idle)
        if due:
            self._changed = True
            self._background.run()
        # Requests that wait for a seed are alive, but a step cannot move them.
        self.made_progress = bool(computed or events or due)
        return events

    def _can_start(self, job: Job) -> bool:
        if job.adapter is None:
            return True
        packed = self._live[job.id].adapter
        return packed is not None and self._bank.can_take_slot(packed)

    def _is_loaded(self, job: Job) -> bool:
        return job.adapter is None or self._live[job.id].adapter is not None

    def _begin(self, job: Job) -> None:
        """At once: the next that is asked about may want the last slot."""
        live = self._live[job.id]
        request = live.request
        if live.adapter is not None:
            live.slot = self._bank.take_slot(live.adapter)
        self._tally.note_stage(live, "request_queue_time")
        self._reserved += request.sampling.n
        live.rows = [Row(live, 0, StopFilter(request.sampling.stop))]
        self._rows.append(live.rows[0])
        self._prefilling.append(live)

    def _prefill(self, budget: int) -> int:
        """Fill prompts, first come first, at most `budget` tokens; how many were computed."""
        done = 0
        while self._prefilling and done < budget:
            live = self._prefilling[0]
            prompt = live.request.prompt
            start = live.filled
            stop = min(len(prompt), start + self._chunk, start + budget - done)
            row = self._rows.index(live.rows[0])
            logits = self._forward_prompt(live, row, start, stop)
            live.filled, live.rows[0].position = stop, stop
            done += stop - start
            self._tally.prompt_tokens += stop - start
            if stop == len(prompt):
                self._prefilling.popleft()
                assert self._hidden is not None
                live.first = logits, self._hidden[:, -1]
                self._tally.note_stage(live, "request_prefill_time")
        return done

    def _forward_prompt(self, live: Live, row: int, start: int, stop: int) -> Tensor:
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

    def _copy_choices(self, live: Live) -> None:
        """n > 1: the prompt is filled once, then its row is copied."""
        first = live.rows[0]
        source = self._rows.index(first)
        for choice in range(1, live.request.sampling.n):
            row = Row(live, choice, StopFilter(live.request.sampling.stop), first.position)
            self._cache.move(source, len(self._rows), first.position)
            self._rows.append(row)
            live.rows.append(row)

    def _promote(self, row: Row) -> None:
        """Move a row from the waiting ones to the end of those that decode."""
        at, to = self._rows.index(row), self._decoding
        if at != to:
            other = self._rows[to]
            self._cache.swap(at, to, max(row.position, other.position))
            self._rows[at], self._rows[to] = other, row
        self._decoding += 1
        self._changed = True

    def _remove(self, row: Row) -> None:
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
            self._tally.note_batch(len({place for place in places if place is not None}))
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

    def _sample(self, rows: Sequence[Row], logits: Tensor, hidden: Tensor) -> list[Event]:
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
        now_s = time.monotonic()
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
            self._tally.note_token(row, now_s)
            events += self._emit(row, shown)
        return events

    def _fingerprints(self, rows: Sequence[Row], hidden: Tensor) -> dict[int, bytes]:
        """32 bytes for each row (by place) that is at a position 0, 16, 32 …"""
        due = [at for at, row in enumerate(rows) if row.made % FINGERPRINT_STRIDE == 0]
        return dict(zip(due, fingerprints(hidden[due], self._prints), strict=True)) if due else {}

    def _emit(self, row: Row, token: Token) -> list[Event]:
        """Note and show one token, and end the choice where it stops."""
        live = row.live
        sampling = live.request.sampling
        row.made, row.last = row.made + 1, token.id
        row.logprobs += logprob_bytes(token.logprob)
        row.prints += token.fingerprint
        live.answered += 1
        self._tally.generation_tokens += 1
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

    def _end_choice(self, row: Row, reason: Reason) -> list[Event]:
        live = row.live
        tail = row.text.flush()
        live.endings[row.choice] = Ending(
            reason, row.made, tail, bytes(row.logprobs), bytes(row.prints)
        )
        self._remove(row)
        self._reserved -= 1
        live.rows.remove(row)
        return [] if live.rows else self._finish(live)

    def _end(self, live: Live, reason: Reason) -> list[Event]:
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

    def _with_missing(self, events: list[Event], live: Live, reason: Reason) -> list[Event]:
        """Fill the endings of choices that never began."""
        _, finish = events[-1]
        assert isinstance(finish, Finish)
        missing = live.request.sampling.n - len(finish.choices)
        blank = Ending(reason, 0, b"", b"", b"")
        whole = Finish(finish.prompt_tokens, finish.choices + (blank,) * missing)
        return [*events[:-1], (live.request.id, whole)]

    def _finish(self, live: Live, reason: Reason = "stop", was_started: bool = True) -> list[Event]:
        request = live.request
        del self._live[request.id]
        self._settle(live, DeadlinePassed())  # nobody listens any more if it was cancelled
        if was_started:
            if live.adapter is not None:
                self._bank.leave_slot(live.adapter)
            self._scheduler.done(request.id, live.filled + live.answered)
            reason = next(reversed(live.endings.values())).reason
        if live.lease is not None:
            self._bank.give_back(live.lease)
        if live.answered:
            self._tally.note_stage(live, "request_decode_time")
        self._tally.endings[reason] += 1
        self._tally.finished += 1
        if was_started:
            choices = tuple(live.endings[choice] for choice in sorted(live.endings))
        else:
            choices = (Ending(reason, 0, b"", b"", b""),) * request.sampling.n
        return [(request.id, Finish(len(request.prompt), choices))]


def _sketcher(folder: str) -> Projector:
    from node.attribution.basis import Sketcher

    sketcher: Projector = Sketcher.load(folder)
    return sketcher


def _top(raw: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    if not count:
        return ()
    values, ids = torch.topk(raw, min(count, len(raw)))
    return tuple(zip(ids.tolist(), values.tolist(), strict=True))
