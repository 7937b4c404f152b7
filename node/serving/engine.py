"""What an inference engine promises: its values, its protocol, its errors.

Why a protocol: the service, the tests and the embedded devnet use the same words whether the
engine is a child process or a thread. An engine knows adapters by content hash alone, a tenant
as opaque bytes, and time as Unix milliseconds; it knows no money, no peers and no ledger.
What this file does not know: torch, processes, how a batch is made.
"""

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from consensus.primitives.digest import sha256
from consensus.primitives.encoding import encode
from node.serving.timing import Timed

TEMPERATURE_MILLI_MAX: Final = 2_000
TOP_P_MILLI_MAX: Final = 1_000
TOP_K_MAX: Final = 1_024
CHOICES_MAX: Final = 8
STOPS_MAX: Final = 4
STOP_BYTES_MAX: Final = 64
LOGPROBS_MAX: Final = 20
IGNORE_EOS: Final = 1  # flag bit 0 of Sampling
SEED_BYTES: Final = 32
ROWS: Final = 32  # of an engine that is told of no other number
AUTO: Final = "auto"  # of a device or a dtype class: as there is, or as is needed
SKETCH_BYTES: Final = 1_024
FINGERPRINT_STRIDE: Final = 16  # answer positions from one fingerprint to the next
FINGERPRINT_WIDTH: Final = 8
FINGERPRINT_UNIT: Final = 2**16
LOGPROB_UNIT: Final = 2**20
_I32_MAX: Final = 2**31 - 1

