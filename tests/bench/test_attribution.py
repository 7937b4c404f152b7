"""Attribution finds whose data shaped an answer: world 1 in short, with page 60's margins.

The full worlds are for `olnode bench attribution`; here 24 adapters are retrained instead of
128, so the margins are wide (an LDS scatters by ±.04).
"""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytestmark = pytest.mark.ml

SCHEMAS = json.loads((Path(__file__).parents[1] / "vectors/cli/schemas.json").read_text())
SHELL = {"world", "seeds", "per_seed", "budgets", "machine", "versions", "load"}  # not measured
TIMED = {  # of the full bench
    *("scan_ms_1e5", "scan_over_read", "index_cost_ratio"),
    "paraphrase_share_of_victim",
}
ADAPTERS = 12


class Studied(NamedTuple):
    """A Study, its Datanet and what its questions pay; typed loosely, as torch comes lazily."""

    made: Any
    datanet: Any
    paid: Any


@pytest.fixture(scope="module")
def studied(small_base: Any, tmp_path_factory: pytest.TempPathFactory) -> Studied:
    """An adapter with its checkpoints, an index, and what the questions pay."""
    from bench.attribution import pay
    from bench.attribution_study import study
    from bench.attribution_world import SMALL, make_datanet

    datanet = make_datanet(SMALL)
    made = study(small_base, datanet, tmp_path_factory.mktemp("attribution"))
    return Studied(made, datanet, pay(made, datanet))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the losses of retrained adapters are kept."""
    return tmp_path_factory.mktemp("retrained")


@pytest.fixture(scope="module")
def truth(studied: Studied, kept: Path) -> Any:
    """24 retrained adapters' losses: 16 s."""
    from bench.attribution_truth import retrain

    return retrain(studied.made, studied.datanet, ADAPTERS, kept)


@pytest.fixture(scope="module")
def figures(studied: Studied, truth: Any) -> dict[str, float]:
    """Every figure of quality, against the retrained adapters."""
    from bench import attribution
    from bench.attribution_world import SMALL

    made, datanet, paid = studied
    return {
        **attribution.lds_of_all(made, datanet, paid, truth),
        **attribution.shares_of_kinds(datanet, SMALL, paid),
        **attribution.unknown_to_fund(made, datanet),
        "answered": attribution.answered(made, datanet),
        "lesser_of_two_share": attribution.lesser_of_two(made, datanet, paid),
    }


def test_the_world_is_learnt(figures: dict[str, float]) -> None:
    """Where the model does not know the facts, nothing below means anything."""
    assert figures["answered"] >= 0.8


def test_signed_scores_tell_what_retraining_tells(figures: dict[str, float]) -> None:
    assert figures["lds_signed"] >= 0.60
    assert figures["lds_signed"] >= figures["lds_datainf"] + 0.12
    assert figures["lds_signed"] >= figures["lds_bm25"] + 0.20


def test_pay_follows_what_contributors_are_worth(figures: dict[str, float]) -> None:
    assert figures["lds_c_paid"] >= 0.62


def test_owner_of_the_fact_is_paid(figures: dict[str, float]) -> None:
    assert figures["owner_share"] >= 0.80
    assert figures["recall_at_1"] >= 0.85


def test_who_tells_another_fact_is_paid_too(figures: dict[str, float]) -> None:
    """.17; a rule that pays only what exceeds all earlier rows comes to .10, the highest row alone
    to 0."""
    assert figures["lesser_of_two_share"] >= 0.12


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


def test_the_bench_tells_means_and_what_each_seed_gave() -> None:
    from bench.attribution import over_seeds

    told = over_seeds([{"owner_share": 0.8, "rows": 215}, {"owner_share": 0.9, "rows": 217}])
    assert told["owner_share"] == pytest.approx(0.85)
    assert told["per_seed"] == {"owner_share": [0.8, 0.9], "rows": [215, 217]}


# --- an interrupted run goes on: what is retrained is kept


class EmptyBank:
    """In place of the bank: notes how many adapters it is to train; no true loss is negative."""

    def __init__(self) -> None:
        self.trained: list[int] = []

    def train(self, coded: Any, masks: Any, epochs: int) -> tuple[int, list[Any]]:
        self.trained.append(len(masks))
        return len(masks), []

    def losses(self, adapters: int, asked: Any) -> Any:
        import torch

        return torch.full((adapters, len(asked)), -1.0)


def retrain_emptily(studied: Studied, folder: Path, adapters: int = ADAPTERS) -> tuple[Any, Any]:
    """The truth with losses from `folder` where it has them, and which banks were trained anew."""
    from bench.attribution_truth import retrain

    empty = EmptyBank()
    made = studied.made._replace(bank=empty)
    return retrain(made, studied.datanet, adapters, folder), empty.trained


def test_what_was_retrained_is_read_again(studied: Studied, truth: Any, kept: Path) -> None:
    again, trained = retrain_emptily(studied, kept)
    assert trained == []
    assert all(one.equal(other) for one, other in zip(truth, again, strict=True))


