"""Proof files from this node's chain: receipts with payouts, records of the state, transactions.

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
from node.storage.proving import payout_proofs, receipt_proof, state_proof, transaction_proof
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


def state_file(view: View, key: bytes, height: int | None = None) -> bytes | None:
    """The record under a flat key, or its absence, after block `height`, by default the newest.

    None where there is no such block. Raises Invalid `ledger.pruned` and `ledger.record_changed`.
    """
    proof = state_proof(view, key, height)
    return None if proof is None else encode_proof(proof)


def transaction_file(view: View, tx_id: bytes) -> bytes | None:
    """That a transaction stands in a block, and with which code it ended."""
    proof = transaction_proof(view, tx_id)
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
