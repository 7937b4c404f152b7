"""The home that tests of commands start from."""

from pathlib import Path

import pytest
from unit.cli.calls import GENESIS, Capture, told

from node.cli.main import run
from node.ledger.addresses import account_of


@pytest.fixture
def home(tmp_path: Path, capsys: Capture) -> Path:
    """A devnet home with the keys of validator and payer."""
    (tmp_path / "genesis").write_bytes(GENESIS)
    home = tmp_path / "home"
    words = ["init", "--home", str(home), "--profile", "devnet", "--role", "validator"]
    assert run([*words, "--role", "payer", "--genesis", str(tmp_path / "genesis")]) == 0
    capsys.readouterr()
    return home


@pytest.fixture
def alice(home: Path, capsys: Capture) -> bytes:
    """An operator's key in the home."""
    return account_of(told(capsys, home, "keys", "add", "alice")["account"])
