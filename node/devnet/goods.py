"""What the devnet trades in: a tiny base, three Datanets, an adapter and an index for each.

Why cached: the base takes half a minute and an adapter ten seconds, and both depend only on the
recipe, so a second start takes none of it. The index is built afresh: its rows name contribution
numbers, and those are the ledger's to give.
What this file does not know: accounts, transactions, processes.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from consensus.primitives.digest import sha256
from node.attribution.datanets import Record, make_record
from node.training import demo_texts, demo_world
from node.training.demo_world import CONTRIBUTORS, COPIER, DemoDatanet
from node.training.finetune import DEMO, Adapter, Step, finetune
from node.training.tiny_model import Recipe, make_base

SEED: Final = 0  # the demo's world; page 50 measured seeds 0 to 3

Progress = Callable[[str, int, int], None]  # what, done, total


@dataclass(frozen=True, slots=True)
class Good:
    """One Datanet of the demo with the adapter trained on it."""

    name: str
    world: DemoDatanet
    contributions: tuple[tuple[Record, ...], ...]  # by contributor
    adapter: Adapter


@dataclass(frozen=True, slots=True)
class Goods:
    """Everything that is trained, ready to be published."""

    base: Path
    goods: tuple[Good, ...]


def cache_folder() -> Path:
    """Where trained things are kept between runs: OLNODE_CACHE, or the user's cache."""
    told = os.environ.get("OLNODE_CACHE")
    if told:
        return Path(told)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "olnode"


def records_of(world: DemoDatanet) -> tuple[tuple[Record, ...], ...]:
    """The records of each contributor, in the world's order, none twice in one contribution."""
    made: list[list[Record]] = [[] for _ in range(CONTRIBUTORS)]
    for record in world.records:
        one = make_record(record.prompt, record.completion)
        mine = made[record.contributor]
        if one.raw not in {other.raw for other in mine}:
            mine.append(one)
    # The ledger refuses the same content twice, so a copier that wants pay must shuffle a little.
    made[COPIER].reverse()
    return tuple(tuple(mine) for mine in made)


def make_goods(cache: Path, threads: int, progress: Progress) -> Goods:
    """The base and an adapter per Datanet, trained now or taken from `cache`.

    About 60 s on two cores the first time. An interrupted adapter goes on where it stopped.
    """
    recipe = Recipe(seed=SEED)
    base = make_base(
        cache / "base",
        recipe,
        lambda step, total, loss: progress("base model", step, total),
        threads=threads,
    )
    goods = []
    for domain in demo_texts.DOMAINS:
        world = demo_world.make_datanet(domain, SEED)
        contributions = records_of(world)
        everything = [record for mine in contributions for record in mine]
        adapter = _train(cache, base, domain.name, everything, threads, progress)
        goods.append(Good(domain.name, world, contributions, adapter))
    return Goods(base, tuple(goods))


def _train(
    cache: Path,
    base: Path,
    name: str,
    records: Sequence[Record],
    threads: int,
    progress: Progress,
) -> Adapter:
    contents = sha256(*(record.raw for record in records))
    key = sha256(DEMO.hash(), base.name.encode(), contents)
    folder = cache / "adapters" / f"{name}-{key.hex()[:16]}"

    def tell(step: Step) -> None:
        progress(f"adapter {name}", step.step, step.total)

    return finetune(base, records, DEMO, folder, tell, threads=threads)
