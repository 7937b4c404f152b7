"""The pool of evidence: judged once, cheaply first; bounded; nothing in it that no block takes."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from bundle_kit import Party, party
from chain_kit import VALIDATORS
from evidence_kit import raw_attack, raw_double_vote
from snapshot_kit import Snapped
from stored_kit import GENESIS, Stored

from consensus.certificate import decode_certificate
from consensus.header import decode_header
from node.ledger.wire.blocks import EVIDENCE_MAX, Payload
from node.peering import accusing
from node.peering.accusing import PER_OFFENDER_MAX, Accusing
from node.storage.adopting import take_in
from node.storage.chain import Chain
from node.storage.snapshots import SnapshotStore
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


def test_evidence_from_before_our_snapshot_is_left_to_others(tmp_path: Path) -> None:
    """Also when we know that height by now: what we propose must not wait for a peer."""
    snapped = Snapped(tmp_path / "snapped")
    store = SnapshotStore(tmp_path / "home" / "snapshots")
    snapped.put_part(store)
    take_in(tmp_path / "home", store, snapped.manifest)
    chain = Chain.open(tmp_path / "home", GENESIS)
    pool = Accusing(chain_id=chain.chain_id, get_view=chain.view)
    validators = chain.tip.validators
    past = snapped.made.chain.view().past_block(3, snapped.height)
    assert past is not None
    chain.pasts.add(past, 3)
    for height, verdict in (
        (3, Verdict.IGNORE),
        (snapped.height - 1, Verdict.IGNORE),
        (snapped.height, Verdict.ACCEPT),
    ):
        raw = raw_double_vote(VALIDATORS[2], validators, chain.chain_id, height)
        assert pool.judge(raw) == verdict
    assert pool.counters["evidence.before_snapshot"] == 2
    assert len(pool) == 1
    chain.close()


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
    monkeypatch.setattr(accusing, "verify_accusation", None)
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


# ---- lies to light clients

FALSE = b"\7" * 32


def attack(
    made: Stored,
    height: int = 1,
    who: Sequence[Party] = VALIDATORS,
    round: int = 0,
    **fields: bytes,
) -> bytes:
    """A second block of the chain's own set, of the same round unless told otherwise."""
    header, validators = made.chain.header(height), made.chain.validators(height)
    assert header is not None
    assert validators is not None
    fields = {"state_root": FALSE} | fields
    return raw_attack(0, header, validators, who, round=round, **fields)


def test_attack_is_pooled_proposed_and_let_go_when_it_is_punished(made, pool) -> None:
    raw, same = attack(made), attack(made, state_root=b"\6" * 32)
    assert [pool.judge(piece) for piece in (raw, same)] == [Verdict.ACCEPT] * 2
    assert pool.pick() == [raw, same]
    assert pool.judge(raw) == Verdict.IGNORE
    made.block(evidence=(raw,))
    pool.review()
    assert len(pool) == 0
    assert pool.judge(same) == Verdict.IGNORE
    assert pool.counters["evidence.punished"] == 2


def test_attack_on_the_tip_waits_for_the_commit_that_all_nodes_judge_by(made, pool) -> None:
    raw = attack(made, height=2)
    assert pool.judge(raw) == Verdict.ACCEPT
    assert pool.pick() == []
    made.block()
    pool.review()
    assert pool.pick() == [raw]


def test_attack_that_the_chains_own_commit_makes_amnesia_is_let_go(made, pool) -> None:
    """We hold a commit of round 1, and the next block carries one of round 0."""
    block = made.build()
    block_id = decode_header(block.header).block_id()
    carried = made.decide(block)
    other = decode_certificate(made.certify(3, block_id, round=1))
    made.chain.commit(block_id, other)
    raw = attack(made, height=3, round=1)
    assert pool.judge(raw) == Verdict.ACCEPT
    following = made.chain.build(
        proposer=made.chain.tip.validators.turn,
        time_ms=made.chain.tip.time_ms + 1_000,
        payload=Payload(),
        last_certificate=carried,
    )
    following_id = decode_header(following.header).block_id()
    made.chain.commit(following_id, decode_certificate(made.certify(4, following_id)))
    pool.review()
    assert len(pool) == 0
    assert pool.counters["evidence.amnesia"] == 1


@pytest.mark.parametrize(
    ("make", "verdict", "code"),
    [
        (lambda m: attack(m, round=1), Verdict.IGNORE, "evidence.amnesia"),
        (lambda m: attack(m, who=VALIDATORS[:2]), Verdict.REJECT, "certificate.power"),
        (lambda m: attack(m, state_root=m.chain.header(1).state_root), Verdict.REJECT,
         "evidence.canonical"),
        (lambda m: attack(m, chain_id=FALSE), Verdict.REJECT, "light.chain"),
        (lambda m: attack(m)[:-1], Verdict.REJECT, "evidence.malformed"),
    ],
)  # fmt: skip
def test_what_is_no_attack_is_not_told_on(made, pool, make, verdict, code) -> None:
    assert pool.judge(make(made)) == verdict
    assert pool.counters[code] == 1
    assert len(pool) == 0


def test_attack_above_our_height_is_nobodys_fault(made, pool, tmp_path: Path) -> None:
    ahead = Stored(tmp_path / "ahead", store=MemoryKV())
    for _ in range(3):
        ahead.block()
    assert pool.judge(attack(ahead, height=3)) == Verdict.IGNORE
    assert pool.counters["evidence.height"] == 1


def test_pieces_that_name_all_but_one_keep_no_place_from_who_names_it(made, pool) -> None:
    """Else two votes each would be enough to hide an attack that many signed."""
    liars = VALIDATORS[:3]
    for who in liars[:2]:
        for round in range(PER_OFFENDER_MAX):
            assert pool.judge(accused(made, who, round=round)) == Verdict.ACCEPT
    raw = attack(made, who=liars)
    assert pool.judge(raw) == Verdict.ACCEPT
    for round in range(PER_OFFENDER_MAX - 1):
        assert pool.judge(accused(made, liars[2], round=round)) == Verdict.ACCEPT
    assert pool.judge(attack(made, who=liars, state_root=b"\5" * 32)) == Verdict.IGNORE
    frozen = attack(made, who=liars, params_hash=FALSE)
    assert pool.judge(frozen) == Verdict.ACCEPT, "a slash keeps no place from a freeze"