Reason = Literal["stop", "length", "cancelled", "deadline", "engine_lost"]
Tier = Literal["slot", "ram", "disk"]
State = Literal["starting", "ready", "restarting", "down", "closed"]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a running engine is; `build` hashes versions and device, `can` names its abilities."""

    kind: str
    base: bytes
    dtype_class: str
    device: str
    rows: int
    max_model_len: int
    max_rank: int
    vocab: int
    can: tuple[str, ...]
    build: bytes


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine is started with. A zero is chosen by the engine: its device's rows, the
    model's length, twice the rows (at least 64) as slots, or what fits a part of a GPU's memory,
    all cores but one as threads.

    `device`: `auto`, `cpu`, `cuda` or `cuda:N` (`devices.py`); `dtype_class` is `fp32` or `bf16`
    by the time of the start, `auto` before its host knows what is pinned.
    `kv_bytes` bounds keys and values, so that fewer rows are made, but one; `slot_bytes` the slots
    of one rank bucket; 0: nothing does. `disk_folder` is where packed adapters are kept, empty or
    with 0 `disk_bytes`: nowhere; `disk_free_bytes` what they must leave of the disk. `can_fetch`:
    its host answers when an adapter's files are gone (the client sets it).
    """

    base_folder: str
    rows: int = ROWS
    max_model_len: int = 0
    slots: int = 0
    threads: int = 0
    dtype_class: str = "fp32"
    device: str = "cpu"
    ram_bytes: int = 2 * 2**30
    slot_bytes: int = 0
    disk_folder: str = ""
    disk_bytes: int = 50 * 2**30
    disk_free_bytes: int = 0
    can_fetch: bool = False
    kv_bytes: int = 0
    prefill_chunk: int = 512
    queue_tokens: int = 65_536
    queue_requests: int = 256
    aging_ms: int = 2_000
    gradient_wait_ms: int = 2_000


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """An adapter's content hash and the peft folder that should hold it."""

    hash: bytes
    folder: str


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """An adapter; `bytes` is its packed size in memory. What was never read is 0 or empty."""

    hash: bytes
    rank: int
    bucket: int
    targets: tuple[str, ...]
    bytes: int
    tier: Tier


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens. temperature_milli 0 is greedy: no noise, no seed. top_k 0 is off."""

    max_tokens: int
    temperature_milli: int = 0
    top_p_milli: int = TOP_P_MILLI_MAX
    top_k: int = 0
    n: int = 1
    stop: tuple[bytes, ...] = ()
    logprobs: int = 0
    flags: int = 0


@dataclass(frozen=True, slots=True)
class GenRequest:
    """One request. `tenant` is who shares fairly, `seed` None waits for `Stream.reveal`.

    `deadline_ms` is Unix time, 0 for none. `priority` 1 runs only when nobody else waits.
    """

    id: bytes
    tenant: bytes
    adapter: bytes | None
    prompt: tuple[int, ...]
    sampling: Sampling
    seed: bytes | None = None
    deadline_ms: int = 0
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Token:
    """One token of one choice; `text` is what may be shown now, held-back bytes come later.

    `logprob` is of the raw distribution, in nats; `top` the best alternatives, if asked for;
    `fingerprint` 32 bytes at answer positions 0, 16, 32 …, else empty.
    """

    choice: int
    position: int
    id: int
    text: bytes
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    fingerprint: bytes = b""


@dataclass(frozen=True, slots=True)
class Ending:
    """How one choice ended; `tail` is text that was still held back.

    `logprobs`: i32 big-endian, 2^-20 nats, one a token. `fingerprints`: 8 × i32 big-endian,
    2^-16 units, at answer positions 0, 16, 32 … (page 50 §8).
    """

    reason: Reason
    answer_tokens: int
    tail: bytes
    logprobs: bytes
    fingerprints: bytes


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of a stream: one Ending per choice."""

    prompt_tokens: int
    choices: tuple[Ending, ...]

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Why each choice ended."""
        return tuple(choice.reason for choice in self.choices)


@dataclass(frozen=True, slots=True)
class GradItem:
    """An answer whose sketch is wanted: early and middle checkpoint, prompt, n ≥ 1 answers."""

    checkpoints: tuple[bytes, bytes]
    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    index_folder: str


@dataclass(frozen=True, slots=True)
class Sketch:
    """1,024 bytes, or empty with the word that says why there is none."""

    data: bytes
    error: str = ""


@dataclass(frozen=True, slots=True)
class ScoreItem:
    """One choice of another's answer, to be run again: what it was asked, how, and what it said.

    `slack` in nats: at the edge of a filter a rival counts only if it is inside by more.
    """

    adapter: bytes | None
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    sampling: Sampling
    seed: bytes | None = None
    choice: int = 0
    slack: float = 0.0


@dataclass(frozen=True, slots=True)
class Score:
    """What this engine thinks of an answer, one value a token, in nats.

    `margins`: by how much another token should have been chosen, 0 where the answer's was.
    `fingerprints`: 8 values each at positions 0, 16, 32 … (page 50 §8).
    """

    logprobs: tuple[float, ...]
    margins: tuple[float, ...]
    fingerprints: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class TierStats:
    """Adapters by where they lie, and what moved since the start."""

    registered: int = 0
    ram_bytes: int = 0
    disk_bytes: int = 0
    evictions: dict[str, int] = field(default_factory=dict)  # by tier
    load_times: dict[str, Timed] = field(default_factory=dict)  # by where it was loaded from
    copies_rotten: int = 0  # of the disk tier
    copies_unwritten: int = 0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since the engine started, and what is in it now."""

    running: int = 0
    waiting: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    refused: int = 0
    cancelled: int = 0
    finished: int = 0
    gradients_waiting: int = 0
    gradients_done: int = 0
    scored: int = 0
    adapters_ram: int = 0
    adapters_slot: int = 0
    slot_loads: int = 0
    batch_adapters_max: int = 0
    restarts: int = 0
    waiting_adapter: int = 0  # of `waiting`: those whose adapter is on its way
    rows_used: float = 0.0  # the part of the rows that is promised or taken
    batch_adapters: int = 0  # that the newest batch mixed
    endings: dict[str, int] = field(default_factory=dict)  # requests by how they ended
    rejections: dict[str, int] = field(default_factory=dict)  # by the last word of the code
    times: dict[str, Timed] = field(default_factory=dict)  # by what was timed
    tiers: TierStats = TierStats()


