"""Passwords come from a file, a credential or a terminal, never from an argument."""

import os
from pathlib import Path

import pytest

from node.cli.frame import CommandError
from node.cli.passwords import PASSWORD_BYTES_MAX, read_password


@pytest.fixture(autouse=True)
def nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OLNODE_PASSWORD_FILE", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115  # lives as long as the test


def test_flag_beats_variable_beats_credential(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("flag", "variable", "olnode-password"):
        (tmp_path / name).write_text(f"by {name}\nnot this\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read_password(None, "password") == "by olnode-password"
    monkeypatch.setenv("OLNODE_PASSWORD_FILE", str(tmp_path / "variable"))
    assert read_password(None, "password") == "by variable"
    assert read_password(str(tmp_path / "flag"), "password") == "by flag"


def test_without_a_terminal_nobody_is_asked() -> None:
    with pytest.raises(CommandError) as refusal:
        read_password(None, "password")
    assert (refusal.value.exit_status, refusal.value.mend) == (2, "--password-file FILE")


@pytest.mark.parametrize("raw", [b"", b"\nsecond", b"\xff\xfe", b"x" * (PASSWORD_BYTES_MAX + 1)])
def test_file_without_a_password_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "file").write_bytes(raw)
    with pytest.raises(CommandError):
        read_password(str(tmp_path / "file"), "password")


def test_longest_password_and_foreign_line_ends_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * (PASSWORD_BYTES_MAX - 1) + b"\r\n")
    assert read_password(str(tmp_path / "file"), "password") == "x" * (PASSWORD_BYTES_MAX - 1)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="cannot be read"):
        read_password(str(tmp_path / "file"), "password")
