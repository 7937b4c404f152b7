"""Each check of a receipt refuses alone: a receipt that is right but for one thing is refused."""

from typing import Any

import pytest
from bundle_kit import CHAIN, party
from exchange_kit import SAMPLING
from ledger_kit import NOW_MS, PRICES, PROVIDER, fee_of

from consensus.primitives.digest import sha256
from node.ledger.wire.claims import sketch_hash
from node.ledger.wire.exchange import Finished
from node.ledger.wire.orders import (
    PRIVATE,
    ZERO_HASH,
    Order,
    encode_order,
    encode_sampling,
    order_hash,
    prompt_commit,
)
from node.ledger.wire.receipts import (
    COMPLETE,
    Receipt,
    answer_root,
    attribution_root,
    encode_credits,
    encode_receipt,
    receipt_message,
)
from node.wallet.checks import CheckFailed, Purchase, check_receipt, is_complete

PROMPT, ANSWERS = (5, 6, 7), ((100, 101, 102), (103,))
SALT, NONCE, PROVIDER_NONCE, CHANNEL = b"\1" * 16, b"\2" * 32, b"\3" * 32, b"\4" * 32
NO_CREDITS = encode_credits(())
CREDITS = encode_credits([(1, 4_000), (2, 6_000)])
SKETCH, STATEMENT = b"\1" * 1_024, b"statement"
FEE = fee_of(3, 4)


def purchase(flags: int = 0) -> Purchase:
    order = Order(
        version=1, model=1, model_version=1, max_in=3, max_out=8,
        prompt_commit=prompt_commit(SALT, PROMPT), sampling_hash=sha256(encode_sampling(SAMPLING)),
        seed_commit=ZERO_HASH, quantum=256, deadline_ms=NOW_MS, flags=flags, salt16=SALT,
    )  # fmt: skip
    return Purchase(
        CHAIN, order, encode_order(order), PROMPT, SAMPLING, NONCE, PRICES, CHANNEL, 2, 9
    )


def good(bought: Purchase, credits: bytes = NO_CREDITS, sketched: bool = False) -> Receipt:
    return Receipt(
        version=1, channel=CHANNEL, lane=2, seq=9, order_hash=order_hash(bought.order_raw),
        model=1, model_version=1, tokens_in=3, tokens_out=4, fee=FEE,
        answer_root=answer_root(SALT, NONCE, PROVIDER_NONCE, ANSWERS),
        attribution_root=attribution_root(credits),
        sketch_hash=sketch_hash(SKETCH, STATEMENT) if sketched else ZERO_HASH,
        fingerprint_hash=bytes(32), started_ms=NOW_MS, finished_ms=NOW_MS, status=COMPLETE,
    )  # fmt: skip


def finished(receipt: Receipt, signer: Any = PROVIDER, **fields: bytes) -> Finished:
    raw = encode_receipt(receipt)
    made = Finished(raw, signer.sign(receipt_message(CHAIN, raw)), NO_CREDITS, b"", b"", b"")
    return made._replace(**fields)


def check(frame: Finished, bought: Purchase | None = None, hold: int = 10**9) -> Receipt:
    return check_receipt(
        bought or purchase(), frame, ANSWERS, provider_nonce=PROVIDER_NONCE, hold=hold,
        key=PROVIDER.key,
    )  # fmt: skip


def refusal(*arguments: Any, **fields: Any) -> str:
    with pytest.raises(CheckFailed) as failed:
        check(*arguments, **fields)
    return failed.value.check


def test_receipt_that_is_owed_is_taken() -> None:
    receipt = good(purchase())
    assert check(finished(receipt)) == receipt
    assert is_complete(receipt)
    assert not is_complete(receipt._replace(status=2))


CHANGES = [
    ("place", {"channel": bytes(32)}),
    ("place", {"lane": 1}),
    ("place", {"seq": 8}),
    ("place", {"seq": 10}),
    ("order", {"order_hash": bytes(32)}),
    ("order", {"model": 2}),
    ("order", {"model_version": 2}),
    ("tokens", {"tokens_in": 2}),
    ("tokens", {"tokens_in": 4}),
    ("tokens", {"tokens_out": 3}),
    ("tokens", {"tokens_out": 5}),
    ("fee", {"fee": FEE + 1}),
    ("answer", {"answer_root": bytes(32)}),
    ("credits", {"attribution_root": attribution_root(CREDITS)}),
    ("sketch", {"sketch_hash": b"\1" * 32}),
]


