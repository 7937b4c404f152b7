"""A decided block that is refused here: a liar is blamed, a fault of ours stops us and no other."""

from pathlib import Path
from typing import Any

import pytest
import trio
from replica_kit import Puppet, Stage, id_of, playing

from consensus.certificate import PRECOMMIT, PREVOTE, encode_certificate
from consensus.header import NIL, Header
from consensus.primitives.encoding import encode
from node.ledger.wire.blocks import Block, Payload, encode_block, encode_payload
from node.peering.doubts import Doubts
from node.storage import executing
from p2p.limits import PROTOCOLS
from p2p.network import PeerId


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "stage")


def compute_otherwise(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    """From now on execution gives another value of `field` here than everywhere else."""
    make = executing.make_header

    def make_otherwise(*arguments: Any, **more: Any) -> Header:
        header = make(*arguments, **more)
        return header._replace(**{field: b"o" * 32})

    monkeypatch.setattr(executing, "make_header", make_otherwise)


def note_blame(stage: Stage) -> list[tuple[PeerId, str]]:
    blamed: list[tuple[PeerId, str]] = []
    stage.node.network.penalise = lambda peer, points, why: blamed.append((peer, why))
    return blamed


def note_requests(stage: Stage) -> list[PeerId]:
    asked: list[PeerId] = []
    request = stage.node.network.request

    async def noted(peer: PeerId, *arguments: Any, **more: Any) -> bytes:
        asked.append(peer)
        return await request(peer, *arguments, **more)

    stage.node.network.request = noted
    return asked


async def show_ahead(stage: Stage, puppet: Puppet) -> None:
    """The puppet gives decided blocks, and speaks of the height after the first."""
    puppet.serve_blocks()
    await speak_ahead(stage, puppet)


async def speak_ahead(stage: Stage, puppet: Puppet) -> None:
    await puppet.say(stage.vote(puppet.identity.key, PREVOTE, NIL, height=2))
    await trio.sleep(3)


def test_doubts_of_one_height_at_a_time() -> None:
    doubts, block, other = Doubts(), Block(b"h", b"p", b"c"), Block(b"h", b"q", b"c")
    one, two = PeerId(b"1" * 32), PeerId(b"2" * 32)
    assert doubts.note(5, block, one) == {one}
    assert doubts.note(5, block, one) == {one}, "a peer has one word"
    assert doubts.note(5, other, two) == {two}, "of other bytes"
    assert doubts.note(5, block, two) == {one, two}
    assert doubts.note(6, block, two) == {two}


async def test_another_state_root_of_a_decided_block_stops_us_and_blames_nobody(
    autojump_clock: object, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with playing(stage):
        blamed = note_blame(stage)
        stage.commit(stage.block())
        compute_otherwise(monkeypatch, "state_root")
        served = note_requests(stage)
        await show_ahead(stage, stage.puppets[0])
        assert stage.state == "diverged"
        assert stage.counters["diverged"] == 1
        assert blamed == []
        asked = len(served)
        await trio.sleep(60)
        assert len(served) == asked, "nor is anybody asked again"
        assert stage.node.replica.height == 0
        assert stage.node.chain.view().height == 0, "reads go on"


async def test_another_state_root_of_a_proposal_is_refused_and_a_quorum_for_it_stops_us(
    autojump_clock: object, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with playing(stage):
        block = stage.block()
        compute_otherwise(monkeypatch, "state_root")
        await stage.puppets[0].say(stage.proposal(block), block)
        await trio.sleep(0.1)
        assert [vote.block_id for vote in stage.puppets[0].votes()] == [NIL]
        assert stage.state == "validating"
        await stage.all_vote(PRECOMMIT, id_of(block))
        assert stage.state == "diverged"


async def test_refused_bytes_of_more_than_a_third_are_our_fault(
    autojump_clock: object, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other codes give another root of the transactions, which says nothing of who is wrong."""
    async with playing(stage):
        blamed = note_blame(stage)
        stage.commit(stage.block())
        compute_otherwise(monkeypatch, "txs_root")
        first, second = stage.puppets[:2]
        await show_ahead(stage, first)
        assert stage.state == "validating", "one of four may lie"
        assert blamed == [(first.peer, "forged")]
        await show_ahead(stage, second)
        assert stage.state == "diverged"
        assert blamed == [(first.peer, "forged")], "the second is not blamed for our fault"
        assert stage.counters["catchup_doubtful"] == 1


async def test_false_payload_under_a_decided_header_is_its_givers_fault_alone(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        blamed = note_blame(stage)
        true = stage.block()
        proof = encode_certificate(stage.commit(true))
        false = true._replace(payload=encode_payload(Payload(evidence=(b"x",))))

        async def lie(peer: PeerId, body: bytes) -> bytes:
            return encode([(encode_block(false), proof)])

        liar, honest = stage.puppets[:2]
        liar.network.serve("blocks", lie, PROTOCOLS["blocks"])
        await speak_ahead(stage, liar)
        assert blamed == [(liar.peer, "forged")]
        assert stage.state == "validating"
        honest.serve_blocks()
        await speak_ahead(stage, honest)
        assert stage.node.replica.height == 1
        assert blamed == [(liar.peer, "forged")]
