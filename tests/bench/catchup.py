"""How many small decided blocks a second a node takes in, alone and from peers.

`python tests/bench/catchup.py [blocks]` prints one line of JSON. The network is simulated, on the
real clock and in this one process, so servers and follower share a core; disk and fsync are real.
"""

import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import trio

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chain_kit import FAUCET, PAYER, party
from stored_kit import GENESIS, Decided, Stored

from consensus.primitives.digest import sha256
from node.ledger.pool import BundlePool, TransactionPool
from node.ledger.wire.transactions import Transfer
from node.peering.proposer import Proposer
from node.peering.replica import Replica
from node.peering.responder import Responder
from node.storage.chain import SYNC_BLOCKS_MAX, Chain
from node.storage.store import MemoryKV
from p2p.memory import Link, MemoryHub
from p2p.network import StatusFacts

SERVERS = 2
CHAIN_ID = sha256(GENESIS)


def measure(folder: Path, *, blocks: int = 1_024, transfers: int = 2) -> dict[str, Any]:
    """Blocks a second with `transfers` each: by `commit_many` alone, one by one, and by peers."""
    decided = _make(folder / "source", blocks, transfers)
    one_by_one, _ = _take(folder / "single", decided[: blocks // 4], 1)
    together, together_cpu_ms = _take(folder / "many", decided, SYNC_BLOCKS_MAX)
    from_peers, from_peers_cpu_ms = trio.run(partial(_catch_up, folder, decided))
    return {
        "blocks": blocks,
        "transfers_per_block": transfers,
        "commit_one_by_one_blocks_s": round(one_by_one),
        "commit_many_blocks_s": round(together),
        "commit_many_cpu_ms": together_cpu_ms,
        "from_peers_blocks_s": round(from_peers),
        "from_peers_cpu_ms": from_peers_cpu_ms,
    }


def _make(home: Path, blocks: int, transfers: int) -> list[Decided]:
    made = Stored(home, MemoryKV())
    for _ in range(blocks):
        made.block(
            *(made.tx(FAUCET, Transfer(PAYER.key, 1, b""), ahead=i) for i in range(transfers))
        )
    made.chain.close()
    return made.decided


class Watch:
    """Blocks a second by the clock, and milliseconds of CPU a block: other work costs no CPU."""

    def __init__(self) -> None:
        self._begun_s, self._cpu_s = time.perf_counter(), time.process_time()

    def read(self, blocks: int) -> tuple[float, float]:
        cpu_ms = (time.process_time() - self._cpu_s) * 1_000 / blocks
        return blocks / (time.perf_counter() - self._begun_s), round(cpu_ms, 2)


def _take(home: Path, decided: list[Decided], at_once: int) -> tuple[float, float]:
    chain = Chain.open(home, GENESIS)
    watch = Watch()
    for start in range(0, len(decided), at_once):
        chain.commit_many(decided[start : start + at_once])
    figures = watch.read(len(decided))
    chain.close()
    return figures


async def _catch_up(folder: Path, decided: list[Decided]) -> tuple[float, float]:
    hub = MemoryHub(1, Link(delay_ms=(1, 1)))
    source = Chain.open(folder / "server", GENESIS)
    for start in range(0, len(decided), SYNC_BLOCKS_MAX):
        source.commit_many(decided[start : start + SYNC_BLOCKS_MAX])
    async with trio.open_nursery() as nursery:
        for number in range(SERVERS):
            network = hub.network(
                party(f"server {number}").key,
                chain_id=CHAIN_ID,
                facts=lambda: StatusFacts(height=source.height, block_id=source.tip.block_id),
            )
            Responder(get_view=source.view, find_undecided=lambda _: None).serve(network)
            await nursery.start(network.run)
        chain = Chain.open(folder / "follower", GENESIS)
        network = hub.network(party("follower").key, chain_id=CHAIN_ID)
        replica = _follower(network, chain)
        await nursery.start(network.run)
        watch = Watch()
        await nursery.start(replica.run)
        await replica.wait_height(len(decided))
        figures = watch.read(len(decided))
        nursery.cancel_scope.cancel()
    chain.close()
    source.close()
    return figures


def _follower(network: Any, chain: Chain) -> Replica:
    async def fetch_bodies(names: Any, peers: Any) -> Any:
        return names

    transactions, bundles, me = TransactionPool(CHAIN_ID), BundlePool(), party("follower").key
    return Replica(
        network=network,
        chain=chain,
        proposer=Proposer(chain=chain, transactions=transactions, bundles=bundles, me=me),
        validator=None,
        find_peer=lambda key: None,
        fetch_bodies=fetch_bodies,
        now_ms=lambda: time.time_ns() // 1_000_000,
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_024
        sys.stdout.write(json.dumps(measure(Path(place), blocks=count)) + "\n")
