"""Sketches: gradients in a mixed batch equal those alone, and those that autograd gives peft."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from consensus.primitives.errors import Invalid
from node.serving.engine import (
    AdapterBusy,
    AdapterRef,
    BadSampling,
    EngineSettings,
    GradItem,
    Overloaded,
    UnknownAdapter,
)

pytestmark = pytest.mark.ml

MakeAdapter = Callable[..., tuple[bytes, str]]


class Recorder:
    """Stands for an index's sketcher: keeps what it is given, row by row."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.seen: list[tuple[int, dict[str, object]]] = []

    def rows(self, half: int, gradients: Mapping[str, object]):
        import torch

        count = len(next(iter(gradients.values())))
        for row in range(count):
            self.seen.append((half, {name: g[row] for name, g in gradients.items()}))
        made = torch.zeros(count, 512, dtype=torch.int8)
        for row in range(count):
            finite = all(torch.isfinite(g[row]).all() for g in gradients.values())
            made[row] = half + 1 if finite and self.folder != "silent" else 0
        return made


@pytest.fixture
def recorders() -> dict[str, Recorder]:
    return {}


@pytest.fixture
def core(smooth_base: Path, recorders: dict[str, Recorder], request) -> Iterator[object]:
    """In fp32, or in the class that a test names."""
    from node.serving.slots import SlotCore

    def load(folder: str) -> Recorder:
        if folder == "damaged":
            raise Invalid("index.basis_hash")
        return recorders.setdefault(folder, Recorder(folder))

    settings = EngineSettings(
        str(smooth_base), rows=4, dtype_class=getattr(request, "param", "fp32")
    )
    core = SlotCore(settings, load_projector=load)
    yield core
    assert all(packed.refs == 0 for packed in core._bank._packed.values())


def sketch_all(core, items: list[GradItem]) -> list[tuple[int, object]]:
    core.add_gradients(7, items)
    made = []
    while len(made) < len(items):
        core.step()
        for call, place, sketch in core.made():
            assert call == 7
            made.append((place, sketch))
    return sorted(made, key=lambda entry: entry[0])


