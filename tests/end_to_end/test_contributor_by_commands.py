"""By commands alone, as people would type them: from an empty ledger to a registered model and its
end; and money, keys and channels between two.

One lone validator and one follower, each a real `olnode start`; every act and every look is a
process of `olnode`.
"""

import json
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import trio

from consensus.primitives.keys import public_key
from node.attribution.datanets import contribution_root, make_record, snapshot_root
from node.devnet.children import Child, stop_all, wait_answering
from node.devnet.ports import free_ports
from node.home import make_home
from node.ledger.addresses import account_of
from node.ledger.amounts import GRAINS_PER_OPEN
from node.ledger.genesis import devnet_genesis, encode_genesis
from node.ledger.wire.orders import channel_id
from p2p.peers import peer_id_text

OPEN = GRAINS_PER_OPEN
FOLLOW_S = 20.0
RECORDS = [make_record(f"Which law is number {n}?", f"Law {n} of the land.") for n in range(5)]


class Land(NamedTuple):
    """The validator whose home has everybody's keys, and a node that only follows."""

    validator: Child
    follower: Child


def settle(folder: Path) -> Land:
    """Two homes of a chain with one validator, whose node owns what there is."""
    ports = free_ports()
    seeds = {name: secrets.token_bytes(32) for name in ("node", "validator")}
    node, validator = (public_key(seed) for seed in seeds.values())
    genesis = devnet_genesis(
        name="lone",
        time_ms=time.time_ns() // 1_000_000,
        accounts={node: 10_000 * OPEN},
        validators={validator: 10_000 * OPEN},
    )
    first, second = (f"/ip4/127.0.0.1/tcp/{port}" for port in ports[:2])
    common = {"profile": "devnet", "engine.kind": "none", "log.format": "json"}
    leads = {"roles": ["validator"], "p2p.listen": [first]}
    follows = {
        "roles": ["payer"],
        "p2p.listen": [second],
        "p2p.bootstrap": [f"{first}/p2p/{peer_id_text(node)}"],
    }
    for name, chosen in (("validator", leads), ("follower", follows)):
        make_home(
            folder / name,
            genesis=encode_genesis(genesis),
            chosen={**common, **chosen},
            password=None,
            seeds=seeds if name == "validator" else {},
        )
    return Land(
        Child("validator", folder / "validator", ("validator",)),
        Child("follower", folder / "follower", ("payer",)),
    )


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Land]:
    land = settle(folder)
    try:
        for child in land:
            child.start()
        for child in land:
            await wait_answering(child)
        yield land
    finally:
        await stop_all(list(land))


async def olnode(at: Child, *words: str, status: int = 0) -> dict[str, Any]:
    """The object that a command at the node's home prints; it must end with `status`."""
    program = [sys.executable, "-P", "-c", "from node.cli.main import main; main()"]
    command = [*program, "--home", str(at.home), "-o", "json", *words]
    ran = await trio.run_process(
        command, capture_stdout=True, capture_stderr=True, stdin=subprocess.DEVNULL, check=False
    )
    assert ran.returncode == status, (words, ran.stderr.decode(), at.last_lines())
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer


async def enlist(land: Land, name: str, amount: str) -> str:
    """A key of that name in the validator's home, with money from its node; the account."""
    account: str = (await olnode(land.validator, "keys", "add", name))["account"]
    await olnode(land.validator, "tx", "transfer", account, amount, "--from", "node")
    return account


