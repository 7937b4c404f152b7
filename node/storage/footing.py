"""What a chain stands on that did not begin at genesis: one agreed block, without its payload.

Why header, certificate and signers: the next block is checked against just these, and the block
after a snapshot must carry a certificate that somebody holds. Why the history's frontier: with at
most 63 hashes the node appends to `history_root` as if it had seen every block.
What this file does not know: who vouched for the header.
"""

from typing import Final, NamedTuple

from consensus.certificate import (
    PRECOMMIT,
    Certificate,
    decode_certificate,
    encode_certificate,
    verify_certificate,
)
from consensus.header import Header, decode_header, encode_header
from consensus.params import CERTIFICATE_BYTES_MAX, HEADER_BYTES_MAX
from consensus.primitives.encoding import Bytes, H, ListOf, Record, decode, encode
from consensus.primitives.errors import Invalid
from consensus.primitives.merkle import Frontier
from consensus.validators import (
    ENCODED_BYTES_MAX,
    ValidatorSet,
    decode_validators,
    encode_validators,
)

PEAKS_MAX: Final = 63  # hashes of a frontier: one per bit of a height
FOOTING_BYTES_MAX: Final = 24 << 10

HEADER: Final = Bytes(HEADER_BYTES_MAX, 1)
CERTIFICATE: Final = Bytes(CERTIFICATE_BYTES_MAX, 1)
SIGNERS: Final = Bytes(ENCODED_BYTES_MAX, 1)
PEAKS: Final = ListOf(H, PEAKS_MAX)
_SHAPE: Final = Record(HEADER, CERTIFICATE, SIGNERS, PEAKS)


class Footing(NamedTuple):
    """Block `header.height`, the certificate that decided it, and the set that signed it.

    `history`: peaks over the ids of the blocks before it, largest first, as `history_root`.
    """

    header: Header
    certificate: Certificate
    signers: ValidatorSet
    history: tuple[bytes, ...]

    @property
    def height(self) -> int:
        """The block's height."""
        return self.header.height

    def edge(self) -> Frontier:
        """The edge of the history before this block."""
        return Frontier(self.header.height - 1, self.history)


def encode_footing(footing: Footing) -> bytes:
    """Bytes for the block log and the database."""
    return encode(
        (
            encode_header(footing.header),
            encode_certificate(footing.certificate),
            encode_validators(footing.signers),
            footing.history,
        )
    )


def decode_footing(raw: bytes) -> Footing:
    """The footing of our own bytes; raises `Invalid` when they are none."""
    header, certificate, signers, history = decode(raw, _SHAPE, FOOTING_BYTES_MAX, "footing")
    return Footing(
        decode_header(header), decode_certificate(certificate), decode_validators(signers), history
    )


def verify_footing(footing: Footing, trusted: Header) -> None:
    """Raise `Invalid` `footing.…`, `certificate.…` unless all of it belongs to `trusted`."""
    header, certificate = footing.header, footing.certificate
    if header != trusted:
        raise Invalid("footing.header", height=header.height, trusted=trusted.height)
    if len(footing.history) != (header.height - 1).bit_count():
        raise Invalid("footing.history", peaks=len(footing.history))
    if footing.edge().root() != header.history_root:
        raise Invalid("footing.history")
    if footing.signers.hash() != header.validators_hash:
        raise Invalid("footing.signers")
    decided = (PRECOMMIT, header.height, header.block_id())
    if (certificate.kind, certificate.height, certificate.block_id) != decided:
        raise Invalid("footing.certificate", height=certificate.height)
    verify_certificate(certificate, footing.signers, header.chain_id)
