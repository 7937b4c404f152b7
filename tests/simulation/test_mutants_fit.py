"""The mutation gates, which are not part of `make test`, are about the source of today."""

from pathlib import Path

import pytest
from simulation import economy_mutants, mutants, session_mutants

ROOT = Path(__file__).parents[2]
ALL = {
    "consensus": mutants.MUTANTS,
    "sessions": session_mutants.MUTANTS,
    "economy": economy_mutants.MUTANTS,
}


@pytest.mark.parametrize("gate", ALL)
def test_what_each_mutant_replaces_stands_there_once(gate: str) -> None:
    sources = {mutant.path: (ROOT / mutant.path).read_text() for mutant in ALL[gate]}
    lost = [mutant.name for mutant in ALL[gate] if sources[mutant.path].count(mutant.before) != 1]
    assert not lost
