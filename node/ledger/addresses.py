"""Accounts as text: `open1…`, bech32m of the 32-byte public key.

Why bech32m: a person copies it, and any four wrong characters are found (BIP 350; the checksum
constant is the only difference to BIP 173). Only this file turns an account into text or back.
"""

from collections.abc import Iterable
from typing import Final

from consensus.primitives.errors import Invalid

PREFIX: Final = "open"
ACCOUNT_BYTES: Final = 32
TEXT_CHARS: Final = len(PREFIX) + 1 + 52 + 6  # 52 characters of five bits hold 32 bytes

_ALPHABET: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_VALUES: Final = {char: value for value, char in enumerate(_ALPHABET)}
_BECH32M: Final = 0x2BC830A3
_GENERATORS: Final = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_PREFIX_CODES: Final = PREFIX.encode()
_EXPANDED_PREFIX: Final = (*(c >> 5 for c in _PREFIX_CODES), 0, *(c & 31 for c in _PREFIX_CODES))


def account_text(account: bytes) -> str:
    """`open1…` of a 32-byte account, 63 characters."""
    assert len(account) == ACCOUNT_BYTES
    values = _regroup(account, 8, 5, pad=True)
    check = _polymod((*_EXPANDED_PREFIX, *values, 0, 0, 0, 0, 0, 0)) ^ _BECH32M
    values += [check >> 5 * (5 - i) & 31 for i in range(6)]
    return PREFIX + "1" + "".join(_ALPHABET[value] for value in values)


def account_of(text: str) -> bytes:
    """The 32-byte account of `open1…`; raises `Invalid` `address.…` with what is wrong."""
    if len(text) != TEXT_CHARS:
        raise Invalid("address.length", chars=len(text), expected=TEXT_CHARS)
    lower = text.lower() if text.isascii() and text.upper() == text else text
    if not lower.startswith(PREFIX + "1"):
        raise Invalid("address.prefix")
    data = lower[len(PREFIX) + 1 :]
    if any(char not in _VALUES for char in data):
        raise Invalid("address.character")
    values = [_VALUES[char] for char in data]
    if _polymod((*_EXPANDED_PREFIX, *values)) != _BECH32M:
        raise Invalid("address.checksum")
    account = bytes(_regroup(values[:-6], 5, 8, pad=False))
    if account_text(account) != lower:  # padding bits that are not zero
        raise Invalid("address.padding")
    return account


def _polymod(values: Iterable[int]) -> int:
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for i, generator in enumerate(_GENERATORS):
            check ^= generator if top >> i & 1 else 0
    return check


def _regroup(values: Iterable[int], bits_from: int, bits_to: int, pad: bool) -> list[int]:
    held, bits, out = 0, 0, []
    for value in values:
        held, bits = held << bits_from | value, bits + bits_from
        while bits >= bits_to:
            bits -= bits_to
            out.append(held >> bits & (1 << bits_to) - 1)
        held &= (1 << bits) - 1
    if pad and bits:
        out.append(held << bits_to - bits)
    return out
