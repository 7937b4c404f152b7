"""What waits to be proposed: signed transactions and checked bundles, bounded and in order.

Why lines: a sender's transactions and a provider's bundles only count in their own order, so each
owner has a line, and only the heads of the lines compete by what they pay for their size.
Why everything is looked at again after each block: what the ledger has moved past must not be
proposed, for one bad entry makes a payload invalid.
What this file does not know: gossip, the disk, and who proposes next.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final, Generic, Protocol, TypeVar

from consensus.primitives.errors import Invalid
from node.ledger import tables
from node.ledger.addresses import account_text
from node.ledger.admission import Admitted, is_still_good
from node.ledger.amounts import part_bps
from node.ledger.rules import accounts, channels
from node.ledger.state import State
from node.ledger.wire.blocks import BODIES_BYTES_MAX, BUNDLES_MAX, RECEIPTS_MAX, TRANSACTIONS_MAX
from node.ledger.wire.transactions import VALID_MS_MAX, Transaction, decode_transaction

TRANSACTIONS_BYTES_MAX: Final = 64 << 20
BUNDLES_BYTES_MAX: Final = 256 << 20
NONCE_AHEAD_MAX: Final = 4
PER_SENDER_MAX: Final = 16
PER_PROVIDER_MAX: Final = 8
REPLACE_BPS: Final = 11_250  # of the old max_fee
RATE_SHIFT: Final = 32  # rates are compared as integers: value × 2^32 // size
_ENTRY_OVERHEAD: Final = 64  # bytes of a place in the payload's arrays, at most


class _Entry(Protocol):
    """What can stand in a line."""

    @property
    def owner(self) -> bytes: ...
    @property
    def number(self) -> int: ...
    @property
    def name(self) -> bytes: ...
    @property
    def rate(self) -> int: ...
    @property
    def size(self) -> int: ...


E = TypeVar("E", bound=_Entry)


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """What is held, and what was refused or dropped since the start."""

    entries: int
    bytes: int
    refused: int
    dropped: int
    evicted: int


class _Lines(Generic[E]):
    """Entries by owner and number, with a limit on their bytes."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._lines: dict[bytes, dict[int, E]] = {}
        self._by_name: dict[bytes, E] = {}
        self.bytes = self.refused = self.dropped = self.evicted = 0

    def __len__(self) -> int:
        return len(self._by_name)

    def __contains__(self, name: bytes) -> bool:
        return name in self._by_name

    def find(self, name: bytes) -> E | None:
        return self._by_name.get(name)

    def line(self, owner: bytes) -> dict[int, E]:
        return self._lines.get(owner, {})

    def add(self, entry: E) -> None:
        self._lines.setdefault(entry.owner, {})[entry.number] = entry
        self._by_name[entry.name] = entry
        self.bytes += entry.size
        while self.bytes > self._bytes_max:
            # The last of the poorest line goes, so that no line gets a gap in the middle.
            tails = [line[max(line)] for line in self._lines.values()]
            poorest = min(tails, key=lambda tail: (tail.rate, tail.name))
            self.remove(poorest)
            self.evicted += 1

    def remove(self, entry: E) -> None:
        line = self._lines[entry.owner]
        del line[entry.number], self._by_name[entry.name]
        if not line:
            del self._lines[entry.owner]
        self.bytes -= entry.size

    def drop_if(self, is_stale: Callable[[E], bool]) -> None:
        for entry in [entry for entry in self._by_name.values() if is_stale(entry)]:
            self.remove(entry)
            self.dropped += 1

    def drop(self, name: bytes) -> None:
        entry = self._by_name.get(name)
        if entry is not None:
            self.remove(entry)
            self.dropped += 1

    def best_first(self) -> Iterator[E]:
        """Heads of lines by rate, then name; the one behind a head competes after it."""
        heap: list[tuple[int, bytes, int]] = []
        for line in self._lines.values():
            first = line[min(line)]
            heappush(heap, (-first.rate, first.name, first.number))
        while heap:
            _, name, number = heappop(heap)
            entry = self._by_name[name]
            yield entry
            later = [other for other in self._lines[entry.owner] if other > number]
            if later:
                follower = self._lines[entry.owner][min(later)]
                heappush(heap, (-follower.rate, follower.name, follower.number))

    def statistics(self) -> PoolStatistics:
        return PoolStatistics(len(self), self.bytes, self.refused, self.dropped, self.evicted)


