"""Asking one peer as a light client does: its answers are decoded here and believed nowhere.

What this file does not know: which of the peers leads and which bears witness.
"""

from typing import Final

import trio

from consensus.pastblocks import PAST_BLOCK_BYTES_MAX, PastBlock, decode_past_block
from consensus.primitives.encoding import H, ListOf, Record, decode, encode
from consensus.primitives.errors import Invalid
from consensus.skipping import LIGHT_BLOCK_BYTES_MAX, LightBlock, decode_light_block
from node.following import Unanswered
from node.peering.lightserver import BLOCK, EVIDENCE, HISTORY, LIMITS, PAST, PROTOCOL
from p2p.errors import Code, Misbehaving, NetworkError, Refused
from p2p.limits import PENALTIES
from p2p.network import Network, PeerId
from p2p.peers import peer_id_text

ASK_S: Final = 5.0
TRIES: Final = 5  # a bisection asks faster than a peer's bucket fills
RETRY_MS: Final = 200  # where the peer does not say
RETRY_MS_MAX: Final = 2_000
LOOK_S: Final = 120.0  # of one source in one look: 256 slow answers would else take hours
PASSING: Final = (Code.BUSY, Code.RATE_EXCEEDED, Code.NOT_ADMITTED)  # refusals that pass by waiting
PATH_MAX: Final = 63

_PATH: Final = Record(H, ListOf(H, PATH_MAX))


class PeerSource:
    """A peer as a source of light blocks (`node.following.Source`); `look_s` bounds one look."""

    def __init__(self, network: Network, peer: PeerId, *, look_s: float = LOOK_S) -> None:
        self.peer = peer
        self.name = peer_id_text(peer)
        self._network = network
        self._look_s = look_s
        self._spent_s = 0.0

    def begin_look(self) -> None:
        """The time that this source may take begins anew."""
        self._spent_s = 0.0

    async def ask(self, height: int) -> LightBlock:
        """The light block of `height`, 0: its newest; raises `Unanswered` or `Invalid`."""
        raw = await self._request(encode((BLOCK, height)), LIGHT_BLOCK_BYTES_MAX)
        block = decode_light_block(raw)
        if height not in (0, block.height):
            raise Invalid("light.unasked", height=block.height, wanted=height)
        return block

    async def ask_history(self, height: int, at: int) -> tuple[bytes, tuple[bytes, ...]]:
        """(block id of `height`, its path in the history of block `at`), unchecked."""
        raw = await self._request(encode((HISTORY, height, at)), LIMITS.reply_max)
        block_id, path = decode(raw, _PATH, LIMITS.reply_max, "light.history")
        return block_id, path

    async def ask_past(self, height: int, at: int) -> PastBlock:
        """Block `height` as the block behind it tells, under the history of `at`; unchecked."""
        raw = await self._request(encode((PAST, height, at)), PAST_BLOCK_BYTES_MAX)
        return decode_past_block(raw)

    async def report(self, evidence: bytes) -> None:
        """Hand over an encoded attack; raises `Unanswered`, also when the peer refuses it.

        A reply that is none costs the peer points and is as none: it must not hide the attack.
        """
        try:
            await self._request(encode((EVIDENCE, evidence)), LIMITS.reply_max)
        except Invalid as refusal:
            self.blame(refusal)
            raise Unanswered(str(refusal)) from None

    def blame(self, refusal: Invalid) -> None:
        """What it told cannot be true."""
        self._network.penalise(self.peer, PENALTIES["forged"], "forged")

    async def _request(self, body: bytes, bytes_max: int) -> bytes:
        if self._spent_s >= self._look_s:
            raise Unanswered(f"took more than {self._look_s:.0f} s")
        began_s = trio.current_time()
        try:
            return await self._request_patiently(body, bytes_max)
        finally:
            self._spent_s += trio.current_time() - began_s

    async def _request_patiently(self, body: bytes, bytes_max: int) -> bytes:
        for _ in range(TRIES - 1):
            try:
                return await self._request_once(body, bytes_max)
            except Refused as refusal:
                if refusal.code not in PASSING:
                    raise Unanswered(str(refusal)) from None
                await trio.sleep(min(RETRY_MS_MAX, refusal.retry_ms or RETRY_MS) / 1_000)
        try:
            return await self._request_once(body, bytes_max)
        except Refused as refusal:
            raise Unanswered(str(refusal)) from None

    async def _request_once(self, body: bytes, bytes_max: int) -> bytes:
        try:
            return await self._network.request(
                self.peer, PROTOCOL, body, timeout_s=ASK_S, bytes_max=bytes_max
            )
        except Refused:
            raise
        except Misbehaving as error:
            raise Invalid("light.reply", why=str(error)) from None
        except NetworkError as error:
            raise Unanswered(str(error) or type(error).__name__) from None
