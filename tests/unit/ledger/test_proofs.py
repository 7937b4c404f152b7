"""Proof files: what they show holds, and one changed byte anywhere does not."""

import pytest
from chain_kit import CONTRIBUTORS, FAUCET, PROVIDER, TinyChain, golden_answer

from consensus.primitives import merkle
from consensus.primitives.errors import Invalid
from consensus.validators import ValidatorSet
from node import light
from node.ledger import proofs, tables
from node.ledger.execute import decode_tx_leaf
from node.ledger.genesis import start
from node.ledger.proofs import ProofFile, Trust
from node.ledger.wire.bundles import decode_body
from node.ledger.wire.payouts import decode_payout
from node.ledger.wire.transactions import Transfer

CREDITS = ((1, 6_120), (2, 2_455), (3, 1_425))


class Story:
    """A paid answer, its block, and the block in which it matured."""

    def __init__(self) -> None:
        self.chain = chain = TinyChain()
        chain.tell_story()
        session = chain.open_channel()
        golden_answer(session, CREDITS)
        golden_answer(session, ())
        self.bundle = chain.bundle(session)
        transfer = chain.tx(FAUCET, Transfer(PROVIDER.key, 1, b""))
        self.outcome = chain.block(transfer, bundles=(self.bundle,))
        self.paid = chain.height
        chain.block(later_ms=62_500)
        self.trust = light.trust_genesis(chain.genesis)

    def link(self, height: int) -> bytes:
        return self.chain.certificates[height]

    def receipt(self, link: bytes | None = None) -> ProofFile:
        (part,) = decode_body(self.bundle.body)
        return proofs.prove_receipt(
            self.chain.headers[self.paid - 1],
            self.link(self.paid) if link is None else link,
            self.outcome.bundle_headers,
            0,
            part.receipts,
            0,
            part.credits[0],
        )

    def payout(self, index: int) -> ProofFile:
        header, link = self.chain.headers[self.paid - 1], self.link(self.paid)
        return proofs.prove_payout(header, link, self.outcome.payout_leaves, index)

    def data_index(self) -> int:
        leaves = [decode_payout(raw) for raw in self.outcome.payout_leaves]
        return next(
            i
            for i, leaf in enumerate(leaves)
            if leaf.payee == (1).to_bytes(8, "big") and leaf.kind == tables.KIND_DATA
        )

    def state(self, height: int, key: bytes) -> ProofFile:
        record = self.chain.records[height]
        value = self.value_at(height, key)
        nodes = self.chain.nodes.get
        header = self.chain.headers[height - 1]
        return proofs.prove_state(header, self.link(height), nodes, record, key, value)

    def value_at(self, height: int, key: bytes) -> bytes | None:
        """What the last block up to `height` that changed the key made of it."""
        for outcome in reversed(self.chain.outcomes[:height]):
            changed = dict(outcome.changes)
            if key in changed:
                return changed[key]
        return dict(start(self.chain.genesis).changes).get(key)

    def transaction(self) -> ProofFile:
        header, link = self.chain.headers[self.paid - 1], self.link(self.paid)
        raws = [decode_tx_leaf(leaf) for leaf in self.outcome.tx_leaves]
        return proofs.prove_transaction(header, link, self.outcome.tx_leaves, raws, 0)


@pytest.fixture(scope="module")
def story() -> Story:
    return Story()


def all_kinds(story: Story) -> list[ProofFile]:
    account = tables.ACCOUNT.flat_key((CONTRIBUTORS[0].key,))
    absent = tables.ACCOUNT.flat_key((b"\x55" * 32,))
    return [
        story.receipt(),
        story.payout(story.data_index()),
        story.state(story.chain.height, account),
        story.state(story.paid, absent),
        story.transaction(),
    ]


def refusal_of(raw: bytes, trust: Trust) -> str:
    with pytest.raises(Invalid) as refusal:
        light.verify_file(raw, trust)
    return refusal.value.code


