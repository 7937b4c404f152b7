"""Ways to cheat with an answer: other weights, forged evidence, other tokens, told as true."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from judging_kit import Auditor, Told

from node.attribution.datanets import Record
from node.serving import verify
from node.serving.adapters import CONFIG, WEIGHTS, write_adapter
from node.serving.engine import FINGERPRINT_UNIT, AdapterRef, fixed_point, logprob_bytes
from node.serving.judging import read_claims

if TYPE_CHECKING:
    from torch import Tensor

Change = Callable[["Tensor", "Tensor"], tuple["Tensor", "Tensor"]]  # of A [r, in] and B [out, r]
NEWER_RATE: Final = 1e-3


# --- other weights


def changed_adapter(source: Path, target: Path, change: Change) -> AdapterRef:
    """The adapter with each pair of matrices changed, in a new folder."""
    from safetensors.torch import load_file, save

    tensors = load_file(source / WEIGHTS)
    for name in [name for name in tensors if "lora_A" in name]:
        other = name.replace("lora_A", "lora_B")
        halves = change(tensors[name], tensors[other])
        tensors[name], tensors[other] = (half.contiguous() for half in halves)
    settings = json.loads((source / CONFIG).read_text())
    kept = {key: settings[key] for key in ("r", "lora_alpha")}
    return AdapterRef(write_adapter(target, kept, save(tensors)), str(target))


def cut_rank(rank: int) -> Change:
    """The best approximation of B·A by `rank`, padded with zeros to the old shapes."""
    import torch

    def change(a: "Tensor", b: "Tensor") -> tuple["Tensor", "Tensor"]:
        u, s, v = torch.linalg.svd(b @ a, full_matrices=False)
        s[rank:] = 0
        size = a.shape[0]
        return s[:size, None] * v[:size], u[:, :size]

    return change


def newer_adapter(
    base: Path, source: Path, target: Path, records: Sequence[Record], *, steps: int, batch: int
) -> AdapterRef:
    """The adapter trained on for a few more steps, as one that publishes late would have it."""
    import torch
    from peft import PeftModel
    from safetensors.torch import save

    from node.attribution.datanets import encode_record
    from node.attribution.tokens import TextTokenizer
    from node.serving.model import load_base
    from node.training.finetune import answer_losses, pack

    tokenizer = TextTokenizer(base)
    coded = [encode_record(tokenizer, one.prompt, one.completion) for one in records]
    model: Any = PeftModel.from_pretrained(load_base(base), str(source), is_trainable=True)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(named.values(), lr=NEWER_RATE, weight_decay=0.0)
    for step in range(steps):
        ids, mask, wanted = pack(coded[step * batch : (step + 1) * batch], 0)
        optimiser.zero_grad()
        answer_losses(model(input_ids=ids, attention_mask=mask).logits, wanted).mean().backward()
        torch.nn.utils.clip_grad_norm_(list(named.values()), 1.0)
        optimiser.step()
    settings = json.loads((source / CONFIG).read_text())
    kept = {key: settings[key] for key in ("r", "lora_alpha")}
    tensors = {name.replace(".default", ""): p.detach() for name, p in named.items()}
    return AdapterRef(write_adapter(target, kept, save(tensors)), str(target))


def coarse_base(source: Path, target: Path, bits: int) -> Path:
    """The base with each linear's weights rounded to so many bits a row."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    for name, weight in weights.items():
        if weight.dim() == 2 and "embed" not in name and "head" not in name:
            step = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
            weights[name] = (weight / step).round() * step
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


# --- the true weights, and yet


@contextmanager
def altering(core: Any, position: int) -> Iterator[None]:
    """Every answer's token at `position` is another than was drawn; the rest follows from it."""
    import torch

    sample = core._sample

    def altered(rows: Sequence[Any], logits: "Tensor", hidden: "Tensor") -> Any:
        at = [place for place, row in enumerate(rows) if row.made == position]
        if at:
            logits = logits.clone()
            drawn = logits[at].argmax(-1)
            logits[at] = -torch.inf
            logits[at, (drawn + 1) % logits.shape[1]] = 0.0
        return sample(rows, logits, hidden)

    core._sample = altered
    try:
        yield
    finally:
        del core._sample


def forge(auditor: Auditor, told: Told) -> Told:
    """Log-probabilities and fingerprints made by one true forward over the answer as it is."""
    served = read_claims(told.receipt, told.evidence, auditor.manifest, auditor.vocabulary)
    (score,) = auditor.scores(served)
    (choice,) = served.evidence.choices
    marks = [fixed_point(value, FINGERPRINT_UNIT) for row in score.fingerprints for value in row]
    true = choice._replace(
        logprobs=b"".join(map(logprob_bytes, score.logprobs)), fingerprints=b"".join(marks)
    )
    return told.changed(choices=(true,))


def logprobs_of(told: Told) -> list[float]:
    """What an answer claims, in nats."""
    (choice,) = verify.decode_evidence(told.evidence).choices
    raw = choice.logprobs
    return [
        int.from_bytes(raw[at : at + 4], "big", signed=True) / 2**20 for at in range(0, len(raw), 4)
    ]
