"""Examples of page 30's wire objects: orders to bundles, transactions, payouts, claims, frames."""

from functools import partial
from typing import Any

from bundle_kit import Party, party
from chain_kit import accusation, coop_close, rotation
from vectors.example import CHAIN, Example, h, signed_by

from consensus.primitives import merkle
from consensus.primitives.digest import sha256
from node.ledger.execute import decode_tx_leaf, encode_tx_leaf
from node.ledger.wire import bundles, claims, exchange, openings, orders, payouts, receipts
from node.ledger.wire import transactions as wire
from node.ledger.wire.bundles import BodyPart, Bundle, Section
from node.ledger.wire.orders import Load, Offer, OfferedModel, Order, OrderSampling, Voucher
from node.ledger.wire.payouts import TOTAL, PayoutLeaf
from node.ledger.wire.receipts import Receipt

PAYER, PROVIDER, CREATOR = party("payer"), party("provider"), party("creator")
SALT = bytes(range(16))
NONCES = (h("payer nonce"), h("provider nonce"))
CHANNEL = orders.channel_id(CHAIN, PAYER.key, PROVIDER.key, 7)
TIME_MS = 1_700_000_000_000
PROMPT = (1, 128, 65_535, 2**32 - 1)
ANSWER = (5, 6, 7)
CREDITS = ((1, 6_120), (200, 2_455), (70_000, 1_425))

SAMPLING = OrderSampling(1, 700, 950, 40, 256, 2, (b"\n\n", b"stop"), 0)
ORDER = Order(
    version=1,
    model=3,
    model_version=2,
    max_in=812,
    max_out=512,
    prompt_commit=orders.prompt_commit(SALT, PROMPT),
    sampling_hash=sha256(orders.encode_sampling(SAMPLING)),
    seed_commit=orders.seed_commit(NONCES[0]),
    quantum=256,
    deadline_ms=TIME_MS + 60_000,
    flags=orders.PAYER_SEEDED,
    salt16=SALT,
)
ORDER_HASH = orders.order_hash(orders.encode_order(ORDER))
OFFER = Offer(
    version=1,
    provider=PROVIDER.key,
    peer_key=party("peer").key,
    seq=9,
    addresses=(b"/ip4/192.0.2.1/tcp/4001", b"/dns4/node.example/tcp/4001"),
    models=(OfferedModel(3, 1, 0, 0), OfferedModel(3, 2, 1, 500)),
    load=Load(32, 1, 850),
    expires_ms=TIME_MS + 300_000,
)


def receipt(seq: int, credits: bytes, **fields: Any) -> Receipt:
    made = Receipt(
        version=1,
        channel=CHANNEL,
        lane=0,
        seq=seq,
        order_hash=ORDER_HASH,
        model=3,
        model_version=2,
        tokens_in=812,
        tokens_out=143,
        fee=27_309_200,
        answer_root=receipts.answer_root(SALT, *NONCES, [ANSWER, ()]),
        attribution_root=receipts.attribution_root(credits),
        sketch_hash=h("sketch"),
        fingerprint_hash=h("fingerprint"),
        started_ms=TIME_MS + 1_000,
        finished_ms=TIME_MS + 3_250,
        status=receipts.COMPLETE,
    )
    return made._replace(**fields)


# ---- a bundle: two acknowledged receipts of lane 0, one receipt of lane 1 claimed from the hold

IN_PART = ((0, 2_700), (7, 7_300))  # 0: the model's maintenance fund
IN_PART_RAW = receipts.encode_credits(IN_PART)
CREDITED, UNCREDITED = receipts.encode_credits(CREDITS), receipts.encode_credits(())
FIRST = receipt(1, CREDITED)
SECOND = receipt(2, UNCREDITED, fee=1_000_000, tokens_out=0, status=receipts.PARTIAL)
CLAIMED = receipt(1, CREDITED, lane=1)


