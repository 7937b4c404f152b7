"""What the devnet's people send: nonces in order for each, and the ledger's word when refused."""

from types import SimpleNamespace
from typing import Any

import pytest
import trio
from bundle_kit import CHAIN

from consensus.primitives.digest import signing_bytes
from consensus.primitives.errors import Invalid
from consensus.primitives.keys import is_signed_by
from node.devnet import market as markets
from node.devnet.market import Market
from node.devnet.people import Person
from node.ledger.addresses import account_of
from node.ledger.wire.transactions import Transfer, decode_transaction
from node.web.ask import Refusal, Unreachable

ALICE, BOB = Person("alice", b"\1" * 32), Person("bob", b"\2" * 32)
PAYLOAD = Transfer(BOB.account, 5, b"")


class FakeNode:
    """A daemon's socket: accounts with nonces, and what was posted."""

    def __init__(self) -> None:
        self.nonces = {ALICE.account: 7, BOB.account: 0}
        self.posted: list[Any] = []
        self.asked: list[str] = []
        self.answers: list[Any] = []
        self.refusal: Exception | None = None

    def get(self, route: str) -> dict[str, Any]:
        self.asked.append(route)
        if route.startswith("/ledger/accounts/"):
            return {"nonce": 0, "next_nonce": self.nonces[account_of(route.rpartition("/")[2])]}
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def post_bytes(self, route: str, raw: bytes) -> dict[str, Any]:
        if self.refusal is not None:
            raise self.refusal
        tx = decode_transaction(raw)
        self.posted.append(tx)
        return {"transaction": tx.tx_id.hex()}


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def market(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> Market:
    monkeypatch.setattr(markets, "POLL_S", 0)  # threads take real time: no clock jumps here
    child: Any = SimpleNamespace(node=node)
    return Market(child, CHAIN)


async def test_each_sender_counts_on_from_the_ledgers_nonce(market: Market, node: FakeNode) -> None:
    for who in (ALICE, BOB, ALICE, ALICE, BOB):
        await market.send(who, PAYLOAD)
    nonces = [(tx.sender == ALICE.account, tx.nonce) for tx in node.posted]
    assert nonces == [(True, 7), (False, 0), (True, 8), (True, 9), (False, 1)]
    assert len(node.asked) == 2, "the ledger is asked once a sender"


async def test_one_sender_twice_at_once_has_two_nonces(market: Market, node: FakeNode) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(market.send, ALICE, PAYLOAD)
    assert sorted(tx.nonce for tx in node.posted) == [7, 8, 9, 10]


async def test_what_is_sent_is_signed_by_its_sender(market: Market, node: FakeNode) -> None:
    told = await market.send(ALICE, PAYLOAD)
    (tx,) = node.posted
    assert (told, tx.sender, tx.payload) == (tx.tx_id.hex(), ALICE.account, PAYLOAD)
    assert is_signed_by(ALICE.account, signing_bytes(b"tx", CHAIN, tx.body), tx.signature)


async def test_refused_transaction_uses_up_no_nonce(market: Market, node: FakeNode) -> None:
    node.refusal = Refusal(400, "pool.full", "full", {})
    with pytest.raises(Refusal):
        await market.send(ALICE, PAYLOAD)
    node.refusal = None
    await market.send(ALICE, PAYLOAD)
    assert [tx.nonce for tx in node.posted] == [7]


async def test_nonce_is_read_again_after_a_refusal(market: Market, node: FakeNode) -> None:
    """Somebody else may have sent for the same person: the next one must not fail for ever."""
    await market.send(ALICE, PAYLOAD)
    node.nonces[ALICE.account] = 9
    node.refusal = Refusal(409, "tx.nonce", "not the next one", {"expected": 9})
    with pytest.raises(Refusal):
        await market.send(ALICE, PAYLOAD)
    node.refusal = None
    await market.send(ALICE, PAYLOAD)
    assert [tx.nonce for tx in node.posted] == [7, 9]


def settled(code: int = 0, reason: str = "") -> dict[str, Any]:
    return {
        "state": "settled", "code": code, "height": 9, "type_name": "Transfer", "reason": reason
    }  # fmt: skip


async def test_height_comes_once_the_block_is_there(market: Market, node: FakeNode) -> None:
    """Between pool and block, and while a daemon restarts, there is no answer for a moment."""
    node.answers = [
        {"state": "pending"},
        Refusal(404, "transaction.not_found", "none", {}),
        Unreachable(trio.Path("x"), "restarts"),
        settled(),
    ]
    assert await market.do(ALICE, PAYLOAD) == 9


async def test_failure_names_type_and_reason(market: Market, node: FakeNode) -> None:
    node.answers = [settled(20, "tx.insufficient")]
    with pytest.raises(Invalid) as failure:
        await market.do(ALICE, PAYLOAD)
    assert failure.value.code == "market.failed"
    assert failure.value.facts == {"type": "Transfer", "why": "tx.insufficient"}


async def test_transaction_that_no_block_takes_ends_by_its_deadline(
    market: Market, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(markets, "SETTLE_S", 0.02)
    node.answers = [{"state": "pending"}]
    with pytest.raises(Invalid, match=r"market\.not_settled"):
        await market.settled("ab")
