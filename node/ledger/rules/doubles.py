"""Two receipts for one request: what a provider pays that signed both.

Why any two bodies will do, also a partial beside a complete one: a lane settles one receipt a
number, so whoever holds two can show each of two people another account of one answer.
Why a place pays once, whatever stands in the two: three bodies are three pairs, and one offence.
Why the time of the offence is not asked: only the provider's own clock is in its receipts. What
the ledger knows is when the channel began and that it is not forgotten; so all that left the bond
since then answers for it, and evidence is good for as long as the channel is known.
Why the payer gets at most what its channel has paid: two accounts of one owner could else take a
bond out at once, each as the other's loss, instead of waiting for it.
What this file does not know: who found the pair, and how a wallet keeps it.
"""

from consensus.primitives.errors import Invalid
from consensus.primitives.keys import is_signed_by
from node.ledger import purses, tables
from node.ledger.amounts import checked, part_bps
from node.ledger.context import Context
from node.ledger.rules.channels import DOUBLE_NAME, REPAID_NAME
from node.ledger.rules.failures import slash_provider
from node.ledger.rules.offences import jail, share_proceeds
from node.ledger.rules.rotation import keys_of
from node.ledger.state import State
from node.ledger.tables import ROLE_PROVIDER
from node.ledger.wire.receipts import Place, receipt_message
from node.ledger.wire.transactions import Evidence, Transaction, check_pair


def apply_evidence(state: State, context: Context, tx: Transaction, payload: Evidence) -> None:
    """Type 62. Slash and jail the provider; repay the payer, pay the sender for having found it.

    Raises Invalid: 24 the place was punished before, 26 no two receipts of one place, or not the
    smaller first, 27 a channel that was forgotten, or never was, 28 not both are the provider's.
    """
    first, second = check_pair(payload)
    if is_punished(state, first.place):
        raise Invalid("tx.exists", channel=first.channel, lane=first.lane, seq=first.seq)
    channel = state.find(tables.CHANNEL, first.channel)
    if channel is None:
        raise Invalid("tx.too_early_or_late", channel=first.channel)
    _verify_pair(state, context, channel.provider, payload)
    bps = state.parameter("double_receipt_slash_bps")
    taken = slash_provider(state, channel.provider, bps, channel.opened_ms)
    repaid = _note_repaid(state, first.channel, min(max(first.fee, second.fee), taken))
    state.put(tables.DOUBLE, (DOUBLE_NAME, *first.place), tables.Counter(context.time_ms))
    _share(state, taken, repaid, payer=channel.payer, finder=tx.sender)
    until_ms = checked(context.time_ms + state.parameter("double_receipt_jail_ms"))
    jail(state, ROLE_PROVIDER, channel.provider, until_ms, is_for_good=False)


def is_punished(state: State, place: Place) -> bool:
    """Whether evidence of this place was taken; known for as long as its channel is."""
    return state.has(tables.DOUBLE, DOUBLE_NAME, *place)


def _verify_pair(state: State, context: Context, provider: bytes, payload: Evidence) -> None:
    keys = keys_of(state, provider)
    for raw, signature in (
        (payload.receipt_a, payload.signature_a),
        (payload.receipt_b, payload.signature_b),
    ):
        message = receipt_message(context.chain_id, raw)
        if not any(is_signed_by(key, message, signature) for key in keys):
            raise Invalid("tx.bad_proof", why="not signed by the provider")


def _note_repaid(state: State, channel: bytes, amount: int) -> int:
    """As much of `amount` as the channel has paid and no evidence has given back; noted."""
    name = REPAID_NAME + channel
    before = state.counter(name)
    repaid = min(amount, state.get(tables.CHANNEL, channel).paid - before)
    state.set_counter(name, before + repaid)
    return repaid


def _share(state: State, taken: int, repaid: int, *, payer: bytes, finder: bytes) -> None:
    """First the payer, then the finder; of the rest half is burnt (page 40 §6)."""
    reward = part_bps(taken - repaid, state.parameter("double_receipt_finder_bps"))
    source = purses.pool(tables.TREASURY)
    state.move(source, purses.account(payer), repaid)
    state.move(source, purses.account(finder), reward)
    share_proceeds(state, taken - repaid - reward)
