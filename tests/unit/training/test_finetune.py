"""A training keeps its two early checkpoints, goes on where it stopped, and trusts no torn file."""

from dataclasses import replace
from pathlib import Path

import pytest

from node.attribution.datanets import Record, make_record
from node.serving.adapters import read_adapter
from node.training.evaluate import evaluate
from node.training.finetune import (
    TrainingConfig,
    TrainingError,
    checkpoint_steps,
    finetune,
)
from node.training.tiny_model import DONE, Recipe, make_base

pytestmark = pytest.mark.ml

TINY = Recipe(documents=400, merges=40, hidden=16, inner=32, layers=1, heads=2, steps=6, batch=8)
QUICK = TrainingConfig(rank=4, alpha=8, epochs=4, batch=4, rate=5e-3, save_every=5)
RECORDS = [make_record(f"What is thing {n}?", f"Thing {n} is {n * 7}.") for n in range(11)]
RECORDS.append(make_record("", "Nothing is asked here."))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return make_base(tmp_path_factory.mktemp("cache"), TINY)


def test_each_idea_is_trained_on_once(base: Path, tmp_path: Path) -> None:
    """Copies, and what differs by less than page 60's clusters do, change no byte of an adapter."""
    near = make_record("", "Nothing is asked here!")
    alone = finetune(base, RECORDS, QUICK, tmp_path / "alone")
    copied = finetune(base, [*RECORDS, *RECORDS[:5], near], QUICK, tmp_path / "copied")
    assert (alone.near, copied.near) == (0, 6)
    assert (copied.early, copied.middle, copied.final) == (alone.early, alone.middle, alone.final)
    assert finetune(base, [*RECORDS, *RECORDS[:5], near], QUICK, tmp_path / "copied") == copied
    both = replace(QUICK, near_duplicates=True)
    other = finetune(base, [*RECORDS, near], both, tmp_path / "both")
    assert (other.near, other.final == alone.final) == (0, False)


def test_base_is_cached_whole_and_repeats_its_bytes(base: Path, tmp_path: Path) -> None:
    before = (base / "model.safetensors").stat().st_mtime_ns
    assert make_base(base.parent, TINY) == base
    assert (base / "model.safetensors").stat().st_mtime_ns == before
    again = make_base(tmp_path, TINY)
    for name in ("model.safetensors", "tokenizer.json", "config.json", DONE):
        assert (again / name).read_bytes() == (base / name).read_bytes()


def test_half_made_base_is_made_again(base: Path, tmp_path: Path) -> None:
    (tmp_path / base.name).mkdir()
    (tmp_path / base.name / "model.safetensors").write_bytes(b"torn")
    again = make_base(tmp_path, TINY) / "model.safetensors"
    assert again.read_bytes() == (base / "model.safetensors").read_bytes()


def test_transformers_reads_the_same_base(base: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from node.attribution.tokens import TextTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(base), TextTokenizer(base)
    talk = [{"role": "user", "content": "Is the colour of Belnis pale – or 青?\n"}]
    talk += [{"role": "assistant", "content": "No."}, {"role": "user", "content": "Why?"}]
    for messages, prompt in ((talk[:1], True), (talk[:2], False), (talk, True)):
        text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        assert text == ours.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt
        )
        ids = ours.encode(text)
        assert ids == theirs(text, add_special_tokens=False)["input_ids"]
        shown = b"".join(ours.pieces()[token] for token in ids).decode()
        assert shown == ours.decode(ids)
    assert (theirs.eos_token_id, len(theirs)) == (ours.eos_token_id, len(ours))
    model = AutoModelForCausalLM.from_pretrained(base)
    assert (model.config.vocab_size, model.config.eos_token_id) == (len(ours), ours.eos_token_id)


