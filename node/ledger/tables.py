"""The tables of the state as data: key bytes, record fields, shapes of page 30 §4.

Why all fields at once: the bytes of a record are hashed into every state root, so a field that
comes later would be a new chain. A number in a key is big-endian, so key order is number order.
What this file does not know: where records are kept, and the rules that change them.
"""

from typing import Any, Final, Generic, NamedTuple, TypeVar, cast

from consensus.primitives.digest import HASH_BYTES
from consensus.primitives.encoding import (
    U8,
    U16,
    U32,
    U63,
    WIDE,
    Bytes,
    Either,
    H,
    ListOf,
    Record,
    Shape,
    decode,
    encode,
    from_wide,
    wide,
)

RECORD_BYTES_MAX: Final = 16_384
LEAVING_MAX: Final = 7  # parts of one bond on their way out, so that a slash can walk them
ANY: Final = -1  # width of a key part of any length: only the last one

R = TypeVar("R")
KeyPart = int | bytes


class Table(Generic[R]):
    """One table: `flat_key` and the codec of its records."""

    __slots__ = ("_make", "_shape", "_wide", "name", "prefix", "widths")

    def __init__(
        self, prefix: int, widths: tuple[int, ...], make: type[R], shape: Shape,
        wide_fields: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        self.name = make.__name__.lower()
        self.prefix = bytes([prefix])
        self.widths = widths
        self._make: Any = make
        self._shape = shape
        self._wide = wide_fields

    def flat_key(self, parts: tuple[KeyPart, ...]) -> bytes:
        """Table byte ‖ key; numbers big-endian. Fewer parts than the key has: a prefix of it."""
        assert len(parts) <= len(self.widths), self.name
        key = self.prefix
        for part, width in zip(parts, self.widths):  # noqa: B905  # a prefix is as good
            raw = part if isinstance(part, bytes) else part.to_bytes(width, "big")
            assert len(raw) == width or width == ANY, f"{self.name}: key part of {len(raw)} bytes"
            key += raw
        return key

    def parts_of(self, flat_key: bytes) -> tuple[bytes, ...]:
        """The parts of a flat key, as bytes."""
        parts, at = [], 1
        for width in self.widths:
            end = len(flat_key) if width == ANY else at + width
            parts.append(flat_key[at:end])
            at = end
        return tuple(parts)

    def encode(self, record: R) -> bytes:
        """Canonical bytes of a record."""
        values = list(cast("tuple[Any, ...]", record))
        for i in self._wide:
            values[i] = wide(values[i])
        return encode(values)

    def decode(self, raw: bytes) -> R:
        """The record in `raw`; raises `Invalid` `state.…` if it is none."""
        values = decode(raw, self._shape, RECORD_BYTES_MAX, "state")
        if self._wide:
            values = [from_wide(v) if i in self._wide else v for i, v in enumerate(values)]
        return cast("R", self._make(*values))


HASH_OR_NONE: Final = Either(0, HASH_BYTES)
NAME: Final = Bytes(32, 3)


class Account(NamedTuple):
    """01. `key` is the current key, empty while it is the one the account began with."""

    nonce: int = 0
    balance: int = 0
    key: bytes = b""
    flags: int = 0


class Vesting(NamedTuple):
    """02. Rows of people: `ClaimVested` pays unlocked − claimed."""

    total: int
    claimed: int
    start_ms: int
    cliff_months: int
    tranches: int


class Channel(NamedTuple):
    """03. Holds cap − paid grains while not closed. State: 1 open, 2 closing, 3 closed."""

    payer: bytes
    provider: bytes
    spender: bytes
    cap: int
    paid: int
    allowance: int
    state: int
    opened_ms: int
    close_at_ms: int


class Lane(NamedTuple):
    """04. What is settled of one sequence: the last receipt's number, sum and accumulator."""

    seq: int
    cumulative: int
    accumulator: bytes


class Provider(NamedTuple):
    """06. `peer_key` is the libp2p identity's Ed25519 key. Status: 1 active, 2 paused."""

    peer_key: bytes
    reward_account: bytes
    bundle_seq: int
    status: int
    since_ms: int
    deposit: int


class Validator(NamedTuple):
    """07. `power` 0: not in the set that acts next. `priority` as stored: + PRIORITY_OFFSET."""

    status: int
    signed: int
    power: int
    priority: int


class Bond(NamedTuple):
    """08. `entry` is the stake's `per_grain` when the bond was last touched."""

    amount: int
    entry: int
    raised_ms: int


class Unbonding(NamedTuple):
    """09."""

    role: int
    target: bytes
    owner: bytes
    amount: int
    made_ms: int
    due_ms: int


class Stake(NamedTuple):
    """0a. `per_grain`: ever paid to one bonded grain, × 2^64. `undistributed`: not collected."""

    bonded: int = 0
    per_grain: int = 0
    undistributed: int = 0


class Terms(NamedTuple):
    """The charter of a Datanet; mode 0 open, 1 permissioned; withdrawal 0 ends pay."""

    charter: bytes
    licences: tuple[int, ...]
    mode: int
    quorum: int
    stake_per_record: int
    curation_bps: int
    review_ms: int
    withdrawal: int


class Datanet(NamedTuple):
    """0b. `next_terms` (encoded, or empty) act from `from_ms`; `pool` pays its curators."""

    steward: bytes
    name: bytes
    terms: tuple[Any, ...]  # of Terms
    next_terms: bytes
    from_ms: int
    status: int
    pool: int
    accepted: int
    withdrawn: int
    mended: int
    steward_ms: int
    deposit: int


class Number(NamedTuple):
    """0c, 10. What a name stands for."""

    number: int


class Contribution(NamedTuple):
    """0d. Status: 0 pending, 1 accepted, 2 returned, 3 rejected, 4 slashed, 5 withdrawn."""

    datanet: int
    contributor: bytes
    kind: int
    root: bytes
    content_hash: bytes
    records: int
    size_bytes: int
    licence: int
    mends: int
    mend_root: bytes
    stake: int
    status: int
    made_ms: int
    accepted_ms: int
    withdrawn_ms: int
    earned: int
    opened: bytes


class Snapshot(NamedTuple):
    """0e. `changed`: records withdrawn + mended in the Datanet when it was made."""

    datanet: int
    root: bytes
    last_contribution: int
    records: int
    changed: int
    made_ms: int


class Model(NamedTuple):
    """0f. Status: 1 active, 2 dormant, 3 retiring, 4 retired. `current` 0: no version yet.

    `retired_ms`: when the notice ends, or ended. `successor`: as named; once retired, whose fund
    has this one's money, 0 for none.
    """

    creator: bytes
    name: bytes
    base: bytes
    licence: int
    probe: int
    royalty_bps: int
    status: int
    versions: int
    current: int
    successor: int
    deposit: int
    retired_ms: int


class Version(NamedTuple):
    """11. Status: 1 current, 2 superseded, 3 suspended. Hashes are empty for a base-only one."""

    adapter: bytes
    snapshot: int
    index_root: bytes
    manifest: bytes
    probe: bytes
    parts: tuple[tuple[int, int, int], ...]
    trainer: bytes
    deposit: int
    published_ms: int
    superseded_ms: int
    status: int


class Price(NamedTuple):
    """12. Grains per 10^6 tokens and per call; the three before; when they change."""

    p_in: int
    p_out: int
    p_call: int
    old_in: int
    old_out: int
    old_call: int
    changed_ms: int


class Fund(NamedTuple):
    """13. `inflow`, `outflow`: of the last weeks, the running one last."""

    balance: int = 0
    inflow: tuple[int, ...] = ()
    outflow: tuple[int, ...] = ()
    probes: tuple[int, ...] = ()
    baseline: int = 0
    drift_ticks: int = 0


class Maturing(NamedTuple):
    """15. What a payee gets when its bucket is due."""

    amount: int = 0


class Parameter(NamedTuple):
    """19. One number, or the seven of a split."""

    values: tuple[int, ...]


class Pool(NamedTuple):
    """1a."""

    balance: int = 0
    locked: int = 0
    released: int = 0


class Due(NamedTuple):
    """1b. The key says it all."""


class Totals(NamedTuple):
    """1c `totals`: grains per kind of place; after every block their sum is the supply."""

    accounts: int = 0
    vesting: int = 0
    channels: int = 0
    bonds: int = 0
    unbonding: int = 0
    maturing: int = 0
    funds: int = 0
    upkeep: int = 0
    pools: int = 0
    datanets: int = 0
    deposits: int = 0
    undistributed: int = 0
    settling: int = 0  # taken out of channels in this block, not yet split: 0 at its end


class Counter(NamedTuple):
    """1c, any other number: the next numbers, open channels of a pair, the base price."""

    value: int = 0


class Members(NamedTuple):
    """1c `validators`: the set that acts next; powers and priorities stand in table 07."""

    turn: bytes
    keys: tuple[bytes, ...]


class UsedEvidence(NamedTuple):
    """1c `evidence/` ‖ SHA-256: what was punished when; `guilty` are (key, power in bps).

    `frozen` 1: they were frozen, and slashed nothing.
    """

    offence_ms: int
    punished_ms: int
    guilty: tuple[tuple[bytes, int], ...]
    frozen: int = 0


class Departures(NamedTuple):
    """1c `leaving/` ‖ role ‖ target ‖ owner: the unbondings of one bond that are on their way."""

    numbers: tuple[int, ...]


class Seat(NamedTuple):
    """1d. Role: 0 member, 1 reviewer."""

    role: int
    since_ms: int


class Review(NamedTuple):
    """1e. Decision: 1 accept, 2 return, 3 reject, 4 slash."""

    decision: int


class Conduct(NamedTuple):
    """1f. Jailed while `jailed_until_ms` is not 0: only an unjailing ends it. While `frozen_ms` is
    not 0, jailed too, and what was bonded at that time waits for a decision. `failures`: times of
    the last ones; `findings`: [code, logprob, fingerprint, moved]; `outcomes`: an auditor's.
    """

    jailed_until_ms: int = 0
    tombstone: int = 0
    frozen_ms: int = 0
    failures: tuple[int, ...] = ()
    findings: tuple[tuple[int, int, int, int], ...] = ()
    outcomes: tuple[int, ...] = ()


class Settled(NamedTuple):
    """20. Binds later disputes to a bundle; gone when its bucket is due."""

    provider: bytes
    base: bytes
    receipts_root: bytes
    count: int  # type: ignore[assignment]  # the word of the design; hides tuple.count
    infra: int
    bucket_ms: int


TERMS_SHAPE: Final = Record(H, ListOf(U8, 8, 1), U8, U8, U63, U16, U63, U8)
_PARTS: Final = ListOf(Record(U63, U32, U16), 8)
_NUMBER: Final = Record(U63)
_WEEKS: Final = ListOf(U63, 27)

# fmt: off
ACCOUNT: Final = Table(0x01, (32,), Account, Record(U63, U63, HASH_OR_NONE, U8))
VESTING: Final = Table(0x02, (32, 2), Vesting, Record(U63, U63, U63, U16, U16))
CHANNEL: Final = Table(0x03, (32,), Channel, Record(H, H, H, U63, U63, U63, U8, U63, U63))
LANE: Final = Table(0x04, (32, 2), Lane, Record(U63, U63, H))
PROVIDER: Final = Table(0x06, (32,), Provider, Record(H, H, U63, U8, U63, U63))
VALIDATOR: Final = Table(0x07, (32,), Validator, Record(U8, U16, U63, WIDE), (3,))
BOND: Final = Table(0x08, (1, 32, 32), Bond, Record(U63, WIDE, U63), (1,))
UNBONDING: Final = Table(0x09, (8,), Unbonding, Record(U8, H, H, U63, U63, U63))
STAKE: Final = Table(0x0A, (1, 32), Stake, Record(U63, WIDE, U63), (1,))
DATANET: Final = Table(0x0B, (8,), Datanet, Record(
    H, NAME, TERMS_SHAPE, Bytes(256), U63, U8, U63, U63, U63, U63, U63, U63))
DATANET_NAME: Final = Table(0x0C, (ANY,), Number, _NUMBER)
CONTRIBUTION: Final = Table(0x0D, (8,), Contribution, Record(
    U63, H, U8, H, H, U32, U63, U8, U63, HASH_OR_NONE, U63, U8, U63, U63, U63, U63, Bytes(64)))
SNAPSHOT: Final = Table(0x0E, (8,), Snapshot, Record(U63, H, U63, U63, U63, U63))
MODEL: Final = Table(0x0F, (8,), Model, Record(
    H, NAME, H, U8, U63, U16, U8, U32, U32, U63, U63, U63))
MODEL_NAME: Final = Table(0x10, (ANY,), Number, _NUMBER)
VERSION: Final = Table(0x11, (8, 4), Version, Record(
    HASH_OR_NONE, U63, HASH_OR_NONE, H, HASH_OR_NONE, _PARTS, HASH_OR_NONE,
    U63, U63, U63, U8))
PRICE: Final = Table(0x12, (8, 4), Price, Record(U63, U63, U63, U63, U63, U63, U63))
FUND: Final = Table(0x13, (8,), Fund, Record(U63, _WEEKS, _WEEKS, ListOf(U63, 4), U63, U16))
MATURING: Final = Table(0x15, (8, 1, ANY), Maturing, _NUMBER)
PARAMETER: Final = Table(0x19, (ANY,), Parameter, Record(ListOf(U63, 16, 1)))
POOL: Final = Table(0x1A, (1,), Pool, Record(U63, U63, U63))
DUE: Final = Table(0x1B, (8, 1, ANY), Due, Record())
TOTALS: Final = Table(0x1C, (ANY,), Totals, Record(*(U63,) * 13))
COUNTER: Final = Table(0x1C, (ANY,), Counter, _NUMBER)
TAKEN: Final = Table(0x1C, (6, 8, 8, 8), Counter, _NUMBER)  # taken/, Datanet, newest first, number
MEMBERS: Final = Table(0x1C, (ANY,), Members, Record(H, ListOf(H, 100)))
USED_EVIDENCE: Final = Table(0x1C, (ANY,), UsedEvidence, Record(
    U63, U63, ListOf(Record(H, U16), 100, 1), U8))
DEPARTURES: Final = Table(0x1C, (8, 1, 32, 32), Departures, Record(ListOf(U63, LEAVING_MAX, 1)))
DOUBLE: Final = Table(0x1C, (7, 32, 2, 8), Counter, _NUMBER)  # double/, place of a receipt: repaid
FORMER_KEY: Final = Table(0x1C, (7, 32, 32), Counter, _NUMBER)  # former/, provider, key: until when
SEAT: Final = Table(0x1D, (8, 32), Seat, Record(U8, U63))
REVIEW: Final = Table(0x1E, (8, 32), Review, Record(U8))
CONDUCT: Final = Table(0x1F, (1, 32), Conduct, Record(
    U63, U8, U63, ListOf(U63, 32), ListOf(Record(U8, U32, U32, U32), 32), ListOf(U8, 50)))
SETTLED: Final = Table(0x20, (32,), Settled, Record(H, H, H, U32, U63, U63))
# fmt: on

# Pools (1a).
TREASURY, STAKERS, COMMUNITY, ECOSYSTEM, COMMONS = 1, 2, 3, 4, 5

# Roles of bonds.
ROLE_VALIDATOR, ROLE_PROVIDER, ROLE_AUDITOR = 0, 1, 2

# Kinds of payout (page 40 §3), also of maturing entries.
KIND_PROVIDER, KIND_DATA, KIND_CREATOR, KIND_STAKERS = 1, 2, 3, 4
KIND_FUND, KIND_TREASURY, KIND_BURN = 5, 6, 7

# Kinds of due entries, in the order in which one millisecond does them (page 30 §6 step 1).
DUE_PARAMETER, DUE_UNLOCK, DUE_MATURING = 1, 2, 3
DUE_CHANNEL_CLOSE, DUE_CHANNEL_FORGET, DUE_UNBONDING = 4, 5, 6
DUE_REVIEW, DUE_STAKE, DUE_VERSION_DEPOSIT, DUE_MODEL_DEPOSIT = 7, 8, 9, 10
DUE_EVIDENCE, DUE_RETIREMENT, DUE_WITHDRAWAL, DUE_FORMER_KEY = 11, 12, 13, 14

CHANNEL_OPEN, CHANNEL_CLOSING, CHANNEL_CLOSED = 1, 2, 3
PROVIDER_ACTIVE, PROVIDER_PAUSED = 1, 2
VALIDATOR_CANDIDATE, VALIDATOR_ACTIVE = 0, 1
TOMBSTONED = 1
PENDING, ACCEPTED, RETURNED, REJECTED, SLASHED, WITHDRAWN = 0, 1, 2, 3, 4, 5
MODEL_ACTIVE, MODEL_DORMANT, MODEL_RETIRING, MODEL_RETIRED = 1, 2, 3, 4
VERSION_CURRENT, VERSION_SUPERSEDED, VERSION_SUSPENDED = 1, 2, 3
DATANET_OPEN = 1

PRIORITY_OFFSET: Final = 2**127
FUND_WEEKS_MAX: Final = 27  # 26 done and the running one