# ---- transactions


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A transaction in line, and the key that it was verified with."""

    tx: Transaction
    key: bytes
    name: bytes
    rate: int

    @property
    def owner(self) -> bytes:
        return self.tx.sender

    @property
    def number(self) -> int:
        return self.tx.nonce

    @property
    def size(self) -> int:
        return len(self.tx.raw)


class TransactionPool:
    """Transactions whose signature and envelope were good when they came."""

    def __init__(self, chain_id: bytes, bytes_max: int = TRANSACTIONS_BYTES_MAX) -> None:
        self._chain_id = chain_id
        self._lines: _Lines[_Waiting] = _Lines(bytes_max)

    def __len__(self) -> int:
        return len(self._lines)

    def __contains__(self, tx_id: bytes) -> bool:
        return tx_id in self._lines

    def find(self, tx_id: bytes) -> Transaction | None:
        """A waiting transaction by its id."""
        found = self._lines.find(tx_id)
        return None if found is None else found.tx

    def next_nonce(self, state: State, sender: bytes) -> int:
        """What the sender's next transaction is to carry: with the ledger's own it would stand in
        the place of one that waits."""
        line, nonce = self._lines.line(sender), state.account(sender).nonce
        while nonce in line:
            nonce += 1
        return nonce

    def add(self, state: State, now_ms: int, raw: bytes) -> Transaction:
        """Admit wire bytes; the cheapest check first, the signature last (page 30 §6).

        Raises `Invalid` with an envelope's word, or `pool.known`, `pool.replace`,
        `pool.sender_full`, `pool.full`.
        """
        try:
            return self._add(state, now_ms, raw)
        except Invalid:
            self._lines.refused += 1
            raise

    def _add(self, state: State, now_ms: int, raw: bytes) -> Transaction:
        tx = decode_transaction(raw)
        tx_id = tx.tx_id
        if tx_id in self._lines:
            raise Invalid("pool.known", tx_id=tx_id)
        if not now_ms < tx.valid_until_ms <= now_ms + VALID_MS_MAX:
            raise Invalid("tx.expired", valid_until_ms=tx.valid_until_ms, now_ms=now_ms)
        sender = state.account(tx.sender)
        if not sender.nonce <= tx.nonce <= sender.nonce + NONCE_AHEAD_MAX:
            raise Invalid("tx.nonce", nonce=tx.nonce, expected=sender.nonce)
        charge = accounts.charge_of(tx, state.counter(accounts.BASE_PRICE_NAME))
        if tx.max_fee < charge:
            raise Invalid("tx.max_fee", max_fee=tx.max_fee, charge=charge)
        if sender.balance < tx.max_fee:
            who = account_text(tx.sender)
            raise Invalid("tx.cannot_pay", account=who, balance=sender.balance, max_fee=tx.max_fee)
        line = self._lines.line(tx.sender)
        before = line.get(tx.nonce)
        if before is not None and tx.max_fee < part_bps(before.tx.max_fee, REPLACE_BPS):
            raise Invalid("pool.replace", max_fee=tx.max_fee, before=before.tx.max_fee)
        if before is None and len(line) >= PER_SENDER_MAX:
            raise Invalid("pool.sender_full", waiting=len(line))
        accounts.verify_sender(state, self._chain_id, tx)
        if before is not None:
            self._lines.remove(before)
        rate = (tx.max_fee << RATE_SHIFT) // tx.weight
        self._lines.add(_Waiting(tx, accounts.current_key(state, tx.sender), tx_id, rate))
        if tx_id not in self._lines:
            raise Invalid("pool.full")
        return tx

    def pick(self, state: State, bytes_max: int) -> list[Transaction]:
        """What to propose: by max_fee per weight, each sender's without gaps from its nonce."""
        chosen: list[Transaction] = []
        following: dict[bytes, int] = {}
        for entry in self._lines.best_first():
            tx = entry.tx
            expected = following.get(tx.sender)
            if expected is None:
                expected = state.account(tx.sender).nonce
            size = entry.size + _ENTRY_OVERHEAD
            if tx.nonce != expected or size > bytes_max:
                continue
            following[tx.sender] = expected + 1
            bytes_max -= size
            chosen.append(tx)
            if len(chosen) == TRANSACTIONS_MAX:
                break
        return chosen

    def review(self, state: State, now_ms: int) -> None:
        """After a block: drop what is done, expired, no longer payable, or signed by a key that
        was given up."""

        def is_stale(entry: _Waiting) -> bool:
            sender, tx = state.account(entry.tx.sender), entry.tx
            is_late = tx.nonce < sender.nonce or tx.valid_until_ms <= now_ms
            is_signed = accounts.current_key(state, tx.sender) == entry.key
            return is_late or sender.balance < tx.max_fee or not is_signed

        self._lines.drop_if(is_stale)

    def drop(self, tx_id: bytes) -> None:
        """Take out one that turned out not to fit; unknown ids are ignored."""
        self._lines.drop(tx_id)

    def statistics(self) -> PoolStatistics:
        """Counters since the start."""
        return self._lines.statistics()


# ---- bundles


