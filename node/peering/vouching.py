"""Which older headers are true, told by one block that the operator trusts.

Each header names its parent by id, so a chain of headers that ends at a trusted id needs no
signature. Later headers it cannot vouch for: that takes a light client (page 20 §9).
What this file does not know: what a vouched header is used for.
"""

from collections.abc import Sequence
from typing import Final

import trio

from consensus.header import Header, decode_header
from consensus.params import CERTIFICATE_BYTES_MAX, HEADER_BYTES_MAX
from consensus.primitives.encoding import Bytes, ListOf, Record, decode, encode
from consensus.primitives.errors import Invalid
from node.observe import get_log
from node.peering.responder import HEADERS_MAX, HEADERS_REPLY_BYTES_MAX
from p2p.errors import Code, NetworkError, Refused, Unreachable
from p2p.limits import PENALTIES, PROTOCOLS
from p2p.network import Network, PeerId

PROTOCOL: Final = "headers"
PEERS_ASKED_MAX: Final = 8  # in turn, for one stretch of headers
WALK_BLOCKS_MAX: Final = 100_000  # 400 questions, 100 s of one peer's rate
REST_MIN_S: Final = 0.05  # of a peer that is busy and does not say for how long
REST_MAX_S: Final = 2.0
RESTS_MAX: Final = 20  # in a row

_REPLY: Final = ListOf(
    Record(Bytes(HEADER_BYTES_MAX, 1), Bytes(CERTIFICATE_BYTES_MAX, 1)), HEADERS_MAX
)

log = get_log("vouching")


class TrustedBlock:
    """Vouches for headers at and below one trusted (height, block id)."""

    def __init__(self, *, network: Network, height: int, block_id: bytes) -> None:
        self._network = network
        self._ids = {height: block_id}  # the trusted one, and ends of stretches walked from it

    async def verify(self, height: int) -> Header:
        """The header of `height`. Raises `Invalid` `header.not_vouched` for one out of reach, and
        a NetworkError when no peer has what lies between."""
        top = min((known for known in self._ids if known >= height), default=0)
        if height < 1 or not height <= top < height + WALK_BLOCKS_MAX:
            raise Invalid("header.not_vouched", height=height, trusted=max(self._ids))
        while True:
            start = max(height, top - HEADERS_MAX + 1)
            first = await self._walk(start, top)
            if start == height:
                return first
            top = start - 1

    async def _walk(self, start: int, top: int) -> Header:
        """The header of `start`, by a chain of parents that ends at the known id of `top`."""
        for view in [view for view in self._network.peers() if view.admitted][:PEERS_ASKED_MAX]:
            try:
                headers = await self._ask(view.peer, start, top)
                check_chain(headers, start, self._ids[top])
            except NetworkError as error:
                log.debug("no headers from a peer", peer=view.peer, why=str(error))
            except Invalid as refusal:
                log.warning("a peer sent false headers", peer=view.peer, code=refusal.code)
                self._network.penalise(view.peer, PENALTIES["forged"], "forged")
            else:
                self._ids[start - 1] = headers[0].parent_id
                return headers[0]
        raise Unreachable(f"no peer has headers {start} to {top}")

    async def _ask(self, peer: PeerId, start: int, top: int) -> list[Header]:
        count = top - start + 1
        for _ in range(RESTS_MAX):
            try:
                raw = await self._network.request(
                    peer,
                    PROTOCOL,
                    encode((start, count, 1)),
                    timeout_s=PROTOCOLS[PROTOCOL].timeout_s,
                    bytes_max=HEADERS_REPLY_BYTES_MAX,
                )
                break
            except Refused as refused:
                if refused.code not in (Code.RATE_EXCEEDED, Code.BUSY):
                    raise
                await trio.sleep(min(REST_MAX_S, max(REST_MIN_S, refused.retry_ms / 1_000)))
        else:
            raise Unreachable("busy for too long")
        pairs = decode(raw, _REPLY, HEADERS_REPLY_BYTES_MAX, "headers.reply")
        if len(pairs) < count:
            raise Unreachable(f"{len(pairs)} of {count} headers")  # it does not hold them: no lie
        return [decode_header(header) for header, _ in pairs]


def check_chain(headers: Sequence[Header], start: int, last_id: bytes) -> None:
    """Raise `Invalid` `header.chain` unless they are `start`… in order, the last one `last_id`."""
    expected = last_id
    for place in reversed(range(len(headers))):
        header = headers[place]
        if header.height != start + place or header.block_id() != expected:
            raise Invalid("header.chain", height=header.height, expected=start + place)
        expected = header.parent_id
