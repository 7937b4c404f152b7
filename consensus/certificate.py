"""A quorum's signatures on one block: a polka of prevotes, or the commit of precommits.

Why a bitmap and one string: signatures stand in the order of the set's members, so nothing names
a signer twice and nothing can be left over.
What this file does not know: how the votes were gathered, and what the block holds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from consensus.header import NIL
from consensus.params import CERTIFICATE_BYTES_MAX, ROUND_MAX, VALIDATORS_MAX
from consensus.primitives.digest import signing_bytes
from consensus.primitives.encoding import U8, U32, U63, Bytes, H, Record, decode, encode
from consensus.primitives.errors import Invalid
from consensus.primitives.keys import SIGNATURE_BYTES, verify_signature
from consensus.validators import ValidatorSet

PREVOTE: Final = 1
PRECOMMIT: Final = 2
VOTE_TAG: Final = b"vote"

SHAPE: Final = Record(
    U8, U63, U32, H, Bytes((VALIDATORS_MAX + 7) // 8, 1), Bytes(SIGNATURE_BYTES * VALIDATORS_MAX)
)


@dataclass(frozen=True, slots=True)
class Certificate:
    """`signatures` of the members named by `bitmap` (bit i = member i, low bit first)."""

    kind: int
    height: int
    round: int
    block_id: bytes
    bitmap: bytes
    signatures: bytes  # 64 bytes each, in the order of the members

    def signers(self) -> tuple[int, ...]:
        """Indices of the members whose bits are set, ascending."""
        return bits(self.bitmap)

    def by_member(self) -> dict[int, bytes]:
        """Member index → its signature; the lengths must agree (`check_certificate`)."""
        step = SIGNATURE_BYTES
        return {
            member: self.signatures[place * step : (place + 1) * step]
            for place, member in enumerate(self.signers())
        }


def bits(bitmap: bytes) -> tuple[int, ...]:
    """The places of set bits, ascending; bit i is bit i % 8 of byte i // 8."""
    number = int.from_bytes(bitmap, "little")
    return tuple(place for place in range(number.bit_length()) if number >> place & 1)


def bitmap_of(members: Mapping[int, object], size: int) -> bytes:
    """The bitmap of these member indices in a set of `size`."""
    number = 0
    for member in members:
        assert 0 <= member < size
        number |= 1 << member
    return number.to_bytes((size + 7) // 8, "little")


def vote_body(kind: int, height: int, round: int, block_id: bytes) -> bytes:
    """The 45 bytes that a vote signs."""
    return bytes([kind]) + height.to_bytes(8, "big") + round.to_bytes(4, "big") + block_id


def make_certificate(
    kind: int, height: int, round: int, block_id: bytes, signed: Mapping[int, bytes], size: int
) -> Certificate:
    """A certificate from member index → signature, for a set of `size` members."""
    signatures = b"".join(signed[member] for member in sorted(signed))
    return Certificate(kind, height, round, block_id, bitmap_of(signed, size), signatures)


def encode_certificate(certificate: Certificate) -> bytes:
    """Canonical bytes; their SHA-256 is the next header's `last_commit_hash`."""
    return encode(
        (
            certificate.kind,
            certificate.height,
            certificate.round,
            certificate.block_id,
            certificate.bitmap,
            certificate.signatures,
        )
    )


def decode_certificate(raw: bytes) -> Certificate:
    """The certificate; `Invalid` `certificate.…` if it could not be one for any set."""
    certificate = Certificate(*decode(raw, SHAPE, CERTIFICATE_BYTES_MAX, "certificate"))
    if certificate.kind not in (PREVOTE, PRECOMMIT):
        raise Invalid("certificate.kind", kind=certificate.kind)
    if certificate.height < 1 or certificate.round > ROUND_MAX:
        raise Invalid("certificate.height", height=certificate.height, round=certificate.round)
    if certificate.block_id == NIL:
        raise Invalid("certificate.nil")
    if len(certificate.signatures) != SIGNATURE_BYTES * len(certificate.signers()):
        raise Invalid("certificate.signatures", bytes=len(certificate.signatures))
    return certificate


def check_certificate(certificate: Certificate, validators: ValidatorSet) -> None:
    """Raise `Invalid` unless it names more than 2/3 of the power of this set. No signatures."""
    size = len(validators)
    if len(certificate.bitmap) != (size + 7) // 8:
        raise Invalid("certificate.bitmap", bytes=len(certificate.bitmap))
    signers = certificate.signers()
    if signers and signers[-1] >= size:
        raise Invalid("certificate.bitmap", member=signers[-1])
    if len(certificate.signatures) != SIGNATURE_BYTES * len(signers):
        raise Invalid("certificate.signatures", bytes=len(certificate.signatures))
    power = sum(validators.members[member].power for member in signers)
    if not validators.is_quorum(power):
        raise Invalid("certificate.power", power=power, total=validators.total)


def verify_certificate(certificate: Certificate, validators: ValidatorSet, chain_id: bytes) -> None:
    """Raise `Invalid` unless > 2/3 of `validators` signed; 43 µs a signature, the last check."""
    check_certificate(certificate, validators)
    body = vote_body(certificate.kind, certificate.height, certificate.round, certificate.block_id)
    message = signing_bytes(VOTE_TAG, chain_id, body)
    for member, signature in certificate.by_member().items():
        key = validators.members[member].key
        verify_signature(key, message, signature, "certificate.signature")
