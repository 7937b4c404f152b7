"""`olnode bench proofs`: a receipt and the payout of one of its credits, in one file, verified.

The block is a busy one: 16 bundles of 256 receipts, 200 payout leaves, and a certificate of five of
seven validators. What is timed is all that `olnode verify` does with the file: decoding, each path,
the payout's sum, the comparison across, and the signatures of the quorum, which the file carries
once. CPU time, the median over rounds.
"""

import argparse
import random
import statistics
import time
from typing import Final, NamedTuple

from bench.protocol import AT_MOST, Budget, finish
from bundle_kit import CHAIN, LaneSession, party, some_credits

from consensus.certificate import PRECOMMIT, encode_certificate, make_certificate, vote_body
from consensus.header import Header
from consensus.primitives import merkle
from consensus.primitives.digest import signing_bytes
from consensus.validators import ValidatorSet
from node import light
from node.ledger import proofs, tables
from node.ledger.proofs import Trust
from node.ledger.wire.bundles import Bundle, build_bundle, decode_body
from node.ledger.wire.payouts import PayoutLeaf, encode_payout
from node.ledger.wire.receipts import BPS, decode_credits, decode_receipt

VALIDATORS: Final = 7
QUORUM: Final = 5  # more than two thirds of seven
BUNDLES: Final = 16
RECEIPTS: Final = 256  # of a bundle
PER_SECTION: Final = 16
CREDITS: Final = 4  # of a receipt
PAYOUTS: Final = 200
ROUNDS: Final = 201
HEIGHT: Final = 1_000_000
TIME_MS: Final = 1_700_000_000_000
PART: Final = 5 * 10**9  # grains for the data of a version
BUDGETS: Final = (
    Budget("proof_bytes_7_validators", AT_MOST, 2_500),
    Budget("verify_ms", AT_MOST, 2),
)


class Made(NamedTuple):
    """A file, what its reader trusts, and the bytes of each proof in it."""

    raw: bytes
    trust: Trust
    receipt_bytes: int
    payout_bytes: int


def make(receipts: int = RECEIPTS) -> Made:
    """The file of one receipt in the midst of its bundle, and of its greatest credit."""
    chance = random.Random(1)
    bundle = _bundle(chance, receipts)
    parts = decode_body(bundle.body)
    received = [raw for part in parts for raw in part.receipts]
    credited = [raw for part in parts for raw in part.credits]
    index = len(received) // 2
    headers = [chance.randbytes(len(bundle.header)) for _ in range(BUNDLES - 1)]
    headers.insert(BUNDLES // 2, bundle.header)
    leaves, place = _payouts(chance, received[index], credited[index])

    signers = [party(f"validator {number}") for number in range(VALIDATORS)]
    validators = ValidatorSet.found({signer.key: 1 for signer in signers})
    header = _header(
        validators, bundles_root=merkle.root(headers), payouts_root=merkle.root(leaves)
    )
    by_key = {signer.key: signer for signer in signers}
    body = vote_body(PRECOMMIT, HEIGHT, 0, header.block_id())
    message = signing_bytes(b"vote", CHAIN, body)
    signed = {
        at: by_key[member.key].sign(message)
        for at, member in enumerate(validators.members[:QUORUM])
    }
    link = encode_certificate(
        make_certificate(PRECOMMIT, HEIGHT, 0, header.block_id(), signed, VALIDATORS)
    )
    receipt = proofs.prove_receipt(
        header, link, headers, BUNDLES // 2, received, index, credited[index]
    )
    payout = proofs.prove_payout(header, b"", leaves, place)
    return Made(
        proofs.encode_proofs([receipt, payout]),
        Trust(CHAIN, (validators,)),
        len(proofs.encode_proof(receipt)),
        len(proofs.encode_proof(payout)),
    )


def _bundle(chance: random.Random, receipts: int) -> Bundle:
    provider, parts = party("provider"), []
    for number in range(0, receipts, PER_SECTION):
        session = LaneSession(chance.randbytes(32), 0, party(f"payer {number}"), provider, chance)
        for _ in range(min(PER_SECTION, receipts - number)):
            session.serve(some_credits(chance, CREDITS), model=1 + chance.randrange(8))
        parts.append(session.cut())
    return build_bundle(
        chain_id=CHAIN, provider=provider.key, bundle_seq=HEIGHT, parts=parts, sign=provider.sign
    )


def _payouts(
    chance: random.Random, receipt_raw: bytes, credits_raw: bytes
) -> tuple[list[bytes], int]:
    """A block's leaves, sorted, and the place of the receipt's greatest credit among them."""
    receipt = decode_receipt(receipt_raw)
    number, share_bps = max(decode_credits(credits_raw), key=lambda credit: credit[1])
    whole = 500 * receipt.fee * BPS  # of all answers of the block
    numbers = {number, *chance.sample(range(1, 50_000), PAYOUTS - 1)}
    leaves = []
    for payee in sorted(numbers):
        weight = receipt.fee * share_bps if payee == number else chance.randrange(1, whole // 500)
        leaves.append(
            PayoutLeaf(
                tables.KIND_DATA, payee.to_bytes(8, "big"), receipt.model, receipt.model_version,
                weight, whole, PART, PART * weight // whole, TIME_MS + 86_400_000,
            )
        )  # fmt: skip
    return [encode_payout(leaf) for leaf in leaves], sorted(numbers).index(number)


def _header(validators: ValidatorSet, **roots: bytes) -> Header:
    return Header(
        version=1,
        app_version=1,
        chain_id=CHAIN,
        height=HEIGHT,
        time_ms=TIME_MS,
        parent_id=b"\1" * 32,
        proposer=validators.members[0].key,
        validators_hash=validators.hash(),
        next_validators_hash=validators.hash(),
        params_hash=b"\2" * 32,
        state_root=b"\3" * 32,
        txs_root=merkle.EMPTY_ROOT,
        evidence_root=merkle.EMPTY_ROOT,
        last_commit_hash=b"\4" * 32,
        history_root=b"\5" * 32,
        supply=10**18,
        **roots,
    )


def measure(*, receipts: int = RECEIPTS, rounds: int = ROUNDS) -> dict[str, object]:
    """The figures of page 80, and each proof alone."""
    made = make(receipts)
    assert light.verify_file(made.raw, made.trust).refusal is None
    rounds_ms = []
    for _ in range(rounds):
        began_s = time.process_time()
        light.verify_file(made.raw, made.trust)
        rounds_ms.append(1_000 * (time.process_time() - began_s))
    return {
        "proof_bytes_7_validators": len(made.raw),
        "verify_ms": round(statistics.median(rounds_ms), 3),
        "receipt_proof_bytes": made.receipt_bytes,
        "payout_proof_bytes": made.payout_bytes,
    }


def main() -> None:
    """The command line of `olnode bench proofs`."""
    parser = argparse.ArgumentParser(prog="olnode bench proofs")
    parser.add_argument("--receipts", type=int, default=RECEIPTS, help="of a bundle")
    given = parser.parse_args()
    finish(measure(receipts=given.receipts), BUDGETS)


if __name__ == "__main__":
    main()
