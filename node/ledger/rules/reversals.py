"""Taking a receipt's money back while it waits: to each payee its part, all of it to the payer.

Why from the receipt alone: what a block paid was split over all its receipts at once; what is
computed here is within a grain of what one receipt brought each payee, comes out of that payee's
own entry and is never more than it holds; and anybody can compute it (page 40 §3). Why by the time
it settled: a contribution withdrawn since was paid then, and one withdrawn before was not.
What this file does not know: why a receipt is reversed, and what that costs beside.
"""

from collections import Counter
from typing import NamedTuple

from node.ledger import purses, tables
from node.ledger.amounts import BPS, part_bps
from node.ledger.rules.channels import change_income
from node.ledger.rules.models import Which, suspended_ms
from node.ledger.rules.payout import KINDS, NOBODY, NUMBER_BYTES, creator_weights, fund_weights
from node.ledger.state import State
from node.ledger.tables import Settled
from node.ledger.wire.receipts import NO_CONTRIBUTION, Credits, Receipt

Payee = tuple[int, bytes]  # kind of a maturing entry, and whose


class Answer(NamedTuple):
    """A settled receipt, and whom it credits."""

    receipt: Receipt
    credits: Credits


def reverse_receipt(state: State, settled: Settled, answer: Answer, payer: bytes) -> int:
    """Give the payer what waits of a receipt's fee; returns how much that was."""
    returned = 0
    for (kind, payee), amount in sorted(parts_of(state, settled, answer).items()):
        waiting = purses.maturing(settled.bucket_ms, kind, payee)
        part = min(amount, state.held(waiting))
        state.move(waiting, purses.account(payer), part)
        if kind == tables.KIND_PROVIDER:
            change_income(state, settled, -part)
        returned += part
    return returned


def parts_of(state: State, settled: Settled, answer: Answer) -> dict[Payee, int]:
    """What one receipt brought each payee, within a grain; what was burnt is nobody's."""
    receipt = answer.receipt
    which, bps = (receipt.model, receipt.model_version), state.parameter_values("split_bps")
    fees = {kind: part_bps(receipt.fee, of) for kind, of in zip(KINDS, bps, strict=True)}
    parts = Counter[Payee]()
    parts[tables.KIND_PROVIDER, settled.reward] += fees[tables.KIND_PROVIDER]
    for kind in (tables.KIND_STAKERS, tables.KIND_TREASURY):
        parts[kind, NOBODY] += fees[kind]
    for kind, weights in (
        (tables.KIND_CREATOR, creator_weights(state, which)),
        (tables.KIND_FUND, fund_weights(state, which)),
    ):
        total = sum(weights.values())
        for payee, weight in weights.items():
            parts[kind, payee] += fees[kind] * weight // total
    data_bps = dict(zip(KINDS, bps, strict=True))[tables.KIND_DATA]
    for number, share in answer.credits or ((NO_CONTRIBUTION, BPS),):
        whose = _data_payee(state, settled.settled_ms, which, number)
        parts[whose] += receipt.fee * data_bps * share // BPS**2
    return parts


def _data_payee(state: State, settled_ms: int, which: Which, number: int) -> Payee:
    """Whom a credit was paid to: the contribution, or the model's fund in its place."""
    is_own = number != NO_CONTRIBUTION and settled_ms < suspended_ms(state, which)
    if is_own and _was_paid(state, number, settled_ms):
        return tables.KIND_DATA, number.to_bytes(NUMBER_BYTES, "big")
    return tables.KIND_FUND, which[0].to_bytes(NUMBER_BYTES, "big")


def _was_paid(state: State, number: int, settled_ms: int) -> bool:
    """Whether a contribution was paid in a block of that time."""
    found = state.get(tables.CONTRIBUTION, number)
    if found.status == tables.WITHDRAWN:
        return found.withdrawn_ms > settled_ms
    return found.status == tables.ACCEPTED
