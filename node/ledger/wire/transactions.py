"""Transactions: the envelope, one payload shape per type, and the types still to come.

Wire = `[body, signature]`; body = `[version, type, sender, nonce, max_fee, valid_until_ms,
payload bytes]`; what is signed is the body with tag `tx`; the id is SHA-256 of the body, so a
signature cannot change it. Page 30 §11 is the table; a new type is an `app_version` change.
What this file does not know: whether a transaction may do what it says (`rules/`).
"""

from typing import Any, Final, NamedTuple

from consensus.primitives.digest import HASH_BYTES, sha256, signing_bytes
from consensus.primitives.encoding import (
    SIG,
    U8,
    U16,
    U32,
    U63,
    Bytes,
    Either,
    H,
    ListOf,
    Record,
    Shape,
    decode,
    encode,
)
from consensus.primitives.errors import Invalid
from consensus.primitives.keys import sign
from node.ledger.wire.openings import OPENING_BYTES_MAX
from node.ledger.wire.receipts import RECEIPT_BYTES_MAX, Receipt, decode_receipt

VERSION: Final = 1
TAG: Final = b"tx"
ROTATE_TAG: Final = b"rotate"
COOP_TAG: Final = b"coop"
TRANSACTION_BYTES_MAX: Final = 65_536
MEMO_BYTES_MAX: Final = 64
PAYEES_MAX: Final = 256
LICENCES_MAX: Final = 8
PARTS_MAX: Final = 4  # as published; flattened to at most 8
VALID_MS_MAX: Final = 86_400_000

WEIGHT_PER_SIGNATURE: Final = 500
WEIGHT_PER_KEY: Final = 200

_NAME_CHARS: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-")


def check_name(name: bytes, code: str) -> None:
    """Raise `Invalid(code)` unless `name` is `[a-z0-9-]{3,32}`: by a table of bytes, for
    `str` methods take other scripts' digits too."""
    if not 3 <= len(name) <= 32 or any(char not in _NAME_CHARS for char in name):
        raise Invalid(code, name=name)


class Transfer(NamedTuple):
    to: bytes
    amount: int
    memo: bytes


class MultiTransfer(NamedTuple):
    payments: tuple[tuple[bytes, int], ...]  # (to, amount), by account


class RotateKey(NamedTuple):
    """`signature`: of `rotation_body` by the new key."""

    key: bytes
    signature: bytes


class OpenChannel(NamedTuple):
    provider: bytes
    spender: bytes
    cap: int
    allowance: int


class TopUpChannel(NamedTuple):
    channel: bytes
    amount: int


class CloseChannel(NamedTuple):
    channel: bytes


class CoopClose(NamedTuple):
    """Both signatures: of `coop_body`."""

    channel: bytes
    payer_signature: bytes
    provider_signature: bytes


class RegisterProvider(NamedTuple):
    peer_key: bytes
    reward_account: bytes


class UpdateProvider(NamedTuple):
    peer_key: bytes
    reward_account: bytes
    status: int


class Bond(NamedTuple):
    role: int
    target: bytes
    amount: int


class Unbond(NamedTuple):
    role: int
    target: bytes
    amount: int


class Unjail(NamedTuple):
    role: int


class CreateDatanet(NamedTuple):
    name: bytes
    terms: tuple[Any, ...]  # of tables.Terms


class Contribute(NamedTuple):
    datanet: int
    kind: int
    root: bytes
    content_hash: bytes
    records: int
    size_bytes: int
    licence: int
    mends: int
    mend_root: bytes


class Curate(NamedTuple):
    contribution: int
    decision: int
    reason_hash: bytes


class WithdrawContribution(NamedTuple):
    contribution: int


class Snapshot(NamedTuple):
    datanet: int
    root: bytes
    last_contribution: int
    records: int


class RegisterModel(NamedTuple):
    name: bytes
    base: bytes
    licence: int
    probe: int
    royalty_bps: int


class PublishVersion(NamedTuple):
    model: int
    adapter: bytes
    snapshot: int
    index_root: bytes
    manifest: bytes
    probe: bytes
    p_in: int
    p_out: int
    p_call: int
    parts: tuple[tuple[int, int, int], ...]


class SetPrice(NamedTuple):
    model: int
    version: int
    p_in: int
    p_out: int
    p_call: int


class RetireModel(NamedTuple):
    model: int
    successor: int


class FundMaintenance(NamedTuple):
    model: int
    amount: int


class FraudProof(NamedTuple):
    """`subject` and `opened` hold what `wire/openings.py` says of the kind."""

    kind: int
    subject: bytes
    opened: bytes


class Evidence(NamedTuple):
    """Two receipts that a provider signed for one request, the smaller body first."""

    receipt_a: bytes
    signature_a: bytes
    receipt_b: bytes
    signature_b: bytes


