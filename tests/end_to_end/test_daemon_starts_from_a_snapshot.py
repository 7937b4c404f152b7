"""A new daemon over libp2p: trusted block, snapshot, reopened home, blocks behind it, and on."""

import time
from pathlib import Path
from typing import Any

import pytest
import trio
from bundle_kit import Party, party
from chain_kit import FAUCET, OPEN, PAYER
from network_kit import wait_until

from node import config, daemon
from node.home import keystore_of, make_home
from node.ledger.genesis import devnet_genesis, encode_genesis
from node.ledger.wire.transactions import Transfer, encode_body, sign_transaction
from node.storage.ground import open_ground

VALIDATOR, OLD, NEW, NEXT = (
    party(name) for name in ("one validator", "old node", "new node", "next node")
)
EVERY = 10
GAP = 5
ANY_PORT = ("/ip4/127.0.0.1/tcp/0",)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Old:
    """The node of the only validator; it makes a block of every transfer."""

    def __init__(self, folder: Path) -> None:
        genesis = devnet_genesis(
            name="snapshots",
            time_ms=now_ms() - 1_000,
            accounts={FAUCET.key: 10**6 * OPEN},
            validators={VALIDATOR.key: 20 * OPEN},
        )
        self.genesis, self.chain_id, self.nonce = encode_genesis(genesis), genesis.chain_id, 0
        seeds = {"validator": VALIDATOR.seed, "node": OLD.seed}
        self.home = folder / "old"
        settings = self.settings = settings_of(self, self.home, seeds, roles=("validator",))
        store = keystore_of(settings)
        keys = daemon.Keys(store.unlock("node", None), store.unlock("validator", None), None)
        ground = open_ground(self.home, self.home / "genesis", validator_key=VALIDATOR.key)
        self.ground, self.node = ground, daemon.Node(settings, keys, ground)

    async def grow(self, blocks: int) -> None:
        replica = self.node._replica
        for _ in range(blocks):
            body = encode_body(
                sender=FAUCET.key,
                nonce=self.nonce,
                max_fee=OPEN,
                valid_until_ms=now_ms() + 60_000,
                payload=Transfer(PAYER.key, OPEN, b""),
            )
            self.nonce += 1
            height = replica.height
            raw = sign_transaction(self.chain_id, FAUCET.seed, body)
            await self.node._relay.submit_transaction(raw)
            with trio.fail_after(20):
                await replica.wait_height(height + 1)


def settings_of(old: Old, home: Path, seeds: dict[str, bytes], **chosen: Any) -> config.Settings:
    values = {
        "profile": "devnet",
        "p2p.listen": ANY_PORT,
        "storage.snapshot_every": EVERY,
        "consensus.block_interval_ms": 20,
    } | {key.replace("__", "."): value for key, value in chosen.items()}
    make_home(home, genesis=old.genesis, chosen=values, password=None, seeds=seeds)
    return config.load(home, environment={})


def newcomer(
    old: Old, home: Path, who: Party, seeds: tuple[str, ...], **chosen: Any
) -> tuple[config.Settings, daemon.Keys]:
    settings = settings_of(
        old, home, {"node": who.seed}, roles=("auditor",), p2p__bootstrap=seeds, **chosen
    )
    return settings, daemon.Keys(keystore_of(settings).unlock("node", None), None, None)


async def test_daemon_starts_from_a_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One by a block that its operator named; the next by its genesis, the first as a witness."""
    lives: list[daemon.Node] = []

    class Watched(daemon.Node):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            lives.append(self)

    old = Old(tmp_path)
    monkeypatch.setattr(daemon, "Node", Watched)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(old.node.run)
        await wait_until(old.settings.socket_path.exists)  # it is ready
        await old.grow(2 * EVERY + 3)
        await wait_until(lambda: old.node._keeper.height == 2 * EVERY)
        monkeypatch.setattr(daemon, "GAP_BLOCKS", GAP)  # the old node is not behind anybody
        tip, seeds = old.node._chain.tip, tuple(old.node._network.addresses())
        named = {"chain__trusted_height": tip.height, "chain__trusted_id": tip.block_id.hex()}
        nursery.start_soon(daemon.run, *newcomer(old, tmp_path / "new", NEW, seeds, **named))
        await wait_until(lambda: len(lives) == 2, 60)
        chain = lives[1]._chain
        assert chain.view().earliest == 2 * EVERY + 1
        await wait_until(lambda: chain.height >= 2 * EVERY + 3, 60)
        await old.grow(3)
        await wait_until(lambda: chain.height >= 2 * EVERY + 6, 60)
        assert chain.state().account(PAYER.key) == old.node._chain.state().account(PAYER.key)
        await old.grow(EVERY - 2)
        await wait_until(lambda: lives[1]._keeper.height == 3 * EVERY, 60)
        seeds += tuple(lives[1]._network.addresses())
        nursery.start_soon(daemon.run, *newcomer(old, tmp_path / "next", NEXT, seeds))
        await wait_until(lambda: len(lives) == 4, 60)
        chain = lives[3]._chain
        assert chain.view().earliest == 3 * EVERY + 1
        await wait_until(lambda: chain.height == old.node._chain.height, 60)
        for life in (lives[1], lives[3], old.node):
            life._stop.set()
    old.ground.close()
