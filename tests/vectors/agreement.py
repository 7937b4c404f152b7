"""Examples of page 20's wire objects, and one block that holds page 30's: its proofs fit it."""

from bundle_kit import Party, party
from vectors import market
from vectors.example import CHAIN, Example, h, signed_by

from consensus import attacks, evidence, messages, pastblocks, skipping
from consensus import certificate as certificates
from consensus.certificate import PRECOMMIT, PREVOTE, Certificate, make_certificate, vote_body
from consensus.header import Header, decode_header, encode_header
from consensus.messages import Proposal, Status, Vote
from consensus.primitives import merkle
from consensus.primitives.digest import sha256
from consensus.validators import ValidatorSet, decode_validators, encode_validators
from node.ledger import proofs, tables, tree
from node.ledger.proofs import ProofFile, Trust
from node.ledger.wire import blocks
from node.ledger.wire.payouts import encode_payout

PEOPLE = tuple(party(f"validator {number}") for number in range(4))
VALIDATORS = ValidatorSet.found({who.key: 10 + i for i, who in enumerate(PEOPLE)})
HEIGHT = 300

# ---- what stands in the block

TX_LEAVES = tuple(
    market.encode_tx_leaf(market.transaction(payload).raw, code)
    for payload, code in zip(market.TRANSACTIONS[:3], (0, 0, 21), strict=True)
)
BUNDLE = market.bundle()
PAYOUT_LEAVES = tuple(encode_payout(leaf) for leaf in market.PAYOUTS)
RECORDS = tuple(
    (tables.ACCOUNT.flat_key((who.key,)), tables.ACCOUNT.encode(tables.Account(3, 10**9 + i)))
    for i, who in enumerate((*PEOPLE, market.PAYER, market.PROVIDER))
)
TREE = tree.update(lambda _: None, tree.EMPTY_RECORD, HEIGHT, RECORDS)
EARLIER = tuple(h(f"block {height}") for height in range(1, HEIGHT))


def who_is(key: bytes) -> Party:
    return next(who for who in PEOPLE if who.key == key)


def member(index: int) -> Party:
    return who_is(VALIDATORS.members[index].key)


def certify(kind: int, height: int, round: int, block_id: bytes, members: int = 3) -> Certificate:
    body = vote_body(kind, height, round, block_id)
    signed = {i: signed_by(member(i), b"vote", body).signature for i in range(members)}
    return make_certificate(kind, height, round, block_id, signed, len(VALIDATORS))


LAST_CERTIFICATE = certify(PRECOMMIT, HEIGHT - 1, 0, EARLIER[-1])


def header(height: int = HEIGHT, history: tuple[bytes, ...] = EARLIER) -> Header:
    return Header(
        version=1,
        app_version=1,
        chain_id=CHAIN,
        height=height,
        time_ms=market.TIME_MS + 5_000,
        parent_id=history[-1],
        proposer=VALIDATORS.turn,
        validators_hash=VALIDATORS.hash(),
        next_validators_hash=VALIDATORS.advanced().hash(),
        params_hash=h("parameters"),
        state_root=TREE.root,
        txs_root=merkle.root(TX_LEAVES),
        bundles_root=merkle.root([BUNDLE.header]),
        payouts_root=merkle.root(PAYOUT_LEAVES),
        evidence_root=merkle.EMPTY_ROOT,
        last_commit_hash=sha256(certificates.encode_certificate(LAST_CERTIFICATE)),
        history_root=merkle.root(history),
        supply=999_999_999_999_000_000,
    )


HEADER = header()
BLOCK_ID = HEADER.block_id()
COMMIT = certify(PRECOMMIT, HEIGHT, 1, BLOCK_ID)
LATER = header(HEIGHT + 1, (*EARLIER, BLOCK_ID))
TRUST = Trust(CHAIN, (VALIDATORS,), {LATER.height: LATER.block_id()})


def vote(index: int, kind: int, block_id: bytes) -> Vote:
    unsigned = Vote(kind, HEIGHT, 1, block_id, index)
    signature = signed_by(member(index), b"vote", unsigned.body()).signature
    return Vote(kind, HEIGHT, 1, block_id, index, signature)


def proposal(round: int, polka: Certificate | None, proposed: Header = HEADER) -> Proposal:
    pol_round = -1 if polka is None else polka.round
    unsigned = Proposal(proposed.height, round, pol_round, proposed, polka)
    who = who_is(VALIDATORS.proposer(round))
    signature = signed_by(who, b"proposal", unsigned.body()).signature
    return Proposal(proposed.height, round, pol_round, proposed, polka, signature)


def examples_of_messages() -> dict[str, Example]:
    made = {}
    for name, said in (
        ("prevote", vote(2, PREVOTE, BLOCK_ID)),
        ("precommit_nil", vote(0, PRECOMMIT, bytes(32))),
    ):
        made[name] = Example(
            said, messages.encode_vote(said), messages.decode_vote, messages.encode_vote,
            signed_by(member(said.index), b"vote", said.body()),
        )  # fmt: skip
    for name, offered in (
        ("proposal", proposal(0, None)),
        ("proposal_again", proposal(2, certify(PREVOTE, HEIGHT, 1, BLOCK_ID))),
    ):
        made[name] = Example(
            offered, messages.encode_proposal(offered), messages.decode_proposal,
            messages.encode_proposal,
            signed_by(who_is(VALIDATORS.proposer(offered.round)), b"proposal", offered.body()),
            "block_id", offered.block_id,
        )  # fmt: skip
    status = Status(HEIGHT, 1, 2, True, b"\x07", b"\x01")
    made["status"] = Example(
        status, messages.encode_status(status), messages.decode_status, messages.encode_status
    )
    framed = messages.encode_message(COMMIT)
    made["frame"] = Example(COMMIT, framed, messages.decode_message, messages.encode_message)
    return made


