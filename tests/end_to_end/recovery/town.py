"""Four validators as four processes, each in a namespace of its own where the machine has them.

The first, whom the others bootstrap from, has most of the power: blocks go on whoever else is
away, so whoever comes back has something to catch up with.
"""

import os
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import trio
from namespaces_kit import Cables, NoNamespaces

from consensus.primitives.keys import public_key
from node.devnet.children import Child, read, stop_all, wait_answering
from node.devnet.market import Market
from node.devnet.people import Person
from node.devnet.ports import free_ports
from node.home import make_home
from node.ledger.genesis import decode_genesis, devnet_genesis, encode_genesis
from node.ledger.wire.transactions import Transfer

NODES = 4
OPEN = 10**9
BONDS = (70_000, 10_000, 10_000, 10_000)
PAYER = Person("payer", b"\7" * 32)
TAKER = public_key(b"\x08" * 32)
POLL_S = 0.1


@dataclass
class Placed(Child):
    """A daemon that is started by the words `prefix`, in its own place."""

    prefix: tuple[str, ...] = ()
    peer_id: str = ""

    @property
    def command(self) -> list[str]:
        return [*self.prefix, *super().command]

    def signal(self, number: signal.Signals) -> None:
        """To the daemon itself."""
        assert self.process is not None
        os.kill(self.process.pid, number)


@dataclass
class Town:
    """The nodes, and the cables between them: None where there are none, and `why_no_cables`."""

    nodes: tuple[Placed, ...]
    cables: Cables | None
    why_no_cables: str
    market: Market
    paid: int = 0

    async def pay_on(self) -> None:
        """Light load, for ever: one transfer after another, sent through the first node."""
        while True:
            await self.market.do(PAYER, Transfer(TAKER, 1, b""))
            self.paid += 1


async def linked(node: Placed) -> dict[str, dict[str, Any]]:
    """The peers that have admitted this node and are admitted by it, by peer id."""
    told = await read(node, "/peers")
    return {peer["peer_id"]: peer for peer in told["peers"] if peer["admitted"]}


async def until(is_true: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it is so; the caller has the deadline."""
    while not await is_true():  # noqa: ASYNC110  # another process gives us no event
        await trio.sleep(POLL_S)


async def wait_linked(node: Placed, others: Iterable[Placed]) -> None:
    """Until the node and each of the others have admitted each other."""

    async def are_linked(other: Placed) -> bool:
        return other.peer_id in await linked(node) and node.peer_id in await linked(other)

    for other in others:
        await until(partial(are_linked, other))


async def wait_alone(node: Placed) -> None:
    """Until it has nobody left."""

    async def is_alone() -> bool:
        return not await linked(node)

    await until(is_alone)


async def wait_dropped(node: Placed, by: Placed) -> None:
    """Until the other one takes it for gone."""

    async def is_gone() -> bool:
        return node.peer_id not in await linked(by)

    await until(is_gone)


async def height(node: Placed) -> int:
    return int((await read(node, "/status"))["height"])


async def wait_height(node: Placed, least: int) -> None:
    """Until it has that block."""

    async def has_it() -> bool:
        return await height(node) >= least

    await until(has_it)


async def wait_at_tip(node: Placed, witness: Placed) -> None:
    """Until it has what the witness has now, and signs what comes."""
    least = await height(witness)

    async def signs() -> bool:
        told = await read(node, "/status")
        return bool(told["signing"]) and told["last_signed_height"] > least

    await until(signs)


def move(node: Placed) -> None:
    """Let a node that has ended listen on another port, and know nobody but its bootstrap."""
    path = node.home / "config.toml"
    text = path.read_text("utf-8")
    port = int(re.search(r"^listen = .*/tcp/(\d+)", text, re.MULTILINE)[1])
    path.write_text(text.replace(f"/tcp/{port}", f"/tcp/{port + 1}"), "utf-8")
    (node.home / "peers.msgpack").unlink(missing_ok=True)


@asynccontextmanager
async def living(
    folder: Path, settings: Mapping[str, object] = MappingProxyType({})
) -> AsyncIterator[Town]:
    """The town from its first answers on; all its processes have ended at the end.

    `settings` of the nodes, where they are not to be the devnet's.
    """
    with _cables() as (cables, why):
        town = _found(folder, cables, why, settings)
        try:
            for node in town.nodes:
                node.start()
            for node in town.nodes:
                await wait_answering(node)
            yield town
        finally:
            for node in town.nodes:
                with suppress(ProcessLookupError):
                    node.signal(signal.SIGCONT)
            await stop_all(list(town.nodes))


@contextmanager
def _cables() -> Iterator[tuple[Cables | None, str]]:
    try:
        cables = Cables(NODES)
    except NoNamespaces as error:
        yield None, str(error)
        return
    try:
        yield cables, ""
    finally:
        cables.close()


def _found(folder: Path, cables: Cables | None, why: str, settings: Mapping[str, object]) -> Town:
    seeds = [
        {"node": bytes([number]) * 32, "validator": bytes([100 + number]) * 32}
        for number in range(1, NODES + 1)
    ]
    genesis = devnet_genesis(
        name="recovery",
        time_ms=time.time_ns() // 1_000_000,
        accounts={PAYER.account: 1_000 * OPEN, TAKER: OPEN},
        validators={
            public_key(mine["validator"]): bond * OPEN
            for mine, bond in zip(seeds, BONDS, strict=True)
        },
    )
    raw, ports, bootstrap, nodes = encode_genesis(genesis), free_ports(), "", []
    for number, mine in enumerate(seeds):
        host = "127.0.0.1" if cables is None else cables.host(number)
        where = f"/ip4/{host}/tcp/{ports[number]}"
        chosen: dict[str, Any] = {
            "profile": "devnet", "name": f"n{number}", "roles": ["validator"],
            "p2p.listen": [where], "engine.kind": "none", "log.format": "json", **settings,
        }  # fmt: skip
        if bootstrap:
            chosen["p2p.bootstrap"] = [bootstrap]
        home = folder / f"n{number}"
        made = make_home(home, genesis=raw, chosen=chosen, password=None, seeds=mine)
        peer_id = next(key.peer_id for key in made.keys if key.role == "node")
        bootstrap = bootstrap or f"{where}/p2p/{peer_id}"
        prefix = () if cables is None else cables.prefix(number)
        nodes.append(Placed(f"n{number}", home, ("validator",), prefix=prefix, peer_id=peer_id))
    return Town(tuple(nodes), cables, why, Market(nodes[0], decode_genesis(raw).chain_id))
