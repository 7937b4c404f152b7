"""A random base of a few thousand parameters and adapters on it, made once a session."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_base(folder: Path, sharper: float) -> Path:
    """Llama 2 × h32 with random weights over bytes, each matrix times `sharper`."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    from node.attribution.tokens import TextTokenizer
    from node.training.tiny_model import Recipe, random_model, write_tokenizer

    write_tokenizer(folder, [], merges=0)
    recipe = Recipe(hidden=32, inner=64, layers=2, heads=4, length=256, seed=3)
    model = random_model(recipe, len(TextTokenizer(folder)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(sharper if parameter.dim() == 2 else 1.0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sharp, so that argmax has a clear winner and answers differ."""
    return write_base(tmp_path_factory.mktemp("sharp"), 6.0)


@pytest.fixture(scope="session")
def smooth_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As drawn, so that gradients are of one size and rounding stays small."""
    return write_base(tmp_path_factory.mktemp("smooth"), 1.0)


MakeAdapter = Callable[..., tuple[bytes, str]]


@pytest.fixture(scope="session")
def make_adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeAdapter:
    """make(seed, rank=8, targets=…, alpha=16) → (hash, folder) of a random adapter."""
    import torch
    from safetensors.torch import save
    from transformers import AutoModelForCausalLM

    from node.serving.adapters import write_adapter

    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    root = tmp_path_factory.mktemp("adapters")

    def make(
        seed: int, rank: int = 8, targets: tuple[str, ...] = TARGETS, alpha: int = 16
    ) -> tuple[bytes, str]:
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for name, module in linears.items():
            if name.rsplit(".", 1)[-1] in targets:
                key = f"base_model.model.{name}.lora_"
                shape_a, shape_b = (rank, module.in_features), (module.out_features, rank)
                tensors[key + "A.weight"] = torch.randn(shape_a, generator=generator) * 0.3
                tensors[key + "B.weight"] = torch.randn(shape_b, generator=generator) * 0.3
        settings = {"r": rank, "lora_alpha": alpha}
        folder = root / json.dumps([seed, rank, len(targets), alpha])
        return write_adapter(folder, settings, save(tensors)), str(folder)

    return make
