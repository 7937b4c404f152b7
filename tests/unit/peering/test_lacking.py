"""Bytes that name what nobody shows: whoever gives them starves nobody, and is not blamed."""

from pathlib import Path

import pytest
import trio
from replica_kit import Puppet, Stage, id_of, playing

from consensus.certificate import PRECOMMIT, PREVOTE, encode_certificate
from consensus.header import NIL
from consensus.primitives.encoding import U8, U32, U63, Record, decode, encode
from node.ledger.wire.blocks import Block, Payload, encode_block, encode_payload
from p2p.limits import PROTOCOLS
from p2p.network import PeerId

QUESTION = Record(U8, U63, U32)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "stage")


def naming_nothing(block: Block) -> Block:
    """The same header over a bundle that does not exist."""
    return block._replace(payload=encode_payload(Payload(bundles=(b"n" * 32,))))


class Liar:
    """Serves true headers and certificates over a payload that names nothing; counts questions."""

    def __init__(self, puppet: Puppet) -> None:
        self.puppet, self.asked = puppet, 0
        self.given: list[tuple[bytes, bytes]] = []
        puppet.network.serve("blocks", self.answer, PROTOCOLS["blocks"])

    async def answer(self, peer: PeerId, body: bytes) -> bytes:
        self.asked += 1
        _, start, count = decode(body, QUESTION, 64, "question")
        return encode(self.given[start - 1 : start - 1 + count])


async def speak(stage: Stage, puppet: Puppet) -> None:
    """As one that is far ahead, for ever."""
    while True:
        await puppet.say(stage.vote(puppet.identity.key, PREVOTE, NIL, height=4))
        await trio.sleep(1)


async def test_decided_blocks_that_name_nothing_do_not_keep_us_from_an_honest_peer(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage), trio.open_nursery() as nursery:
        blamed: list[str] = []
        stage.node.network.penalise = lambda peer, points, why: blamed.append(why)
        first, honest = sorted(stage.puppets[:2], key=lambda puppet: puppet.peer)
        liar = Liar(first)
        for height in range(1, 4):
            block = stage.block()
            proof = encode_certificate(stage.commit(block))
            said = naming_nothing(block) if height == 1 else block
            liar.given.append((encode_block(said), proof))
            await trio.sleep(1)
        honest.serve_blocks()
        nursery.start_soon(speak, stage, liar.puppet)
        await trio.sleep(5)
        assert stage.node.replica.height == 0
        nursery.start_soon(speak, stage, honest)
        await trio.sleep(60)
        assert stage.node.replica.height == 3
        assert blamed == []
        assert stage.counters["catchup_lacking"] == 1
        nursery.cancel_scope.cancel()


async def test_who_lacks_for_ever_is_asked_ever_more_seldom(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage), trio.open_nursery() as nursery:
        liar = Liar(stage.puppets[0])
        block = stage.block()
        proof = encode_certificate(stage.commit(block))
        liar.given.append((encode_block(naming_nothing(block)), proof))
        nursery.start_soon(speak, stage, liar.puppet)
        await trio.sleep(600)
        assert stage.counters["catchup_lacking"] == 4, "at once, after 60, 120, 240 s"
        assert liar.asked <= 10
        nursery.cancel_scope.cancel()


async def test_first_bytes_of_a_proposal_that_name_nothing_do_not_shut_out_the_true_ones(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        block = stage.block()
        honest, liar, third = stage.puppets
        honest.serve_blocks(it=block)
        third.serve_blocks(it=block)
        await honest.say(stage.proposal(block))
        await trio.sleep(0.05)
        await liar.say(naming_nothing(block))
        await trio.sleep(0.05)
        await honest.say(block)
        await trio.sleep(0.2)
        await stage.all_vote(PREVOTE, id_of(block))
        await stage.all_vote(PRECOMMIT, id_of(block))
        await trio.sleep(10)
        assert stage.node.replica.height == 1
        assert stage.counters["lacking_forgotten"] == 1
