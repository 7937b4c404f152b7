"""A chain judges evidence by its own past: also while it catches up, and when it is made again."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundle_kit import Party
from chain_kit import VALIDATORS
from evidence_kit import raw_attack, raw_double_vote
from snapshot_kit import Snapped
from stored_kit import GENESIS, Decided, Stored

from consensus.certificate import decode_certificate, encode_certificate
from consensus.header import decode_header, encode_header
from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid
from node.ledger.wire.blocks import Block, Payload, encode_payload
from node.storage.adopting import take_in
from node.storage.bundlestore import BundleStore
from node.storage.chain import Chain
from node.storage.pasts import MissingPast
from node.storage.snapshots import SnapshotStore
from node.storage.store import MemoryKV
from node.storage.views import View

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


def test_snapshot_between_an_offence_and_its_evidence_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under it, blocks that the node had are as never held, and nobody is there to ask."""
    made, snapshots = Stored(tmp_path), SnapshotStore(tmp_path / "snapshots")
    for height in (1, 2, 3, 4):
        made.block(made.pay())
        if height in (2, 4):
            snapshots.make(made.chain.view())
    made.block(evidence=(accused(made, 3),))
    tip = made.chain.tip
    made.chain.close()
    shutil.rmtree(tmp_path / "db")
    monkeypatch.setattr(BundleStore, "has_dropped", True)
    again = Chain.open(tmp_path, GENESIS)
    assert again.steps[0] == "database: loaded from the snapshot of block 2"
    assert again.tip == tip
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


# ---- lies to light clients

FALSE = b"\7" * 32


def attack(made: Stored, height: int, who: Sequence[Party] = VALIDATORS, **fields: Any) -> bytes:
    """A second block of a round, signed by these."""
    header, validators = made.chain.header(height), made.chain.validators(height)
    assert header is not None
    assert validators is not None
    return raw_attack(0, header, validators, who, **{"state_root": FALSE} | fields)


def test_own_side_of_a_past_height_is_the_commit_that_the_next_block_carries(
    tmp_path: Path,
) -> None:
    """This node holds a fuller one of its own, as it may; the tip has no other."""
    made = Stored(tmp_path, store=MemoryKV())
    for _ in range(2):
        block = made.build()
        made.decide(block)
        height, block_id = made.chain.height + 1, decode_header(block.header).block_id()
        fuller = decode_certificate(made.certify(height, block_id, signers=4))
        made.chain.commit(block_id, fuller)
    made.chain.commit_many([thinner(made)])
    view = made.chain.view()
    carried, tip = view.find_past(2), view.find_past(3)
    assert carried is not None
    assert tip is not None
    assert carried.decided is not None
    assert len(carried.decided.certificate.signers()) == 3
    held = view.certificate(2)
    assert held is not None
    assert len(held.signers()) == 4
    assert carried.decided.header == view.get_header(2)
    assert tip.decided is None
    own = view.find_decided(3)
    assert own is not None
    assert own.certificate == view.tip.certificate
    assert view.find_decided(4) is None


def thinner(made: Stored) -> Decided:
    """The next block with the thinnest commit of the tip in it."""
    chain = made.chain
    made.validators = chain.validators(chain.height) or chain.tip.validators
    commit = decode_certificate(made.certify(chain.height, chain.tip.block_id))
    block = chain.build(
        proposer=chain.tip.validators.turn,
        time_ms=chain.tip.time_ms + 1_000,
        payload=Payload(),
        last_certificate=commit,
    )
    return block, made.decide(block)


def test_nodes_that_hold_other_commits_judge_an_attack_alike(tmp_path: Path) -> None:
    """Each keeps the quorum that it saw; by its own it would name other members."""
    made = Stored(tmp_path / "made", store=MemoryKV())
    made.block()
    made.block()
    made.block(evidence=(attack(made, 1, VALIDATORS),))
    other = Stored(tmp_path / "other", store=MemoryKV())
    for block, certificate in made.decided:
        other.validators = other.chain.tip.validators
        fuller = other.certify(certificate.height, certificate.block_id, signers=4)
        other.chain.commit_many([(block, decode_certificate(fuller))])
    assert other.chain.certificate(1) != made.chain.certificate(1)
    assert other.chain.tip.header == made.chain.tip.header
    assert len(made.chain.tip.validators) == 1, "the fourth did not sign what the chain carries"


def test_attack_in_a_block_is_judged_again_by_a_database_made_again(tmp_path: Path) -> None:
    made = Stored(tmp_path / "made")
    for _ in range(3):
        made.block(made.pay())
    made.block(evidence=(attack(made, 2, VALIDATORS[:3], params_hash=FALSE),))
    fresh = Chain.open(tmp_path / "fresh", GENESIS, store=MemoryKV())
    assert fresh.commit_many(made.decided) == made.chain.tip
    tip = made.chain.tip
    made.chain.close()
    shutil.rmtree(tmp_path / "made" / "db")
    assert Chain.open(tmp_path / "made", GENESIS).tip == tip
    assert len(tip.validators) == 1


# ---- homes that began from a snapshot


@pytest.fixture
def young(tmp_path: Path) -> Iterator[Chain]:
    """A chain that stands on a snapshot of its source, and has taken the blocks after it."""
    snapped = Snapped(tmp_path / "snapped", behind=3)
    home = tmp_path / "home"
    store = SnapshotStore(home / "snapshots")
    snapped.put_part(store)
    take_in(home, store, snapped.manifest)
    chain = Chain.open(home, GENESIS)
    chain.commit_many(snapped.made.decided[snapped.height :])
    yield chain
    chain.close()


def test_height_before_the_snapshot_is_no_damage_and_no_verdict(young: Chain) -> None:
    """Others hold it and may take evidence of it: to say it is none would be to fork."""
    view = young.view()
    assert view.earliest > 2
    for height in range(1, view.earliest - 1):
        with pytest.raises(MissingPast):
            view.find_past(height)
    for height in (view.earliest - 1, view.earliest):
        past = view.find_past(height)
        assert past is not None
        assert past.decided is not None, "the block behind it is here"
    assert view.find_past(view.height + 1) is None
    assert view.find_past(0) is None


def test_block_that_accuses_of_a_missing_height_is_not_executed(young: Chain) -> None:
    raw = raw_double_vote(WHO, young.tip.validators, young.chain_id, 1)
    with pytest.raises(MissingPast):
        young.build(
            proposer=young.tip.validators.turn,
            time_ms=young.tip.time_ms + 1,
            payload=Payload(evidence=(raw,)),
            last_certificate=young.certificate(young.height),
        )


def test_height_that_is_too_old_for_evidence_need_not_be_held(young: Chain) -> None:
    """Then nobody may take it, whatever its time was."""
    view = young.view()
    age_ms = view.state().parameter("evidence_age_ms_max")
    first_ms = view.get_header(view.earliest - 1).time_ms
    for later_ms, is_sure in ((0, False), (1, True)):
        tip = replace(view.tip, time_ms=first_ms + age_ms + later_ms)
        later = View(view.reader, tip, young._log, young.bundles, young.pasts)
        if is_sure:
            assert later.find_past(1) is None
        else:
            with pytest.raises(MissingPast):
                later.find_past(1)
