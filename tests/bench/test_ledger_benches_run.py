"""The benches of the ledger still run; their figures are for a quiet machine."""

import json
from collections import Counter
from pathlib import Path

import pytest
import trio
from bench import crash, flips, fuzz, proofs, settle, settling, state
from crashes.campaign import Found
from crashes.flips import FoundFlips
from vectors.fuzzing import Fuzzed

SCHEMAS = json.loads((Path(__file__).parents[1] / "vectors/cli/schemas.json").read_text())
SHELL = {"budgets", "seconds", "machine", "versions", "load"}  # added by `olnode bench`


def promised(bench: str) -> set[str]:
    return set(SCHEMAS[f"olnode.bench.{bench}/1"]) - SHELL


def test_the_states_tree_is_measured() -> None:
    figures = state.measure(keys=10_000, blocks=1, proofs=50)
    assert promised("state") <= figures.keys()
    assert figures["keys"] == 10_000
    assert min(figures.values()) > 0
    assert {budget.key for budget in state.BUDGETS} <= figures.keys()


def test_the_proofs_of_an_answer_are_measured() -> None:
    """Its bytes are the same on every machine: no larger than promised."""
    figures = proofs.measure(rounds=3)
    assert promised("proofs") <= figures.keys()
    assert figures["proof_bytes_7_validators"] <= proofs.BUDGETS[0].limit


def test_a_bundles_check_is_measured_and_leaves_the_state_alone() -> None:
    figures = settle.measure(sections=4, rounds=2, naive=2)
    assert {budget.key for budget in settle.BUDGETS[:2]} <= figures.keys()
    assert min(figures.values()) > 0


@pytest.mark.slow
def test_four_daemons_settle_all_that_they_are_told(tmp_path: Path) -> None:
    figures = trio.run(settling.run, tmp_path, 5.0, settle.PER_SECOND_MAX)
    assert promised("settle") <= figures.keys() | settle.measure(sections=1, rounds=1).keys()
    assert figures["lost"] == 0 < figures["settled"]


def test_kills_are_told_by_what_they_came_to() -> None:
    """The campaign itself runs in `tests/crashes/`."""
    found = [Found(points=3, lost=["a block"]), Found(points=4)]
    figures = crash.figures_of(found)
    assert promised("crash") <= figures.keys()
    assert [figures[key] for key in ("points", "lost", "different", "refused")] == [7, 1, 0, 0]


def test_flips_are_told_by_how_they_ended() -> None:
    ends = Counter({("table", "equal"): 2, ("light", "told"): 1})
    figures = flips.figures_of([FoundFlips(ends), FoundFlips(ends)])
    assert promised("flips") <= figures.keys()
    assert [figures[key] for key in ("flips", "equal", "told", "silent")] == [6, 4, 2, 0]
    assert figures["by_kind"] == {"light": {"told": 2}, "table": {"equal": 4}}


def test_fuzzing_is_told_by_what_escaped() -> None:
    """The fuzzing itself runs in `tests/unit/vectors/`."""
    batch = {"a": Fuzzed(3, 7, 0.5), "b": Fuzzed(1, 2, 0.25, "b, input 3: KeyError()")}
    figures = fuzz.figures_of([batch, {"a": Fuzzed(3, 7, 0.1), "b": Fuzzed(5, 5, 0.1)}])
    assert promised("fuzz") <= figures.keys() | {"seconds"}
    assert (figures["parsers"], figures["inputs_each"], figures["inputs"]) == (2, 13, 33)
    assert (figures["taken"], figures["escaped"], figures["slowest_cpu_ms"]) == (12, 1, 500.0)
