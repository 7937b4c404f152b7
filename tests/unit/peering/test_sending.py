"""Who is told what: answers to a status, their bounds, and the way that gossip stands in."""

from dataclasses import replace
from pathlib import Path

import pytest
import trio
from replica_kit import Puppet, Stage, id_of, playing

from consensus.certificate import PRECOMMIT, PREVOTE
from consensus.engine import STEP_DECIDED
from consensus.header import NIL
from consensus.messages import CERTIFICATE, PROPOSAL, STATUS, VOTE, Status, decode_body
from node.ledger.wire.blocks import Block
from node.peering.sending import ANSWERS_S
from node.peering.topics import decode_vote_message
from p2p.errors import Unreachable
from p2p.limits import TOPICS
from p2p.network import Verdict

NOTHING = Status(1, 0, 0, False, bytes(1), bytes(1))


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "stage", delay_ms=(10, 10))


async def decide(stage: Stage) -> Block:
    """Height 1, without any word of ours."""
    block = stage.block()
    proof = stage.certificate(block)
    await stage.puppets[0].say(stage.proposal(block), block)
    await trio.sleep(0.05)
    await stage.puppets[0].say(proof)
    await trio.sleep(0.05)
    assert stage.node.chain.height == 1
    stage.commit(block)
    return block


def answers(puppet: Puppet) -> list[int]:
    return [kind for _, kind, _ in puppet.heard]


async def ask(puppet: Puppet, status: Status) -> list[int]:
    """The kinds of frames that answer a status."""
    puppet.heard.clear()
    await puppet.say(status)
    await trio.sleep(0.05)
    return answers(puppet)


async def test_who_is_at_our_height_gets_what_it_lacks(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        one, two, three = stage.puppets
        block = stage.block()
        await one.say(stage.proposal(block), block)
        await one.say(stage.vote(one.identity.key, PREVOTE, id_of(block)))
        await trio.sleep(0.05)
        assert await ask(two, NOTHING) == [PROPOSAL, VOTE, VOTE]
        has_all = replace(NOTHING, has_proposal=True, prevotes=b"\x0f", precommits=b"\x0f")
        assert await ask(three, has_all) == []


async def test_who_is_behind_gets_the_certificate_of_its_height(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        first = await decide(stage)
        one, two, _ = stage.puppets
        assert await ask(one, NOTHING) == [CERTIFICATE]
        found = decode_body(CERTIFICATE, one.heard[0][2])
        assert (found.kind, found.height, found.block_id) == (PRECOMMIT, 1, id_of(first))  # type: ignore[union-attr]
        assert await ask(two, replace(NOTHING, step=STEP_DECIDED)) == [], "it has decided it"


async def test_who_is_far_behind_gets_our_status_too_and_may_fetch(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        await decide(stage)
        second = stage.block(1)
        proof = stage.commit(second)
        stage.puppets[1].serve_blocks()
        await stage.puppets[1].say(proof)
        await trio.sleep(2)
        assert stage.node.chain.height == 2
        one = stage.puppets[0]
        assert await ask(one, NOTHING) == [CERTIFICATE, STATUS]
        assert one.statuses()[-1].height == 2
        assert await ask(one, replace(NOTHING, height=0)) == [STATUS]


async def test_who_is_ahead_gets_nothing_and_is_asked_for_blocks(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        one = stage.puppets[0]
        one.serve_blocks()
        stage.commit(stage.block())
        assert await ask(one, replace(NOTHING, height=2)) == [], "one above is the next height"
        await trio.sleep(1)
        assert stage.node.chain.height == 1


async def test_peer_gets_four_answers_a_second(autojump_clock: object, stage: Stage) -> None:
    async with playing(stage):
        await decide(stage)
        one, two, _ = stage.puppets
        one.heard.clear()
        for _ in range(ANSWERS_S + 3):
            await one.say(NOTHING)
        await trio.sleep(0.05)
        assert answers(one) == [CERTIFICATE] * ANSWERS_S
        assert stage.counters["answers_dropped"] == 3
        assert await ask(two, NOTHING) == [CERTIFICATE], "each peer has its own share"
        await trio.sleep(1)
        assert await ask(one, NOTHING) == [CERTIFICATE]


async def test_status_is_told_each_tick_while_undecided_and_not_before(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        one = stage.puppets[0]
        await trio.sleep(5)
        assert answers(one) == [], "no height has begun"
        for puppet in stage.puppets[:2]:
            await puppet.say(stage.vote(puppet.identity.key, PREVOTE, NIL))
        await trio.sleep(1.1)
        told = one.statuses()
        assert len(told) == 4, "each quarter of a second"
        assert {status.height for status in told} == {1}


def listen(puppet: Puppet) -> list[int]:
    """The kinds of consensus frames that this puppet is told by gossip, from now on."""
    kinds: list[int] = []

    def note(forwarder: bytes, author: bytes, data: bytes) -> Verdict:
        kinds.append(decode_vote_message(data)[0])
        return Verdict.ACCEPT

    puppet.network.subscribe("votes", note, TOPICS["votes"])
    return kinds


async def test_votes_go_by_gossip_only_while_a_validator_has_no_stream(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        gossiped = listen(stage.puppets[0])
        await trio.sleep(2)
        block = stage.block()
        await stage.puppets[0].say(stage.proposal(block), block)
        await trio.sleep(0.1)
        assert len(stage.puppets[0].votes()) == 1
        assert gossiped == []
        stage.cluster.hub.crash(stage.puppets[2].peer)
        await trio.sleep(0.1)
        for puppet in stage.puppets[:2]:
            await puppet.say(stage.vote(puppet.identity.key, PREVOTE, id_of(block)))
        await trio.sleep(0.1)
        assert len(stage.puppets[0].votes()) == 2
        assert gossiped == [VOTE]


async def test_own_proposal_goes_by_gossip_too_for_followers(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        gossiped = listen(stage.puppets[0])
        await trio.sleep(2)
        for puppet in stage.puppets[:2]:
            await puppet.say(stage.vote(puppet.identity.key, PREVOTE, NIL, round=3))
        await trio.sleep(0.2)
        (ours,) = stage.puppets[0].proposals()
        assert gossiped == [PROPOSAL]
        await stage.all_vote(PRECOMMIT, ours.block_id, round=3)
        assert stage.node.chain.height == 1
        assert gossiped == [PROPOSAL, CERTIFICATE], "and what decided our own block"


async def test_lost_gossip_is_counted_and_nothing_else(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):

        async def fail(topic: str, data: bytes) -> None:
            raise Unreachable("nobody is there")

        stage.node.network.publish = fail
        for puppet in stage.puppets[:2]:
            await puppet.say(stage.vote(puppet.identity.key, PREVOTE, NIL, round=3))
        await trio.sleep(0.2)
        assert stage.counters["gossip_failed"] == 1
        assert len(stage.puppets[0].proposals()) == 1, "the streams go on"
