"""Blocks worked on beside the replica's task: whom to ask, once per id, and our own in our turn."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from bundle_kit import party
from replica_kit import Stage, playing
from simulation.engines import header

from consensus.certificate import PREVOTE
from consensus.header import NIL, encode_header
from consensus.messages import Proposal
from consensus.primitives.errors import Invalid
from node.ledger.wire.blocks import Block, Payload, encode_payload
from node.peering.execution import Execution
from node.peering.inbox import Inbox, Means
from node.peering.undecided import Undecided, Waiting
from p2p.network import PeerId

PEERS = [PeerId(party(f"validator node {i}").key) for i in range(6)]
SOURCE = PeerId(party("source").key)
BLOCK_ID = b"b" * 32
STEADY = (10, 10)  # ms that every frame takes


class Desk:
    """An execution whose tasks are only noted, and asks of peers too."""

    def __init__(self) -> None:
        self.spawned: list[tuple[Any, ...]] = []
        self.asked: list[list[PeerId]] = []
        self.undecided = Undecided()
        counters: Counter[str] = Counter()
        means = Means(
            network=None,  # type: ignore[arg-type]
            chain=SimpleNamespace(height=6),  # type: ignore[arg-type]
            inbox=Inbox(counters),
            counters=counters,
            now_ms=lambda: 0,
            spawn=lambda *task: self.spawned.append(task),
            run_blocking=None,  # type: ignore[arg-type]
        )
        self.execution = Execution(
            means,
            undecided=self.undecided,
            proposer=None,  # type: ignore[arg-type]
            catchup=self,  # type: ignore[arg-type]
            fetch_bodies=None,  # type: ignore[arg-type]
            fetch_past=None,  # type: ignore[arg-type]
            find_validators=lambda: list(PEERS),
        )

    async def fetch_block(self, block_id: bytes, peers: list[PeerId]) -> None:
        await trio.lowlevel.checkpoint()
        self.asked.append(peers)

    async def seek(self) -> list[PeerId]:
        """One more search for the block that nobody has; whom it asked, in order."""
        self.undecided.at_work.clear()
        self.execution.seek(BLOCK_ID)
        function, *arguments = self.spawned.pop()
        await function(*arguments)
        return self.asked[-1]


def test_one_task_is_at_work_on_a_block() -> None:
    desk = Desk()
    desk.execution.seek(BLOCK_ID)
    desk.execution.seek(BLOCK_ID)
    block = Block(encode_header(header(b"p" * 32, 7)), b"", b"")
    desk.execution.start(BLOCK_ID, block, None)
    assert len(desk.spawned) == 1
    desk.execution.seek(b"c" * 32)
    assert len(desk.spawned) == 2


def test_judged_block_is_not_sought_any_more() -> None:
    desk = Desk()
    desk.undecided.judge(BLOCK_ID, False)
    desk.execution.seek(BLOCK_ID)
    assert desk.spawned == []


async def test_who_named_a_block_is_asked_for_it_first() -> None:
    desk = Desk()
    offered = Proposal(7, 0, -1, header(b"p" * 32, 7), None, bytes(64))
    desk.undecided.wait(BLOCK_ID, Waiting(offered, True, SOURCE))
    assert (await desk.seek())[0] == SOURCE


async def test_every_validator_comes_to_be_asked_first() -> None:
    """Four are asked at a time: the same four, if they are down, must not be all that we try."""
    desk = Desk()
    asked = [await desk.seek() for _ in PEERS]
    assert {peers[0] for peers in asked} == set(PEERS)
    assert all(sorted(peers) == sorted(PEERS) for peers in asked)


# ---- our own block


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "stage", delay_ms=STEADY)


async def our_turn(stage: Stage) -> Proposal:
    for puppet in stage.puppets[:2]:
        await puppet.say(stage.vote(puppet.identity.key, PREVOTE, NIL, round=3))
    await trio.sleep(0.2)
    (ours,) = stage.puppets[0].proposals()
    return ours


async def test_payload_that_breaks_a_rule_is_given_up_for_an_empty_one(
    autojump_clock: object, stage: Stage
) -> None:
    def refuse(*arguments: object) -> None:
        raise Invalid("tx.any")

    async with playing(stage):
        stage.node.replica._proposer.build = refuse  # type: ignore[assignment]
        stage.node.pay(0)
        ours = await our_turn(stage)
        assert stage.counters["own_refused"] == 1
        block = stage.node.chain.executed_block(ours.block_id)
        assert block is not None
        assert block.payload == encode_payload(Payload())


async def test_clock_behind_the_parents_waits_until_it_is_past_it(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        behind_ms = stage.node.now_ms() - stage.node.chain.tip.time_ms
        stage.node.skew_ms = -behind_ms - 100
        past_s = trio.current_time() + 0.1
        ours = await our_turn(stage)
        assert ours.header.time_ms > stage.node.chain.tip.time_ms
        at_s = next(at_s for at_s, kind, _ in stage.puppets[0].heard if kind == 0)
        assert at_s >= past_s + STEADY[0] / 1_000, "it was not dated ahead, but waited for"
