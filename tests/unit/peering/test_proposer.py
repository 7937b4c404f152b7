"""Payloads from the pools: what is worth a block, and what happens to what does not fit."""

from pathlib import Path

import pytest
from bundle_kit import party
from chain_kit import OPEN, PAYER
from stored_kit import Stored

from consensus.certificate import decode_certificate
from consensus.header import decode_header
from consensus.primitives.errors import Invalid
from node.ledger import tables
from node.ledger.pool import BundlePool, TransactionPool
from node.ledger.wire.blocks import Payload, decode_payload, encode_payload
from node.ledger.wire.transactions import Transfer, decode_transaction
from node.peering.proposer import TRANSACTIONS_BYTES_MAX, Proposer
from node.storage.store import MemoryKV


class Desk:
    """A chain, its pools, and the proposer whose turn it is."""

    def __init__(self, home: Path) -> None:
        self.stored = Stored(home, store=MemoryKV())
        self.chain = self.stored.chain
        self.transactions, self.bundles = TransactionPool(self.chain.chain_id), BundlePool()
        self.proposer = Proposer(
            chain=self.chain,
            transactions=self.transactions,
            bundles=self.bundles,
            me=self.chain.tip.validators.turn,
        )

    @property
    def now_ms(self) -> int:
        return self.chain.tip.time_ms + 1_000

    def pool(self, raw: bytes) -> bytes:
        self.transactions.add(self.chain.state(), self.now_ms, raw)
        return raw

    def built_payload(self) -> Payload:
        picked = self.proposer.pick()
        built = self.proposer.build(picked, self.now_ms, self.chain.certificate(self.chain.height))
        return decode_payload(built.block.payload)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_empty_pools_are_no_work(desk: Desk) -> None:
    assert not desk.proposer.has_work(desk.now_ms)
    assert desk.built_payload() == Payload()


def test_transaction_is_work_and_goes_into_the_block(desk: Desk) -> None:
    raw = desk.pool(desk.stored.pay())
    assert desk.proposer.has_work(desk.now_ms)
    assert desk.built_payload() == Payload((raw,))


def test_something_due_is_work_when_its_time_has_come(desk: Desk) -> None:
    state, due_ms = desk.chain.state(), desk.now_ms + 5
    state.add_due(due_ms, tables.DUE_UNBONDING, b"r" * 32)
    desk.chain.state = lambda: state  # type: ignore[method-assign]
    assert not desk.proposer.has_work(due_ms - 1)
    assert desk.proposer.has_work(due_ms)


def test_block_is_executed_when_it_is_built_and_can_be_committed(desk: Desk) -> None:
    desk.pool(desk.stored.pay())
    built = desk.proposer.build(desk.proposer.pick(), desk.now_ms, None)
    header = decode_header(built.block.header)
    assert desk.chain.executed_block(header.block_id()) == built.block
    assert (header.time_ms, header.height) == (desk.now_ms, 1)
    assert header.proposer == desk.chain.tip.validators.turn
    executed = desk.chain.statistics().executed
    assert desk.chain.execute(built.block).is_valid
    assert desk.chain.statistics().executed == executed, "found, not executed again"


def test_what_the_rehearsal_refuses_stays_out_and_is_dropped(desk: Desk) -> None:
    stored, poor = desk.stored, party("poor")
    good = desk.pool(stored.pay())
    bad = decode_transaction(stored.tx(poor, Transfer(PAYER.key, OPEN, b"")))
    picked = desk.proposer.pick()
    both = picked._replace(transactions=[*picked.transactions, bad])
    built = desk.proposer.build(both, desk.now_ms, None)
    assert decode_payload(built.block.payload).transactions == (good,)
    assert [name for name, _ in built.choice.refused_transactions] == [bad.tx_id]
    kept = desk.proposer.pick().transactions[0].tx_id
    desk.proposer.drop(built.choice)
    assert desk.proposer.pick().transactions[0].tx_id == kept
    desk.proposer.drop(built.choice._replace(refused_transactions=((kept, "any.reason"),)))
    assert desk.proposer.pick().transactions == []


def test_block_with_nothing_in_it_can_always_be_made(desk: Desk) -> None:
    desk.pool(desk.stored.pay())
    built = desk.proposer.build_empty(desk.now_ms, None)
    assert built.block.payload == encode_payload(Payload())
    assert built.choice.refused_transactions == ()


def test_signers_of_the_last_block_stand_in_the_next(desk: Desk) -> None:
    desk.stored.block(desk.stored.pay())
    certificate = decode_certificate(
        desk.stored.certify(1, desk.chain.tip.block_id, signers=4)
    )  # fmt: skip
    full = desk.proposer.build(desk.proposer.pick(), desk.now_ms, certificate)
    assert decode_certificate(full.block.last_certificate) == certificate
    assert desk.chain.execute(full.block).is_valid


def test_settled_transactions_leave_the_pool_after_their_block(desk: Desk) -> None:
    raw = desk.pool(desk.stored.pay())
    desk.stored.block(raw)
    desk.proposer.review(desk.now_ms)
    assert len(desk.transactions) == 0
    assert not desk.proposer.has_work(desk.now_ms)


def test_expired_transactions_leave_it_too(desk: Desk) -> None:
    desk.pool(desk.stored.pay())
    desk.proposer.review(desk.now_ms + 10**9)
    assert len(desk.transactions) == 0


def test_own_payload_that_breaks_a_rule_is_refused_and_not_repaired(desk: Desk) -> None:
    """The caller then makes an empty block: a vote must never hang on our pool's fault."""
    with pytest.raises(Invalid):
        desk.proposer._build(Payload((b"none",)), desk.now_ms, None, {})


def test_transactions_leave_room_for_every_bundle_of_a_payload() -> None:
    bundles = tuple(bytes([n % 256]) * 32 for n in range(256))
    overhead = len(encode_payload(Payload((), bundles)))
    assert TRANSACTIONS_BYTES_MAX + overhead <= 1 << 20
