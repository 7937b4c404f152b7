"""Datanets, contributions, reviews, snapshots: what is there to be trained on, and by whom.

Why a bond on data: whoever brings junk, or what is not theirs, has something to lose; good data
gets its bond back, half at once and half when its harm would have shown (page 40 §7).
Why numbers and not hashes: a credit in a receipt then costs six bytes and not thirty-five.
Models and versions stand in `rules/models.py`.
What this file does not know: the records themselves, near-duplicates, training.
"""

from typing import Final

from consensus.primitives.errors import Invalid
from node.ledger import purses, tables
from node.ledger.amounts import checked, part_bps
from node.ledger.context import Context
from node.ledger.purses import Purse
from node.ledger.rules.lasting import note_snapshot, note_withdrawal
from node.ledger.state import State
from node.ledger.tables import Terms
from node.ledger.wire.transactions import (
    Contribute,
    CreateDatanet,
    Curate,
    Snapshot,
    Transaction,
    WithdrawContribution,
    check_name,
)

LICENCES: Final = {
    1: "CC0-1.0",
    2: "CC-BY-4.0",
    3: "CC-BY-SA-4.0",
    4: "ODC-By-1.0",
    5: "ODbL-1.0",
    6: "MIT",
    7: "Apache-2.0",
    8: "own-work",
}
RECORDS_MAX: Final = 65_536
QUORUM_MAX: Final = 7
MODE_OPEN, MODE_PERMISSIONED = 0, 1
KIND_OF_DATA: Final = 0
REVIEWER: Final = 1
ACCEPT, RETURN, REJECT, SLASH = 1, 2, 3, 4
SLASH_VOTES_MORE: Final = 1  # a lone slash is impossible
SLOPPY_BPS: Final = 1_000
FRAUD_BPS: Final = 10_000
REVIEW_POOL_PART: Final = 10  # a vote takes at most this part of the pool

DATANETS_NAME: Final = b"datanets"
CONTRIBUTIONS_NAME: Final = b"contributions"
SNAPSHOTS_NAME: Final = b"snapshots"


# ---- Datanets


def apply_create_datanet(
    state: State, context: Context, tx: Transaction, payload: CreateDatanet
) -> None:
    """Type 30: the sender becomes steward; deposit, and a fee of which its own pool gets most."""
    check_name(payload.name, "tx.bad_value")
    if state.has(tables.DATANET_NAME, payload.name):
        raise Invalid("tx.exists", name=payload.name)
    terms = Terms(*payload.terms)
    check_terms(state, terms)
    number = state.next_number(DATANETS_NAME)
    record = tables.Datanet(
        steward=tx.sender,
        name=payload.name,
        terms=terms,
        next_terms=b"",
        from_ms=0,
        status=tables.DATANET_OPEN,
        pool=0,
        accepted=0,
        withdrawn=0,
        mended=0,
        steward_ms=context.time_ms,
        deposit=0,
    )
    state.put(tables.DATANET, (number,), record)
    state.put(tables.DATANET_NAME, (payload.name,), tables.Number(number))
    sender = purses.account(tx.sender)
    state.move(sender, purses.deposit("datanet", number), state.parameter("datanet_deposit"))
    fee = state.parameter("datanet_fee")
    own = part_bps(fee, state.parameter("datanet_fee_pool_bps"))
    state.move(sender, purses.datanet_pool(number), own)
    state.move(sender, purses.pool(tables.TREASURY), fee - own)


def check_terms(state: State, terms: Terms) -> None:
    """Raise `Invalid` `tx.bad_value` unless a charter may say this (page 40 §7)."""
    licences = terms.licences
    stakes = (state.parameter("stake_per_record_min"), state.parameter("stake_per_record_max"))
    windows = (state.parameter("review_ms_min"), state.parameter("review_ms_max"))
    wrong = {
        "licences": list(licences) != sorted(set(licences)) or not set(licences) <= set(LICENCES),
        "mode": terms.mode not in (MODE_OPEN, MODE_PERMISSIONED),
        "quorum": terms.quorum > QUORUM_MAX,
        "open without quorum": terms.quorum == 0 and terms.mode == MODE_OPEN,
        "stake_per_record": not stakes[0] <= terms.stake_per_record <= stakes[1],
        "curation_bps": terms.curation_bps > state.parameter("curation_bps_max"),
        "review_ms": not windows[0] <= terms.review_ms <= windows[1],
        "withdrawal": terms.withdrawal > 1,
    }
    if not licences or any(wrong.values()):
        why = next((name for name, is_wrong in wrong.items() if is_wrong), "licences")
        raise Invalid("tx.bad_value", why=why)


