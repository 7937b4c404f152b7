"""Our one-cycle equals torch's, step by step."""

import pytest

from node.training.schedule import one_cycle


@pytest.mark.ml
@pytest.mark.parametrize(("total", "warm"), [(264, 0.3), (800, 0.1), (10, 0.3)])
def test_one_cycle_is_that_of_torch(total: int, warm: float) -> None:
    torch = pytest.importorskip("torch")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.AdamW([parameter], lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 3e-3, total_steps=total, pct_start=warm
    )
    for step in range(total):
        group = optimiser.param_groups[0]
        rate, beta = one_cycle(step, total, 3e-3, warm)
        assert rate == pytest.approx(group["lr"], rel=1e-12, abs=1e-15)
        assert beta == pytest.approx(group["betas"][0], rel=1e-12)
        optimiser.step()
        if step + 1 < total:
            schedule.step()
