"""`olnode bench`: a child's figures beside its budgets, and what is said when there is no child."""

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from node.cli import bench
from node.cli.main import run

CHILD = """
import sys
from bench.protocol import Budget, finish
finish({"p50_ms": 12.5, "rate": 80, "options": sys.argv[1:], "per_seed": {"rate": [79, 81]}},
       (Budget("p50_ms", "at most", 250), Budget("rate", "at least", LEAST)))
"""
PROTOCOL = Path(__file__).parents[2] / "bench" / "protocol.py"

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one bench, `finality`, that keeps its budgets."""
    folder = tmp_path / "tests" / "bench"
    folder.mkdir(parents=True)
    (folder / "protocol.py").write_text(PROTOCOL.read_text())
    write_child(tmp_path, least=80)
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "node" / "cli" / "bench.py"))
    return tmp_path


def write_child(checkout: Path, least: int) -> None:
    text = textwrap.dedent(CHILD).replace("LEAST", str(least))
    (checkout / "tests" / "bench" / "finality.py").write_text(text)


def told(capsys: Capture, words: str, status: int = 0) -> dict[str, Any]:
    assert run(words.split()) == status
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_figures_are_the_objects_own_keys(checkout: Path, capsys: Capture) -> None:
    answer = told(capsys, "bench finality --seed 3 -o json")
    assert next(iter(answer)) == "schema"
    assert answer["schema"] == "olnode.bench.finality/1"
    assert answer["p50_ms"] == 12.5
    assert answer["options"] == ["--seed", "3"], "what is not ours is the child's"
    assert [each["met"] for each in answer["budgets"]] == [True, True]
    assert {"machine", "versions", "load"} <= answer.keys()


def test_figures_that_hold_others_have_a_line_for_each(checkout: Path, capsys: Capture) -> None:
    assert run(["bench", "finality"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["finality", "per_seed.rate", "[79,", "81]"] in lines


@pytest.mark.parametrize(("least", "status"), [(80, 0), (81, 1)])
def test_strict_fails_on_a_missed_budget_only(
    checkout: Path, capsys: Capture, least: int, status: int
) -> None:
    write_child(checkout, least)
    assert run(["bench", "finality"]) == 0, "told, but no fault"
    assert ("MISSED" in capsys.readouterr().out) == bool(status)
    assert run(["bench", "finality", "--strict"]) == status


def test_all_runs_those_that_are_there_and_end(checkout: Path, capsys: Capture) -> None:
    (checkout / "tests" / "bench" / "simulate.py").write_text("raise SystemExit(9)")
    answer = told(capsys, "bench all -o json")
    assert answer["finality"]["rate"] == 80
    assert "simulate" not in answer


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("bench nope", 2, "one of"),
        ("bench gossip", 3, "has no bench gossip"),
        ("bench finality", 1, "failed with status 9"),
    ],
)
def test_bench_that_cannot_run_says_why(
    checkout: Path, capsys: Capture, words: str, status: int, said: str
) -> None:
    (checkout / "tests" / "bench" / "finality.py").write_text("raise SystemExit(9)")
    assert run(words.split()) == status
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("words", ["bench finality -- --help", "bench finality -o json -- --help"])
def test_benchs_own_help_is_shown_as_it_is(checkout: Path, capsys: Capture, words: str) -> None:
    (checkout / "tests" / "bench" / "finality.py").write_text("print('usage: finality [--seed]')")
    assert run(words.split()) == 0
    assert capsys.readouterr().out == "usage: finality [--seed]\n"


def test_without_a_checkout_exit_3_says_so(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "node" / "cli" / "bench.py"))
    assert run(["bench", "finality"]) == 3
    assert "not installed from a checkout" in capsys.readouterr().err


def test_simulate_gives_the_keys_that_page_80_promises(capsys: Capture) -> None:
    """The real one, for as long as one batch of each kind takes."""
    schemas = json.loads((Path(__file__).parents[2] / "vectors/cli/schemas.json").read_text())
    answer = told(capsys, "bench simulate --minutes 0.02 --processes 1 -o json")
    assert set(schemas[answer["schema"]]) <= answer.keys()
    assert answer["twins"] > 0
    assert (answer["safety_violations"], answer["stuck"], answer["failed"]) == (0, 0, [])


def test_simulate_plays_a_run_again(capsys: Capture) -> None:
    traces = [told(capsys, "bench simulate --replay engine:5 -o json")["trace"] for _ in range(2)]
    assert traces[0] == traces[1]


def test_sessions_give_the_keys_that_are_promised(capsys: Capture) -> None:
    schemas = json.loads((Path(__file__).parents[2] / "vectors/cli/schemas.json").read_text())
    answer = told(capsys, "bench sessions -o json -- --sessions 1000 --jobs 1")
    assert set(schemas[answer["schema"]]) <= answer.keys()
    assert answer["sessions"] >= 1_000
    assert answer["loss_max_payer_in_holds"] == 1
    nothing = ("loss_max_provider", "above_cap", "violations")
    assert [answer[key] for key in nothing] == [0, 0, 0]


def test_checkout_has_every_bench_that_is_offered() -> None:
    folder = PROTOCOL.parent
    assert [name for name in bench.BENCHES if not (folder / f"{name}.py").is_file()] == []
