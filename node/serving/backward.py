"""Gradients of answers with respect to two attribution checkpoints, many rows in one backward.

Why leaves: each row's A is its own tensor, so one backward gives every row its exact gradient,
whatever adapters the rows have (measured: relative error 5.8e-7 against one by one). B's gradient
is not asked for: no sketch holds it (attribution/basis.py).
Loss: mean cross-entropy over the kept answer tokens; of n answers, the mean over all their
tokens. Attention is the `math` kernel, as in the index, and all is computed in float32, bf16
weights upcast layer by layer: an index is of float32 gradients (page 60 §1).
What this file does not know: who asked, when it is a good time, what a sketch is for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from consensus.primitives.errors import Invalid
from node.attribution.datanets import RecordIds, window
from node.serving.bank import Packed
from node.serving.engine import GradItem, Sketch
from node.serving.lora import LoraStack, upcast_product

SIDE: Final = ".lora_A"  # of canonical names: behind the module's path
_IGNORED: Final = -100


class Projector(Protocol):
    """What turns gradients into one half of a sketch: node.attribution.basis.Sketcher."""

    def rows(self, half: int, gradients: Mapping[str, Tensor]) -> Tensor:
        """int8 [batch, 512] of {matrix name: float32 [batch, out, in]}; zeros where none is.

        Raises Invalid where the index does not fit."""
        ...


@dataclass(frozen=True, slots=True)
class Work:
    """One item with its two adapters, ready to compute."""

    item: GradItem
    adapters: tuple[Packed, Packed]

    @property
    def tokens(self) -> int:
        """Tokens of both passes."""
        return 2 * sum(len(self.item.prompt) + len(answer) for answer in self.item.answers)


@dataclass(frozen=True, slots=True)
class _Row:
    work: int  # which item
    half: int
    ids: RecordIds
    weight: float  # 1 / the item's answer tokens


def sketches(
    model: Any,
    stack: LoraStack,
    works: Sequence[Work],
    projector_of: Callable[[str], Projector],
) -> list[Sketch]:
    """1,024 bytes per item, in order, or the word that says why not."""
    halves: dict[tuple[int, int], bytes] = {}
    errors: dict[int, str] = {}
    rows = [row for number, work in enumerate(works) for row in _rows_of(number, work)]
    alike: dict[tuple[Any, ...], list[_Row]] = {}
    for row in rows:
        adapter = works[row.work].adapters[row.half]
        shape = adapter.bucket, tuple(sorted(adapter.modules.items()))
        alike.setdefault(shape, []).append(row)
    for members in alike.values():
        packed = [works[row.work].adapters[row.half] for row in members]
        gradients = row_gradients(model, stack, packed, [(r.ids, r.weight) for r in members])
        _project(gradients, members, works, projector_of, halves, errors)
    return [_sketch(number, halves, errors) for number in range(len(works))]


def _rows_of(number: int, work: Work) -> list[_Row]:
    """Both checkpoints times all answers that have a token to predict."""
    kept = [window(work.item.prompt, answer) for answer in work.item.answers]
    kept = [ids for ids in kept if ids.kept_tokens > 0]
    total = sum(ids.kept_tokens for ids in kept)
    return [_Row(number, half, ids, 1.0 / total) for half in (0, 1) for ids in kept]


def row_gradients(
    model: Any,
    stack: LoraStack,
    adapters: Sequence[Packed],
    rows: Sequence[tuple[RecordIds, float]],
) -> dict[str, Tensor]:
    """Each row's gradient of weight × summed loss: {canonical name: float32 [rows, r, in]}.

    The adapters share bucket, modules, ranks and scales. Matrices are the A of the file, at
    their true rank, by sorted module.
    """
    first = adapters[0]
    device = stack.device
    ids, wanted = (tensor.to(device) for tensor in _pack([row for row, _ in rows]))
    weights = torch.tensor([weight for _, weight in rows], device=device)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _in_float32(model):
        flats = [packed.flat for packed in adapters]
        leaves = stack.use_leaves(first.bucket, flats, frozenset(first.modules))
        try:
            logits = model(input_ids=ids, use_cache=False).logits
            each = functional.cross_entropy(
                logits[:, :-1].float().transpose(1, 2),
                wanted[:, 1:],
                ignore_index=_IGNORED,
                reduction="none",
            )
            loss = (each.sum(1) * weights).sum()
            found = torch.autograd.grad(loss, list(leaves.values()))
        finally:
            stack.off()
    ranks = {module: rank for module, (rank, _) in first.modules.items()}
    return {
        module + SIDE: gradient.transpose(1, 2)[:, : ranks[module]].float()
        for module, gradient in zip(leaves, found, strict=True)
    }


@contextmanager
def _in_float32(model: Any) -> Iterator[None]:
    """What goes through a bf16 model is float32 from the embedding on; `LoraLinear` does the rest,
    and norms follow what they are given."""
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding.weight.dtype is torch.float32:
        yield
        return
    hook = embedding.register_forward_hook(lambda module, args, out: out.float())
    output.forward = lambda x: upcast_product(x, output.weight, output.bias)  # hooks still run
    try:
        yield
    finally:
        hook.remove()
        del output.forward


def _pack(rows: Sequence[RecordIds]) -> tuple[Tensor, Tensor]:
    """ids and labels, padded on the right: a causal model never looks there."""
    width = max(len(row.ids) for row in rows)
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    wanted = torch.full((len(rows), width), _IGNORED)
    for at, row in enumerate(rows):
        ids[at, : len(row.ids)] = torch.tensor(row.ids)
        wanted[at, row.prompt_tokens : len(row.ids)] = torch.tensor(row.ids[row.prompt_tokens :])
    return ids, wanted


def _project(
    gradients: Mapping[str, Tensor],
    rows: Sequence[_Row],
    works: Sequence[Work],
    projector_of: Callable[[str], Projector],
    halves: dict[tuple[int, int], bytes],
    errors: dict[int, str],
) -> None:
    """Sum each item's answers, then hand each index its own rows; fills `halves`.

    An index that is damaged, gone or of another adapter fills `errors`: it came from outside, and
    must not end the worker.
    """
    members: dict[tuple[str, int], dict[int, list[int]]] = {}
    for at, row in enumerate(rows):
        index = works[row.work].item.index_folder
        members.setdefault((index, row.half), {}).setdefault(row.work, []).append(at)
    for (index, half), by_work in members.items():
        numbers = list(by_work)
        summed = {
            name: torch.stack([tensor[by_work[number]].sum(0) for number in numbers])
            for name, tensor in gradients.items()
        }
        try:
            made = projector_of(index).rows(half, summed)
        except Invalid as refusal:
            errors.update(dict.fromkeys(numbers, refusal.code))
            continue
        for number, row in zip(numbers, made, strict=True):
            if row.any():  # a row of zeros stands for none: zero or not finite
                halves[number, half] = row.numpy().tobytes()


def _sketch(
    number: int, halves: Mapping[tuple[int, int], bytes], errors: Mapping[int, str]
) -> Sketch:
    early, middle = halves.get((number, 0)), halves.get((number, 1))
    if early is None or middle is None:
        return Sketch(b"", errors.get(number, "engine.no_gradient"))
    return Sketch(early + middle)
