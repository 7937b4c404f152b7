"""Fraud proofs that whole numbers settle: judged in their own block, by every validator.

Why at once and without a committee: kinds 1 to 3 open a few bytes under hashes that stand settled,
and `refuting.py` says in 0.2 ms whether they show a lie. Why a false proof burns a bond although it
changes nothing: each costs all validators that time. Why a receipt is refuted once: it is reversed
whole, and a bundle counts as one failure however many of its receipts are (page 40 §6, §11).
Why not in the block that settles the bundle: its money waits only at that block's end, and a liar
that accuses itself there would have the receipt used up with nothing to reverse.
What this file does not know: how a lie is found, texts, committees (kinds 4 to 6).
"""

from consensus.primitives import merkle
from consensus.primitives.errors import Invalid
from node.ledger import purses, tables
from node.ledger.amounts import part_bps
from node.ledger.context import Context
from node.ledger.rules import refuting
from node.ledger.rules.channels import REFUTED_NAME
from node.ledger.rules.failures import punish_failure
from node.ledger.rules.models import Which, is_servable, is_suspended, suspend_index
from node.ledger.rules.offences import share_proceeds
from node.ledger.rules.refuting import Claim, Release
from node.ledger.rules.reversals import Answer, reverse_receipt
from node.ledger.state import State
from node.ledger.tables import Settled
from node.ledger.wire import openings
from node.ledger.wire.codes import EFFECT_CODES
from node.ledger.wire.openings import (
    NormOpened,
    Opened,
    ReceiptSubject,
    RowOpened,
    SharesOpened,
    VersionSubject,
)
from node.ledger.wire.receipts import attribution_root, decode_credits, decode_receipt
from node.ledger.wire.transactions import FraudProof, Transaction

_FALSE_PROOF = EFFECT_CODES["tx.bad_proof"]


def apply_fraud_proof(state: State, context: Context, tx: Transaction, payload: FraudProof) -> None:
    """Type 60, kinds 1 to 3. Reverse the receipt, punish the provider; or suspend the index.

    Raises Invalid: 20 not even the bond that a false proof burns, 21 no such version, 24 refuted
    before, 26 another kind or malformed, 27 not settled or matured, or a version that is not
    served, 28 it shows no lie.
    """
    bond, balance = state.parameter("fraud_bond"), state.account(tx.sender).balance
    if balance < bond:
        raise Invalid("tx.insufficient", needed=bond, held=balance)
    if payload.kind not in openings.AT_ONCE:
        raise Invalid("tx.bad_value", why="kind", kind=payload.kind)
    try:
        subject = openings.decode_subject(payload.kind, payload.subject)
        opened = openings.decode_opened(payload.kind, payload.opened)
    except Invalid as refusal:
        raise Invalid("tx.bad_value", why=refusal.code) from None
    if isinstance(subject, VersionSubject):
        _refute_index(state, context, subject, opened, finder=tx.sender)
    else:
        _refute_receipt(state, context, subject, opened, finder=tx.sender)


def burn_bond(state: State, tx: Transaction, code: int) -> None:
    """A fraud proof was refused: one that shows no lie costs its bond."""
    if code == _FALSE_PROOF:
        state.move(purses.account(tx.sender), purses.BURN, state.parameter("fraud_bond"))


# ---- a receipt


def _refute_receipt(
    state: State, context: Context, subject: ReceiptSubject, opened: Opened, *, finder: bytes
) -> None:
    settled = state.find(tables.SETTLED, subject.bundle)
    now_ms = context.time_ms
    if settled is None or not settled.settled_ms < now_ms < settled.bucket_ms:
        raise Invalid("tx.too_early_or_late", bundle=subject.bundle)
    if is_refuted(state, subject.bundle, subject.place):
        raise Invalid("tx.exists", bundle=subject.bundle, place=subject.place)
    try:
        answer = _opened_answer(settled, subject)
        which = (answer.receipt.model, answer.receipt.model_version)
        release = release_of(state, context.chain_id, which)
        lie = find_lie(release, answer, opened)
    except Invalid as refusal:
        raise Invalid("tx.bad_proof", why=refusal.code) from None
    if not lie:
        raise Invalid("tx.bad_proof", why="it shows no lie")
    _punish(state, context, subject, answer, finder=finder)