def terms_of(datanet: tables.Datanet) -> Terms:
    """The charter in force."""
    return Terms(*datanet.terms)


# ---- contributions


def apply_contribute(state: State, context: Context, tx: Transaction, payload: Contribute) -> None:
    """Type 31: a batch of records under one root; its bond waits for the review."""
    datanet = state.find(tables.DATANET, payload.datanet)
    if datanet is None:
        raise Invalid("tx.not_found", datanet=payload.datanet)
    if datanet.status != tables.DATANET_OPEN:
        raise Invalid("tx.wrong_state", datanet=payload.datanet)
    terms = terms_of(datanet)
    _check_contribution(terms, payload)
    is_seated = state.has(tables.SEAT, payload.datanet, tx.sender) or datanet.steward == tx.sender
    if terms.mode == MODE_PERMISSIONED and not is_seated:
        raise Invalid("tx.not_yours", datanet=payload.datanet)
    seen = b"content/" + payload.datanet.to_bytes(8, "big") + payload.content_hash
    if state.counter(seen):
        raise Invalid("tx.exists", contribution=state.counter(seen))
    number = state.next_number(CONTRIBUTIONS_NAME)
    state.set_counter(seen, number)
    record = tables.Contribution(
        datanet=payload.datanet,
        contributor=tx.sender,
        kind=payload.kind,
        root=payload.root,
        content_hash=payload.content_hash,
        records=payload.records,
        size_bytes=payload.size_bytes,
        licence=payload.licence,
        mends=payload.mends,
        mend_root=payload.mend_root,
        stake=0,
        status=tables.PENDING,
        made_ms=context.time_ms,
        accepted_ms=0,
        withdrawn_ms=0,
        earned=0,
        opened=b"",
    )
    state.put(tables.CONTRIBUTION, (number,), record)
    stake = state.parameter("contribution_bond") + terms.stake_per_record * payload.records
    state.move(purses.account(tx.sender), purses.deposit("contribution", number), checked(stake))
    if terms.quorum == 0:
        _finish_review(state, number, ACCEPT, context.time_ms)
        return
    due_ms = context.time_ms + terms.review_ms
    state.add_due(due_ms, tables.DUE_REVIEW, number.to_bytes(8, "big"))


def _check_contribution(terms: Terms, payload: Contribute) -> None:
    if payload.kind != KIND_OF_DATA or payload.mends or payload.mend_root:
        raise Invalid("tx.bad_value", why="corrections and sealed records are not taken yet")
    if not 1 <= payload.records <= RECORDS_MAX:
        raise Invalid("tx.bad_value", why="records", records=payload.records)
    if payload.licence not in terms.licences:
        raise Invalid("tx.bad_value", why="licence", licence=payload.licence)


# ---- reviews


