"""Per-record gradients are autograd's own, whatever the batch, under the file's names."""

import pytest

from node.attribution.datanets import PlacedRecord, encode_record
from node.attribution.tokens import TextTokenizer

pytestmark = pytest.mark.ml


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        (
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            "model.layers.0.self_attn.q_proj.lora_A",
        ),
        (
            "base_model.model.model.layers.11.mlp.down_proj.lora_B.default.weight",
            "model.layers.11.mlp.down_proj.lora_B",
        ),
        ("model.layers.0.mlp.up_proj.lora_B.early", "model.layers.0.mlp.up_proj.lora_B"),
        ("model.layers.0.mlp.up_proj.lora_B", "model.layers.0.mlp.up_proj.lora_B"),
    ],
)
def test_matrix_has_one_name(name: str, canonical: str) -> None:
    from node.attribution.basis import canonical_matrix_name, is_matrix_name, is_sketched

    assert canonical_matrix_name(name) == canonical
    assert is_matrix_name(name)
    assert is_sketched(name) == ("lora_A" in name)
    assert not is_matrix_name("model.layers.0.mlp.up_proj.weight")
    assert not is_sketched("model.layers.0.mlp.up_proj.weight")


@pytest.mark.parametrize("wanted", ["is_sketched", "is_matrix_name"])
def test_hooks_give_the_gradients_of_autograd(
    trained, placed: list[PlacedRecord], wanted: str
) -> None:
    """Of each record alone, by autograd on the adapter's own parameters; in batches, by hooks."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from node.attribution import basis, gradients
    from node.attribution.basis import canonical_matrix_name

    is_wanted = getattr(basis, wanted)
    tokenizer = TextTokenizer(trained.base)
    some = [placed[n].record for n in (0, 7, 36, 21, 39)]  # of unequal length, two plain texts
    coded = [encode_record(tokenizer, record.prompt, record.completion) for record in some]
    folders = (str(trained.base), str(trained.early), str(trained.middle))
    source = gradients.RecordGradients(folders, coded, lambda half, matrix, grad: grad, is_wanted)
    for half, folder in enumerate(folders[1:]):
        (found,) = source.batches(half, range(len(coded)))
        model = AutoModelForCausalLM.from_pretrained(trained.base)
        model = PeftModel.from_pretrained(model, folder, is_trainable=True).eval()
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad and is_wanted(n)]
        own = {canonical_matrix_name(name): parameter for name, parameter in named}
        assert list(found) == sorted(own)
        for row, record in enumerate(coded):
            ids, mask, labels = gradients.pad_batch([record])
            logits = model(input_ids=ids, attention_mask=mask).logits
            loss = gradients.answer_loss(logits, labels).sum()
            for name, wanted in zip(own, torch.autograd.grad(loss, own.values()), strict=True):
                torch.testing.assert_close(found[name][row], wanted, rtol=1e-3, atol=1e-5)


def test_prompt_and_padding_have_no_label() -> None:
    from node.attribution.datanets import RecordIds
    from node.attribution.gradients import pad_batch

    ids, mask, labels = pad_batch([RecordIds((5, 6, 7), 2), RecordIds((8,), 0)])
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert labels.tolist() == [[-100, -100, 7], [8, -100, -100]]


def test_gradients_are_computed_once_while_they_fit(
    trained, placed: list[PlacedRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    from node.attribution import gradients

    tokenizer = TextTokenizer(trained.base)
    coded = [encode_record(tokenizer, p.record.prompt, p.record.completion) for p in placed[:4]]
    folders = (str(trained.base), str(trained.early), str(trained.middle))
    source = gradients.RecordGradients(folders, coded, lambda half, matrix, gradient: gradient)
    (first,) = source.batches(0, (0, 1))
    (again,) = source.batches(0, (0, 1))
    assert again is first
    monkeypatch.setattr(gradients, "CACHE_BYTES", 0)
    (one,), (two,) = source.batches(0, (2, 3)), source.batches(0, (2, 3))
    assert one is not two
