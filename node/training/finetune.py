"""Fine-tune a LoRA adapter on a snapshot's records, with the two checkpoints attribution needs.

Why checkpoints at 20 % and 50 %: on a converged adapter every gradient method collapses; early
ones decide the quality of attribution (page 60 §1). Fewer than 10 steps are refused.
Why each idea once: what is told often is learnt before the first checkpoint, and then no gradient
points to who told it. Copies would earn nothing, and take from their victim (ARCHITECTURE.md §6).
Why our own loop: order, schedule and saved state are exact, so a resumed training equals an
uninterrupted one to the byte on one device. Nothing is saved as a pickle.
What this file does not know: who gave a record, the ledger, engines.
"""

import dataclasses
import hashlib
import json
import math
import os
import random
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from consensus.primitives.digest import sha256
from node.attribution import clusters
from node.attribution.datanets import Record, RecordIds, encode_record
from node.attribution.tokens import TextTokenizer
from node.serving.adapters import base_hash, read_adapter, write_adapter
from node.serving.engine import BadAdapter
from node.training.schedule import one_cycle

if TYPE_CHECKING:
    import torch

LINEARS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STEPS_MIN: Final = 10  # below it the run cannot be attributed
EARLY, MIDDLE, FINAL = "early", "middle", "final"  # folders under `out`
_STATE: Final = "state.safetensors"
_STATE_FACTS: Final = "state.json"
_DONE: Final = "done.json"  # written last: what a finished training was of, and its result
_BETA_2: Final = 0.99
_IGNORED: Final = -100


class TrainingError(Exception):
    """The operator's records or settings do not make a training; one sentence says why."""


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """What decides an adapter, besides base and records. `length` cuts over-long records;
    `near_duplicates`: whether records near to an earlier one are trained on, too."""

    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] = LINEARS
    rslora: bool = False
    epochs: int = 3
    batch: int = 16
    accumulate: int = 1
    rate: float = 2e-4
    warm: float = 0.3
    length: int = 1_024
    near_duplicates: bool = False
    seed: int = 0
    save_every: int = 200

    def hash(self) -> bytes:
        """SHA-256 of all fields but `save_every`, which decides nothing."""
        fields = dataclasses.asdict(self)
        del fields["save_every"]
        return sha256(json.dumps(fields, sort_keys=True).encode())


# Measured; as many steps as page 50's 24 epochs, in which a copier's records were trained on.
DEMO: Final = TrainingConfig(rank=8, alpha=32, epochs=28, batch=16, rate=3e-3)


@dataclass(frozen=True, slots=True)
class Step:
    """What a progress bar needs after each optimiser step."""

    step: int
    total: int
    loss: float
    tokens_per_s: float
    eta_s: float


@dataclass(frozen=True, slots=True)
class Adapter:
    """A finished training: three canonical peft folders and their content hashes."""

    early: bytes
    middle: bytes
    final: bytes
    folder: str
    steps: int
    loss: float
    cut: int  # records that were longer than `length`
    near: int  # records near to an earlier one, and left out

    def folder_of(self, name: str) -> str:
        """The folder of EARLY, MIDDLE or FINAL."""
        return str(Path(self.folder) / name)


def finetune(
    base: str | os.PathLike[str],
    records: Sequence[Record],
    config: TrainingConfig,
    out: str | os.PathLike[str],
    on_progress: Callable[[Step], None] | None = None,
    threads: int = 1,
) -> Adapter:
    """Train and save under `out`; goes on where an interrupted run of the same recipe stopped.

    `records` in ledger order: of near-duplicates the first is trained on, as it is the one indexed.
    A finished training of the same base, records and config is returned as it stands.

    Raises TrainingError: too few steps, or `out` holds another recipe's state. A KeyboardInterrupt
    saves the state, then goes on up.
    """
    finished = _find_finished(Path(base), records, config, Path(out))
    if finished is not None:
        return finished
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _Training(Path(base), records, config, Path(out)).run(on_progress)
    finally:
        torch.set_num_threads(before)


def canonical(records: Sequence[Record]) -> list[Record]:
    """One record of each idea, the first: page 60 §2."""
    leaders = clusters.find_leaders(clusters.read(r.prompt, r.completion) for r in records)
    return [record for n, record in enumerate(records) if leaders[n] == n]