def apply_curate(state: State, context: Context, tx: Transaction, payload: Curate) -> None:
    """Type 32: one vote of the steward or a reviewer; the quorum's decision takes effect."""
    found = state.find(tables.CONTRIBUTION, payload.contribution)
    if found is None:
        raise Invalid("tx.not_found", contribution=payload.contribution)
    datanet = state.get(tables.DATANET, found.datanet)
    seat = state.find(tables.SEAT, found.datanet, tx.sender)
    is_reviewer = datanet.steward == tx.sender or (seat is not None and seat.role == REVIEWER)
    if not is_reviewer or found.contributor == tx.sender:
        raise Invalid("tx.not_yours", contribution=payload.contribution)
    if payload.decision not in (ACCEPT, RETURN, REJECT, SLASH):
        raise Invalid("tx.wrong_state", why="no such decision", decision=payload.decision)
    if found.status != tables.PENDING:
        raise Invalid("tx.wrong_state", status=found.status)
    terms = terms_of(datanet)
    if context.time_ms >= found.made_ms + terms.review_ms:
        raise Invalid("tx.too_early_or_late", contribution=payload.contribution)
    if state.has(tables.REVIEW, payload.contribution, tx.sender):
        raise Invalid("tx.exists", contribution=payload.contribution)
    vote = tables.Review(payload.decision)
    state.put(tables.REVIEW, (payload.contribution, tx.sender), vote)
    _pay_vote(state, found.datanet, tx.sender)
    if datanet.steward == tx.sender:
        _note_steward(state, found.datanet, context.time_ms)
    votes = state.scan(tables.REVIEW, payload.contribution)
    same = sum(1 for _, review in votes if review.decision == payload.decision)
    needed = terms.quorum + (SLASH_VOTES_MORE if payload.decision == SLASH else 0)
    if same >= needed:
        _finish_review(state, payload.contribution, payload.decision, context.time_ms)


