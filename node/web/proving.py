"""Proof files from this node's chain: receipts with their payouts, accounts, contributions.

Why a receipt comes with payouts: who holds the file should see, from one trusted block, that the
answer was settled and that its credits were paid. The largest credits come first, as many as one
file holds. The receipt is linked by the certificate of its block, or through the history of a
later one that the reader trusts; payouts are of the same block and need no link of their own.
What it does not know: who asks, and whom they trust.
"""

from node.ledger import tables
from node.ledger.proofs import (
    FILE_BYTES_MAX,
    FILES_MAX,
    ProofFile,
    encode_proof,
    encode_proofs,
)
from node.ledger.wire.payouts import decode_payout
from node.ledger.wire.receipts import decode_credits, decode_receipt
from node.storage.proving import payout_proofs, receipt_proof, state_proof
from node.storage.views import FoundReceipt, View


def receipt_file(view: View, receipt_id: bytes, trusted: int | None = None) -> bytes | None:
    """The settled receipt, what its block paid the provider, and its largest credits.

    Linked through the history of the later block `trusted`, if one is named.
    """
    found = view.find_receipt(receipt_id)
    if found is None:
        return None
    proof = receipt_proof(view, found, trusted=trusted)
    payouts = _payout_proofs(view, found, trusted)
    if proof is None or payouts is None:
        return None
    proofs = [proof, *(payout._replace(link=b"") for payout in payouts)]
    while len(raw := encode_proofs(proofs)) > FILE_BYTES_MAX:
        proofs.pop()  # the least credits go first
    return raw


def account_file(view: View, account: bytes) -> bytes | None:
    """The account's record, or its absence, under the newest block; None before the first."""
    return _state_file(view, tables.ACCOUNT.flat_key((account,)))


def contribution_file(view: View, number: int) -> bytes | None:
    """The contribution's record: whose it is, and what it has earned; or its absence."""
    return _state_file(view, tables.CONTRIBUTION.flat_key((number,)))


def _state_file(view: View, key: bytes) -> bytes | None:
    proof = state_proof(view, key)
    return None if proof is None else encode_proof(proof)


def _payout_proofs(view: View, found: FoundReceipt, trusted: int | None) -> list[ProofFile] | None:
    receipt = decode_receipt(found.receipt)
    shares = dict(decode_credits(found.credits))
    leaves = view.payouts(found.height)
    wanted: list[tuple[int, int]] = []  # rank, place
    for place, raw in enumerate(leaves):
        leaf = decode_payout(raw)
        if (leaf.model, leaf.version) != (receipt.model, receipt.model_version):
            continue
        if leaf.kind == tables.KIND_DATA and leaf.payee:
            share_bps = shares.get(int.from_bytes(leaf.payee, "big"), 0)
            if share_bps:
                wanted.append((-share_bps, place))
        elif leaf.kind == tables.KIND_PROVIDER:
            wanted.append((0, place))
    chosen = [place for _, place in sorted(wanted)[: FILES_MAX - 1]]
    return payout_proofs(view, found.height, chosen, trusted=trusted)
