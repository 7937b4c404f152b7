"""Accounts: which key signs, what a transaction costs, and in which order an envelope is judged."""

from typing import Any

import pytest
from bundle_kit import CHAIN, Party, party
from ledger_kit import BALANCE, NOW_MS, PAYER, VALIDATOR, context, new_state, supply_is_whole

from consensus.primitives.errors import Invalid
from node.ledger import tables
from node.ledger.rules import accounts
from node.ledger.state import State
from node.ledger.wire import transactions as wire
from node.ledger.wire.transactions import (
    VALID_MS_MAX,
    MultiTransfer,
    Transaction,
    Transfer,
)

BEN, NEW = party("ben"), party("a new key")
LOW_ORDER = bytes([1]) + bytes(31)  # a point that signs everything
PRICE = 100


def state_at(price: int = PRICE) -> State:
    state = new_state()
    state.set_counter(accounts.BASE_PRICE_NAME, price)
    return state


def sent(signer: Party = PAYER, sender: Party = PAYER, **fields: Any) -> Transaction:
    values = {"nonce": 0, "max_fee": 10**9, "valid_until_ms": NOW_MS + 1} | fields
    body = wire.encode_body(sender.key, payload=Transfer(BEN.key, 5, b""), **values)
    return wire.decode_transaction(wire.sign_transaction(CHAIN, signer.seed, body))


def refusal_of(call: Any, *args: Any) -> str:
    with pytest.raises(Invalid) as refusal:
        call(*args)
    return refusal.value.code


# ---- keys


def test_an_account_is_signed_for_by_the_key_it_began_with_until_it_rotates() -> None:
    state = state_at()
    assert accounts.current_key(state, PAYER.key) == PAYER.key
    assert accounts.current_key(state, BEN.key) == BEN.key  # never seen
    account = state.account(PAYER.key)
    state.put(tables.ACCOUNT, (PAYER.key,), account._replace(key=NEW.key))
    assert accounts.current_key(state, PAYER.key) == NEW.key
    accounts.check_envelope(state, context(), sent(NEW))
    assert refusal_of(accounts.check_envelope, state, context(), sent(PAYER)) == "tx.signature"


def test_a_new_key_must_be_a_point_and_a_known_account_is_not_asked_again() -> None:
    state = state_at()
    accounts.check_key(state, BEN.key)
    for bad in (LOW_ORDER, bytes(32), b"\xff" * 32):
        assert refusal_of(accounts.check_key, state, bad) == "tx.bad_value"
    state.put(tables.ACCOUNT, (LOW_ORDER,), tables.Account())
    accounts.check_key(state, LOW_ORDER)


# ---- the envelope


def test_the_charge_is_weight_times_the_base_price() -> None:
    tx = sent()
    assert accounts.charge_of(tx, PRICE) == tx.weight * PRICE
    assert tx.weight == len(tx.raw) + 500 + 2 * 200
    assert accounts.check_envelope(state_at(), context(), tx) == tx.weight * PRICE
    assert refusal_of(accounts.charge_of, tx, 2**62) == "amount.out_of_range"


def exact_fee() -> int:
    """The charge of a transaction whose max_fee is itself packed into five bytes."""
    return sent(max_fee=10**5).weight * PRICE


@pytest.mark.parametrize(
    ("desc", "fields", "code"),
    [
        ("valid in the last millisecond", {"valid_until_ms": NOW_MS + 1}, None),
        ("expired at its very time", {"valid_until_ms": NOW_MS}, "tx.expired"),
        ("valid for a day", {"valid_until_ms": NOW_MS + VALID_MS_MAX}, None),
        ("valid for too long", {"valid_until_ms": NOW_MS + VALID_MS_MAX + 1}, "tx.expired"),
        ("a nonce too far", {"nonce": 1}, "tx.nonce"),
        ("exactly its charge", {"max_fee": exact_fee()}, None),
        ("a grain below its charge", {"max_fee": exact_fee() - 1}, "tx.max_fee"),
        ("another's signature", {"signer": BEN}, "tx.signature"),
    ],
)
def test_each_side_of_each_limit(desc: str, fields: dict[str, Any], code: str | None) -> None:
    state = state_at()
    if code is None:
        accounts.check_envelope(state, context(), sent(**fields))
    else:
        assert refusal_of(accounts.check_envelope, state, context(), sent(**fields)) == code, desc


