"""Whatever a peer sends, each door says what it may say and nothing else, and soon.

The handlers of every request, the readers of every reply, the judges of every topic, records,
addresses, the book, frames, and what the guards read for the library. A handler that is new is
fuzzed as soon as it has an example in `p2p/WIRE.md`; a client's reader wants a row in `doors.py`.
"""

import json
from collections.abc import Awaitable
from functools import cache

import pytest
from bench.batches import run_batches
from vectors.doors import Door
from vectors.fuzzing import Fuzzed, attack_door, attack_doors_in_batch, together

from p2p.errors import NetworkError
from p2p.limits import PROTOCOLS, TOPICS

INPUTS = 20_000  # of each (page 70 §14)
SLOWEST_S = 1.0  # of CPU; the slowest was 0.1 s, a collection of garbage
STREAMS = {"consensus", "infer"}  # of frames that `parsers.py` decodes, not requests
READ = ("address record", "address", "peer id", "book", "binding", "frames", "gossip",
        "line of negotiation", "model's manifest", "snapshot's manifest")  # fmt: skip
TOLD = ("envelope", "status", "peers", "blocks by height", "block by id", "light block", "history",
        "past block", "bundles", "kept", "statement", "claims", "rows", "offers", "snapshots",
        "chunk of a snapshot", "blob", "chunk of a blob", "files")  # fmt: skip
NAMES = (
    *(f"asked {name}" for name in PROTOCOLS if name not in STREAMS),
    "asked to keep a bundle",
    *(f"told {name}" for name in TOLD),
    *(f"gossiped {name}" for name in TOPICS),
    *(f"read {name}" for name in READ),
)


@cache
def fuzzed() -> dict[str, Fuzzed]:
    """Once, for they share a chain; on two processes, each with inputs of its own."""
    batches = run_batches(
        attack_doors_in_batch, INPUTS, batch=INPUTS // 2, seed=1, processes=2, tell=lambda _: None
    )
    return {name: together(batch[name] for batch in batches) for name in batches[0]}


def test_every_door_is_known_by_name() -> None:
    assert sorted(fuzzed()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_its_refusals_comes_out_of_a_door(name: str) -> None:
    found = fuzzed()[name]
    assert not found.escaped
    assert found.taken + found.refused == INPUTS
    assert found.slowest_s <= SLOWEST_S


def test_most_doors_take_some_and_refuse_most() -> None:
    """Neither only noise nor only harmless; those that never raise count all as taken."""
    seen = {name: found for name, found in fuzzed().items() if found.refused}
    assert len(seen) > len(NAMES) // 2
    assert sum(found.taken > INPUTS // 200 for found in seen.values()) > len(seen) // 2


async def test_a_door_that_lets_something_else_out_is_caught() -> None:
    def careless(raw: bytes) -> Awaitable[object]:
        return json.loads(raw)

    found = await attack_door("careless", Door((b"{}",), careless, (NetworkError,)), 100)
    assert found.escaped.startswith("careless, input ")
