"""What a payer checks before it acknowledges an answer (page 30 §7).

Why all of it here and pure: a receipt that fails one of these must never be acknowledged, and a
test can fail each alone.
What this file does not know: streams, lanes, what happens to a liar.
"""

from collections.abc import Sequence
from typing import NamedTuple

from consensus.primitives.errors import Invalid
from node.ledger.amounts import price
from node.ledger.wire.claims import sketch_hash
from node.ledger.wire.exchange import Finished
from node.ledger.wire.orders import PRIVATE, ZERO_HASH, Order, OrderSampling, order_hash
from node.ledger.wire.receipts import (
    COMPLETE,
    Receipt,
    answer_root,
    attribution_root,
    decode_credits,
    decode_receipt,
    verify_receipt,
)


class CheckFailed(Exception):
    """The provider broke the protocol or its receipt is not what it should be; `check` says how."""

    def __init__(self, check: str) -> None:
        super().__init__(check)
        self.check = check


class Purchase(NamedTuple):
    """What was ordered, and where its receipt must stand. `prices`: p_in, p_out, p_call."""

    chain_id: bytes
    order: Order
    order_raw: bytes
    prompt: tuple[int, ...]
    sampling: OrderSampling
    payer_nonce: bytes
    prices: tuple[int, int, int]
    channel: bytes
    lane: int
    seq: int


def check_receipt(
    purchase: Purchase,
    finished: Finished,
    answers: Sequence[Sequence[int]],
    *,
    provider_nonce: bytes,
    hold: int,
    key: bytes,
) -> Receipt:
    """The receipt, if it is the one we owe for `answers` (token ids per choice).

    Raises CheckFailed with `receipt`, `place`, `order`, `tokens`, `fee`, `answer`, `credits`,
    `sketch` or `signature`, in this order.
    """
    try:
        receipt = decode_receipt(finished.receipt)
    except Invalid as error:
        raise CheckFailed("receipt") from error
    if (receipt.channel, receipt.lane, receipt.seq) != purchase[7:10]:
        raise CheckFailed("place")
    order = purchase.order
    ordered = (order_hash(purchase.order_raw), order.model, order.model_version)
    if (receipt.order_hash, receipt.model, receipt.model_version) != ordered:
        raise CheckFailed("order")
    count = sum(len(ids) for ids in answers)
    if (receipt.tokens_in, receipt.tokens_out) != (len(purchase.prompt), count):
        raise CheckFailed("tokens")
    if receipt.fee > min(hold, price(receipt.tokens_in, receipt.tokens_out, *purchase.prices)):
        raise CheckFailed("fee")
    root = answer_root(order.salt16, purchase.payer_nonce, provider_nonce, answers)
    if receipt.answer_root != root:
        raise CheckFailed("answer")
    _check_attribution(receipt, finished, is_private=bool(order.flags & PRIVATE))
    try:
        verify_receipt(purchase.chain_id, finished.receipt, finished.signature, key)
    except Invalid as error:
        raise CheckFailed("signature") from error
    return receipt


def _check_attribution(receipt: Receipt, finished: Finished, is_private: bool) -> None:
    """The credits are the receipt's, and follow a sketch that it commits to."""
    if attribution_root(finished.credits) != receipt.attribution_root:
        raise CheckFailed("credits")
    try:
        credits = decode_credits(finished.credits)
    except Invalid as error:
        raise CheckFailed("credits") from error
    if receipt.sketch_hash == ZERO_HASH:
        if credits or finished.sketch or finished.statement:
            raise CheckFailed("sketch")
        return
    if is_private or receipt.sketch_hash != sketch_hash(finished.sketch, finished.statement):
        raise CheckFailed("sketch")


def is_complete(receipt: Receipt) -> bool:
    """Whether the answer ended by itself."""
    return receipt.status == COMPLETE
