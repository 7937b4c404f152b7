"""What a decided block writes into the database: state, tree, and every index, in one batch.

Why one function: a block is in the database whole or not at all, so all its puts are made here,
from what execution gave. What this file does not know: whether the block is right.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from consensus.certificate import Certificate
from consensus.validators import encode_validators
from node.ledger import tree
from node.ledger.state import State
from node.ledger.wire.bundles import Bundle, decode_body
from node.ledger.wire.payouts import decode_payout
from node.ledger.wire.receipts import receipt_id
from node.ledger.wire.transactions import decode_transaction
from node.storage import activity, history, keyspace
from node.storage.batch import Batch
from node.storage.executing import Executed
from node.storage.segments import Place
from node.storage.views import StoredOutcome, Tip, base_of, encode_activity, encode_outcome

PRUNED_PER_BLOCK_MAX: Final = 20_000


def write_block(
    batch: Batch,
    tip: Tip,
    executed: Executed,
    certificate: Certificate,
    place: Place,
    keep_versions: int,
) -> Tip:
    """Put block `tip.height + 1` into `batch`; gives the new tip."""
    header = executed.header
    height = header.height
    assert height == tip.height + 1
    write_state(batch, height, executed.outcome.changes, executed.outcome.tree)
    prune_tree(batch, height, keep_versions)
    numbered = keyspace.u64(height)
    batch.put(keyspace.BLOCK + numbered, place.encode())
    batch.put(keyspace.BLOCK_ID + executed.block_id, numbered)
    for key, value in history.appended(batch, height - 1, executed.block_id):
        batch.put(key, value)
    _write_payload(batch, executed)
    _write_activity(batch, executed)
    if header.validators_hash != header.next_validators_hash:
        key = keyspace.VALIDATORS + keyspace.falling(height + 1)
        batch.put(key, encode_validators(executed.outcome.next_validators))
    batch.put(keyspace.HEIGHT, numbered)
    return Tip(
        height=height,
        block_id=executed.block_id,
        time_ms=header.time_ms,
        header=header,
        certificate=certificate,
        signers=tip.validators,
        validators=executed.outcome.next_validators,
    )


def write_state(
    batch: Batch, height: int, changes: Iterable[tuple[bytes, bytes | None]], update: tree.Update
) -> None:
    """Put the flat state and the tree of a block, or of genesis, into `batch`."""
    for key, value in changes:
        if value is None:
            batch.delete(keyspace.STATE + key)
        else:
            batch.put(keyspace.STATE + key, value)
    numbered = keyspace.u64(height)
    for node_key, node in update.nodes:
        batch.put(keyspace.NODE + node_key, node)
    for node_key in update.stale:
        batch.put(keyspace.STALE + numbered + node_key, b"")
    batch.put(keyspace.ROOT + numbered, update.record)


def head_places(moved: Iterable[tuple[int, Place]]) -> Iterator[tuple[bytes, bytes]]:
    """The puts that name blocks at the places of their heads."""
    for height, place in moved:
        yield keyspace.BLOCK + keyspace.u64(height), place.encode()


def prune_tree(batch: Batch, height: int, keep_versions: int) -> int:
    """Delete nodes that no kept version needs: stale since `height − keep_versions` or before.

    Returns how many: at most PRUNED_PER_BLOCK_MAX, the rest by the next blocks.
    """
    if height <= keep_versions:
        return 0
    last = height - keep_versions
    stop = keyspace.STALE + keyspace.u64(last + 1)
    gone: list[bytes] = []
    for key, _ in batch.scan(keyspace.STALE, stop):
        gone.append(key)
        if len(gone) == PRUNED_PER_BLOCK_MAX:
            break
    for key in gone:
        batch.delete(keyspace.NODE + key[9:])
        batch.delete(key)
    # Nodes stale since `last` served the versions below it, which can no longer be proved.
    batch.delete(keyspace.ROOT + keyspace.u64(last - 1))
    return len(gone)


def prune_roots(batch: Batch, height: int, keep_versions: int) -> None:
    """Delete all roots of versions that can no longer be proved, as after more were kept."""
    stop = keyspace.ROOT + keyspace.u64(max(0, height - keep_versions))
    for key in [key for key, _ in batch.scan(keyspace.ROOT, stop)]:
        batch.delete(key)


def _write_payload(batch: Batch, executed: Executed) -> None:
    height, outcome, payload = executed.header.height, executed.outcome, executed.payload
    for index, (raw, code) in enumerate(zip(payload.transactions, outcome.codes, strict=True)):
        tx_id = decode_transaction(raw).tx_id
        place = keyspace.encode_transaction_place(height, index, code)
        batch.put(keyspace.TRANSACTION + tx_id, place)
    for index, bundle_hash in enumerate(payload.bundles):
        place = keyspace.encode_bundle_place(height, index)
        batch.put(keyspace.BUNDLE + bundle_hash, place)
        _write_receipts(batch, executed.bundles[bundle_hash])
    stored = StoredOutcome(outcome.codes, outcome.payout_leaves)
    if stored.codes or stored.payouts:
        batch.put(keyspace.OUTCOME + keyspace.u64(height), encode_outcome(stored))


def _write_receipts(batch: Batch, bundle: Bundle) -> None:
    index = 0
    for part in decode_body(bundle.body):
        for receipt in part.receipts:
            batch.put(keyspace.RECEIPT + receipt_id(receipt), bundle.hash + keyspace.u32(index))
            index += 1


def _write_activity(batch: Batch, executed: Executed) -> None:
    height, outcome, payload = executed.header.height, executed.outcome, executed.payload
    state = State(base_of(batch, height))
    entries = list(activity.of_transactions(payload.transactions, outcome.codes))
    for bundle_hash in payload.bundles:
        entries += activity.of_bundle(state, executed.bundles[bundle_hash])
    entries += activity.of_payouts(state, [decode_payout(leaf) for leaf in outcome.payout_leaves])
    for index, entry in enumerate(entries):
        key = keyspace.activity_key(entry.account, height, index)
        batch.put(key, encode_activity(entry.kind, entry.amount, entry.reference))
