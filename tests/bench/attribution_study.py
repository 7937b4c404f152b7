"""One world studied: its base, its adapter, its index, and what answers score and pay.

Everything that a node would do is done by the node's own code: canonical records, clusters,
gradients, basis, rows, index files, sketches, scan, statement and credits. Only the training
differs: all adapters, the published one too, come from the bank, so that it and those retrained
on parts of the records have one recipe.
Needs torch and transformers. What this file does not know: the measures and the budgets.
"""

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from bench.adapter_bank import Adapters, Bank, save_adapter, steps_of
from bench.attribution_world import Datanet, Text, WordTokenizer, World, base_texts
from torch import Tensor

from node.attribution.attribute import Version, attribute, credits_of
from node.attribution.basis import Sketcher, is_matrix_name, one_thread, quantise
from node.attribution.building import IndexSpec, build_index
from node.attribution.datanets import (
    PlacedRecord,
    RecordIds,
    encode_record,
    make_record,
    window,
)
from node.attribution.gradients import RecordGradients
from node.attribution.index import NO_ROW, Index
from node.attribution.runners import LocalRunner
from node.attribution.score import scan
from node.ledger.rules.shares import Credits, is_sound_row
from node.ledger.wire.receipts import credited
from node.serving.model import hush_transformers
from node.training.tiny_model import Recipe, random_model, train

BASE_TEXTS: Final = 20_000
BASE_INIT: Final = (2.5, 4.0)  # embedding, layers: from the start that fits models 16 times as wide
BASE_HASH: Final = b"\1" * 32
SNAPSHOT: Final = b"\5" * 32
VERSION: Final = Version(chain_id=b"\1" * 32, model=1, version=1, published_ms=1_800_000_000_000)
EARLY: Final = 0.2  # of the optimiser's steps: page 60 §1
MIDDLE: Final = 0.5

Asked = tuple[str, str]  # prompt, answer


class Base(NamedTuple):
    """A world's base model, in memory and as a folder."""

    world: World
    tokenizer: WordTokenizer
    model: Any
    folder: Path


class Study(NamedTuple):
    """A Datanet, the adapter trained on it, and its index."""

    base: Base
    texts: tuple[Text, ...]
    coded: list[RecordIds]
    bank: Bank
    final: Adapters
    folders: dict[str, Path]
    spec: IndexSpec
    index: Index


def make_base(world: World, home: Path) -> Base:
    """Trained here: 16 to 30 s of one core."""
    hush_transformers()
    tokenizer = WordTokenizer(world)
    recipe = Recipe(
        seed=world.seed, hidden=64, inner=128, layers=2, heads=2, length=64, batch=64,
        steps=world.base_steps,
    )  # fmt: skip
    model = random_model(recipe, len(tokenizer))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(BASE_INIT["embed" not in name])
    coded = [encode_record(tokenizer, "", text).ids for text in base_texts(world, BASE_TEXTS)]
    with one_thread():
        train(model, coded, recipe, lambda step, total, loss: None)
    folder = home / "base"
    model.save_pretrained(folder)
    return Base(world, tokenizer, model, folder)


def study(base: Base, datanet: Datanet, home: Path) -> Study:
    """Train the adapter with its two checkpoints, and build the index, under `home`."""
    coded = [encode_record(base.tokenizer, "", text.text) for text in datanet.texts]
    bank = Bank(base.model, base.world.seed, base.world.rate)
    steps = steps_of(len(coded), base.world.epochs)
    keep = (ceil(EARLY * steps), ceil(MIDDLE * steps))
    everything = torch.ones(1, len(coded))
    with one_thread():
        final, kept = bank.train(coded, everything, base.world.epochs, keep)
    made = dict(zip(("early", "middle", "final"), (*kept, final), strict=True))
    folders = {name: home / name for name in made}
    home.mkdir(parents=True, exist_ok=True)
    hashes = {
        name: save_adapter(folders[name], {key: tensor[0] for key, tensor in adapters.items()})
        for name, adapters in made.items()
    }
    spec = IndexSpec(
        base_folder=str(base.folder),
        early_folder=str(folders["early"]),
        middle_folder=str(folders["middle"]),
        base=BASE_HASH,
        adapter=hashes["final"],
        early=hashes["early"],
        middle=hashes["middle"],
        snapshot_root=SNAPSHOT,
    )
    index = _index(base, spec, datanet.texts, home)
    return Study(base, datanet.texts, coded, bank, final, folders, spec, index)