def examples_of_evidence() -> dict[str, Example]:
    one, other = vote(1, PRECOMMIT, BLOCK_ID), vote(1, PRECOMMIT, h("another block"))
    twice = VALIDATORS.index(VALIDATORS.proposer(0))
    assert twice is not None
    offered = [proposal(0, None), proposal(0, None, HEADER._replace(time_ms=1))]
    made = {}
    for name, found in (
        ("evidence_votes", evidence.two_votes(one, other)),
        ("evidence_proposals", evidence.two_proposals(offered[0], offered[1], twice)),
    ):
        made[name] = Example(
            found, evidence.encode_evidence(found), evidence.decode_evidence,
            evidence.encode_evidence, None, "evidence_id", evidence.evidence_id(found),
        )  # fmt: skip
    return made


def examples_of_light() -> dict[str, Example]:
    members = decode_validators(encode_validators(VALIDATORS))  # no priorities travel
    block = skipping.LightBlock(HEADER, COMMIT, members, members)
    attack = attacks.LightClientAttack(HEIGHT - 1, block)
    behind = HEADER._replace(
        height=HEIGHT + 1,
        parent_id=BLOCK_ID,
        last_commit_hash=sha256(certificates.encode_certificate(COMMIT)),
    )
    past = pastblocks.PastBlock(block, behind, (h("a sibling"), h("another")))
    return {
        "light_block": Example(
            block, skipping.encode_light_block(block), skipping.decode_light_block,
            skipping.encode_light_block, None, "block_id", BLOCK_ID,
        ),
        "past_block": Example(
            past, pastblocks.encode_past_block(past), pastblocks.decode_past_block,
            pastblocks.encode_past_block,
        ),
        "light_attack": Example(
            attack, attacks.encode_attack(attack), attacks.decode_attack, attacks.encode_attack,
            None, "evidence_id", attacks.attack_id(attack),
        ),
    }  # fmt: skip


def examples_of_blocks() -> dict[str, Example]:
    raw, commit = encode_header(HEADER), certificates.encode_certificate(COMMIT)
    pieces = tuple(example.raw for example in examples_of_evidence().values())
    transactions = tuple(market.transaction(payload).raw for payload in market.TRANSACTIONS[:3])
    payload = blocks.Payload(transactions, (BUNDLE.hash,), pieces)
    payload_raw = blocks.encode_payload(payload)
    last = certificates.encode_certificate(LAST_CERTIFICATE)
    block = blocks.Block(raw, payload_raw, last)
    validators = encode_validators(VALIDATORS)
    return {
        "validators": Example(
            decode_validators(validators), validators, decode_validators, encode_validators,
            None, "validators_hash", VALIDATORS.hash(),
        ),
        "header": Example(
            HEADER, raw, decode_header, encode_header, None, "block_id", BLOCK_ID
        ),
        "certificate": Example(
            COMMIT, commit, certificates.decode_certificate, certificates.encode_certificate,
            None, "last_commit_hash", sha256(commit),
        ),
        "payload": Example(
            payload, payload_raw, blocks.decode_payload, blocks.encode_payload
        ),
        "block": Example(
            block, blocks.encode_block(block), blocks.decode_block, blocks.encode_block
        ),
    }  # fmt: skip


# ---- proof files of all four kinds, by certificate or through the history of the next header


def proof_files() -> dict[str, ProofFile]:
    link = certificates.encode_certificate(COMMIT)
    history = proofs.history_link(LATER, merkle.prove((*EARLIER, BLOCK_ID), HEIGHT - 1))
    read, record = dict(TREE.nodes).get, TREE.record
    present, value = RECORDS[-1]
    absent = tables.ACCOUNT.flat_key((market.CREATOR.key,))
    first, second = market.PARTS
    received = (*first.receipts, *second.receipts)
    raws = [market.decode_tx_leaf(leaf) for leaf in TX_LEAVES]
    return {
        "proof_receipt": proofs.prove_receipt(
            HEADER, link, [BUNDLE.header], 0, received, 0, market.CREDITED
        ),
        "proof_payout": proofs.prove_payout(HEADER, link, PAYOUT_LEAVES, 1),
        "proof_state": proofs.prove_state(HEADER, link, read, record, present, value),
        "proof_state_absent": proofs.prove_state(HEADER, link, read, record, absent, None),
        "proof_transaction": proofs.prove_transaction(HEADER, link, TX_LEAVES, raws, 2),
        "proof_by_history": proofs.prove_payout(HEADER, history, PAYOUT_LEAVES, 0),
    }


def examples_of_proofs() -> dict[str, Example]:
    files = proof_files()
    made = {
        name: Example(
            proof, proofs.encode_proof(proof), proofs.decode_proof, proofs.encode_proof,
            None, "block_id", BLOCK_ID,
        )
        for name, proof in files.items()
    }  # fmt: skip
    several = (files["proof_receipt"], files["proof_payout"])
    made["proof_dossier"] = Example(
        several, proofs.encode_proofs(several), proofs.decode_proofs, proofs.encode_proofs
    )
    return made


def agreement_examples() -> dict[str, Example]:
    return (
        examples_of_messages()
        | examples_of_evidence()
        | examples_of_light()
        | examples_of_blocks()
        | examples_of_proofs()
    )
