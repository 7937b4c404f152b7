"""Real processes to attack, and an attacker with bare libp2p that keeps no rule of ours."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import trio
from libp2p import new_host
from libp2p.custom_types import TProtocol
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from multiaddr import Multiaddr
from network_kit import CHAIN, seed_of

from p2p.framing import encode, frame
from p2p.host import Libp2pIdentity, _noise
from p2p.network import _now_ms
from p2p.records import make_record

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
MESH = "/meshsub/1.1.0"


class Node:
    """One victim process; `tell` asks it for its counters."""

    def __init__(self, number: int, *bootstrap: str) -> None:
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "victim.py"), str(number), *bootstrap],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths},
            text=True,
        )
        self.key = Libp2pIdentity(seed_of(number)).key

    @cached_property
    def address(self) -> str:
        """Where it listens; waits until it does. Asked for before `tell`, or not at all."""
        return self._line(lambda line: line.startswith("/ip4/"))

    def _line(self, is_ours: Any) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:  # log events stand between
            if is_ours(line):
                return line.strip()
        raise AssertionError("the process ended")

    async def tell(self) -> dict[str, Any]:
        def ask() -> str:
            assert self.process.stdin is not None
            self.process.stdin.write("tell\n")
            self.process.stdin.flush()
            return self._line(lambda line: line.startswith("{"))

        return dict(json.loads(await trio.to_thread.run_sync(ask)))

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


class Attacker:
    """A libp2p host without guards, connected to one victim."""

    def __init__(self, host: Any, victim: Any) -> None:
        self.host = host
        self.victim = victim

    async def stream(self, protocol: str) -> Any:
        self.host.get_network().unblock_peer(self.victim.peer_id)
        await self.host.connect(self.victim)
        return await self.host.new_stream(self.victim.peer_id, [TProtocol(protocol)])

    async def send(self, protocol: str, *pieces: bytes) -> None:
        """Write what it likes; the victim may cut it off, which is no failure of the test."""
        with trio.move_on_after(3), contextlib.suppress(Exception):
            stream = await self.stream(protocol)
            for piece in pieces:
                await stream.write(piece)
            await stream.close()

    async def be_admitted(self, identity: Libp2pIdentity) -> None:
        record = make_record(identity, CHAIN, seq_ms=_now_ms(), addresses=(), roles=0, binding=b"")
        told = (1, CHAIN, b"evil", 0, 0, b"", 0, 0, _now_ms(), record.value)
        stream = await self.stream("/olnode/status/1")
        await stream.write(frame(encode(told)))
        assert await stream.read(65_536)


@asynccontextmanager
async def attacker(number: int, address: str) -> AsyncIterator[Attacker]:
    identity = Libp2pIdentity(seed_of(1_000 + number))
    host: Any = new_host(key_pair=identity.pair, sec_opt={NOISE: _noise(identity)})
    victim = info_from_p2p_addr(Multiaddr(address))
    async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        evil = Attacker(host, victim)
        await evil.be_admitted(identity)
        yield evil
        with trio.move_on_after(2), contextlib.suppress(Exception):
            await host.disconnect(victim.peer_id)
