"""Transactions that a node makes by itself: one at a time, signed, submitted, waited for.

Why one at a time: nonces follow each other, and a transaction that may still settle stands between
ours and the next. Why it waits: whoever sent it needs the ledger's word, not the pool's.
What this file does not know: what a transaction is for.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import trio

from consensus.primitives.errors import Invalid
from node.ledger.addresses import account_text
from node.ledger.wire.codes import code_name
from node.ledger.wire.transactions import (
    Payload,
    decode_transaction,
    encode_body,
    encode_transaction,
)
from node.wallet.keystore import Key

MAX_FEE_GRAINS: Final = 10_000_000  # of a transaction of ours; the charge is far below
VALID_MS: Final = 600_000
SETTLE_S: Final = 30.0
POLL_S: Final = 0.1

Submit = Callable[[bytes], Awaitable[bytes]]  # transaction bytes → id


class Turn(NamedTuple):
    """The next transaction's place: its nonce, and until when it may settle."""

    nonce: int
    until_ms: int


class Sender:
    """Sends with one key. `find_code`: what a block gave a transaction, None while none has it."""

    def __init__(
        self,
        *,
        key: Key,
        chain_id: bytes,
        next_nonce: Callable[[bytes], int],
        find_code: Callable[[bytes], int | None],
        submit: Submit,
        now_ms: Callable[[], int],
    ) -> None:
        self._key, self._chain_id = key, chain_id
        self._next_nonce, self._find_code = next_nonce, find_code
        self._submit, self._now_ms = submit, now_ms
        self._sending = trio.Lock()
        self._last: tuple[bytes, int] | None = None  # sent: its id, and how long it may settle

    @property
    def account(self) -> bytes:
        """Who sends."""
        return self._key.public_key

    async def send(self, payload: Payload) -> None:
        """Returns once a block holds it; raises as `turn` and `send_in` do."""
        async with self.turn() as turn:
            await self.send_in(turn, payload)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """Ours alone, until the block ends.

        Raises Invalid `payer.not_settled` while an earlier one may still settle: whoever was
        cancelled, or gave up waiting for it, would send the same again beside the first.
        """
        async with self._sending:
            self._check_last()
            yield Turn(self._next_nonce(self._key.public_key), self._now_ms() + VALID_MS)

    async def send_in(self, turn: Turn, payload: Payload) -> None:
        """Sign, submit, wait until a block holds it; raises Invalid with the pool's or the
        ledger's word, or `payer.not_settled` after SETTLE_S."""
        key = self._key
        body = encode_body(key.public_key, turn.nonce, MAX_FEE_GRAINS, turn.until_ms, payload)
        raw = encode_transaction(body, key.sign(b"tx", self._chain_id, body))
        self._last = decode_transaction(raw).tx_id, turn.until_ms
        try:
            tx_id = await self._submit(raw)
        except Invalid:
            self._last = None  # the pool has not taken it
            raise
        with trio.move_on_after(SETTLE_S):
            while (code := self._find_code(tx_id)) is None:  # noqa: ASYNC110  # chain has no event
                await trio.sleep(POLL_S)
            if code:  # by the ledger's own word: `tx.insufficient` is a matter of funds
                who = account_text(key.public_key)
                raise Invalid(code_name(code), number=code, transaction=tx_id, account=who)
            return
        raise _not_settled(tx_id)

    def _check_last(self) -> None:
        if self._last is None:
            return
        tx_id, until_ms = self._last
        if self._find_code(tx_id) is None and self._now_ms() < until_ms:
            raise _not_settled(tx_id)
        self._last = None


def _not_settled(tx_id: bytes) -> Invalid:
    mend = f"olnode status, for peers and height; then olnode tx show {tx_id.hex()}"
    return Invalid("payer.not_settled", transaction=tx_id, mend=mend)
