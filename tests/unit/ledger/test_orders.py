"""Orders, vouchers and offers: what decodes, what is refused, and by which word."""

import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.primitives.encoding import encode
from consensus.primitives.errors import Invalid
from consensus.primitives.keys import public_key, sign
from node.ledger.wire import orders
from node.ledger.wire.orders import Load, Offer, OfferedModel, Order, OrderSampling, Voucher

CHAIN = bytes(range(32))
SEED = bytes(32)

ORDER = Order(1, 7, 2, 100, 50, b"\1" * 32, b"\2" * 32, b"\3" * 32, 256, 9, 0, b"\4" * 16)
VOUCHER = Voucher(1, b"\1" * 32, 0, 1, 0, 0, b"\2" * 32, 10, b"\3" * 32, 99)
SAMPLING = OrderSampling(1, 700, 900, 0, 64, 1, (b"stop",), 0)
OFFER = Offer(
    1, b"\1" * 32, b"\2" * 32, 3, (b"/ip4/1.2.3.4/tcp/4001",),
    (OfferedModel(1, 1, 1, 0), OfferedModel(1, 2, 0, 500)), Load(8, 0, 120), 1_000,
)  # fmt: skip

CODECS = {
    "order": (ORDER, orders.encode_order, orders.decode_order),
    "voucher": (VOUCHER, orders.encode_voucher, orders.decode_voucher),
    "sampling": (SAMPLING, orders.encode_sampling, orders.decode_sampling),
    "offer": (OFFER, orders.encode_offer, orders.decode_offer),
}


@pytest.mark.parametrize("name", sorted(CODECS))
def test_decoding_gives_back_what_was_encoded(name: str) -> None:
    value, encode_it, decode_it = CODECS[name]
    assert decode_it(encode_it(value)) == value


@pytest.mark.parametrize("name", sorted(CODECS))
def test_nothing_but_invalid_escapes_a_decoder(name: str) -> None:
    value, encode_it, decode_it = CODECS[name]
    rng, good = random.Random(name), encode_it(value)
    for _ in range(2_000):
        bad = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        raw = bytes(bad[: rng.randrange(1, len(bad) + 1)]) if rng.random() < 0.3 else bytes(bad)
        with contextlib.suppress(Invalid):
            assert encode_it(decode_it(raw)) == raw


@settings(max_examples=200)
@given(st.binary(max_size=600))
def test_random_bytes_are_refused_politely(raw: bytes) -> None:
    for _, _, decode_it in CODECS.values():
        with pytest.raises(Invalid):
            decode_it(raw)


REFUSED = [
    ("order.version", orders.decode_order, ORDER._replace(version=2)),
    ("order.flags", orders.decode_order, ORDER._replace(flags=8)),
    ("order.malformed", orders.decode_order, ORDER._replace(salt16=bytes(15))),
    ("order.malformed", orders.decode_order, ORDER._replace(max_in=2**32)),
    ("voucher.version", orders.decode_voucher, VOUCHER._replace(version=0)),
    ("voucher.lane", orders.decode_voucher, VOUCHER._replace(lane=64)),
    ("voucher.seq", orders.decode_voucher, VOUCHER._replace(seq=0)),
    ("voucher.malformed", orders.decode_voucher, VOUCHER._replace(sub=2**16)),
    ("sampling.version", orders.decode_sampling, SAMPLING._replace(version=2)),
    ("sampling.malformed", orders.decode_sampling, SAMPLING._replace(stop=(b"x",) * 5)),
    ("offer.version", orders.decode_offer, OFFER._replace(version=9)),
    ("offer.models_order", orders.decode_offer, OFFER._replace(models=OFFER.models[::-1])),
    ("offer.discount", orders.decode_offer, OFFER._replace(models=((1, 1, 1, 10_001),))),
    ("offer.discount", orders.decode_offer, OFFER._replace(models=((1, 1, 2, 0),))),
    ("offer.malformed", orders.decode_offer, OFFER._replace(addresses=(b"a",) * 9)),
]


@pytest.mark.parametrize(("code", "decode_it", "value"), REFUSED)
def test_what_breaks_a_rule_is_refused_by_its_word(code, decode_it, value) -> None:
    with pytest.raises(Invalid) as refusal:
        decode_it(encode(value))
    assert refusal.value.code == code


def test_many_vouchers_are_what_each_is_alone() -> None:
    good = [VOUCHER._replace(seq=seq, lane=seq % 64, hold=2**63 - seq) for seq in range(1, 100)]
    raws = [orders.encode_voucher(voucher) for voucher in good]
    found = orders.decode_vouchers(raws)
    assert found == good
    assert {type(voucher) for voucher in found} == {Voucher}
    for code, decode_it, value in REFUSED:
        if decode_it is orders.decode_voucher:
            for at in (0, 64, 98):
                with pytest.raises(Invalid) as refusal:
                    orders.decode_vouchers([*raws[:at], encode(value), *raws[at + 1 :]])
                assert refusal.value.code == code


def test_limits_pass_at_their_value() -> None:
    assert orders.decode_voucher(encode(VOUCHER._replace(lane=63))).lane == 63
    assert orders.decode_order(encode(ORDER._replace(flags=7))).flags == 7
    full = OFFER._replace(models=((1, 1, 1, 10_000),), addresses=(b"a" * 128,) * 8)
    assert len(orders.decode_offer(encode(full)).addresses) == 8


def test_a_voucher_is_bound_to_its_chain_and_its_purpose() -> None:
    raw, key = orders.encode_voucher(VOUCHER), public_key(SEED)
    good = sign(SEED, orders.voucher_message(CHAIN, raw))
    orders.verify_voucher(CHAIN, raw, good, key)
    for message in (orders.voucher_message(bytes(32), raw), orders.offer_message(CHAIN, raw), raw):
        with pytest.raises(Invalid, match=r"voucher\.signature"):
            orders.verify_voucher(CHAIN, raw, sign(SEED, message), key)


def test_commitments_differ_by_salt_prompt_and_channel_nonce() -> None:
    salt = bytes(16)
    assert orders.prompt_commit(salt, [1, 2]) != orders.prompt_commit(salt, [1, 3])
    assert orders.prompt_commit(salt, [1]) != orders.prompt_commit(b"\1" * 16, [1])
    a, b = bytes(32), b"\1" * 32
    assert orders.channel_id(CHAIN, a, b, 0) != orders.channel_id(CHAIN, a, b, 1)
    assert orders.channel_id(CHAIN, a, b, 0) != orders.channel_id(CHAIN, b, a, 0)
