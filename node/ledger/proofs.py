"""Proof files: from a quorum's signatures down to one receipt, payout, state entry or transaction.

    [version, kind, chain_id, height, field number, value, field path, body, link]

The field is a root in the header; `body` shows something under that root; `link` shows that the
header was agreed on: a certificate, or a path through the history of one later header, or nothing
when the reader trusts this very block or an earlier proof of the file is of it. Page 30 §10.
Verification is ≤ 30 hashes and a quorum's signatures; nothing in a file is believed that does not
lead to one of the two.
What this file does not know: where proofs are read from, and how a result is shown.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from consensus.certificate import PRECOMMIT, decode_certificate, verify_certificate
from consensus.header import FIELDS, Header, field_leaf, field_number
from consensus.primitives import merkle
from consensus.primitives.digest import sha256
from consensus.primitives.encoding import (
    U8,
    U16,
    U32,
    U63,
    Bytes,
    Either,
    H,
    ListOf,
    Record,
    decode,
    encode,
)
from consensus.primitives.errors import Invalid
from consensus.validators import ValidatorSet
from node.ledger import tree
from node.ledger.execute import encode_tx_leaf
from node.ledger.wire.bundles import HEADER_BYTES_MAX, BundleHeader
from node.ledger.wire.bundles import decode_header as decode_bundle_header
from node.ledger.wire.payouts import LEAF_BYTES_MAX, TOTAL, PayoutLeaf, check_amount, decode_payout
from node.ledger.wire.receipts import (
    CREDITS_BYTES_MAX,
    RECEIPT_BYTES_MAX,
    Credits,
    Receipt,
    attribution_root,
    decode_credits,
    decode_receipt,
)
from node.ledger.wire.transactions import TRANSACTION_BYTES_MAX, Transaction, decode_transaction

VERSION: Final = 1
RECEIPT, PAYOUT, STATE, TRANSACTION = 1, 2, 3, 4
FIELD_OF_KIND: Final = {
    RECEIPT: "bundles_root",
    PAYOUT: "payouts_root",
    STATE: "state_root",
    TRANSACTION: "txs_root",
}
FILE_BYTES_MAX: Final = 64 << 10
LINK_BYTES_MAX: Final = 8 << 10
FILES_MAX: Final = 16  # proofs in one dossier
PATH_MAX: Final = 63
FIELD_PATH_MAX: Final = 5
STATE_VALUE_BYTES_MAX: Final = 16_384

_PATH: Final = ListOf(H, PATH_MAX)
_FIELD_PATH: Final = ListOf(H, FIELD_PATH_MAX)
_FILE: Final = Record(
    U8, U8, H, U63, U8, H, _FIELD_PATH, Bytes(FILE_BYTES_MAX), Bytes(LINK_BYTES_MAX)
)
_HISTORY: Final = Record(U63, H, _FIELD_PATH, _PATH)
_RECEIPT: Final = Record(
    Bytes(RECEIPT_BYTES_MAX),
    Bytes(CREDITS_BYTES_MAX),
    U32,
    U32,
    _PATH,
    Bytes(HEADER_BYTES_MAX),
    U16,
    U16,
    _PATH,
)
_PAYOUT: Final = Record(Bytes(LEAF_BYTES_MAX), U32, U32, _PATH)
_STATE: Final = Record(
    Bytes(128, 1), Bytes(STATE_VALUE_BYTES_MAX), Either(0, 64), ListOf(H, tree.SIBLINGS_MAX)
)
_TX: Final = Record(Bytes(TRANSACTION_BYTES_MAX), U16, U32, U32, _PATH)
_DOSSIER: Final = ListOf(Bytes(FILE_BYTES_MAX, 1), FILES_MAX, 1)
_ARRAY_OF_9: Final = 0x99  # first byte of one proof; a dossier's items are byte strings
_ARRAY_OF_4: Final = 0x94  # first byte of a history link; a certificate is an array of 6


class ProofFile(NamedTuple):
    """One proof, its body not yet looked at."""

    kind: int
    chain_id: bytes
    height: int
    value: bytes
    field_path: tuple[bytes, ...]
    body: bytes
    link: bytes


class HistoryLink(NamedTuple):
    """The way from a later header: its height, its history_root, and both paths."""

    height: int
    history_root: bytes
    field_path: tuple[bytes, ...]
    path: tuple[bytes, ...]


class ReceiptShown(NamedTuple):
    """A receipt that stands in a settled bundle of a block."""

    receipt: Receipt
    credits: Credits
    raw: bytes
    bundle: BundleHeader


class StateShown(NamedTuple):
    """A flat key of the state and its value; None: it is absent."""

    key: bytes
    value: bytes | None


class TransactionShown(NamedTuple):
    """A transaction in a block, and its code."""

    tx: Transaction
    code: int


Shown = ReceiptShown | PayoutLeaf | StateShown | TransactionShown


class Span(NamedTuple):
    """Heights `first`..`last`, all of which this set signs."""

    first: int
    last: int
    validators: ValidatorSet


class Trust(NamedTuple):
    """What the reader believes beforehand: the chain, and blocks by height, or validator sets.

    `validators` sign every height, a span's only its own.
    """

    chain_id: bytes
    validators: tuple[ValidatorSet, ...] = ()
    blocks: Mapping[int, bytes] = {}  # height -> block id; never changed
    spans: tuple[Span, ...] = ()


# ---- files


def encode_proof(proof: ProofFile) -> bytes:
    """Canonical bytes of one proof."""
    number = field_number(FIELD_OF_KIND[proof.kind])
    kind, chain_id, height, value, path, body, link = proof
    return encode((VERSION, kind, chain_id, height, number, value, path, body, link))


def encode_proofs(proofs: Sequence[ProofFile]) -> bytes:
    """One file of several proofs: a canonical array of proof files, at most 16."""
    assert 0 < len(proofs) <= FILES_MAX
    return encode([encode_proof(proof) for proof in proofs])


def decode_proofs(raw: bytes) -> tuple[ProofFile, ...]:
    """The proofs of a file, one or several; raises `Invalid` `proof.…`."""
    if len(raw) > FILE_BYTES_MAX:
        raise Invalid("proof.too_large", bytes=len(raw))
    if raw[:1] == bytes([_ARRAY_OF_9]) and raw[1:2] == bytes([VERSION]):
        return (decode_proof(raw),)
    return tuple(decode_proof(part) for part in decode(raw, _DOSSIER, FILE_BYTES_MAX, "proof"))


def decode_proof(raw: bytes) -> ProofFile:
    """One proof; raises `Invalid` `proof.too_large|malformed|not_canonical|version|kind|field`."""
    version, kind, *rest = decode(raw, _FILE, FILE_BYTES_MAX, "proof")
    chain_id, height, number, value, path, body, link = rest
    if version != VERSION:
        raise Invalid("proof.version", version=version)
    if kind not in FIELD_OF_KIND:
        raise Invalid("proof.kind", kind=kind)
    if number != field_number(FIELD_OF_KIND[kind]):
        raise Invalid("proof.field", field=number)
    return ProofFile(kind, chain_id, height, value, path, body, link)


# ---- making them


def _proof(header: Header, kind: int, body: Any, link: bytes) -> ProofFile:
    field = FIELD_OF_KIND[kind]
    return ProofFile(
        kind=kind,
        chain_id=header.chain_id,
        height=header.height,
        value=getattr(header, field),
        field_path=header.prove(field),
        body=encode(body),
        link=link,
    )


def prove_receipt(
    header: Header,
    link: bytes,
    bundle_headers: Sequence[bytes],
    place: int,
    receipts: Sequence[bytes],
    index: int,
    credits_raw: bytes,
) -> ProofFile:
    """Receipt `index` of the bundle at `place` of a block. `receipts`: all of that bundle."""
    body = (
        receipts[index],
        credits_raw,
        index,
        len(receipts),
        merkle.prove(receipts, index),
        bundle_headers[place],
        place,
        len(bundle_headers),
        merkle.prove(bundle_headers, place),
    )
    return _proof(header, RECEIPT, body, link)


def prove_payout(header: Header, link: bytes, leaves: Sequence[bytes], index: int) -> ProofFile:
    """Payout leaf `index` of a block's leaves."""
    body = (leaves[index], index, len(leaves), merkle.prove(leaves, index))
    return _proof(header, PAYOUT, body, link)


