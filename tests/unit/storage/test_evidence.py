"""A chain judges evidence by its own past: also while it catches up, and when it is made again."""

import shutil
from pathlib import Path

import pytest
from chain_kit import VALIDATORS
from evidence_kit import raw_double_vote
from stored_kit import GENESIS, Stored

from consensus.certificate import encode_certificate
from consensus.header import decode_header, encode_header
from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid
from node.ledger.wire.blocks import Block, Payload, encode_payload
from node.storage.chain import Chain
from node.storage.store import MemoryKV

WHO = VALIDATORS[0]


def accused(made: Stored, height: int, **fields: int) -> bytes:
    validators = made.chain.validators(height)
    assert validators is not None
    return raw_double_vote(WHO, validators, made.chain_id, height, **fields)


@pytest.fixture
def made(tmp_path: Path) -> Stored:
    """Three blocks; the third holds evidence of the second."""
    stored = Stored(tmp_path / "made")
    stored.block()
    stored.block(stored.pay())
    stored.block(evidence=(accused(stored, 2),))
    return stored


def test_past_heights_have_their_time_and_their_own_set(made: Stored) -> None:
    view = made.chain.view()
    for height in (1, 2, 3):
        past = view.find_past(height)
        assert past is not None
        assert past.time_ms == view.get_header(height).time_ms
        assert past.validators.index(WHO.key) is not None
        assert past.validators.hash() == view.get_header(height).validators_hash
    assert made.chain.tip.validators.index(WHO.key) is None
    assert view.find_past(0) is None
    assert view.find_past(4) is None


def test_offender_leaves_and_the_rest_goes_on(made: Stored) -> None:
    made.block(made.pay())
    header = made.chain.header(4)
    assert header is not None
    assert len(made.chain.tip.validators) == 3
    assert header.validators_hash == made.chain.tip.validators.hash()


def test_blocks_with_evidence_are_committed_under_one_sync(made: Stored, tmp_path: Path) -> None:
    """The height that the evidence speaks of is in the batch, not yet in the database."""
    made.block(made.pay())
    fresh = Chain.open(tmp_path / "fresh", GENESIS, store=MemoryKV())
    assert fresh.commit_many(made.decided) == made.chain.tip
    fresh.close()


def test_database_made_again_judges_the_evidence_again(made: Stored, tmp_path: Path) -> None:
    tip, home = made.chain.tip, tmp_path / "made"
    made.chain.close()
    shutil.rmtree(home / "db")
    again = Chain.open(home, GENESIS)
    assert again.tip == tip
    assert again.tip.validators.index(WHO.key) is None
    again.close()


def test_block_whose_evidence_does_not_hold_is_refused_with_its_code(made: Stored) -> None:
    parent, certificate = made.chain.tip, made.chain.certificate(3)
    assert certificate is not None
    assert parent.header is not None
    header = parent.header._replace(
        height=4,
        time_ms=parent.time_ms + 1,
        parent_id=parent.block_id,
        proposer=parent.validators.turn,
        validators_hash=parent.validators.hash(),
        history_root=decode_header(made.build().header).history_root,
        last_commit_hash=sha256(encode_certificate(certificate)),
    )
    for raw, code in (
        (accused(made, 2), "evidence.used"),
        (accused(made, 1, round=3), "evidence.punished"),
        (raw_double_vote(WHO, parent.validators, made.chain_id, 4), "evidence.height"),
        (b"\x91\x09", "evidence.kind"),
    ):
        with pytest.raises(Invalid, match=code):
            made.build(evidence=(raw,))
        payload = encode_payload(Payload(evidence=(raw,)))
        block = Block(encode_header(header), payload, encode_certificate(certificate))
        verdict = made.chain.execute(block)
        assert (verdict.is_valid, verdict.code) == (False, code)


def test_other_evidence_under_a_true_header_is_no_verdict_on_it(
    made: Stored, tmp_path: Path
) -> None:
    """Whoever hands us a block may put other bytes under a true header."""
    fresh = Chain.open(tmp_path / "fresh", GENESIS, store=MemoryKV())
    for block, certificate in made.decided[:2]:
        fresh.commit_many([(block, certificate)])
    honest = made.decided[2][0]
    validators = fresh.validators(1)
    assert validators is not None
    other = raw_double_vote(WHO, validators, made.chain_id, 1)
    false = Block(honest.header, encode_payload(Payload(evidence=(other,))), b"")
    false = false._replace(last_certificate=honest.last_certificate)
    verdict = fresh.execute(false)
    assert (verdict.is_valid, verdict.is_final, verdict.code) == (False, False, "block.header")
    assert fresh.execute(honest).is_valid
    fresh.close()
