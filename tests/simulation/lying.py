"""A network through which a liar speaks: frames of its honest replica, changed on their way out.

What this file does not know: the lies. It takes frames apart for `liars.py` and puts them together.
"""

from collections.abc import Sequence
from typing import Any, Final

from simulation.liars import Mouth

from consensus.messages import (
    BLOCK,
    CERTIFICATE,
    PROPOSAL,
    VOTE,
    decode_body,
    decode_frame,
    encode_frame,
    encode_message,
)
from node.peering.streams import PROTOCOL
from node.peering.topics import VOTES
from p2p.network import FrameStream, Network, PeerId

GARBAGE_CHANCE: Final = 0.02
SPOKEN: Final = (PROPOSAL, VOTE, CERTIFICATE)


class LyingNetwork:
    """As the network it is given, but for what goes to other validators."""

    def __init__(self, network: Network, mouth: Mouth, peers: Sequence[PeerId]) -> None:
        self._network = network
        self._mouth = mouth
        self._places = {peer: place for place, peer in enumerate(peers)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    async def open(self, peer: PeerId, protocol: str) -> Any:
        """A stream that lies, if it is one for votes."""
        stream = await self._network.open(peer, protocol)
        if protocol != PROTOCOL:
            return stream
        return LyingStream(stream, self._mouth, self._places[peer])

    async def publish(self, topic: str, data: bytes) -> None:
        """By gossip all would hear the same: a liar keeps its words to itself."""
        if topic != VOTES:
            await self._network.publish(topic, data)


class LyingStream:
    """One stream to one validator, `hearer`."""

    def __init__(self, stream: FrameStream, mouth: Mouth, hearer: int) -> None:
        self._stream, self._mouth, self._hearer = stream, mouth, hearer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def write(self, frame: bytes, timeout_s: float) -> None:
        """Whatever the mouth makes of it: nothing, another frame, many."""
        for told in self._told(frame):
            await self._stream.write(told, timeout_s)

    def _told(self, frame: bytes) -> list[bytes]:
        kind, body = decode_frame(frame)
        rng = self._mouth.rng
        if kind == BLOCK and "withhold" in self._mouth.lies:
            return []
        if kind not in SPOKEN:
            return [frame]
        message = decode_body(kind, body)
        self._mouth.hear(message)
        told = [encode_message(word) for word in self._mouth.say(message, self._hearer)]
        if "forge" in self._mouth.lies and rng.random() < GARBAGE_CHANCE:
            told.append(encode_frame(rng.choice(SPOKEN), rng.randbytes(rng.randrange(1, 99))))
        return told
