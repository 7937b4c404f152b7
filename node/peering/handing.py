"""Transactions that this node was given, handed to each peer until the ledger has them.

Why beside gossip: gossip promises nothing. What is published while nobody listens is lost, and the
same bytes published again within the seen mark's two minutes go nowhere; so what a user gave us and
gossip has not brought onto the ledger soon is handed over by request, to those who join later too.
Who receives one that it did not know publishes it: its neighbours may have missed it as well.
What this file does not know: whether a transaction is good (`admit` and `topics` do).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import trio

from consensus.primitives.encoding import Bytes, ListOf, decode, encode
from consensus.primitives.errors import Invalid
from node.ledger.pool import TransactionPool
from node.peering import topics
from node.peering.topics import TXS
from p2p.errors import Misbehaving, NetworkError
from p2p.limits import PROTOCOLS, TOPICS, TokenBucket
from p2p.network import Network, PeerId, Verdict

LOOK_EVERY_S: Final = 2.0
GOSSIP_S: Final = 3.0  # gossip and a block need less where all is well
AGAIN_S: Final = 15.0  # to the same peer: it may have dropped it, or have been away
OWN_MAX: Final = 1_024  # the oldest are forgotten first; gossip had them all
HANDED_MAX: Final = 16  # in one request
TOLD_ON_S: Final = 2.0  # others', under our name: most of an author's share of gossip stays ours
TOLD_ON_BURST: Final = 20

_REQUEST: Final = ListOf(Bytes(TOPICS[TXS].bytes_max, 1), HANDED_MAX, 1)


class Handing:
    """Remembers our own transactions and hands them over. Run `run` in a nursery.

    `admit` takes a transaction's wire bytes into the pool or raises Invalid.
    """

    def __init__(
        self,
        *,
        network: Network,
        transactions: TransactionPool,
        admit: Callable[[bytes], None],
        counters: Counter[str],
    ) -> None:
        self._network = network
        self._transactions = transactions
        self._admit = admit
        self._own: dict[bytes, float] = {}  # id → since when
        self._handed: dict[PeerId, dict[bytes, float]] = {}  # … → when last
        self._told_on = TokenBucket(TOLD_ON_S, TOLD_ON_BURST, trio.current_time())
        self.counters = counters

    def keep(self, tx_id: bytes) -> None:
        """Hand this one over for as long as it waits in our pool."""
        self._own[tx_id] = trio.current_time()
        while len(self._own) > OWN_MAX:
            del self._own[next(iter(self._own))]
            self.counters["own_forgotten"] += 1

    async def run(self) -> None:
        """Forever: look who has not been handed what still waits."""
        self._network.serve("pool", self.answer, PROTOCOLS["pool"])
        while True:
            await trio.sleep(LOOK_EVERY_S)
            await self._look()

    async def _look(self) -> None:
        self._own = {tx: since for tx, since in self._own.items() if tx in self._transactions}
        peers = [view.peer for view in self._network.peers() if view.admitted]
        self._handed = {peer: self._handed.get(peer, {}) for peer in peers}
        async with trio.open_nursery() as nursery:
            for peer in peers:
                due = self._due(peer)
                if due:
                    nursery.start_soon(self._hand, peer, due)

    def _due(self, peer: PeerId) -> list[bytes]:
        """The oldest of what `peer` should be handed now; forgets what waits no longer."""
        now_s = trio.current_time()
        handed = {tx: at for tx, at in self._handed[peer].items() if tx in self._own}
        self._handed[peer] = handed
        due = [
            tx
            for tx, since in self._own.items()
            if now_s >= since + GOSSIP_S and now_s >= handed.get(tx, -AGAIN_S) + AGAIN_S
        ]
        return due[:HANDED_MAX]

    async def _hand(self, peer: PeerId, due: Sequence[bytes]) -> None:
        limits = PROTOCOLS["pool"]
        found = [tx for tx in map(self._transactions.find, due) if tx is not None]
        if not found:  # a block took them a moment ago
            return
        self._handed[peer].update(dict.fromkeys(due, trio.current_time()))
        body = encode([topics.encode_tx_message(tx.raw) for tx in found])
        try:
            await self._network.request(
                peer, "pool", body, timeout_s=limits.timeout_s, bytes_max=limits.reply_max
            )
            self.counters["handed"] += len(found)
        except NetworkError:
            self.counters["hand_failed"] += 1  # again after AGAIN_S

    async def answer(self, peer: PeerId, body: bytes) -> bytes:
        """[message of the topic `txs`, …] → [how many of them we did not know and took]."""
        taken = 0
        for message in _decoded(body):
            verdict = topics.judge_tx(message, self._admit)
            if verdict is Verdict.REJECT:
                raise Misbehaving("a transaction that gossip would reject")
            if verdict is Verdict.ACCEPT:
                taken += 1
                if self._told_on.take(trio.current_time()):
                    await self._network.publish(TXS, message)
        self.counters["handed_to_us"] += taken
        return encode((taken,))


def _decoded(body: bytes) -> Any:
    try:
        return decode(body, _REQUEST, PROTOCOLS["pool"].request_max, "pool.request")
    except Invalid as refusal:
        raise Misbehaving(str(refusal)) from None
