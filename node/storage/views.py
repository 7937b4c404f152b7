"""The chain as it stood after one block: for the API, the pool, peers and proofs.

Why a view and not the chain: a reader in another thread must see state, blocks and height of one
moment while the next block is being written. A view is made at each commit and shared; it holds a
database snapshot until nobody uses it any more.
Every call may read the disk (tens of microseconds; a block or bundle: up to milliseconds) and may
raise `Damaged`, which must end the process.
What this file does not know: how a block came to be here.
"""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from consensus.attacks import Decided
from consensus.certificate import Certificate, decode_certificate
from consensus.header import Header, decode_header
from consensus.pastblocks import PastBlock
from consensus.primitives.encoding import U8, U16, U63, Bytes, ListOf, Record, decode, encode
from consensus.primitives.errors import Invalid
from consensus.skipping import LightBlock
from consensus.validators import ValidatorSet, decode_validators
from node.ledger.context import PastHeight
from node.ledger.state import Base, State
from node.ledger.wire.blocks import (
    PAYLOAD_BYTES_MAX,
    TRANSACTIONS_MAX,
    Block,
    Payload,
    decode_block,
    decode_payload,
)
from node.ledger.wire.bundles import Bundle, decode_body
from node.storage import history, keyspace
from node.storage.blocklog import BlockLog, BlockRecord
from node.storage.bundlestore import BundleStore
from node.storage.errors import FRESH_HOME, Damaged
from node.storage.headlog import is_head
from node.storage.pasts import MissingPast, PastBlocks
from node.storage.segments import Place, decode_place
from node.storage.store import Reader

ACTIVITY_MAX: Final = 1_000  # entries in one answer
OUTCOME_BYTES_MAX: Final = 64 << 20
LEAVES_MAX: Final = 65_536
LEAF_BYTES_MAX: Final = 512

_OUTCOME: Final = Record(ListOf(U16, TRANSACTIONS_MAX), ListOf(Bytes(LEAF_BYTES_MAX), LEAVES_MAX))
_ACTIVITY: Final = Record(U8, U63, Bytes(64))


@dataclass(frozen=True, slots=True)
class Tip:
    """The newest block. At height 0: `header` and `certificate` are None, the id is the chain's."""

    height: int
    block_id: bytes
    time_ms: int
    header: Header | None
    certificate: Certificate | None
    signers: ValidatorSet | None = field(compare=False)  # of this height; priorities may be lost
    validators: ValidatorSet  # who signs height + 1, with priorities and turn


@dataclass(frozen=True, slots=True)
class FoundTransaction:
    """A transaction in the chain. `code` 0: it did what it says."""

    height: int
    index: int
    code: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class FoundBundle:
    """A settled bundle; `index` is its place among the payload's hashes."""

    height: int
    index: int
    bundle: Bundle


@dataclass(frozen=True, slots=True)
class FoundReceipt:
    """A settled receipt with its credits; `index` is its place in the bundle."""

    height: int
    bundle_hash: bytes
    index: int
    receipt: bytes
    credits: bytes


@dataclass(frozen=True, slots=True)
class Activity:
    """Something that happened to an account; `kind` is one of `activity.py`'s."""

    height: int
    index: int
    kind: int
    amount: int
    reference: bytes


class StoredOutcome(NamedTuple):
    """What execution gave beside the state: codes in payload order, encoded payout leaves."""

    codes: tuple[int, ...]
    payouts: tuple[bytes, ...]


def encode_outcome(outcome: StoredOutcome) -> bytes:
    """Bytes for the database."""
    return encode(outcome)


def encode_activity(kind: int, amount: int, reference: bytes) -> bytes:
    """Bytes for the database."""
    return encode((kind, amount, reference))


def base_of(reader: Reader, height: int) -> Base:
    """The state after block `height` over a reader that is of that moment."""
    return Base(
        read=lambda key: reader.get(keyspace.STATE + key),
        scan=lambda start, stop: (
            (key[1:], value)
            for key, value in reader.scan(keyspace.STATE + start, keyspace.STATE + stop)
        ),
        read_node=lambda key: reader.get(keyspace.NODE + key),
        tree_root=reader.get(keyspace.ROOT + keyspace.u64(height)) or b"",
    )


