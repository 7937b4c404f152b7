"""`olnode devnet` before anything runs: what it refuses, and what it asks before it removes."""

import signal
from pathlib import Path
from typing import Any

import pytest
from unit.cli.calls import Capture

from node.cli.devnet import Terminal
from node.cli.frame import Frame
from node.cli.main import run
from node.devnet import story
from node.devnet.folder import held
from node.devnet.people import settle
from node.devnet.telling import Ending, Wish

PORTS = (7001, 7002, 7003, 7004, 7005)


@pytest.fixture
def wishes(monkeypatch: pytest.MonkeyPatch) -> list[Wish]:
    """What the story was asked for; it tells nothing here."""
    made: list[Wish] = []

    async def fake(wish: Wish, teller: Any) -> Ending:
        made.append(wish)
        return Ending()

    monkeypatch.setattr(story, "run", fake)
    return made


@pytest.mark.parametrize("draws", [False, True])
def test_progress_keeps_a_long_name_apart_from_its_figures(capsys: Capture, draws: bool) -> None:
    terminal = Terminal(Frame(None, None, None, False, None, False))
    terminal._draws = draws
    terminal.progress("adapter contracts", 5, 5)
    assert "adapter contracts " in capsys.readouterr().err


@pytest.fixture
def known(tmp_path: Path) -> Path:
    home = tmp_path / "net"
    with held(home):
        settle(home, time_ms=1, ports=PORTS, models=())
    return home


def test_real_home_is_refused_before_anybody_is_asked(home: Path, capsys: Capture) -> None:
    """Also with --yes, and without --reset: its genesis was once overwritten."""
    before = {p: p.read_bytes() for p in home.rglob("*") if p.is_file()}
    for words in (["--reset"], ["--reset", "--yes"], ["--no-ml"]):
        assert run(["--home", str(home), "devnet", *words]) == 1
        err = capsys.readouterr().err
        assert "not a devnet's" in err
        assert "mend: olnode --home" in err
    assert {p: p.read_bytes() for p in home.rglob("*") if p.is_file()} == before


def test_reset_asks_first(known: Path, wishes: list[Wish], capsys: Capture) -> None:
    assert run(["--home", str(known), "devnet", "--reset"]) == 2
    assert "Remove the devnet in" in capsys.readouterr().err
    assert wishes == []
    assert run(["--home", str(known), "devnet", "--reset", "--yes"]) == 0
    assert [wish.reset for wish in wishes] == [True]


@pytest.mark.parametrize("words", [["--reset"], ["--reset", "--once"], []])
def test_nothing_to_lose_is_nothing_to_ask(
    tmp_path: Path, wishes: list[Wish], words: list[str]
) -> None:
    assert run(["--home", str(tmp_path / "new"), "devnet", *words]) == 0
    assert [wish.reset for wish in wishes] == ["--reset" in words]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_end_by_a_signal_is_told_by_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, number: int, status: int
) -> None:
    async def fake(wish: Wish, teller: Any) -> Ending:
        return Ending(signal=number)

    monkeypatch.setattr(story, "run", fake)
    assert run(["--home", str(tmp_path), "devnet"]) == status
    assert capsys.readouterr().err == "stopped\n"
