"""What opens the hashes of a receipt: prompt, answers and sketch, for whom the payer shows them to.

Why a thing of its own: the ledger holds hashes alone, and only the payer and the provider know what
they are of. Whoever is to look again at an answer gets this from one of them, and believes none.
What this file does not know: whether an answer is honest, who looks.
"""

from typing import NamedTuple

from consensus.primitives.errors import Invalid
from node.ledger.wire.claims import sketch_hash
from node.ledger.wire.orders import (
    ZERO_HASH,
    Order,
    decode_order,
    order_hash,
    prompt_commit,
)
from node.ledger.wire.receipts import Receipt, answer_root


class Disclosure(NamedTuple):
    """Of one answer. Token ids of the prompt and of each choice. Where the payer gave no nonce, its
    own is empty; where the provider gave none, its own is 32 zero bytes."""

    order: bytes
    payer_nonce: bytes
    provider_nonce: bytes
    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    sketch: bytes
    statement: bytes


def check_disclosure(told: Disclosure, receipt: Receipt) -> Order:
    """The order, if all that is told is what the receipt commits to.

    Raises Invalid `disclosure.order`, `disclosure.prompt`, `disclosure.answer`,
    `disclosure.sketch`, in this order.
    """
    try:
        order = decode_order(told.order)
    except Invalid as error:
        raise Invalid("disclosure.order", why=error.code) from None
    if order_hash(told.order) != receipt.order_hash:
        raise Invalid("disclosure.order", why="another one")
    if prompt_commit(order.salt16, told.prompt) != order.prompt_commit:
        raise Invalid("disclosure.prompt")
    nonces = told.payer_nonce, told.provider_nonce
    if answer_root(order.salt16, *nonces, told.answers) != receipt.answer_root:
        raise Invalid("disclosure.answer")
    if receipt.sketch_hash == ZERO_HASH:
        is_bound = not told.sketch and not told.statement
    else:
        is_bound = sketch_hash(told.sketch, told.statement) == receipt.sketch_hash
    if not is_bound:
        raise Invalid("disclosure.sketch")
    return order
