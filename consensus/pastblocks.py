"""A decided block long after: its header and sets, and what the block behind it says of it.

Why the block behind it comes along: each node may hold another certificate of a block, and only
the one that the next block carries is the same for all. Why no signature is asked for: both stand
in the history of a header that is trusted already, and hashes tie all the rest to them.
What this file does not know: who asks, and what the past is judged for.
"""

from typing import Final, NamedTuple

from consensus.certificate import encode_certificate
from consensus.header import Header, decode_header, encode_header
from consensus.params import HEADER_BYTES_MAX
from consensus.primitives.digest import sha256
from consensus.primitives.encoding import Bytes, H, ListOf, Record, decode, encode
from consensus.primitives.errors import Invalid
from consensus.skipping import (
    LIGHT_BLOCK_BYTES_MAX,
    LightBlock,
    check_light_block,
    decode_light_block,
    encode_light_block,
    verify_history,
)

PATH_MAX: Final = 63
PAST_BLOCK_BYTES_MAX: Final = LIGHT_BLOCK_BYTES_MAX + HEADER_BYTES_MAX + PATH_MAX * 34 + 16

_SHAPE: Final = Record(
    Bytes(LIGHT_BLOCK_BYTES_MAX, 1), Bytes(HEADER_BYTES_MAX, 1), ListOf(H, PATH_MAX)
)


class PastBlock(NamedTuple):
    """`block`, with the certificate that the block of `following` carries.

    `path`: of the following block under `history_root` of a later header; empty if it is that.
    """

    block: LightBlock
    following: Header
    path: tuple[bytes, ...]

    @property
    def height(self) -> int:
        """The block's."""
        return self.block.height


def encode_past_block(past: PastBlock) -> bytes:
    """`[light block, following header, path]`, the first two as their own encodings."""
    return encode((encode_light_block(past.block), encode_header(past.following), past.path))


def decode_past_block(raw: bytes) -> PastBlock:
    """The past block, its sizes and shapes checked and nothing else; raises `Invalid`."""
    block, following, path = decode(raw, _SHAPE, PAST_BLOCK_BYTES_MAX, "past_block")
    return PastBlock(decode_light_block(block), decode_header(following), path)


def verify_past_block(past: PastBlock, height: int, trusted: Header) -> None:
    """Raise `Invalid` `past.…`, `history.…`, `light.…` unless all of it belongs to `trusted`.

    `height` is below that of `trusted`. Costs hashes alone.
    """
    assert height < trusted.height
    block, following = past.block, past.following
    if block.height != height or following.height != height + 1:
        raise Invalid("past.height", height=block.height, wanted=height)
    if following.height < trusted.height:
        verify_history(trusted, following.height, following.block_id(), past.path)
    elif following != trusted or past.path:
        raise Invalid("past.following", height=following.height)
    if following.parent_id != block.block_id:
        raise Invalid("past.parent", height=height)
    if following.last_commit_hash != sha256(encode_certificate(block.certificate)):
        raise Invalid("past.certificate", height=height)
    check_light_block(block, trusted.chain_id)
