"""Accounts: who signs for one, what a transaction costs, and transfers.

Why the envelope is judged apart: a transaction that fails here must never stand in a block, so a
proposer who puts it there makes an invalid payload; one that fails later has paid for its place.
What this file does not know: what the other types do.
"""

from itertools import pairwise

from consensus.primitives.digest import signing_bytes
from consensus.primitives.errors import Invalid
from consensus.primitives.keys import is_valid_point, verify_signature
from node.ledger import purses, tables
from node.ledger.amounts import checked, part_bps
from node.ledger.context import Context
from node.ledger.state import State
from node.ledger.wire.transactions import (
    PAYEES_MAX,
    TAG,
    VALID_MS_MAX,
    MultiTransfer,
    Transaction,
    Transfer,
)

BASE_PRICE_NAME = b"base_price"


def current_key(state: State, account: bytes) -> bytes:
    """The key that signs for an account now: the one it began with, unless it was rotated."""
    return state.account(account).key or account


def check_key(state: State, key: bytes) -> None:
    """Raise `Invalid` `tx.bad_value` if `key` is new to the ledger and no good curve point."""
    if not state.has(tables.ACCOUNT, key) and not is_valid_point(key):
        raise Invalid("tx.bad_value", why="no valid point", key=key)


def charge_of(tx: Transaction, base_price: int) -> int:
    """weight × base price (page 30 §6)."""
    return checked(tx.weight * base_price)


def check_envelope(state: State, context: Context, tx: Transaction) -> int:
    """The charge of a transaction that may stand in this block; raises codes 5 to 9."""
    if not context.time_ms < tx.valid_until_ms <= context.time_ms + VALID_MS_MAX:
        raise Invalid("tx.expired", valid_until_ms=tx.valid_until_ms, time_ms=context.time_ms)
    sender = state.account(tx.sender)
    if tx.nonce != sender.nonce:
        raise Invalid("tx.nonce", nonce=tx.nonce, expected=sender.nonce)
    charge = charge_of(tx, state.counter(BASE_PRICE_NAME))
    if tx.max_fee < charge:
        raise Invalid("tx.max_fee", max_fee=tx.max_fee, charge=charge)
    if sender.balance < charge:
        raise Invalid("tx.cannot_pay", balance=sender.balance, charge=charge)
    verify_sender(state, context.chain_id, tx)
    return charge


def verify_sender(state: State, chain_id: bytes, tx: Transaction) -> None:
    """Raise `Invalid` `tx.signature` unless the sender's current key signed the body."""
    message = signing_bytes(TAG, chain_id, tx.body)
    verify_signature(current_key(state, tx.sender), message, tx.signature, "tx.signature")


def pay_charge(state: State, context: Context, tx: Transaction, charge: int) -> None:
    """Raise the nonce; burn `tx_burn_bps` of the charge, the rest to the proposer."""
    account = state.account(tx.sender)
    state.put(tables.ACCOUNT, (tx.sender,), account._replace(nonce=account.nonce + 1))
    burnt = part_bps(charge, state.parameter("tx_burn_bps"))
    source = purses.account(tx.sender)
    state.move(source, purses.BURN, burnt)
    state.move(source, purses.account(context.proposer), charge - burnt)


def next_base_price(state: State, used: int) -> int:
    """The price after a block of `used` weight: ± 1/8 at most, never below the floor."""
    base, target = state.counter(BASE_PRICE_NAME), state.parameter("tx_weight_target")
    if used != target:
        away = min(abs(used - target), target)
        step = max(1, base * away // target // 8)
        base = base + step if used > target else base - step
    return max(base, state.parameter("min_base_price"))


def apply_transfer(state: State, context: Context, tx: Transaction, payload: Transfer) -> None:
    """Type 1."""
    if payload.amount == 0:
        raise Invalid("tx.bad_value", why="amount 0")
    check_key(state, payload.to)
    state.move(purses.account(tx.sender), purses.account(payload.to), payload.amount)


def apply_multi_transfer(
    state: State, context: Context, tx: Transaction, payload: MultiTransfer
) -> None:
    """Type 2: all of the payments or none.

    Raises Invalid: 20 the balance is below their sum, 25 too many, 26 none, a payment of 0, payees
    out of order or twice, a new key that is no point.
    """
    payments = payload.payments
    if len(payments) > PAYEES_MAX:
        raise Invalid("tx.limit", payees=len(payments))
    if not payments or any(amount == 0 for _, amount in payments):
        raise Invalid("tx.bad_value", why="amount 0")
    if any(a >= b for (a, _), (b, _) in pairwise(payments)):
        raise Invalid("tx.bad_value", why="payees out of order")
    source = purses.account(tx.sender)
    total, held = sum(amount for _, amount in payments), state.held(source)
    if held < total:
        raise Invalid("tx.insufficient", needed=total, held=held)
    for to, amount in payments:
        check_key(state, to)
        state.move(source, purses.account(to), amount)
