"""Refusals by number: the one table that ties page 30's codes to the words of `Invalid`.

Why numbers at all: a code is part of a block (the leaf of `txs_root` is `[tx bytes, code]`), so
it must never change; words are for people and tests.
"""

from typing import Final

from consensus.primitives.errors import Invalid

OK: Final = 0

# Envelope of a transaction: any of these makes the whole payload invalid (page 30 §11).
ENVELOPE_CODES: Final = {
    "tx.malformed": 1,
    "tx.not_canonical": 1,
    "tx.too_large": 2,
    "tx.version": 3,
    "tx.unknown_type": 4,
    "tx.signature": 5,
    "tx.expired": 6,
    "tx.nonce": 7,
    "tx.max_fee": 8,
    "tx.cannot_pay": 9,
}

# Effects: the fee is charged and the nonce raised, all else is rolled back.
EFFECT_CODES: Final = {
    "tx.insufficient": 20,
    "tx.not_found": 21,
    "tx.not_yours": 22,
    "tx.wrong_state": 23,
    "tx.exists": 24,
    "tx.limit": 25,
    "tx.bad_value": 26,
    "tx.too_early_or_late": 27,
    "tx.bad_proof": 28,
    "tx.paused": 29,
    "tx.allowance": 30,
    "amount.out_of_range": 26,
}

# Bundles: any of these refuses the bundle, and a payload that names it (page 30 §8).
BUNDLE_CODES: Final = {
    "bundle.malformed": 1,
    "bundle.provider": 5,
    "bundle.sections": 40,
    "bundle.voucher": 41,
    "bundle.receipt": 42,
    "bundle.acknowledgement": 43,
    "bundle.totals": 44,
    "bundle.channel": 45,
    "bundle.amount": 46,
    "bundle.price": 47,
    "bundle.credits": 48,
}

_NUMBERS: Final = ENVELOPE_CODES | EFFECT_CODES | BUNDLE_CODES
_NAMES: Final = {number: word for word, number in (ENVELOPE_CODES | EFFECT_CODES).items()} | {
    26: "tx.bad_value",
    OK: "ok",
}


def find_code(refusal: Invalid) -> int | None:
    """The number of a refusal of a transaction or bundle; None when page 30 gives it none."""
    return _NUMBERS.get(refusal.code)


def effect_code(refusal: Invalid) -> int:
    """The number of a transaction's effect; one that has none is our own fault."""
    code = EFFECT_CODES.get(refusal.code)
    assert code is not None, f"{refusal} is no effect"
    return code


def code_name(number: int) -> str:
    """The word of a transaction's code, for people: `ok`, `tx.insufficient`, …"""
    return _NAMES.get(number, f"code {number}")
