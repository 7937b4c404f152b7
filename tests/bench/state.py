"""`olnode bench state`: the state's tree at 300,000 keys: updates, proofs, verification.

Nodes lie in memory and stale ones are deleted as a node deletes them, so that only the tree is
measured: hashing of keys and values, reading, writing and encoding of nodes. CPU time, since other
work on the machine costs none; the median over blocks. Values are as long as an account's record.
A proof is counted as it travels, without the key and the record that it shows.
"""

import argparse
import random
import statistics
import time
from collections.abc import Iterator
from typing import Final

from bench.protocol import AT_LEAST, AT_MOST, Budget, finish, tell

from consensus.primitives.encoding import encode
from node.collecting import collect_seldom
from node.ledger import tree

KEYS: Final = 300_000
PER_BLOCK: Final = (100, 1_000, 10_000)
BLOCKS: Final = 21
PROOFS: Final = 2_000
ROUNDS: Final = 21  # of verifying: a median of them
KEY_BYTES: Final = 33  # a table's byte and an account
VALUE_BYTES: Final = 50
NEW: Final = 10  # every tenth change of a block brings a key, every tenth takes one away
BUDGETS: Final = (
    Budget("updates_per_cpu_s_100", AT_LEAST, 6_000),
    Budget("updates_per_cpu_s_1000", AT_LEAST, 9_000),
    Budget("updates_per_cpu_s_10000", AT_LEAST, 30_000),
    Budget("proof_bytes", AT_MOST, 800),
    Budget("verify_us", AT_MOST, 20),
)


class Held:
    """A tree and its keys in memory."""

    def __init__(self, keys: int, chance: random.Random) -> None:
        self._chance = chance
        self.values = {chance.randbytes(KEY_BYTES): self._value() for _ in range(keys)}
        self._keys = list(self.values)
        self._version = 1
        builder = tree.Builder(self._version)
        for key, value in self.values.items():
            builder.add(key, value)
        self.nodes = dict(builder.nodes())
        assert builder.record is not None
        self.record = builder.record

    def _value(self) -> bytes:
        return self._chance.randbytes(VALUE_BYTES)

    def some(self, count: int) -> list[bytes]:
        """Keys that are there."""
        return self._chance.sample(self._keys, count)

    def changes(self, count: int) -> dict[bytes, bytes | None]:
        """A block's `count`: mostly new values, as many keys that come as keys that go."""
        made: dict[bytes, bytes | None] = {}
        pairs = count // NEW
        places = self._chance.sample(range(len(self._keys)), count - pairs)
        for number, place in enumerate(places):
            key = self._keys[place]
            if number < pairs:
                made[key] = None
                key = self._keys[place] = self._chance.randbytes(KEY_BYTES)
            made[key] = self._value()
        return made

    def block_cpu_s(self, changes: dict[bytes, bytes | None]) -> float:
        """Apply a block's changes, and how long that took."""
        self._version += 1
        began_s = time.process_time()
        done = tree.update(self.nodes.get, self.record, self._version, changes.items())
        self.nodes.update(done.nodes)
        for key in done.stale:
            del self.nodes[key]
        took_s = time.process_time() - began_s
        self.record = done.record
        for key, value in changes.items():
            if value is None:
                del self.values[key]
            else:
                self.values[key] = value
        return took_s


def measure(*, keys: int = KEYS, blocks: int = BLOCKS, proofs: int = PROOFS) -> dict[str, object]:
    """All figures of page 80; `keys` ≥ 10,000, the greatest block's."""
    collect_seldom()  # as a node does
    held = Held(keys, random.Random(1))
    tell(f"a tree of {len(held.values):,} keys")
    return {
        "keys": keys,
        **{f"updates_per_cpu_s_{count}": _rate(held, count, blocks) for count in PER_BLOCK},
        **_prove(held, proofs),
    }


def _rate(held: Held, count: int, blocks: int) -> int:
    rates = []
    for _ in range(blocks):
        changes = held.changes(count)
        rates.append(count / held.block_cpu_s(changes))
    return round(statistics.median(rates))


def _prove(held: Held, count: int) -> dict[str, object]:
    root = tree.root_hash(held.record)
    shown = [(key, tree.prove(held.nodes.get, held.record, key)) for key in held.some(count)]
    sizes = [len(encode((_leaf(proof), proof.siblings))) for _, proof in shown]
    triples = [(key, held.values[key], proof) for key, proof in shown]
    rounds_us = list(_verify_us(root, triples))
    return {
        "proof_bytes": round(statistics.mean(sizes)),
        "proof_siblings": round(statistics.mean(len(proof.siblings) for _, proof in shown), 1),
        "verify_us": round(statistics.median(rounds_us), 2),
    }


def _leaf(proof: tree.Proof) -> bytes:
    return b"" if proof.leaf is None else proof.leaf.key + proof.leaf.value


def _verify_us(root: bytes, shown: list[tuple[bytes, bytes, tree.Proof]]) -> Iterator[float]:
    for _ in range(ROUNDS):
        began_s = time.process_time()
        for key, value, proof in shown:
            tree.verify(root, key, value, proof)
        yield 1e6 * (time.process_time() - began_s) / len(shown)


def main() -> None:
    """The command line of `olnode bench state`."""
    parser = argparse.ArgumentParser(prog="olnode bench state")
    parser.add_argument("--keys", type=int, default=KEYS, help="in the tree, ≥ 10,000")
    parser.add_argument("--blocks", type=int, default=BLOCKS, help="of each size")
    given = parser.parse_args()
    finish(measure(keys=given.keys, blocks=given.blocks), BUDGETS)


if __name__ == "__main__":
    main()