def voucher(**fields: Any) -> Voucher:
    made = Voucher(
        version=1,
        channel=CHANNEL,
        lane=0,
        seq=3,
        sub=0,
        cumulative=FIRST.fee + SECOND.fee,
        accumulator=accumulated(FIRST, SECOND),
        hold=0,
        order_hash=orders.ZERO_HASH,
        expires_ms=TIME_MS + 3_600_000,
    )
    return made._replace(**fields)


def accumulated(*done: Receipt) -> bytes:
    here = receipts.accumulator_start(CHANNEL, 0)
    for each in done:
        here = receipts.accumulate_receipt(here, receipts.encode_receipt(each))
    return here


LAST = voucher()
HOLDING = voucher(
    lane=1, seq=1, sub=2, cumulative=0, accumulator=receipts.accumulator_start(CHANNEL, 1),
    hold=CLAIMED.fee, order_hash=ORDER_HASH,
)  # fmt: skip


def section(promise: Voucher, done: tuple[Receipt, ...], last_receipt_sig: bytes) -> Section:
    raw = orders.encode_voucher(promise)
    return Section(
        channel=CHANNEL,
        lane=promise.lane,
        from_seq=done[0].seq,
        to_seq=done[-1].seq,
        amount=sum(each.fee for each in done),
        voucher=raw,
        voucher_sig=signed_by(PAYER, b"voucher", raw).signature,
        last_receipt_sig=last_receipt_sig,
    )


def body_part(part: Section, *done: tuple[Receipt, bytes]) -> BodyPart:
    raws, credits = zip(*((receipts.encode_receipt(r), c) for r, c in done), strict=True)
    return BodyPart(bundles.encode_section(part), raws, credits)


CLAIM_SIGNING = signed_by(PROVIDER, b"receipt", receipts.encode_receipt(CLAIMED))
SECTIONS = (
    section(LAST, (FIRST, SECOND), b""),
    section(HOLDING, (CLAIMED,), CLAIM_SIGNING.signature),
)
PARTS = (
    body_part(SECTIONS[0], (FIRST, CREDITED), (SECOND, UNCREDITED)),
    body_part(SECTIONS[1], (CLAIMED, CREDITED)),
)


def bundle() -> Bundle:
    return bundles.build_bundle(
        chain_id=CHAIN, provider=PROVIDER.key, bundle_seq=4, parts=PARTS, sign=PROVIDER.sign
    )


def examples_of_answers() -> dict[str, Example]:
    made = bundle()
    order, sampling = orders.encode_order(ORDER), orders.encode_sampling(SAMPLING)
    offer, last = orders.encode_offer(OFFER), orders.encode_voucher(LAST)
    claimed = receipts.encode_receipt(CLAIMED)
    parts = bundles.encode_section(SECTIONS[1])
    return {
        "sampling": Example(
            SAMPLING, sampling, orders.decode_sampling, orders.encode_sampling,
            None, "sampling_hash", ORDER.sampling_hash,
        ),
        "order": Example(
            ORDER, order, orders.decode_order, orders.encode_order, None, "order_hash", ORDER_HASH
        ),
        "voucher": Example(
            LAST, last, orders.decode_voucher, orders.encode_voucher,
            signed_by(PAYER, b"voucher", last),
        ),
        "receipt": Example(
            CLAIMED, claimed, receipts.decode_receipt, receipts.encode_receipt,
            CLAIM_SIGNING, "receipt_id", receipts.receipt_id(claimed),
        ),
        "credits": Example(
            CREDITS, CREDITED, receipts.decode_credits, receipts.encode_credits,
            None, "attribution_root", CLAIMED.attribution_root,
        ),
        "credits_in_part": Example(
            IN_PART, IN_PART_RAW, receipts.decode_credits, receipts.encode_credits,
            None, "attribution_root", receipts.attribution_root(IN_PART_RAW),
        ),
        "credits_empty": Example(
            (), UNCREDITED, receipts.decode_credits, receipts.encode_credits,
            None, "attribution_root", SECOND.attribution_root,
        ),
        "section": Example(
            SECTIONS[1], parts, bundles.decode_section, bundles.encode_section,
            None, "leaf_hash", merkle.leaf_hash(parts),
        ),
        "bundle_header": Example(
            bundles.decode_header(made.header), made.header, bundles.decode_header,
            bundles.encode_header, signed_by(PROVIDER, b"bundle", made.header),
            "bundle_hash", made.hash,
        ),
        "bundle_body": Example(
            PARTS, made.body, bundles.decode_body, bundles.encode_body,
            None, "body_hash", sha256(made.body),
        ),
        "offer": Example(
            OFFER, offer, orders.decode_offer, orders.encode_offer,
            signed_by(PROVIDER, b"offer", offer),
        ),
    }  # fmt: skip


