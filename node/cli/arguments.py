"""What people type, as the ledger means it: accounts, hashes, names, licences, times.

Why one file: each argument has one reading and one refusal (exit 2, with what would be right), so
that nothing malformed is signed, or charged for by a rule of the ledger.
What it does not know: commands; what stands on the ledger.
"""

import re
from pathlib import Path
from typing import Final

from node.cli.frame import CommandError, usage

HASH_DIGITS: Final = 64
HEIGHT_DIGITS_MAX: Final = 18
TIME: Final = re.compile(r"([1-9][0-9]{0,5})([mhd])")
UNIT_MS: Final = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}


def account_in(text: str, what: str) -> bytes:
    """The 32 bytes of `open1…`."""
    from consensus.primitives.errors import Invalid
    from node.ledger.addresses import account_of

    try:
        return account_of(text)
    except Invalid as error:
        usage(f"{what} {text[:80]!r} is no account: {error}", "olnode keys list")


def hash_in(text: str, what: str) -> bytes:
    """32 bytes from lower-case hex."""
    if len(text) != HASH_DIGITS or not set(text) <= set("0123456789abcdef"):
        usage(f"{what} {text[:80]!r} is no hash: {HASH_DIGITS} lower-case hex digits")
    return bytes.fromhex(text)


def height_in(text: str, what: str) -> str:
    """A height in digits, or `latest`."""
    is_number = text.isascii() and text.isdecimal() and len(text) <= HEIGHT_DIGITS_MAX
    if not is_number and text != "latest":
        usage(f"{what} {text[:80]!r} is no height: digits, or latest", "olnode query block latest")
    return text


def hash_or_none(text: str | None, what: str) -> bytes:
    """The same; empty where the option was left out."""
    return b"" if text is None else hash_in(text, what)


def name_in(text: str, what: str) -> bytes:
    """A name as the ledger takes it for a Datanet or a model."""
    from consensus.primitives.errors import Invalid
    from node.ledger.wire.transactions import check_name

    name = text.encode("utf-8", "surrogateescape")
    try:
        check_name(name, "name.bad")
    except Invalid:
        usage(f"{what} {text[:80]!r} is no name: a-z, 0-9 and -, 3 to 32 of them")
    if text.isdigit():
        usage(f"{what} {text} would be read as a number: put a letter into it")
    return name


def licence_in(text: str) -> int:
    """The ledger's code of a licence (page 40 §7)."""
    from node.ledger.rules.registry import LICENCES

    codes = {name.lower(): code for code, name in LICENCES.items()}
    code = codes.get(text.lower())
    if code is None:
        usage(
            f"--licence {text[:80]!r} is none that the ledger knows", ", ".join(LICENCES.values())
        )
    return code


def word_in(text: str, what: str, words: tuple[str, ...]) -> int:
    """The place of `text` among `words`."""
    if text not in words:
        usage(f"{what} {text[:80]!r} is not one of: {', '.join(words)}")
    return words.index(text)


def ms_in(text: str, what: str) -> int:
    """Milliseconds of a time such as 90m, 12h or 14d."""
    found = TIME.fullmatch(text)
    if found is None:
        usage(f"{what} {text[:80]!r} is no time: digits and m, h or d, as in 14d")
    return int(found[1]) * UNIT_MS[found[2]]


def read_file(path: Path, bytes_max: int) -> bytes:
    """The whole file. Raises CommandError where it cannot be read or is too large."""
    try:
        with path.open("rb") as file:
            raw = file.read(bytes_max + 1)
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}") from None
    if len(raw) > bytes_max:
        raise CommandError(f"{path} is larger than {bytes_max} bytes")
    return raw