def load_four(core, make_adapter: MakeAdapter) -> list[tuple[bytes, str]]:
    made = [make_adapter(number, (8, 16)[number // 2]) for number in range(4)]
    for hash, folder in made:
        core.load(AdapterRef(hash, folder))
    return made


def items_of(made: list[tuple[bytes, str]]) -> list[GradItem]:
    a, b, c, d = (hash for hash, _ in made)
    return [
        GradItem((a, b), (1, 2, 3), ((40, 41, 42, 257),), "one"),
        GradItem((c, d), (9, 8, 7, 6, 5, 4), ((50, 51),), "two"),
        GradItem((b, a), (1, 2, 3), ((60, 61, 62), (63,)), "one"),
    ]


@pytest.mark.parametrize("core", ["fp32", "bf16"], indirect=True)
def test_gradients_batched_equal_alone_and_autograd_on_peft(
    core, recorders: dict[str, Recorder], make_adapter: MakeAdapter, smooth_base: Path
) -> None:
    """In float32 either way: of bf16 only the weights are rounded, as page 60 §1 pins it."""
    made = load_four(core, make_adapter)
    items = items_of(made)
    folders = dict(made)
    sketches = sketch_all(core, items)
    assert [sketch.data for _, sketch in sketches] == [b"\1" * 512 + b"\2" * 512] * 3
    batched = {name: list(recorder.seen) for name, recorder in recorders.items()}
    for name, order in (("one", [0, 2]), ("two", [1])):
        for half in (0, 1):
            got = [gradients for h, gradients in batched[name] if h == half]
            for gradients, number in zip(got, order, strict=True):
                item = items[number]
                is_rounded = core.info.dtype_class == "bf16"
                folder = folders[item.checkpoints[half]]
                expected = by_autograd(smooth_base, folder, item, is_rounded=is_rounded)
                assert gradients.keys() == expected.keys()
                for matrix, tensor in gradients.items():
                    assert tensor.shape == expected[matrix].shape
                    largest = float(expected[matrix].abs().max())
                    # Rounding alone: 1.1e-5 of the largest entry was seen.
                    assert float((tensor - expected[matrix]).abs().max()) <= 5e-5 * largest


def by_autograd(
    base: Path, folder: str, item: GradItem, *, is_rounded: bool = False
) -> dict[str, object]:
    """Mean loss over all answers' tokens, differentiated by torch alone; of what is sketched."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from node.attribution.basis import canonical_matrix_name, is_sketched

    model = AutoModelForCausalLM.from_pretrained(base)
    model = PeftModel.from_pretrained(model, folder, is_trainable=True)
    if is_rounded:
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16().float()
    total, tokens = 0.0, 0
    for answer in item.answers:
        ids = torch.tensor([item.prompt + answer])
        wanted = ids[:, 1:][:, len(item.prompt) - 1 :]
        logits = model(ids).logits[:, len(item.prompt) - 1 : -1]
        total = total + torch.nn.functional.cross_entropy(logits[0], wanted[0], reduction="sum")
        tokens += len(answer)
    (total / tokens).backward()
    return {
        canonical_matrix_name(name): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and is_sketched(name)
    }


def test_answer_without_token_gradient_or_sound_index_has_no_sketch(
    core, make_adapter: MakeAdapter
) -> None:
    made = load_four(core, make_adapter)
    pair = made[0][0], made[1][0]
    sketches = sketch_all(
        core,
        [
            GradItem(pair, (1, 2), ((),), "one"),
            GradItem(pair, (1, 2), ((3,),), "silent"),
            GradItem(pair, (1, 2), ((3,), ()), "one"),
            GradItem(pair, (1, 2), ((3,),), "damaged"),
        ],
    )
    assert [(sketch.data != b"", sketch.error) for _, sketch in sketches] == [
        (False, "engine.no_gradient"),
        (False, "engine.no_gradient"),
        (True, ""),
        (False, "index.basis_hash"),
    ]


def test_checkpoints_of_queued_gradients_cannot_be_unloaded(
    core, make_adapter: MakeAdapter
) -> None:
    made = load_four(core, make_adapter)
    core.add_gradients(1, items_of(made)[:1])
    with pytest.raises(AdapterBusy):
        core.unload(made[0][0])
    core.step()
    core.unload(made[0][0])


def test_queue_of_gradients_refuses_whole_calls(core, make_adapter: MakeAdapter) -> None:
    from node.serving.background import QUEUED_MAX

    item = items_of(load_four(core, make_adapter))[0]
    with pytest.raises(Overloaded):
        core.add_gradients(1, [item] * (QUEUED_MAX + 1))
    with pytest.raises(UnknownAdapter):
        core.add_gradients(1, [item, GradItem((bytes(32), bytes(32)), (1,), ((2,),), "one")])
    with pytest.raises(BadSampling):
        core.add_gradients(1, [GradItem(item.checkpoints, (1,), ((5_000,),), "one")])
    assert core.stats().gradients_waiting == 0


def test_generation_goes_on_between_batches_of_gradients(core, make_adapter: MakeAdapter) -> None:
    """A step with gradients also decodes; answers do not change beside them."""
    from node.serving.engine import GenRequest, Sampling, Token

    made = load_four(core, make_adapter)
    each = GenRequest(b"g" * 16, b"t", made[2][0], (5, 6, 7), Sampling(12, flags=1))

    def answer() -> list[int]:
        core.submit(each)
        ids = []
        while core.live:
            ids += [event.id for _, event in core.step() if isinstance(event, Token)]
        return ids

    alone = answer()
    core.add_gradients(1, items_of(made) * 6)
    assert answer() == alone
    while core.stats().gradients_waiting:
        core.step()
    assert len(core.made()) == 18
