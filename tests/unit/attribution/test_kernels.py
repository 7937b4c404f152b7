"""Which kernel an index has, by its size and by what is installed."""

import sys

import numpy as np
import pytest

from node.attribution import kernels, score
from node.attribution.kernels import LARGE_ROWS, int_mm, kernel_for

NUMPYS = (score.products, score.integers)


@pytest.fixture(autouse=True)
def nothing_chosen() -> None:
    kernels._small.cache_clear()
    kernels._large.cache_clear()


def test_small_index_needs_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would cost a daemon 250 MB for a few milliseconds."""
    monkeypatch.setitem(sys.modules, "torch", None)
    assert kernel_for(1) in NUMPYS
    assert kernel_for(LARGE_ROWS - 1) is kernel_for(1), "chosen once"
    assert kernel_for(LARGE_ROWS) in NUMPYS, "where torch is not installed"


@pytest.mark.ml
def test_kernel_of_a_large_index_is_exact_whichever_it_is() -> None:
    draw = np.random.default_rng(1)
    for kernel in (int_mm, kernel_for(LARGE_ROWS)):
        for count in (1, 2, 8, 33):
            rows = draw.integers(-127, 128, (300, 1_024), np.int8)
            sketches = draw.integers(-127, 128, (count, 1_024), np.int8)
            assert (kernel(rows, sketches) == score.integers(rows, sketches)).all()


@pytest.mark.ml
def test_torch_scans_with_one_thread_and_leaves_its_number_alone() -> None:
    import torch

    before = torch.get_num_threads()
    seen: list[int] = []
    real = torch._int_mm

    def watched(*given: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return real(*given)

    rows = np.ones((8, 1_024), np.int8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "_int_mm", watched)
        int_mm(rows, rows[:1])
    assert (seen, torch.get_num_threads()) == ([1], before)


def test_machine_without_an_exact_kernel_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(rows: score.Rows, sketches: score.Sketches) -> score.Scores:
        return score.integers(rows, sketches) + 1

    monkeypatch.setattr(kernels, "choose_kernel", lambda: score.choose_kernel([wrong]))
    assert kernel_for(1) in NUMPYS
    kernels._small.cache_clear()

    def none() -> score.Kernel:
        raise score.NoExactKernel

    monkeypatch.setattr(kernels, "choose_kernel", none)
    with pytest.raises(score.NoExactKernel):
        kernel_for(1)