def test_a_balance_of_exactly_the_charge_is_enough() -> None:
    state, tx = state_at(), sent()
    charge = accounts.charge_of(tx, PRICE)
    account = state.account(PAYER.key)
    state.put(tables.ACCOUNT, (PAYER.key,), account._replace(balance=charge))
    assert accounts.check_envelope(state, context(), tx) == charge
    state.put(tables.ACCOUNT, (PAYER.key,), account._replace(balance=charge - 1))
    assert refusal_of(accounts.check_envelope, state, context(), tx) == "tx.cannot_pay"


def test_the_signature_is_judged_last() -> None:
    """It costs the most: a flood of stale transactions must not buy signature checks."""
    stale = sent(BEN, nonce=7, max_fee=1, valid_until_ms=NOW_MS)
    state = state_at()
    assert refusal_of(accounts.check_envelope, state, context(), stale) == "tx.expired"
    for fixed, code in (
        ({"valid_until_ms": NOW_MS + 1}, "tx.nonce"),
        ({"valid_until_ms": NOW_MS + 1, "nonce": 0}, "tx.max_fee"),
        ({"valid_until_ms": NOW_MS + 1, "nonce": 0, "max_fee": 10**9}, "tx.signature"),
    ):
        tx = sent(BEN, **({"nonce": 7, "max_fee": 1} | fixed))
        assert refusal_of(accounts.check_envelope, state, context(), tx) == code


def test_a_signature_of_another_chain_is_none_of_ours() -> None:
    other = context(chain_id=bytes(32))
    assert refusal_of(accounts.check_envelope, state_at(), other, sent()) == "tx.signature"


# ---- the charge and the transfer


@pytest.mark.parametrize(("charge", "burnt"), [(0, 0), (1, 0), (101, 50), (1_000, 500)])
def test_half_is_burnt_and_the_odd_grain_is_the_proposers(charge: int, burnt: int) -> None:
    state = state_at()
    supply, proposer = state.supply(), state.account(VALIDATOR.key).balance
    accounts.pay_charge(state, context(), sent(), charge)
    assert state.supply() == supply - burnt
    assert state.account(VALIDATOR.key).balance == proposer + charge - burnt
    assert state.account(PAYER.key) == tables.Account(1, BALANCE - charge)
    assert supply_is_whole(state)


def test_a_proposer_that_pays_itself_loses_what_is_burnt() -> None:
    state = state_at()
    accounts.pay_charge(state, context(), sent(VALIDATOR, VALIDATOR), 100)
    assert state.account(VALIDATOR.key) == tables.Account(1, BALANCE - 50)


def apply(state: State, to: bytes, amount: int) -> None:
    accounts.apply_transfer(state, context(), sent(), Transfer(to, amount, b""))


def test_the_whole_balance_may_go_and_not_a_grain_more() -> None:
    state = state_at()
    assert refusal_of(apply, state, BEN.key, BALANCE + 1) == "tx.insufficient"
    apply(state, BEN.key, BALANCE)
    assert (state.account(PAYER.key).balance, state.account(BEN.key).balance) == (0, BALANCE)
    assert supply_is_whole(state)


def test_nothing_is_no_amount_and_a_bad_point_no_payee() -> None:
    state = state_at()
    assert refusal_of(apply, state, BEN.key, 0) == "tx.bad_value"
    assert refusal_of(apply, state, LOW_ORDER, 1) == "tx.bad_value"
    assert not state.has(tables.ACCOUNT, LOW_ORDER)


# ---- many payments at once


