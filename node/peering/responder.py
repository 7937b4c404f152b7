"""Answering peers that lack blocks or headers: whole, with certificates, within a frame.

Why from a view: the answer is of one moment, and reading it blocks no vote.
What this file does not know: who asks, and why.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import trio

from consensus.primitives.encoding import U8, U16, U63, H, Record, decode, encode
from consensus.primitives.errors import Invalid
from node.ledger.wire.blocks import Block, decode_block, encode_block
from node.peering.catchup import BLOCKS_MAX, BY_HEIGHT, BY_ID, REPLY_BYTES_MAX
from node.storage.blocklog import BlockRecord
from p2p.errors import Code, Misbehaving, Refused
from p2p.limits import PROTOCOLS
from p2p.network import Network, PeerId

REQUEST_BYTES_MAX: Final = 64
ENVELOPE_BYTES: Final = 16  # of one block and its certificate in the answer
HEADERS_MAX: Final = 256
HEADERS_REPLY_BYTES_MAX: Final = 2 << 20
STRIDE_MAX: Final = 10_000
HEADERS_READ_BYTES_MAX: Final = 8 << 20  # of blocks, for one answer: a header lies in its block

_RANGE: Final = Record(U8, U63, U16)
_BY_ID: Final = Record(U8, H)
_HEADERS: Final = Record(U63, U16, U16)


class Blocks(Protocol):
    """What is asked of the chain; any thread."""

    @property
    def height(self) -> int: ...
    @property
    def earliest(self) -> int: ...
    @property
    def earliest_whole(self) -> int: ...
    def block(self, height: int) -> Block | None: ...
    def record(self, height: int) -> BlockRecord | None: ...
    def head(self, height: int) -> BlockRecord | None: ...
    def height_of(self, block_id: bytes) -> int | None: ...


RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread
FindUndecided = Callable[[bytes], Block | None]  # a block of the height being decided, by id


class Responder:
    """Serves `blocks` and `headers` of page 70 §6."""

    def __init__(
        self,
        *,
        get_view: Callable[[], Blocks],
        find_undecided: FindUndecided,
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        self._get_view = get_view
        self._find_undecided = find_undecided
        self._run_blocking = run_blocking

    def serve(self, network: Network) -> None:
        """Answer on this network from now on."""
        network.serve("blocks", self.answer_blocks, PROTOCOLS["blocks"])
        network.serve("headers", self.answer_headers, PROTOCOLS["headers"])

    async def answer_blocks(self, peer: PeerId, body: bytes) -> bytes:
        """[0, from, count] → [[block, certificate]…]; [1, block id] → [block]."""
        kind = body[1] if len(body) > 1 else None  # behind the one byte of the array's head
        if kind == BY_HEIGHT:
            _, start, count = _decoded(body, _RANGE)
            if start < 1 or not 1 <= count <= BLOCKS_MAX:
                raise Misbehaving(f"{count} blocks from {start} asked for")
            view = self._get_view()
            _check_held(view, start, view.earliest_whole)
            return encode(await self._run_blocking(_range, view, start, count))
        if kind == BY_ID:
            _, block_id = _decoded(body, _BY_ID)
            block = self._find_undecided(block_id)
            if block is None:
                block = await self._run_blocking(_find, self._get_view(), block_id)
            if block is None:
                raise Refused(Code.NOT_FOUND)
            return encode((encode_block(block),))
        raise Misbehaving("no such question about blocks")

    async def answer_headers(self, peer: PeerId, body: bytes) -> bytes:
        """[from, count, stride] → [[header, certificate]…]."""
        start, count, stride = _decoded(body, _HEADERS)
        if start < 1 or not 1 <= count <= HEADERS_MAX or not 1 <= stride <= STRIDE_MAX:
            raise Misbehaving(f"{count} headers from {start} by {stride} asked for")
        view = self._get_view()
        _check_held(view, start, view.earliest)
        return encode(await self._run_blocking(_headers, view, start, count, stride))


def _check_held(view: Blocks, start: int, earliest: int) -> None:
    """An honest no, with what we have instead: nothing is held that is older than our snapshot,
    and of old blocks the payloads may have been dropped."""
    if start < earliest:
        raise Refused(Code.NOT_FOUND, body=encode((earliest, view.height)))


def _decoded(body: bytes, shape: Any) -> Any:
    try:
        return decode(body, shape, REQUEST_BYTES_MAX, "blocks.request")
    except Invalid as refusal:
        raise Misbehaving(str(refusal)) from None


def _range(view: Blocks, start: int, count: int) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    left = REPLY_BYTES_MAX - ENVELOPE_BYTES
    for height in range(start, min(view.height, start + count - 1) + 1):
        record = view.record(height)
        if record is None:
            break
        pair = record.block, record.certificate  # as they were decided: nothing is decoded
        left -= len(pair[0]) + len(pair[1]) + ENVELOPE_BYTES
        if found and left < 0:
            break
        found.append(pair)
    return found


def _find(view: Blocks, block_id: bytes) -> Block | None:
    height = view.height_of(block_id)
    return None if height is None else view.block(height)


def _headers(view: Blocks, start: int, count: int, stride: int) -> list[tuple[bytes, bytes]]:
    """As many as fit, or as are found in so many bytes of blocks: one at least."""
    found: list[tuple[bytes, bytes]] = []
    left, unread = HEADERS_REPLY_BYTES_MAX - ENVELOPE_BYTES, HEADERS_READ_BYTES_MAX
    for height in range(start, min(view.height, start + (count - 1) * stride) + 1, stride):
        record = view.head(height)
        if record is None:
            break
        pair = decode_block(record.block).header, record.certificate
        left -= len(pair[0]) + len(pair[1]) + ENVELOPE_BYTES
        if left < 0:
            break
        found.append(pair)
        unread -= len(record.block)
        if unread <= 0:
            break
    return found
