"""`olnode model calibrate` on a real base: evidence in a file, thresholds for a manifest."""

import json
from pathlib import Path

import pytest
from unit.cli.calls import Capture, told

from consensus.primitives.digest import sha256

pytestmark = pytest.mark.ml


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    from node.attribution.tokens import TextTokenizer
    from node.training.tiny_model import Recipe, random_model, write_tokenizer

    folder = tmp_path_factory.mktemp("base")
    write_tokenizer(folder, [], merges=0)
    recipe = Recipe(hidden=32, inner=64, layers=2, heads=4, length=128, seed=3)
    random_model(recipe, len(TextTokenizer(folder))).save_pretrained(folder)
    return folder


def test_version_is_calibrated_and_its_evidence_kept(base, home, capsys: Capture, tmp_path) -> None:
    questions, out = tmp_path / "questions.jsonl", tmp_path / "calibration"
    questions.write_text(json.dumps({"completion": "b", "prompt": "a"}) + "\n")
    words = ["model", "calibrate", str(base), str(questions), "--out", str(out)]
    short = [*words, "--answers", "16", "--tokens", "8"]
    made = told(capsys, home, *short)
    assert made["schema"] == "olnode.model.calibrate/1"
    assert made["report"] == sha256(out.read_bytes()).hex()
    assert (made["answers"], made["threshold"][:3]) == (64, [0, 1_000, 10_000])
    assert told(capsys, home, *short, status=2)["what"].endswith("exists")


def test_what_cannot_be_calibrated_says_why(base, home, capsys: Capture, tmp_path) -> None:
    questions, out = tmp_path / "q", str(tmp_path / "out")
    questions.write_text("no record\n")
    words = ["model", "calibrate", str(base), str(questions), "--out", out]
    assert str(questions) in told(capsys, home, *words, status=2)["what"]
    questions.write_text(json.dumps({"completion": "b", "prompt": "a"}) + "\n")
    assert "int8" in told(capsys, home, *words, "--dtype", "int8", status=2)["what"]
    bad = [*words, "--adapter", str(tmp_path)]
    assert told(capsys, home, *bad, status=1)["code"] == "model.calibration"
