"""Bundles settled by four real daemons on loopback, a second of their time and byte by byte.

The people of a devnet publish one model with four contributions and open channels, all by
transactions. Then a fifth peer, which is no validator, gossips a provider's bundles as quickly as
they are settled, at most BUNDLES_AHEAD of them unsettled; it made them before the clock began.
Disk is what lies in the home of one validator at the end: the bodies that are kept for the
challenge window, and what stays (block log and database, the tree pruned and LevelDB compacted).
"""

import os
import random
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import plyvel
import trio
from bench.protocol import tell
from bundle_kit import LaneSession, Party

from consensus.primitives.digest import sha256
from node.config import load
from node.devnet.children import Child, in_thread, read, stop_all, wait_answering
from node.devnet.market import Market
from node.devnet.people import Settled, node_of, settle
from node.devnet.publishing import ACCEPT, OWN_WORK, PRICE_CALL, PRICE_IN, PRICE_OUT, Publisher
from node.devnet.story import free_ports
from node.home import keystore_of
from node.ledger.addresses import account_text
from node.ledger.amounts import GRAINS_PER_OPEN, price
from node.ledger.genesis import decode_genesis
from node.ledger.parameters import devnet_parameters
from node.ledger.wire.bundles import Bundle, build_bundle
from node.ledger.wire.orders import channel_id
from node.ledger.wire.transactions import (
    Contribute,
    CreateDatanet,
    Curate,
    OpenChannel,
    PublishVersion,
    RegisterModel,
    Snapshot,
)
from node.peering import topics
from p2p.limits import TOPICS
from p2p.network import Gossip, Libp2pNetwork, Verdict

CHANNELS: Final = 16
LANES: Final = 64
SECTIONS: Final = 50  # of a bundle; the next bundle takes the next lanes
PER_SECTION: Final = 10
RECEIPTS: Final = SECTIONS * PER_SECTION
BUNDLES_AHEAD: Final = 6
CONTRIBUTIONS: Final = 4
CREDITS: Final = ((1, 4_000), (2, 3_000), (3, 2_000), (4, 1_000))
TOKENS: Final = (812, 143)
PRICES: Final = (PRICE_IN, PRICE_OUT, PRICE_CALL)
CAP_GRAINS: Final = 1_000 * GRAINS_PER_OPEN
POLL_S: Final = 0.05
MEET_S: Final = 30.0
DRAIN_S: Final = 60.0
VALIDATORS_ONLY: Final = {
    "OLNODE_ROLES": '["validator"]',
    "OLNODE_ENGINE__KIND": "none",
    "OLNODE_STORAGE__KEEP_VERSIONS": "50",  # so that a minute has something to prune
}


class Load(NamedTuple):
    """Bundles told, settled within `took_s`, and settled in the end."""

    told: int
    in_time: int
    settled: int
    took_s: float


