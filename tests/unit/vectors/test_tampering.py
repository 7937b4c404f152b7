"""One flipped bit, anywhere, of anything signed or proved, and it is refused."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgpack
import pytest
from vectors.agreement import TRUST, VALIDATORS, agreement_examples
from vectors.example import CHAIN, Example
from vectors.market import CREATOR, PAYER, PROVIDER, market_examples

from consensus.certificate import decode_certificate, verify_certificate
from consensus.evidence import decode_evidence, verify_evidence
from consensus.messages import decode_proposal, decode_vote, verify_proposal, verify_vote
from consensus.primitives import merkle
from consensus.primitives.encoding import encode
from consensus.primitives.errors import Invalid
from node import light
from node.ledger import proofs
from node.ledger.rules.accounts import verify_sender
from node.ledger.state import EMPTY_BASE, State
from node.ledger.wire import bundles, orders, receipts
from node.ledger.wire.payouts import decode_payout, encode_payout
from node.ledger.wire.transactions import decode_transaction

EXAMPLES: dict[str, Example] = market_examples() | agreement_examples()


def flips(raw: bytes, bits: Sequence[int] = range(8)) -> Iterator[tuple[int, bytes]]:
    """(place, the same bytes with one other bit), for every byte and each of `bits`."""
    for place in range(len(raw)):
        for bit in bits:
            yield place, raw[:place] + bytes([raw[place] ^ 1 << bit]) + raw[place + 1 :]


# ---- what is signed, through the checks that the node makes


class Signed(NamedTuple):
    """The bytes that travel, and the check that believes them or raises `Invalid`."""

    pieces: tuple[bytes, ...]
    verify: Callable[..., None]


def with_signature(name: str, verify: Callable[..., None], key: bytes) -> Signed:
    """A body and its signature apart, as vouchers, receipts and offers travel."""
    signing = EXAMPLES[name].signing
    assert signing is not None
    return Signed(
        (EXAMPLES[name].raw, signing.signature),
        lambda raw, signature: verify(CHAIN, raw, signature, key),
    )


def verify_tx(raw: bytes) -> None:
    verify_sender(State(EMPTY_BASE), CHAIN, decode_transaction(raw))


def verify_bundle(header: bytes, signature: bytes, body: bytes) -> None:
    bundles.verify(
        bundles.Bundle(header, signature, body),
        chain_id=CHAIN,
        provider_key={PROVIDER.key: PROVIDER.key}.get,
        spender_key=lambda _: PAYER.key,
        min_receipt_fee=0,
    )


def bundle_pieces() -> tuple[bytes, ...]:
    header = EXAMPLES["bundle_header"]
    assert header.signing is not None
    return header.raw, header.signing.signature, EXAMPLES["bundle_body"].raw


SIGNED = {
    "voucher": with_signature("voucher", orders.verify_voucher, PAYER.key),
    "receipt": with_signature("receipt", receipts.verify_receipt, PROVIDER.key),
    "offer": with_signature("offer", orders.verify_offer, PROVIDER.key),
    "bundle": Signed(bundle_pieces(), verify_bundle),
    "transaction": Signed((EXAMPLES["tx_Transfer"].raw,), verify_tx),
    "vote": Signed(
        (EXAMPLES["prevote"].raw,), lambda raw: verify_vote(decode_vote(raw), VALIDATORS, CHAIN)
    ),
    "proposal": Signed(
        (EXAMPLES["proposal"].raw,),
        lambda raw: verify_proposal(decode_proposal(raw), VALIDATORS, CHAIN),
    ),
    "proposal with its polka": Signed(
        (EXAMPLES["proposal_again"].raw,),
        lambda raw: verify_proposal(decode_proposal(raw), VALIDATORS, CHAIN),
    ),
    "certificate": Signed(
        (EXAMPLES["certificate"].raw,),
        lambda raw: verify_certificate(decode_certificate(raw), VALIDATORS, CHAIN),
    ),
    "evidence of votes": Signed(
        (EXAMPLES["evidence_votes"].raw,),
        lambda raw: verify_evidence(decode_evidence(raw), VALIDATORS, CHAIN),
    ),
    "evidence of proposals": Signed(
        (EXAMPLES["evidence_proposals"].raw,),
        lambda raw: verify_evidence(decode_evidence(raw), VALIDATORS, CHAIN),
    ),
}


@pytest.mark.parametrize("name", SIGNED)
def test_no_bit_of_what_is_signed_can_be_changed(name: str) -> None:
    pieces, verify = SIGNED[name]
    verify(*pieces)
    believed = []
    for number, piece in enumerate(pieces):
        for place, bad in flips(piece):
            try:
                verify(*pieces[:number], bad, *pieces[number + 1 :])
            except Invalid:
                continue
            believed.append((number, place))
    assert believed == []


@pytest.mark.parametrize("name", SIGNED)
def test_nothing_signed_holds_on_another_chain(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces, verify = SIGNED[name]
    monkeypatch.setitem(globals(), "CHAIN", bytes(32))
    with pytest.raises(Invalid):
        verify(*pieces)


def test_a_signature_for_one_purpose_is_none_for_another() -> None:
    """Voucher and offer bodies under each other's tag: equal bytes, other meaning."""
    raw = EXAMPLES["receipt"].raw
    as_voucher = PROVIDER.sign(orders.voucher_message(CHAIN, raw))
    with pytest.raises(Invalid, match=r"receipt\.signature"):
        receipts.verify_receipt(CHAIN, raw, as_voucher, PROVIDER.key)
    tx = decode_transaction(EXAMPLES["tx_Transfer"].raw)
    as_offer = CREATOR.sign(orders.offer_message(CHAIN, tx.body))
    with pytest.raises(Invalid, match=r"tx\.signature"):
        verify_sender(State(EMPTY_BASE), CHAIN, tx._replace(signature=as_offer))


