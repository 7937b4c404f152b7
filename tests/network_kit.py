"""Networks to test: the same scenes over libp2p on loopback and over the simulated hub."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import trio

from node.ledger.wire.bundles import Bundle
from p2p.errors import Unreachable
from p2p.memory import Link, MemoryHub
from p2p.network import Libp2pNetwork, Network, PeerId

CHAIN = hashlib.sha256(b"chain of the tests").digest()


def seed_of(number: int) -> bytes:
    return hashlib.sha256(b"seed %d" % number).digest()


class World:
    """Makes networks of one kind; `prepare` registers handlers and topics before the start."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._hub = MemoryHub(seed=1, link=Link(delay_ms=(2, 2)))
        self._made = 0
        self._first: Any = None

    def make(self, **options: Any) -> Any:
        number, self._made = self._made, self._made + 1
        options.setdefault("chain_id", CHAIN)
        if self.kind == "memory":
            return self._hub.network(seed_of(number), **options)
        bootstrap = self._first.addresses() if self._first is not None else ()
        return Libp2pNetwork(
            seed=seed_of(number),
            listen=["/ip4/127.0.0.1/tcp/0"],
            reach="devnet",
            bootstrap=bootstrap,
            **options,
        )

    async def start(
        self,
        nursery: trio.Nursery,
        count: int,
        prepare: Callable[[Any], object] = lambda network: None,
        *,
        is_met: bool = True,
        **options: Any,
    ) -> list[Any]:
        """`count` more networks, started; all of them admitted by each other if `is_met`."""
        made = []
        for _ in range(count):
            network = self.make(**options)
            prepare(network)
            await nursery.start(network.run)
            self._first = self._first or network
            made.append(network)
        if is_met:
            await wait_until(lambda: all(admitted(network) >= count - 1 for network in made))
        return made


def admitted(network: Network) -> int:
    return sum(view.admitted for view in network.peers())


async def wait_until(is_true: Callable[[], bool], seconds: float = 10) -> None:
    """Until the real network has come to it; there is no event for every such thing."""
    with trio.fail_after(seconds):
        while not is_true():  # noqa: ASYNC110  # it polls on purpose
            await trio.sleep(0.01)


async def not_here(bundle: Bundle, peers: Sequence[PeerId]) -> Bundle:
    """A relay's `fetch_body` where no bundle is larger than a chunk."""
    raise Unreachable("nobody has its body")
