"""Another key for an account: from then on it alone signs what the account signs.

Why not while others rely on the old one: votes of a member of the set are checked with the key
that the set names, and bundles under way were signed by the provider's. A channel's vouchers stay
with the spender that it was opened with: a payer who could change that key would make void what a
provider has served for and not yet settled.
Why a provider's former keys are remembered for as long as its closed channels: else it could sign
two receipts for one request, close, take another key, and be innocent.
What this file does not know: where keys are kept, and what each of them signs.
"""

from typing import Final

from consensus.primitives.digest import signing_bytes
from consensus.primitives.errors import Invalid
from consensus.primitives.keys import KEY_BYTES, verify_signature
from node.ledger import tables
from node.ledger.amounts import checked
from node.ledger.context import Context
from node.ledger.rules.accounts import check_key, current_key
from node.ledger.rules.channels import served_channels
from node.ledger.rules.staking import VALIDATORS_NAME
from node.ledger.state import State
from node.ledger.wire.transactions import ROTATE_TAG, RotateKey, Transaction, rotation_body

FORMER_KEYS_MAX: Final = 4  # of one provider: evidence is tried with each of them
_FORMER_NAME: Final = b"former/"


def apply_rotate_key(state: State, context: Context, tx: Transaction, payload: RotateKey) -> None:
    """Type 3.

    Raises Invalid: 23 a validator in the set, or a provider with channels that are not closed or
    with too many former keys, 26 the key that signs already, or no point, 28 not signed by the new
    key.
    """
    account = tx.sender
    if account in state.get(tables.MEMBERS, VALIDATORS_NAME).keys:
        raise Invalid("tx.wrong_state", why="in the set")
    channels = served_channels(state, account)
    if channels:
        raise Invalid("tx.wrong_state", why="channels as provider", channels=channels)
    if payload.key == current_key(state, account):
        raise Invalid("tx.bad_value", why="the same key")
    check_key(state, payload.key)
    message = signing_bytes(ROTATE_TAG, context.chain_id, rotation_body(account, tx.nonce))
    verify_signature(payload.key, message, payload.signature, "tx.bad_proof")
    if state.has(tables.PROVIDER, account):
        _note_former(state, context, account)
    key = b"" if payload.key == account else payload.key
    state.put(tables.ACCOUNT, (account,), state.account(account)._replace(key=key))


def keys_of(state: State, provider: bytes) -> tuple[bytes, ...]:
    """All that receipts of its channels may be signed with: the current key and former ones."""
    former = state.scan(tables.FORMER_KEY, _FORMER_NAME, provider)
    return current_key(state, provider), *(key for (_, _, key), _ in former)


def _note_former(state: State, context: Context, provider: bytes) -> None:
    if len(keys_of(state, provider)) > FORMER_KEYS_MAX:
        raise Invalid("tx.wrong_state", why="former keys", keys=FORMER_KEYS_MAX)
    key = current_key(state, provider)
    until_ms = checked(context.time_ms + state.parameter("channel_forget_ms"))
    state.put(tables.FORMER_KEY, (_FORMER_NAME, provider, key), tables.Counter(until_ms))
    state.add_due(until_ms, tables.DUE_FORMER_KEY, provider + key)


def forget_former(state: State, context: Context, due_ms: int, reference: bytes) -> None:
    """Due: the channels of its time are forgotten; unless the key has come back and gone since."""
    key = _FORMER_NAME, reference[:KEY_BYTES], reference[KEY_BYTES:]
    record = state.find(tables.FORMER_KEY, *key)
    if record is not None and record.value == due_ms:
        state.remove(tables.FORMER_KEY, *key)