# ---- transactions

TERMS = (h("charter"), (1, 7), 0, 2, 10_000_000, 500, 1_209_600_000, 1)
PARTS_OF = ((1, 1, 1_000), (2, 5, 2_500))

TOLD = {  # of both receipts: no kit's chance is in the vector
    "order_hash": ORDER_HASH, "model": 3, "model_version": 2, "tokens_in": 812, "tokens_out": 143,
    "fee": 27_309_200, "answer_root": h("answer"), "sketch_hash": h("sketch"),
    "attribution_root": h("credits"), "fingerprint_hash": h("fingerprint"),
    "started_ms": TIME_MS, "finished_ms": TIME_MS + 1_000,
}  # fmt: skip

TRANSACTIONS = (
    wire.Transfer(PROVIDER.key, 125_000_000, b"thank you"),
    wire.MultiTransfer(tuple(sorted(((PROVIDER.key, 1), (PAYER.key, 2**63 - 1))))),
    rotation(CHAIN, CREATOR.key, 5, party("new key")),
    wire.OpenChannel(PROVIDER.key, PAYER.key, 10**10, 0),
    wire.TopUpChannel(CHANNEL, 10**9),
    wire.CloseChannel(CHANNEL),
    coop_close(CHAIN, CHANNEL, 27_309_200, PAYER, PROVIDER),
    wire.RegisterProvider(party("peer").key, PROVIDER.key),
    wire.UpdateProvider(party("new peer").key, PAYER.key, 2),
    wire.Bond(1, PROVIDER.key, 10**12),
    wire.Unbond(1, PROVIDER.key, 10**12),
    wire.Unjail(1),
    wire.CreateDatanet(b"stews-2", TERMS),
    wire.Contribute(1, 0, h("root"), h("content"), 65_536, 9_000_000, 7, 0, b""),
    wire.Curate(1, 1, h("reason")),
    wire.WithdrawContribution(2**63 - 1),
    wire.Snapshot(1, h("snapshot"), 3, 36),
    wire.RegisterModel(b"stews", h("base"), 7, 1, 1_000),
    wire.PublishVersion(
        3, h("adapter"), 1, h("index"), h("manifest"), b"", 21_200_000_000, 63_600_000_000,
        1_000_000, PARTS_OF,
    ),
    wire.SetPrice(3, 2, 10**15, 0, 1_000_000),
    wire.RetireModel(3, 4),
    wire.FundMaintenance(3, 10**9),
    wire.FraudProof(
        openings.NORM,
        openings.encode_opening(openings.VersionSubject(3, 2)),
        openings.encode_opening(openings.NormOpened(b"header", bytes(1_044), (h("row"),))),
    ),
    accusation(CHAIN, CHANNEL, PROVIDER, **TOLD),
)  # fmt: skip


def transaction(payload: wire.Payload, who: Party = CREATOR) -> wire.Transaction:
    body = wire.encode_body(who.key, 5, 100_000, TIME_MS + 86_400_000, payload)
    return wire.decode_transaction(wire.sign_transaction(CHAIN, who.seed, body))


