"""Ten thousand transactions of chance: as a plain model foretells, with the roots we promised."""

import json

import pytest
from money_kit import MoneyProgram
from salt_kit import printed
from vectors.make import COMMAND, HERE

from node.ledger import purses

TEXT = (HERE / "money.json").read_text(encoding="utf-8")
PROMISED = json.loads(TEXT)
CHANGED = f"other roots? if they are meant: `{COMMAND}`, and tell it in CHANGELOG.md"


@pytest.mark.parametrize("salt", ["1", "2"])
def test_the_ledger_is_the_models_whatever_the_salt_of_hashes(salt: str) -> None:
    """Codes, balances, channels and the supply are compared after each block of both runs."""
    assert printed("money", salt) == TEXT, CHANGED


def test_the_program_is_long_and_meets_refusals() -> None:
    assert PROMISED["transactions"] >= 10_000
    assert PROMISED["codes"].keys() >= {"0", "20", "21", "22", "23", "24", "26", "27", "28"}


def test_a_grain_too_much_is_seen() -> None:
    """The tester, tested: one grain moved behind the model's back."""
    program = MoneyProgram(1)
    program.block(5)
    honest = program.chain.state

    def state() -> object:
        found = honest()
        one, other = list(program.model.balance)[:2]
        found.move(purses.account(one), purses.account(other), 1)
        return found

    program.chain.state = state  # type: ignore[method-assign,assignment]
    with pytest.raises(AssertionError):
        program._compare()
