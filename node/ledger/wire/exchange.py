"""The frames of an `infer` stream: what payer and provider say to each other for one answer.

Why here: wallet and serving both speak it and neither may import the other; the bytes are
canonical like all of ours. Why kinds first: an array whose first item is its kind cannot be taken
for another frame (page 70 §7).
What this file does not know: streams, time, and who is right.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from consensus.primitives.encoding import (
    SIG,
    U8,
    U16,
    U32,
    U63,
    Bytes,
    Either,
    H,
    Record,
    Shape,
    decode,
    encode,
)
from consensus.primitives.errors import Invalid
from node.ledger.wire.orders import ORDER_BYTES_MAX, SAMPLING_BYTES_MAX, VOUCHER_BYTES_MAX
from node.ledger.wire.receipts import CREDITS_BYTES_MAX, RECEIPT_BYTES_MAX

FRAME_BYTES_MAX: Final = 2**20 + 64 * 2**10
PROMPT_BYTES_MAX: Final = 2**20  # token ids, u32 each
TOKENS_BYTES_MAX: Final = 64 * 2**10
STATEMENT_BYTES_MAX: Final = 4_096
SKETCH_BYTES: Final = 1_024
LOGPROBS_BYTES_MAX: Final = 2**19  # i32 each, of all choices
REASON_BYTES_MAX: Final = 64

START_WITHIN_S: Final = 5
REVEAL_WITHIN_S: Final = 5
TICK_WITHIN_S: Final = 5
ALIVE_EVERY_S: Final = 2
SILENCE_S: Final = 10

# Codes of `Refused`: page 70 §6 below 32, §7 from there on.
MALFORMED: Final = 1
BUSY: Final = 3
RATE_EXCEEDED: Final = 5
NOT_ALLOWED: Final = 7
EXPIRED: Final = 9
OUR_FAILURE: Final = 10
CLOSING: Final = 11
UNKNOWN_CHANNEL: Final = 32
OUT_OF_STEP: Final = 33
NOT_SERVED: Final = 34
PRICE_CHANGED: Final = 35
OVER_LIMITS: Final = 36
ADAPTER_LOADING: Final = 37
OVERLOADED: Final = 38
DEADLINE: Final = 39
TICK_LATE: Final = 40
GENERATION_FAILED: Final = 41
REVEAL_BAD: Final = 42

CODE_NAMES: Final = {
    MALFORMED: "malformed",
    BUSY: "busy",
    RATE_EXCEEDED: "rate exceeded",
    NOT_ALLOWED: "not allowed",
    EXPIRED: "expired",
    OUR_FAILURE: "the provider failed",
    CLOSING: "closing",
    UNKNOWN_CHANNEL: "unknown channel",
    OUT_OF_STEP: "voucher out of step",
    NOT_SERVED: "model not served",
    PRICE_CHANGED: "price changed",
    OVER_LIMITS: "over limits",
    ADAPTER_LOADING: "adapter loading",
    OVERLOADED: "overloaded",
    DEADLINE: "deadline cannot be met",
    TICK_LATE: "tick late",
    GENERATION_FAILED: "generation failed",
    REVEAL_BAD: "reveal late or false",
}


class Start(NamedTuple):
    """Payer's first frame; `prompt` is token ids as u32, `payer_nonce` 32 bytes or empty."""

    order: bytes
    prompt: bytes
    sampling: bytes
    payer_nonce: bytes
    voucher: bytes
    signature: bytes


class Tick(NamedTuple):
    """A voucher: for the next quantum, or the last acknowledgement (hold 0)."""

    voucher: bytes
    signature: bytes


class Reveal(NamedTuple):
    """The payer's part of the seed."""

    payer_nonce: bytes


class Cancel(NamedTuple):
    """The payer wants no more; a finish with status 2 follows."""

    reason: bytes


class Accepted(NamedTuple):
    """The provider will serve; `provider_nonce` is its part of the seed."""

    order_hash: bytes
    provider_nonce: bytes
    place: int
    eta_ms: int