def test_each_kind_comes_back_and_holds(story) -> None:
    for proof in all_kinds(story):
        raw = proofs.encode_proof(proof)
        assert proofs.decode_proofs(raw) == (proof,)
        report = light.verify_file(raw, story.trust)
        assert report.refusal is None
        assert len(report.steps) == 4


@pytest.mark.parametrize("kind", range(5))
def test_one_changed_byte_anywhere_fails(story, kind) -> None:
    """Of receipt, credits, bundle header, payout, state value, transaction, root, path, or
    certificate: no byte can change what is shown. (A tree's size is told, not bound: a change of
    it may pass and shows the same. Another absent key is another true statement.)"""
    raw = proofs.encode_proof(all_kinds(story)[kind])
    shown = light.verify_file(raw, story.trust).proofs
    passed = 0
    for place in range(len(raw)):
        for flip in (1, 0x80):
            damaged = raw[:place] + bytes([raw[place] ^ flip]) + raw[place + 1 :]
            report = light.examine(damaged, story.trust)
            if report.refusal is None and report.proofs != shown:
                (other,) = report.proofs
                assert other.shown.value is None, f"byte {place} of {len(raw)}"
                assert other.shown.key not in story.chain.flat
            passed += report.refusal is None
    assert passed <= 80


def test_cut_and_lengthened_files_fail(story) -> None:
    raw = proofs.encode_proof(story.receipt())
    for size in range(0, len(raw), 7):
        assert light.examine(raw[:size], story.trust).refusal is not None
    assert light.examine(raw + b"\0", story.trust).refusal is not None
    assert refusal_of(bytes(proofs.FILE_BYTES_MAX + 1), story.trust) == "proof.too_large"


def test_a_receipt_proof_is_small(story) -> None:
    assert len(proofs.encode_proof(story.receipt())) <= 2_500


def with_link(story: Story, link: bytes) -> bytes:
    return proofs.encode_proof(story.receipt()._replace(link=link))


def test_certificates_that_prove_nothing_are_refused(story) -> None:
    chain = story.chain
    block_id = chain.headers[story.paid - 1].block_id()
    two_of_four = chain.certify(story.paid, block_id, signers=2)
    other_height = chain.certify(story.paid + 1, block_id)
    other_block = story.link(story.paid + 1)
    assert refusal_of(with_link(story, two_of_four), story.trust) == "certificate.power"
    assert refusal_of(with_link(story, other_height), story.trust) == "proof.certificate"
    assert refusal_of(with_link(story, other_block), story.trust) == "proof.certificate"
    assert refusal_of(with_link(story, b""), story.trust) == "proof.unlinked"
    good = with_link(story, story.link(story.paid))
    strangers = ValidatorSet.found({FAUCET.key: 1})
    assert refusal_of(good, story.trust._replace(validators=(strangers,))).startswith("certificate")
    assert refusal_of(good, story.trust._replace(validators=())) == "proof.no_validators"
    assert refusal_of(good, story.trust._replace(chain_id=bytes(32))) == "proof.chain"
    assert light.verify_file(good, story.trust).refusal is None


def test_a_trusted_block_needs_no_signatures(story) -> None:
    block_id = story.chain.headers[story.paid - 1].block_id()
    raw = with_link(story, b"")
    trust = Trust(story.chain.chain_id, (), {story.paid: block_id})
    assert light.verify_file(raw, trust).refusal is None
    other = Trust(story.chain.chain_id, (), {story.paid: bytes(32)})
    assert refusal_of(raw, other) == "proof.block"


def test_a_later_block_proves_its_history(story) -> None:
    chain = story.chain
    later = chain.headers[-1]
    ids = [header.block_id() for header in chain.headers[: later.height - 1]]
    path = merkle.prove(ids, story.paid - 1)
    raw = with_link(story, proofs.history_link(later, path))
    trust = Trust(chain.chain_id, (), {later.height: later.block_id()})
    assert light.verify_file(raw, trust).refusal is None
    assert refusal_of(raw, story.trust) == "proof.history"
    wrong = with_link(story, proofs.history_link(later, merkle.prove(ids, 0)))
    assert refusal_of(wrong, trust).startswith("merkle.")


