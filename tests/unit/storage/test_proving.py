"""Every proof that storage makes is one that a light client believes."""

from pathlib import Path

import pytest
from chain_kit import FAUCET, PAYER, golden_answer
from stored_kit import CREDITS, Stored

from node.ledger import tables
from node.ledger.proofs import (
    ProofFile,
    ReceiptShown,
    Shown,
    StateShown,
    TransactionShown,
    Trust,
    block_id_of,
    decode_proof,
    encode_proof,
    verify_body,
    verify_link,
)
from node.ledger.wire.payouts import decode_payout
from node.ledger.wire.receipts import receipt_id
from node.ledger.wire.transactions import Transfer, decode_transaction
from node.storage import proving
from node.storage.store import MemoryKV
from node.storage.views import View


class Story:
    """A settled answer, a transfer, an empty block."""

    def __init__(self, home: Path) -> None:
        made = Stored(home, MemoryKV())
        made.tell_story()
        session = made.open_channel()
        self.receipt = golden_answer(session, CREDITS)
        made.block(bundles=(made.bundle(session),))
        self.paid_height = made.chain.height
        self.transfer = made.pay()
        other = made.tx(PAYER, Transfer(FAUCET.key, 5, b""))
        made.block(other, self.transfer, made.tx(PAYER, Transfer(FAUCET.key, 10**18, b""), 1))
        made.block()
        self.view: View = made.chain.view()


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return Story(tmp_path_factory.mktemp("proving"))


def shown(view: View, proof: ProofFile | None, how: str) -> Shown:
    """What a light client sees that trusts the validators, or the newest block."""
    assert proof is not None
    again = decode_proof(encode_proof(proof))
    validators = view.validators(again.height)
    assert validators is not None
    trust = Trust(
        view.get_header(1).chain_id,
        (validators,) if how == "certificate" else (),
        {} if how == "certificate" else {view.height: view.tip.block_id},
    )
    assert verify_link(again, block_id_of(again), trust) == how
    return verify_body(again)


WAYS = [("certificate", False), ("history", True)]


@pytest.mark.parametrize(("how", "by_history"), WAYS)
def test_receipt_is_proved(story: Story, how: str, by_history: bool) -> None:
    view = story.view
    found = view.find_receipt(receipt_id(story.receipt))
    assert found is not None
    proof = proving.receipt_proof(view, found, trusted=view.height if by_history else None)
    seen = shown(view, proof, how)
    assert isinstance(seen, ReceiptShown)
    assert seen.raw == story.receipt
    assert seen.credits == CREDITS


@pytest.mark.parametrize(("how", "by_history"), WAYS)
def test_every_payout_is_proved(story: Story, how: str, by_history: bool) -> None:
    view, height = story.view, story.paid_height
    leaves = view.payouts(height)
    places = list(range(len(leaves)))
    trusted = view.height if by_history else None
    proofs = proving.payout_proofs(view, height, places, trusted=trusted)
    assert proofs is not None
    assert len(proofs) > 5
    for raw, proof in zip(leaves, proofs, strict=True):
        assert shown(view, proof, how) == decode_payout(raw)
    assert proving.payout_proofs(view, height, [len(leaves)]) is None
    assert proving.payout_proofs(view, view.height + 1, [0]) is None


@pytest.mark.parametrize(("how", "by_history"), WAYS)
def test_transaction_is_proved_with_its_code(story: Story, how: str, by_history: bool) -> None:
    view = story.view
    tx_id = decode_transaction(story.transfer).tx_id
    proof = proving.transaction_proof(view, tx_id, trusted=view.height if by_history else None)
    seen = shown(view, proof, how)
    assert isinstance(seen, TransactionShown)
    assert (seen.tx.raw, seen.code) == (story.transfer, 0)
    assert proving.transaction_proof(view, bytes(32)) is None


@pytest.mark.parametrize("how", ["certificate", "trusted"])
def test_state_record_and_its_absence_are_proved(story: Story, how: str) -> None:
    view = story.view
    for account in (PAYER.key, b"nobody".ljust(32)):
        key = tables.ACCOUNT.flat_key((account,))
        trusted = view.height if how == "trusted" else None
        seen = shown(view, proving.state_proof(view, key, trusted=trusted), how)
        assert seen == StateShown(key, view.base.read(key))


def test_link_from_a_block_that_is_not_later_is_not_made(story: Story) -> None:
    view = story.view
    header = view.get_header(3)
    assert proving.link_of(view, header, 2) is None
    assert proving.link_of(view, header, view.height + 1) is None
    assert proving.link_of(view, header, 3) == b""
