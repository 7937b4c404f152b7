"""The frame of all commands: options anywhere, one exit status per fault, nothing heavy loaded."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from consensus.primitives.errors import Invalid
from node.cli import faults
from node.cli.frame import CommandError, open_text, table
from node.cli.main import NOUNS, hoist, run
from node.storage.errors import Damaged

HEAVY = ["torch", "transformers", "peft", "libp2p", "starlette", "structlog"]


@pytest.mark.parametrize(
    ("given", "hoisted"),
    [
        ("status --home /a -o json", "--home /a -o json status"),
        ("keys list --yes", "--yes keys list"),
        ("status --home=/a", "--home=/a status"),
        ("infer m -- --yes -o json", "infer m -- --yes -o json"),
        ("tx transfer a 5 --from k --dry-run", "tx --from k --dry-run transfer a 5"),
        ("tx transfer a 5 -o json --max-fee=1", "-o json tx --max-fee=1 transfer a 5"),
        ("infer m --max-fee 1", "infer m --max-fee 1"),
        ("status --home", "--home status"),
        ("", ""),
    ],
)
def test_common_options_may_stand_after_the_noun(given: str, hoisted: str) -> None:
    assert hoist(given.split()) == hoisted.split()


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ("--help", 0),
        ("version", 0),
        ("nope", 2),
        ("keys nope", 2),
        ("keys", 2),
        ("version --nope", 2),
        ("version -o yaml", 2),
        ("keys list", 3),
        ("status", 3),
        ("config validate --profile moonnet", 78),
    ],
)
def test_exit_status_tells_the_kind_of_fault(
    arguments: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLNODE_HOME", str(tmp_path / "home"))
    assert run(arguments.split()) == status


def nested(error: Exception) -> Exception:
    """As trio's nurseries wrap it."""
    return ExceptionGroup("a", [ExceptionGroup("b", [error])])


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CommandError("x", status=5), 5),
        (Damaged("x"), 7),
        (Invalid("tx.nonce"), 1),
        (Invalid("tx.insufficient"), 5),
        (KeyboardInterrupt(), 130),
        (SystemExit(143), 143),
    ],
)
def test_error_speaks_from_inside_its_groups(
    error: Exception, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert faults.tell(error, as_json=False) == status
    if isinstance(error, Exception):
        assert faults.tell(nested(error), as_json=False) == status
    assert capsys.readouterr().out == ""


def test_error_names_its_mend(capsys: pytest.CaptureFixture[str]) -> None:
    faults.tell(CommandError("the cause", mend="olnode start", why="a reason"), as_json=False)
    assert capsys.readouterr().err == "olnode: the cause\n  mend: olnode start\n  why: a reason\n"


def test_full_disk_is_no_fault_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/home/x/blocks/000001")
    assert faults.tell(nested(full), as_json=False) == 1
    said = capsys.readouterr().err
    assert "/home/x/blocks/000001" in said
    assert "free some space" in said
    assert "unforeseen" not in said


def test_unforeseen_error_is_one_line_and_a_crash_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert faults.tell(nested(RuntimeError("boom")), as_json=False) == 1
    (crash,) = tmp_path.iterdir()
    assert "RuntimeError: boom" in crash.read_text()
    assert str(crash) in capsys.readouterr().err


def test_program_gets_its_error_as_an_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status", "--home", str(tmp_path / "none"), "-o", "json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert (told["schema"], told["exit"]) == ("olnode.error/1", 3)
    assert next(iter(told)) == "schema"


@pytest.mark.parametrize("arguments", ["--help", "status", "keys list", "verify x", "tx --help"])
def test_light_command_loads_nothing_heavy(arguments: str, tmp_path: Path) -> None:
    code = (
        "import sys; from node.cli.main import run; "
        f"run({['--home', str(tmp_path), *arguments.split()]!r}); "
        f"sys.stderr.write('LOADED ' + ' '.join({set(HEAVY)!r} & sys.modules.keys()))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr.endswith("LOADED ")


def test_reader_that_closes_the_pipe_is_no_fault() -> None:
    command = (
        f"{sys.executable} -c 'from node.cli.main import main; main()' config show | head -c 1"
    )
    ran = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert ran.stderr == ""


def test_optimised_python_is_refused() -> None:
    """Asserts are checks of ours: without them a fault would go on."""
    code = "import sys; sys.argv = ['olnode', 'version']; from node.cli.main import main; main()"
    ran = subprocess.run(
        [sys.executable, "-O", "-c", code], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert "-O" in ran.stderr


def test_each_noun_has_its_file() -> None:
    folder = Path(faults.__file__).parent
    assert [
        name for name, (module, _) in NOUNS.items() if not (folder / f"{module}.py").exists()
    ] == []


@pytest.mark.parametrize("grains", [118_000, "118000"])
def test_amount_is_shown_from_a_number_and_from_an_answers_text(grains: int | str) -> None:
    assert open_text(grains) == "0.000118 OPEN"


def test_table_puts_numbers_to_the_right() -> None:
    assert table(("name", "n"), [("a", 7), ("bcdef", 11)]) == [
        "name    n",
        "a       7",
        "bcdef  11",
    ]
    assert table(("name",), []) == ["(none)"]