Payload = (
    Transfer
    | MultiTransfer
    | RotateKey
    | OpenChannel
    | TopUpChannel
    | CloseChannel
    | CoopClose
    | RegisterProvider
    | UpdateProvider
    | Bond
    | Unbond
    | Unjail
    | CreateDatanet
    | Contribute
    | Curate
    | WithdrawContribution
    | Snapshot
    | RegisterModel
    | PublishVersion
    | SetPrice
    | RetireModel
    | FundMaintenance
    | FraudProof
    | Evidence
)


class Type(NamedTuple):
    """A row of page 30 §11: `keys` written at most, for the weight; for a MultiTransfer beside
    those of its payees, or two payments would weigh as much as 256."""

    number: int
    make: type[Any]
    shape: Shape
    keys: int
    signatures: int = 1


_NONE_OR_H: Final = Either(0, HASH_BYTES)
_TEXT: Final = Bytes(32)
_TERMS: Final = Record(H, ListOf(U8, LICENCES_MAX), U8, U8, U63, U16, U63, U8)
_PARTS: Final = ListOf(Record(U63, U32, U16), PARTS_MAX)
# As many as there is room for: more than PAYEES_MAX is a refusal with a code, and pays its fee.
_PAYMENTS: Final = ListOf(Record(H, U63), TRANSACTION_BYTES_MAX // HASH_BYTES)

_RECEIPT: Final = Bytes(RECEIPT_BYTES_MAX, 1)
_OPENING: Final = Bytes(OPENING_BYTES_MAX)

# fmt: off
TYPES: Final = (
    Type(1, Transfer, Record(H, U63, Bytes(MEMO_BYTES_MAX)), 2),
    Type(2, MultiTransfer, Record(_PAYMENTS), 1),
    Type(3, RotateKey, Record(H, SIG), 1, 2),
    Type(10, OpenChannel, Record(H, H, U63, U63), 4),
    Type(11, TopUpChannel, Record(H, U63), 2),
    Type(12, CloseChannel, Record(H), 6),
    Type(13, CoopClose, Record(H, SIG, SIG), 6, 3),
    Type(20, RegisterProvider, Record(H, H), 2),
    Type(21, UpdateProvider, Record(H, H, U8), 2),
    Type(22, Bond, Record(U8, H, U63), 4),
    Type(23, Unbond, Record(U8, H, U63), 8),
    Type(24, Unjail, Record(U8), 1),
    Type(30, CreateDatanet, Record(_TEXT, _TERMS), 5),
    Type(31, Contribute, Record(U63, U8, H, H, U32, U63, U8, U63, _NONE_OR_H), 5),
    Type(32, Curate, Record(U63, U8, H), 6),
    Type(33, WithdrawContribution, Record(U63), 5),
    Type(34, Snapshot, Record(U63, H, U63, U63), 6),
    Type(40, RegisterModel, Record(_TEXT, H, U8, U63, U16), 6),
    Type(41, PublishVersion, Record(
        U63, _NONE_OR_H, U63, _NONE_OR_H, H, _NONE_OR_H, U63, U63, U63, _PARTS), 7),
    Type(42, SetPrice, Record(U63, U32, U63, U63, U63), 2),
    Type(43, RetireModel, Record(U63, U63), 3),
    Type(50, FundMaintenance, Record(U63, U63), 2),
    Type(60, FraudProof, Record(U8, _OPENING, _OPENING), 96),
    Type(62, Evidence, Record(_RECEIPT, SIG, _RECEIPT, SIG), 16, 3),
)
# fmt: on

# Types of page 30 that this app_version refuses as unknown (code 4), and what brings them.
LATER: Final = {
    4: ("ClaimVested", "unlocks"),
    14: ("GrantAllowance", "allowances"),
    15: ("RevokeAllowance", "allowances"),
    35: ("AmendDatanet", "open review"),
    36: ("Appoint", "open review"),
    37: ("OpenSealed", "upkeep"),
    51: ("OpenUpkeep", "upkeep"),
    52: ("SubmitUpkeep", "upkeep"),
    53: ("AttestUpkeep", "upkeep"),
    61: ("Verdict", "disputes"),
    70: ("Propose", "governance"),
    71: ("Vote", "governance"),
}

_BY_NUMBER: Final = {row.number: row for row in TYPES}
_NUMBER_OF: Final = {row.make: row.number for row in TYPES}

_BODY: Final = Record(U8, U8, H, U63, U63, U63, Bytes(TRANSACTION_BYTES_MAX))
_WIRE: Final = Record(Bytes(TRANSACTION_BYTES_MAX), SIG)


def type_name_of(number: int) -> str:
    """What people call a type, `Transfer`; also one that is refused; its number for none."""
    if number in _BY_NUMBER:
        return _BY_NUMBER[number].make.__name__
    return LATER[number][0] if number in LATER else str(number)


class Transaction(NamedTuple):
    """A decoded transaction with the bytes it came in. `body` is what is signed and hashed."""

    sender: bytes
    nonce: int
    max_fee: int
    valid_until_ms: int
    payload: Payload
    body: bytes
    signature: bytes
    raw: bytes

    @property
    def tx_id(self) -> bytes:
        """SHA-256 of the body."""
        return sha256(self.body)

    @property
    def weight(self) -> int:
        """bytes + 500 × signatures + 200 × keys written (page 30 §6); known before it runs."""
        row = _BY_NUMBER[_NUMBER_OF[type(self.payload)]]
        keys = row.keys
        if isinstance(self.payload, MultiTransfer):
            keys += len(self.payload.payments)
        return len(self.raw) + WEIGHT_PER_SIGNATURE * row.signatures + WEIGHT_PER_KEY * keys

    @property
    def type_name(self) -> str:
        """`Transfer`, `OpenChannel`, …"""
        return type(self.payload).__name__


def rotation_body(account: bytes, nonce: int) -> bytes:
    """What a new key signs, with tag `rotate`, to take over `account` by its transaction of
    `nonce`: that somebody holds it."""
    return account + nonce.to_bytes(8, "big")


def coop_body(channel: bytes, paid: int) -> bytes:
    """What payer and provider sign, with tag `coop`, to close `channel` with `paid` settled: once
    more has settled it is good no more."""
    return channel + paid.to_bytes(8, "big")


def make_evidence(one: tuple[bytes, bytes], other: tuple[bytes, bytes]) -> Evidence:
    """Of two (receipt, signature), in their order; raises Invalid as `check_pair` does."""
    payload = Evidence(*min(one, other), *max(one, other))
    check_pair(payload)
    return payload


def check_pair(payload: Evidence) -> tuple[Receipt, Receipt]:
    """Both receipts; raises Invalid `tx.bad_value` unless they are two of one place, in order."""
    if payload.receipt_a == payload.receipt_b:
        raise Invalid("tx.bad_value", why="one receipt")
    if payload.receipt_a > payload.receipt_b:
        raise Invalid("tx.bad_value", why="the smaller comes first")
    try:
        first, second = decode_receipt(payload.receipt_a), decode_receipt(payload.receipt_b)
    except Invalid as refusal:
        raise Invalid("tx.bad_value", why=refusal.code) from None
    if first.place != second.place:
        raise Invalid("tx.bad_value", why="receipts of two requests")
    return first, second


def encode_fraud(payload: FraudProof) -> bytes:
    """A proof as a file keeps it, to be sent by anybody."""
    return encode(payload)


def decode_fraud(raw: bytes) -> FraudProof:
    """The proof in a file; raises Invalid `fraud.…`."""
    row = _BY_NUMBER[_NUMBER_OF[FraudProof]]
    return FraudProof(*decode(raw, row.shape, TRANSACTION_BYTES_MAX, "fraud"))


def encode_body(
    sender: bytes, nonce: int, max_fee: int, valid_until_ms: int, payload: Payload
) -> bytes:
    """The bytes to sign (with tag `tx`) and to hash."""
    number = _NUMBER_OF[type(payload)]
    return encode((VERSION, number, sender, nonce, max_fee, valid_until_ms, encode(payload)))


def encode_transaction(body: bytes, signature: bytes) -> bytes:
    """The bytes on the wire and in a payload."""
    return encode((body, signature))


def sign_transaction(chain_id: bytes, seed: bytes, body: bytes) -> bytes:
    """The wire bytes of `body` signed with the key of `seed`."""
    return encode_transaction(body, sign(seed, signing_bytes(TAG, chain_id, body)))


def decode_transaction(raw: bytes) -> Transaction:
    """A transaction in canonical form, its signature not yet verified.

    Raises `Invalid` `tx.too_large`, `tx.malformed`, `tx.not_canonical`, `tx.version` or
    `tx.unknown_type` (which names what will bring a type of page 30).
    """
    body, signature = decode(raw, _WIRE, TRANSACTION_BYTES_MAX, "tx")
    version, number, sender, nonce, max_fee, valid_until_ms, inner = decode(
        body, _BODY, TRANSACTION_BYTES_MAX, "tx"
    )
    if version != VERSION:
        raise Invalid("tx.version", version=version)
    row = _BY_NUMBER.get(number)
    if row is None:
        name, area = LATER.get(number, ("none", "none"))
        raise Invalid("tx.unknown_type", type=number, name=name, comes_with=area)
    values = decode(inner, row.shape, TRANSACTION_BYTES_MAX, "tx")
    payload: Payload = row.make(*values)
    return Transaction(sender, nonce, max_fee, valid_until_ms, payload, body, signature, raw)