async def test_data_becomes_a_model_by_commands_alone(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_bytes(b"".join(record.raw + b"\n" for record in RECORDS))
    async with running(tmp_path) as land:
        node = land.validator
        people = {name: await enlist(land, name, "200") for name in ("steward", "giver", "maker")}

        await olnode(
            node,
            *("tx", "create-datanet", "laws", "--charter", "Laws, one a record."),
            *("--licence", "CC-BY-4.0", "--licence", "own-work", "--from", "steward"),
        )
        given = await olnode(
            node,
            *("tx", "contribute", "laws", str(tmp_path / "records.jsonl")),
            *("--licence", "own-work", "--from", "giver"),
        )
        assert given["contribution"] == 1
        await olnode(node, "tx", "curate", "1", "accept", "--from", "steward")
        fixed = await olnode(node, "tx", "snapshot", "laws", "--from", "steward")
        made = await olnode(
            node,
            *("tx", "register-model", "laws-1", "--base", "ab" * 32, "--licence", "MIT"),
            *("--probe-datanet", "laws", "--from", "maker"),
        )
        assert (fixed["snapshot"], made["model"]) == (1, 1)

        (datanet,) = (await olnode(node, "query", "datanets"))["datanets"]
        assert (datanet["name"], datanet["steward"]) == ("laws", people["steward"])
        assert (datanet["accepted"], datanet["records"]) == (1, len(RECORDS))
        assert datanet["licences"] == ["CC-BY-4.0", "own-work"]
        (row,) = (await olnode(node, "query", "contributions", "laws"))["contributions"]
        assert (row["contributor"], row["status"]) == (people["giver"], "accepted")
        (snapshot,) = (await olnode(node, "query", "snapshots"))["snapshots"]
        assert snapshot["root"] == snapshot_root([(1, contribution_root(RECORDS))]).hex()
        (model,) = (await olnode(node, "query", "models"))["models"]
        assert (model["name"], model["creator"]) == ("laws-1", people["maker"])

        await check_same_chain(land, int(made["height"]))
        await end_it_all(node)


async def end_it_all(node: Child) -> None:
    """Publish, sell dearer, take the data back, retire the model."""
    release = ("tx", "publish-version", "laws-1", "--manifest", "cd" * 32, "--from", "maker")
    await olnode(node, *release, "--price-in", "20", "--price-out", "60")
    await olnode(node, "tx", "set-price", "laws-1", "--price-in", "21", "--from", "maker")
    early = ("tx", "set-price", "laws-1", "--price-in", "22", "--from", "maker")
    assert (await olnode(node, *early, status=1))["code"] == "tx.too_early_or_late"
    await olnode(node, "tx", "withdraw-contribution", "1", "--from", "giver")
    await olnode(node, "tx", "retire-model", "laws-1", "--from", "maker")
    (row,) = (await olnode(node, "query", "contributions", "laws"))["contributions"]
    (model,) = (await olnode(node, "query", "models"))["models"]
    assert (row["status"], model["status"]) == ("withdrawn", "retiring")
    assert model["price_in"] == str(20 * OPEN), "the new price holds after its notice"


async def test_money_keys_and_channels_by_commands_alone(tmp_path: Path) -> None:
    async with running(tmp_path) as land:
        node = land.validator
        payer, other, third = [
            await enlist(land, name, amount)
            for name, amount in (("payer", "20"), ("other", "5"), ("third", "0.1"))
        ]
        both = (f"{other}=2", f"{third}=0.9")
        await olnode(node, "tx", "multi-transfer", *both, "--from", "payer")
        balances = [
            (await olnode(node, "query", "account", to))["balance"] for to in (other, third)
        ]
        assert balances == [str(7 * OPEN), str(OPEN)]

        new = (await olnode(node, "keys", "add", "new"))["account"]
        await olnode(node, "tx", "rotate-key", "new", "--from", "payer")
        assert (await olnode(node, "query", "account", payer))["key"] == new
        pay = ("tx", "transfer", other, "1", "--from")
        assert "signs for" in (await olnode(node, *pay, "payer", status=1))["what"]
        by_new = ("--from", "new", "--account", payer)
        await olnode(node, *pay[:-1], *by_new)

        await olnode(node, "tx", "register-provider")
        provider = (await olnode(node, "keys", "show", "node"))["account"]
        bond = ("--role", "provider", "--from", "node")
        await olnode(node, "tx", "bond", provider, "1.5", *bond)
        channel = await open_channel(node, payer, provider, by_new)
        await olnode(node, "tx", "top-up-channel", channel, "0.5", *by_new)
        row = await olnode(node, "query", "channel", channel)
        assert (row["state"], row["cap"], row["payer_key"]) == ("open", str(OPEN * 3 // 2), new)

        consent = str(tmp_path / "consent")
        await olnode(node, "tx", "coop-close", channel, "--sign-only", consent)
        await olnode(node, "tx", "coop-close", channel, "--with", consent, "--from", "other")
        assert (await olnode(node, "query", "channel", channel))["state"] == "closed"

        await olnode(node, "tx", "update-provider", "--status", "paused")
        opening = ("tx", "open-channel", provider, "1", *by_new)
        assert (await olnode(node, *opening, status=1))["code"] == "tx.wrong_state"
        await olnode(node, "tx", "unbond", provider, "1.5", *bond)
        told = await olnode(node, "query", "provider", provider)
        assert (told["status"], told["bonded"], told["channels"]) == ("paused", "0", 0)


async def open_channel(node: Child, payer: str, provider: str, signed: tuple[str, ...]) -> str:
    """Of 1 OPEN; its id follows from who opens it with which transaction."""
    nonce = (await olnode(node, "query", "account", payer))["next_nonce"]
    await olnode(node, "tx", "open-channel", provider, "1", *signed)
    chain_id = bytes.fromhex((await olnode(node, "query", "params"))["chain_id"])
    return channel_id(chain_id, account_of(payer), account_of(provider), nonce).hex()


async def check_same_chain(land: Land, height: int) -> None:
    """The follower has the same blocks and rows, and none of the content that was offered."""
    with trio.fail_after(FOLLOW_S):
        while (await olnode(land.follower, "status"))["height"] < height:
            pass  # each look is a process, and takes its time
    for look in (["block", "1"], ["block", str(height)], ["models"], ["contributions", "laws"]):
        leading, following = [await olnode(at, "query", *look) for at in land]
        assert leading == following
    assert listings(land.validator) == 2, "the charter and the records"
    assert listings(land.follower) == 0


def listings(child: Child) -> int:
    """How many things the node has for its peers."""
    return len(list((child.home / "blobs/listings").iterdir()))
