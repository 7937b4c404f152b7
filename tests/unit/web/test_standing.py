"""Blocks tell their evidence, and the list of validators tells who sits out."""

from pathlib import Path

import pytest
from bundle_kit import Party
from chain_kit import OPEN, VALIDATORS
from evidence_kit import double_proposal, raw_attack, raw_double_vote
from stored_kit import Stored

from consensus.evidence import encode_evidence
from consensus.primitives.digest import sha256
from node.storage.store import MemoryKV
from node.web import reading, standing
from node.web.answers import as_json

WHO, OTHER = VALIDATORS[:2]


@pytest.fixture
def made(tmp_path: Path) -> Stored:
    stored = Stored(tmp_path, store=MemoryKV())
    stored.block()
    stored.block()
    return stored


def test_block_tells_offence_height_and_accused(made: Stored) -> None:
    validators = made.chain.tip.validators
    vote = raw_double_vote(WHO, validators, made.chain_id, 1)
    proposal = encode_evidence(double_proposal(OTHER, validators, made.chain_id, 2))
    made.block(evidence=(vote, proposal))
    made.block()
    block = reading.find_block(made.chain.view(), 3)
    empty = reading.find_block(made.chain.view(), 4)
    assert block is not None
    assert empty is not None
    told = [(a.evidence, a.offence, a.height, a.accused) for a in block.evidence]
    assert told == [
        (sha256(vote), "double_vote", 1, (WHO.key,)),
        (sha256(proposal), "double_proposal", 2, (OTHER.key,)),
    ]
    assert as_json(block)["evidence"][0]["offence"] == "double_vote"
    assert empty.evidence == ()


def test_jailed_validator_is_listed_behind_the_set_with_its_term(made: Stored) -> None:
    raw = raw_double_vote(WHO, made.chain.tip.validators, made.chain_id, 1)
    made.block(evidence=(raw,))
    rows = standing.list_validators(made.chain.view(), WHO.key)
    assert [row.status for row in rows] == ["active"] * 3 + ["jailed"]
    jailed = rows[-1]
    assert (jailed.key, jailed.power, jailed.this_node) == (WHO.key, 0, True)
    assert jailed.jailed_until_ms == made.chain.tip.time_ms + 21 * 86_400_000
    assert jailed.bonded == 4 * OPEN
    assert {row.bonded for row in rows[:-1]} == {20 * OPEN}


def test_key_that_lost_everything_is_told_as_tombstoned(made: Stored) -> None:
    validators = made.chain.tip.validators
    raws = tuple(raw_double_vote(who, validators, made.chain_id, 1) for who in (WHO, OTHER))
    made.block(evidence=raws)
    rows = standing.list_validators(made.chain.view(), None)
    assert [row.status for row in rows] == ["active"] * 2 + ["tombstoned"] * 2
    assert [row.bonded for row in rows[2:]] == [0, 0]


@pytest.mark.parametrize(
    ("field", "offence", "signers", "status", "bonded"),
    [
        ("params_hash", "lunatic_header", VALIDATORS, "frozen", 20 * OPEN),
        ("state_root", "second_block", VALIDATORS[:3], "tombstoned", 0),
    ],
)
def test_attack_on_light_clients_is_told_with_whom_it_names(
    made: Stored, field: str, offence: str, signers: tuple[Party, ...], status: str, bonded: int
) -> None:
    """Of a second block: who signed it and the chain's own, of which one signer is left out."""
    header, validators = made.chain.view().get_header(1), made.chain.tip.validators
    raw = raw_attack(0, header, validators, signers, **{field: b"\7" * 32})
    made.block(evidence=(raw,))
    told = reading.find_block(made.chain.view(), 3)
    assert told is not None
    ((found),) = told.evidence
    committed = {member.key for member in validators.members[:3]}
    named = {who.key for who in signers}
    named &= named if field == "params_hash" else committed
    assert (found.evidence, found.offence, found.height) == (sha256(raw), offence, 1)
    assert set(found.accused) == named
    rows = standing.list_validators(made.chain.view(), None)
    out = {row.key: (row.status, row.bonded) for row in rows if row.status != "active"}
    assert out == dict.fromkeys(named, (status, bonded))
