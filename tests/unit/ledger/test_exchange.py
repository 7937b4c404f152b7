"""The frames of an `infer` stream: told apart by kind, bounded by field, read by one side only."""

from typing import Any

import pytest

from consensus.primitives.encoding import encode
from consensus.primitives.errors import Invalid
from node.ledger.wire import exchange
from node.ledger.wire.exchange import (
    Accepted,
    Alive,
    Cancel,
    Finished,
    RefusedFrame,
    Reveal,
    Start,
    Tick,
    Tokens,
)

H, SIG = b"\1" * 32, b"\2" * 64
START = Start(b"order", b"\0\0\0\1", b"sampling", b"", b"voucher", SIG)
FINISHED = Finished(b"receipt", SIG, b"\x90", b"", b"", b"")
REFUSED = RefusedFrame(exchange.BUSY, 500, b"", b"")
PAYERS = [START, Tick(b"voucher", SIG), Reveal(H), Cancel(b"enough")]
PROVIDERS = [Accepted(H, H, 0, 0), Tokens(0, 0, b"\0\0\0\5", b"ab"), Alive(), FINISHED, REFUSED]

CODE_CONSTANTS = {
    "MALFORMED", "BUSY", "RATE_EXCEEDED", "NOT_ALLOWED", "EXPIRED", "OUR_FAILURE", "CLOSING",
    "UNKNOWN_CHANNEL", "OUT_OF_STEP", "NOT_SERVED", "PRICE_CHANGED", "OVER_LIMITS",
    "ADAPTER_LOADING", "OVERLOADED", "DEADLINE", "TICK_LATE", "GENERATION_FAILED", "REVEAL_BAD",
}  # fmt: skip


@pytest.mark.parametrize("frame", PAYERS, ids=lambda frame: type(frame).__name__)
def test_what_a_payer_says_comes_back(frame: Any) -> None:
    found = exchange.decode_payer_frame(exchange.encode_frame(frame))
    assert type(found) is type(frame)
    assert found == frame


@pytest.mark.parametrize("frame", PROVIDERS, ids=lambda frame: type(frame).__name__)
def test_what_a_provider_says_comes_back(frame: Any) -> None:
    found = exchange.decode_provider_frame(exchange.encode_frame(frame))
    assert type(found) is type(frame)
    assert found == frame


def refusal_of(decode: Any, raw: bytes) -> str:
    with pytest.raises(Invalid) as refusal:
        decode(raw)
    return refusal.value.code


@pytest.mark.parametrize("frame", PROVIDERS, ids=lambda frame: type(frame).__name__)
def test_a_providers_frame_is_none_of_a_payers(frame: Any) -> None:
    """Both number their kinds from 0; the arity tells them apart."""
    code = refusal_of(exchange.decode_payer_frame, exchange.encode_frame(frame))
    assert code in ("infer.kind", "infer.malformed")


@pytest.mark.parametrize("frame", PAYERS, ids=lambda frame: type(frame).__name__)
def test_a_payers_frame_is_none_of_a_providers(frame: Any) -> None:
    code = refusal_of(exchange.decode_provider_frame, exchange.encode_frame(frame))
    assert code == "infer.malformed"


@pytest.mark.parametrize("raw", [b"", b"\x91", b"\x91\x09", b"\x91\xcc", b"\x80\x80"])
def test_an_unknown_kind_is_refused_before_any_decoding(raw: bytes) -> None:
    assert refusal_of(exchange.decode_payer_frame, raw) == "infer.kind"
    assert refusal_of(exchange.decode_provider_frame, raw) == "infer.kind"


