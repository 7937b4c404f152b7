"""A tiny base model made on the spot from this project's own text.

Why: a demo and its tests must run where nothing can be downloaded, and on a model small enough
to train in half a minute on two cores. The recipe is measured (page 50, demo recipe): change no
number without running the demo's quality test.
The result is a plain Hugging Face folder that Auto classes load, cached by the recipe's hash.
Equal bytes on one machine with the same number of threads; not promised across CPU kinds.
"""

import dataclasses
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from consensus.primitives.digest import sha256
from node.attribution.datanets import encode_record
from node.attribution.tokens import TextTokenizer, byte_symbols
from node.serving.model import hush_transformers
from node.training import demo_texts, demo_world
from node.training.schedule import one_cycle

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

Progress = Callable[[int, int, float], None]  # step, total, loss

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
PART: Final = ".part"  # with the pid of who makes it
DONE: Final = "recipe.json"  # written last: a folder without it is half made
CHAT_TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ message['role'] }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nassistant:' }}{% endif %}"
)
_DRAWN_BATCHES: Final = 8  # drawn together and sorted by length, so that little padding is computed


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides the base's weights, but for the machine."""

    version: int = 1
    seed: int = 0
    documents: int = 8_000
    merges: int = 800
    hidden: int = 128
    inner: int = 344
    layers: int = 3
    heads: int = 4
    length: int = 512
    steps: int = 800
    batch: int = 24
    rate: float = 3e-3
    warm: float = 0.1

    def hash(self) -> bytes:
        """SHA-256 of the recipe and of the templates it is cooked from."""
        numbers = json.dumps(dataclasses.asdict(self), sort_keys=True).encode()
        texts = [Path(str(module.__file__)).read_bytes() for module in (demo_texts, demo_world)]
        return sha256(numbers, CHAT_TEMPLATE.encode(), *(sha256(text) for text in texts))


def make_base(
    cache: str | os.PathLike[str],
    recipe: Recipe = Recipe(),
    on_progress: Progress | None = None,
    threads: int = 1,
) -> Path:
    """The folder of the base under `cache`, made if it is not there yet (30–48 s on 2 cores).

    A cancel leaves nothing behind; a crash leaves a `.part` folder, which the next call removes.
    """
    folder = Path(cache) / recipe.hash().hex()[:16]
    if (folder / DONE).is_file():
        return folder
    _remove_parts_of_the_dead(folder)
    part = folder.with_name(folder.name + PART + str(os.getpid()))
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        _cook(part, recipe, on_progress or (lambda step, total, loss: None), threads)
        with open(part / DONE, "w", encoding="utf-8") as file:
            json.dump(dataclasses.asdict(recipe), file, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        if folder.exists() and not (folder / DONE).is_file():
            shutil.rmtree(folder)
        try:
            os.rename(part, folder)
        except OSError:  # another process was faster: its folder holds the same
            assert (folder / DONE).is_file(), folder
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _remove_parts_of_the_dead(folder: Path) -> None:
    for part in folder.parent.glob(folder.name + PART + "*"):
        try:
            os.kill(int(part.name.rpartition(PART)[2]), 0)
        except ProcessLookupError:
            shutil.rmtree(part, ignore_errors=True)
        except (ValueError, PermissionError):
            continue  # not ours to judge, or another user's that lives


def _cook(folder: Path, recipe: Recipe, on_progress: Progress, threads: int) -> None:
    import torch

    hush_transformers()
    documents = demo_world.demo_base_documents(recipe.documents, recipe.seed)
    texts = [f"user: {asked}\nassistant: {said}" if asked else said for asked, said in documents]
    write_tokenizer(folder, texts, recipe.merges)
    tokenizer = TextTokenizer(folder)
    coded = [encode_record(tokenizer, asked, said)[0] for asked, said in documents]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = random_model(recipe, len(tokenizer))
        train(model, coded, recipe, on_progress)
    finally:
        torch.set_num_threads(before)
    model.save_pretrained(folder)


def random_model(recipe: Recipe, vocabulary: int) -> "LlamaForCausalLM":
    """An untrained Llama of the recipe's shape; the last three ids are bos, eos, pad."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = LlamaConfig(
        hidden_size=recipe.hidden,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        vocab_size=vocabulary,
        max_position_embeddings=recipe.length,
        tie_word_embeddings=True,
        bos_token_id=vocabulary - 3,
        eos_token_id=vocabulary - 2,
        pad_token_id=vocabulary - 1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return LlamaForCausalLM(settings)


def train(
    model: "LlamaForCausalLM", coded: Sequence[Sequence[int]], recipe: Recipe, on_progress: Progress
) -> None:
    """Loss on every token, AdamW, one cycle, clipped to norm 1; in place."""
    import torch
    from torch.nn import functional

    parameters = list(model.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=recipe.rate, betas=(0.9, 0.95), weight_decay=0.01)
    pad = model.config.vocab_size - 1
    model.train()
    for step, batch in enumerate(_batches(coded, recipe.batch, recipe.steps, recipe.seed)):
        rate, beta = one_cycle(step, recipe.steps, recipe.rate, recipe.warm)
        optimiser.param_groups[0].update(lr=rate, betas=(beta, 0.95))
        ids, mask = padded(batch, pad)
        logits = model(input_ids=ids, attention_mask=mask).logits
        wanted = ids.masked_fill(mask == 0, -100)[:, 1:]
        loss = functional.cross_entropy(logits[:, :-1].transpose(1, 2), wanted, ignore_index=-100)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own annotation is missing
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        on_progress(step + 1, recipe.steps, loss.item())
    model.train(False)


def padded(batch: Sequence[Sequence[int]], pad: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """ids int64 [rows, longest] padded on the right, and the mask of what is real."""
    import torch

    width = max(len(ids) for ids in batch)
    rows = torch.full((len(batch), width), pad)
    mask = torch.zeros((len(batch), width), dtype=torch.long)
    for at, ids in enumerate(batch):
        rows[at, : len(ids)] = torch.tensor(ids)
        mask[at, : len(ids)] = 1
    return rows, mask


def _batches(
    coded: Sequence[Sequence[int]], size: int, steps: int, seed: int
) -> Iterator[list[Sequence[int]]]:
    rng = random.Random(f"order:{seed}")
    ready: list[list[Sequence[int]]] = []
    for _ in range(steps):
        if not ready:
            drawn = sorted(rng.sample(coded, _DRAWN_BATCHES * size), key=len)
            ready = [drawn[at : at + size] for at in range(0, len(drawn), size)]
            rng.shuffle(ready)
        yield ready.pop()


def write_tokenizer(folder: Path, texts: Sequence[str], merges: int) -> None:
    """Write tokenizer.json and its settings: bytes keep their ids, then merges, bos, eos, pad."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    symbols = byte_symbols()
    vocabulary = {symbols[byte]: byte for byte in range(256)}
    pairs: list[tuple[str, str]] = []
    if merges:
        learner = Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=256 + merges, initial_alphabet=sorted(vocabulary), show_progress=False
        )
        learner.train_from_iterator(texts, trainer)
        learnt: list[Any] = json.loads(learner.to_str())["model"]["merges"]
        pairs = [(left, right) for left, right in learnt]
        for left, right in pairs:
            vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in (BOS, EOS, PAD)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, sort_keys=True), "utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")


def weights_hash(model: "LlamaForCausalLM") -> bytes:
    """SHA-256 of all parameters in order, for tests of determinism."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    return digest.digest()