def test_a_dossier_shows_receipt_payout_and_the_credited_balance(story) -> None:
    """The whole loop in one file: receipt, its payout, and the earner before and after."""
    account = tables.ACCOUNT.flat_key((CONTRIBUTORS[0].key,))
    contribution = tables.CONTRIBUTION.flat_key((1,))
    files = [
        story.receipt(),
        story.payout(story.data_index()),
        story.state(story.paid, account),
        story.state(story.chain.height, account),
        story.state(story.paid, contribution),
        story.state(story.chain.height, contribution),
    ]
    raw = proofs.encode_proofs(files)
    assert len(raw) < 16_000
    report = light.verify_file(raw, story.trust)
    shown = [checked.shown for checked in report.proofs]
    before, after = (tables.ACCOUNT.decode(shown[i].value).balance for i in (2, 3))
    assert after - before == shown[1].amount - shown[1].amount * 500 // 10_000
    earned = [tables.CONTRIBUTION.decode(shown[i].value).earned for i in (4, 5)]
    assert earned == [0, shown[1].amount]
    assert "the payout pays a credit of the receipt" in [step.what for step in report.steps]
    assert len(report.asserted) == 2


def test_a_payout_of_no_receipt_in_the_file_is_refused(story) -> None:
    receipt, payout = story.receipt(), story.payout(story.data_index())
    other_version = decode_payout(story.outcome.payout_leaves[0])
    assert other_version.kind == 0
    raw = proofs.encode_proofs([receipt, payout])
    assert light.verify_file(raw, story.trust).refusal is None
    (part,) = decode_body(story.bundle.body)
    uncredited = proofs.prove_receipt(
        story.chain.headers[story.paid - 1], story.link(story.paid),
        story.outcome.bundle_headers, 0, part.receipts, 1, part.credits[1],
    )  # fmt: skip
    raw = proofs.encode_proofs([uncredited, payout])
    assert refusal_of(raw, story.trust) == "proof.across"


def test_a_proof_of_a_block_that_the_file_showed_needs_no_link(story) -> None:
    """A receipt and its payout in 2,500 bytes: the certificate once."""
    receipt, payout = story.receipt(), story.payout(story.data_index())._replace(link=b"")
    report = light.verify_file(proofs.encode_proofs([receipt, payout]), story.trust)
    assert report.steps[-2].detail == "it is the block of a proof before it"
    assert len(report.proofs) == 2
    for files, code in (
        ([payout, receipt], "proof.unlinked"),  # only what was shown before
        ([receipt, payout._replace(chain_id=bytes(32))], "proof.chain"),
        ([receipt, payout._replace(height=story.paid + 1)], "proof.unlinked"),
        ([receipt, payout._replace(field_path=receipt.field_path)], "proof.unlinked"),
        ([receipt, payout._replace(link=receipt.link[:-1])], "certificate.malformed"),
    ):
        assert refusal_of(proofs.encode_proofs(files), story.trust) == code


def test_steps_so_far_are_told_when_one_fails(story) -> None:
    account = tables.ACCOUNT.flat_key((PROVIDER.key,))
    later = story.state(story.chain.height, account)._replace(link=b"")
    raw = proofs.encode_proofs([story.receipt(), later])
    report = light.examine(raw, story.trust)
    assert report.refusal.code == "proof.unlinked"
    assert [step.what for step in report.steps][1].startswith("the receipt stands")
    assert len(report.proofs) == 1


def test_every_payout_leaf_of_the_block_can_be_proved(story) -> None:
    for index in range(len(story.outcome.payout_leaves)):
        raw = proofs.encode_proof(story.payout(index))
        assert light.verify_file(raw, story.trust).refusal is None