# ---- proof files of all four kinds, by certificate and by history, and a dossier


def shown_by(raw: bytes) -> list[proofs.Shown] | None:
    report = light.examine(raw, TRUST)
    return None if report.refusal else [proof.shown for proof in report.proofs]


PROOFS = [name for name in EXAMPLES if name.startswith("proof_")]
CHANGEABLE = "proof_state_absent"


@pytest.mark.parametrize("name", [name for name in PROOFS if name != CHANGEABLE])
def test_no_bit_of_a_proof_file_can_be_changed(name: str) -> None:
    """Receipt, credits, bundle header, payout, record, transaction, root, path, link: all of it."""
    raw = EXAMPLES[name].raw
    bits = (0,) if name == "proof_dossier" else range(8)  # its proofs have been through all
    assert shown_by(raw)
    assert [place for place, bad in flips(raw, bits) if shown_by(bad) is not None] == []


def test_a_proof_of_absence_can_only_be_turned_into_another_true_one() -> None:
    """The leaf that was met shows for every key beside its path that it is not there."""
    raw = EXAMPLES[CHANGEABLE].raw
    (absent,) = shown_by(raw) or ()
    assert isinstance(absent, proofs.StateShown)
    start = raw.index(absent.key)
    for place, bad in flips(raw):
        for other in shown_by(bad) or ():
            assert isinstance(other, proofs.StateShown)
            assert other.value is None
            assert start <= place < start + len(absent.key)


def test_a_proof_of_one_kind_is_none_of_another() -> None:
    """The same body under another field of the same header."""
    proof = EXAMPLES["proof_payout"].value
    for kind, field in proofs.FIELD_OF_KIND.items():
        raw = proofs.encode_proof(proof._replace(kind=kind))
        assert (shown_by(raw) is not None) == (field == "payouts_root")


def test_a_payout_of_more_than_its_share_is_refused_though_a_root_holds_it() -> None:
    """What one leaf shows by itself needs nobody's word, not even the quorum's."""
    proof = EXAMPLES["proof_payout"].value
    raw, *_ = decode_body(proof)
    leaf = decode_payout(raw)
    for amount, code in ((leaf.amount, ""), (leaf.amount + 1, ""), (leaf.amount + 2, "amount")):
        greedy = encode_payout(leaf._replace(amount=amount))
        alone = proof._replace(
            value=merkle.root([greedy]), body=encode((greedy, 0, 1, ())), field_path=()
        )
        if code:
            with pytest.raises(Invalid, match=r"payout\.amount"):
                proofs.verify_body(alone)
        else:
            assert proofs.verify_body(alone) == leaf._replace(amount=amount)


def test_a_receipt_stands_among_as_many_as_its_bundle_says() -> None:
    """Three receipts and four imply the same path for the first: the header decides."""
    proof = EXAMPLES["proof_receipt"].value
    fields = list(decode_body(proof))
    assert fields[2:4] == [0, 3]
    proofs.verify_body(proof)
    fields[3] = 4
    with pytest.raises(Invalid, match=r"proof\.count"):
        proofs.verify_body(proof._replace(body=encode(fields)))


def test_credits_that_are_not_the_receipts_are_refused() -> None:
    proof = EXAMPLES["proof_receipt"].value
    fields = list(decode_body(proof))
    fields[1] = receipts.encode_credits(((1, 10_000),))
    with pytest.raises(Invalid, match=r"proof\.credits"):
        proofs.verify_body(proof._replace(body=encode(fields)))


def decode_body(proof: proofs.ProofFile) -> list[Any]:
    return list(msgpack.unpackb(proof.body))
