"""Proof files made of what this node keeps: receipts, payouts, state records, transactions.

Why here and not where they are asked for: the web, a peer and the command line give the same
files, and only the storage knows where the parts of a proof lie. Each proof is linked by the
certificate of its own block, or through the history of a later header that the asker trusts.
None is given for what is not held: an index may have been dropped, a body be too old.
What this file does not know: who asks, and what a proof is good for.
"""

from consensus.certificate import encode_certificate
from consensus.header import Header
from consensus.primitives.errors import Invalid
from node.ledger.execute import encode_tx_leaf
from node.ledger.proofs import (
    ProofFile,
    history_link,
    prove_payout,
    prove_receipt,
    prove_state,
    prove_transaction,
)
from node.ledger.wire.bundles import decode_body
from node.storage.views import FoundReceipt, View


def link_of(view: View, header: Header, trusted: int | None = None) -> bytes | None:
    """Why a block is agreed on: its certificate, or a path in the history of block `trusted`.

    None when `trusted` is not a later block of this view, or this one came before its snapshot.
    """
    if trusted is None:
        certificate = view.certificate(header.height)
        return None if certificate is None else encode_certificate(certificate)
    if trusted == header.height:
        return b""  # who trusts this very block needs no link
    if not view.earliest <= header.height < trusted <= view.height:
        return None
    return history_link(view.get_header(trusted), view.history_path(header.height, trusted))


def receipt_proof(
    view: View, found: FoundReceipt, *, trusted: int | None = None
) -> ProofFile | None:
    """That a receipt with its credits stands in a settled bundle of a block."""
    payload, bundle = view.payload(found.height), view.find_bundle(found.bundle_hash)
    header = view.get_header(found.height)
    link = link_of(view, header, trusted)
    if payload is None or bundle is None or link is None:
        return None
    headers = []
    for name in payload.bundles:
        other = view.find_bundle(name)
        if other is None:
            return None
        headers.append(other.bundle.header)
    receipts = [raw for part in decode_body(bundle.bundle.body) for raw in part.receipts]
    return prove_receipt(header, link, headers, bundle.index, receipts, found.index, found.credits)


def payout_proofs(
    view: View, height: int, places: list[int], *, trusted: int | None = None
) -> list[ProofFile] | None:
    """The payout leaves of a block at `places` of its `payouts_root`."""
    header, leaves = view.header(height), view.payouts(height)
    link = None if header is None else link_of(view, header, trusted)
    if header is None or link is None or any(place >= len(leaves) for place in places):
        return None
    return [prove_payout(header, link, leaves, place) for place in places]


def state_proof(
    view: View, key: bytes, height: int | None = None, *, trusted: int | None = None
) -> ProofFile | None:
    """A flat key after block `height` (the newest by default), its record or its absence.

    None where there is no such block. Raises Invalid `ledger.pruned` when the tree of that height
    is gone, and `ledger.record_changed` when the record is: only its newest bytes are kept.
    """
    header = view.tip.header if height is None else view.header(height)
    link = None if header is None else link_of(view, header, trusted)
    if header is None or link is None:
        return None
    base = view.base_at(header.height)
    if base is None:
        raise Invalid("ledger.pruned", height=header.height)
    return prove_state(header, link, base.read_node, base.tree_root, key, base.read(key))


def transaction_proof(view: View, tx_id: bytes, *, trusted: int | None = None) -> ProofFile | None:
    """That a transaction stands in a block, and with which code it ended."""
    found = view.find_transaction(tx_id)
    if found is None:
        return None
    payload, outcome = view.payload(found.height), view.outcome(found.height)
    header = view.get_header(found.height)
    link = link_of(view, header, trusted)
    if payload is None or outcome is None or link is None:
        return None
    raws = list(zip(payload.transactions, outcome.codes, strict=True))
    leaves = [encode_tx_leaf(raw, code) for raw, code in raws]
    return prove_transaction(header, link, leaves, raws, found.index)
