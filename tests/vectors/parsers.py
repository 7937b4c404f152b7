"""Every decoder of the pure floors, the encoder that must give its bytes back, and good bytes."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from vectors.agreement import agreement_examples
from vectors.example import Example
from vectors.make import HERE
from vectors.market import market_examples

from consensus import (
    attacks,
    certificate,
    evidence,
    header,
    messages,
    pastblocks,
    skipping,
    validators,
)
from node.ledger import accusations, execute, genesis, proofs
from node.ledger.wire import (
    blocks,
    bundles,
    claims,
    exchange,
    openings,
    orders,
    payouts,
    receipts,
    transactions,
)

EXAMPLES: dict[str, Example] = market_examples() | agreement_examples()
GENESIS = bytes.fromhex(json.loads((HERE / "chain.json").read_text(encoding="utf-8"))["genesis"])


class Parser(NamedTuple):
    """A decoder, the encoder that must give its bytes back, and names of good examples."""

    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    goods: tuple[str, ...]


def names(prefix: str) -> tuple[str, ...]:
    return tuple(name for name in EXAMPLES if name.startswith(prefix))


def decode_file(raw: bytes) -> tuple[bool, tuple[proofs.ProofFile, ...]]:
    """With whether it is a dossier: one of one proof is another file than the proof alone."""
    return raw[:2] != b"\x99\x01", proofs.decode_proofs(raw)


def encode_file(file: tuple[bool, tuple[proofs.ProofFile, ...]]) -> bytes:
    is_dossier, files = file
    return proofs.encode_proofs(files) if is_dossier else proofs.encode_proof(files[0])


def decode_any_body(raw: bytes) -> Any:
    """The body of a frame, its kind guessed as its head suggests."""
    if len(raw) == messages.VOTE_BYTES:
        return messages.decode_body(messages.VOTE, raw)
    kind = messages.CERTIFICATE if raw[:1] == b"\x96" else messages.PROPOSAL
    return messages.decode_body(kind, raw)


def decode_any_subject(raw: bytes) -> openings.Subject:
    """Of a receipt or of a version, as its head suggests."""
    return openings.decode_subject(openings.SHARES if raw[:1] == b"\x95" else openings.NORM, raw)


def decode_any_opened(raw: bytes) -> openings.Opened:
    """The same of an opening: of a claim alone, or with a row."""
    return openings.decode_opened(openings.ROW if raw[:1] == b"\x95" else openings.SHARES, raw)


def encode_any_body(message: messages.Message) -> bytes:
    return messages.decode_frame(messages.encode_message(message))[1]


PROVIDER_FRAMES = tuple(
    f"infer_{kind}" for kind in ("Accepted", "Tokens", "Alive", "Finished", "RefusedFrame")
)
SINGLE_PROOFS = tuple(name for name in names("proof_") if name != "proof_dossier")


def beside(decode_many: Callable[[list[bytes]], list[Any]], good: str, raw: bytes) -> Any:
    """What a decoder of many makes of `raw` between two good ones."""
    neighbour = EXAMPLES[good].raw
    first, found, last = decode_many([neighbour, raw, neighbour])
    assert first == last
    return found


# fmt: off
PARSERS: dict[Callable[..., Any], Parser] = {
    messages.decode_vote: Parser(
        messages.decode_vote, messages.encode_vote, ("prevote", "precommit_nil")),
    messages.decode_proposal: Parser(
        messages.decode_proposal, messages.encode_proposal, ("proposal", "proposal_again")),
    messages.decode_status: Parser(
        messages.decode_status, messages.encode_status, ("status",)),
    messages.decode_frame: Parser(
        messages.decode_frame, lambda frame: messages.encode_frame(*frame), ("frame",)),
    messages.decode_message: Parser(
        messages.decode_message, messages.encode_message, ("frame",)),
    messages.decode_body: Parser(
        decode_any_body, encode_any_body, ("prevote", "proposal_again", "certificate")),
    certificate.decode_certificate: Parser(
        certificate.decode_certificate, certificate.encode_certificate, ("certificate",)),
    evidence.decode_evidence: Parser(
        evidence.decode_evidence, evidence.encode_evidence, names("evidence_")),
    skipping.decode_light_block: Parser(
        skipping.decode_light_block, skipping.encode_light_block, ("light_block",)),
    pastblocks.decode_past_block: Parser(
        pastblocks.decode_past_block, pastblocks.encode_past_block, ("past_block",)),
    attacks.decode_attack: Parser(
        attacks.decode_attack, attacks.encode_attack, ("light_attack",)),
    accusations.decode_accusation: Parser(
        accusations.decode_accusation, accusations.encode_accusation,
        (*names("evidence_"), "light_attack")),
    validators.decode_validators: Parser(
        validators.decode_validators, validators.encode_validators, ("validators",)),
    header.decode_header: Parser(header.decode_header, header.encode_header, ("header",)),
    execute.decode_tx_leaf: Parser(
        execute.decode_tx_leaf, lambda pair: execute.encode_tx_leaf(*pair), ("tx_leaf",)),
    proofs.decode_proof: Parser(proofs.decode_proof, proofs.encode_proof, SINGLE_PROOFS),
    proofs.decode_proofs: Parser(decode_file, encode_file, names("proof_")),
    transactions.decode_fraud: Parser(
        transactions.decode_fraud, transactions.encode_fraud, ("fraud_file",)),
    openings.decode_subject: Parser(
        decode_any_subject, openings.encode_opening,
        ("fraud_1_ReceiptSubject", "fraud_3_VersionSubject")),
    openings.decode_opened: Parser(
        decode_any_opened, openings.encode_opening,
        ("fraud_1_SharesOpened", "fraud_2_RowOpened")),
    payouts.decode_payout: Parser(
        payouts.decode_payout, payouts.encode_payout, names("payout_")),
    receipts.decode_receipt: Parser(
        receipts.decode_receipt, receipts.encode_receipt, ("receipt",)),
    receipts.decode_receipts: Parser(
        lambda raw: beside(receipts.decode_receipts, "receipt", raw),
        receipts.encode_receipt, ("receipt",)),
    bundles.decode_sections: Parser(
        lambda raw: beside(bundles.decode_sections, "section", raw),
        bundles.encode_section, ("section",)),
    orders.decode_vouchers: Parser(
        lambda raw: beside(orders.decode_vouchers, "voucher", raw),
        orders.encode_voucher, ("voucher",)),
    receipts.decode_many_credits: Parser(
        lambda raw: beside(receipts.decode_many_credits, "credits", raw),
        receipts.encode_credits, ("credits",)),
    receipts.decode_credits: Parser(
        receipts.decode_credits, receipts.encode_credits, names("credits")),
    transactions.decode_transaction: Parser(
        transactions.decode_transaction, EXAMPLES["tx_Transfer"].encode,
        tuple(name for name in names("tx_") if name != "tx_leaf")),
    bundles.decode_header: Parser(
        bundles.decode_header, bundles.encode_header, ("bundle_header",)),
    bundles.decode_section: Parser(
        bundles.decode_section, bundles.encode_section, ("section",)),
    bundles.decode_body: Parser(bundles.decode_body, bundles.encode_body, ("bundle_body",)),
    claims.decode_header: Parser(claims.decode_header, claims.encode_header, ("index_header",)),
    claims.decode_row_leaf: Parser(
        claims.decode_row_leaf, claims.encode_row_leaf, ("row_leaf",)),
    claims.decode_statement: Parser(
        claims.decode_statement, claims.encode_statement, ("statement",)),
    exchange.decode_payer_frame: Parser(
        exchange.decode_payer_frame, exchange.encode_frame,
        ("infer_Start", "infer_Tick", "infer_Reveal", "infer_Cancel")),
    exchange.decode_provider_frame: Parser(
        exchange.decode_provider_frame, exchange.encode_frame, PROVIDER_FRAMES),
    orders.decode_order: Parser(orders.decode_order, orders.encode_order, ("order",)),
    orders.decode_sampling: Parser(
        orders.decode_sampling, orders.encode_sampling, ("sampling",)),
    orders.decode_voucher: Parser(orders.decode_voucher, orders.encode_voucher, ("voucher",)),
    orders.decode_offer: Parser(orders.decode_offer, orders.encode_offer, ("offer",)),
    blocks.decode_payload: Parser(
        blocks.decode_payload, blocks.encode_payload, ("payload",)),
    blocks.decode_block: Parser(blocks.decode_block, blocks.encode_block, ("block",)),
    genesis.decode_genesis: Parser(genesis.decode_genesis, genesis.encode_genesis, ()),
}
# fmt: on

OURS = {  # their callers have the exact length in hand, and assert it
    claims.decode_meta,
    validators.decode_priority,
}


def goods_of(parser: Parser) -> list[bytes]:
    return [EXAMPLES[name].raw for name in parser.goods] or [GENESIS]


def word(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__name__}"
