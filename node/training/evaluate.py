"""How well a version answers a probe: mean loss per answer token, in integers that others repeat.

Why integers: a report is hashed and compared by evaluators on other machines, within 0.1 %.
Sums are float64 over float32 losses, in a fixed order, one record at a time, so that batching
changes nothing.
What this file does not know: whose version it is, what a drift is worth.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from consensus.primitives.digest import sha256
from consensus.primitives.encoding import encode
from node.attribution.datanets import Record, RecordIds, contribution_root, encode_record
from node.attribution.tokens import TextTokenizer
from node.training.finetune import TrainingError, answer_losses, pack

if TYPE_CHECKING:
    import torch

MICRO: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Report:
    """Losses in millionths of a nat per answer token; `ratio_ppm` is adapter over base."""

    probe_root: bytes
    tokens: int
    loss_base_unats: int
    loss_unats: int
    ratio_ppm: int

    def encode(self) -> bytes:
        """Canonical bytes; a manifest names their SHA-256."""
        return encode(
            (self.probe_root, self.tokens, self.loss_base_unats, self.loss_unats, self.ratio_ppm)
        )

    def hash(self) -> bytes:
        """SHA-256 of the encoding."""
        return sha256(self.encode())


def evaluate(
    base: str | os.PathLike[str], adapter_folder: str | os.PathLike[str], probe: Sequence[Record]
) -> Report:
    """Loss of base and of base with adapter on the probe's completions, one thread.

    Raises TrainingError where the probe has no token to predict or a loss is not finite.
    """
    import torch
    from peft import PeftModel

    from node.serving.model import load_base

    tokenizer = TextTokenizer(base)
    coded = [encode_record(tokenizer, record.prompt, record.completion) for record in probe]
    coded = [ids for ids in coded if ids.kept_tokens > 0]
    if not coded:
        raise TrainingError("the probe has no answer token")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = load_base(base)
        alone = _loss(model, coded)
        adapted = _loss(PeftModel.from_pretrained(model, os.fspath(adapter_folder)), coded)
    finally:
        torch.set_num_threads(before)
    return Report(
        contribution_root(probe),
        sum(ids.kept_tokens for ids in coded),
        alone,
        adapted,
        adapted * MICRO // max(alone, 1),
    )


def _loss(model: Any, coded: Sequence[RecordIds]) -> int:
    import torch

    total, tokens = 0.0, 0
    model.train(False)
    with torch.inference_mode():
        for ids in coded:
            rows, mask, wanted = pack([ids], 0)
            mean = _mean_loss(model(input_ids=rows, attention_mask=mask).logits, wanted)
            total += mean * ids.kept_tokens
            tokens += ids.kept_tokens
    loss = total / tokens
    if not math.isfinite(loss):
        raise TrainingError("the loss on the probe is not finite")
    return round(loss * MICRO)


def _mean_loss(logits: "torch.Tensor", wanted: "torch.Tensor") -> float:
    return float(answer_losses(logits, wanted)[0].double())
