"""Many LoRA adapters of one base trained at once, each on its own part of the records.

This is the ground truth of the attribution bench: what an answer loses when records are left
out is seen by training without them. All adapters start alike and see the records in one order.
Rows of all adapters lie in one batch; hooks add each row its own adapter's product, so the
frozen base is computed once for all of them (page 60 §13).
Needs torch and transformers. What this file does not know: attribution.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save
from torch import Tensor

from node.attribution.datanets import RecordIds
from node.attribution.gradients import answer_loss, pad_batch
from node.serving.adapters import write_adapter

RANK: Final = 4
ALPHA: Final = 8
BATCH: Final = 40
WARM_STEPS: Final = 10
BANK: Final = 16  # adapters at once

Adapters = dict[str, Tensor]  # tensor name → (adapters, …)


class Bank:
    """LoRA pairs on every linear layer of `model`, for any number of adapters."""

    def __init__(self, model: Any, seed: int, rate: float) -> None:
        self._rate = rate
        self._model = model.eval().requires_grad_(False)
        draw = torch.Generator().manual_seed(seed)
        self._start: Adapters = {}
        self._layers: dict[str, Any] = {}
        for name, layer in model.named_modules():
            if not isinstance(layer, torch.nn.Linear) or name == "lm_head":
                continue
            self._layers[name] = layer
            bound = layer.in_features**-0.5
            first = torch.rand(RANK, layer.in_features, generator=draw) * 2 * bound - bound
            self._start[f"{name}.lora_A"] = first
            self._start[f"{name}.lora_B"] = torch.zeros(layer.out_features, RANK)

    def train(
        self, coded: Sequence[RecordIds], masks: Tensor, epochs: int, keep: Sequence[int] = ()
    ) -> tuple[Adapters, list[Adapters]]:
        """The adapters trained on records where `masks` (adapters, records) is 1.

        Also the adapters as they were after each step in `keep` (counted from 1).
        """
        adapters = {
            name: tensor[None].repeat(len(masks), 1, 1) for name, tensor in self._start.items()
        }
        optimiser = _Adam(adapters)
        order = torch.Generator().manual_seed(0)
        total = steps_of(len(coded), epochs)
        kept = []
        step = 0
        for _ in range(epochs):
            for batch in torch.randperm(len(coded), generator=order).split(BATCH):
                step += 1
                gradients = self._gradients(adapters, coded, batch, masks)
                rate = self._rate * min(1.0, step / WARM_STEPS) * (1 - step / (total + 1))
                adapters = optimiser.step(adapters, gradients, step, rate)
                if step in keep:
                    kept.append({name: tensor.clone() for name, tensor in adapters.items()})
        return adapters, kept

    def losses(self, adapters: Adapters, coded: Sequence[RecordIds]) -> Tensor:
        """(adapters, records): mean loss over each record's completion."""
        count = len(next(iter(adapters.values())))
        ids, _, labels = pad_batch(coded)
        with torch.no_grad(), self._use(adapters):
            logits = self._model(input_ids=ids.repeat(count, 1), use_cache=False).logits
        return answer_loss(logits, labels.repeat(count, 1)).view(count, -1)

    def answers(self, adapters: Adapters, prompts: Sequence[tuple[int, ...]]) -> list[int]:
        """The likeliest next id after each prompt, by the first adapter."""
        first = {name: tensor[:1] for name, tensor in adapters.items()}
        ids, _, _ = pad_batch([RecordIds(prompt, len(prompt)) for prompt in prompts])
        with torch.no_grad(), self._use(first):
            logits = self._model(input_ids=ids, use_cache=False).logits
        last = [len(prompt) - 1 for prompt in prompts]
        return [int(i) for i in logits[torch.arange(len(prompts)), last].argmax(1)]

    def _gradients(
        self, adapters: Adapters, coded: Sequence[RecordIds], batch: Tensor, masks: Tensor
    ) -> Adapters:
        """Of summed losses / BATCH. Only records that an adapter sees are computed for it."""
        chosen = [batch[mask[batch] > 0].tolist() for mask in masks]
        width = max(1, *map(len, chosen))
        spare = int(batch[0])
        rows = [coded[n] for mine in chosen for n in (mine + [spare] * width)[:width]]
        weights = torch.tensor([float(i < len(mine)) for mine in chosen for i in range(width)])
        ids, _, labels = pad_batch(rows)
        leaves = {name: tensor.requires_grad_() for name, tensor in adapters.items()}
        with self._use(leaves):
            logits = self._model(input_ids=ids, use_cache=False).logits
            loss = (answer_loss(logits, labels) * weights).sum() / BATCH
        found = torch.autograd.grad(loss, list(leaves.values()))
        return dict(zip(leaves, found, strict=True))

    @contextmanager
    def _use(self, adapters: Adapters) -> Iterator[None]:
        hooks = []
        for name, layer in self._layers.items():
            pair = adapters[f"{name}.lora_A"], adapters[f"{name}.lora_B"]
            hooks.append(layer.register_forward_hook(_adding(*pair)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _adding(down: Tensor, up: Tensor) -> Any:
    def add(layer: Any, args: tuple[Tensor], result: Tensor) -> Tensor:
        rows = args[0].reshape(len(down), -1, args[0].shape[-1])
        product = rows @ down.transpose(1, 2) @ up.transpose(1, 2)
        return result + product.view(result.shape) * (ALPHA / RANK)

    return add


class _Adam:
    def __init__(self, adapters: Adapters) -> None:
        self._first = {name: torch.zeros_like(tensor) for name, tensor in adapters.items()}
        self._second = {name: torch.zeros_like(tensor) for name, tensor in adapters.items()}

    def step(self, adapters: Adapters, gradients: Adapters, step: int, rate: float) -> Adapters:
        moved = {}
        for name, tensor in adapters.items():
            gradient = gradients[name]
            first = self._first[name].mul_(0.9).add_(gradient, alpha=0.1)
            second = self._second[name].mul_(0.95).addcmul_(gradient, gradient, value=0.05)
            size = (second / (1 - 0.95**step)).sqrt() + 1e-6
            moved[name] = tensor.detach() - rate * (first / (1 - 0.9**step)) / size
        return moved


def steps_of(records: int, epochs: int) -> int:
    """Optimiser steps of one training."""
    return epochs * ceil(records / BATCH)


def save_adapter(folder: Path, tensors: Mapping[str, Tensor]) -> bytes:
    """A peft folder of one adapter (tensors without the first axis); its hash."""
    named = {
        f"base_model.model.{name}.weight": tensor.detach().contiguous()
        for name, tensor in tensors.items()
    }
    return write_adapter(folder, {"r": RANK, "lora_alpha": ALPHA}, save(named))
