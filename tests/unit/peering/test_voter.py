"""What a key may sign and when, over a real journal; and how its words are known as its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from bundle_kit import party
from exchange_kit import at_once
from simulation.engines import CHAIN_ID, header

from consensus.certificate import PRECOMMIT, PREVOTE, make_certificate
from consensus.header import NIL, encode_header
from consensus.inputs import Received
from consensus.messages import Proposal, Vote, signed, tag_of, verify_vote
from consensus.primitives.digest import signing_bytes
from consensus.records import SIGNED_PROPOSAL, SignerRecord
from consensus.validators import ValidatorSet
from node.ledger.wire.blocks import Block
from node.peering.voter import Validator, Voter
from node.storage.journal import DoubleSign, open_journal
from node.storage.signer import create_signer

US, OTHER = party("voter"), party("other voter")
SET = ValidatorSet.found({US.key: 1, OTHER.key: 1})
PLACE = SET.index(US.key)
HEIGHT = 7
BLOCK_ID = b"b" * 32
assert PLACE is not None


def sign(tag: bytes, body: bytes) -> bytes:
    return US.sign(signing_bytes(tag, CHAIN_ID, body))


class Desk:
    """A voter with its journal in a folder; `again` is the same after a crash."""

    def __init__(self, home: Path) -> None:
        self.home = home
        create_signer(home / "signer", CHAIN_ID, US.key)
        self.synced = 0
        self._open()

    def _open(self) -> None:
        self.journal = open_journal(self.home, CHAIN_ID, US.key)
        self.voter = Voter(
            Validator(US.key, self.journal, sign), sync_bodies=self._sync, run_blocking=at_once
        )

    def _sync(self) -> None:
        self.synced += 1

    def again(self) -> Voter:
        self.journal.close()
        self._open()
        return self.voter


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.journal.close()


def vote(kind: int = PREVOTE, block_id: bytes = BLOCK_ID, round: int = 0) -> Vote:
    return Vote(kind, HEIGHT, round, block_id, PLACE or 0)


def record_of(message: Vote | Proposal) -> SignerRecord:
    kind = message.kind if isinstance(message, Vote) else SIGNED_PROPOSAL
    return SignerRecord(kind, HEIGHT, message.round, message.body())


async def say(voter: Voter, message: Vote | Proposal) -> Vote | Proposal:
    await voter.persist(record_of(message))
    return voter.sign(message)


# ---- whether it may sign


async def test_key_signs_once_its_wait_is_over_and_the_chain_has_passed_its_record(
    desk: Desk,
) -> None:
    desk.voter.votes_from_s = 35.0
    assert desk.voter.signing_key(HEIGHT, 34.9) is None
    assert desk.voter.signing_key(HEIGHT, 35.0) == US.key
    await desk.voter.recover(HEIGHT)
    await say(desk.voter, vote())
    assert desk.voter.signing_key(HEIGHT - 1, 35.0) is None, "a restored chain"
    assert desk.voter.signing_key(HEIGHT, 35.0) == US.key
    desk.voter.is_doubled = True
    assert desk.voter.signing_key(HEIGHT, 99.0) is None
    assert desk.voter.key == US.key, "still known by it"


async def test_node_without_a_key_says_nothing_and_needs_no_journal() -> None:
    voter = Voter(None, sync_bodies=lambda: None, run_blocking=at_once)
    assert (voter.key, voter.signing_key(HEIGHT, 99.0)) == (None, None)
    assert await voter.has_begun(HEIGHT) is False
    assert await voter.recover(HEIGHT) is None
    voter.note(Received(vote()))
    voter.note_block(HEIGHT, Block(b"", b"", b""))
    voter.end(HEIGHT)
    assert not voter.is_double(signed(vote(), bytes(64)), SET)


# ---- promises


async def test_word_is_signed_only_after_its_promise(desk: Desk) -> None:
    await desk.voter.recover(HEIGHT)
    with pytest.raises(AssertionError):
        desk.voter.sign(vote())
    said = await say(desk.voter, vote())
    assert isinstance(said, Vote)
    verify_vote(said, SET, CHAIN_ID)
    with pytest.raises(AssertionError):
        desk.voter.sign(vote(block_id=NIL))


async def test_promise_is_on_the_disk_when_persist_returns(desk: Desk) -> None:
    await desk.voter.recover(HEIGHT)
    await desk.voter.persist(record_of(vote()))
    recovered = await desk.again().recover(HEIGHT)
    assert recovered is not None
    assert recovered.signed == record_of(vote())


async def test_second_body_for_one_place_ends_the_task(desk: Desk) -> None:
    await desk.voter.recover(HEIGHT)
    await say(desk.voter, vote())
    with pytest.raises(DoubleSign):
        await desk.voter.persist(record_of(vote(block_id=NIL)))


@pytest.mark.parametrize(
    ("message", "syncs"),
    [(vote(PREVOTE), 0), (vote(PRECOMMIT, NIL), 0), (vote(PRECOMMIT), 1)],
    ids=["prevote", "nil precommit", "precommit"],
)
async def test_only_a_precommit_for_a_block_makes_its_bodies_durable(
    desk: Desk, message: Vote, syncs: int
) -> None:
    await desk.voter.recover(HEIGHT)
    await desk.voter.persist(record_of(message))
    assert desk.synced == syncs


# ---- the journal of a height


async def test_height_has_begun_when_anything_was_heard_or_said_of_it(desk: Desk) -> None:
    assert not await desk.voter.has_begun(HEIGHT)
    await desk.voter.recover(HEIGHT)
    heard = Received(signed(vote(), bytes(64)), valid=False, timely=False)
    desk.voter.note(heard)
    desk.voter.note_block(HEIGHT, Block(b"header", b"payload", b""))
    assert await desk.again().has_begun(HEIGHT)
    recovered = await desk.voter.recover(HEIGHT)
    assert recovered is not None
    (noted,) = recovered.messages
    assert (noted.valid, noted.timely) == (False, False)
    assert len(recovered.blocks) == 1


async def test_words_of_another_height_are_not_of_this_journal(desk: Desk) -> None:
    await desk.voter.recover(HEIGHT)
    desk.voter.note(Received(Vote(PRECOMMIT, HEIGHT - 1, 0, BLOCK_ID, 0, bytes(64))))
    desk.voter.note_block(HEIGHT + 1, Block(b"header", b"payload", b""))
    desk.voter.end(HEIGHT - 1)
    recovered = await desk.again().recover(HEIGHT)
    assert recovered is not None
    assert recovered.is_empty
    assert not recovered.is_ended
    desk.voter.end(HEIGHT)
    recovered = await desk.again().recover(HEIGHT)
    assert recovered is not None
    assert recovered.is_ended


async def test_promises_are_said_again_with_the_same_bytes(desk: Desk) -> None:
    await desk.voter.recover(HEIGHT)
    block = Block(encode_header(header(US.key, HEIGHT)), b"", b"")
    offered = Proposal(HEIGHT, 0, -1, header(US.key, HEIGHT))
    said = [await say(desk.voter, one) for one in (offered, vote(PREVOTE, offered.block_id))]
    recovered = await desk.again().recover(HEIGHT)
    assert recovered is not None
    blocks = {offered.block_id: block}
    again = [desk.voter.say_again(one, SET, blocks.get) for one in recovered.promises]
    assert again == said


async def test_proposal_whose_block_or_polka_is_lost_is_not_said_again(desk: Desk) -> None:
    await desk.voter.recover(HEIGHT)
    made = header(US.key, HEIGHT)
    offered = Proposal(HEIGHT, 1, -1, made)
    await desk.voter.persist(record_of(offered))
    assert desk.voter.say_again(record_of(offered), SET, lambda block_id: None) is None
    block = Block(encode_header(made), b"", b"")
    old = record_of(Proposal(HEIGHT, 1, 0, made))
    assert desk.voter.say_again(old, SET, lambda block_id: block) is None


async def test_word_of_a_key_that_left_the_set_is_not_said_again(desk: Desk) -> None:
    await desk.voter.recover(HEIGHT)
    await desk.voter.persist(record_of(vote()))
    others = ValidatorSet.found({OTHER.key: 1})
    assert desk.voter.say_again(record_of(vote()), others, lambda block_id: None) is None


# ---- our key elsewhere


def from_elsewhere(block_id: bytes = b"e" * 32) -> Vote:
    return Vote(PREVOTE, HEIGHT, 0, block_id, PLACE or 0, bytes(64))


async def test_word_of_our_key_that_we_never_said_is_a_double(desk: Desk) -> None:
    await desk.voter.recover(HEIGHT)
    assert desk.voter.is_double(from_elsewhere(), SET)
    said = await say(desk.voter, vote())
    assert not desk.voter.is_double(said, SET)
    assert desk.voter.is_double(from_elsewhere(), SET), "another body, though we have spoken"
    foreign = Vote(PREVOTE, HEIGHT, 0, b"e" * 32, 1 - (PLACE or 0), bytes(64))
    assert not desk.voter.is_double(foreign, SET)
    proof = make_certificate(PREVOTE, HEIGHT, 0, b"e" * 32, {PLACE or 0: bytes(64)}, 2)
    assert not desk.voter.is_double(proof, SET), "who signed it is told by evidence"


async def test_what_we_said_before_a_restart_is_no_double(desk: Desk) -> None:
    await desk.voter.recover(HEIGHT)
    prevote = await say(desk.voter, vote(PREVOTE))
    precommit = await say(desk.voter, vote(PRECOMMIT, NIL))
    voter = desk.again()
    assert not voter.is_double(precommit, SET), "the last is known before the journal is read"
    await voter.recover(HEIGHT)
    assert not voter.is_double(prevote, SET)


async def test_proposal_of_our_turn_that_we_never_made_is_a_double(desk: Desk) -> None:
    await desk.voter.recover(HEIGHT)
    ours = next(round for round in range(2) if SET.proposer(round) == US.key)
    offered = Proposal(HEIGHT, ours, -1, header(US.key, HEIGHT), None, bytes(64))
    assert desk.voter.is_double(offered, SET)
    assert not desk.voter.is_double(
        Proposal(HEIGHT, ours + 1, -1, header(OTHER.key, HEIGHT), None, bytes(64)), SET
    )


def test_tags_keep_votes_and_proposals_apart() -> None:
    assert tag_of(vote()) != tag_of(Proposal(HEIGHT, 0, -1, header(US.key, HEIGHT)))
