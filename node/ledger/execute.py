"""What a payload makes of the state: the table of contents of the ledger.

Pure: time is the block's, order is the payload's, nothing is read but state, context, payload and
bodies. The proposer runs it to make a header, each validator runs it once before its prevote and
compares. A refusal of the payload as a whole is `Invalid`; a transaction that fails by its effect
stays, pays, and leaves its code.
What this file does not know: who proposed what in which round, and how anything is kept.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from consensus.header import HEADER_VERSION, Header
from consensus.primitives import merkle
from consensus.primitives.encoding import U16, Bytes, Record, decode, encode
from consensus.primitives.errors import Invalid
from consensus.validators import ValidatorSet
from node.ledger import purses, tables, tree
from node.ledger.admission import Admitted, admit_bundle, is_still_good
from node.ledger.context import Context
from node.ledger.genesis import APP_VERSION, params_hash
from node.ledger.rules import (
    accounts,
    channels,
    disputes,
    doubles,
    models,
    offences,
    payout,
    registry,
    rotation,
    staking,
)
from node.ledger.rules.channels import BundleFees
from node.ledger.state import State
from node.ledger.wire import transactions as wire
from node.ledger.wire.blocks import (
    BODIES_BYTES_MAX,
    BUNDLES_MAX,
    EVIDENCE_BYTES_MAX,
    EVIDENCE_MAX,
    RECEIPTS_MAX,
    TRANSACTIONS_MAX,
    Payload,
    encode_payload,
)
from node.ledger.wire.bundles import Bundle
from node.ledger.wire.codes import OK, effect_code
from node.ledger.wire.transactions import TRANSACTION_BYTES_MAX, Transaction, decode_transaction

DUE_PER_BLOCK_MAX: Final = 10_000

Bodies = Mapping[bytes, Bundle]  # bundle hash -> bundle, for all that a payload names
ApplyTransaction = Callable[[State, Context, Transaction, Any], None]
ApplyDue = Callable[[State, Context, int, bytes], None]  # due_ms and reference last
Forfeit = Callable[[State, Transaction, int], None]  # the refusal's code last


class Rules(NamedTuple):
    """The rules of one `app_version`: a row for each type, a row for each kind of due entry.

    `refused`: what a type's refusal by its effect costs beside the fee.
    """

    app_version: int
    transactions: Mapping[type[Any], ApplyTransaction]
    due: Mapping[int, ApplyDue]
    refused: Mapping[type[Any], Forfeit]


class Outcome(NamedTuple):
    """What a block did. `changes`, `tree` are for the disk; the rest is for the header."""

    state_root: bytes
    txs_root: bytes
    bundles_root: bytes
    payouts_root: bytes
    evidence_root: bytes
    params_hash: bytes
    next_validators: ValidatorSet
    supply: int
    codes: tuple[int, ...]  # of the transactions, in payload order; 0 is success
    tx_leaves: tuple[bytes, ...]
    bundle_headers: tuple[bytes, ...]
    payout_leaves: tuple[bytes, ...]
    changes: list[tuple[bytes, bytes | None]]
    tree: tree.Update


class _Codes(NamedTuple):
    """What became of the transactions."""

    codes: list[int]
    leaves: list[bytes]
    weight: int


def execute_block(
    rules: Rules,
    state: State,
    context: Context,
    payload: Payload,
    bodies: Bodies,
    known: Mapping[bytes, Admitted] | None = None,
) -> Outcome:
    """What `payload` makes of `state` (of the parent block), with all roots.

    `bodies` holds every bundle that the payload names: missing data is never a verdict.
    `known`: bundles that this node has checked before. Raises `Invalid` when the payload breaks
    a rule; `state` is then spoilt.
    """
    check_payload(state, payload)
    apply_due(rules, state, context)
    punish_evidence(state, context, payload)
    fees, headers = settle_bundles(state, context, payload, bodies, known or {})
    done = run_transactions(rules, state, context, payload)
    leaves = payout.settle_fees(state, context, fees)
    channels.count_income(state, fees)
    return end_block(state, context, payload, headers, done, payout.encode_leaves(leaves))


def check_payload(state: State, payload: Payload) -> None:
    """Counts and sizes; raises `Invalid` `payload.…`."""
    if len(payload.evidence) > EVIDENCE_MAX:
        raise Invalid("payload.evidence", pieces=len(payload.evidence))
    evidence_bytes = sum(map(len, payload.evidence))
    if evidence_bytes > EVIDENCE_BYTES_MAX:
        raise Invalid("payload.evidence_size", bytes=evidence_bytes)
    if len(payload.bundles) > BUNDLES_MAX:
        raise Invalid("payload.bundles", bundles=len(payload.bundles))
    if len(payload.transactions) > TRANSACTIONS_MAX:
        raise Invalid("payload.transactions", transactions=len(payload.transactions))
    size = len(encode_payload(payload))
    if size > state.parameter("payload_bytes_max"):
        raise Invalid("payload.too_large", bytes=size)


# ---- 1. due


def apply_due(rules: Rules, state: State, context: Context) -> None:
    """Do what is due, in key order; what is beyond the limit waits for the next block."""
    entries = state.scan(tables.DUE, below=context.time_ms + 1)[:DUE_PER_BLOCK_MAX]
    for (due, kind, reference), _ in entries:
        due_ms = int.from_bytes(due, "big")
        state.remove(tables.DUE, due_ms, kind, reference)
        rules.due[kind[0]](state, context, due_ms, reference)


# ---- 2. evidence


def punish_evidence(state: State, context: Context, payload: Payload) -> None:
    """Judge all pieces, then punish: one that does not hold refuses the payload."""
    accepted = [offences.accept_evidence(state, context, raw) for raw in payload.evidence]
    offences.punish_offences(state, context, accepted)


# ---- 3. bundles


def settle_bundles(
    state: State,
    context: Context,
    payload: Payload,
    bodies: Bodies,
    known: Mapping[bytes, Admitted],
) -> tuple[list[BundleFees], list[bytes]]:
    """Settle all bundles, which stand by (provider, bundle_seq); sums and header bytes."""
    fees, headers = [], []
    last: tuple[bytes, int] = (b"", -1)
    receipts = body_bytes = 0
    for name in payload.bundles:
        admitted = _admitted(state, context, name, bodies, known)
        header = admitted.bundle.header
        if (header.provider, header.bundle_seq) <= last:
            raise Invalid("payload.bundle_order", bundle=name)
        last = (header.provider, header.bundle_seq)
        receipts += header.count
        body_bytes += admitted.body_bytes
        if receipts > RECEIPTS_MAX or body_bytes > BODIES_BYTES_MAX:
            raise Invalid("payload.receipts", receipts=receipts, bytes=body_bytes)
        fees.append(channels.apply_bundle(state, context, admitted.bundle))
        headers.append(admitted.header)
    return fees, headers


def _admitted(
    state: State,
    context: Context,
    name: bytes,
    bodies: Bodies,
    known: Mapping[bytes, Admitted],
) -> Admitted:
    found = known.get(name)
    if found is not None and is_still_good(state, found):
        return found
    bundle = bodies.get(name)
    assert bundle is not None, "a body is missing: fetch it before executing"
    assert bundle.hash == name
    return admit_bundle(state, context.chain_id, bundle)


# ---- 4. transactions


def run_transactions(rules: Rules, state: State, context: Context, payload: Payload) -> _Codes:
    """Run all in payload order; codes 1 to 9 of any of them refuse the payload."""
    done = _Codes([], [], 0)
    for raw in payload.transactions:
        tx = decode_transaction(raw)
        code = apply_transaction(rules, state, context, tx)
        done.codes.append(code)
        done.leaves.append(encode_tx_leaf(raw, code))
        done = done._replace(weight=done.weight + tx.weight)
    return done


def apply_transaction(rules: Rules, state: State, context: Context, tx: Transaction) -> int:
    """Charge a transaction and run it; returns its code. Raises `Invalid` for codes 1 to 9."""
    charge = accounts.check_envelope(state, context, tx)
    accounts.pay_charge(state, context, tx, charge)
    try:
        with state.trial():
            rules.transactions[type(tx.payload)](state, context, tx, tx.payload)
    except Invalid as refusal:
        code = effect_code(refusal)
        forfeit = rules.refused.get(type(tx.payload))
        if forfeit is not None:
            forfeit(state, tx, code)
        return code
    return OK


_TX_LEAF: Final = Record(Bytes(TRANSACTION_BYTES_MAX), U16)


def encode_tx_leaf(raw: bytes, code: int) -> bytes:
    """A leaf of `txs_root`: success itself is provable."""
    return encode((raw, code))


def decode_tx_leaf(raw: bytes) -> tuple[bytes, int]:
    """Transaction bytes and code; raises `Invalid` `tx_leaf.…`."""
    transaction, code = decode(raw, _TX_LEAF, TRANSACTION_BYTES_MAX + 16, "tx_leaf")
    return transaction, code


# ---- 6. the end


def end_block(
    state: State,
    context: Context,
    payload: Payload,
    headers: Sequence[bytes],
    done: _Codes,
    payout_leaves: Sequence[bytes],
) -> Outcome:
    """Base price, validators, the totals check, the tree."""
    state.set_counter(accounts.BASE_PRICE_NAME, accounts.next_base_price(state, done.weight))
    validators = staking.advance_validators(state, context)
    check_supply(state)
    changes = state.changes()
    updated = tree.update(state.base.read_node, state.base.tree_root, context.height, changes)
    return Outcome(
        state_root=updated.root,
        txs_root=merkle.root(done.leaves),
        bundles_root=merkle.root(headers),
        payouts_root=merkle.root(payout_leaves),
        evidence_root=merkle.root(payload.evidence),
        params_hash=params_hash(state),
        next_validators=validators,
        supply=state.supply(),
        codes=tuple(done.codes),
        tx_leaves=tuple(done.leaves),
        bundle_headers=tuple(headers),
        payout_leaves=tuple(payout_leaves),
        changes=changes,
        tree=updated,
    )


def check_supply(state: State) -> None:
    """Any difference is a fault of ours: nothing is signed and the node stops."""
    assert state.held(purses.SETTLING) == 0, "fees were taken and not paid"
    totals = state.totals()
    assert sum(totals) == state.supply(), f"{totals} against {state.supply()}"


def make_header(
    context: Context,
    outcome: Outcome,
    *,
    validators_hash: bytes,
    last_commit_hash: bytes,
    history_root: bytes,
) -> Header:
    """The header of an executed block; what consensus adds comes as arguments."""
    return Header(
        version=HEADER_VERSION,
        app_version=APP_VERSION,
        chain_id=context.chain_id,
        height=context.height,
        time_ms=context.time_ms,
        parent_id=context.parent_id,
        proposer=context.proposer,
        validators_hash=validators_hash,
        next_validators_hash=outcome.next_validators.hash(),
        params_hash=outcome.params_hash,
        state_root=outcome.state_root,
        txs_root=outcome.txs_root,
        bundles_root=outcome.bundles_root,
        payouts_root=outcome.payouts_root,
        evidence_root=outcome.evidence_root,
        last_commit_hash=last_commit_hash,
        history_root=history_root,
        supply=outcome.supply,
    )


# ---- the table of rules


RULES_1: Final = Rules(
    app_version=1,
    transactions={
        wire.Transfer: accounts.apply_transfer,
        wire.MultiTransfer: accounts.apply_multi_transfer,
        wire.RotateKey: rotation.apply_rotate_key,
        wire.OpenChannel: channels.apply_open_channel,
        wire.TopUpChannel: channels.apply_top_up,
        wire.CloseChannel: channels.apply_close_channel,
        wire.CoopClose: channels.apply_coop_close,
        wire.RegisterProvider: staking.apply_register,
        wire.UpdateProvider: staking.apply_update,
        wire.Bond: staking.apply_bond,
        wire.Unbond: staking.apply_unbond,
        wire.Unjail: staking.apply_unjail,
        wire.CreateDatanet: registry.apply_create_datanet,
        wire.Contribute: registry.apply_contribute,
        wire.Curate: registry.apply_curate,
        wire.WithdrawContribution: registry.apply_withdraw,
        wire.Snapshot: registry.apply_snapshot,
        wire.RegisterModel: models.apply_register_model,
        wire.PublishVersion: models.apply_publish,
        wire.SetPrice: models.apply_set_price,
        wire.RetireModel: models.apply_retire,
        wire.FundMaintenance: models.apply_fund,
        wire.FraudProof: disputes.apply_fraud_proof,
        wire.Evidence: doubles.apply_evidence,
    },
    due={
        tables.DUE_MATURING: payout.apply_due_maturing,
        tables.DUE_CHANNEL_CLOSE: channels.apply_due_close,
        tables.DUE_CHANNEL_FORGET: channels.apply_due_forget,
        tables.DUE_UNBONDING: staking.apply_unbonded,
        tables.DUE_REVIEW: registry.apply_review_end,
        tables.DUE_STAKE: registry.apply_stake_release,
        tables.DUE_VERSION_DEPOSIT: models.apply_version_deposit,
        tables.DUE_MODEL_DEPOSIT: models.apply_model_deposit,
        tables.DUE_EVIDENCE: offences.forget_evidence,
        tables.DUE_RETIREMENT: models.apply_retirement,
        tables.DUE_WITHDRAWAL: registry.apply_withdrawn_stake,
        tables.DUE_FORMER_KEY: rotation.forget_former,
    },
    refused={wire.FraudProof: disputes.burn_bond},
)

_BY_APP_VERSION: Final = {rules.app_version: rules for rules in (RULES_1,)}


def rules_for(app_version: int) -> Rules:
    """The rules of a version; raises `Invalid` `rules.unknown_version`: stop before voting."""
    rules = _BY_APP_VERSION.get(app_version)
    if rules is None:
        raise Invalid("rules.unknown_version", app_version=app_version)
    return rules
