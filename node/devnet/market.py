"""Transactions of the devnet's people, sent to a real node and waited for.

Why through a node's socket: the devnet has no way of its own into the ledger; what it does, any
operator can do with `olnode tx send`.
What this file does not know: what is bought or published.
"""

import time
from contextlib import suppress
from functools import partial
from typing import Final

import trio

from consensus.primitives.errors import Invalid
from node.devnet.children import Child, in_thread, read
from node.devnet.people import Person
from node.ledger.addresses import account_text
from node.ledger.wire.transactions import (
    Payload,
    decode_transaction,
    encode_body,
    sign_transaction,
)
from node.web.ask import Refusal, Unreachable

MAX_FEE_GRAINS: Final = 10_000_000  # 0.01 OPEN; the charge is far below
VALID_MS: Final = 600_000
SETTLE_S: Final = 60.0
RESEND_S: Final = 5.0
POLL_S: Final = 0.1


class Market:
    """Sends for anybody through one node; keeps each sender's next nonce until one is refused."""

    def __init__(self, child: Child, chain_id: bytes) -> None:
        self._child, self._chain_id = child, chain_id
        self._nonces: dict[bytes, int] = {}
        self._sending: dict[bytes, trio.Lock] = {}  # by sender: two at once would share a nonce
        self._sent: dict[str, bytes] = {}  # not settled yet, by id

    async def send(self, person: Person, payload: Payload) -> str:
        """Into the pool; the transaction's id in hex. Raises Refusal, or Invalid for no node."""
        async with self._sending.setdefault(person.account, trio.Lock()):
            # Taken out, and put back when it was right: others may send for the same person.
            nonce = self._nonces.pop(person.account, None)
            if nonce is None:
                route = f"/ledger/accounts/{account_text(person.account)}"
                nonce = int((await read(self._child, route))["next_nonce"])
            until_ms = time.time_ns() // 1_000_000 + VALID_MS
            body = encode_body(person.account, nonce, MAX_FEE_GRAINS, until_ms, payload)
            raw = sign_transaction(self._chain_id, person.seed, body)
            tx_id = decode_transaction(raw).tx_id.hex()
            await self._post(tx_id, raw)
            self._nonces[person.account] = nonce + 1
            self._sent[tx_id] = raw
            return tx_id

    async def _post(self, tx_id: str, raw: bytes) -> None:
        """Once more while the node is away: one that was killed is being restarted."""
        post = partial(self._child.node.post_bytes, "/ledger/transactions", raw)
        with trio.move_on_after(SETTLE_S):
            while True:
                try:
                    await in_thread(post)
                    return
                except Refusal as refusal:
                    if refusal.code == "pool.known":
                        return  # the answer to our first try was lost, the transaction was not
                    raise
                except Unreachable:
                    await trio.sleep(POLL_S)
        raise Invalid("market.no_node", transaction=tx_id)

    async def settled(self, tx_id: str) -> int:
        """The height that settled it. Raises Invalid `market.failed` or `market.not_settled`.

        It is sent again each RESEND_S: a node that is killed forgets its pool.
        """
        again_s = trio.current_time() + RESEND_S
        with trio.move_on_after(SETTLE_S):
            while True:
                if trio.current_time() >= again_s and tx_id in self._sent:
                    again_s = trio.current_time() + RESEND_S
                    with suppress(Refusal, Invalid):
                        await self._post(tx_id, self._sent[tx_id])
                with suppress(Refusal, Unreachable):
                    get = partial(self._child.node.get, f"/ledger/transactions/{tx_id}")
                    told = await in_thread(get)
                    if told["state"] == "settled":
                        if told["code"]:
                            kind, why = told["type_name"], told["reason"]
                            raise Invalid("market.failed", type=kind, why=why)
                        self._sent.pop(tx_id, None)
                        return int(told["height"])
                await trio.sleep(POLL_S)
        raise Invalid("market.not_settled", transaction=tx_id)

    async def do(self, person: Person, payload: Payload) -> int:
        """Send and wait; the height."""
        return await self.settled(await self.send(person, payload))
