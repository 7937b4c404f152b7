"""The pool of evidence: judged once, cheaply first; bounded; nothing in it that no block takes."""

from pathlib import Path

import pytest
from bundle_kit import party
from chain_kit import VALIDATORS
from evidence_kit import raw_double_vote
from stored_kit import Stored

from node.ledger.wire.blocks import EVIDENCE_MAX
from node.peering import accusing
from node.peering.accusing import PER_OFFENDER_MAX, Accusing
from node.storage.store import MemoryKV
from p2p.network import Verdict

WHO, OTHER = VALIDATORS[:2]


@pytest.fixture
def made(tmp_path: Path) -> Stored:
    stored = Stored(tmp_path, store=MemoryKV())
    stored.block()
    stored.block()
    return stored


@pytest.fixture
def pool(made: Stored) -> Accusing:
    return Accusing(chain_id=made.chain_id, get_view=made.chain.view)


def accused(made: Stored, who=WHO, height: int = 1, **fields: int) -> bytes:
    return raw_double_vote(who, made.chain.tip.validators, made.chain_id, height, **fields)


def test_good_evidence_is_pooled_told_on_and_proposed(made: Stored) -> None:
    woken = []
    pool = Accusing(
        chain_id=made.chain_id, get_view=made.chain.view, on_pooled=lambda: woken.append(1)
    )
    raw = accused(made)
    assert pool.judge(raw) == Verdict.ACCEPT
    assert (woken, pool.pick()) == ([1], [raw])
    assert pool.judge(raw) == Verdict.IGNORE
    assert woken == [1]


def test_evidence_of_the_open_height_waits_until_it_is_decided(made, pool) -> None:
    """Only then has it a header, and so a time."""
    raw = accused(made, height=3)
    assert pool.judge(raw) == Verdict.ACCEPT
    assert pool.pick() == []
    made.block()
    pool.review()
    assert pool.pick() == [raw]
    made.block(evidence=(raw,))
    pool.review()
    assert len(pool) == 0


@pytest.mark.parametrize(
    ("make", "verdict", "code"),
    [
        (lambda m: accused(m, height=4), Verdict.IGNORE, "evidence.height"),
        (lambda m: b"\x93\x01", Verdict.REJECT, "evidence.malformed"),
        (lambda m: bytes(65_537), Verdict.REJECT, "evidence.too_large"),
        (lambda m: b"\x92\x07\x00", Verdict.REJECT, "evidence.kind"),
        (lambda m: accused(m, party("stranger")), Verdict.REJECT, "vote.signature"),
    ],
)
def test_what_no_block_could_hold_is_not_told_on(made, pool, make, verdict, code) -> None:
    assert pool.judge(make(made)) == verdict
    assert pool.counters[code] == 1
    assert len(pool) == 0


def test_whom_a_block_has_punished_is_accused_no_more(made, pool) -> None:
    raw, spare, other = accused(made), accused(made, round=1), accused(made, OTHER)
    for piece in (raw, spare, other):
        assert pool.judge(piece) == Verdict.ACCEPT
    members = made.chain.tip.validators
    made.block(evidence=(raw,))
    pool.review()
    assert pool.pick() == [other]
    again = raw_double_vote(WHO, members, made.chain_id, 2)
    for piece, code in ((raw, "used"), (spare, "punished"), (again, "punished")):
        before = pool.counters[f"evidence.{code}"]
        assert pool.judge(piece) == Verdict.IGNORE
        assert pool.counters[f"evidence.{code}"] == before + 1


def test_one_offender_has_few_places_and_costs_no_signature_beyond(made, pool, monkeypatch) -> None:
    for round in range(PER_OFFENDER_MAX):
        assert pool.judge(accused(made, round=round)) == Verdict.ACCEPT
    one_more = accused(made, round=PER_OFFENDER_MAX)
    monkeypatch.setattr(accusing, "verify_evidence", None)
    assert pool.judge(one_more) == Verdict.IGNORE
    assert pool.counters["evidence.full"] == 1


def test_pool_holds_only_so_many_pieces_and_bytes(made, pool, monkeypatch) -> None:
    raws = [accused(made, who) for who in VALIDATORS]
    monkeypatch.setattr(accusing, "PIECES_MAX", 2)
    assert [pool.judge(raw) for raw in raws[:3]] == [Verdict.ACCEPT] * 2 + [Verdict.IGNORE]
    monkeypatch.setattr(accusing, "PIECES_MAX", 9)
    monkeypatch.setattr(accusing, "BYTES_MAX", 3 * len(raws[0]))
    assert [pool.judge(raw) for raw in raws[2:]] == [Verdict.ACCEPT, Verdict.IGNORE]


def test_payload_gets_no_more_pieces_and_bytes_than_it_may_hold(made, pool, monkeypatch) -> None:
    raws = [accused(made, who, round=r) for who in VALIDATORS for r in range(3)]
    monkeypatch.setattr(accusing, "PER_OFFENDER_MAX", 3)
    assert all(pool.judge(raw) == Verdict.ACCEPT for raw in raws)
    assert pool.pick() == raws[:EVIDENCE_MAX]
    monkeypatch.setattr(accusing, "EVIDENCE_BYTES_MAX", 3 * len(raws[0]) + 1)
    assert pool.pick() == raws[:3]


def test_own_accusation_goes_the_same_way_and_raises_nothing(made, pool) -> None:
    pool.add(accused(made))
    pool.add(accused(made))
    pool.add(b"")
    assert len(pool) == 1
    pool.drop(accused(made))
    pool.drop(b"unknown")
    assert len(pool) == 0