async def run(folder: Path, seconds: float, per_second_max: int) -> dict[str, float]:
    """Four validators under a load of `seconds`; as many bundles are made as it can need."""
    os.environ.update(VALIDATORS_ONLY)  # the children's, and ours
    land = settle(folder, time_ms=time.time_ns() // 1_000_000, ports=free_ports(), models=())
    validators = list(land.validators)
    try:
        for child in validators:
            child.start()
        for child in validators:
            await wait_answering(child)
        market = Market(validators[0], decode_genesis(land.genesis).chain_id)
        channels = await _publish(land, market)
        count = int(seconds * per_second_max / RECEIPTS)
        tell(f"makes {count} bundles of {RECEIPTS} receipts")
        bundles = await in_thread(lambda: list(_make_bundles(land, channels, count)))
        load = await _load(land, bundles, seconds)
    finally:
        await stop_all(validators)
    assert load.told < count or load.took_s >= seconds, "too few bundles were made"
    settled = load.settled * RECEIPTS
    return {
        "settled_per_s_4_validators": round(load.in_time * RECEIPTS / load.took_s),
        "settled": settled,
        "seconds": round(load.took_s),
        "lost": load.told * RECEIPTS - settled,
        "bytes_per_receipt_disk": round(_bytes_that_stay(validators[-1]) / settled, 1),
        "bytes_per_receipt_window": round(_bytes(validators[-1].home / "bundles") / settled, 1),
    }


# --- what the bundles stand on


async def _publish(land: Settled, market: Market) -> list[bytes]:
    """Provider, Datanet, contributions, model, version, channels; the channels' ids."""
    people, child = land.people, land.validators[0]
    provider = node_of(child)
    await Publisher(market, child, people, land.home).register_provider(provider)
    stake = devnet_parameters()["stake_per_record_min"]
    review = devnet_parameters()["review_ms_min"]
    terms = (bytes(32), (OWN_WORK,), 0, 1, stake, 0, review, 0)
    await market.do(people.steward, CreateDatanet(b"facts", terms))
    for number in range(1, CONTRIBUTIONS + 1):
        root = sha256(b"root %d" % number)
        given = Contribute(1, 0, root, sha256(root), 1, 100, OWN_WORK, 0, b"")
        await market.do(people.contributors[number - 1], given)
        await market.do(people.steward, Curate(number, ACCEPT, bytes(32)))
    await market.do(people.steward, Snapshot(1, bytes(32), CONTRIBUTIONS, CONTRIBUTIONS))
    await market.do(people.creator, RegisterModel(b"bench", bytes(32), OWN_WORK, 1, 0))
    version = PublishVersion(1, sha256(b"adapter"), 1, bytes(32), bytes(32), b"", *PRICES, ())
    await market.do(people.creator, version)
    chain_id, channels = decode_genesis(land.genesis).chain_id, []
    account = f"/ledger/accounts/{account_text(people.faucet.account)}"
    for _ in range(CHANNELS):
        nonce = int((await read(child, account))["next_nonce"])
        opened = OpenChannel(provider.account, people.faucet.account, CAP_GRAINS, 0)
        await market.do(people.faucet, opened)
        channels.append(channel_id(chain_id, people.faucet.account, provider.account, nonce))
    return channels


def _make_bundles(land: Settled, channels: list[bytes], count: int) -> Iterator[Bundle]:
    chain_id, chance = decode_genesis(land.genesis).chain_id, random.Random(1)
    payer, provider = Party(land.people.faucet.seed), Party(node_of(land.validators[0]).seed)
    lanes = [
        LaneSession(channel, lane, payer, provider, chance, chain_id)
        for channel in channels
        for lane in range(LANES)
    ]
    tokens_in, tokens_out = TOKENS
    fee = price(tokens_in, tokens_out, *PRICES)
    for number in range(count):
        parts = []
        for place in range(SECTIONS):
            lane = lanes[(number * SECTIONS + place) % len(lanes)]
            for _ in range(PER_SECTION):
                lane.serve(CREDITS, tokens_in=tokens_in, tokens_out=tokens_out, fee=fee)
            parts.append(lane.cut())
        yield build_bundle(
            chain_id=chain_id, provider=provider.key, bundle_seq=number + 1, parts=parts,
            sign=provider.sign,
        )  # fmt: skip


# --- the load


async def _load(land: Settled, bundles: list[Bundle], seconds: float) -> Load:
    network = Libp2pNetwork(
        seed=sha256(b"bench peer"),
        chain_id=decode_genesis(land.genesis).chain_id,
        listen=["/ip4/127.0.0.1/tcp/0"],
        reach="devnet",
        bootstrap=[_address(child) for child in land.validators],
    )
    heard = network.subscribe(topics.BUNDLES, lambda *_: Verdict.IGNORE, TOPICS[topics.BUNDLES])
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        nursery.start_soon(_discard, heard)
        with trio.fail_after(MEET_S):
            while sum(view.admitted for view in network.peers()) < len(land.validators):  # noqa: ASYNC110
                await trio.sleep(POLL_S)
        tell(f"four validators settle for {seconds:.0f} s")
        result = await _feed(network, land, bundles, seconds)
        nursery.cancel_scope.cancel()
    return result


async def _feed(
    network: Libp2pNetwork, land: Settled, bundles: list[Bundle], seconds: float
) -> Load:
    began_s, told, settled = trio.current_time(), 0, 0
    while told < len(bundles) and trio.current_time() - began_s < seconds:
        while told < min(len(bundles), settled + BUNDLES_AHEAD):
            await network.publish(topics.BUNDLES, topics.encode_bundle_message(bundles[told]))
            told += 1
        await trio.sleep(POLL_S)
        settled = await _settled(land)
    took_s, in_time = trio.current_time() - began_s, settled
    with trio.move_on_after(DRAIN_S):
        while settled < told:
            await trio.sleep(POLL_S)
            settled = await _settled(land)
    return Load(told, in_time, settled, took_s)


async def _settled(land: Settled) -> int:
    """The number of the last bundle that the validator farthest behind has settled."""
    provider = account_text(node_of(land.validators[0]).account)
    route = f"/ledger/providers/{provider}"
    told = [await read(child, route) for child in land.validators]
    return min(int(each["last_bundle"]) for each in told)


def _address(child: Child) -> str:
    settings = load(child.home)
    node = keystore_of(settings).find("node")
    assert node is not None
    return f"{settings.config.p2p.listen[0]}/p2p/{node.peer_id}"


async def _discard(heard: AsyncIterator[Gossip]) -> None:
    async for _ in heard:
        pass


# --- what lies on the disk


def _bytes_that_stay(child: Child) -> int:
    """Of a stopped node: block log and database, without what LevelDB has not collected yet."""
    database = plyvel.DB(str(child.home / "db"))
    database.compact_range()
    database.close()
    return _bytes(child.home / "blocks") + _bytes(child.home / "db")


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