def encode_again(tx: wire.Transaction) -> bytes:
    """From the decoded fields, not from the bytes that a transaction keeps."""
    body = wire.encode_body(tx.sender, tx.nonce, tx.max_fee, tx.valid_until_ms, tx.payload)
    return wire.encode_transaction(body, tx.signature)


def examples_of_transactions() -> dict[str, Example]:
    made = {}
    for payload in TRANSACTIONS:
        tx = transaction(payload)
        made[f"tx_{tx.type_name}"] = Example(
            tx, tx.raw, wire.decode_transaction, encode_again,
            signed_by(CREATOR, b"tx", tx.body), "tx_id", tx.tx_id,
        )  # fmt: skip
    leaf = encode_tx_leaf(transaction(TRANSACTIONS[0]).raw, 20)
    made["tx_leaf"] = Example(
        decode_tx_leaf(leaf), leaf, decode_tx_leaf, lambda pair: encode_tx_leaf(*pair),
        None, "leaf_hash", merkle.leaf_hash(leaf),
    )  # fmt: skip
    return made


# ---- payouts: 1 OPEN under the split that the whitepaper's example implies, 2,500 bps to one

WHOLE = 10**9
PAYOUTS = (
    PayoutLeaf(TOTAL, b"", 3, 2, 1, 1, WHOLE, WHOLE, TIME_MS + 86_400_000),
    PayoutLeaf(
        2, (1).to_bytes(8, "big"), 3, 2, 2_500 * WHOLE, 10_000 * WHOLE, 500_000_000, 125_000_000,
        TIME_MS + 86_400_000,
    ),
    PayoutLeaf(
        3, CREATOR.key, 3, 2, 50_000_000, 100_000_000, 100_000_000, 50_000_000,
        TIME_MS + 86_400_000,
    ),
)  # fmt: skip


def examples_of_payouts() -> dict[str, Example]:
    made = {}
    for name, leaf in zip(("total", "contribution", "account"), PAYOUTS, strict=True):
        raw = payouts.encode_payout(leaf)
        made[f"payout_{name}"] = Example(
            leaf, raw, payouts.decode_payout, payouts.encode_payout,
            None, "leaf_hash", merkle.leaf_hash(raw),
        )  # fmt: skip
    return made


# ---- claims of attribution

INDEX_HEADER = claims.IndexHeader(
    version=1,
    base=h("base"),
    adapter=h("adapter"),
    early=h("early"),
    middle=h("middle"),
    snapshot_root=h("snapshot"),
    basis_hash=h("basis"),
    rows=200,
    records=220,
    rule=claims.RULE_ATTR_V1,
    narrow=64,
    mix=((claims.GRADIENT, 7_000), (claims.SPAN, 2_000), (claims.RETRIEVAL, 1_000)),
    min_span=12,
    rows_root=h("rows"),
    clusters_root=h("clusters"),
    spans_root=h("spans"),
)
ROW_LEAF = claims.RowLeaf(199, 70_000, 8, 44, bytes(range(256)) * 4)
STATEMENT = claims.Statement(
    version=1,
    index_root=claims.index_root(claims.encode_header(INDEX_HEADER)),
    floors=(0, 9, 300, 70_000),
    paid=((3, 1, 500_000), (199, 70_000, 300_000)),
    spans=(claims.Span(2, 14, ((3, 0), (7, 200))),),
    retrieved=((7, 120),),
)
SKETCH = bytes(range(1, 128)) * 8 + bytes(8)


def examples_of_claims() -> dict[str, Example]:
    header, leaf = claims.encode_header(INDEX_HEADER), claims.encode_row_leaf(ROW_LEAF)
    statement = claims.encode_statement(STATEMENT)
    return {
        "index_header": Example(
            INDEX_HEADER, header, claims.decode_header, claims.encode_header,
            None, "index_root", claims.index_root(header),
        ),
        "row_leaf": Example(
            ROW_LEAF, leaf, claims.decode_row_leaf, claims.encode_row_leaf,
            None, "leaf_hash", merkle.leaf_hash(leaf),
        ),
        "statement": Example(
            STATEMENT, statement, claims.decode_statement, claims.encode_statement,
            None, "sketch_hash", claims.sketch_hash(SKETCH, statement),
        ),
    }  # fmt: skip


