"""From a frame to the engine: what is held back and until when, and what costs its sender."""

from pathlib import Path

import pytest
import trio
from replica_kit import Stage, id_of, playing

from consensus.certificate import PRECOMMIT, PREVOTE
from consensus.header import NIL, decode_header, encode_header
from consensus.messages import PROPOSAL, VOTE, Vote, encode_proposal, encode_vote
from consensus.params import ConsensusParams
from node.ledger.wire.blocks import Block, Payload, encode_payload
from node.peering.topics import encode_vote_message
from node.storage.executing import MissingBodies
from p2p.limits import TOPICS
from p2p.network import Verdict

PARAMS = ConsensusParams()
PROPOSE_S, TICK_S = 0.4, 0.25  # of the devnet's profile
STEADY = (10, 10)  # ms that every frame takes


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "stage", delay_ms=STEADY)


def ids(votes: list[Vote]) -> list[bytes]:
    return [vote.block_id for vote in votes]


def blamed(stage: Stage) -> list[tuple[bytes, str]]:
    """Whom the node under test blames from now on."""
    found: list[tuple[bytes, str]] = []
    stage.node.network.penalise = lambda peer, points, why: found.append((peer, why))
    return found


# ---- missing data is never "invalid"


async def test_proposal_without_its_block_is_held_back_and_the_timeout_speaks(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        proposer, block = stage.puppets[0], stage.block()
        await proposer.say(stage.proposal(block))
        await trio.sleep(PROPOSE_S - 0.05)
        assert proposer.votes() == []
        await trio.sleep(0.1)
        assert ids(proposer.votes()) == [NIL], "the timer, not a verdict"
        await proposer.say(block)
        await trio.sleep(0.1)
        assert ids(proposer.votes()) == [NIL], "no second prevote"
        await stage.all_vote(PREVOTE, id_of(block))
        assert ids(proposer.votes()) == [NIL, id_of(block)], "but its precommit"


async def test_block_that_comes_in_time_is_prevoted(autojump_clock: object, stage: Stage) -> None:
    async with playing(stage):
        proposer, block = stage.puppets[0], stage.block()
        await proposer.say(stage.proposal(block))
        await trio.sleep(PROPOSE_S - 0.1)
        await proposer.say(block)
        await trio.sleep(0.05)
        assert ids(proposer.votes()) == [id_of(block)]


async def test_block_is_asked_of_the_peer_that_named_it(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        proposer, block = stage.puppets[0], stage.block()
        proposer.serve_blocks(it=block)
        await proposer.say(stage.proposal(block))
        await trio.sleep(PROPOSE_S - 0.05)
        assert ids(proposer.votes()) == [id_of(block)]
        assert stage.counters["block_fetches"] == 1


async def test_proposal_whose_bundle_bodies_are_missing_is_held_back_until_they_come(
    autojump_clock: object, stage: Stage
) -> None:
    asked: list[tuple[bytes, ...]] = []
    missing = {b"m" * 32}

    async def fetch(names: tuple[bytes, ...], peers: list[bytes]) -> tuple[bytes, ...]:
        asked.append(tuple(peers))
        await trio.lowlevel.checkpoint()
        return tuple(missing)

    stage.node.fetch_bodies = fetch  # type: ignore[method-assign]
    async with playing(stage):
        proposer, block = stage.puppets[0], stage.block()
        stage.node.chain.missing_bodies = lambda block: tuple(missing)
        await proposer.say(stage.proposal(block), block)
        await trio.sleep(0.2)
        assert proposer.votes() == []
        assert asked[0][0] == proposer.peer, "the sender first"
        assert set(asked[0]) == {puppet.peer for puppet in stage.puppets}
        missing.clear()
        await trio.sleep(TICK_S)
        assert ids(proposer.votes()) == [id_of(block)], "tried again at the next tick"


async def test_bodies_that_vanish_before_execution_are_no_verdict_either(
    autojump_clock: object, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanish(*arguments: object) -> None:
        raise MissingBodies((b"m" * 32,))

    async with playing(stage):
        block = stage.block()
        monkeypatch.setattr("node.storage.chain.execute_next", vanish)
        await stage.puppets[0].say(stage.proposal(block), block)
        await trio.sleep(PROPOSE_S - 0.05)
        assert stage.puppets[0].votes() == []
        assert stage.counters["data_missing"] >= 1
        assert stage.counters.get("invalid_blocks", 0) == 0


async def test_false_bytes_under_a_true_header_are_no_verdict_on_the_block(
    autojump_clock: object, stage: Stage
) -> None:
    """Whoever hands us a block could otherwise make any proposal invalid."""
    async with playing(stage):
        liar, proposer, block = stage.puppets[1], stage.puppets[0], stage.block()
        proposer.serve_blocks(it=block)
        await proposer.say(stage.proposal(block))
        for payload in (encode_payload(Payload((b"tx",))), b"none"):
            await liar.say(block._replace(payload=payload))
            await trio.sleep(0.02)
        assert proposer.votes() == []
        assert stage.counters["false_bytes"] >= 1
        await trio.sleep(PROPOSE_S - 0.1)
        assert ids(proposer.votes()) == [id_of(block)]


async def test_invalid_block_is_prevoted_nil_at_once(autojump_clock: object, stage: Stage) -> None:
    async with playing(stage):
        good = stage.block()
        header = decode_header(good.header)._replace(history_root=b"x" * 32)
        bad = good._replace(header=encode_header(header))
        await stage.puppets[0].say(stage.proposal(bad), bad)
        await trio.sleep(0.1)
        assert ids(stage.puppets[0].votes()) == [NIL]
        assert stage.counters["invalid_blocks"] == 1


# ---- time


MARGIN_MS = 3  # for the rounding of both clocks


@pytest.mark.parametrize(
    ("ahead_ms", "is_timely"),
    [
        (PARAMS.precision_ms - MARGIN_MS, True),
        (PARAMS.precision_ms + MARGIN_MS, False),
        (-PARAMS.precision_ms - PARAMS.delay_ms + MARGIN_MS, True),
        (-PARAMS.precision_ms - PARAMS.delay_ms - MARGIN_MS, False),
    ],
)
async def test_first_offer_is_prevoted_when_its_time_is_near_ours(
    autojump_clock: object, stage: Stage, ahead_ms: int, is_timely: bool
) -> None:
    async with playing(stage):
        await trio.sleep(10)  # past the parent's time by more than any case
        block = stage.block(later_ms=ahead_ms + STEADY[0])  # as it arrives
        await stage.puppets[0].say(stage.proposal(block), block)
        await trio.sleep(0.1)
        assert ids(stage.puppets[0].votes()) == [id_of(block) if is_timely else NIL]


async def test_later_rounds_allow_a_later_arrival(autojump_clock: object, stage: Stage) -> None:
    """delay · (2 + round) / 2: a network that has slowed down must agree all the same."""
    async with playing(stage):
        await trio.sleep(12)
        behind_ms = PARAMS.precision_ms + PARAMS.delay_ms + PARAMS.delay_ms // 2
        for round, is_timely in ((0, False), (2, True)):
            for puppet in stage.puppets[:2]:
                await puppet.say(stage.vote(puppet.identity.key, PREVOTE, NIL, round=round))
            await trio.sleep(0.05)
            block = stage.block(round, later_ms=STEADY[0] - behind_ms)
            await stage.puppets[round].say(stage.proposal(block, round), block)
            await trio.sleep(0.1)
            expected = id_of(block) if is_timely else NIL
            assert ids(stage.puppets[0].votes())[-1] == expected


async def test_untimely_block_is_prevoted_when_it_is_offered_again_with_its_polka(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        block = stage.block(later_ms=20_000)
        await stage.puppets[0].say(stage.proposal(block), block)
        await trio.sleep(0.1)
        assert ids(stage.puppets[0].votes()) == [NIL]
        polka = stage.certificate(block, PREVOTE)
        for puppet in stage.puppets[:2]:
            await puppet.say(stage.vote(puppet.identity.key, PRECOMMIT, NIL, round=1))
        await trio.sleep(0.05)
        await stage.puppets[1].say(stage.proposal(block, 1, polka))
        await trio.sleep(0.1)
        assert ids(stage.puppets[0].votes()) == [NIL, id_of(block)]


# ---- before the height begins, and after


async def test_votes_before_the_height_are_counted_once_it_begins(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        one, two, _ = stage.puppets
        block = stage.block()
        await two.say(stage.vote(two.identity.key, PREVOTE, id_of(block)))
        await trio.sleep(5)
        assert one.votes() == [], "one member alone begins nothing"
        await one.say(stage.proposal(block), block)
        await one.say(stage.vote(one.identity.key, PREVOTE, id_of(block)))
        await trio.sleep(0.1)
        assert [vote.kind for vote in one.votes()] == [PREVOTE, PRECOMMIT], "two, and ours"


async def test_frames_of_the_next_height_wait_for_this_one_to_end(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        one, two, _ = stage.puppets
        first = stage.block()
        proof = stage.commit(first)
        for puppet in (one, two):
            await puppet.say(stage.vote(puppet.identity.key, PREVOTE, NIL, height=2))
        await trio.sleep(0.2)
        assert one.votes() == []
        await one.say(stage.proposal(first), first)
        await trio.sleep(0.05)
        await one.say(proof)
        await trio.sleep(0.05)
        assert stage.node.chain.height == 1
        await trio.sleep(1)
        assert one.statuses()[-1].height == 2, "called by what was held"
        assert one.statuses()[-1].prevotes.count(0) < len(one.statuses()[-1].prevotes)


async def test_late_precommits_make_the_next_blocks_certificate_fuller(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        block = stage.block()
        one, two, three = stage.puppets
        await one.say(stage.proposal(block), block)
        await trio.sleep(0.05)
        for puppet in (one, two):
            await puppet.say(stage.vote(puppet.identity.key, PREVOTE, id_of(block)))
            await puppet.say(stage.vote(puppet.identity.key, PRECOMMIT, id_of(block)))
        await trio.sleep(0.05)
        assert stage.node.chain.height == 1
        own = stage.node.chain.tip.certificate
        assert own is not None
        assert len(own.signers()) == 3
        await three.say(stage.vote(three.identity.key, PRECOMMIT, id_of(block)))
        for puppet in (one, two):
            await puppet.say(stage.vote(puppet.identity.key, PREVOTE, NIL, height=2))
        await trio.sleep(0.05)
        fuller = stage.node.replica._agreement.engine.last_certificate()
        assert fuller is not None
        assert len(fuller.signers()) == 4


async def test_early_messages_are_bounded(
    autojump_clock: object, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.peering.early.EARLY_MAX", 1)
    async with playing(stage):
        one = stage.puppets[0]
        await one.say(stage.vote(one.identity.key, PREVOTE, NIL))
        await one.say(stage.vote(one.identity.key, PREVOTE, b"x" * 32))
        await trio.sleep(0.1)
        assert stage.counters["early_full"] == 1


# ---- what nobody asked for, and what is false


async def test_block_that_nobody_named_is_dropped_unexecuted(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        await stage.puppets[0].say(stage.block())
        await trio.sleep(0.1)
        assert stage.counters["unasked_blocks"] == 1
        assert stage.node.chain.statistics().executed == 0


async def test_block_is_executed_once_however_often_it_comes(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        block = stage.block()
        await stage.puppets[0].say(stage.proposal(block), block, block)
        for puppet in stage.puppets[1:]:
            await puppet.say(stage.proposal(block), block)
        await trio.sleep(0.2)
        assert stage.node.chain.statistics().executed == 1


async def test_forged_or_malformed_message_costs_its_sender(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        found, one, two = blamed(stage), *stage.puppets[:2]
        forged = stage.vote(one.identity.key, PREVOTE, NIL)
        await two.say(Vote(PREVOTE, 1, 0, b"x" * 32, forged.index, forged.signature))
        await two.say(Block(b"none", b"", b""))
        await trio.sleep(0.1)
        assert found == [(two.peer, "malformed")] * 2
        assert stage.counters["refused"] == 2


async def test_message_far_ahead_makes_us_ask_for_blocks(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        one = stage.puppets[0]
        one.serve_blocks()
        for _ in range(3):
            block = stage.block()
            stage.commit(block)
            await trio.sleep(0.1)
        await one.say(stage.vote(one.identity.key, PREVOTE, NIL, height=4))
        await trio.sleep(1)
        assert stage.node.chain.height == 3
        assert stage.counters["caught_up"] == 3


# ---- gossip at the door


def judge(stage: Stage, data: bytes) -> Verdict:
    peer = stage.puppets[0].peer
    return stage.node.replica._hearing.judge(peer, peer, data)


async def test_gossip_is_judged_by_shape_and_height_only(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        for height, verdict in (
            (1, Verdict.ACCEPT),
            (2, Verdict.ACCEPT),
            (3, Verdict.IGNORE),
            (99, Verdict.IGNORE),
        ):
            vote = Vote(PREVOTE, height, 0, NIL, 0, bytes(64))
            assert judge(stage, encode_vote_message(VOTE, encode_vote(vote))) is verdict
        for malformed in (b"garbage", encode_vote_message(VOTE, bytes(110))):
            assert judge(stage, malformed) is Verdict.REJECT
        mismatched = encode_vote_message(PROPOSAL, bytes(111))
        assert judge(stage, mismatched) is Verdict.REJECT


async def test_gossiped_proposal_is_heard_as_one_of_a_stream(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        one, block = stage.puppets[0], stage.block()
        one.serve_blocks(it=block)
        for puppet in stage.puppets:
            puppet.network.subscribe("votes", lambda *_: Verdict.ACCEPT, TOPICS["votes"])
        await trio.sleep(2)
        data = encode_vote_message(PROPOSAL, encode_proposal(stage.proposal(block)))
        await one.network.publish("votes", data)
        await trio.sleep(PROPOSE_S)
        assert ids(one.votes()) == [id_of(block)]
