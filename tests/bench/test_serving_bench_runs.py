"""The serving bench on a shape that takes a second: every figure of page 80 is there."""

import pytest
from bench import serving
from bench.serving import Shape, figures_of, measure_costs, measure_shape

pytestmark = pytest.mark.ml

TINY = Shape("tiny", 1, 32, 64, 2, 2, 2)


def test_every_configuration_is_timed_and_peft_gives_the_same_tokens() -> None:
    found = measure_shape(TINY, 1, steps=2, with_peft=True)
    assert found["tokens_equal"] == 1
    figures = figures_of(found, found)
    assert set(figures["classes"]) == {"distinct", "uniform", "skewed", "identical"}
    assert figures["vs_peft_mixed"] > 0


def test_costs_are_told_beside_making_the_answers(monkeypatch) -> None:
    monkeypatch.setattr(serving, "S", TINY)
    monkeypatch.setattr(serving, "REGISTERED", 20)
    monkeypatch.setattr(serving._registering, "__defaults__", (20,))
    costs = measure_costs(answers=2, tokens=4)
    assert costs["registered"] == 20
    assert min(costs["gradient_cost_ratio"], costs["check_cost_ratio"]) > 0
    keys = {budget.key for budget in serving.BUDGETS}
    assert keys <= {*costs, *figures_of(*[dict.fromkeys(MEASURED, 1.0)] * 2)}


def test_large_models_variant_runs_in_bf16_on_any_device() -> None:
    """Here on the CPU: all of it but the GPU's own clock."""
    figures = serving.large_model_figures(TINY, 1, "cpu")
    assert {budget.key for budget in serving.CUDA_BUDGETS} <= set(figures)
    assert min(figures.values()) > 0


def test_without_a_gpu_its_variant_says_so_and_fails(monkeypatch, capsys) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(serving, "quiet", lambda: None)  # other tests read our events
    monkeypatch.setattr("sys.argv", ["serving.py", "--device", "cuda"])
    with pytest.raises(SystemExit) as ended:
        serving.main()
    assert "no GPU is here" in str(ended.value.code)
    assert capsys.readouterr().out == ""


MEASURED = (
    *("base", "distinct_8", "distinct", "uniform", "skewed", "identical"),
    *("peft_mixed", "peft_switching", "tokens_equal"),
)