# ---- what a fraud proof shows

SUBJECT = openings.ReceiptSubject(
    h("bundle"), 3, receipts.encode_receipt(CLAIMED), CREDITED, (h("left"), h("right"))
)
LEAF = claims.encode_row_leaf(ROW_LEAF)
OPENINGS: tuple[tuple[int, openings.Subject, openings.Opened], ...] = (
    (
        openings.SHARES,
        SUBJECT,
        openings.SharesOpened(
            SKETCH, claims.encode_statement(STATEMENT), claims.encode_header(INDEX_HEADER)
        ),
    ),
    (
        openings.ROW,
        SUBJECT,
        openings.RowOpened(
            SKETCH, claims.encode_statement(STATEMENT), claims.encode_header(INDEX_HEADER), LEAF,
            (h("row"),),
        ),
    ),
    (
        openings.NORM,
        openings.VersionSubject(3, 2),
        openings.NormOpened(claims.encode_header(INDEX_HEADER), LEAF, (h("row"),)),
    ),
)  # fmt: skip


def examples_of_openings() -> dict[str, Example]:
    made = {}
    for kind, subject, opened in OPENINGS:
        for value, decode in (
            (subject, openings.decode_subject),
            (opened, openings.decode_opened),
        ):
            made[f"fraud_{kind}_{type(value).__name__}"] = Example(
                value, openings.encode_opening(value), partial(decode, kind),
                openings.encode_opening,
            )  # fmt: skip
    kind, subject, opened = OPENINGS[1]
    proof = wire.FraudProof(kind, openings.encode_opening(subject), openings.encode_opening(opened))
    made["fraud_file"] = Example(
        proof, wire.encode_fraud(proof), wire.decode_fraud, wire.encode_fraud
    )
    return made


# ---- frames of an `infer` stream


def examples_of_frames() -> dict[str, Example]:
    raw = orders.encode_voucher(HOLDING)
    pay = signed_by(PAYER, b"voucher", raw).signature
    prompt, sampling = orders.pack_ids(PROMPT), orders.encode_sampling(SAMPLING)
    statement = claims.encode_statement(STATEMENT)
    said_by_payer = (
        exchange.Start(orders.encode_order(ORDER), prompt, sampling, b"", raw, pay),
        exchange.Tick(raw, pay),
        exchange.Reveal(NONCES[0]),
        exchange.Cancel(b"enough"),
    )
    said_by_provider = (
        exchange.Accepted(ORDER_HASH, NONCES[1], 2, 850),
        exchange.Tokens(1, 0, orders.pack_ids(ANSWER), b"stew "),
        exchange.Alive(),
        exchange.Finished(
            receipts.encode_receipt(CLAIMED), CLAIM_SIGNING.signature, CREDITED, SKETCH,
            statement, b"\xff\xff\xff\x38",
        ),
        exchange.RefusedFrame(exchange.OUT_OF_STEP, 0, raw, pay),
    )  # fmt: skip
    made = {}
    for frames, decode in (
        (said_by_payer, exchange.decode_payer_frame),
        (said_by_provider, exchange.decode_provider_frame),
    ):
        for frame in frames:
            name = f"infer_{type(frame).__name__}"
            made[name] = Example(frame, exchange.encode_frame(frame), decode, exchange.encode_frame)
    return made


def market_examples() -> dict[str, Example]:
    return (
        examples_of_answers()
        | examples_of_transactions()
        | examples_of_payouts()
        | examples_of_claims()
        | examples_of_openings()
        | examples_of_frames()
    )
