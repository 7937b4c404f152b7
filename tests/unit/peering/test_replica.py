"""The replica's duties in their order: durable before sent, decided before seen; and its ends."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from evidence_kit import raw_double_vote
from exchange_kit import at_once
from replica_kit import Stage, id_of, playing

from consensus.certificate import PRECOMMIT, PREVOTE
from consensus.header import NIL, decode_header, encode_header
from consensus.inputs import Step
from consensus.messages import VOTE
from node.ledger.wire.blocks import Block
from node.storage.errors import StorageError


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "stage")


class Diary:
    """What was done in a thread, by name, with the moment of its end."""

    def __init__(self, *, slow: str = "", seconds: float = 0.0) -> None:
        self.names: list[str] = []
        self.ended_s: dict[str, list[float]] = {}
        self._slow, self._seconds = slow, seconds

    async def run_blocking(self, function: Callable[..., Any], *arguments: Any) -> Any:
        name = function.__name__
        if name == self._slow:
            await trio.sleep(self._seconds)
        found = await at_once(function, *arguments)
        self.names.append(name)
        self.ended_s.setdefault(name, []).append(trio.current_time())
        return found


async def offer(stage: Stage, block: Block) -> None:
    """The proposer of round 0 offers `block`; it is executed when this returns."""
    await stage.puppets[0].say(stage.proposal(block), block)
    await trio.sleep(0.1)


def spoilt(block: Block) -> Block:
    """The same block of other validators than there are: no bytes could make it valid."""
    header = decode_header(block.header)._replace(validators_hash=b"x" * 32)
    return block._replace(header=encode_header(header))


# ---- durable before it is sent


async def test_no_vote_leaves_before_its_promise_is_durable(
    autojump_clock: object, stage: Stage
) -> None:
    diary = Diary(slow="persist", seconds=0.15)
    stage.node.run_blocking = diary.run_blocking
    async with playing(stage):
        block = stage.block()
        await offer(stage, block)
        await stage.all_vote(PREVOTE, id_of(block))
        await trio.sleep(1)
        for puppet in stage.puppets:
            votes = [(at_s, body[0]) for at_s, kind, body in puppet.heard if kind == VOTE]
            assert [kind for _, kind in votes[:2]] == [PREVOTE, PRECOMMIT]
            for (at_s, _), durable_s in zip(votes, diary.ended_s["persist"], strict=False):
                assert durable_s <= at_s <= durable_s + 0.021, "and then at once"


async def test_bodies_are_durable_before_the_precommit_that_names_them(
    autojump_clock: object, stage: Stage
) -> None:
    diary = Diary()
    stage.node.run_blocking = diary.run_blocking
    async with playing(stage):
        block = stage.block()
        await offer(stage, block)
        await stage.all_vote(PREVOTE, id_of(block))
        assert diary.names == ["begin", "execute", "persist", "sync", "persist"]


async def test_nil_precommit_waits_for_no_bodies(autojump_clock: object, stage: Stage) -> None:
    diary = Diary()
    stage.node.run_blocking = diary.run_blocking
    async with playing(stage):
        await offer(stage, stage.block(later_ms=60_000))
        await stage.all_vote(PREVOTE, NIL)
        assert [vote.block_id for vote in stage.puppets[0].votes()] == [NIL, NIL]
        assert "sync" not in diary.names


async def test_promise_that_cannot_be_kept_ends_the_task_and_nothing_leaves(
    autojump_clock: object, stage: Stage
) -> None:
    async def fail(function: Callable[..., Any], *arguments: Any) -> Any:
        if function.__name__ == "persist":
            raise StorageError("a promise could not be made durable", why="full", mend="space")
        return await at_once(function, *arguments)

    stage.node.run_blocking = fail

    async def play() -> None:
        async with playing(stage):
            await offer(stage, stage.block())
            await trio.sleep(5)

    with pytest.raises(BaseExceptionGroup) as ended:
        await play()
    assert ended.group_contains(StorageError)
    assert [puppet.votes() for puppet in stage.puppets] == [[], [], []]


# ---- decided before it is seen


async def test_height_ends_in_the_chain_then_in_the_journal_then_for_others(
    autojump_clock: object, stage: Stage
) -> None:
    """Told earlier, a crash in between would leave a height ended that nobody has."""
    order: list[str] = []
    async with playing(stage):
        node = stage.node
        commit, end = node.chain.commit, node.journal.end

        def note_commit(*arguments: Any) -> Any:
            tip = commit(*arguments)
            order.append(f"chain {node.chain.height}")
            return tip

        def note_end() -> None:
            order.append(f"journal {node.journal.height}")
            end()

        node.chain.commit, node.journal.end = note_commit, note_end
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                await node.replica.wait_height(1)
                order.append(f"others {node.replica.height}")

            nursery.start_soon(wait)
            block = stage.block()
            await offer(stage, block)
            await stage.all_vote(PREVOTE, id_of(block))
            await stage.all_vote(PRECOMMIT, id_of(block))
        assert order == ["chain 1", "journal 1", "others 1"]
        assert node.chain.certificate(1) is not None


# ---- a decision without any proposal


async def test_certificate_decides_once_its_block_was_fetched(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        block = stage.block()
        stage.puppets[1].serve_blocks(it=block)
        await stage.puppets[1].say(stage.certificate(block))
        await trio.sleep(1)
        assert stage.node.chain.tip.block_id == id_of(block)
        assert stage.counters["block_fetches"] == 1
        assert stage.puppets[0].votes() == [], "it had nothing left to say"


async def test_precommits_vote_by_vote_decide_once_their_block_was_fetched(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        block = stage.block()
        await stage.all_vote(PRECOMMIT, id_of(block))
        await trio.sleep(2)
        assert stage.node.chain.height == 0, "nobody has the block"
        stage.puppets[2].serve_blocks(it=block)
        await trio.sleep(2)
        assert stage.node.chain.tip.block_id == id_of(block)


async def test_slow_disk_does_not_stretch_the_timers_of_later_rounds(
    autojump_clock: object, tmp_path: Path
) -> None:
    """They follow what the network takes to its quorum, and our commit comes after that."""
    lengths = []
    for seconds in (0.0, 2.0):
        stage = Stage(tmp_path / str(seconds))
        stage.node.run_blocking = Diary(slow="commit", seconds=seconds).run_blocking
        async with playing(stage):
            block = stage.block()
            await offer(stage, block)
            await stage.all_vote(PREVOTE, id_of(block))
            await stage.all_vote(PRECOMMIT, id_of(block))
            await trio.sleep(seconds)
            assert stage.node.chain.height == 1
            pace = stage.node.replica._agreement._pace
            lengths.append(pace.length_ms(0, Step.PRECOMMIT))
    assert lengths[0] == lengths[1]


# ---- when it stops


async def test_disk_that_fails_at_a_commit_ends_the_task(
    autojump_clock: object, stage: Stage
) -> None:
    async def fail(function: Callable[..., Any], *arguments: Any) -> Any:
        if function.__name__ == "commit":
            raise StorageError("the block log cannot be synced", why="io", mend="another disk")
        return await at_once(function, *arguments)

    stage.node.run_blocking = fail

    async def play() -> None:
        async with playing(stage):
            block = stage.block()
            await offer(stage, block)
            await stage.all_vote(PRECOMMIT, id_of(block))
            await trio.sleep(5)

    with pytest.raises(BaseExceptionGroup) as ended:
        await play()
    assert ended.group_contains(StorageError)


async def test_decided_block_that_we_fail_to_execute_ends_the_task(
    autojump_clock: object, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a proposal our own failure is no verdict; on a decided block halting beats forking."""

    def fail(*arguments: Any) -> Any:
        raise ValueError("a fault of ours")

    async def play() -> None:
        async with playing(stage):
            block = stage.block()
            stage.commit(block)
            monkeypatch.setattr("node.storage.chain.execute_next", fail)
            await offer(stage, block)
            assert stage.puppets[0].votes() == [], "held back, not called invalid"
            assert stage.counters["own_failures"] >= 1
            await trio.sleep(0.5)
            assert [vote.block_id for vote in stage.puppets[0].votes()] == [NIL], "the timer spoke"
            stage.puppets[0].serve_blocks()
            await stage.puppets[0].say(stage.vote(stage.turns[0], PREVOTE, NIL, height=2))
            await trio.sleep(3)

    with pytest.raises(BaseExceptionGroup) as ended:
        await play()
    assert ended.group_contains(ValueError, match="a fault of ours")
    assert stage.node.replica.height == 0


