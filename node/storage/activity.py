"""What a block did to which account: the index behind "what happened to me" and "why did I earn".

Why derived and not in the state: it is for reading only, may be dropped, and is made again when
blocks are replayed. Why it names things and tells no story: the story (split, shares, records) is
read from the thing itself, with its proof.
What this file does not know: how entries are kept.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from node.ledger import tables
from node.ledger.state import State
from node.ledger.wire.bundles import Bundle, decode_body, decode_header, decode_section
from node.ledger.wire.payouts import PayoutLeaf
from node.ledger.wire.transactions import Transfer, decode_transaction

SENT: Final = 1  # a transaction of ours: its id; amount is what a transfer moved, else 0
RECEIVED: Final = 2  # a transfer to us: its id
PAID: Final = 3  # a section of our channel settled: the bundle's hash
SETTLED: Final = 4  # our bundle settled: its hash, all its fees
EARNED: Final = 5  # a payout to us or our contribution: kind u8 ‖ payee ‖ model u64 ‖ version u32

NAMES: Final = {
    SENT: "sent",
    RECEIVED: "received",
    PAID: "paid",
    SETTLED: "settled",
    EARNED: "earned",
}


class Entry(NamedTuple):
    """One thing that happened to `account`; `amount` in grains, `reference` ≤ 64 bytes."""

    account: bytes
    kind: int
    amount: int
    reference: bytes


def of_transactions(raws: Sequence[bytes], codes: Sequence[int]) -> Iterator[Entry]:
    """Entries of a payload's transactions; a failed one moved nothing."""
    for raw, code in zip(raws, codes, strict=True):
        tx = decode_transaction(raw)
        moved = tx.payload.amount if isinstance(tx.payload, Transfer) and code == 0 else 0
        yield Entry(tx.sender, SENT, moved, tx.tx_id)
        if isinstance(tx.payload, Transfer) and code == 0:
            yield Entry(tx.payload.to, RECEIVED, moved, tx.tx_id)


def of_bundle(state: State, bundle: Bundle) -> Iterator[Entry]:
    """Entries of a settled bundle; `state` is that after the block."""
    header = decode_header(bundle.header)
    yield Entry(header.provider, SETTLED, header.fee_total, bundle.hash)
    for part in decode_body(bundle.body):
        section = decode_section(part.section)
        channel = state.find(tables.CHANNEL, section.channel)
        if channel is not None:
            yield Entry(channel.payer, PAID, section.amount, bundle.hash)


def of_payouts(state: State, leaves: Sequence[PayoutLeaf]) -> Iterator[Entry]:
    """Entries of payout leaves whose payee is an account or an account's contribution."""
    for leaf in leaves:
        if leaf.kind in (tables.KIND_PROVIDER, tables.KIND_CREATOR):
            account = leaf.payee
        elif leaf.kind == tables.KIND_DATA and leaf.payee:
            number = int.from_bytes(leaf.payee, "big")
            account = state.get(tables.CONTRIBUTION, number).contributor
        else:
            continue
        yield Entry(account, EARNED, leaf.amount, payout_reference(leaf))


def payout_reference(leaf: PayoutLeaf) -> bytes:
    """Which leaf of a block's payouts it is."""
    which = leaf.model.to_bytes(8, "big") + leaf.version.to_bytes(4, "big")
    return bytes([leaf.kind]) + leaf.payee + which
