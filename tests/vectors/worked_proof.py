"""The worked example of ARCHITECTURE.md: one payout proof, cut into lines with what each is.

The smallest that is sensible: a block with one answer of 1 OPEN under the split `whitepaper`, two
credits, one validator. The lines are joined from encodings and then compared with the file that
`prove_payout` makes, so a caption cannot drift from its bytes.
"""

from collections.abc import Sequence

from vectors.agreement import HEADER as TYPICAL
from vectors.agreement import PEOPLE
from vectors.example import CHAIN, signed_by
from vectors.market import CREATOR, PROVIDER, TIME_MS

from consensus.certificate import PRECOMMIT, encode_certificate, make_certificate, vote_body
from consensus.header import field_number
from consensus.primitives import merkle
from consensus.primitives.encoding import encode, wide
from consensus.validators import ValidatorSet
from node.ledger import proofs
from node.ledger.amounts import BPS, split
from node.ledger.parameters import SPLITS
from node.ledger.proofs import ProofFile, Trust
from node.ledger.rules.payout import KINDS
from node.ledger.wire.payouts import TOTAL, PayoutLeaf, encode_payout

FEE = 10**9
MODEL, VERSION, HEIGHT = 1, 1, 12
MATURES_MS = TIME_MS + 86_400_000
VALIDATOR = PEOPLE[0]  # its seed is SHA-256("validator 0")
VALIDATORS = ValidatorSet.found({VALIDATOR.key: 1})
TRUST = Trust(CHAIN, (VALIDATORS,))
FIELD_PATH = ("field 12", "fields 14, 15", "fields 8 to 11", "fields 0 to 7", "fields 16, 17")
LEAF_PATH = ("leaf 3", "leaves 0, 1", "leaves 4 to 7")
LINE_BYTES = 34  # a hash with its head
NUMBERS = (1).to_bytes(8, "big"), (2).to_bytes(8, "big")
PAYEES = {  # kind -> (payee, weight); kinds as page 40 §3 numbers them
    1: ((PROVIDER.key, FEE),),
    2: ((NUMBERS[0], FEE * 2_500), (NUMBERS[1], FEE * 7_500)),
    3: ((CREATOR.key, BPS * BPS),),
    4: ((b"", BPS),),
    5: ((NUMBERS[0], BPS),),
    6: ((b"", BPS),),
}


def payout_leaves() -> list[PayoutLeaf]:
    parts = split(FEE, list(zip(KINDS, SPLITS["whitepaper"], strict=True)))
    leaves = [PayoutLeaf(TOTAL, b"", MODEL, VERSION, 1, 1, FEE, FEE, MATURES_MS)]
    for kind, part in zip(KINDS, parts, strict=True):
        payees = PAYEES.get(kind, ())
        amounts = split(part, payees) if payees else []
        whole = sum(weight for _, weight in payees)
        leaves += [
            PayoutLeaf(kind, payee, MODEL, VERSION, weight, whole, part, amount, MATURES_MS)
            for (payee, weight), amount in zip(payees, amounts, strict=True)
        ]
    return leaves


LEAVES = payout_leaves()
RAWS = [encode_payout(leaf) for leaf in LEAVES]
INDEX = next(i for i, leaf in enumerate(LEAVES) if leaf.payee == NUMBERS[0])
LEAF = LEAVES[INDEX]
HEADER = TYPICAL._replace(
    height=HEIGHT,
    proposer=VALIDATOR.key,
    validators_hash=VALIDATORS.hash(),
    next_validators_hash=VALIDATORS.hash(),
    payouts_root=merkle.root(RAWS),
)
BLOCK_ID = HEADER.block_id()
SIGNATURE = signed_by(VALIDATOR, b"vote", vote_body(PRECOMMIT, HEIGHT, 0, BLOCK_ID)).signature
CERTIFICATE = make_certificate(PRECOMMIT, HEIGHT, 0, BLOCK_ID, {0: SIGNATURE}, 1)


def proof() -> ProofFile:
    return proofs.prove_payout(HEADER, encode_certificate(CERTIFICATE), RAWS, INDEX)


Piece = tuple[bytes, str]  # bytes of the file, and what they are; a long one takes several lines


def array_of(items: int, of: str) -> Piece:
    return bytes([0x90 + items]), f"array of {items}: {of}"


def head_of(raw: bytes, what: str) -> Piece:
    return encode(raw)[: -len(raw)], f"{len(raw)} bytes: {what}"


def captioned(path: Sequence[bytes], whose: Sequence[str]) -> list[Piece]:
    return [(encode(item), f"hash of {what}") for item, what in zip(path, whose, strict=True)]


def pieces() -> list[Piece]:
    """The file from the first byte to the last."""
    made = proof()
    path = merkle.prove(RAWS, INDEX)
    return [
        array_of(9, "a proof file"),
        (encode(proofs.VERSION), "version"),
        (encode(made.kind), "kind 2: a payout"),
        (encode(made.chain_id), "chain_id"),
        (encode(made.height), "height"),
        (encode(field_number("payouts_root")), "field number 13: payouts_root"),
        (encode(made.value), "its value in the header"),
        array_of(len(made.field_path), "field path, up to the block id"),
        *captioned(made.field_path, FIELD_PATH),
        head_of(made.body, "the body"),
        array_of(4, "of a payout"),
        head_of(RAWS[INDEX], "the leaf"),
        *leaf_pieces(),
        (encode(INDEX), "its index"),
        (encode(len(RAWS)), "among so many leaves"),
        array_of(len(path), "path, up to payouts_root"),
        *captioned(path, LEAF_PATH),
        head_of(made.link, "the link, a certificate"),
        *certificate_pieces(),
    ]


def leaf_pieces() -> Sequence[Piece]:
    leaf = LEAF
    return (
        array_of(9, "a payout leaf"),
        (encode(leaf.kind), "kind 2: data"),
        (encode(leaf.payee), "payee: contribution 1"),
        (encode(leaf.model), "model"),
        (encode(leaf.version), "version"),
        (encode(wide(leaf.weight)), "weight: fee × 2,500"),
        (encode(wide(leaf.weight_total)), "of a total of fee × 10,000"),
        (encode(leaf.part), "the data part: 500,000,000"),
        (encode(leaf.amount), "the amount: 125,000,000 grains"),
        (encode(leaf.matures_ms), "when it matures, ms"),
    )


def certificate_pieces() -> Sequence[Piece]:
    made = CERTIFICATE
    return (
        array_of(6, "a certificate"),
        (encode(made.kind), "kind 2: precommits"),
        (encode(made.height), "height"),
        (encode(made.round), "round"),
        (encode(made.block_id), "block id"),
        (encode(made.bitmap), "who signed: member 0"),
        (encode(made.signatures), "the signature, 64 bytes"),
    )


def lines() -> list[str]:
    """`offset  hex  what it is`; what is longer than a line goes on in the next."""
    told, at = [], 0
    for raw, what in pieces():
        for start in range(0, len(raw), LINE_BYTES):
            part = raw[start : start + LINE_BYTES]
            told.append(f"{at:4d}  {part.hex():<68}  {what if not start else ''}".rstrip())
            at += len(part)
    assert b"".join(raw for raw, _ in pieces()) == proofs.encode_proof(proof())
    return told
