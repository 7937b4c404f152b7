"""Evidence of one answer: what an auditor needs to run it again, in one canonical encoding.

Why the provider keeps it: its SHA-256 stands in the receipt, so a drawn auditor gets exactly what
was served, or finds the provider silent (page 50 §8). The text is shown to nobody else.
What this file does not know: how an answer is judged.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from consensus.primitives.digest import sha256
from consensus.primitives.encoding import U8, Bytes, Either, H, ListOf, Record, decode, encode
from consensus.primitives.errors import Invalid
from node.ledger.wire.orders import ORDER_BYTES_MAX, SAMPLING_BYTES_MAX, pack_ids

VERSION: Final = 1
EVIDENCE_BYTES_MAX: Final = 8 << 20
IDS_BYTES_MAX: Final = 1 << 20  # u32 each
REASONS: Final = ("stop", "length", "cancelled", "deadline", "engine_lost")
_TEXT_BYTES_MAX: Final = 64

_CHOICE: Final = Record(Bytes(IDS_BYTES_MAX), Bytes(IDS_BYTES_MAX), Bytes(4 * IDS_BYTES_MAX), U8)
_EVIDENCE: Final = Record(
    U8,
    H,
    Either(0, 32),
    Bytes(_TEXT_BYTES_MAX),
    Bytes(_TEXT_BYTES_MAX),
    Bytes(ORDER_BYTES_MAX),
    H,
    H,
    Bytes(SAMPLING_BYTES_MAX),
    Bytes(IDS_BYTES_MAX),
    ListOf(_CHOICE, 8, 1),
)


class ChoiceEvidence(NamedTuple):
    """One choice; `ids` u32, `logprobs` i32 of 2^-20 nats, `fingerprints` 8 × i32 each 16 tokens.

    `reason` is a place in `REASONS`. An answer that was cut short has no fingerprints of its end.
    """

    ids: bytes
    logprobs: bytes
    fingerprints: bytes
    reason: int


class Evidence(NamedTuple):
    """Everything that made the answer; `prompt` is token ids as u32."""

    version: int
    base: bytes
    adapter: bytes
    dtype_class: bytes
    build: bytes
    order: bytes
    payer_nonce: bytes
    provider_nonce: bytes
    sampling: bytes
    prompt: bytes
    choices: tuple[ChoiceEvidence, ...]


def encode_evidence(evidence: Evidence) -> bytes:
    """Canonical bytes; `Receipt.fingerprint_hash` is their SHA-256."""
    return encode(evidence)


def decode_evidence(raw: bytes) -> Evidence:
    """Raises Invalid `evidence.too_large|malformed|not_canonical|version|reason`."""
    fields = Evidence(*decode(raw, _EVIDENCE, EVIDENCE_BYTES_MAX, "evidence"))
    if fields.version != VERSION:
        raise Invalid("evidence.version", version=fields.version)
    choices = tuple(ChoiceEvidence(*choice) for choice in fields.choices)
    if any(choice.reason >= len(REASONS) for choice in choices):
        raise Invalid("evidence.reason")
    return fields._replace(choices=choices)


def fingerprint_hash(raw: bytes) -> bytes:
    """What a receipt says of its evidence."""
    return sha256(raw)


def choice_evidence(
    ids: Sequence[int], logprobs: bytes, fingerprints: bytes, reason: str
) -> ChoiceEvidence:
    """One choice from an engine's ending."""
    return ChoiceEvidence(pack_ids(ids), logprobs, fingerprints, REASONS.index(reason))
