"""The light blocks that this home trusts, in one file: `light.msgpack`.

Why one file, written whole: a client that follows headers keeps a few megabytes, and a rename
leaves either the old trust or the new. A file whose checksum fails is never half believed: trust
that may have been changed on the disk is worse than none.
Form: `[body, SHA-256 of body]`, body = `[version, chain_id, [set…], [[header, certificate, place of
its set, place of the next set]…]]`. Sets seldom change, so each stands once.
What this file does not know: why a block is trusted, and for how long.
"""

import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

from consensus.certificate import decode_certificate, encode_certificate
from consensus.header import decode_header, encode_header
from consensus.params import CERTIFICATE_BYTES_MAX, HEADER_BYTES_MAX
from consensus.primitives.digest import sha256
from consensus.primitives.encoding import U8, U16, Bytes, H, ListOf, Record, decode, encode
from consensus.primitives.errors import Invalid
from consensus.skipping import LightBlock
from consensus.validators import (
    ENCODED_BYTES_MAX,
    ValidatorSet,
    decode_validators,
    encode_validators,
)
from node.storage.errors import Damaged

FILE_NAME: Final = "light.msgpack"
VERSION: Final = 1
BLOCKS_MAX: Final = 4_096
SETS_MAX: Final = 2 * BLOCKS_MAX
FILE_BYTES_MAX: Final = 128 << 20
MEND: Final = "remove it, then olnode light --trust HEIGHT:BLOCK_ID"

_BODY: Final = Record(
    U8,
    H,
    ListOf(Bytes(ENCODED_BYTES_MAX, 1), SETS_MAX),
    ListOf(
        Record(Bytes(HEADER_BYTES_MAX, 1), Bytes(CERTIFICATE_BYTES_MAX, 1), U16, U16), BLOCKS_MAX
    ),
)
_FILE: Final = Record(Bytes(FILE_BYTES_MAX), H)


class LightFile:
    """The file of one home and chain. Blocking; one writer at a time, any number of readers."""

    def __init__(self, home: Path, chain_id: bytes) -> None:
        self.path = home / FILE_NAME
        self._chain_id = chain_id

    def load(self) -> tuple[LightBlock, ...]:
        """The blocks in ascending order; none where there is no file. Raises `Damaged`."""
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return ()
        try:
            return decode_light_file(raw, self._chain_id)
        except Invalid as refusal:
            what = f"{self.path} is damaged or of another chain"
            raise Damaged(what, mend=MEND, why=str(refusal)) from None

    def save(self, blocks: Iterable[LightBlock]) -> tuple[LightBlock, ...]:
        """Keep these blocks and no others, durable on return; gives back those that were kept."""
        ordered = sorted(blocks, key=lambda block: block.height)
        kept = thinned(ordered, BLOCKS_MAX)
        temporary = self.path.with_name(FILE_NAME + ".new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(encode_light_file(kept, self._chain_id))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return kept


def thinned(blocks: Sequence[LightBlock], blocks_max: int) -> tuple[LightBlock, ...]:
    """At most `blocks_max` of them: of the older half every second goes, the first stays."""
    assert blocks_max >= 2
    kept = list(blocks)
    while len(kept) > blocks_max:
        middle = (len(kept) + 1) // 2
        kept = kept[:middle:2] + kept[middle:]
    return tuple(kept)


def encode_light_file(blocks: Sequence[LightBlock], chain_id: bytes) -> bytes:
    """The file's bytes."""
    places: dict[bytes, int] = {}

    def place_of(validators: ValidatorSet) -> int:
        return places.setdefault(encode_validators(validators), len(places))

    rows = [
        (
            encode_header(block.header),
            encode_certificate(block.certificate),
            place_of(block.validators),
            place_of(block.next_validators),
        )
        for block in blocks
    ]
    body = encode((VERSION, chain_id, list(places), rows))
    return encode((body, sha256(body)))


def decode_light_file(raw: bytes, chain_id: bytes) -> tuple[LightBlock, ...]:
    """The blocks in a file; `Invalid` unless every byte is one that was written."""
    body, checksum = decode(raw, _FILE, FILE_BYTES_MAX, "light_file")
    if sha256(body) != checksum:
        raise Invalid("light_file.checksum")
    version, chain, set_raws, rows = decode(body, _BODY, FILE_BYTES_MAX, "light_file")
    if version != VERSION or chain != chain_id:
        raise Invalid("light_file.other", version=version, chain_id=chain)
    sets = [decode_validators(one) for one in set_raws]
    blocks = []
    for header, certificate, place, following in rows:
        if max(place, following) >= len(sets):
            raise Invalid("light_file.set", place=max(place, following))
        parts = decode_header(header), decode_certificate(certificate)
        blocks.append(LightBlock(*parts, sets[place], sets[following]))
    if any(one.height >= other.height for one, other in pairwise(blocks)):
        raise Invalid("light_file.order")
    return tuple(blocks)
