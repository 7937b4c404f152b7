"""Receipts, credits, answer roots and the accumulator."""

import contextlib
import random
from collections.abc import Callable

import pytest
from bundle_kit import CHAIN, party, some_credits, some_receipt
from hypothesis import given
from hypothesis import strategies as st

from consensus.primitives.encoding import encode
from consensus.primitives.errors import Invalid
from consensus.primitives.merkle import leaf_hash, root
from node.ledger.wire import receipts

PROVIDER = party("provider")


def a_receipt(**fields: object) -> receipts.Receipt:
    return some_receipt(random.Random(1), receipts.encode_credits(()), **fields)


def test_decoding_gives_back_what_was_encoded() -> None:
    receipt = a_receipt()
    assert receipts.decode_receipt(receipts.encode_receipt(receipt)) == receipt
    credits = some_credits(random.Random(2), 7)
    assert receipts.decode_credits(receipts.encode_credits(credits)) == credits


def test_nothing_but_invalid_escapes_the_decoders() -> None:
    rng = random.Random(3)
    goods = [
        (receipts.encode_receipt(a_receipt()), receipts.decode_receipt, receipts.encode_receipt),
        (
            receipts.encode_credits(some_credits(rng, 9)),
            receipts.decode_credits,
            receipts.encode_credits,
        ),
    ]
    for good, decode_it, encode_it in goods:
        for _ in range(2_000):
            bad = bytearray(good)
            for _ in range(rng.randrange(1, 4)):
                bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
            with contextlib.suppress(Invalid):
                assert encode_it(decode_it(bytes(bad))) == bytes(bad)


REFUSED_RECEIPTS = [
    ("receipt.version", {"version": 2}),
    ("receipt.status", {"status": 1}),
    ("receipt.status", {"status": 3}),
    ("receipt.lane", {"lane": 64}),
    ("receipt.seq", {"seq": 0}),
    ("receipt.malformed", {"fee": -1}),
    ("receipt.malformed", {"answer_root": bytes(31)}),
    ("receipt.malformed", {"tokens_in": 2**32}),
    ("receipt.malformed", {"status": True}),
]


@pytest.mark.parametrize(("code", "fields"), REFUSED_RECEIPTS)
def test_a_receipt_that_breaks_a_rule_is_refused_by_its_word(code, fields) -> None:
    with pytest.raises(Invalid) as refusal:
        receipts.decode_receipt(encode(a_receipt()._replace(**fields)))
    assert refusal.value.code == code


REFUSED_CREDITS = [
    ("credits.sum", ((1, 9_999),)),
    ("credits.sum", ((1, 5_000), (2, 5_001))),
    ("credits.order", ((2, 5_000), (1, 5_000))),
    ("credits.order", ((1, 5_000), (1, 5_000))),
    ("credits.order", ((1, 5_000), (0, 5_000))),
    ("credits.nobody", ((0, 10_000),)),
    ("credits.sum", ((0, 5_000),)),
    ("credits.share", ((1, 0), (2, 10_000))),
    ("credits.malformed", tuple((i, 1) for i in range(1, 67))),
]


@pytest.mark.parametrize(("code", "credits"), REFUSED_CREDITS)
def test_credits_that_break_a_rule_are_refused_by_their_word(code, credits) -> None:
    with pytest.raises(Invalid) as refusal:
        receipts.decode_credits(encode(credits))
    assert refusal.value.code == code


NUMBERS = st.integers(0, 6) | st.sampled_from([2**32, 2**63 - 1])
SHARES = st.sampled_from([0, 1, 4_999, 5_000, 5_001, 9_999, 10_000, 10_001, 2**16 - 1])
SOME_CREDITS = st.lists(st.tuples(NUMBERS, SHARES), max_size=4).map(tuple)


@given(st.lists(SOME_CREDITS | st.sampled_from([(), ((1, 10_000),), ((1, 1), (2, 9_999))])))
def test_many_credits_are_what_each_is_alone(many: list[receipts.Credits]) -> None:
    raws = [receipts.encode_credits(credits) for credits in many]

    def outcome(decode_all: Callable[[list[bytes]], list[receipts.Credits]]) -> object:
        try:
            return decode_all(raws)
        except Invalid as refusal:
            return refusal.code, refusal.facts

    alone = outcome(lambda raws: [receipts.decode_credits(raw) for raw in raws])
    assert outcome(receipts.decode_many_credits) == alone


@pytest.mark.parametrize("at", [0, 63, 64, 129])
def test_one_bad_receipt_among_many_gives_the_reason(at: int) -> None:
    """And the good ones come back as they are, beyond what is decoded together."""
    many = [a_receipt(seq=seq, fee=2**63 - seq) for seq in range(1, 131)]
    raws = [receipts.encode_receipt(receipt) for receipt in many]
    found = receipts.decode_receipts(raws)
    assert found == many
    assert {type(receipt) for receipt in found} == {receipts.Receipt}
    raws[at] = encode(many[at]._replace(status=1))
    with pytest.raises(Invalid, match=r"receipt\.status"):
        receipts.decode_receipts(raws)


def test_sixty_four_credits_beside_the_funds_and_none_are_both_in_order() -> None:
    shares = (*tuple((i, 1) for i in range(64)), (64, 10000 - 64))
    assert receipts.credited(shares) == shares[1:]
    assert receipts.decode_credits(encode(shares)) == shares
    assert receipts.decode_credits(encode(())) == ()


def test_a_receipt_signature_is_bound_to_the_chain() -> None:
    raw = receipts.encode_receipt(a_receipt())
    good = PROVIDER.sign(receipts.receipt_message(CHAIN, raw))
    receipts.verify_receipt(CHAIN, raw, good, PROVIDER.key)
    other = PROVIDER.sign(receipts.receipt_message(bytes(32), raw))
    with pytest.raises(Invalid, match=r"receipt\.signature"):
        receipts.verify_receipt(CHAIN, raw, other, PROVIDER.key)


def test_an_answer_root_binds_nonces_choices_and_every_token() -> None:
    salt, mine, theirs = bytes(16), b"\1" * 32, b"\2" * 32
    answer = list(range(600))
    whole = receipts.answer_root(salt, mine, theirs, [answer])
    leaves = [salt + mine + theirs]
    for start, end in ((0, 256), (256, 512), (512, 600)):
        ids = b"".join(i.to_bytes(4, "big") for i in range(start, end))
        leaves.append(salt + bytes(4) + start.to_bytes(4, "big") + ids)
    assert whole == root(leaves)
    others = [
        receipts.answer_root(salt, mine, mine, [answer]),
        receipts.answer_root(salt, mine, theirs, [answer[:-1]]),
        receipts.answer_root(salt, mine, theirs, [[], answer]),
        receipts.answer_root(b"\1" * 16, mine, theirs, [answer]),
    ]
    assert whole not in others


def test_the_accumulator_depends_on_every_receipt_and_their_order() -> None:
    a, b = (receipts.encode_receipt(a_receipt(seq=seq)) for seq in (1, 2))
    start = receipts.accumulator_start(bytes(32), 0)
    assert receipts.accumulator_start(bytes(32), 1) != start
    forward = receipts.accumulate_receipt(receipts.accumulate_receipt(start, a), b)
    assert forward == receipts.accumulate(receipts.accumulate(start, leaf_hash(a)), leaf_hash(b))
    assert forward != receipts.accumulate_receipt(receipts.accumulate_receipt(start, b), a)