def is_refuted(state: State, bundle: bytes, place: int) -> bool:
    """Whether a receipt was reversed; known until its bundle's bucket is due."""
    return state.has(tables.REFUTED, REFUTED_NAME, bundle, place)


def _opened_answer(settled: Settled, subject: ReceiptSubject) -> Answer:
    """The receipt and its credits, if they stand in the bundle; raises Invalid."""
    leaf = merkle.leaf_hash(subject.receipt)
    merkle.verify_path(settled.receipts_root, leaf, subject.place, settled.count, subject.path)
    receipt = decode_receipt(subject.receipt)
    if attribution_root(subject.credits) != receipt.attribution_root:
        raise Invalid("opening.credits")
    return Answer(receipt, decode_credits(subject.credits))


def find_lie(release: Release, answer: Answer, opened: Opened) -> str:
    """What an opening shows against a receipt; empty: nothing. Raises Invalid if it is not of
    this receipt and this version's index."""
    receipt, credits = answer
    if not release.index_root or receipt.sketch_hash == refuting.NO_CLAIM:
        return "credits.unbound" if credits else ""
    assert isinstance(opened, SharesOpened | RowOpened)
    claim = Claim(opened.sketch, opened.statement)
    refuting.check_bound(receipt.sketch_hash, claim)
    if isinstance(opened, SharesOpened):
        header = refuting.open_header(release.index_root, opened.header)
        return refuting.find_false_shares(claim, header, release.index_root, credits)
    row = refuting.open_row(release.index_root, opened.header, opened.leaf, opened.path)
    return refuting.find_false_row(release, claim, row)


def release_of(state: State, chain_id: bytes, which: Which) -> Release:
    """A version as openings are judged by; raises Invalid `tx.not_found`."""
    found = state.find(tables.VERSION, *which)
    if found is None:
        raise Invalid("tx.not_found", model=which[0], version=which[1])
    return Release(chain_id, *which, found.published_ms, found.index_root)


def _punish(
    state: State, context: Context, subject: ReceiptSubject, answer: Answer, *, finder: bytes
) -> None:
    """The receipt is reversed; the first of a bundle is a failure of its provider."""
    channel = state.find(tables.CHANNEL, answer.receipt.channel)
    if channel is None:  # forgotten already, where channels are before their money matures
        raise Invalid("tx.too_early_or_late", channel=answer.receipt.channel)
    settled = state.get(tables.SETTLED, subject.bundle)
    is_first = not state.scan(tables.REFUTED, REFUTED_NAME, subject.bundle)
    key = (REFUTED_NAME, subject.bundle, subject.place)
    state.put(tables.REFUTED, key, tables.Counter(context.time_ms))
    returned = reverse_receipt(state, settled, answer, channel.payer)
    if is_first:
        taken = punish_failure(state, context, settled.provider, channel.opened_ms)
        still_owed = min(answer.receipt.fee - returned, taken)
        state.move(purses.pool(tables.TREASURY), purses.account(channel.payer), still_owed)
        _pay_finder(state, taken - still_owed, finder)


def _pay_finder(state: State, taken: int, finder: bytes) -> None:
    """Of what lies in the treasury for it; of the rest half is burnt."""
    reward = part_bps(taken, state.parameter("fraud_finder_bps"))
    state.move(purses.pool(tables.TREASURY), purses.account(finder), reward)
    share_proceeds(state, taken - reward)


# ---- an index


def _refute_index(
    state: State, context: Context, subject: VersionSubject, opened: Opened, *, finder: bytes
) -> None:
    assert isinstance(opened, NormOpened)
    which = (subject.model, subject.version)
    release = release_of(state, context.chain_id, which)
    if is_suspended(state, which):
        raise Invalid("tx.exists", model=subject.model, version=subject.version)
    if not is_servable(state, which, context.time_ms):
        raise Invalid("tx.too_early_or_late", model=subject.model, version=subject.version)
    try:
        row = refuting.open_row(release.index_root, opened.header, opened.leaf, opened.path)
    except Invalid as refusal:
        raise Invalid("tx.bad_proof", why=refusal.code) from None
    if not refuting.is_inflated(row):
        raise Invalid("tx.bad_proof", why="it shows no lie")
    suspend_index(state, which, context.time_ms)
    deposit = purses.deposit("version", *which)
    taken = state.held(deposit)
    state.move(deposit, purses.pool(tables.TREASURY), taken)
    _pay_finder(state, taken, finder)
