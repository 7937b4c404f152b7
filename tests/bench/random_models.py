"""Bases and adapters with random weights, in the formats that are served: what is measured on them
is time and memory, never what they say.
"""

from pathlib import Path
from typing import Final, NamedTuple

from node.serving.engine import AdapterRef

RANK: Final = 16
LINEARS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Shape(NamedTuple):
    """A Llama; `steps` are timed in each turn of a configuration."""

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    steps: int


def make_base(folder: Path, shape: Shape, dtype: str = "fp32") -> None:
    """A base with random weights over bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from node.training.tiny_model import write_tokenizer

    folder.mkdir()
    write_tokenizer(folder, [], merges=0)
    settings = LlamaConfig(
        vocab_size=259,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=256,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
    )
    torch.manual_seed(1)
    kind = torch.float32 if dtype == "fp32" else torch.bfloat16
    with torch.device("cpu"):
        torch.set_default_dtype(kind)
        LlamaForCausalLM(settings).save_pretrained(folder)
        torch.set_default_dtype(torch.float32)


def make_adapters(base: Path, folder: Path, count: int, rank: int = RANK) -> list[AdapterRef]:
    """Random adapters on every linear, in peft's format."""
    import torch
    from safetensors.torch import save

    from node.serving.adapters import write_adapter

    shapes = _linear_shapes(base)
    refs = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        tensors = {}
        for name, (outputs, inputs) in shapes.items():
            key = f"base_model.model.{name}.lora_"
            tensors[key + "A.weight"] = torch.randn((rank, inputs), generator=generator) * 0.02
            tensors[key + "B.weight"] = torch.randn((outputs, rank), generator=generator) * 0.02
        target = folder / f"a{number}"
        made = write_adapter(target, {"r": rank, "lora_alpha": 32}, save(tensors))
        refs.append(AdapterRef(made, str(target)))
    return refs


def _linear_shapes(base: Path) -> dict[str, tuple[int, int]]:
    from safetensors import safe_open

    found = {}
    for path in sorted(base.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # theirs is no mapping
                if name.removesuffix(".weight").rsplit(".", 1)[-1] in LINEARS:
                    outputs, inputs = file.get_slice(name).get_shape()
                    found[name.removesuffix(".weight")] = outputs, inputs
    return found
