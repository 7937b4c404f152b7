"""Payloads and blocks on the wire."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.primitives.encoding import encode
from consensus.primitives.errors import Invalid
from node.ledger.wire.blocks import (
    Block,
    Payload,
    decode_block,
    decode_payload,
    encode_block,
    encode_payload,
)


def test_payload_and_block_come_back() -> None:
    payload = Payload((b"tx", b"other"), (bytes(32),), (b"evidence",))
    raw = encode_payload(payload)
    assert decode_payload(raw) == payload
    block = Block(b"header", raw, b"")
    assert decode_block(encode_block(block)) == block
    assert decode_payload(encode_payload(Payload())) == Payload()


def refusal_of(decoder, raw) -> str:
    with pytest.raises(Invalid) as refusal:
        decoder(raw)
    return refusal.value.code


def test_limits_hold_on_both_sides() -> None:
    hashes = tuple(n.to_bytes(32, "big") for n in range(257))
    decode_payload(encode_payload(Payload(bundles=hashes[:256])))
    assert refusal_of(decode_payload, encode_payload(Payload(bundles=hashes))) == (
        "payload.malformed"
    )
    decode_payload(encode_payload(Payload(evidence=(bytes(32_768),) * 2)))
    two = Payload(evidence=(bytes(32_768), bytes(32_769)))
    assert refusal_of(decode_payload, encode_payload(two)) == "payload.evidence_size"
    nine = Payload(evidence=(b"",) * 9)
    assert refusal_of(decode_payload, encode_payload(nine)) == "payload.malformed"
    full = Payload((bytes(65_536),) * 15)
    decode_payload(encode_payload(full))
    assert refusal_of(decode_payload, encode_payload(Payload((bytes(65_536),) * 17))) == (
        "payload.too_large"
    )
    assert refusal_of(decode_block, encode((bytes(1_025), b"", b""))) == "block.malformed"


@given(st.binary(max_size=200))
def test_nothing_but_invalid_escapes(raw) -> None:
    for decoder in (decode_payload, decode_block):
        try:
            decoder(raw)
        except Invalid:
            continue
