"""A whole network in one thread: real nodes over a simulated network, run from a seed.

What this file does not know: what a node is made of (`nodes.py`), and what it must not do
(`promises.py`).
"""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import trio
import trio.testing
from bundle_kit import party
from simulation.disk import SeededDisk
from simulation.nodes import EPOCH_MS, Node
from simulation.promises import Promises

from consensus.header import Header
from node.ledger.genesis import Genesis, devnet_genesis
from node.ledger.wire.transactions import Transfer, encode_body, sign_transaction
from p2p.memory import Link, MemoryHub

OPEN = 10**9
FAUCET = party("faucet")


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """trio shuffles runnable tasks; here by a seed (private to trio 0.35, which is pinned)."""
    run = trio._core._run
    before = run._ALLOW_DETERMINISTIC_SCHEDULING, run._r.getstate()
    run._ALLOW_DETERMINISTIC_SCHEDULING = True
    run._r.seed(seed)
    try:
        yield
    finally:
        run._ALLOW_DETERMINISTIC_SCHEDULING = before[0]
        run._r.setstate(before[1])


class Cluster:
    """Nodes with a bond vote; `followers` more only follow."""

    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        bonds: Sequence[int] = (1, 1, 1, 1),
        followers: int = 0,
        lies: Mapping[int, Sequence[str]] | None = None,
        **link: Any,
    ) -> None:
        """`bonds`: of the validators, in twenties of OPEN. `lies`: number of a node → its lies.

        `link`: what all wires are like, as in `Link`.
        """
        powers = {party(f"validator {i}").key: 20 * OPEN * bond for i, bond in enumerate(bonds)}
        self.genesis: Genesis = devnet_genesis(
            name="simulation",
            time_ms=EPOCH_MS - 1_000,
            accounts={FAUCET.key: 1_000_000 * OPEN},
            validators=powers,
        )
        self.chain_id = self.genesis.chain_id
        self.hub = MemoryHub(seed, Link(**link))
        self.rng = random.Random(seed)
        self.disk = SeededDisk(folder, random.Random(f"disk {seed}"))
        lies = lies or {}
        with self.disk.mounted():
            self.nodes = [
                Node(self, i, folder / str(i), votes=i < len(bonds), lies=lies.get(i, ()))
                for i in range(len(bonds) + followers)
            ]
        self.promises = Promises(self.nodes)
        self.late: set[int] = set()  # nodes that a script starts itself
        self.nursery: trio.Nursery
        self.payer = FAUCET.key
        self.nonce = 0
        self.seen_headers: list[Header] = []  # of the first node, when the script has ended

    async def start(self, node: Node) -> None:
        """Bring a node up, for the first time or again, once its last life is over."""
        await node.ended.wait()
        self.disk.revive(node.home)
        await self.nursery.start(node.run)

    def transfer(self, nonce: int, now_ms: int) -> bytes:
        body = encode_body(
            sender=FAUCET.key,
            nonce=nonce,
            max_fee=OPEN,
            valid_until_ms=now_ms + 60_000,
            payload=Transfer(party("payee").key, OPEN, b""),
        )
        return sign_transaction(self.chain_id, FAUCET.seed, body)

    def pay_everywhere(self) -> None:
        """One more transfer, known to every living node."""
        for node in self.alive():
            node.pay(self.nonce)
        self.nonce += 1

    def pay_next(self) -> None:
        """A transfer that the ledger can take now, whatever became of those before it."""
        settled = [node.chain.state().account(self.payer).nonce for node in self.alive()]
        self.nonce = max(settled, default=0)
        self.pay_everywhere()

    def alive(self) -> list[Node]:
        return [node for node in self.nodes if node.is_alive]

    def honest(self) -> list[Node]:
        """All nodes that tell the truth."""
        return [node for node in self.nodes if not node.lies]

    async def wait_all(self, height: int, timeout_s: float = 60.0) -> None:
        """Until every living node has committed `height`."""
        with trio.fail_after(timeout_s):
            for node in self.alive():
                await node.replica.wait_height(height)

    def assert_agreed(self) -> None:
        """No two nodes have different blocks at one height."""
        for height in range(1, min(node.chain.height for node in self.alive()) + 1):
            ids = {node.chain.header(height).block_id() for node in self.alive()}
            assert len(ids) == 1, f"fork at height {height}"


@asynccontextmanager
async def network_of(cluster: Cluster) -> AsyncIterator[Cluster]:
    """All nodes running, from one seed; ended at the end."""
    async with trio.open_nursery() as nursery:
        cluster.nursery = nursery
        for node in cluster.nodes:
            if node.number not in cluster.late:
                await cluster.start(node)
        yield cluster
        for node in cluster.alive():
            assert node.scope is not None
            node.scope.cancel()


Script = Callable[[Cluster], Awaitable[None]]


def run_script(cluster: Cluster, seed: int, script: Script) -> bytes:
    """Run `script` on a mock clock from a seed; returns the hash of everything delivered."""

    async def main() -> None:
        async with network_of(cluster):
            await script(cluster)
            chain = cluster.nodes[0].chain
            found = [chain.header(height) for height in range(1, chain.height + 1)]
            cluster.seen_headers = [header for header in found if header is not None]

    with deterministic(seed), cluster.disk.mounted():
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return cluster.hub.trace_hash()