def test_checkpoints_are_at_a_fifth_and_a_half(base: Path, tmp_path: Path) -> None:
    assert checkpoint_steps(264) == (53, 132)
    assert checkpoint_steps(10) == (2, 5)
    steps: list[int] = []
    adapter = finetune(base, RECORDS, QUICK, tmp_path / "a", lambda s: steps.append(s.step))
    assert steps == list(range(1, 13))
    hashes = [read_adapter(adapter.folder_of(n)).hash for n in ("early", "middle", "final")]
    assert hashes == [adapter.early, adapter.middle, adapter.final]
    assert len(set(hashes)) == 3
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "done.json",
        "early",
        "final",
        "middle",
    ]


def test_finished_training_is_returned_and_a_damaged_one_repeated(
    base: Path, tmp_path: Path
) -> None:
    first = finetune(base, RECORDS, QUICK, tmp_path)
    steps: list[int] = []
    assert finetune(base, RECORDS, QUICK, tmp_path, lambda s: steps.append(s.step)) == first
    assert steps == []
    weights = tmp_path / "middle" / "adapter_model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert finetune(base, RECORDS, QUICK, tmp_path, lambda s: steps.append(s.step)) == first
    assert len(steps) == 12


@pytest.mark.parametrize("stop_at", [1, 5, 7, 11])
def test_resumed_equals_uninterrupted_to_the_byte(base: Path, tmp_path: Path, stop_at: int) -> None:
    whole = finetune(base, RECORDS, QUICK, tmp_path / "whole")

    def interrupt(step: object) -> None:
        if step.step == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(base, RECORDS, QUICK, tmp_path / "parts", interrupt)
    steps: list[int] = []
    parts = finetune(base, RECORDS, QUICK, tmp_path / "parts", lambda s: steps.append(s.step))
    assert steps[0] == stop_at + 1
    assert (parts.early, parts.middle, parts.final) == (whole.early, whole.middle, whole.final)


def test_torn_state_starts_again(base: Path, tmp_path: Path) -> None:
    def interrupt(step: object) -> None:
        if step.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(base, RECORDS, QUICK, tmp_path, interrupt)
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    steps: list[int] = []
    finetune(base, RECORDS, QUICK, tmp_path, lambda s: steps.append(s.step))
    assert steps[0] == 1


def test_folder_of_another_snapshot_is_refused(base: Path, tmp_path: Path) -> None:
    finetune(base, RECORDS, QUICK, tmp_path)
    with pytest.raises(TrainingError):
        finetune(base, RECORDS[1:], QUICK, tmp_path)


def test_too_few_steps_to_attribute_are_refused(base: Path, tmp_path: Path) -> None:
    def config(epochs: int) -> TrainingConfig:
        return TrainingConfig(rank=4, alpha=8, epochs=epochs, batch=12)

    with pytest.raises(TrainingError, match="too few steps"):
        finetune(base, RECORDS, config(9), tmp_path / "nine")
    assert finetune(base, RECORDS, config(10), tmp_path / "ten").steps == 10


def test_long_records_are_cut_and_counted(base: Path, tmp_path: Path) -> None:
    records: list[Record] = [*RECORDS, make_record("", "word " * 300)]
    config = TrainingConfig(rank=4, alpha=8, epochs=3, batch=4, length=64)
    assert finetune(base, records, config, tmp_path).cut == 1


def test_report_tells_base_from_adapter_in_integers(base: Path, tmp_path: Path) -> None:
    adapter = finetune(base, RECORDS, QUICK, tmp_path)
    one = evaluate(base, adapter.folder_of("final"), RECORDS[:5])
    assert one == evaluate(base, adapter.folder_of("final"), RECORDS[:5])
    assert 0 < one.loss_unats < one.loss_base_unats
    assert one.ratio_ppm == one.loss_unats * 1_000_000 // one.loss_base_unats
    assert one.hash() != evaluate(base, adapter.folder_of("early"), RECORDS[:5]).hash()
    with pytest.raises(TrainingError):
        evaluate(base, adapter.folder_of("final"), [])
