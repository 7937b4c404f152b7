"""Addresses: 32 bytes to text and back, and no slip of the pen unseen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.primitives.errors import Invalid
from node.ledger import addresses
from node.ledger.addresses import account_of, account_text

ACCOUNT = bytes(range(32))
TEXT = account_text(ACCOUNT)


@given(st.binary(min_size=32, max_size=32))
def test_text_and_account_are_one_to_one(account) -> None:
    text = account_text(account)
    assert text.startswith("open1")
    assert len(text) == 63
    assert account_of(text) == account
    assert account_of(text.upper()) == account


def test_checksum_is_bech32m_of_bip350() -> None:
    """The valid string `abcdef1l7aum6echk45nj3s0wdvt2fg8x9yrzpqzd3ryx` of BIP 350."""
    data = "l7aum6echk45nj3s0wdvt2fg8x9yrzpqzd3ryx"
    values = [addresses._ALPHABET.index(char) for char in data]
    prefix = [ord(char) >> 5 for char in "abcdef"] + [0] + [ord(char) & 31 for char in "abcdef"]
    assert addresses._polymod((*prefix, *values)) == addresses._BECH32M


@pytest.mark.parametrize("place", range(5, 63))
def test_one_wrong_character_is_seen(place) -> None:
    wrong = "q" if TEXT[place] != "q" else "p"
    with pytest.raises(Invalid, match=r"address\.checksum"):
        account_of(TEXT[:place] + wrong + TEXT[place + 1 :])


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (TEXT[:-1], "address.length"),
        (TEXT + "q", "address.length"),
        ("", "address.length"),
        ("opem1" + TEXT[5:], "address.prefix"),
        (TEXT[:20] + "b" + TEXT[21:], "address.character"),
        (TEXT[:20] + "é" + TEXT[21:], "address.character"),
        (TEXT[:20] + TEXT[20:].upper(), "address.character"),
    ],
)
def test_each_slip_has_its_word(text, code) -> None:
    with pytest.raises(Invalid) as refusal:
        account_of(text)
    assert refusal.value.code == code
