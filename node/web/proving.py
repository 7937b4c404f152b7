"""Proof files from the chain that this node keeps: a receipt with its payouts, an account.

Why a receipt comes with payouts: who holds the file should see, from one trusted block, that the
answer was settled and that its credits were paid. The largest credits come first, as many as one
file holds. Each proof is linked by the certificate of its own block.
What it does not know: who asks, and whom they trust.
"""

from consensus.certificate import encode_certificate
from node.ledger import tables
from node.ledger.proofs import (
    FILE_BYTES_MAX,
    FILES_MAX,
    ProofFile,
    encode_proof,
    encode_proofs,
    prove_payout,
    prove_receipt,
    prove_state,
)
from node.ledger.wire.bundles import decode_body
from node.ledger.wire.payouts import decode_payout
from node.ledger.wire.receipts import decode_credits, decode_receipt
from node.storage.views import FoundReceipt, View


def receipt_file(view: View, receipt_id: bytes) -> bytes | None:
    """The settled receipt, what its block paid the provider, and its largest credits."""
    found = view.find_receipt(receipt_id)
    if found is None:
        return None
    proofs = [_receipt_proof(view, found), *_payout_proofs(view, found)]
    while len(raw := encode_proofs(proofs)) > FILE_BYTES_MAX:
        proofs.pop()  # with many validators the certificates fill the file: least credits go first
    return raw


def account_file(view: View, account: bytes) -> bytes | None:
    """The account's record, or its absence, under the newest block; None before the first."""
    header = view.tip.header
    if header is None:
        return None
    key = tables.ACCOUNT.flat_key((account,))
    base = view.base
    link = _link(view, header.height)
    return encode_proof(
        prove_state(header, link, base.read_node, base.tree_root, key, base.read(key))
    )


def _link(view: View, height: int) -> bytes:
    certificate = view.certificate(height)
    return b"" if certificate is None else encode_certificate(certificate)


def _receipt_proof(view: View, found: FoundReceipt) -> ProofFile:
    payload, bundle = view.payload(found.height), view.find_bundle(found.bundle_hash)
    assert payload is not None
    assert bundle is not None
    headers = []
    for name in payload.bundles:
        other = view.find_bundle(name)
        assert other is not None, "the bodies of a block are kept together"
        headers.append(other.bundle.header)
    receipts = [raw for part in decode_body(bundle.bundle.body) for raw in part.receipts]
    return prove_receipt(
        view.get_header(found.height),
        _link(view, found.height),
        headers,
        bundle.index,
        receipts,
        found.index,
        found.credits,
    )


def _payout_proofs(view: View, found: FoundReceipt) -> list[ProofFile]:
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
    header, link = view.get_header(found.height), _link(view, found.height)
    chosen = [place for _, place in sorted(wanted)[: FILES_MAX - 1]]
    return [prove_payout(header, link, leaves, place) for place in chosen]
