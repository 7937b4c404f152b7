"""What daemon and worker say to each other: typed frames, u32 length + msgpack.

Why typed: the worker may die mid-frame or be replaced by garbage; a frame that does not decode to
one of these types counts as a lost worker and never raises anything else.
What this file does not know: sockets, threads, what the frames lead to.
"""

from typing import Final

import msgspec

from node.serving.engine import (
    ERRORS,
    AdapterInfo,
    AdapterRef,
    EngineError,
    EngineInfo,
    EngineSettings,
    EngineStats,
    Finish,
    GenRequest,
    GradItem,
    Score,
    ScoreItem,
    Sketch,
    Token,
)

FRAME_BYTES_MAX: Final = 64 * 2**20
LENGTH_BYTES: Final = 4
FACT_CHARS_MAX: Final = 500  # what an adapter's file says of itself may be as long as the file
FACT_INT_MAX: Final = 2**63 - 1


class Frame(msgspec.Struct, array_like=True):
    """Base of all frames; the tag is the type's name. Made once, never changed."""


class Hello(Frame, tag=True):
    """First frame: what to load."""

    settings: EngineSettings


class Load(Frame, tag=True):
    """Read and keep an adapter; answered by Loaded or Failed."""

    call: int
    ref: AdapterRef
    pin: bool


class Register(Frame, tag=True):
    """An adapter that an earlier worker has checked; not answered."""

    ref: AdapterRef


class Unload(Frame, tag=True):
    """Forget an adapter; answered by Done or Failed."""

    call: int
    adapter: bytes
    drain: bool


class List(Frame, tag=True):
    """Tell of all adapters; answered by Listed."""

    call: int


class Submit(Frame, tag=True):
    """Queue a request; answered by Done or Failed."""

    call: int
    request: GenRequest


class Reveal(Frame, tag=True):
    """The seed of a request."""

    id: bytes
    seed: bytes


class Cancel(Frame, tag=True):
    """End a request; its Finish may still come."""

    id: bytes


class Gradients(Frame, tag=True):
    """Queue sketches; answered by Sketched or Failed."""

    call: int
    items: tuple[GradItem, ...]


class Scores(Frame, tag=True):
    """Queue answers to be run again; answered by Scored or Failed."""

    call: int
    items: tuple[ScoreItem, ...]


class Close(Frame, tag=True):
    """End when nothing lives, or after `drain_ms`."""

    drain_ms: int


class Found(Frame, tag=True):
    """The files of an adapter that was Wanted."""

    ref: AdapterRef


class Missing(Frame, tag=True):
    """An adapter that was Wanted is nowhere."""

    adapter: bytes
    why: str


class Ready(Frame, tag=True):
    """The model is loaded."""

    info: EngineInfo


class Done(Frame, tag=True):
    """A call has succeeded."""

    call: int


class Loaded(Frame, tag=True):
    """An adapter is in memory."""

    call: int
    info: AdapterInfo


class Listed(Frame, tag=True):
    """All adapters that are known."""

    call: int
    infos: tuple[AdapterInfo, ...]


class Tokens(Frame, tag=True):
    """All tokens of one step."""

    batch: tuple[tuple[bytes, Token], ...]


class Finished(Frame, tag=True):
    """A stream has ended."""

    id: bytes
    finish: Finish


class Sketched(Frame, tag=True):
    """The sketches of one call, in order."""

    call: int
    sketches: tuple[Sketch, ...]


class Scored(Frame, tag=True):
    """The scores of one call, in order."""

    call: int
    scores: tuple[Score, ...]


class Wanted(Frame, tag=True):
    """An adapter's files are gone, or not as they were; answered by Found or Missing."""

    adapter: bytes


class Stats(Frame, tag=True):
    """Counters; also the sign of life."""

    stats: EngineStats


class Failed(Frame, tag=True):
    """A call has failed; call 0 is the worker itself, at its start or at its end."""

    call: int
    code: str
    facts: dict[str, int | str]


ToWorker = (
    Hello
    | Load
    | Register
    | Unload
    | List
    | Submit
    | Reveal
    | Cancel
    | Gradients
    | Scores
    | Found
    | Missing
    | Close
)
FromWorker = (
    Ready | Done | Loaded | Listed | Tokens | Finished | Sketched | Scored | Wanted | Stats | Failed
)

_encoder = msgspec.msgpack.Encoder()
_to_worker = msgspec.msgpack.Decoder(ToWorker)
_from_worker = msgspec.msgpack.Decoder(FromWorker)


class BadFrame(Exception):
    """Bytes that are no frame: the other side is lost."""


def encode_frame(frame: ToWorker | FromWorker) -> bytes:
    """Length and body; asserts the limit, which our own queues keep."""
    body = _encoder.encode(frame)
    assert len(body) <= FRAME_BYTES_MAX
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def decode_to_worker(body: bytes) -> ToWorker:
    """A frame for the worker; raises BadFrame and nothing else."""
    try:
        frame: ToWorker = _to_worker.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadFrame(str(error)) from None
    return frame


def decode_from_worker(body: bytes) -> FromWorker:
    """A frame from the worker; raises BadFrame and nothing else."""
    try:
        frame: FromWorker = _from_worker.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadFrame(str(error)) from None
    return frame


def body_length(head: bytes) -> int:
    """Length of the next body; raises BadFrame above the limit."""
    length = int.from_bytes(head, "big")
    if length > FRAME_BYTES_MAX:
        raise BadFrame(f"frame of {length} bytes")
    return length


def failure(call: int, error: EngineError) -> Failed:
    """An error as a frame, whatever its facts are: they may quote a stranger's file."""
    return Failed(call, error.code, {name: _plain(fact) for name, fact in error.facts.items()})


def _plain(fact: object) -> int | str:
    """As it is, if a frame can hold it; else as text, cut, its lone surrogates spelt out."""
    if type(fact) is int and -FACT_INT_MAX <= fact <= FACT_INT_MAX:
        return fact
    return str(fact)[:FACT_CHARS_MAX].encode("utf-8", "backslashreplace").decode()


def error_of(frame: Failed) -> EngineError:
    """The error that a frame tells of; of an unknown code, the general one."""
    kind = ERRORS.get(frame.code)
    return kind(**frame.facts) if kind else EngineError(**{**frame.facts, "told": frame.code})
