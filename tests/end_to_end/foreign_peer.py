"""A peer made from p2p/WIRE.md: a bare libp2p, msgpack and Ed25519, and not a line of ours.

    foreign_peer.py ADDRESS CHAIN_ID MESSAGE

It is admitted, asks for blocks, hears one message of the topic `txs`, says MESSAGE and waits until
it is pinged. It prints what it learnt, a JSON object.
"""

import hashlib
import json
import sys
import time
from typing import Any

import libp2p.pubsub.gossipsub as gossipsub_module
import libp2p.pubsub.pubsub as pubsub_module
import msgpack
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr
from nacl.signing import SigningKey

SEED = hashlib.sha256(b"a peer in another language").digest()

# What py-libp2p alone wants, a record of its sender in each RPC, is not in gossipsub's protocol.
for module in (pubsub_module, gossipsub_module):
    vars(module)["maybe_consume_signed_record"] = lambda rpc, host, peer: True


def packed(*fields: Any) -> bytes:
    return bytes(msgpack.packb(fields, use_bin_type=True))


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


async def read_frame(stream: Any) -> bytes:
    raw = b""
    while len(raw) < 4 or len(raw) < 4 + int.from_bytes(raw[:4], "big"):
        part = await stream.read(65_536)
        assert part, "the stream ended inside a frame"
        raw += part
    return raw[4:]


class Peer:
    def __init__(self, address: str, chain_id: bytes) -> None:
        self.chain_id, self.key = chain_id, SigningKey(SEED)
        self.was_pinged = trio.Event()
        pair = create_new_key_pair(SEED)
        noise = Noise(pair, noise_privkey=create_new_x25519_key_pair().private_key)
        self.host: Any = new_host(
            key_pair=pair, sec_opt={NOISE: noise}, muxer_opt={TProtocol(YAMUX): Yamux}
        )
        self.host.set_stream_handler(TProtocol("/olnode/ping/1"), self.answer_ping)
        self.host.set_stream_handler(TProtocol("/olnode/status/1"), self.answer_status)
        self.router = GossipSub(
            protocols=[TProtocol("/meshsub/1.1.0")], degree=6, degree_low=4, degree_high=12,
            heartbeat_interval=1,
        )  # fmt: skip
        self.pubsub = Pubsub(
            self.host, self.router, strict_signing=True,
            msg_id_constructor=lambda message: hashlib.sha256(message.data).digest()[:20],
        )  # fmt: skip
        self.other = info_from_p2p_addr(Multiaddr(address))

    def status(self) -> bytes:
        now_ms = time.time_ns() // 1_000_000
        body = (1, bytes(self.key.verify_key), now_ms, [], 0, b"")
        signed = b"olnode/1/address\0" + self.chain_id + packed(*body)
        record = (body, self.key.sign(signed).signature)
        return packed(1, self.chain_id, b"foreign/1", 0, 0, b"", 1, 0, now_ms, record)

    async def answer_ping(self, stream: Any) -> None:
        await self.answer(stream, await read_frame(stream))
        self.was_pinged.set()

    async def answer_status(self, stream: Any) -> None:
        await read_frame(stream)
        await self.answer(stream, self.status())

    async def answer(self, stream: Any, body: bytes) -> None:
        await stream.write(framed(packed(0, 0, body)))
        await stream.close()

    async def ask(self, protocol: str, *question: Any, raw: bytes = b"") -> tuple[int, Any]:
        name = TProtocol(f"/olnode/{protocol}/1")
        stream = await self.host.new_stream(self.other.peer_id, [name])
        await stream.write(framed(raw or packed(*question)))
        code, _, body = msgpack.unpackb(await read_frame(stream))
        await stream.close()
        return code, msgpack.unpackb(body) if body else None

    async def talk(self, message: bytes) -> dict[str, Any]:
        """Everything once, in the order of section 10."""
        topic = f"/olnode/txs/1/{self.chain_id[:8].hex()}"
        heard = await self.pubsub.subscribe(topic)
        await self.host.connect(self.other)
        early, _ = await self.ask("blocks", 0, 1, 1)
        code, status = await self.ask("status", raw=self.status())
        _, blocks = await self.ask("blocks", 0, 1, 64)
        malformed, _ = await self.ask("blocks", raw=packed(0, 1, 1) + b"\0")
        _, pong = await self.ask("ping", b"12345678")
        came = await heard.get()
        await self.pubsub.publish(topic, message)
        await self.was_pinged.wait()
        return {
            "before_status": early,
            "status": code,
            "height": status[4],
            "blocks": [hashlib.sha256(block).hexdigest() for block, _ in blocks],
            "malformed": malformed,
            "pong": pong[0].decode(),
            "heard": came.data.hex(),
            "author": came.from_id.hex(),
            "ours": sorted({"consensus", "node", "p2p"} & sys.modules.keys()),
        }


async def main(address: str, chain_id: str, message: str) -> None:
    peer = Peer(address, bytes.fromhex(chain_id))
    async with (
        peer.host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]),
        background_trio_service(peer.router),
        background_trio_service(peer.pubsub),
    ):
        await peer.pubsub.wait_until_ready()
        with trio.fail_after(60):
            told = await peer.talk(bytes.fromhex(message))
        print(json.dumps(told), flush=True)  # noqa: T201  # this is how the test learns it


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
