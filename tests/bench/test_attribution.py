"""Attribution finds whose data shaped an answer: world 1 in short, with page 60's margins.

The full worlds are for `olnode bench attribution`; here 24 adapters are retrained instead of
128, so the margins are wide (an LDS scatters by ±.04).
"""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.ml

SCHEMAS = json.loads((Path(__file__).parents[1] / "vectors/cli/schemas.json").read_text())
SHELL = {"world", "budgets", "machine", "versions", "load"}  # not of the measuring
TIMED = {"scan_ms_1e5", "index_cost_ratio", "paraphrase_share_of_victim"}  # of the full bench
ADAPTERS = 12


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """About 30 s of one core."""
    from bench import attribution
    from bench.attribution_study import make_base, study
    from bench.attribution_world import SMALL, make_datanet

    home = tmp_path_factory.mktemp("attribution")
    datanet = make_datanet(SMALL)
    made = study(make_base(SMALL, home), datanet, home / "honest")
    paid = attribution.pay(made, datanet)
    truth = attribution.retrain(made, datanet, ADAPTERS)
    return {
        **attribution.lds_of_all(made, datanet, paid, truth),
        **attribution.shares_of_kinds(datanet, SMALL, paid),
        **attribution.unknown_to_fund(made, datanet),
    }


def test_signed_scores_tell_what_retraining_tells(figures: dict[str, float]) -> None:
    assert figures["lds_signed"] >= 0.60
    assert figures["lds_signed"] >= figures["lds_datainf"] + 0.12
    assert figures["lds_signed"] >= figures["lds_bm25"] + 0.20


def test_pay_follows_what_contributors_are_worth(figures: dict[str, float]) -> None:
    assert figures["lds_c_paid"] >= 0.62


def test_owner_of_the_fact_is_paid(figures: dict[str, float]) -> None:
    assert figures["owner_share"] >= 0.80
    assert figures["recall_at_1"] >= 0.85


@pytest.mark.parametrize(
    ("thief", "share"), [("copier_share", 0.01), ("junk_share", 0.01), ("poison_share", 0.04)]
)
def test_thieves_and_noise_are_not_paid(
    figures: dict[str, float], thief: str, share: float
) -> None:
    assert figures[thief] <= share


def test_what_no_record_knows_pays_nobody(figures: dict[str, float]) -> None:
    assert figures["unknown_to_fund"] >= 0.60


def test_rounding_to_bytes_costs_next_to_nothing(figures: dict[str, float]) -> None:
    assert figures["int8_loss"] <= 0.005


def test_every_promised_figure_is_measured(figures: dict[str, float]) -> None:
    from bench.attribution import BUDGETS

    promised = set(SCHEMAS["olnode.bench.attribution/1"]) - SHELL
    assert promised <= figures.keys() | TIMED
    assert {budget.key for budget in BUDGETS} <= figures.keys() | TIMED