def prove_state(
    header: Header, link: bytes, read_node: tree.ReadNode, record: bytes, key: bytes,
    value: bytes | None,
) -> ProofFile:  # fmt: skip
    """A flat key as of the header's block: `record` is the tree's root record at that height.

    `value` is what the key holds now; its absence then is proved whatever that is. Raises Invalid
    `ledger.record_changed` when it held something else then.
    """
    proof = tree.prove(read_node, record, key)
    met = proof.leaf
    if met is None or met.key != sha256(key):
        value = b""
    elif value is None or met.value != sha256(value):
        raise Invalid("ledger.record_changed", height=header.height)
    leaf = b"" if met is None else met.key + met.value
    return _proof(header, STATE, (key, value, leaf, proof.siblings), link)


def prove_transaction(
    header: Header, link: bytes, leaves: Sequence[bytes], raws: Sequence[tuple[bytes, int]],
    index: int,
) -> ProofFile:  # fmt: skip
    """Transaction `index` of a block; `raws`: (bytes, code) of all, `leaves` their leaves."""
    raw, code = raws[index]
    body = (raw, code, index, len(leaves), merkle.prove(leaves, index))
    return _proof(header, TRANSACTION, body, link)


def history_link(later: Header, path: Sequence[bytes]) -> bytes:
    """A link through the history of a later header; `path`: of the block id, in that history."""
    return encode((later.height, later.history_root, later.prove("history_root"), tuple(path)))


# ---- verifying them