class EngineError(Exception):
    """The engine will not do it; `code` is the stable word for wire and logs."""

    code = "engine.error"

    def __init__(self, **facts: object) -> None:
        super().__init__(self.code, facts)
        self.facts = facts

    def __str__(self) -> str:
        told = ", ".join(f"{name}={value!r}" for name, value in self.facts.items())
        return f"{self.code} ({told})" if told else self.code


class Overloaded(EngineError):
    """A queue is full; `retry_after_s` 1..60 tells when to ask again."""

    code = "engine.overloaded"

    @property
    def retry_after_s(self) -> int:
        """Seconds until the queue should have moved on."""
        seconds = self.facts.get("retry_after_s", 1)
        return seconds if isinstance(seconds, int) else 1


class UnknownAdapter(EngineError):
    """No adapter of that hash was loaded."""

    code = "engine.unknown_adapter"


class WrongBase(EngineError):
    """The adapter's shapes do not fit this engine's base."""

    code = "engine.wrong_base"


class BadAdapter(EngineError):
    """The adapter's files break a rule; `key` names the field, tensor or file."""

    code = "engine.bad_adapter"


class AdapterBusy(EngineError):
    """A live request or a queued gradient still needs the adapter."""

    code = "engine.adapter_busy"


class TooLong(EngineError):
    """Prompt and answer do not fit; `limit` is the model's length."""

    code = "engine.too_long"


class BadSampling(EngineError):
    """A field of the sampling (or of the request) is out of range; `field` names it."""

    code = "engine.bad_sampling"


class DeadlinePassed(EngineError):
    """The deadline is in the past, or would be before the first token."""

    code = "engine.deadline_passed"


class EngineLost(EngineError):
    """The worker died or is down."""

    code = "engine.lost"


class NoDevice(EngineError):
    """Torch does not see the device that was `asked` for; `found` lists those it sees."""

    code = "engine.no_device"


class WrongDtype(EngineError):
    """A version pins fp32, and the `engine` computes in bf16."""

    code = "engine.wrong_dtype"


class OutOfMemory(EngineError):
    """The memory of the `device` did not do for so many `rows`; its worker ends."""

    code = "engine.out_of_memory"


class Unsupported(EngineError):
    """This engine cannot do `what`."""

    code = "engine.unsupported"


ERRORS: Final[dict[str, type[EngineError]]] = {
    kind.code: kind
    for kind in (
        EngineError,
        Overloaded,
        UnknownAdapter,
        WrongBase,
        BadAdapter,
        AdapterBusy,
        TooLong,
        BadSampling,
        DeadlinePassed,
        EngineLost,
        NoDevice,
        WrongDtype,
        OutOfMemory,
        Unsupported,
    )
}


class Stream(Protocol):
    """One request's answer. Iterating gives tokens and ends with exactly one Finish."""

    def __aiter__(self) -> AsyncIterator[Token | Finish]: ...

    def reveal(self, seed: bytes) -> None:
        """Give the 32-byte seed; sampling waits for it, prefill does not."""
        ...


class Engine(Protocol):
    """What serves. Every method may raise EngineLost; leaving a stream's context cancels it."""

    @property
    def info(self) -> EngineInfo:
        """What this engine is; known once it has started."""
        ...

    async def load_adapter(self, ref: AdapterRef, pin: bool = False) -> AdapterInfo:
        """Read, check and keep an adapter; raises BadAdapter, WrongBase, Overloaded."""
        ...

    async def unload_adapter(self, adapter: bytes, drain: bool = False) -> None:
        """Forget an adapter; raises UnknownAdapter, AdapterBusy unless `drain`."""
        ...

    async def adapters(self) -> list[AdapterInfo]:
        """Every adapter that was loaded and not forgotten, with where it lies now."""
        ...

    def submit(self, request: GenRequest) -> AbstractAsyncContextManager[Stream]:
        """Queue a request; entering raises every EngineError, after that only a Finish ends it."""
        ...

    async def gradients(self, items: Sequence[GradItem]) -> list[Sketch]:
        """The sketches of answers, in order, at low priority; raises Overloaded."""
        ...

    async def score(self, items: Sequence[ScoreItem]) -> list[Score]:
        """Others' answers run again, in order, at low priority; raises Overloaded, TooLong,
        UnknownAdapter, BadSampling."""
        ...

    def stats(self) -> EngineStats:
        """The newest counters the engine has told."""
        ...

    async def aclose(self, drain_s: float = 10.0) -> None:
        """Stop: live streams get up to `drain_s` to end."""
        ...


