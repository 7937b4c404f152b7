"""The base model in memory, from a plain Hugging Face folder on this disk.

Why so strict: no code, no pickle and no network ever comes with weights; the dtype is the class
that a model version promised.
"""

import hashlib
import os
from typing import TYPE_CHECKING, Any

from node.attribution.tokens import TextTokenizer
from node.serving.adapters import base_files
from node.serving.engine import Unsupported

if TYPE_CHECKING:
    import torch


def load_base(
    folder: str | os.PathLike[str], dtype_class: str = "fp32", device: str = "cpu"
) -> Any:
    """An AutoModelForCausalLM in eval mode, no gradients, attention `sdpa`.

    Raises Unsupported for code in the folder, a quantised base, mixtures of experts.
    """
    base_files(folder)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    hush_transformers()
    if dtype_class not in ("fp32", "bf16"):
        raise Unsupported(what=f"dtype class {dtype_class}")
    settings = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    for key in ("quantization_config", "num_local_experts", "num_experts"):
        if getattr(settings, key, None):
            raise Unsupported(what=key)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=torch.float32 if dtype_class == "fp32" else torch.bfloat16,
        attn_implementation="sdpa",
    )
    model.requires_grad_(False)
    model.train(False)
    return model.to(device)


def hush_transformers() -> None:
    """No bars, no advice on standard error: callers draw their own."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # theirs has no annotations
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def length_of(model: Any) -> int:
    """The longest prompt and answer together, clamped to a sliding window."""
    settings = model.config
    window = getattr(settings, "sliding_window", None)
    longest = int(settings.max_position_embeddings)
    return min(longest, int(window)) if window else longest


def dtype_of(model: Any) -> "torch.dtype":
    """The dtype of the weights."""
    dtype: torch.dtype = next(model.parameters()).dtype
    return dtype


def stop_tokens(model: Any, tokenizer: TextTokenizer) -> frozenset[int]:
    """The ids that end an answer: the model's own, and the tokenizer's."""
    listed = model.generation_config.eos_token_id
    ids = set(listed if isinstance(listed, list) else [] if listed is None else [listed])
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return frozenset(int(token) for token in ids)


def build_of(device: str) -> bytes:
    """What could make two engines compute differently: versions and the device's name."""
    import platform

    import torch
    import transformers

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    text = f"{torch.__version__}/{transformers.__version__}/{name}"
    return hashlib.sha256(text.encode()).digest()


def count_gpus() -> int:
    """How many CUDA devices torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def free_bytes(device: str) -> int:
    """What a GPU has left; 0 of a CPU, whose memory is not ours alone."""
    import torch

    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else 0


def use_threads(count: int) -> None:
    """Compute with `count` threads, or all cores but one: the daemon needs the other."""
    import torch

    torch.set_num_threads(count or max(1, (os.cpu_count() or 2) - 1))
