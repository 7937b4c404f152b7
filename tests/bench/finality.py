"""`olnode bench finality`: four real daemons on loopback, from proposal to commit.

Each node logs how long a block took from its proposer's clock, as it began to build, to its own
commit: on one machine that is one clock. The floor is what no implementation of three message
delays can beat on this machine: three messages over a libp2p stream, measured here between two
networks, and five syncs one after another (proposal, prevote, precommit, block log, database).
With `--delay-ms` every byte between two daemons takes so much longer, through relays of our own:
kernels without netem cannot slow a link down.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio
from bench.links import slowed
from bench.protocol import AT_MOST, Budget, finish, quiet, tell
from network_kit import World

from consensus.messages import VOTE_BYTES
from node.devnet.children import Child, stop_all, wait_answering
from node.devnet.market import Market
from node.devnet.people import VALIDATORS, Settled, settle
from node.devnet.story import free_ports
from node.ledger.genesis import decode_genesis
from node.ledger.wire.transactions import Transfer
from p2p.limits import PROTOCOLS
from p2p.network import FrameStream, PeerId

BUDGETS: Final = (Budget("p50_ms", AT_MOST, 250), Budget("p99_ms", AT_MOST, 1_000))
MESSAGE_DELAYS: Final = 3
SYNCS: Final = 5
SAMPLE_EVERY_S: Final = 0.1
SYNC_BYTES: Final = 4_096
SECONDS: Final = 30.0
PAUSE_S: Final = 0.5  # between transfers: light load
WARM_UP: Final = 5  # blocks that dial, compile and fill caches
PEERS_S: Final = 30.0
WAIT_S: Final = 5.0
VALIDATORS_ONLY: Final = {"OLNODE_ROLES": '["validator"]', "OLNODE_ENGINE__KIND": "none"}


async def run(folder: Path, seconds: float, delay_ms: float) -> dict[str, float]:
    """Start, load, read the logs, measure the floor."""
    os.environ.update(VALIDATORS_ONLY)  # the children's, and ours
    land = settle(folder, time_ms=time.time_ns() // 1_000_000, ports=free_ports(), models=())
    floor = Floor(folder)
    async with slowed(land.validators, delay_ms / 1_000):
        await _play(land, floor, seconds)
    took_ms = sorted(each for child in land.validators for each in list(_took_ms(child))[WARM_UP:])
    floor_ms = MESSAGE_DELAYS * (floor.delay_ms + delay_ms) + SYNCS * floor.sync_ms
    p50_ms = statistics.median(took_ms)
    return {
        "validators": VALIDATORS,
        "blocks": len(took_ms) // VALIDATORS,
        "p50_ms": p50_ms,
        "p99_ms": took_ms[(len(took_ms) - 1) * 99 // 100],
        "floor_ms": round(floor_ms, 2),
        "ratio_to_floor": round(p50_ms / floor_ms, 2),
        "link_delay_ms": delay_ms,
        "message_delay_ms": round(floor.delay_ms, 3),
        "sync_ms": round(floor.sync_ms, 3),
    }


async def _play(land: Settled, floor: "Floor", seconds: float) -> None:
    children = list(land.validators)
    try:
        for child in children:
            child.start()
        for child in children:
            await wait_answering(child)
        await _wait_peers(children)
        tell(f"{VALIDATORS} validators answer; transfers for {seconds:.0f} s")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(floor.sample)
            await _load(land, seconds)
            nursery.cancel_scope.cancel()
    finally:
        await stop_all(children)


async def _wait_peers(children: list[Child]) -> None:
    """Until each validator knows all others: the first rounds of a network are its dials."""
    with trio.fail_after(PEERS_S):
        for child in children:
            while await trio.to_thread.run_sync(_lacks_peers, child):  # noqa: ASYNC110  # polls
                await trio.sleep(0.2)


def _lacks_peers(child: Child) -> bool:
    return len(child.node.get("/peers")["peers"]) < VALIDATORS - 1


async def _load(land: Settled, seconds: float) -> None:
    market = Market(land.validators[0], decode_genesis(land.genesis).chain_id)
    to = land.people.contributors[0].account
    with trio.move_on_after(seconds):
        while True:
            await market.do(land.people.faucet, Transfer(to, 1, b"bench"))
            await trio.sleep(PAUSE_S)


def _took_ms(child: Child) -> Iterator[int]:
    for line in child.log_path.read_text("utf-8", "replace").splitlines():
        with suppress(ValueError):  # a line of a library
            told = json.loads(line)
            if told.get("event") == "block committed":
                yield told["took_ms"]


class Floor:
    """Samples of what the network and the disk take, from the same seconds as the blocks."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "sync"
        self._delays_s: list[float] = []
        self._syncs_s: list[float] = []

    async def sample(self) -> None:
        """Until it is cancelled."""
        with self._path.open("wb") as file:
            async with trio.open_nursery() as nursery:
                world = World("libp2p")
                one, other = await world.start(
                    nursery, 2, lambda net: net.accept("consensus", _echo, PROTOCOLS["consensus"])
                )
                stream = await one.open(other.me, "consensus")
                while True:
                    self._delays_s.append(await _half_round_trip_s(stream))
                    self._syncs_s.append(await trio.to_thread.run_sync(_sync_s, file.fileno()))
                    await trio.sleep(SAMPLE_EVERY_S)

    @property
    def delay_ms(self) -> float:
        """Median of one message's way over an open stream."""
        return 1_000 * statistics.median(self._delays_s)

    @property
    def sync_ms(self) -> float:
        """Median of one write of a slot and its fdatasync."""
        return 1_000 * statistics.median(self._syncs_s)


async def _echo(peer: PeerId, stream: FrameStream) -> None:
    while True:
        await stream.write(await stream.read(VOTE_BYTES, float("inf")), WAIT_S)


async def _half_round_trip_s(stream: FrameStream) -> float:
    began_s = time.perf_counter()
    await stream.write(bytes(VOTE_BYTES), WAIT_S)
    await stream.read(VOTE_BYTES, WAIT_S)
    return (time.perf_counter() - began_s) / 2


def _sync_s(descriptor: int) -> float:
    began_s = time.perf_counter()
    os.pwrite(descriptor, os.urandom(SYNC_BYTES), 0)
    os.fdatasync(descriptor)
    return time.perf_counter() - began_s


def main() -> None:
    """The command line of `olnode bench finality`."""
    parser = argparse.ArgumentParser(prog="olnode bench finality")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of load")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="of each link, one way")
    given = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory(prefix="olnode-bench-") as folder:
        finish(trio.run(run, Path(folder), given.seconds, given.delay_ms), BUDGETS)


if __name__ == "__main__":
    main()
