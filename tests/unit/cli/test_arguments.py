"""What people type is read in one way, and refused as their fault, never the ledger's."""

from pathlib import Path

import pytest

from node.cli import arguments
from node.cli.frame import FAILED, USAGE, CommandError
from node.ledger.addresses import account_text
from node.ledger.rules.registry import LICENCES

ALICE = account_text(bytes([1]) * 32)


def refused(status: int) -> pytest.RaisesExc[CommandError]:
    return pytest.RaisesExc(CommandError, check=lambda error: error.exit_status == status)


def test_account_is_its_key() -> None:
    assert arguments.account_in(ALICE, "TO") == bytes([1]) * 32


@pytest.mark.parametrize("text", ["", "open1", ALICE[:-1], ALICE[:-1] + "q", "\u0661" * 63])
def test_account_with_a_slip_is_refused(text: str) -> None:
    with refused(USAGE) as caught:
        arguments.account_in(text, "TO")
    assert "TO" in caught.value.what


def test_hash_is_64_lower_case_digits() -> None:
    assert arguments.hash_in("ab" * 32, "--base") == b"\xab" * 32
    assert arguments.hash_or_none(None, "--base") == b""
    for text in ("", "ab" * 31, "ab" * 33, "AB" * 32, "g" * 64, " " + "a" * 63):
        with refused(USAGE):
            arguments.hash_or_none(text, "--base")


@pytest.mark.parametrize("text", ["0", "7", "9" * 18, "latest"])
def test_height_is_a_number_or_the_latest(text: str) -> None:
    assert arguments.height_in(text, "HEIGHT") == text


@pytest.mark.parametrize("text", ["", "-1", "9" * 19, "Latest", "1 ", "\u0661"])
def test_what_is_no_height_is_refused(text: str) -> None:
    with refused(USAGE):
        arguments.height_in(text, "HEIGHT")


@pytest.mark.parametrize("text", ["abc", "a" * 32, "a-1", "2024-cases"])
def test_name_of_the_ledgers_letters_is_taken(text: str) -> None:
    assert arguments.name_in(text, "NAME") == text.encode()


@pytest.mark.parametrize("text", ["ab", "a" * 33, "Abc", "a_b", "a b", "äbc", "\u0661\u0662\u0663"])
def test_name_that_the_ledger_would_refuse_costs_nothing(text: str) -> None:
    with refused(USAGE):
        arguments.name_in(text, "NAME")


def test_name_of_digits_alone_could_not_be_called_again() -> None:
    with refused(USAGE) as caught:
        arguments.name_in("2024", "NAME")
    assert "number" in caught.value.what


def test_each_licence_is_called_by_its_name() -> None:
    for code, name in LICENCES.items():
        assert arguments.licence_in(name) == arguments.licence_in(name.lower()) == code
    with refused(USAGE) as caught:
        arguments.licence_in("GPL-3.0")
    assert "CC0-1.0" in caught.value.mend


@pytest.mark.parametrize(
    ("text", "ms"),
    [("1m", 60_000), ("90m", 5_400_000), ("12h", 43_200_000), ("14d", 1_209_600_000)],
)
def test_time_is_a_number_and_its_unit(text: str, ms: int) -> None:
    assert arguments.ms_in(text, "--review") == ms


@pytest.mark.parametrize(
    "text", ["", "14", "d", "0d", "-1d", "1.5d", "14 d", "1s", "1000000d", "\u0663d"]
)
def test_time_that_could_be_misread_is_refused(text: str) -> None:
    with refused(USAGE):
        arguments.ms_in(text, "--review")


def test_word_is_told_beside_those_that_fit() -> None:
    assert arguments.word_in("b", "--mode", ("a", "b")) == 1
    with refused(USAGE) as caught:
        arguments.word_in("c", "--mode", ("a", "b"))
    assert "a, b" in caught.value.what


def test_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert arguments.read_file(tmp_path / "file", 5) == b"12345"
    with refused(FAILED):
        arguments.read_file(tmp_path / "file", 4)
    for path in (tmp_path, tmp_path / "none"):
        with refused(FAILED) as caught:
            arguments.read_file(path, 5)
        assert "cannot be read" in caught.value.what
