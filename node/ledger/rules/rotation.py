"""Another key for an account: from then on it alone signs what the account signs.

Why not while others rely on the old one: votes of a member of the set are checked with the key
that the set names, and bundles under way were signed by the provider's. A channel's vouchers stay
with the spender that it was opened with: a payer who could change that key would make void what a
provider has served for and not yet settled.
What this file does not know: where keys are kept, and what each of them signs.
"""

from consensus.primitives.digest import signing_bytes
from consensus.primitives.errors import Invalid
from consensus.primitives.keys import verify_signature
from node.ledger import tables
from node.ledger.context import Context
from node.ledger.rules.accounts import check_key, current_key
from node.ledger.rules.channels import served_channels
from node.ledger.rules.staking import VALIDATORS_NAME
from node.ledger.state import State
from node.ledger.wire.transactions import ROTATE_TAG, RotateKey, Transaction, rotation_body


def apply_rotate_key(state: State, context: Context, tx: Transaction, payload: RotateKey) -> None:
    """Type 3.

    Raises Invalid: 23 a validator in the set, or a provider with channels that are not closed, 26
    the key that signs already, or no point, 28 not signed by the new key.
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
    key = b"" if payload.key == account else payload.key
    state.put(tables.ACCOUNT, (account,), state.account(account)._replace(key=key))