@dataclass(frozen=True, slots=True)
class _OpenBundle:
    """A bundle in its provider's line."""

    admitted: Admitted
    rate: int

    @property
    def owner(self) -> bytes:
        return self.admitted.bundle.header.provider

    @property
    def number(self) -> int:
        return self.admitted.bundle.header.bundle_seq

    @property
    def name(self) -> bytes:
        return self.admitted.bundle.hash

    @property
    def size(self) -> int:
        return self.admitted.body_bytes + len(self.admitted.header)


class BundlePool:
    """Bundles that passed A1 to A7 and are not settled. Their bodies lie in the bundle store."""

    def __init__(self, bytes_max: int = BUNDLES_BYTES_MAX) -> None:
        self._lines: _Lines[_OpenBundle] = _Lines(bytes_max)

    def __len__(self) -> int:
        return len(self._lines)

    def __contains__(self, bundle_hash: bytes) -> bool:
        return bundle_hash in self._lines

    def known(self) -> dict[bytes, Admitted]:
        """Bundle hash → what was checked, for `execute_block`."""
        return {entry.name: entry.admitted for entry in self._lines.best_first()}

    def add(self, state: State, admitted: Admitted) -> None:
        """Admit a checked bundle; `Invalid` `pool.known`, `pool.settled`, `pool.stale`,
        `pool.provider_full`, `pool.same_number`, `pool.full`."""
        try:
            self._add(state, admitted)
        except Invalid:
            self._lines.refused += 1
            raise

    def _add(self, state: State, admitted: Admitted) -> None:
        header = admitted.bundle.header
        if admitted.bundle.hash in self._lines:
            raise Invalid("pool.known", bundle=admitted.bundle.hash)
        provider = state.find(tables.PROVIDER, header.provider)
        if provider is None or header.bundle_seq <= provider.bundle_seq:
            raise Invalid("pool.settled", bundle_seq=header.bundle_seq)
        if not is_still_good(state, admitted):  # an audit may have taken blocks since the check
            raise Invalid("pool.stale", bundle=admitted.bundle.hash)
        line = self._lines.line(header.provider)
        if header.bundle_seq in line:
            raise Invalid("pool.same_number", bundle_seq=header.bundle_seq)
        if len(line) >= PER_PROVIDER_MAX:
            raise Invalid("pool.provider_full", waiting=len(line))
        size = admitted.body_bytes + len(admitted.header)
        self._lines.add(_OpenBundle(admitted, (header.fee_total << RATE_SHIFT) // size))
        if admitted.bundle.hash not in self._lines:
            raise Invalid("pool.full")

    def pick(self) -> list[Admitted]:
        """What to propose: by fees per byte, within a payload's limits, in a payload's order."""
        chosen: list[Admitted] = []
        receipts, body_bytes = RECEIPTS_MAX, BODIES_BYTES_MAX
        passed: set[bytes] = set()  # providers with a bundle that did not fit; looked up only
        for entry in self._lines.best_first():
            header = entry.admitted.bundle.header
            too_large = header.count > receipts or entry.admitted.body_bytes > body_bytes
            if header.provider in passed or too_large:
                passed.add(header.provider)
                continue
            receipts -= header.count
            body_bytes -= entry.admitted.body_bytes
            chosen.append(entry.admitted)
            if len(chosen) == BUNDLES_MAX:
                break
        return sorted(chosen, key=payload_order)

    def review(self, state: State, now_ms: int) -> None:
        """After a block: drop what is settled, void, or was checked with other keys."""
        self._lines.drop_if(lambda entry: _is_void(state, now_ms, entry.admitted))

    def drop(self, bundle_hash: bytes) -> None:
        """Take out one that turned out not to fit; unknown hashes are ignored."""
        self._lines.drop(bundle_hash)

    def statistics(self) -> PoolStatistics:
        """Counters since the start."""
        return self._lines.statistics()


def payload_order(admitted: Admitted) -> tuple[bytes, int]:
    """Bundles stand in a payload by (provider, bundle_seq)."""
    return admitted.bundle.header.provider, admitted.bundle.header.bundle_seq


def _is_void(state: State, now_ms: int, admitted: Admitted) -> bool:
    header = admitted.bundle.header
    provider = state.find(tables.PROVIDER, header.provider)
    if provider is None or header.bundle_seq <= provider.bundle_seq:
        return True
    if not is_still_good(state, admitted):
        return True
    for checked in admitted.bundle.sections:
        section = checked.section
        channel = state.find(tables.CHANNEL, section.channel)
        if channel is None or channel.state == tables.CHANNEL_CLOSED:
            return True
        if section.from_seq <= channels.lane_of(state, section.channel, section.lane).seq:
            return True
        if checked.voucher.expires_ms <= now_ms:
            return True
    return False
