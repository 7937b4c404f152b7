"""Daemons die by SIGKILL, one and then all: what was settled stays, and they agree and sign again.

Four validators as four processes over loopback, as the devnet makes them, without models.
"""

import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from node.devnet.children import Child, read, stop_all, wait_answering
from node.devnet.market import Market
from node.devnet.people import Settled, settle
from node.devnet.ports import free_ports
from node.ledger.addresses import account_text
from node.ledger.genesis import decode_genesis
from node.ledger.wire.transactions import Transfer

CATCH_UP_S = 40.0


@asynccontextmanager
async def four_validators(home: Path) -> AsyncIterator[Settled]:
    land = settle(home, time_ms=time.time_ns() // 1_000_000, ports=free_ports(), models=())
    try:
        await start(*land.validators)
        yield land
    finally:
        await stop_all(list(land.validators))


async def start(*children: Child) -> None:
    for child in children:
        child.stopping = False
        child.start()
    for child in children:
        await wait_answering(child)


async def kill(child: Child) -> None:
    """No goodbye."""
    assert child.process is not None
    os.killpg(child.process.pid, signal.SIGKILL)
    await trio.to_thread.run_sync(child.process.wait)


async def pay(land: Settled, market: Market, times: int) -> int:
    """That many transfers, one after another; the height of the last."""
    to = land.people.contributors[0].account
    for _ in range(times):
        height = await market.do(land.people.faucet, Transfer(to, 1, b""))
    return height


async def wait_signing(land: Settled, market: Market, child: Child, above: int) -> None:
    """Until the node votes and has signed a height above `above`; without work there is none."""
    with trio.fail_after(CATCH_UP_S):
        while True:
            told = await read(child, "/status")
            if told["signing"] and told["last_signed_height"] > above:
                return
            await pay(land, market, 1)


async def ids(child: Child, height: int) -> list[str]:
    return [(await read(child, f"/ledger/blocks/{h}"))["block_id"] for h in range(1, height + 1)]


async def balance(land: Settled, child: Child) -> int:
    account = account_text(land.people.contributors[0].account)
    return int((await read(child, f"/ledger/accounts/{account}"))["balance"])


async def test_killed_validator_catches_up_and_signs_again(tmp_path: Path) -> None:
    async with four_validators(tmp_path / "net") as land:
        market = Market(land.validators[0], decode_genesis(land.genesis).chain_id)
        victim, witness = land.validators[2], land.validators[3]
        before = await pay(land, market, 3)
        kept = await ids(witness, before)
        await kill(victim)
        meanwhile = await pay(land, market, 3)
        assert meanwhile > before, "three of four go on"
        await start(victim)
        again = await pay(land, market, 1)
        await wait_signing(land, market, victim, meanwhile)
        assert await ids(victim, again) == await ids(witness, again)
        assert (await ids(victim, before)) == kept
        assert await balance(land, victim) == await balance(land, witness)


async def test_all_killed_at_once_lose_nothing_settled(tmp_path: Path) -> None:
    async with four_validators(tmp_path / "net") as land:
        market = Market(land.validators[0], decode_genesis(land.genesis).chain_id)
        height = await pay(land, market, 4)
        kept = await ids(land.validators[0], height)
        owned = await balance(land, land.validators[0])
        for child in land.validators:
            await kill(child)
        await start(*land.validators)
        for child in land.validators:
            assert (await ids(child, height)) == kept
            assert await balance(land, child) == owned
        assert await pay(land, market, 1) > height
        for child in land.validators:
            await wait_signing(land, market, child, height)