def checkpoint_steps(total: int) -> tuple[int, int]:
    """The optimiser steps after which the early and the middle checkpoint are saved."""
    return -(-total * 2 // 10), -(-total * 5 // 10)


class _Training:
    def __init__(
        self, base: Path, records: Sequence[Record], config: TrainingConfig, out: Path
    ) -> None:
        self.config, self.out = config, out
        tokenizer = TextTokenizer(base)
        distinct = records if config.near_duplicates else canonical(records)
        self.near = len(records) - len(distinct)
        self.coded, self.cut = _encode(tokenizer, distinct, config.length)
        per_step = config.batch * config.accumulate
        self.total = config.epochs * -(-len(self.coded) // per_step)
        if self.total < STEPS_MIN:
            raise TrainingError(
                f"{self.total} steps are too few steps to attribute: give more records or epochs "
                f"(at least {STEPS_MIN} steps)"
            )
        self.identity = _identity(base, records, config)
        self.model, self.pad = _peft_model(base, config)
        named = sorted((n, p) for n, p in self.model.named_parameters() if p.requires_grad)
        self.parameters = {_file_key(name): parameter for name, parameter in named}
        self.optimiser = _adamw(list(self.parameters.values()), config)
        self.step = 0
        self.losses: list[float] = []

    def run(self, on_progress: Callable[[Step], None] | None) -> Adapter:
        """All steps that are left, then the final folder."""
        self.out.mkdir(parents=True, exist_ok=True)
        self._resume()
        early, middle = checkpoint_steps(self.total)
        began, first, tokens = time.monotonic(), self.step, 0
        self.model.train()
        try:
            while self.step < self.total:
                loss, seen = self._one_step()
                tokens += seen
                if self.step in (early, middle, self.total):
                    self._save_adapter({early: EARLY, middle: MIDDLE}.get(self.step, FINAL))
                if self.step % self.config.save_every == 0:
                    self._save_state()
                if on_progress:
                    spent = max(time.monotonic() - began, 1e-9)
                    left = spent / (self.step - first) * (self.total - self.step)
                    on_progress(Step(self.step, self.total, loss, tokens / spent, left))
        except KeyboardInterrupt:
            self._save_state()
            raise
        recent = self.losses[-max(1, self.total // self.config.epochs) :]
        adapter = Adapter(
            **{name: read_adapter(self.out / name).hash for name in (EARLY, MIDDLE, FINAL)},
            folder=str(self.out),
            steps=self.total,
            loss=math.fsum(recent) / max(1, len(recent)),
            cut=self.cut,
            near=self.near,
        )
        _write_finished(self.out, self.identity, adapter)
        for name in (_STATE, _STATE_FACTS):
            (self.out / name).unlink(missing_ok=True)
        return adapter

    def _one_step(self) -> tuple[float, int]:
        """One optimiser step; its mean loss and how many tokens it saw."""
        import torch

        config = self.config
        rate, beta = one_cycle(self.step, self.total, config.rate, config.warm)
        self.optimiser.param_groups[0].update(lr=rate, betas=(beta, _BETA_2))
        chosen = self._records_of(self.step)
        self.optimiser.zero_grad()
        loss_sum, tokens = 0.0, 0
        for at in range(0, len(chosen), config.batch):
            part = [self.coded[i] for i in chosen[at : at + config.batch]]
            ids, mask, wanted = pack(part, self.pad)
            losses = answer_losses(self.model(input_ids=ids, attention_mask=mask).logits, wanted)
            (losses.sum() / len(chosen)).backward()  # type: ignore[no-untyped-call]  # torch's gap
            loss_sum += float(losses.detach().sum())
            tokens += int(mask.sum())
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), 1.0)
        self.optimiser.step()
        self.step += 1
        loss = loss_sum / len(chosen)
        if not math.isfinite(loss):
            raise TrainingError(f"the loss became {loss} at step {self.step}: lower the rate")
        self.losses.append(loss)
        return loss, tokens

    def _records_of(self, step: int) -> list[int]:
        """Record numbers of one step: each epoch is a permutation keyed by (seed, epoch)."""
        per_step = self.config.batch * self.config.accumulate
        per_epoch = -(-len(self.coded) // per_step)
        epoch, at = divmod(step, per_epoch)
        key = hashlib.sha256(
            self.config.seed.to_bytes(8, "big") + epoch.to_bytes(4, "big")
        ).digest()
        order = list(range(len(self.coded)))
        random.Random(key).shuffle(order)
        return order[at * per_step : (at + 1) * per_step]

    def _save_adapter(self, name: str) -> None:
        from safetensors.torch import save

        tensors = {key: p.detach().clone().contiguous() for key, p in self.parameters.items()}
        settings = {
            "r": self.config.rank,
            "lora_alpha": self.config.alpha,
            "use_rslora": self.config.rslora,
        }
        write_adapter(self.out / name, settings, save(tensors, metadata={"format": "pt"}))

    def _save_state(self) -> None:
        from safetensors.torch import save

        tensors = {f"p/{key}": p.detach().clone() for key, p in self.parameters.items()}
        for key, parameter in self.parameters.items():
            moments = self.optimiser.state[parameter]
            tensors[f"m/{key}"], tensors[f"v/{key}"] = moments["exp_avg"], moments["exp_avg_sq"]
        raw = save(tensors)
        facts = {
            "identity": self.identity,
            "step": self.step,
            "losses": self.losses,
            "tensors": sha256(raw).hex(),
        }
        _write_durably(self.out / _STATE, raw)
        _write_durably(self.out / _STATE_FACTS, json.dumps(facts).encode())

    def _resume(self) -> None:
        import torch
        from safetensors.torch import load

        try:
            facts = json.loads((self.out / _STATE_FACTS).read_bytes())
            raw = (self.out / _STATE).read_bytes()
        except FileNotFoundError:
            return
        if facts["identity"] != self.identity:
            raise _another_recipe(self.out)
        if sha256(raw).hex() != facts["tensors"]:
            return  # torn between the two files: the training starts again
        tensors = load(raw)
        for key, parameter in self.parameters.items():
            with torch.no_grad():
                parameter.copy_(tensors[f"p/{key}"])
            self.optimiser.state[parameter] = {
                "step": torch.tensor(float(facts["step"])),
                "exp_avg": tensors[f"m/{key}"],
                "exp_avg_sq": tensors[f"v/{key}"],
            }
        self.step, self.losses = facts["step"], facts["losses"]


def _identity(base: Path, records: Sequence[Record], config: TrainingConfig) -> str:
    """What a training is of, in hex: base, records and config."""
    texts = json.dumps([(record.prompt, record.completion) for record in records]).encode()
    return sha256(base_hash(base), config.hash(), sha256(texts)).hex()


def _another_recipe(out: Path) -> TrainingError:
    return TrainingError(
        f"{out} holds another base, snapshot or recipe: choose another folder or remove it"
    )


def _write_finished(out: Path, identity: str, adapter: Adapter) -> None:
    facts = dataclasses.asdict(adapter) | {"identity": identity}
    del facts["folder"]  # it may be moved
    for name in (EARLY, MIDDLE, FINAL):
        facts[name] = facts[name].hex()
    _write_durably(out / _DONE, json.dumps(facts).encode())


def _find_finished(
    base: Path, records: Sequence[Record], config: TrainingConfig, out: Path
) -> Adapter | None:
    """The adapter that `out` holds, if it is of this training and its files are whole."""
    try:
        facts = json.loads((out / _DONE).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    if facts.pop("identity", None) != _identity(base, records, config):
        raise _another_recipe(out)
    try:
        hashes = [bytes.fromhex(facts[name]) for name in (EARLY, MIDDLE, FINAL)]
        if [read_adapter(out / name).hash for name in (EARLY, MIDDLE, FINAL)] != hashes:
            return None  # damaged since: trained again
        early, middle, final = hashes
        told = [facts[name] for name in ("steps", "loss", "cut", "near")]
        return Adapter(early, middle, final, str(out), *told)
    except (BadAdapter, KeyError, ValueError):
        return None


def _encode(
    tokenizer: TextTokenizer, records: Sequence[Record], length: int
) -> tuple[list[RecordIds], int]:
    """The records that have something to learn, and how many were cut to `length`."""
    coded, cut = [], 0
    for record in records:
        ids, start = encode_record(tokenizer, record.prompt, record.completion)
        cut += len(ids) > length
        kept = RecordIds(ids[:length], min(start, length))
        if kept.kept_tokens > 0:
            coded.append(kept)
    return coded, cut


def _peft_model(base: Path, config: TrainingConfig) -> tuple[Any, int]:
    """The base with a fresh LoRA, and the padding id; A is drawn from the seed, B is zero."""
    import torch
    from peft import LoraConfig, get_peft_model

    from node.serving.model import load_base

    model = load_base(base)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=list(config.targets),
        lora_dropout=0.0,
        bias="none",
        use_rslora=config.rslora,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 1)  # not the base's own draws
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft 0.21 asks transformers 5.23 an old question
            adapted = get_peft_model(model, lora)
    pad = model.config.pad_token_id
    return adapted, 0 if pad is None else int(pad)


def _adamw(parameters: "list[torch.nn.Parameter]", config: TrainingConfig) -> "torch.optim.AdamW":
    import torch

    return torch.optim.AdamW(parameters, lr=config.rate, betas=(0.9, _BETA_2), weight_decay=0.0)


def _file_key(name: str) -> str:
    """peft's parameter name → the key it has in an adapter file."""
    return name.replace(".default.weight", ".weight")


def pack(pairs: Sequence[RecordIds], pad: int) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """ids, mask, labels int64 [rows, longest], padded on the right, prompts masked."""
    import torch

    width = max(len(ids) for ids, _ in pairs)
    ids_of = torch.full((len(pairs), width), pad)
    mask = torch.zeros((len(pairs), width), dtype=torch.long)
    wanted = torch.full((len(pairs), width), _IGNORED)
    for row, (ids, start) in enumerate(pairs):
        ids_of[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
        wanted[row, start : len(ids)] = torch.tensor(ids[start:])
    return ids_of, mask, wanted


def answer_losses(logits: "torch.Tensor", wanted: "torch.Tensor") -> "torch.Tensor":
    """Mean cross-entropy of each row's answer tokens, float [rows]."""
    from torch.nn import functional

    each = functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2),
        wanted[:, 1:],
        ignore_index=_IGNORED,
        reduction="none",
    )
    return each.sum(1) / (wanted[:, 1:] != _IGNORED).sum(1).clamp(min=1)


def _write_durably(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
