"""An honest peer's traffic at a fixed, modest rate, and how much of it is served in time.

Why a fixed rate with deadlines and not as much as goes: on a loaded machine the most that goes
says more of the machine than of the node. Why a thread of its own: the peer stays connected from
one attack to the next.
"""

import contextlib
import threading
from dataclasses import dataclass, field
from typing import Any, Final

import trio
from besieged import PROVIDER, START_S, Besieged, sender
from network_kit import seed_of, wait_until

from node.ledger.wire.transactions import Transfer, decode_transaction
from node.peering.topics import TXS, VOTES, encode_tx_message
from p2p.errors import Code, NetworkError, Refused
from p2p.framing import Value, decode, encode
from p2p.limits import PROTOCOLS, TOPICS
from p2p.network import Libp2pNetwork, Verdict

ANSWER_S: Final = 5.0
SETTLED_S: Final = 10.0  # by gossip into a block


@dataclass
class Served:
    """Of so many questions and payments so many were served in time."""

    asked: int = 0
    answered: int = 0
    paid: list[bytes] = field(default_factory=list)  # transactions, by id
    settled: int = 0

    @property
    def share(self) -> float:
        """The worse of the two."""
        return min(self.answered / self.asked, self.settled / len(self.paid))


class Honest:
    """The peer, from `start` to `stop`."""

    def __init__(self, node: Besieged) -> None:
        self.node = node
        self._senders = 0
        self._ready, self._stop = threading.Event(), trio.Event()
        self._token: Any = None
        self._thread = threading.Thread(target=lambda: trio.run(self._live))

    def start(self) -> None:
        """On its way in; see `wait_in`."""
        self._thread.start()

    def wait_in(self) -> None:
        """Until it is admitted and hears gossip."""
        assert self._ready.wait(START_S), "an honest peer finds no way in"

    def stop(self) -> None:
        if self._token is not None:
            trio.from_thread.run_sync(self._stop.set, trio_token=self._token)
            self._thread.join()

    def work(self, seconds: float, every_s: float) -> Served:
        """Ask and pay so often for so long, then wait for what is still on its way."""
        served: Served = trio.from_thread.run(self._work, seconds, every_s, trio_token=self._token)
        return served

    def ask(self, protocol: str, *question: Value) -> Value:
        """What the node answers."""
        raw: bytes = trio.from_thread.run(
            self._request, protocol, encode(question), trio_token=self._token
        )
        return decode(raw, len(raw))

    async def _request(self, protocol: str, body: bytes) -> bytes:
        bytes_max = PROTOCOLS[protocol].reply_max
        return await self._network.request(
            self._peer, protocol, body, timeout_s=ANSWER_S, bytes_max=bytes_max
        )

    async def _live(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._network = Libp2pNetwork(
            seed=seed_of(2),
            chain_id=self.node.chain_id,
            listen=["/ip4/127.0.0.1/tcp/0"],
            reach="devnet",
            bootstrap=[self.node.address],
        )
        for topic in (TXS, VOTES):
            self._network.subscribe(topic, lambda *told: Verdict.ACCEPT, TOPICS[topic])
        async with trio.open_nursery() as nursery:
            await nursery.start(self._network.run)
            await wait_until(self._is_in, START_S)
            (self._peer,) = (view.peer for view in self._network.peers())
            self._ready.set()
            await self._stop.wait()
            nursery.cancel_scope.cancel()

    def _is_in(self) -> bool:
        is_admitted = any(view.admitted for view in self._network.peers())
        return is_admitted and self._network.statistics().mesh_peers.get(TXS, 0) == 1

    async def _work(self, seconds: float, every_s: float) -> Served:
        served, began_s = Served(), trio.current_time()
        async with trio.open_nursery() as nursery:
            while trio.current_time() < began_s + seconds:
                nursery.start_soon(self._ask, served)
                served.asked += 1
                await self._pay(served)
                await trio.sleep_until(began_s + served.asked * every_s)
        served.settled = await trio.to_thread.run_sync(
            self.node.count_settled, served.paid, SETTLED_S
        )
        return served

    async def _ask(self, served: Served) -> None:
        """As any client of ours: told that the node is busy, it comes again."""
        with contextlib.suppress(NetworkError), trio.move_on_after(ANSWER_S):
            while True:
                try:
                    await self._request("light", encode((0, 0)))
                except Refused as refusal:
                    if refusal.code not in (Code.BUSY, Code.RATE_EXCEEDED):
                        raise
                    await trio.sleep(refusal.retry_ms / 1_000)
                else:
                    served.answered += 1
                    return

    async def _pay(self, served: Served) -> None:
        raw = self.node.transaction(sender(self._senders), Transfer(PROVIDER.key, 1, b""))
        self._senders += 1
        served.paid.append(decode_transaction(raw).tx_id)
        await self._network.publish(TXS, encode_tx_message(raw))
