"""The ground truth of the attribution bench: what each question loses without some records.

Adapters are retrained on random halves of the records, and of the contributors, a bank at a time.
Each bank's losses are kept in a folder as an index keeps its shards: one that is torn, or of
another base, world, seed, number of adapters or recipe, is made again, and no sound one twice.
What this file does not know: scores, pay, the measures.
"""

from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from bench import adapter_bank
from bench.adapter_bank import BANK
from bench.attribution_study import Base, Study, encode_asked
from bench.attribution_world import Datanet
from bench.protocol import tell
from torch import Tensor

from consensus.primitives.digest import domain_hash, sha256
from node.attribution.runners import LocalRunner
from node.attribution.shards import Workshop

MASKS_SEED: Final = 7


class Truth(NamedTuple):
    """Which records (or contributors) each retrained adapter saw, and the questions' losses."""

    records: Tensor  # (adapters, records) of 0 and 1
    record_losses: Tensor  # (adapters, questions)
    contributors: Tensor  # (adapters, contributors)
    contributor_losses: Tensor


def retrain(made: Study, datanet: Datanet, adapters: int, folder: Path) -> Truth:
    """The ground truth: `adapters` on random halves of the records, as many of contributors.

    Losses found in `folder` are not computed again; those that are go there.
    """
    draw = torch.Generator().manual_seed(MASKS_SEED)
    records = (torch.rand(adapters, len(made.coded), generator=draw) < 0.5).float()
    people = (torch.rand(adapters, datanet.contributors, generator=draw) < 0.5).float()
    owners = torch.tensor([text.contributor for text in datanet.texts])
    masks = torch.cat([records, people[:, owners]])
    asked = encode_asked(made.base, [(q.prompt, q.answer) for q in datanet.questions])

    def losses_of_bank(number: int) -> bytes:
        chosen = masks[number * BANK : (number + 1) * BANK]
        bank, _ = made.bank.train(made.coded, chosen, made.base.world.epochs)
        return made.bank.losses(bank, asked).numpy().tobytes()

    work = Workshop(folder, _identity(made.base, masks), LocalRunner(), _tell_progress)
    banks = work.shards("losses", losses_of_bank, len(masks), BANK)
    found = torch.from_numpy(np.frombuffer(b"".join(banks), np.float32).copy())
    found = found.view(len(masks), len(asked))
    return Truth(records, found[:adapters], people, found[adapters:])


def _identity(base: Base, masks: Tensor) -> bytes:
    """Of all that decides the losses. Machines that round otherwise train other bases, and a world
    makes its texts; how an adapter is trained stands in one file."""
    weights = base.model.state_dict()
    parts = [weights[name].numpy().tobytes() for name in sorted(weights)]
    recipe = Path(adapter_bank.__file__).read_bytes()
    world = repr(base.world).encode()
    return domain_hash(b"retrained", *map(sha256, (world, recipe, masks.numpy().tobytes(), *parts)))


def _tell_progress(stage: str, done: int, count: int) -> None:
    tell(f"{stage}: {done} of {count} banks of {BANK} adapters")