def test_only_a_torn_bank_is_made_again(
    studied: Studied, truth: Any, kept: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "kept"
    shutil.copytree(kept, copied)
    torn = max(path for path in copied.rglob("*") if path.is_file())
    torn.write_bytes(torn.read_bytes()[:-1])
    again, trained = retrain_emptily(studied, copied)
    assert trained == [8], "of banks of 16 and 8"
    assert again.record_losses.equal(truth.record_losses)
    assert (again.contributor_losses[-8:] == -1).all()


def test_losses_of_another_ground_truth_are_not_taken(
    studied: Studied, truth: Any, kept: Path, tmp_path: Path
) -> None:
    """Fewer adapters, or a base that another machine rounded otherwise."""
    copied = tmp_path / "kept"
    shutil.copytree(kept, copied)
    _, trained = retrain_emptily(studied, copied, ADAPTERS - 1)
    assert trained == [16, 6]
    other = copy.deepcopy(studied.made.base.model)
    next(other.parameters()).data[0, 0] += 1e-6
    base = studied.made.base._replace(model=other)
    _, trained = retrain_emptily(studied._replace(made=studied.made._replace(base=base)), copied)
    assert trained == [16, 8]


# --- honest machines sketch alike, and cheats do not: page 60 §9


def sketched(studied: Studied) -> list[int]:
    """The first 16 questions with a sketch: of 52 two have none, whose norm is out of bounds."""
    from bench.attribution_study import sketches_of

    from node.ledger.rules.shares import is_sound_row

    sketches = sketches_of(studied.paid.sums)
    return [number for number, sketch in enumerate(sketches) if is_sound_row(sketch)][:16]


def resketch(
    studied: Studied,
    change: Callable[[Any], None] = lambda source: None,
    checkpoints: tuple[str, str] = ("early", "middle"),
) -> list[bytes]:
    """The sketches of `sketched` questions, from gradients that `change` had a hand in."""
    import torch
    from bench.attribution_study import encode_asked, sketches_of

    from node.attribution.basis import Sketcher
    from node.attribution.gradients import RecordGradients

    made = studied.made
    questions = [studied.datanet.questions[number] for number in sketched(studied)]
    coded = encode_asked(made.base, [(q.prompt, q.answer) for q in questions])
    folders = (str(made.base.folder), *(str(made.folders[name]) for name in checkpoints))
    source = RecordGradients(folders, coded, lambda half, matrix, gradient: gradient)
    source._load()
    change(source)
    sketcher = Sketcher.load(made.index.folder)
    sums = [
        torch.cat([sketcher.sums(half, batch) for batch in source.batches(half, range(len(coded)))])
        for half in (0, 1)
    ]
    return sketches_of(sums)


class Distance(NamedTuple):
    """How far sketches are from the honest ones: cosines of halves, shares moved in bps."""

    cosine_min: float
    cosine_mean: float
    moved_mean: float
    moved_max: float


def distance(studied: Studied, others: list[bytes]) -> Distance:
    import torch
    from bench.attribution_study import attribute_all, paid_bps, rounded_rows, sketches_of

    chosen = sketched(studied)
    halves = [half[chosen] for half in studied.paid.sums]
    honest = rounded_rows(halves).double().view(-1, 2, 512)
    other = torch.stack([torch.tensor(list(memoryview(s).cast("b"))) for s in others])
    cosines = torch.cosine_similarity(honest, other.double().view(-1, 2, 512), dim=2)
    people = studied.datanet.contributors
    before, after = (
        paid_bps(attribute_all(studied.made, sketches, standing=10_000), people).double()
        for sketches in (sketches_of(halves), others)  # as audits compare them
    )
    moved = (before - after).abs().sum(1) / 2
    return Distance(
        float(cosines.min()), float(cosines.mean()), float(moved.mean()), float(moved.max())
    )


def one_by_one(source: Any) -> None:
    source._batch_records = 1


def in_double(source: Any) -> None:
    source._model.double()


def round_to_bf16(source: Any) -> None:
    for parameter in source._model.parameters():
        parameter.data = parameter.data.bfloat16().float()


def in_bf16(source: Any) -> None:
    source._model.bfloat16()


def untrained(source: Any) -> None:
    """As an adapter starts: lora_A of chance, lora_B that is hardly there."""
    import torch

    chance = torch.Generator().manual_seed(3)
    for name, parameter in source._model.named_parameters():
        if "lora_" in name:
            size = 0.1 if "lora_A" in name else 1e-3
            parameter.data = torch.randn(parameter.shape, generator=chance) * size


@pytest.mark.parametrize("change", [one_by_one, in_double])
def test_batches_and_double_precision_change_no_share(
    studied: Studied, change: Callable[[Any], None]
) -> None:
    found = distance(studied, resketch(studied, change))
    assert found.cosine_min >= 0.9999
    assert found.moved_max <= 10


def test_threads_change_no_share(studied: Studied) -> None:
    import torch

    torch.set_num_threads(2)
    try:
        found = distance(studied, resketch(studied))
    finally:
        torch.set_num_threads(1)
    assert found.cosine_min >= 0.9999
    assert found.moved_max <= 10


@pytest.mark.parametrize("change", [round_to_bf16, in_bf16])
def test_bf16_stays_within_its_tolerance(studied: Studied, change: Callable[[Any], None]) -> None:
    found = distance(studied, resketch(studied, change))
    assert found.cosine_min >= 0.98
    assert found.moved_max <= 300


def test_untrained_adapter_is_far_off(studied: Studied) -> None:
    found = distance(studied, resketch(studied, untrained))
    assert found.cosine_mean < 0.5
    assert found.moved_mean >= 1_500


@pytest.mark.parametrize("checkpoints", [("middle", "final"), ("final", "early")])
def test_other_checkpoints_are_far_off(studied: Studied, checkpoints: tuple[str, str]) -> None:
    found = distance(studied, resketch(studied, checkpoints=checkpoints))
    assert found.cosine_mean < 0.90
    assert found.moved_mean >= 500


def test_sketch_of_another_question_is_far_off(studied: Studied) -> None:
    honest = resketch(studied)
    found = distance(studied, honest[4:] + honest[:4])
    assert found.cosine_mean < 0.5
    assert found.moved_mean >= 1_500
