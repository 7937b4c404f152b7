"""Votes, proposals, certificates, evidence and headers: bytes, limits, signatures, refusals."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulation.engines import CHAIN_ID, header

from consensus.certificate import (
    PRECOMMIT,
    PREVOTE,
    Certificate,
    decode_certificate,
    encode_certificate,
    make_certificate,
    verify_certificate,
    vote_body,
)
from consensus.evidence import (
    DuplicateProposal,
    DuplicateVote,
    decode_evidence,
    encode_evidence,
    two_proposals,
    two_votes,
    verify_evidence,
)
from consensus.header import FIELDS, Header, decode_header, encode_header, verify_field
from consensus.messages import (
    PROPOSAL,
    STATUS,
    VOTE,
    Proposal,
    Status,
    Vote,
    check_proposal,
    decode_frame,
    decode_message,
    decode_proposal,
    decode_status,
    decode_vote,
    encode_frame,
    encode_message,
    encode_proposal,
    encode_status,
    encode_vote,
    signed,
    tag_of,
    verify_proposal,
    verify_vote,
)
from consensus.params import PROPOSAL_BYTES_MAX, VALIDATORS_MAX
from consensus.primitives.digest import sha256, signing_bytes
from consensus.primitives.encoding import encode
from consensus.primitives.errors import Invalid
from consensus.primitives.keys import public_key, sign
from consensus.validators import ValidatorSet

SEEDS = [sha256(b"member %d" % n) for n in range(4)]
VALIDATORS = ValidatorSet.found({public_key(seed): 1 for seed in SEEDS})
SEED_OF = {public_key(seed): seed for seed in SEEDS}
HEADER = header(VALIDATORS.proposer(0), mark=1)
ID = HEADER.block_id()


def sign_as(member: int, message: Vote | Proposal) -> Vote | Proposal:
    seed = SEED_OF[VALIDATORS.members[member].key]
    return signed(message, sign(seed, signing_bytes(tag_of(message), CHAIN_ID, message.body())))


def vote(member: int = 0, kind: int = PREVOTE, block_id: bytes = ID, round: int = 0) -> Vote:
    made = sign_as(member, Vote(kind, 1, round, block_id, member))
    assert isinstance(made, Vote)
    return made


def proposal(round: int = 0, polka: Certificate | None = None) -> Proposal:
    pol_round = -1 if polka is None else polka.round
    place = VALIDATORS.index(VALIDATORS.proposer(round))
    assert place is not None
    made = sign_as(place, Proposal(1, round, pol_round, HEADER, polka))
    assert isinstance(made, Proposal)
    return made


def certificate(members: str = "012", kind: int = PREVOTE, round: int = 0) -> Certificate:
    votes = {int(m): vote(int(m), kind, ID, round).signature for m in members}
    return make_certificate(kind, 1, round, ID, votes, 4)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(Invalid) as refusal:
        call()
    return refusal.value.code


# ---- headers


def test_header_has_the_eighteen_fields_in_their_order() -> None:
    assert ",".join(FIELDS) == (
        "version,app_version,chain_id,height,time_ms,parent_id,proposer,validators_hash,"
        "next_validators_hash,params_hash,state_root,txs_root,bundles_root,payouts_root,"
        "evidence_root,last_commit_hash,history_root,supply"
    )
    assert decode_header(encode_header(HEADER)) == HEADER
    assert len(encode_header(HEADER)) <= 512


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_is_proven_alone(field: str) -> None:
    path = HEADER.prove(field)
    assert len(path) == (2 if field in ("history_root", "supply") else 5)
    value = getattr(HEADER, field)
    verify_field(ID, field, value, path)
    other = value + 1 if isinstance(value, int) else sha256(value)
    assert refused(lambda: verify_field(ID, field, other, path)) == "merkle.root"
    assert refused(lambda: verify_field(ID, field, value, path[1:])) == "merkle.path_length"
    assert refused(lambda: verify_field(ID, field, value, (*path, ID))) == "merkle.path_length"


def test_fields_of_equal_value_do_not_stand_for_each_other() -> None:
    twin = HEADER._replace(txs_root=HEADER.bundles_root)
    path = twin.prove("txs_root")
    code = refused(lambda: verify_field(twin.block_id(), "bundles_root", twin.txs_root, path))
    assert code == "merkle.root"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"version": 2}, "header.version"),
        ({"height": 0}, "header.height"),
        ({"chain_id": b"c" * 31}, "header.malformed"),
        ({"supply": 2**63}, "header.malformed"),
    ],
)
def test_bad_header_is_refused(change: dict[str, object], code: str) -> None:
    raw = encode(HEADER._replace(**change))  # type: ignore[arg-type]
    assert refused(lambda: decode_header(raw)) == code


def test_bad_value_in_a_field_proof_is_refused() -> None:
    path = HEADER.prove("supply")
    assert refused(lambda: verify_field(ID, "supply", -1, path)) == "header.value"
    assert refused(lambda: verify_field(ID, "supply", b"x", path)) == "header.value"
    assert refused(lambda: verify_field(ID, "colour", 1, path)) == "header.field"


# ---- votes


def test_vote_is_111_bytes_and_its_body_45() -> None:
    assert len(encode_vote(vote())) == 111
    assert len(vote().body()) == 45
    assert decode_vote(encode_vote(vote())) == vote()
    verify_vote(vote(), VALIDATORS, CHAIN_ID)


@given(
    st.sampled_from([PREVOTE, PRECOMMIT]), st.integers(1, 2**63 - 1), st.integers(0, 2**31 - 1),
    st.binary(min_size=32, max_size=32), st.integers(0, 2**16 - 1),
)  # fmt: skip
def test_any_vote_survives_its_encoding(
    kind: int, height: int, round: int, block_id: bytes, index: int
) -> None:
    made = Vote(kind, height, round, block_id, index, bytes(64))
    assert decode_vote(encode_vote(made)) == made


def with_byte(raw: bytes, place: int, value: int) -> bytes:
    return raw[:place] + bytes([value]) + raw[place + 1 :]


def test_bad_vote_is_refused() -> None:
    raw = encode_vote(vote())
    assert refused(lambda: decode_vote(raw[:-1])) == "vote.size"
    assert refused(lambda: decode_vote(raw + b"\0")) == "vote.size"
    assert refused(lambda: decode_vote(with_byte(raw, 0, 3))) == "vote.kind"
    assert refused(lambda: decode_vote(with_byte(raw, 8, 0))) == "vote.height"
    assert refused(lambda: decode_vote(with_byte(raw, 9, 0x80))) == "vote.height"
    foreign = replace(vote(), index=4)
    assert refused(lambda: verify_vote(foreign, VALIDATORS, CHAIN_ID)) == "vote.member"


@pytest.mark.parametrize("place", [0, 12, 44, 46, 60])
def test_any_changed_byte_breaks_a_vote(place: int) -> None:
    raw = encode_vote(vote())
    value = {0: PRECOMMIT, 46: 1}.get(place, raw[place] ^ 1)
    made = decode_vote(with_byte(raw, place, value))
    assert refused(lambda: verify_vote(made, VALIDATORS, CHAIN_ID)) == "vote.signature"


def test_vote_of_another_chain_is_refused() -> None:
    code = refused(lambda: verify_vote(vote(), VALIDATORS, b"d" * 32))
    assert code == "vote.signature"


# ---- proposals


def test_proposals_survive_their_encoding() -> None:
    for made in (proposal(), proposal(1, certificate())):
        assert decode_proposal(encode_proposal(made)) == made
        verify_proposal(made, VALIDATORS, CHAIN_ID)
        assert decode_message(encode_message(made)) == made


def test_greatest_proposal_fits_its_frame() -> None:
    signatures = bytes(64 * VALIDATORS_MAX)
    polka = Certificate(PREVOTE, 1, 0, ID, b"\xff" * 12 + b"\x0f", signatures)
    assert len(encode_proposal(replace(proposal(1), pol_round=0, polka=polka))) < PROPOSAL_BYTES_MAX


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (replace(proposal(), pol_round=0), "proposal.pol_round"),
        (replace(proposal(), round=3, pol_round=1), "proposal.polka"),
        (replace(proposal(1, certificate()), pol_round=-1), "proposal.polka"),
        (replace(proposal(2, certificate()), pol_round=1), "proposal.polka"),
        (replace(proposal(1, certificate(kind=PRECOMMIT))), "proposal.polka"),
        (replace(proposal(), height=2), "proposal.height"),
    ],
)
def test_malformed_proposal_is_refused(bad: Proposal, code: str) -> None:
    assert refused(lambda: decode_proposal(encode_proposal(bad))) == code


def test_proposal_out_of_turn_is_refused() -> None:
    bad = replace(proposal(1), header=HEADER)
    assert refused(lambda: check_proposal(bad, VALIDATORS)) == "proposal.proposer"
    stranger = replace(proposal(1, certificate()), header=header(b"s" * 32))
    assert refused(lambda: check_proposal(stranger, VALIDATORS)) == "proposal.proposer"
    assert refused(
        lambda: verify_proposal(replace(proposal(), signature=bytes(64)), VALIDATORS, CHAIN_ID)
    ) == "proposal.signature"  # fmt: skip


def test_proposal_with_a_thin_polka_is_refused() -> None:
    thin = proposal(1, certificate("01"))
    assert refused(lambda: verify_proposal(thin, VALIDATORS, CHAIN_ID)) == "certificate.power"


# ---- certificates


def test_certificate_of_a_quorum_is_good() -> None:
    for members in ("012", "123", "0123"):
        made = certificate(members, PRECOMMIT)
        verify_certificate(made, VALIDATORS, CHAIN_ID)
        assert decode_certificate(encode_certificate(made)) == made
        assert made.signers() == tuple(int(member) for member in members)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"bitmap": b"\x07\x00"}, "certificate.bitmap"),
        ({"bitmap": b"\x13"}, "certificate.bitmap"),  # a spare bit
        ({"bitmap": b"\x0f"}, "certificate.signatures"),
        ({"bitmap": b"\x0d"}, "certificate.signature"),  # signed by others
        ({"block_id": b"x" * 32}, "certificate.signature"),
        ({"round": 1}, "certificate.signature"),
        ({"kind": PRECOMMIT}, "certificate.signature"),
        ({"height": 2}, "certificate.signature"),
    ],
)
def test_tampered_certificate_is_refused(change: dict[str, object], code: str) -> None:
    bad = replace(certificate(), **change)  # type: ignore[arg-type]
    assert refused(lambda: verify_certificate(bad, VALIDATORS, CHAIN_ID)) == code


def test_two_thirds_are_no_certificate() -> None:
    thin = certificate("01")
    assert refused(lambda: verify_certificate(thin, VALIDATORS, CHAIN_ID)) == "certificate.power"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"kind": 3}, "certificate.kind"),
        ({"height": 0}, "certificate.height"),
        ({"block_id": bytes(32)}, "certificate.nil"),
        ({"signatures": bytes(64)}, "certificate.signatures"),
    ],
)
def test_malformed_certificate_is_refused(change: dict[str, object], code: str) -> None:
    raw = encode_certificate(replace(certificate(), **change))  # type: ignore[arg-type]
    assert refused(lambda: decode_certificate(raw)) == code


# ---- status and frames


def test_status_survives_its_encoding() -> None:
    made = Status(7, 2, 1, True, b"\x0f", b"\x01")
    assert decode_status(encode_status(made)) == made
    bad = encode((7, 2, 1, 2, b"\x0f", b"\x01"))
    assert refused(lambda: decode_status(bad)) == "status.malformed"


def test_frame_limits_go_by_kind() -> None:
    assert decode_frame(encode_frame(VOTE, bytes(111))) == (VOTE, bytes(111))
    assert refused(lambda: decode_frame(encode((VOTE, bytes(112))))) == "frame.too_large"
    assert refused(lambda: decode_frame(encode((6, b"x")))) == "frame.kind"
    assert refused(lambda: decode_frame(encode((VOTE, b"")))) == "frame.malformed"
    assert refused(lambda: decode_message(encode_frame(STATUS, b"x"))) == "message.kind"
    assert refused(lambda: decode_message(bytes(17 << 10))) == "message.too_large"


@given(st.binary(max_size=300), st.integers(0, 5))
def test_garbage_is_refused_and_nothing_else_happens(raw: bytes, kind: int) -> None:
    for decoder in (decode_message, decode_status, decode_evidence, decode_header):
        with pytest.raises(Invalid):
            decoder(raw)
    if raw:
        try:
            decode_message(encode((kind, raw)))
        except Invalid:
            return
        assert kind == VOTE


# ---- evidence


def test_two_votes_convict_their_member() -> None:
    evidence = two_votes(vote(2), vote(2, block_id=b"x" * 32))
    assert evidence == two_votes(vote(2, block_id=b"x" * 32), vote(2))
    assert decode_evidence(encode_evidence(evidence)) == evidence
    assert verify_evidence(evidence, VALIDATORS, CHAIN_ID) == (VALIDATORS.members[2].key,)


def test_two_proposals_convict_the_proposer() -> None:
    member = VALIDATORS.index(VALIDATORS.proposer(0))
    assert member is not None
    other = sign_as(member, Proposal(1, 0, -1, header(VALIDATORS.proposer(0), mark=2)))
    assert isinstance(other, Proposal)
    evidence = two_proposals(proposal(), other, member)
    assert decode_evidence(encode_evidence(evidence)) == evidence
    assert verify_evidence(evidence, VALIDATORS, CHAIN_ID) == (VALIDATORS.proposer(0),)
    forged = replace(evidence, second_signature=bytes(64))
    assert refused(lambda: verify_evidence(forged, VALIDATORS, CHAIN_ID)) == "evidence.signature"
    stranger = replace(evidence, index=9)
    assert refused(lambda: verify_evidence(stranger, VALIDATORS, CHAIN_ID)) == "evidence.member"


def test_false_evidence_is_refused() -> None:
    good = two_votes(vote(2), vote(2, block_id=b"x" * 32))
    turned = DuplicateVote(good.second, good.first)
    same = DuplicateVote(good.first, good.first)
    apart = DuplicateVote(good.first, vote(3, block_id=good.second.block_id))
    for bad, code in ((turned, "order"), (same, "order"), (apart, "unrelated")):
        assert refused(lambda bad=bad: decode_evidence(encode_evidence(bad))) == f"evidence.{code}"
        assert refused(
            lambda bad=bad: verify_evidence(bad, VALIDATORS, CHAIN_ID)
        ) == f"evidence.{code}"  # fmt: skip
    body = proposal().body()
    later = body[:11] + b"\1" + body[12:]
    rounds = DuplicateProposal(body, bytes(64), later, bytes(64), 0)
    assert refused(lambda: decode_evidence(encode_evidence(rounds))) == "evidence.unrelated"
    assert refused(lambda: decode_evidence(encode((3, b"")))) == "evidence.kind"


def test_forged_vote_convicts_nobody() -> None:
    forged = replace(vote(2, block_id=b"x" * 32), signature=bytes(64))
    evidence = two_votes(vote(2), forged)
    assert refused(lambda: verify_evidence(evidence, VALIDATORS, CHAIN_ID)) == "vote.signature"


def test_message_kinds_are_those_of_the_wire() -> None:
    assert decode_frame(encode_message(vote()))[0] == VOTE
    assert decode_frame(encode_message(proposal()))[0] == PROPOSAL
    assert vote_body(PREVOTE, 1, 0, ID) == vote().body()
    assert isinstance(HEADER, Header)