async def test_full_disk_silences_us_in_the_middle_of_a_height_and_room_lets_us_vote_again(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        block = stage.block()
        await offer(stage, block)
        said = len(stage.puppets[0].votes())
        assert said == 1
        stage.node.has_room = False
        stage.node.replica.wake()
        await trio.sleep(0.1)
        assert stage.state == "waiting"
        await trio.sleep(20)
        assert len(stage.puppets[0].votes()) == said, "timers run out, and it says nothing"
        stage.puppets[0].serve_blocks(it=block)
        await stage.all_vote(PRECOMMIT, id_of(block))
        await trio.sleep(1)
        assert stage.node.replica.height == 1, "it follows"
        stage.node.has_room = True
        stage.node.replica.wake()
        await trio.sleep(0.1)
        assert stage.state == "validating"
        for puppet in stage.puppets:
            await puppet.say(stage.vote(puppet.identity.key, PREVOTE, NIL, height=2))
        await trio.sleep(5)
        assert any(vote.height == 2 for vote in stage.puppets[0].votes())


async def diverge(stage: Stage) -> None:
    """A quorum decides what execution refuses here."""
    bad = spoilt(stage.block())
    await stage.puppets[0].say(stage.proposal(bad), bad)
    await trio.sleep(0.1)
    await stage.all_vote(PRECOMMIT, id_of(bad))


async def test_quorum_for_an_invalid_block_stops_consensus_and_nothing_else(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        await diverge(stage)
        assert stage.state == "diverged"
        said = len(stage.puppets[0].votes())
        assert [vote.block_id for vote in stage.puppets[0].votes()] == [NIL]
        stage.node.replica.wake()
        await offer(stage, stage.block())
        await trio.sleep(40)
        assert stage.state == "diverged"
        assert len(stage.puppets[0].votes()) == said
        assert stage.node.replica.height == 0
        assert stage.node.chain.view().height == 0, "reads go on"


async def test_diverged_node_does_not_begin_to_vote_when_its_wait_is_over(
    autojump_clock: object, stage: Stage
) -> None:
    stage.node.settings = replace(stage.node.settings, doppelganger_wait_s=20.0)
    async with playing(stage):
        assert stage.state == "waiting"
        await diverge(stage)
        assert stage.state == "diverged"
        await trio.sleep(30)
        stage.node.replica.wake()
        await trio.sleep(5)
        assert stage.puppets[0].votes() == []


async def test_node_that_diverged_says_so_again_after_a_restart(
    autojump_clock: object, stage: Stage
) -> None:
    """Not an end without a word: the daemon serves reads, and `doctor` can tell why."""
    async with playing(stage):
        await diverge(stage)
        stage.node.crash()
        await trio.sleep(1)
        await stage.cluster.start(stage.node)
        await trio.sleep(5)
        assert stage.state == "diverged"


# ---- our key elsewhere


def word_from_elsewhere(stage: Stage, height: int = 1) -> Any:
    return stage.vote(stage.turns[3], PREVOTE, b"e" * 32, height=height)


async def test_key_that_speaks_elsewhere_signs_nothing_more_here(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        await stage.puppets[0].say(word_from_elsewhere(stage))
        await trio.sleep(0.1)
        assert stage.state == "doubled"
        block = stage.block()
        await offer(stage, block)
        await stage.all_vote(PRECOMMIT, id_of(block))
        assert stage.node.chain.height == 1, "it follows"
        assert stage.puppets[0].votes() == []


async def test_our_own_words_told_back_are_no_double(autojump_clock: object, stage: Stage) -> None:
    async with playing(stage):
        await offer(stage, stage.block())
        (ours,) = stage.puppets[0].votes()
        await stage.puppets[1].say(ours)
        await trio.sleep(0.1)
        assert stage.state == "validating"


async def test_double_heard_while_we_build_does_not_end_the_node(
    autojump_clock: object, stage: Stage
) -> None:
    """The block comes when the engine is a follower's already."""
    diary = Diary(slow="build", seconds=0.3)
    stage.node.run_blocking = diary.run_blocking
    async with playing(stage):
        for puppet in stage.puppets[:2]:
            await puppet.say(stage.vote(puppet.identity.key, PREVOTE, NIL, round=3))
        await trio.sleep(0.15)
        await stage.puppets[0].say(word_from_elsewhere(stage))
        await trio.sleep(1)
        assert diary.names.count("build") == 1
        assert stage.state == "doubled"
        assert stage.puppets[0].proposals() == []


# ---- a height begins


async def test_own_turn_makes_a_block_and_sends_it_after_its_proposal(
    autojump_clock: object, stage: Stage
) -> None:
    async with playing(stage):
        for puppet in stage.puppets[:2]:
            await puppet.say(stage.vote(puppet.identity.key, PREVOTE, NIL, round=3))
        await trio.sleep(0.3)
        heard = stage.puppets[2]
        (offered,) = heard.proposals()
        assert (offered.round, offered.pol_round) == (3, -1)
        assert heard.kinds()[:3] == [0, 1, 2], "proposal, block, our prevote for it"
        assert heard.votes()[0].block_id == offered.block_id


@pytest.mark.parametrize(("callers", "has_begun"), [(1, False), (2, True)])
async def test_height_begins_at_once_when_more_than_a_third_are_there(
    autojump_clock: object, stage: Stage, callers: int, has_begun: bool
) -> None:
    async with playing(stage):
        for puppet in stage.puppets[:callers]:
            await puppet.say(stage.vote(puppet.identity.key, PREVOTE, NIL))
        await trio.sleep(2)
        assert bool(stage.puppets[0].votes()) is has_begun
        if not has_begun:
            await trio.sleep(26)
            assert stage.puppets[0].votes(), "the heartbeat begins it too"


async def test_what_a_light_client_brings_is_told_on_once_and_only_if_it_holds(
    autojump_clock: object, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bytes] = []

    async def note(kind: int, body: bytes) -> None:
        told.append(body)

    async with playing(stage):
        chain, replica = stage.node.chain, stage.node.replica
        who = stage.puppets[0].identity
        monkeypatch.setattr(replica._sender, "publish", note)
        good = raw_double_vote(who, chain.tip.validators, chain.chain_id, 1)
        false = raw_double_vote(who, chain.tip.validators, b"o" * 32, 1)
        for raw in (good, good, false, b"noise"):
            await replica.accuse(raw)
    assert told == [good]
    assert len(stage.node.accusing) == 1