def _index(base: Base, spec: IndexSpec, texts: Sequence[Text], home: Path) -> Index:
    built = build_index(spec, place(texts), base.tokenizer, home, LocalRunner())
    return Index.open(built.folder, built.root)


def index_again(made: Study, home: Path) -> None:
    """Build the index of `made` once more, from nothing, and see that it is the same."""
    assert _index(made.base, made.spec, made.texts, home).root == made.index.root


def place(texts: Sequence[Text]) -> list[PlacedRecord]:
    """Each contributor's records are one contribution, numbered from 1."""
    return [
        PlacedRecord(1 + text.contributor, position, make_record("", text.text))
        for position, text in enumerate(texts)
    ]


def encode_asked(base: Base, asked: Sequence[Asked]) -> list[RecordIds]:
    """Prompt and answer as the engine would hand them over: the answer's tokens count alone."""
    encode = base.tokenizer.encode
    return [window(encode(prompt), encode(answer)) for prompt, answer in asked]


def answer_all(made: Study, prompts: Sequence[str]) -> list[Asked]:
    """Each prompt with the word that the published adapter says."""
    encode = made.base.tokenizer.encode
    words = made.base.tokenizer.words
    said = made.bank.answers(made.final, [tuple(encode(prompt)) for prompt in prompts])
    return [(prompt, words[number]) for prompt, number in zip(prompts, said, strict=True)]


def float_sums(made: Study, coded: Sequence[RecordIds]) -> list[Tensor]:
    """Both halves before rounding, float64 (records, 512)."""
    folders = str(made.base.folder), str(made.folders["early"]), str(made.folders["middle"])
    source = RecordGradients(folders, coded, lambda half, matrix, gradient: gradient)
    sketcher = Sketcher.load(made.index.folder)
    everyone = range(len(coded))
    with one_thread():
        return [
            torch.cat([sketcher.sums(half, batch) for batch in source.batches(half, everyone)])
            for half in (0, 1)
        ]


def rounded_rows(sums: Sequence[Tensor]) -> Tensor:
    """int64 (records, 1,024) of both halves before rounding."""
    return torch.cat([quantise(half) for half in sums], 1).long()


def sketches_of(sums: Sequence[Tensor]) -> list[bytes]:
    """1,024 bytes each, of both halves before rounding."""
    return [row.tobytes() for row in rounded_rows(sums).to(torch.int8).numpy()]


def final_gradients(made: Study, coded: Sequence[RecordIds]) -> dict[str, Tensor]:
    """Per-record gradients of all matrices at the published adapter, where the rivals look."""
    final = str(made.folders["final"])
    folders = str(made.base.folder), final, final
    source = RecordGradients(
        folders, coded, lambda half, matrix, gradient: gradient, is_matrix_name
    )
    with one_thread():
        parts = list(source.batches(0, range(len(coded))))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def signed_scores(made: Study, sketches: Sequence[bytes]) -> Tensor:
    """int64 (questions, records): each record has the score of its cluster's row, or 0 of none."""
    has_row = made.index.clusters != NO_ROW
    rows = np.where(has_row, made.index.clusters, 0).astype(np.int64)
    scores = [scan(made.index.rows, sketch)[rows] * has_row for sketch in sketches]
    return torch.from_numpy(np.stack(scores).astype(np.int64))


def left_out(made: Study) -> int:
    """How many records have no row: few entries carry their gradient, so that clamping would leave
    a norm out of bounds. Of some 250 of these worlds none or one."""
    return int((made.index.clusters == NO_ROW).sum())


def attribute_all(
    made: Study, sketches: Sequence[bytes], standing: int | None = None
) -> list[Credits]:
    """Credits of each answer; none without a sound sketch, as a provider would state it.

    `standing`: `shares.row_shares`.
    """
    index = made.index
    return [
        credits_of(index, attribute(index, sketch, VERSION).statement, standing)
        if is_sound_row(sketch)
        else ()
        for sketch in sketches
    ]


def paid_bps(credits: Sequence[Credits], contributors: int) -> Tensor:
    """int64 (questions, contributors) of basis points; the fund's are left out."""
    table = torch.zeros(len(credits), contributors, dtype=torch.int64)
    for i, shares in enumerate(credits):
        for contribution, bps in credited(shares):
            table[i, contribution - 1] = bps
    return table