class View:
    """Everything that can be asked of the chain as of block `tip.height`. Any thread."""

    def __init__(
        self, reader: Reader, tip: Tip, log: BlockLog, bundles: BundleStore, pasts: PastBlocks
    ) -> None:
        self.tip = tip
        self.reader = reader
        self._log = log
        self._bundles = bundles
        self._pasts = pasts
        self.base = base_of(reader, tip.height)

    @property
    def height(self) -> int:
        """Height of the newest block; 0 before the first."""
        return self.tip.height

    @property
    def earliest(self) -> int:
        """Height of the first block that is held: 1, or the first one after a snapshot."""
        footing = self._pasts.footing
        return 1 if footing is None else footing.height + 1

    @property
    def needed_snapshot(self) -> int:
        """Height of the one that a lost database must be loaded from; 0: genesis, or the newest.

        Once something was dropped for its age, no snapshot but a newer one brings it back.
        """
        has_dropped = self._bundles.has_dropped or self._log.has_dropped
        return 0 if has_dropped else self.earliest - 1

    @property
    def earliest_whole(self) -> int:
        """Height of the first block that is held with its payload."""
        return max(self.earliest, self._log.heads.height + 1)

    # -- state

    def state(self) -> State:
        """A fresh typed view of the state; one user each (it caches what it reads)."""
        return State(self.base)

    def base_at(self, height: int) -> Base | None:
        """The tree after block `height` beside the newest records; None when it was pruned."""
        root = self.reader.get(keyspace.ROOT + keyspace.u64(height))
        return None if root is None else self.base._replace(tree_root=root)

    # -- blocks

    def record(self, height: int) -> BlockRecord | None:
        """The encoded block and certificate of a height, or None if it is not held whole."""
        place = self._place(height)
        return None if place is None or is_head(place) else self._log.read(place)

    def head(self, height: int) -> BlockRecord | None:
        """The same of a block whose payload may have been dropped: it is empty then."""
        place = self._place(height)
        return None if place is None else self._log.read(place)

    def _place(self, height: int) -> Place | None:
        raw = self.reader.get(keyspace.BLOCK + keyspace.u64(height))
        return None if raw is None else decode_place(raw)

    def is_pruned(self, height: int) -> bool:
        """Whether a block is held without its payload."""
        place = self._place(height)
        return place is not None and is_head(place)

    def block(self, height: int) -> Block | None:
        """The three encodings of a block."""
        record = self.record(height)
        return None if record is None else decode_block(record.block)

    def header(self, height: int) -> Header | None:
        """The header of a height."""
        if self.tip.header is not None and height == self.tip.height:
            return self.tip.header
        footing = self._pasts.footing
        if footing is not None and height == footing.height:
            return footing
        block = self._head_block(height)
        return None if block is None else decode_header(block.header)

    def _head_block(self, height: int) -> Block | None:
        record = self.head(height)
        return None if record is None else decode_block(record.block)

    def certificate(self, height: int) -> Certificate | None:
        """The certificate that decided a height."""
        record = self.head(height)
        return None if record is None else decode_certificate(record.certificate)

    def payload(self, height: int) -> Payload | None:
        """What a block carries. Raises `Invalid` `block.pruned` where that was dropped."""
        if self.is_pruned(height):
            raise Invalid("block.pruned", height=height)
        block = self.block(height)
        return None if block is None else decode_payload(block.payload)

    def height_of(self, block_id: bytes) -> int | None:
        """The height of a block id."""
        raw = self.reader.get(keyspace.BLOCK_ID + block_id)
        return None if raw is None else keyspace.from_u64(raw)

    def height_at(self, time_ms: int) -> int:
        """The newest height whose block is not later than `time_ms`.

        The height below the earliest if all that are held are later: 0 in a whole chain.
        """
        low, high = self.earliest - 1, self.tip.height
        while low < high:
            middle = (low + high + 1) >> 1
            if self.get_header(middle).time_ms <= time_ms:
                low = middle
            else:
                high = middle - 1
        return low

    def validators(self, height: int) -> ValidatorSet | None:
        """The set that signs `height` ≤ tip + 1; of older heights without priorities or turn."""
        if height == self.tip.height + 1:
            return self.tip.validators
        if not 1 <= height <= self.tip.height:
            return None
        start = keyspace.VALIDATORS + keyspace.falling(height)
        for _, raw in self.reader.scan(start, keyspace.after(keyspace.VALIDATORS)):
            return decode_validators(raw)
        return None

    def find_past(self, height: int) -> PastHeight | None:
        """What evidence of a height is judged by; None while the height is not decided.

        None, too, for one before our snapshot when that is surely too old for any evidence: then
        every node refuses it. Raises `MissingPast` for one that must be fetched first.
        """
        if self._pasts.is_before(height) and self.has_outlived_snapshot():
            return None
        past = self.recall_past(height)
        if past is None and self._pasts.is_before(height):
            raise MissingPast((height,))
        return past

    def recall_past(self, height: int) -> PastHeight | None:
        """The same for telling of evidence that was judged long ago; None where it is not held."""
        if not 1 <= height <= self.tip.height:
            return None
        if self._pasts.is_before(height):
            past = self._pasts.find(height)
            return None if past is None else _past_height(past)
        validators = self.validators(height)
        if validators is None:
            raise Damaged(f"the validators of height {height} are missing", mend=FRESH_HOME)
        decided = self.find_decided(height) if height < self.tip.height else None
        return PastHeight(height, self.get_header(height).time_ms, validators, decided)

    def has_outlived_snapshot(self) -> bool:
        """Whether no block to come may hold evidence from before the one our log stands on."""
        footing = self._pasts.footing
        if footing is None:
            return True
        return self.tip.time_ms > footing.time_ms + self.state().parameter("evidence_age_ms_max")

    def find_decided(self, height: int) -> Decided | None:
        """A block with the commit that the next block carries; None where it is not held.

        Of the tip with the commit that this node holds: another may have gathered another.
        """
        header, validators = self.header(height), self.validators(height)
        if header is None or validators is None:
            return None
        if height == self.tip.height:
            assert self.tip.certificate is not None
            return Decided(header, self.tip.certificate, validators)
        following = self._head_block(height + 1)
        assert following is not None, "what is held has no gap below the tip"
        return Decided(header, decode_certificate(following.last_certificate), validators)

    def light_block(self, height: int) -> LightBlock | None:
        """What a light client needs of a height, or None where something of it is not held."""
        header, certificate = self.header(height), self.certificate(height)
        validators, following = self.validators(height), self.validators(height + 1)
        if header is None or certificate is None or validators is None or following is None:
            return None
        return LightBlock(header, certificate, validators, following)

    def past_block(self, height: int, at: int) -> PastBlock | None:
        """What proves block `height` and its judgement to whom trusts the header of `at` alone.

        A block stands behind the first. Of heights before our snapshot only what evidence made us
        keep, for an `at` from the block that our log stands on.
        """
        if not 1 <= height < at <= self.tip.height + 1:
            return None
        if self._pasts.is_before(height):
            return self._kept_past(height, at)
        behind = self._head_block(height + 1)
        validators, following = self.validators(height), self.validators(height + 1)
        if behind is None or validators is None or following is None:
            return None
        certificate = decode_certificate(behind.last_certificate)
        light = LightBlock(self.get_header(height), certificate, validators, following)
        path = () if height + 1 == at else self.history_path(height + 1, at)
        return PastBlock(light, decode_header(behind.header), path)

    def _kept_past(self, height: int, at: int) -> PastBlock | None:
        footing, past = self._pasts.footing, self._pasts.find(height)
        if past is None or footing is None or at < footing.height:
            return None
        if at == footing.height:
            return past
        path = history.extended(self.reader, past.path, height, footing.height - 1, at - 1)
        return None if path is None else past._replace(path=path)

    def history_path(self, height: int, at: int) -> tuple[bytes, ...]:
        """The path of block `height` < `at` under `history_root` of the header of `at`.

        Of blocks that are held (`earliest`): of older ones a snapshot knows only the edge.
        """
        assert self.earliest <= height < at <= self.tip.height + 1
        return history.prove(self.reader, height - 1, at - 1)

    # -- what blocks carry

    def find_transaction(self, tx_id: bytes) -> FoundTransaction | None:
        """A transaction by its id."""
        raw = self.reader.get(keyspace.TRANSACTION + tx_id)
        if raw is None:
            return None
        height, index, code = keyspace.decode_transaction_place(raw)
        payload = self.payload(height)
        return (
            None
            if payload is None
            else FoundTransaction(height, index, code, payload.transactions[index])
        )

    def settled_at(self, bundle_hash: bytes) -> int:
        """Height of the block that settled a bundle; 0: none has."""
        raw = self.reader.get(keyspace.BUNDLE + bundle_hash)
        return 0 if raw is None else keyspace.decode_bundle_place(raw)[0]

    def find_bundle(self, bundle_hash: bytes) -> FoundBundle | None:
        """A settled bundle by its hash; None also when its body is no longer kept."""
        raw = self.reader.get(keyspace.BUNDLE + bundle_hash)
        bundle = self._bundles.get(bundle_hash)
        if raw is None or bundle is None:
            return None
        return FoundBundle(*keyspace.decode_bundle_place(raw), bundle)

    def find_receipt(self, receipt_id: bytes) -> FoundReceipt | None:
        """A settled receipt by its id (SHA-256 of its body)."""
        raw = self.reader.get(keyspace.RECEIPT + receipt_id)
        return None if raw is None else self.receipt_at(raw[:32], int.from_bytes(raw[32:], "big"))

    def receipt_at(self, bundle_hash: bytes, index: int) -> FoundReceipt | None:
        """The receipt at a place of a settled bundle."""
        found = self.find_bundle(bundle_hash)
        if found is None:
            return None
        place = index
        for part in decode_body(found.bundle.body):
            if place < len(part.receipts):
                receipt, credits = part.receipts[place], part.credits[place]
                return FoundReceipt(found.height, bundle_hash, index, receipt, credits)
            place -= len(part.receipts)
        return None

    def outcome(self, height: int) -> StoredOutcome | None:
        """Codes of a block's transactions and its payout leaves."""
        raw = self.reader.get(keyspace.OUTCOME + keyspace.u64(height))
        if raw is None:
            return None
        return StoredOutcome(*decode(raw, _OUTCOME, OUTCOME_BYTES_MAX, "store.outcome"))

    def payouts(self, height: int) -> tuple[bytes, ...]:
        """Encoded payout leaves of a block in the order of `payouts_root`."""
        outcome = self.outcome(height)
        return () if outcome is None else outcome.payouts

    def activity(
        self, account: bytes, *, below: int | None = None, entries_max: int = 100
    ) -> tuple[Activity, ...]:
        """What happened to an account, newest block first; `below` goes on from a height."""
        assert 0 < entries_max <= ACTIVITY_MAX
        prefix = keyspace.ACTIVITY + account
        start = prefix if below is None else prefix + keyspace.falling(below - 1)
        found: list[Activity] = []
        for key, raw in self.reader.scan(start, prefix + b"\xff" * 13):
            height = keyspace.from_falling(key[33:41])
            index = int.from_bytes(key[41:], "big")
            found.append(Activity(height, index, *decode(raw, _ACTIVITY, 128, "store.activity")))
            if len(found) == entries_max:
                break
        return tuple(found)

    def get_header(self, height: int) -> Header:
        """The header that must be there: its absence is damage."""
        header = self.header(height)
        if header is None:
            raise Damaged(f"block {height} is missing", mend=FRESH_HOME)
        return header


def _past_height(past: PastBlock) -> PastHeight:
    """Its certificate is the one that the next block carries, as `find_decided` gives it."""
    told = past.block
    decided = Decided(told.header, told.certificate, told.validators)
    return PastHeight(told.height, told.header.time_ms, told.validators, decided)


assert PAYLOAD_BYTES_MAX < OUTCOME_BYTES_MAX