@pytest.mark.parametrize(
    ("frame", "field", "most"),
    [
        (START, "order", 512),
        (START, "prompt", 2**20),
        (START, "sampling", 512),
        (START, "voucher", 256),
        (Cancel(b""), "reason", 64),
        (Tokens(0, 0, b"", b""), "ids", 64 * 2**10),
        (Tokens(0, 0, b"", b""), "text", 64 * 2**10),
        (FINISHED, "receipt", 512),
        (FINISHED, "credits", 1_024),
        (FINISHED, "statement", 4_096),
        (FINISHED, "logprobs", 2**19),
        (REFUSED, "voucher", 256),
    ],
)
def test_each_field_ends_where_it_says(frame: Any, field: str, most: int) -> None:
    decode = exchange.decode_payer_frame if frame in PAYERS or field == "reason" else (
        exchange.decode_provider_frame
    )  # fmt: skip
    at_limit = frame._replace(**{field: bytes(most)})
    assert decode(exchange.encode_frame(at_limit)) == at_limit
    over = frame._replace(**{field: bytes(most + 1)})
    assert refusal_of(decode, exchange.encode_frame(over)) == "infer.malformed"


@pytest.mark.parametrize(
    ("frame", "field", "sizes"),
    [
        (START, "payer_nonce", (0, 32)),
        (START, "signature", (64,)),
        (Reveal(H), "payer_nonce", (32,)),
        (Accepted(H, H, 0, 0), "provider_nonce", (32,)),
        (FINISHED, "sketch", (0, exchange.SKETCH_BYTES)),
        (REFUSED, "signature", (0, 64)),
    ],
)
def test_fixed_fields_have_exactly_their_sizes(
    frame: Any, field: str, sizes: tuple[int, ...]
) -> None:
    payers = isinstance(frame, Start | Reveal)
    decode = exchange.decode_payer_frame if payers else exchange.decode_provider_frame
    for size in sizes:
        decode(exchange.encode_frame(frame._replace(**{field: bytes(size)})))
        for wrong in {size - 1, size + 1} - {-1, *sizes}:
            raw = exchange.encode_frame(frame._replace(**{field: bytes(wrong)}))
            assert refusal_of(decode, raw) == "infer.malformed"


def test_the_greatest_frames_fit_the_frame_limit() -> None:
    """Else a full prompt or a full finish could be made and never be read."""
    start = Start(bytes(512), bytes(2**20), bytes(512), bytes(32), bytes(256), SIG)
    finish = Finished(bytes(512), SIG, bytes(1_024), bytes(1_024), bytes(4_096), bytes(2**19))
    tokens = Tokens(2**16 - 1, 2**32 - 1, bytes(2**16), bytes(2**16))
    for frame in (start, finish, tokens):
        assert len(exchange.encode_frame(frame)) <= exchange.FRAME_BYTES_MAX
    too_large = bytes([0x91, 2]) + bytes(exchange.FRAME_BYTES_MAX)
    assert refusal_of(exchange.decode_provider_frame, too_large) == "infer.too_large"


def test_a_second_form_of_a_frame_is_refused() -> None:
    assert exchange.encode_frame(Alive()) == b"\x91\x02"
    longer_head = b"\xdc\x00\x01\x02"
    assert refusal_of(exchange.decode_provider_frame, longer_head) == "infer.malformed"
    raw = encode((0, H, H, 0, 5))
    assert exchange.decode_provider_frame(raw) == Accepted(H, H, 0, 5)
    longer_five = raw[:-1] + b"\xcd\x00\x05"
    assert refusal_of(exchange.decode_provider_frame, longer_five) == "infer.not_canonical"


def test_ids_are_whole_u32() -> None:
    assert exchange.unpack_ids(b"") == ()
    assert exchange.unpack_ids(b"\0\0\0\1\xff\xff\xff\xff") == (1, 2**32 - 1)
    for size in (1, 2, 3, 5):
        with pytest.raises(Invalid, match=r"infer\.ids"):
            exchange.unpack_ids(bytes(size))


def test_every_code_of_a_refusal_has_its_words() -> None:
    numbers = [value for name, value in vars(exchange).items() if name in CODE_CONSTANTS]
    assert sorted(numbers) == sorted(exchange.CODE_NAMES)
    assert len(set(exchange.CODE_NAMES.values())) == len(exchange.CODE_NAMES)