@pytest.mark.parametrize(("word", "change"), CHANGES)
def test_one_false_field_is_refused_by_its_word(word: str, change: dict[str, Any]) -> None:
    """Signed by the provider itself: no other check can have caught it."""
    assert refusal(finished(good(purchase())._replace(**change))) == word


def test_fee_may_be_below_the_price_and_never_above_the_hold() -> None:
    receipt = good(purchase())
    check(finished(receipt._replace(fee=0)))
    check(finished(receipt), hold=FEE)
    assert refusal(finished(receipt), hold=FEE - 1) == "fee"


@pytest.mark.parametrize("raw", [b"", b"\x90", encode_receipt(good(purchase()))[:-1]])
def test_bytes_that_are_no_receipt_are_refused(raw: bytes) -> None:
    assert refusal(finished(good(purchase()))._replace(receipt=raw)) == "receipt"


def test_other_answer_than_the_one_streamed_is_refused() -> None:
    """Also the same ids cut differently between the choices."""
    for answers in (((100, 101, 102), (104,)), ((100, 101), (102, 103)), ((103,), (100, 101, 102))):
        receipt = good(purchase())._replace(
            answer_root=answer_root(SALT, NONCE, PROVIDER_NONCE, answers)
        )
        assert refusal(finished(receipt)) == "answer"


def test_answer_of_another_seed_is_refused() -> None:
    root = answer_root(SALT, NONCE, bytes(32), ANSWERS)
    assert refusal(finished(good(purchase())._replace(answer_root=root))) == "answer"


def test_signature_of_another_key_chain_or_receipt_is_refused() -> None:
    receipt = good(purchase())
    raw = encode_receipt(receipt)
    assert refusal(finished(receipt, party("thief"))) == "signature"
    for message in (receipt_message(bytes(32), raw), receipt_message(CHAIN, raw[:-1] + b"\1")):
        assert refusal(finished(receipt, signature=PROVIDER.sign(message))) == "signature"
    assert refusal(finished(receipt, signature=bytes(64))) == "signature"


def test_credits_follow_a_sketch_that_the_receipt_commits_to() -> None:
    bought = purchase()
    receipt = good(bought, CREDITS, sketched=True)
    frame = finished(receipt, credits=CREDITS, sketch=SKETCH, statement=STATEMENT)
    assert check(frame) == receipt
    assert refusal(frame._replace(sketch=b"\2" * 1_024)) == "sketch"
    assert refusal(frame._replace(statement=b"another")) == "sketch"
    assert refusal(frame._replace(credits=NO_CREDITS)) == "credits"


def test_credits_without_a_sketch_are_refused() -> None:
    """Else a provider could pay whom it likes."""
    receipt = good(purchase(), CREDITS)
    assert refusal(finished(receipt, credits=CREDITS)) == "sketch"
    for fields in ({"sketch": SKETCH}, {"statement": STATEMENT}):
        assert refusal(finished(good(purchase()), **fields)) == "sketch"


@pytest.mark.parametrize("raw", [b"\x91\x92\x01\xcd\x27\x0f", b"\xc0", b"\x92\x92\x02\x64"])
def test_credits_that_are_none_are_refused_though_the_receipt_names_them(raw: bytes) -> None:
    receipt = good(purchase())._replace(attribution_root=attribution_root(raw))
    assert refusal(finished(receipt, credits=raw)) == "credits"


def test_private_order_has_no_sketch() -> None:
    """A sketch tells of the answer; who asked for privacy must not get one with a receipt."""
    private = purchase(PRIVATE)
    receipt = good(private, CREDITS, sketched=True)
    frame = finished(receipt, credits=CREDITS, sketch=SKETCH, statement=STATEMENT)
    assert refusal(frame, private) == "sketch"
    check(finished(good(private)), private)


def test_cheap_checks_come_before_the_signature() -> None:
    """Their order is the promise of `check_receipt`: the first word that fails is told."""
    broken = finished(good(purchase())._replace(seq=8, fee=FEE + 1), party("thief"))
    assert refusal(broken) == "place"
