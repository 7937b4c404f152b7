"""Per-record gradients of LoRA matrices, by hooks: output gradient times input.

Why hooks and not autograd's weight gradients: those are summed over the batch, and attribution
needs each record's own. The base is frozen and never given a gradient; only activations are.
Pinned as design page 60 §1 says: fp32, math attention, evaluation mode, no checkpointing, so
that two machines differ by rounding alone. A record's batch-mates are fixed by its place in the
list, so a resumed or shared build gives the same bytes.
Needs torch, transformers and peft: import this file lazily.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from node.attribution.basis import canonical_matrix_name, is_sketched
from node.attribution.datanets import RecordIds

BATCH_RECORDS: Final = 16
CACHE_BYTES: Final = 512 * 1024**2
BATCH_CHECK_RECORDS: Final = 4
BATCH_COSINE_MIN: Final = 0.9999  # batched against alone, else records are taken one by one
ADAPTERS: Final = ("early", "middle")

Reduce = Callable[[int, str, Tensor], Tensor]  # half, matrix, (records, out, in) → smaller


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each record over its labels ≠ −100; (records,) from (records, t, v)."""
    losses = F.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none"
    )
    return losses.sum(1) / (labels[:, 1:] != -100).sum(1)


def pad_batch(records: Sequence[RecordIds]) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded ids, attention mask, and labels (−100 on prompt and padding); (records, t)."""
    length = max(len(record.ids) for record in records)
    ids = torch.zeros(len(records), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for row, record in enumerate(records):
        kept, start = len(record.ids), record.prompt_tokens
        ids[row, :kept] = torch.tensor(record.ids)
        mask[row, :kept] = 1
        labels[row, start:kept] = ids[row, start:kept]
    return ids, mask, labels


class RecordGradients:
    """Gradients of records under a version's two attribution checkpoints.

    `folders` are (base, early, middle) on disk; `coded` every record, each with a completion
    token; `reduce` is applied to a matrix's gradient as soon as it exists (narrowing); `wanted`
    chooses the matrices by name.
    Loads the model on first use, and keeps gradients while they fit in 512 MiB, so that the
    three passes of a small index cost one.
    """

    def __init__(
        self,
        folders: tuple[str, str, str],
        coded: Sequence[RecordIds],
        reduce: Reduce,
        wanted: Callable[[str], bool] = is_sketched,
    ) -> None:
        self._folders = folders
        self._coded = coded
        self._reduce = reduce
        self._wanted = wanted
        self._model: Any = None
        self._found: dict[str, Tensor] = {}  # filled by the hooks of the pass in progress
        self._batch_records = 0  # decided when the model is loaded
        self._cache: dict[tuple[int, tuple[int, ...]], dict[str, Tensor]] = {}
        self._cache_bytes = 0

    def batches(self, half: int, members: Sequence[int]) -> Iterator[dict[str, Tensor]]:
        """{canonical name: fp32 (records, out, in)}, sorted, of the `members` of `coded` in turn.

        `half` 0 is the early checkpoint, 1 the middle.
        """
        self._load()
        for start in range(0, len(members), self._batch_records):
            batch = tuple(members[start : start + self._batch_records])
            if (half, batch) not in self._cache:
                gradients = self._compute(half, batch)
                size = sum(g.numel() * g.element_size() for g in gradients.values())
                if self._cache_bytes + size > CACHE_BYTES:
                    yield gradients
                    continue
                self._cache[half, batch] = gradients
                self._cache_bytes += size
            yield self._cache[half, batch]

    def _load(self) -> None:
        if self._model is not None:
            return
        wrapped = _load_wrapped(*self._folders)
        for name, module in wrapped.named_modules():
            if self._wanted(name) and isinstance(module, torch.nn.Linear):
                half = ADAPTERS.index(name.rsplit(".", 1)[1])
                module.register_forward_hook(self._watch(half, canonical_matrix_name(name)))
        self._model = wrapped
        self._batch_records = BATCH_RECORDS
        if not self._batching_changes_nothing():
            self._batch_records = 1

    def _watch(self, half: int, matrix: str) -> Callable[[Any, tuple[Tensor], Tensor], None]:
        def forward(module: Any, args: tuple[Tensor], result: Tensor) -> None:
            given = args[0].detach()

            def backward(gradient: Tensor) -> None:
                product = torch.einsum("nto,nti->noi", gradient, given)
                self._found[matrix] = self._reduce(half, matrix, product)

            result.register_hook(backward)  # type: ignore[no-untyped-call]  # torch's own

        return forward

    def _compute(self, half: int, batch: Sequence[int]) -> dict[str, Tensor]:
        self._model.set_adapter(ADAPTERS[half])
        for parameter in self._model.parameters():
            parameter.requires_grad_(False)  # set_adapter makes the adapter trainable again
        self._found = {}
        ids, mask, labels = pad_batch([self._coded[member] for member in batch])
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            answer_loss(logits, labels).sum().backward()  # type: ignore[no-untyped-call]
        return dict(sorted(self._found.items()))

    def _batching_changes_nothing(self) -> bool:
        some = range(min(BATCH_CHECK_RECORDS, len(self._coded)))
        together = _flat(self._compute(0, some))
        alone = torch.cat([_flat(self._compute(0, (member,))) for member in some])
        cosine = F.cosine_similarity(together, alone, dim=1)
        # Two zero gradients agree; a NaN does in neither, and then nothing is left to compare.
        return bool(((cosine >= BATCH_COSINE_MIN) | (alone == 0).all(1)).all())


def _flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten(1).double() for gradient in gradients.values()], dim=1)


def _load_wrapped(base: str, early: str, middle: str) -> Any:
    """The frozen base with both checkpoints, in evaluation mode."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft 0.21 asks transformers 5.23 an old question
        model: Any = AutoModelForCausalLM.from_pretrained(
            base,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation="sdpa",
        )
        # With no trainable weight, a graph exists only if the activations start one.
        model.enable_input_require_grads()
        wrapped: Any = PeftModel.from_pretrained(model, early, adapter_name=ADAPTERS[0])
        wrapped.load_adapter(middle, adapter_name=ADAPTERS[1])
    wrapped.eval()
    return wrapped