class Tokens(NamedTuple):
    """Token ids (u32 each) of one choice from position `start` on, and the text to show."""

    choice: int
    start: int
    ids: bytes
    text: bytes


class Alive(NamedTuple):
    """Nothing new, still working."""


class Finished(NamedTuple):
    """The signed receipt, and what the payer may check it with; `sketch` may be empty."""

    receipt: bytes
    signature: bytes
    credits: bytes
    sketch: bytes
    statement: bytes
    logprobs: bytes


class RefusedFrame(NamedTuple):
    """No work was done; `voucher` is the last one held, or empty."""

    code: int
    retry_ms: int
    voucher: bytes
    signature: bytes


Frame: TypeAlias = (
    Start | Tick | Reveal | Cancel | Accepted | Tokens | Alive | Finished | RefusedFrame
)

_VOUCHER: Final = Bytes(VOUCHER_BYTES_MAX)
_KINDS: Final[dict[type, tuple[int, Shape]]] = {
    Start: (
        0,
        Record(
            U8,
            Bytes(ORDER_BYTES_MAX),
            Bytes(PROMPT_BYTES_MAX),
            Bytes(SAMPLING_BYTES_MAX),
            Either(0, 32),
            _VOUCHER,
            SIG,
        ),
    ),
    Tick: (1, Record(U8, _VOUCHER, SIG)),
    Reveal: (2, Record(U8, H)),
    Cancel: (3, Record(U8, Bytes(REASON_BYTES_MAX))),
    Accepted: (0, Record(U8, H, H, U32, U63)),
    Tokens: (1, Record(U8, U16, U32, Bytes(TOKENS_BYTES_MAX), Bytes(TOKENS_BYTES_MAX))),
    Alive: (2, Record(U8)),
    Finished: (
        3,
        Record(
            U8,
            Bytes(RECEIPT_BYTES_MAX),
            SIG,
            Bytes(CREDITS_BYTES_MAX),
            Either(0, SKETCH_BYTES),
            Bytes(STATEMENT_BYTES_MAX),
            Bytes(LOGPROBS_BYTES_MAX),
        ),
    ),
    RefusedFrame: (4, Record(U8, U16, U63, _VOUCHER, Either(0, 64))),
}
_FROM_PAYER: Final = {_KINDS[kind][0]: kind for kind in (Start, Tick, Reveal, Cancel)}
_FROM_PROVIDER: Final = {
    _KINDS[kind][0]: kind for kind in (Accepted, Tokens, Alive, Finished, RefusedFrame)
}


def encode_frame(frame: Frame) -> bytes:
    """Canonical `[kind, fields…]`."""
    return encode((_KINDS[type(frame)][0], *frame))


def decode_payer_frame(raw: bytes) -> Start | Tick | Reveal | Cancel:
    """What a payer said; raises Invalid `infer.…`."""
    frame: Start | Tick | Reveal | Cancel = _decode(raw, _FROM_PAYER)
    return frame


def decode_provider_frame(raw: bytes) -> Accepted | Tokens | Alive | Finished | RefusedFrame:
    """What a provider said; raises Invalid `infer.…`."""
    frame: Accepted | Tokens | Alive | Finished | RefusedFrame = _decode(raw, _FROM_PROVIDER)
    return frame


def _decode(raw: bytes, kinds: Mapping[int, type]) -> Any:
    # The kind is the second byte: canonical arrays of at most 15 items have a head of one byte.
    kind = kinds.get(raw[1]) if len(raw) >= 2 else None
    if kind is None:
        raise Invalid("infer.kind")
    fields = decode(raw, _KINDS[kind][1], FRAME_BYTES_MAX, "infer")
    return kind(*fields[1:])


def unpack_ids(raw: bytes) -> tuple[int, ...]:
    """Token ids of big-endian u32; raises Invalid `infer.ids`."""
    if len(raw) % 4:
        raise Invalid("infer.ids", bytes=len(raw))
    return tuple(int.from_bytes(raw[i : i + 4], "big") for i in range(0, len(raw), 4))
