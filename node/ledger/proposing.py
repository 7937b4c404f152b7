"""Which of the waiting transactions and bundles make a valid payload.

Why a rehearsal: one entry that no longer fits would make the whole block invalid, and its proposer
lose the turn. So everything is tried in the block's own order, each in a trial, and what fails is
left out and named. It costs one execution more, on the proposer alone.
What this file does not know: where the entries wait (`pool.py`), and who proposes.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from consensus.primitives.errors import Invalid
from node.ledger.admission import Admitted, is_still_good
from node.ledger.context import Context
from node.ledger.execute import Rules, apply_due, apply_transaction
from node.ledger.pool import payload_order
from node.ledger.rules import channels, offences
from node.ledger.state import State
from node.ledger.wire.blocks import Payload
from node.ledger.wire.transactions import Transaction


class Choice(NamedTuple):
    """A payload that executes, and what was left out with the word of its refusal."""

    payload: Payload
    refused_transactions: tuple[tuple[bytes, str], ...]  # (tx id, code)
    refused_bundles: tuple[tuple[bytes, str], ...]  # (bundle hash, code)
    refused_evidence: tuple[tuple[bytes, str], ...] = ()  # (bytes, code)


def choose_payload(
    rules: Rules,
    state: State,
    context: Context,
    transactions: Iterable[Transaction],
    bundles: Sequence[Admitted],
    evidence: Iterable[bytes] = (),
) -> Choice:
    """The payload of all entries that fit, tried on `state`, which is spoilt by it.

    Sizes are the picker's to keep. `context` is that of the block to be built, with the past
    heights of the evidence.
    """
    apply_due(rules, state, context)
    accusations, bad_evidence = _accuse(state, context, evidence)
    taken: list[bytes] = []
    bad_bundles: list[tuple[bytes, str]] = []
    for admitted in sorted(bundles, key=payload_order):
        try:
            with state.trial():
                _settle(state, context, admitted)
        except Invalid as refusal:
            bad_bundles.append((admitted.bundle.hash, refusal.code))
        else:
            taken.append(admitted.bundle.hash)
    kept: list[bytes] = []
    bad_transactions: list[tuple[bytes, str]] = []
    for tx in transactions:
        try:
            with state.trial():
                apply_transaction(rules, state, context, tx)
        except Invalid as refusal:
            bad_transactions.append((tx.tx_id, refusal.code))
        else:
            kept.append(tx.raw)
    payload = Payload(tuple(kept), tuple(taken), tuple(accusations))
    return Choice(payload, tuple(bad_transactions), tuple(bad_bundles), tuple(bad_evidence))


def _settle(state: State, context: Context, admitted: Admitted) -> None:
    if not is_still_good(state, admitted):  # what falls due may change the minimum fee
        raise Invalid("pool.stale", bundle=admitted.bundle.hash)
    channels.apply_bundle(state, context, admitted.bundle)


def _accuse(
    state: State, context: Context, evidence: Iterable[bytes]
) -> tuple[list[bytes], list[tuple[bytes, str]]]:
    """The pieces that hold, their offenders punished, and those that do not with their codes."""
    accepted, accusations, refused = [], [], []
    for raw in evidence:
        try:
            with state.trial():
                accepted.append(offences.accept_evidence(state, context, raw))
        except Invalid as refusal:
            refused.append((raw, refusal.code))
        else:
            accusations.append(raw)
    offences.punish_offences(state, context, accepted)
    return accusations, refused