def block_id_of(proof: ProofFile) -> bytes:
    """The id of the block that the field's path implies; raises `Invalid` `merkle.…`."""
    number = field_number(FIELD_OF_KIND[proof.kind])
    leaf = merkle.leaf_hash(field_leaf(number, proof.value))
    return merkle.root_of_path(leaf, number, len(FIELDS), proof.field_path)


def verify_body(proof: ProofFile) -> Shown:
    """What the body shows under the proof's root; raises `Invalid` with the broken step."""
    return _BODIES[proof.kind](proof)


def verify_link(proof: ProofFile, block_id: bytes, trust: Trust) -> str:
    """How `block_id` is known to be the block at that height; raises `Invalid` `proof.…`.

    Returns "trusted" (the reader named the block), "certificate" or "history".
    """
    if proof.chain_id != trust.chain_id:
        raise Invalid("proof.chain", chain_id=proof.chain_id)
    named = trust.blocks.get(proof.height)
    if named is not None:
        if named != block_id:
            raise Invalid("proof.block", height=proof.height, trusted=named)
        return "trusted"
    if not proof.link:
        raise Invalid("proof.unlinked", height=proof.height)
    if proof.link[0] == _ARRAY_OF_4:
        _verify_history(proof, block_id, trust)
        return "history"
    _verify_quorum(proof, block_id, trust)
    return "certificate"


def _verify_quorum(proof: ProofFile, block_id: bytes, trust: Trust) -> None:
    certificate = decode_certificate(proof.link)
    if (certificate.kind, certificate.height) != (PRECOMMIT, proof.height):
        raise Invalid("proof.certificate", height=certificate.height, kind=certificate.kind)
    if certificate.block_id != block_id:
        raise Invalid("proof.certificate", block_id=certificate.block_id)
    of_height = (span for span in trust.spans if span.first <= proof.height <= span.last)
    known = (*trust.validators, *(span.validators for span in of_height))
    if not known:
        raise Invalid("proof.no_validators", height=proof.height)
    refusal: Invalid | None = None
    for validators in known:
        try:
            verify_certificate(certificate, validators, trust.chain_id)
        except Invalid as error:
            refusal = error
        else:
            return
    assert refusal is not None
    raise refusal


def _verify_history(proof: ProofFile, block_id: bytes, trust: Trust) -> None:
    later = HistoryLink(*decode(proof.link, _HISTORY, LINK_BYTES_MAX, "proof"))
    named = trust.blocks.get(later.height)
    if named is None:
        raise Invalid("proof.history", why="that later block is not trusted", height=later.height)
    number = field_number("history_root")
    leaf = merkle.leaf_hash(field_leaf(number, later.history_root))
    merkle.verify_path(named, leaf, number, len(FIELDS), later.field_path)
    here = merkle.leaf_hash(block_id)
    merkle.verify_path(later.history_root, here, proof.height - 1, later.height - 1, later.path)


def _show_receipt(proof: ProofFile) -> ReceiptShown:
    fields = decode(proof.body, _RECEIPT, FILE_BYTES_MAX, "proof_body")
    raw, credits_raw, index, count, path, header_raw, place, places, header_path = fields
    receipt, credits = decode_receipt(raw), decode_credits(credits_raw)
    if attribution_root(credits_raw) != receipt.attribution_root:
        raise Invalid("proof.credits")
    header = decode_bundle_header(header_raw)
    if count != header.count:
        raise Invalid("proof.count", count=count)
    merkle.verify_path(header.receipts_root, merkle.leaf_hash(raw), index, count, path)
    merkle.verify_path(proof.value, merkle.leaf_hash(header_raw), place, places, header_path)
    return ReceiptShown(receipt, credits, raw, header)


def _show_payout(proof: ProofFile) -> PayoutLeaf:
    raw, index, size, path = decode(proof.body, _PAYOUT, FILE_BYTES_MAX, "proof_body")
    leaf = decode_payout(raw)
    if leaf.kind != TOTAL:
        check_amount(leaf)
    merkle.verify_path(proof.value, merkle.leaf_hash(raw), index, size, path)
    return leaf


def _show_state(proof: ProofFile) -> StateShown:
    key, raw, met, siblings = decode(proof.body, _STATE, FILE_BYTES_MAX, "proof_body")
    value = raw or None  # no record is empty: each is an array
    leaf = tree.Leaf(met[:32], met[32:]) if met else None
    tree.verify(proof.value, key, value, tree.Proof(leaf, siblings))
    return StateShown(key, value)


def _show_transaction(proof: ProofFile) -> TransactionShown:
    raw, code, index, size, path = decode(proof.body, _TX, FILE_BYTES_MAX + 256, "proof_body")
    leaf = merkle.leaf_hash(encode_tx_leaf(raw, code))
    merkle.verify_path(proof.value, leaf, index, size, path)
    return TransactionShown(decode_transaction(raw), code)


_BODIES: Final[Mapping[int, Callable[[ProofFile], Shown]]] = {
    RECEIPT: _show_receipt,
    PAYOUT: _show_payout,
    STATE: _show_state,
    TRANSACTION: _show_transaction,
}
