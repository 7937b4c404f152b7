"""The benches of serving on shapes that take a second: every figure of their budgets is there."""

import pytest
from bench import judging, overload, serving
from bench.overload import Plan
from bench.random_models import Shape
from bench.serving import figures_of, measure_costs, measure_shape

from node.attribution.datanets import make_record

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


def test_overload_is_refused_and_nothing_is_left_of_it() -> None:
    """The bench's phases with an engine in a thread: rates are for a quiet machine to show."""
    plan = Plan(
        adapters=12,
        idle_s=0.2,
        capacity_s=0.5,
        seconds=0.5,
        rate_min=1_200.0,
        finished_min=100,
        cancels=50,
        shape=TINY,
        in_child=False,
    )
    figures = overload.measure(plan)
    assert {budget.key for budget in overload.BUDGETS} <= set(figures)
    assert figures["offered"] > figures["refused"] > 0
    assert figures["finished"] >= 100
    assert figures["left_over"] == 0


def test_every_cheat_has_its_shares_and_no_honest_answer_fails(tmp_path) -> None:
    base = tmp_path / "base"
    serving.make_base(base, TINY)
    mine, other = serving.make_adapters(base, tmp_path, 2, rank=8)
    records = [make_record(f"What is {n}?", f"It is the number {n}.") for n in range(40)]
    stage = judging.Stage(base, mine, other, records, honest=4, answers=2)
    figures = judging.figures_of({k: judging.measure_class(stage, k) for k in judging.CLASSES})
    assert {budget.key for budget in judging.budgets()} <= set(figures)
    assert (figures["honest_receipts"], figures["honest_failed"]) == (16, 0)
    assert figures["fp32_altered_free"] == 1


MEASURED = (
    *("base", "distinct_8", "distinct", "uniform", "skewed", "identical"),
    *("peft_mixed", "peft_switching", "tokens_equal"),
)
