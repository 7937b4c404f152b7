"""Simulated runs on all cores: each comes from its seed alone, so where it is played is free."""

import multiprocessing
from collections.abc import Iterator
from typing import Final

import pytest
from simulation.campaign import play_one
from simulation.outcomes import Outcome, Played

# In this order, of seeds from 0. A run of sessions is a hundred of them.
RUNS: Final = {"engine": 1_000, "twins": 20_000, "session": 185, "whole": 100}
CHUNKS: Final = 100  # of each kind, so that no core idles at its end


@pytest.fixture(scope="package")
def played() -> Iterator[Played]:
    """`played(kind)`: how the runs ended, by seed.

    All begin when the first are asked for, so that the tests between have a core for them too.
    """
    with multiprocessing.get_context("spawn").Pool() as pool:
        playing = {
            kind: pool.starmap_async(
                play_one, [(kind, seed) for seed in range(runs)], max(1, runs // CHUNKS)
            )
            for kind, runs in RUNS.items()
        }

        def outcomes(kind: str) -> dict[int, Outcome]:
            return dict(enumerate(playing[kind].get()))

        yield outcomes
