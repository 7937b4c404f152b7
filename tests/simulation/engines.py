"""Engines alone: no disk, no clock, no trio, signatures left out; a network that a seed controls.

A twin is one key run by two engines, each behaving honestly: together they equivocate in every
way that honest code can. What it does not know: blocks; an id is a header with a marked field.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
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
from consensus.messages import Message, Proposal, Vote
from consensus.records import SignerRecord
from consensus.validators import ValidatorSet

CHAIN_ID = b"c" * 32
SIGNATURE = bytes(64)  # nobody checks it here


def key(number: int) -> bytes:
    """The key of member `number`, in the order of their names."""
    return bytes([number + 1]) * 32


class MarkedHeader(Header):
    """A header whose id is worked out once in all runs: it costs 30 µs, as much as a vote."""

    @cache  # noqa: B019  # few different headers are ever made
    def block_id(self) -> bytes:
        return super().block_id()


@cache
def header(proposer: bytes, height: int = 1, mark: int = 0) -> Header:
    """A header that differs from others by `mark`."""
    roots = [bytes([kind]) * 32 for kind in range(10)]
    roots[4] = mark.to_bytes(32, "big")  # txs_root
    return MarkedHeader(1, 1, CHAIN_ID, height, 1_000 + height, CHAIN_ID, proposer, *roots, 10**18)


@cache
def founded(powers: tuple[int, ...]) -> ValidatorSet:
    """The first set of members with these powers; a set never changes, so runs may share it."""
    return ValidatorSet.found({key(number): power for number, power in enumerate(powers)})


def with_signature(message: Vote | Proposal, signature: bytes) -> Vote | Proposal:
    """As `messages.signed`, three times as fast."""
    if isinstance(message, Vote):
        return Vote(
            message.kind,
            message.height,
            message.round,
            message.block_id,
            message.index,
            signature,
        )
    return Proposal(
        message.height,
        message.round,
        message.pol_round,
        message.header,
        message.polka,
        signature,
    )


class Node:
    """One engine with its pending timers and what it committed."""

    def __init__(self, name: int, me: bytes | None) -> None:
        self.name = name
        self.me = me
        self.mark = 0
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
                signed = with_signature(message, SIGNATURE)
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

    def __init__(self, validators: ValidatorSet, twins: Sequence[int] = ()) -> None:
        """`twins`: places of the members that run twice; the second ones stand at the end."""
        self.validators = validators
        self.owners = [*range(len(validators)), *twins]
        self.twins = frozenset(twins)
        keys = [member.key for member in validators.members]
        self.nodes = [Node(place, keys[owner]) for place, owner in enumerate(self.owners)]
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

    def deliver(self, rng: Random, side: Sequence[bool] | None = None) -> None:
        """Deliver until nothing is left within a side, also what is said meanwhile.

        `side` of each node, or None: all hear all. What goes across stays on the wires.
        """
        while self.hop(lambda one, other: side is None or side[one] == side[other], 1.0, rng):
            pass

    def hop(self, is_open: Callable[[int, int], bool], kept: float, rng: Random) -> bool:
        """Deliver what is on the wires now and may pass; of the rest a share is `kept`.

        Returns whether anything was delivered. In 30 % of all hops the order is shuffled.
        """
        waiting, self.wires = self.wires, []
        if rng.random() < 0.3:
            rng.shuffle(waiting)
        has_delivered = False
        for wire in waiting:
            sender, hearer, message = wire
            if is_open(sender, hearer):
                has_delivered = True
                node = self.nodes[hearer]
                node.give(Received(message))
                if node.outbox:
                    self.collect(node)
            elif kept == 1 or rng.random() < kept:
                self.wires.append(wire)
        return has_delivered

    def fire(self, rng: Random) -> None:
        """Every timer now pending runs out, in a seeded order of nodes."""
        order = list(self.nodes)
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

    def have_decided(self) -> bool:
        """Whether every honest node committed."""
        return all(node.commits for node in self.honest())

    def decisions(self) -> set[bytes]:
        """Ids that any honest node committed."""
        return {commit.block_id for node in self.honest() for commit in node.commits}