def _pay_vote(state: State, datanet: int, voter: bytes) -> None:
    """Curation lives on the Datanet's own income: at most a tenth of its pool a vote."""
    pool = purses.datanet_pool(datanet)
    pay = min(state.parameter("review_fee"), state.held(pool) // REVIEW_POOL_PART)
    state.move(pool, purses.account(voter), pay)


def _note_steward(state: State, datanet: int, now_ms: int) -> None:
    record = state.get(tables.DATANET, datanet)
    state.put(tables.DATANET, (datanet,), record._replace(steward_ms=now_ms))


def _finish_review(state: State, number: int, decision: int, now_ms: int) -> None:
    """Give the contribution its status, and its bond where it now belongs."""
    found = state.get(tables.CONTRIBUTION, number)
    stake = purses.deposit("contribution", number)
    home = purses.account(found.contributor)
    if decision == ACCEPT:
        state.move(stake, home, found.stake - found.stake // 2)
        datanet = state.get(tables.DATANET, found.datanet)
        accepted = datanet._replace(accepted=datanet.accepted + found.records)
        state.put(tables.DATANET, (found.datanet,), accepted)
        release_ms = now_ms + state.parameter("stake_hold_ms")
        state.add_due(release_ms, tables.DUE_STAKE, number.to_bytes(8, "big"))
        status, accepted_ms = tables.ACCEPTED, now_ms
    else:
        taken_bps = {RETURN: 0, REJECT: SLOPPY_BPS, SLASH: FRAUD_BPS}[decision]
        _take(state, stake, part_bps(found.stake, taken_bps))
        state.move(stake, home, state.held(stake))
        status = {RETURN: tables.RETURNED, REJECT: tables.REJECTED, SLASH: tables.SLASHED}[decision]
        accepted_ms = 0
        if decision == RETURN:
            _free_content(state, found)
    found = state.get(tables.CONTRIBUTION, number)
    done = found._replace(status=status, accepted_ms=accepted_ms)
    state.put(tables.CONTRIBUTION, (number,), done)


def _take(state: State, stake: Purse, amount: int) -> None:
    """Half of what is taken is burnt, half goes to the treasury: nobody gains by refusing."""
    state.move(stake, purses.BURN, amount - amount // 2)
    state.move(stake, purses.pool(tables.TREASURY), amount // 2)


def _free_content(state: State, found: tables.Contribution) -> None:
    """What went back without fault may be brought again."""
    seen = b"content/" + found.datanet.to_bytes(8, "big") + found.content_hash
    state.set_counter(seen, 0)


def apply_review_end(state: State, context: Context, due_ms: int, reference: bytes) -> None:
    """Due: no outcome in the window; idle curators never cost a contributor."""
    number = int.from_bytes(reference, "big")
    if state.get(tables.CONTRIBUTION, number).status == tables.PENDING:
        _finish_review(state, number, RETURN, due_ms)


def apply_stake_release(state: State, context: Context, due_ms: int, reference: bytes) -> None:
    """Due: the second half of an accepted contribution's bond."""
    number = int.from_bytes(reference, "big")
    found = state.get(tables.CONTRIBUTION, number)
    if found.status == tables.ACCEPTED:
        stake = purses.deposit("contribution", number)
        state.move(stake, purses.account(found.contributor), found.stake)


# ---- withdrawals


def apply_withdraw(
    state: State, context: Context, tx: Transaction, payload: WithdrawContribution
) -> None:
    """Type 33: from this block on what it earns is the model's fund's, and no snapshot takes it.

    A pending one may go too until somebody has voted: whoever brings junk must not get away before
    the outcome. Raises Invalid: 21 unknown, 22 another's, 23 judged, being judged, or withdrawn.
    """
    number = payload.contribution
    found = state.find(tables.CONTRIBUTION, number)
    if found is None:
        raise Invalid("tx.not_found", contribution=number)
    if found.contributor != tx.sender:
        raise Invalid("tx.not_yours", contribution=number)
    is_pending = found.status == tables.PENDING and not state.scan(tables.REVIEW, number)
    if found.status != tables.ACCEPTED and not is_pending:
        raise Invalid("tx.wrong_state", status=found.status)
    if is_pending:
        _free_content(state, found)
    else:
        datanet = state.get(tables.DATANET, found.datanet)
        fewer = datanet._replace(withdrawn=datanet.withdrawn + found.records)
        state.put(tables.DATANET, (found.datanet,), fewer)
        note_withdrawal(state, number, found, context.time_ms)
    gone = found._replace(status=tables.WITHDRAWN, withdrawn_ms=context.time_ms)
    state.put(tables.CONTRIBUTION, (number,), gone)
    due_ms = checked(context.time_ms + state.parameter("challenge_window_ms"))
    state.add_due(due_ms, tables.DUE_WITHDRAWAL, number.to_bytes(8, "big"))


def apply_withdrawn_stake(state: State, context: Context, due_ms: int, reference: bytes) -> None:
    """Due: nobody has shown a fault in time; what was left of the bond comes back."""
    number = int.from_bytes(reference, "big")
    stake = purses.deposit("contribution", number)
    home = purses.account(state.get(tables.CONTRIBUTION, number).contributor)
    state.move(stake, home, state.held(stake))


# ---- snapshots


def apply_snapshot(state: State, context: Context, tx: Transaction, payload: Snapshot) -> None:
    """Type 34: the root over what is accepted, for versions to be trained on."""
    datanet = state.find(tables.DATANET, payload.datanet)
    last = state.find(tables.CONTRIBUTION, payload.last_contribution)
    if datanet is None or last is None:
        raise Invalid("tx.not_found", datanet=payload.datanet)
    if datanet.steward != tx.sender:
        raise Invalid("tx.not_yours", datanet=payload.datanet)
    if last.datanet != payload.datanet or last.status != tables.ACCEPTED:
        raise Invalid("tx.bad_value", why="last contribution")
    changed = datanet.withdrawn + datanet.mended
    if payload.records != datanet.accepted - changed:
        raise Invalid("tx.bad_value", why="records", expected=datanet.accepted - changed)
    newest = b"snapshot/" + payload.datanet.to_bytes(8, "big")
    before = state.find(tables.SNAPSHOT, state.counter(newest))
    interval_ms = state.parameter("snapshot_interval_ms")
    if before is not None and context.time_ms < before.made_ms + interval_ms:
        raise Invalid("tx.too_early_or_late", made_ms=before.made_ms)
    number = state.next_number(SNAPSHOTS_NAME)
    state.set_counter(newest, number)
    record = tables.Snapshot(
        datanet=payload.datanet,
        root=payload.root,
        last_contribution=payload.last_contribution,
        records=payload.records,
        changed=changed,
        made_ms=context.time_ms,
    )
    state.put(tables.SNAPSHOT, (number,), record)
    note_snapshot(state, number, record)
    _note_steward(state, payload.datanet, context.time_ms)