def pay_all(state: State, *payments: tuple[bytes, int]) -> None:
    accounts.apply_multi_transfer(state, context(), sent(), MultiTransfer(payments))


def payees(count: int) -> list[bytes]:
    return sorted(party(f"payee {i}").key for i in range(count))


def test_all_are_paid_in_one_transaction() -> None:
    state, to = state_at(), payees(3)
    pay_all(state, *zip(to, (1, 2, BALANCE - 3), strict=True))
    assert [state.account(key).balance for key in to] == [1, 2, BALANCE - 3]
    assert state.account(PAYER.key).balance == 0
    assert supply_is_whole(state)


def test_the_sender_may_be_among_the_paid() -> None:
    state = state_at()
    pay_all(state, *((key, 5) for key in sorted((PAYER.key, BEN.key))))
    assert state.account(PAYER.key).balance == BALANCE - 5


def test_256_are_paid_and_one_more_is_refused() -> None:
    state, to = state_at(), payees(257)
    assert refusal_of(pay_all, state, *((key, 1) for key in to)) == "tx.limit"
    pay_all(state, *((key, 1) for key in to[:256]))
    assert state.account(PAYER.key).balance == BALANCE - 256
    assert supply_is_whole(state)


A, B = payees(2)


@pytest.mark.parametrize(
    ("desc", "payments", "code"),
    [
        ("nobody", (), "tx.bad_value"),
        ("a payment of nothing", ((A, 1), (B, 0)), "tx.bad_value"),
        ("out of order", ((B, 1), (A, 1)), "tx.bad_value"),
        ("one twice", ((A, 1), (A, 1)), "tx.bad_value"),
        ("a key that is no point", ((LOW_ORDER, 1), (A, 1)), "tx.bad_value"),
        ("a grain more than there is", ((A, 1), (B, BALANCE)), "tx.insufficient"),
        ("a sum that no amount can be", ((A, 2**63 - 1), (B, 2**63 - 1)), "tx.insufficient"),
    ],
)
def test_payments_are_refused_as_a_whole(
    desc: str, payments: tuple[tuple[bytes, int], ...], code: str
) -> None:
    state = state_at()
    with pytest.raises(Invalid) as refusal, state.trial():
        pay_all(state, *payments)
    assert refusal.value.code == code, desc
    assert not state.has(tables.ACCOUNT, A)
    assert state.account(PAYER.key).balance == BALANCE


def test_each_payee_weighs_as_a_key_that_is_written() -> None:
    def weight(count: int) -> tuple[int, int]:
        payload = MultiTransfer(tuple((key, 1) for key in payees(count)))
        body = wire.encode_body(PAYER.key, 0, 1, 1, payload)
        tx = wire.decode_transaction(wire.sign_transaction(CHAIN, PAYER.seed, body))
        return tx.weight, len(tx.raw)

    (two, two_bytes), (three, three_bytes) = weight(2), weight(3)
    assert two == two_bytes + 500 + 3 * 200
    assert three - two == 200 + three_bytes - two_bytes


# ---- the base price


@pytest.mark.parametrize(
    ("desc", "price", "used_of_target", "expected"),
    [
        ("a block at its target", 800, (1, 1), 800),
        ("an empty block", 800, (0, 1), 700),
        ("twice the target", 800, (2, 1), 900),
        ("ten times the target moves no further", 800, (10, 1), 900),
        ("half the target", 800, (1, 2), 750),
        ("a step is at least one", 101, (3, 4), 100),
        ("never below the floor", 100, (0, 1), 100),
        ("from the floor it rises again", 100, (2, 1), 112),
    ],
)
def test_the_price_moves_by_an_eighth_at_most(
    desc: str, price: int, used_of_target: tuple[int, int], expected: int
) -> None:
    state = state_at(price)
    part, whole = used_of_target
    used = state.parameter("tx_weight_target") * part // whole
    assert accounts.next_base_price(state, used) == expected, desc
