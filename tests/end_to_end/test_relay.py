"""A daemon that listens nowhere is reached by another one through a third: real processes.

Experimental, and so is what is shown: who calls whom, and that nothing but requests goes through.
"""

import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from consensus.primitives.keys import public_key
from node.devnet.children import Child, read, stop_all, wait_answering
from node.devnet.ports import free_ports
from node.home import make_home
from node.ledger.genesis import devnet_genesis, encode_genesis
from p2p.peers import PeerId, peer_id_text

pytestmark = pytest.mark.slow

BOND = 10_000 * 10**9
MET_S = 60.0


def seed(number: int) -> bytes:
    return bytes([number]) * 32


def new_child(folder: Path, number: int, genesis: bytes, **p2p: Any) -> Child:
    roles = ("validator",) if not number else ("payer",)
    chosen: dict[str, Any] = {
        "profile": "devnet", "name": f"n{number}", "roles": list(roles),
        "engine.kind": "none", "log.format": "json",
    } | {f"p2p.{key}": value for key, value in p2p.items()}  # fmt: skip
    seeds = {"node": seed(number), "validator": seed(10), "spending": seed(20 + number)}
    home = folder / f"n{number}"
    make_home(home, genesis=genesis, chosen=chosen, password=None, seeds=seeds)
    return Child(f"n{number}", home, roles)


def id_of(number: int) -> str:
    return peer_id_text(PeerId(public_key(seed(number))))


@asynccontextmanager
async def running(*children: Child):
    try:
        for child in children:
            child.start()
        for child in children:
            await wait_answering(child)
        yield
    finally:
        await stop_all(list(children))


async def admitted(child: Child) -> set[str]:
    told = await read(child, "/peers")
    return {peer["peer_id"] for peer in told["peers"] if peer["admitted"]}


async def test_daemon_that_nobody_can_dial_is_reached_through_a_third(tmp_path: Path) -> None:
    genesis = encode_genesis(
        devnet_genesis(
            name="relay",
            time_ms=time.time_ns() // 1_000_000,
            accounts={public_key(seed(21)): 10**9},
            validators={public_key(seed(10)): BOND},
        )
    )
    where = f"/ip4/127.0.0.1/tcp/{free_ports()[0]}"
    relay_address = f"{where}/p2p/{id_of(0)}"
    called = f"{relay_address}/p2p-circuit/p2p/{id_of(1)}"
    relay = new_child(tmp_path, 0, genesis, listen=[where], relay="server")
    hidden = new_child(tmp_path, 1, genesis, listen=[], relay="client", bootstrap=[relay_address])
    caller = new_child(tmp_path, 2, genesis, listen=[], relay="client", reserved=[called])
    bystander = new_child(tmp_path, 3, genesis, listen=[], reserved=[called], relay="off")
    async with running(relay, hidden, caller, bystander):
        with trio.fail_after(MET_S):
            while not ({id_of(0), id_of(1)} <= await admitted(caller)):  # noqa: ASYNC110
                await trio.sleep(0.2)
            while id_of(2) not in await admitted(hidden):  # noqa: ASYNC110
                await trio.sleep(0.2)
        told = (await read(caller, "/peers"))["peers"]
        assert {peer["peer_id"]: peer["rtt_ms"] >= 0 for peer in told} == {
            id_of(0): True,
            id_of(1): True,
        }
        assert await admitted(bystander) == set(), "the relay is off: such an address is no way"