class TaskStatus(Protocol):
    """What `nursery.start` hands over (trio's own type is private to its typing)."""

    def started(self) -> None:
        """Tell that the engine is ready."""
        ...


class HostedEngine(Engine, Protocol):
    """An engine that its host keeps running: a worker's, or the way to servers."""

    @property
    def state(self) -> State:
        """Where it is in its life."""
        ...

    async def run(self, *, task_status: TaskStatus = ...) -> None:
        """Keep it alive until `aclose`; if the first start fails, raises its reason."""
        ...

    async def wait_ready(self) -> None:
        """Until it serves; for ever when it is down: give it a deadline."""
        ...


def check_sampling(sampling: Sampling, max_model_len: int) -> None:
    """Raise BadSampling naming the first field that is out of range."""
    bounds = (
        ("max_tokens", sampling.max_tokens, 1, max_model_len),
        ("temperature_milli", sampling.temperature_milli, 0, TEMPERATURE_MILLI_MAX),
        ("top_p_milli", sampling.top_p_milli, 1, TOP_P_MILLI_MAX),
        ("top_k", sampling.top_k, 0, TOP_K_MAX),
        ("n", sampling.n, 1, CHOICES_MAX),
        ("logprobs", sampling.logprobs, 0, LOGPROBS_MAX),
        ("flags", sampling.flags, 0, IGNORE_EOS),
    )
    for name, value, low, high in bounds:
        if type(value) is not int or not low <= value <= high:
            raise BadSampling(field=name, value=value)
    if len(sampling.stop) > STOPS_MAX:
        raise BadSampling(field="stop", value=len(sampling.stop))
    for stop in sampling.stop:
        if not 1 <= len(stop) <= STOP_BYTES_MAX:
            raise BadSampling(field="stop", value=len(stop))


def check_request(request: GenRequest, max_model_len: int, vocab: int, rows: int) -> None:
    """Raise TooLong or BadSampling for what an engine of these bounds cannot take."""
    sampling = request.sampling
    check_sampling(sampling, max_model_len)
    if not request.prompt or len(request.prompt) + sampling.max_tokens > max_model_len:
        raise TooLong(limit=max_model_len)
    if not all(0 <= token < vocab for token in request.prompt):
        raise BadSampling(field="prompt")
    if sampling.n > rows:
        raise BadSampling(field="n", value=sampling.n)
    if request.priority not in (0, 1):
        raise BadSampling(field="priority")
    if request.seed is not None and len(request.seed) != SEED_BYTES:
        raise BadSampling(field="seed")


def logprob_bytes(logprob: float) -> bytes:
    """i32 big-endian in 2^-20 nats, as evidence holds it."""
    return fixed_point(logprob, LOGPROB_UNIT)


def fixed_point(value: float, unit: int) -> bytes:
    """i32 big-endian of `value` in 1/unit steps, clamped: −∞ and NaN must not end a stream."""
    whole = round(value * unit) if math.isfinite(value) else -_I32_MAX
    return max(-_I32_MAX, min(_I32_MAX, whole)).to_bytes(4, "big", signed=True)


def sampling_hash(sampling: Sampling) -> bytes:
    """What an Order commits to: SHA-256 of canonical `[1, temperature … flags]`, page 50 §6."""
    return sha256(
        encode(
            (
                1,
                sampling.temperature_milli,
                sampling.top_p_milli,
                sampling.top_k,
                sampling.max_tokens,
                sampling.n,
                sampling.stop,
                sampling.flags,
            )
        )
    )
