"""One stream of bare py-libp2p between two processes: what blobs are compared with.

    python tests/bench/bare_stream.py serve BYTES             prints its address, then serves
    python tests/bench/bare_stream.py fetch BYTES ADDRESS     prints the seconds it took

The same transport (TCP, Noise, Yamux) with the library as it comes: no guard, no limits, no file;
the bytes are neither asked for in parts, nor proven, nor written.
"""

import sys
import time
from typing import Any, Final

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr

PROTOCOL: Final = TProtocol("/bare/1")
WRITE_BYTES: Final = 1 << 20
READ_BYTES: Final = 64 << 10


def make_host() -> Any:
    """TCP, Noise and Yamux, and nothing of ours."""
    pair = create_new_key_pair()
    noise = NoiseTransport(pair, noise_privkey=create_new_x25519_key_pair().private_key)
    return new_host(key_pair=pair, sec_opt={NOISE: noise}, muxer_opt={TProtocol(YAMUX): Yamux})


async def serve(size: int) -> None:
    """Write `size` bytes to whoever asks, until standard input ends."""
    host, piece = make_host(), bytes(WRITE_BYTES)

    async def answer(stream: Any) -> None:
        await stream.read(1)
        for start in range(0, size, WRITE_BYTES):
            await stream.write(piece[: min(WRITE_BYTES, size - start)])

    host.set_stream_handler(PROTOCOL, answer)
    async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        print(host.get_addrs()[0], flush=True)  # noqa: T201
        lines = trio.lowlevel.FdStream(0)
        while await lines.receive_some(64):
            pass


async def fetch(size: int, address: str) -> None:
    """Read them all."""
    host, server = make_host(), info_from_p2p_addr(Multiaddr(address))
    async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        await host.connect(server)
        began_s, got = time.perf_counter(), 0
        stream = await host.new_stream(server.peer_id, [PROTOCOL])
        await stream.write(b"x")
        while got < size:
            got += len(await stream.read(READ_BYTES))
        print(time.perf_counter() - began_s, flush=True)  # noqa: T201


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        trio.run(serve, int(sys.argv[2]))
    else:
        trio.run(fetch, int(sys.argv[2]), sys.argv[3])
