"""Engines alone: no disk, no clock, no trio, signatures left out; a network that a seed controls.

A twin is one key run by two engines, each behaving honestly: together they equivocate in every
way that honest code can. What it does not know: blocks; an id is a header with a marked field.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from consensus.effects import (
    Accuse,
    Broadcast,
    BuildPayload,
    Commit,
    Effect,
    Persist,
    SetTimer,
)
from consensus.engine import Engine
from consensus.header import Header
from consensus.inputs import Input, PayloadBuilt, Received, Started, TimedOut
from consensus.messages import Message
from consensus.records import SignerRecord
from consensus.validators import ValidatorSet

CHAIN_ID = b"c" * 32
SIGNATURE = bytes(64)  # nobody checks it here


def key(number: int) -> bytes:
    """The key of member `number`, in the order of their names."""
    return bytes([number + 1]) * 32


def header(proposer: bytes, height: int = 1, mark: int = 0) -> Header:
    """A header that differs from others by `mark`."""
    roots = [bytes([kind]) * 32 for kind in range(10)]
    roots[4] = mark.to_bytes(32, "big")  # txs_root
    return Header(1, 1, CHAIN_ID, height, 1_000 + height, CHAIN_ID, proposer, *roots, 10**18)


class Node:
    """One engine with its pending timers and what it committed."""

    def __init__(self, name: int, me: bytes | None, mark: int) -> None:
        self.name = name
        self.me = me
        self.mark = mark
        self.engine = Engine(CHAIN_ID, me)
        self.timers: list[SetTimer] = []
        self.records: list[SignerRecord] = []
        self.commits: list[Commit] = []
        self.accusations: list[Accuse] = []
        self.outbox: list[Message] = []

    def give(self, given: Input) -> list[Effect]:
        """Handle one input and perform its effects; our own messages come straight back."""
        seen: list[Effect] = []
        inputs = [given]
        while inputs:
            effects = self.engine.handle(inputs.pop(0))
            seen += effects
            for effect in effects:
                inputs += self._perform(effect)
        return seen

    def _perform(self, effect: Effect) -> list[Input]:
        match effect:
            case Persist(record):
                last = self.records[-1] if self.records else None
                assert last is None or record.place() > last.place()
                self.records.append(record)
            case Broadcast(message):
                assert self.records[-1].body == message.body(), "broadcast before persist"
                signed = replace(message, signature=SIGNATURE)
                self.outbox.append(signed)
                return [Received(signed)]
            case SetTimer():
                self.timers.append(effect)
            case BuildPayload(height, round):
                assert self.me is not None
                self.mark += 1
                mark = (self.name + 1) * 1_000_000 + self.mark
                return [PayloadBuilt(height, round, header(self.me, height, mark))]
            case Commit():
                self.commits.append(effect)
            case Accuse():
                self.accusations.append(effect)
        return []

    def fire(self, step: int | None = None) -> None:
        """Let every pending timer of this step (or all) run out."""
        due = [timer for timer in self.timers if step is None or timer.step == step]
        self.timers = [timer for timer in self.timers if timer not in due]
        for timer in due:
            self.give(TimedOut(timer.height, timer.round, timer.step))


class Cluster:
    """Nodes on one height; messages wait in `wires` until they are delivered or lost."""

    def __init__(self, powers: Sequence[int], twins: Sequence[int] = ()) -> None:
        self.validators = ValidatorSet.found({key(n): power for n, power in enumerate(powers)})
        names = list(range(len(powers)))
        owners = names + list(twins)
        self.twins = frozenset(twins)
        self.nodes = [Node(place, key(owner), 0) for place, owner in enumerate(owners)]
        self.owners = owners
        self.wires: list[tuple[int, int, Message]] = []

    def start(self) -> None:
        """Height 1 begins everywhere."""
        for node in self.nodes:
            node.give(Started(1, self.validators, None))
            self.collect(node)

    def collect(self, node: Node) -> None:
        """Put what a node said onto the wires to all others."""
        for message in node.outbox:
            self.wires += [
                (node.name, other.name, message) for other in self.nodes if other is not node
            ]
        node.outbox.clear()

    def deliver(self, allowed: Callable[[int, int, Message], bool], rng: Random | None) -> None:
        """Deliver until nothing that is allowed is left; the rest stays on the wires."""
        while True:
            open_wires = [wire for wire in self.wires if allowed(*wire)]
            if not open_wires:
                return
            if rng is not None and rng.random() < 0.3:
                rng.shuffle(open_wires)
            taken = {id(wire) for wire in open_wires}
            self.wires = [wire for wire in self.wires if id(wire) not in taken]
            for _, to, message in open_wires:
                node = self.nodes[to]
                node.give(Received(message))
                self.collect(node)

    def fire(self, rng: Random | None = None) -> None:
        """Every timer now pending runs out, in a seeded order of nodes."""
        order = list(self.nodes)
        if rng is not None:
            rng.shuffle(order)
        for node in order:
            node.fire()
            self.collect(node)

    def resend(self) -> None:
        """Each node hears from each other what it lacks: rule (b), and the re-send by status."""
        for node in self.nodes:
            for other in self.nodes:
                if other is node:
                    continue
                for message in other.engine.missing(node.engine.status(), 1 << 16):
                    node.give(Received(message))
                    self.collect(node)

    def honest(self) -> list[Node]:
        """Nodes that are no one's twin."""
        return [
            node
            for node, owner in zip(self.nodes, self.owners, strict=True)
            if owner not in self.twins
        ]

    def decisions(self) -> set[bytes]:
        """Ids that any honest node committed."""
        return {commit.block_id for node in self.honest() for commit in node.commits}


def twins_run(powers: Sequence[int], twins: Sequence[int], seed: int, rounds: int = 5) -> str:
    """One Twins scenario: partitions by phase for some rounds, then all is healed.

    Returns "OK", "FORK" (two honest nodes decided differently) or "STUCK" (one never decides).
    """
    rng = Random(seed)
    cluster = Cluster(powers, twins)
    cluster.start()
    side = [rng.randrange(2) for _ in cluster.nodes]
    for _ in range(rounds):
        for _phase in range(3):
            if rng.random() < 0.5:  # else the partition of the last phase stays
                side = [rng.randrange(2) for _ in cluster.nodes]
            whole = rng.random() < 0.2
            cluster.deliver(
                lambda a, b, _m, side=side, whole=whole: whole or side[a] == side[b], rng
            )
            for node in cluster.nodes:
                if rng.random() < 0.8:
                    node.fire(rng.randrange(3))
                    cluster.collect(node)
        if rng.random() < 0.2:
            cluster.wires = [wire for wire in cluster.wires if rng.random() > 0.3]
    if len(cluster.decisions()) > 1:
        return "FORK"
    for _ in range(12):
        cluster.deliver(lambda *_: True, rng)
        cluster.resend()
        cluster.deliver(lambda *_: True, rng)
        if all(node.commits for node in cluster.honest()):
            break
        cluster.fire(rng)
    if len(cluster.decisions()) > 1:
        return "FORK"
    return "OK" if all(node.commits for node in cluster.honest()) else "STUCK"
