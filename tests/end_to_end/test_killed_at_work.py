"""A whole node is killed while it works, again and again: what it told as settled stays settled.

One validator alone makes blocks, so that each kill is in the middle of proposals, votes and
commits of its own. The kills between single operations on files are in `tests/crashes/`.
"""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from consensus.primitives.keys import public_key
from node.cli.frame import FAILED
from node.devnet.children import Child
from node.home import make_home
from node.ledger.addresses import account_text
from node.ledger.genesis import decode_genesis, devnet_genesis, encode_genesis
from node.ledger.pool import NONCE_AHEAD_MAX
from node.ledger.wire.transactions import (
    Transfer,
    decode_transaction,
    encode_body,
    sign_transaction,
)
from node.storage.scrubbing import load_progress
from node.web.ask import Refusal, Unreachable

KILLS = 3
OPEN = 10**9
SEEDS = {
    name: bytes([number]) * 32 for number, name in enumerate(("node", "validator", "spending"))
}
SENDER, TAKER = b"\7" * 32, public_key(b"\x08" * 32)
START_S = 60.0

FEE_MAX = 10_000_000
VALID_MS = 600_000
WORK_S = (0.2, 0.8)  # after the first is settled


class Payer:
    """Sends one grain after another through a node, and notes what it says is settled."""

    def __init__(self, child: Child, chain_id: bytes) -> None:
        self._node = child.node
        self._chain_id = chain_id
        self._waiting: list[str] = []
        self.settled: dict[str, int] = {}  # transaction → height
        self.blocks: dict[int, str] = {}  # height → block id
        self.nonce = 0

    def start_again(self) -> None:
        """The node that was killed has forgotten its pool."""
        self._waiting = []
        self.nonce = int(self.account(public_key(SENDER))["nonce"])

    def account(self, account: bytes) -> dict[str, Any]:
        """As the node's ledger has it."""
        return self._node.get(f"/ledger/accounts/{account_text(account)}")

    def send(self) -> None:
        """Into the pool, as many as it takes of one sender."""
        if len(self._waiting) == NONCE_AHEAD_MAX:
            return
        until_ms = time.time_ns() // 1_000_000 + VALID_MS
        payload = Transfer(TAKER, 1, b"")
        body = encode_body(public_key(SENDER), self.nonce, FEE_MAX, until_ms, payload)
        raw = sign_transaction(self._chain_id, SENDER, body)
        self._node.post_bytes("/ledger/transactions", raw)
        self.nonce += 1
        self._waiting.append(decode_transaction(raw).tx_id.hex())

    def look(self) -> None:
        """Note what was settled since."""
        while self._waiting and (height := self.height_of(self._waiting[0])):
            self.settled[self._waiting.pop(0)] = height
            self.blocks[height] = self.block_id(height)

    def height_of(self, transaction: str) -> int:
        """Where it was settled, 0 before."""
        told = self._node.get(f"/ledger/transactions/{transaction}")
        return int(told["height"]) if told["state"] == "settled" else 0

    def block_id(self, height: int) -> str:
        """Of a block that the node holds."""
        told: str = self._node.get(f"/ledger/blocks/{height}")["block_id"]
        return told


def new_child(folder: Path) -> Child:
    """A validator that is alone."""
    genesis = devnet_genesis(
        name="kills",
        time_ms=time.time_ns() // 1_000_000,
        accounts={public_key(SENDER): 1_000 * OPEN, TAKER: OPEN},
        validators={public_key(SEEDS["validator"]): 10_000 * OPEN},
    )
    chosen: dict[str, Any] = {
        "profile": "devnet", "name": "n0", "roles": ["validator"], "log.format": "json",
        "p2p.listen": ["/ip4/127.0.0.1/tcp/0"], "engine.kind": "none",
        "consensus.block_interval_ms": 50, "storage.snapshot_every": 10,
    }  # fmt: skip
    home = folder / "n0"
    raw = encode_genesis(genesis)
    make_home(home, genesis=raw, chosen=chosen, password=None, seeds=SEEDS)
    return Child("n0", home, ("validator",))


@contextmanager
def living(child: Child) -> Iterator[None]:
    """The node from its first answer on; killed at the end."""
    child.start()
    try:
        until_s = time.monotonic() + START_S
        while time.monotonic() < until_s and child.process and child.process.poll() is None:
            with suppress(Unreachable, Refusal):
                child.node.get("/status")
                break
            time.sleep(0.05)
        else:
            pytest.fail(child.last_lines())
        yield
    finally:
        child.kill()


def work(payer: Payer, lasts_s: float) -> None:
    """Send and look until it is time."""
    already = len(payer.settled)
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s:
        payer.send()
        payer.look()
        if len(payer.settled) > already and until_s - time.monotonic() > lasts_s:
            until_s = time.monotonic() + lasts_s
    assert len(payer.settled) > already


def judge(payer: Payer) -> None:
    """All that was settled is, in the same blocks, and paid once."""
    for transaction, height in payer.settled.items():
        assert payer.height_of(transaction) == height
    for height, block_id in payer.blocks.items():
        assert payer.block_id(height) == block_id
    paid = int(payer.account(TAKER)["balance"]) - OPEN
    assert paid == int(payer.account(public_key(SENDER))["nonce"]) >= len(payer.settled)


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Child, Payer]:
    """A node after its lives, each judged by the next."""
    chance = random.Random(11)
    child = new_child(tmp_path_factory.mktemp("killed"))
    genesis = decode_genesis((child.home / "genesis").read_bytes())
    payer = Payer(child, genesis.chain_id)
    for _ in range(KILLS):
        with living(child):
            payer.start_again()
            judge(payer)
            work(payer, chance.uniform(*WORK_S))
    return child, payer


def test_node_killed_in_the_middle_of_its_work_loses_nothing_settled(
    worked: tuple[Child, Payer],
) -> None:
    child, payer = worked
    with living(child):
        judge(payer)
        told = child.node.get("/status")
        assert (told["why_silent"], told["damage"]) == ("", "")
    assert load_progress(child.home).ended_ms > 0, "and a scrub was over in one of its lives"


def test_node_ends_by_name_when_a_scrub_meets_damage_and_its_next_start_mends_it(
    worked: tuple[Child, Payer],
) -> None:
    child, payer = worked
    table = max((child.home / "db").glob("*.ldb"), key=lambda path: path.stat().st_size)
    raw = bytearray(table.read_bytes())
    raw[100] ^= 1  # in the first block: indices that a start does not read
    table.write_bytes(bytes(raw))
    (child.home / "scrub").unlink()
    child.start()
    assert child.process is not None
    assert child.process.wait(START_S) == FAILED, "a service manager starts it again"
    assert "restart olnode" in child.last_lines()
    with living(child):
        judge(payer)
        assert "made again" in child.log_path.read_text()
