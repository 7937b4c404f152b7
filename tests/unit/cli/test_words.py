"""The 24 words of an operator key: on a terminal only, once, and two are asked back."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from chain_kit import devnet

from consensus.primitives.keys import public_key
from node.cli.main import run
from node.ledger.genesis import encode_genesis
from node.wallet.keystore import Keystore, seed_of_words

PASSWORD = "correct horse"
COMMAND = (sys.executable, "-c", "from node.cli.main import main; main()")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of the profile testnet: its keys are sealed."""
    folder = tmp_path_factory.mktemp("sealed")
    (folder / "genesis").write_bytes(encode_genesis(devnet()))
    (folder / "password").write_text(PASSWORD + "\n")
    words = ["init", "--profile", "testnet", "--genesis", str(folder / "genesis")]
    words += ["--password-file", str(folder / "password"), "--home", str(folder / "home")]
    assert run(words) == 0
    return folder / "home"


def add(home: Path, name: str, answer: str | None) -> tuple[int, str]:
    """(exit status, all that the terminal showed) of `keys add`; `answer` replaces the words."""
    ours, theirs = pty.openpty()
    words = ["keys", "add", name, "--home", str(home)]
    words += ["--password-file", str(home.parent / "password")]
    child = subprocess.Popen([*COMMAND, *words], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown, asked = "", 0
    while True:
        try:
            piece = os.read(ours, 4_096).decode()
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
        questions = re.findall(r"^word (\d+): $", shown.replace("\r", ""), re.MULTILINE)
        if len(questions) > asked:
            asked = len(questions)
            told = answer or words_in(shown)[int(questions[-1]) - 1]
            os.write(ours, told.encode() + b"\n")
            shown += "\n"
    os.close(ours)
    return child.wait(), shown


def words_in(shown: str) -> list[str]:
    return [word for _, word in re.findall(r"(?<!\w)(\d{1,2}) ([a-z]{3,8})(?= |\r|\n)", shown)][:24]


def test_shown_words_give_the_key_that_was_made(home: Path) -> None:
    status, shown = add(home, "alice", None)
    assert status == 0, shown
    seed = seed_of_words(" ".join(words_in(shown)))
    key = Keystore(home / "keystore", in_clear=False).unlock("alice", PASSWORD)
    assert key.public_key == public_key(seed)


def test_word_that_is_not_the_one_makes_nothing(home: Path) -> None:
    status, shown = add(home, "bob", "olnode")
    assert (status, "nothing was made" in shown) == (2, True)
    assert not (home / "keystore/bob.json").exists()


def test_words_are_shown_on_no_pipe(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = subprocess.run(
        [*COMMAND, "keys", "add", "carol", "--home", str(home)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert "on a terminal only" in ran.stderr
    assert ran.stdout == ""
    assert not (home / "keystore/carol.json").exists()


def test_sealed_home_without_a_password_makes_nothing(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["init", "--genesis", str(home / "genesis"), "--home", str(tmp_path / "other")]
    ran = subprocess.run([*COMMAND, *words], stdin=subprocess.DEVNULL, check=False)
    assert ran.returncode == 2
    assert not (tmp_path / "other").exists()
