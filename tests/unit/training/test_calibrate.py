"""Thresholds from honest answers: never below the table, above what was seen, and hashed."""

import pytest

from consensus.primitives.digest import sha256
from node.attribution.datanets import make_record
from node.serving.judging import TABLE, Measures
from node.training.calibrate import ANSWERS_MIN, Calibration, Way, calibrate
from node.training.finetune import TrainingError

BASE = bytes(32)


def of(*measures: Measures, dtype_class: str = "fp32") -> Calibration:
    return Calibration(BASE, b"", dtype_class, BASE, ((Way(1, 1), measures),))


def test_thresholds_stay_at_the_table_where_machines_agree() -> None:
    quiet = of(Measures(0.0, 1e-7, 1e-7))
    assert quiet.threshold == (0, 1_000, 10_000, 100, 1_000, 100, 1_000)


def test_thresholds_stand_half_above_the_greatest_honest_difference() -> None:
    loud = of(Measures(0.004, 0.0, 0.0), Measures(0.002, 0.0, 0.001), dtype_class="fp32")
    assert loud.greatest == (0.004, 0.0, 0.001)
    assert loud.threshold == (0, 6_000, 60_000, 100, 1_000, 1_500, 15_000)
    assert of(Measures(1e9, 0.0, 0.0)).threshold[2] == 2**32 - 1


def test_evidence_changes_with_every_measure() -> None:
    one, other = of(Measures(0.0, 0.0, 1e-9)), of(Measures(0.0, 0.0, 2e-9))
    assert one.hash() == sha256(one.encode()) != other.hash()
    assert one.threshold == other.threshold


def test_too_few_answers_are_refused() -> None:
    for questions, answers in (([], 64), ([make_record("a", "b")], ANSWERS_MIN // 4 - 1)):
        with pytest.raises(TrainingError):
            calibrate("nowhere", None, questions, answers=answers)


@pytest.mark.ml
def test_honest_answers_of_a_real_base_are_within_the_table(tmp_path) -> None:
    from node.attribution.tokens import TextTokenizer
    from node.training.tiny_model import Recipe, random_model, write_tokenizer

    write_tokenizer(tmp_path, [], merges=0)
    recipe = Recipe(hidden=32, inner=64, layers=2, heads=4, length=128, seed=3)
    random_model(recipe, len(TextTokenizer(tmp_path))).save_pretrained(tmp_path)
    told = []
    questions = [make_record(f"question {number}", "x") for number in range(5)]
    found = calibrate(
        tmp_path,
        None,
        questions,
        lambda done, total: told.append((done, total)),
        answers=16,
        tokens=8,
    )
    assert found.answers == 64
    assert told[-1] == (64, 64)
    bounds = TABLE["fp32"]
    assert all(value <= bound.suspect for value, bound in zip(found.greatest, bounds, strict=True))
    assert found.threshold == of(Measures(0.0, 0.0, 0.0)).threshold
