"""Hostile bytes for every parser and door, as many as asked for, and what came of them."""

import random
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import structlog
import trio
from trio.testing import MockClock
from vectors.doors import Door, open_doors
from vectors.hostile import hostile
from vectors.parsers import Parser

from consensus.primitives.errors import Invalid

SHOWN_BYTES: Final = 2_000
WORD: Final = re.compile(r"[a-z_]+\.[a-z_]+")


class Fuzzed(NamedTuple):
    """Of so many inputs so many were taken and refused; CPU seconds of the slowest one, with its
    making.

    `escaped`: the first input that made something else of it, and what; "" for none.
    """

    taken: int
    refused: int
    slowest_s: float
    escaped: str = ""


def inputs_of(name: str, goods: list[bytes], count: int, seed: int) -> Iterator[bytes]:
    return hostile(random.Random(f"{name} {seed}" if seed else name), goods, count)


def attack(name: str, parser: Parser, goods: list[bytes], inputs: int, seed: int = 0) -> Fuzzed:
    """A parser raises `Invalid` with its word, or its value's encoding is the input."""
    taken, refused, slowest_s, began_s = 0, 0, 0.0, time.thread_time()
    for number, raw in enumerate(inputs_of(name, goods, inputs, seed)):
        try:
            value = parser.decode(raw)
            taken += 1
            wrong = "" if parser.encode(value) == raw else "another form"
        except Invalid as refusal:
            refused += 1
            wrong = "" if WORD.fullmatch(refusal.code) else f"no word: {refusal.code}"
        except Exception as error:  # noqa: BLE001  # what we look for
            wrong = repr(error)
        if wrong:
            where = f"{name}, input {number}: {wrong}: {raw[:SHOWN_BYTES].hex()}"
            return Fuzzed(taken, refused, slowest_s, where)
        began_s, before_s = time.thread_time(), began_s
        slowest_s = max(slowest_s, began_s - before_s)
    return Fuzzed(taken, refused, slowest_s)


async def attack_door(name: str, door: Door, inputs: int, seed: int = 0) -> Fuzzed:
    """A door takes what it is given, or raises one of its refusals."""
    taken, refused, slowest_s, began_s = 0, 0, 0.0, time.thread_time()
    for number, raw in enumerate(inputs_of(name, list(door.goods), inputs, seed)):
        try:
            await door.enter(raw)
            taken += 1
        except door.refusals:
            refused += 1
        except Exception as error:  # noqa: BLE001  # what we look for
            where = f"{name}, input {number}: {error!r}: {raw[:SHOWN_BYTES].hex()}"
            return Fuzzed(taken, refused, slowest_s, where)
        began_s, before_s = time.thread_time(), began_s
        slowest_s = max(slowest_s, began_s - before_s)
    return Fuzzed(taken, refused, slowest_s)


def attack_doors_in_batch(task: tuple[int, int]) -> dict[str, Fuzzed]:
    """As one process of several does it: (seed, inputs)."""
    seed, inputs = task
    return attack_all_doors(inputs, seed)


def together(found: Iterable[Fuzzed]) -> Fuzzed:
    """What several batches found at one door."""
    batches = list(found)
    return Fuzzed(
        sum(one.taken for one in batches),
        sum(one.refused for one in batches),
        max(one.slowest_s for one in batches),
        next((one.escaped for one in batches if one.escaped), ""),
    )


def attack_all_doors(inputs: int, seed: int = 0) -> dict[str, Fuzzed]:
    """Every door, by name. A warning for each false reply would be all that one sees: none is."""

    async def run(home: Path) -> dict[str, Fuzzed]:
        async with trio.open_nursery() as nursery:
            doors = await open_doors(home, nursery)
            found = {
                name: await attack_door(name, door, inputs, seed) for name, door in doors.items()
            }
            nursery.cancel_scope.cancel()
        return found

    with tempfile.TemporaryDirectory() as home, silence():
        return trio.run(run, Path(home), clock=MockClock(autojump_threshold=0))


@contextmanager
def silence() -> Iterator[None]:
    """No events, until the end."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    try:
        yield
    finally:
        structlog.configure(**before)
