"""Refusals by number: page 30's numbers for good, since they stand in blocks."""

import re
from pathlib import Path

import pytest

from consensus.primitives.errors import Invalid
from node.ledger.wire import codes

ROOT = Path(__file__).resolve().parents[3]
LEDGER = [path.read_text(encoding="utf-8") for path in (ROOT / "node/ledger").rglob("*.py")]


def test_numbers_are_those_of_the_design() -> None:
    """A leaf of `txs_root` is [transaction, code]: another number would be another block."""
    assert sorted(set(codes.ENVELOPE_CODES.values())) == list(range(1, 10))
    assert sorted(set(codes.EFFECT_CODES.values())) == list(range(20, 31))
    assert sorted(codes.BUNDLE_CODES.values()) == [1, 5, *range(40, 49)]
    assert codes.EFFECT_CODES["tx.insufficient"] == 20
    assert codes.EFFECT_CODES["tx.allowance"] == 30
    assert codes.BUNDLE_CODES["bundle.acknowledgement"] == 43


def test_an_effect_is_never_taken_for_an_envelope() -> None:
    """An envelope's code refuses the whole payload, an effect's does not."""
    assert not set(codes.ENVELOPE_CODES.values()) & set(codes.EFFECT_CODES.values())
    assert codes.OK not in (codes.ENVELOPE_CODES | codes.EFFECT_CODES).values()


@pytest.mark.parametrize("word", sorted(codes.EFFECT_CODES))
def test_each_effect_has_its_number_and_back(word: str) -> None:
    number = codes.effect_code(Invalid(word))
    assert codes.find_code(Invalid(word)) == number
    assert codes.EFFECT_CODES[word] == number
    assert codes.code_name(number) in codes.EFFECT_CODES


@pytest.mark.parametrize("word", ["tx.nonce", "bundle.totals", "voucher.seq", "no.such"])
def test_what_is_no_effect_is_our_own_fault(word: str) -> None:
    with pytest.raises(AssertionError, match="is no effect"):
        codes.effect_code(Invalid(word))


def test_a_refusal_without_number_has_none() -> None:
    assert codes.find_code(Invalid("voucher.seq")) is None
    assert codes.find_code(Invalid("bundle.price")) == 47


def test_every_word_of_the_tables_is_said_somewhere() -> None:
    """A code that nothing raises is a promise that nothing keeps; those to come are named."""
    to_come = {"tx.bad_proof", "tx.paused", "tx.allowance"}  # evidence, governance, allowances
    said = set(re.findall(r'Invalid\(\s*"([a-z_.]+)"', "\n".join(LEDGER)))
    said |= set(re.findall(r'"(tx\.[a-z_]+)"\)', "\n".join(LEDGER)))  # check_name(…, code)
    words = codes.ENVELOPE_CODES.keys() | codes.EFFECT_CODES.keys() | codes.BUNDLE_CODES.keys()
    by_decode = {"tx.malformed", "tx.not_canonical", "tx.too_large"}  # f"{what}.…" in decode
    assert words - said - by_decode - to_come == set()


def test_codes_are_shown_as_words() -> None:
    assert codes.code_name(0) == "ok"
    assert codes.code_name(1) in ("tx.malformed", "tx.not_canonical")
    assert codes.code_name(26) == "tx.bad_value"
    assert codes.code_name(31) == "code 31"
