"""A validator of a small chain as its own `olnode start`, and what an operator can see of it.

It decides blocks alone: the other validator has a fiftieth of the power, and its key is an
attacker's. A provider that nobody runs is on the ledger too, for offers to be forged of.
"""

import json
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import pytest
from bundle_kit import Party, party

from node.devnet.children import Child
from node.home import make_home
from node.ledger import tables
from node.ledger.genesis import decode_genesis, devnet_genesis, encode_genesis
from node.ledger.wire import transactions as wire
from node.peering.blobstore import CONTENT, BlobStore
from node.web.ask import Node, Refusal, Unreachable

OPEN: Final = 10**9
MIB: Final = 1 << 20
START_S: Final = 60.0
ANSWER_S: Final = 15.0
GUILT_S: Final = 5.0  # until points are seen: what floods is judged in its turn
FORESEEN: Final = {  # what a node says that is attacked, beside plain events
    "guarded", "peer banned", "bad consensus frame", "malformed frame from a validator",
}  # fmt: skip
TRACE_CHARS: Final = 20_000
FEE_MAX: Final = 10_000_000
VALID_MS: Final = 600_000
SENDERS: Final = 2_500  # each sends once: a lost transaction must not hold up the next one
BLOB: Final = b"\7" * (3 * MIB)
BLOB_IDENTITY: Final = bytes(32)

NODE, VALIDATOR = party("besieged node"), party("besieged validator")
TRAITOR, PROVIDER = party("traitor validator"), party("provider of nothing")
CREATOR, PAYER, LEAVER = party("creator"), party("payer"), party("payer who leaves")

SEEDS: Final = {"node": NODE.seed, "validator": VALIDATOR.seed}


def sender(number: int) -> Party:
    return party(f"sender {number}")


def genesis() -> bytes:
    accounts = {sender(number).key: OPEN for number in range(SENDERS)}
    accounts[PROVIDER.key] = 10 * OPEN
    accounts |= {who.key: 100 * OPEN for who in (NODE, CREATOR, PAYER, LEAVER)}
    validators = {VALIDATOR.key: 500_000 * OPEN, TRAITOR.key: 10_000 * OPEN}
    made = devnet_genesis(
        name="siege", time_ms=time.time_ns() // 1_000_000, accounts=accounts, validators=validators
    )
    return encode_genesis(made)


class Besieged:
    """The process, from `start` on; its owner kills `child`."""

    foreseen = frozenset(FORESEEN)

    def __init__(
        self,
        folder: Path,
        roles: tuple[str, ...] = ("validator",),
        settings: Mapping[str, object] = MappingProxyType({"engine.kind": "none"}),
    ) -> None:
        self.folder, raw = folder, genesis()
        self.chain_id = decode_genesis(raw).chain_id
        home = folder / "n0"
        chosen: dict[str, Any] = {
            "profile": "devnet", "name": "n0", "roles": list(roles), "log.format": "json",
            "p2p.listen": ["/ip4/127.0.0.1/tcp/0"], "consensus.block_interval_ms": 100,
            "storage.snapshot_every": 50, **settings,
        }  # fmt: skip
        make_home(home, genesis=raw, chosen=chosen, password=None, seeds=SEEDS)
        file = folder / "file"
        file.write_bytes(BLOB)
        (entry,) = BlobStore(home / "blobs", 1 << 30).add_folder(CONTENT, BLOB_IDENTITY, file)
        self.blob_id = entry.blob_id
        self.child = Child("n0", home, roles)
        self._read_bytes = 0

    def start(self) -> None:
        self.child.start()
        until_s = time.monotonic() + START_S
        while time.monotonic() < until_s and self.is_alive():
            with suppress(Unreachable, Refusal):
                self.child.node.get("/status")
                break
            time.sleep(0.05)
        else:
            pytest.fail(self.child.last_lines())
        listening = next(e for e in self.events() if e["event"] == "listening")
        (self.address,) = listening["addresses"]
        self.pid = self.child.process.pid if self.child.process else 0

    def found_provider(self, who: Party = PROVIDER) -> None:
        """Put it on the ledger."""
        register = wire.RegisterProvider(who.key, who.key)
        self.settle(who, register, wire.Bond(tables.ROLE_PROVIDER, who.key, 2 * OPEN))

    def settle(self, who: Party, *payloads: Any) -> None:
        """The first transactions of an account, in a block and done."""
        raws = [self.transaction(who, payload, nonce) for nonce, payload in enumerate(payloads)]
        for raw in raws:
            self.child.node.post_bytes("/ledger/transactions", raw)
        sent = [wire.decode_transaction(raw).tx_id for raw in raws]
        assert self.count_settled(sent, START_S) == len(sent)
        for tx_id in sent:
            assert self.child.node.get(f"/ledger/transactions/{tx_id.hex()}")["code"] == 0

    def transaction(self, who: Party, payload: Any, nonce: int = 0) -> bytes:
        until_ms = time.time_ns() // 1_000_000 + VALID_MS
        body = wire.encode_body(who.key, nonce, FEE_MAX, until_ms, payload)
        return wire.sign_transaction(self.chain_id, who.seed, body)

    # --- what can be seen from outside

    def is_alive(self) -> bool:
        return self.child.process is not None and self.child.process.poll() is None

    def events(self) -> list[dict[str, Any]]:
        """What it logged since the last time; whatever is no event is one of level `stray`."""
        with self.child.log_path.open("rb") as file:
            file.seek(self._read_bytes)
            raw = file.read()
        whole, newline, _ = raw.rpartition(b"\n")
        self._read_bytes += len(whole) + len(newline)
        return [_event(line) for line in whole.decode("utf-8", "replace").splitlines()]

    def status(self) -> dict[str, Any]:
        """Fails with what every thread was doing when it has no answer in time."""
        try:
            return Node(self.child.node.path, timeout_s=ANSWER_S).get("/status")
        except Unreachable:
            os.kill(self.pid, signal.SIGABRT)
            self.child.process.wait()
            pytest.fail(self.child.log_path.read_text(encoding="utf-8")[-TRACE_CHARS:])

    def guilty(self) -> set[str]:
        """Peer ids that are banned, or connected with points against them."""
        told = self.child.node.get("/peers")
        found = {ban["peer_id"] for ban in told["bans"]}
        return found | {peer["peer_id"] for peer in told["peers"] if peer["score"] > 0}

    def newly_guilty(self, before: set[str]) -> set[str]:
        """Who has points or is banned and was not, as soon as anybody is."""
        until_s = time.monotonic() + GUILT_S
        while not (found := self.guilty() - before) and time.monotonic() < until_s:
            time.sleep(0.1)
        return found

    def unforeseen(self) -> list[dict[str, Any]]:
        """What it logged since the last time that no attack explains."""
        told = self.events()
        return [e for e in told if e["level"] != "info" and e["event"] not in self.foreseen]

    def count_settled(self, transactions: list[bytes], within_s: float) -> int:
        """How many of them a block has, at the latest after so long."""
        waiting, until_s = list(transactions), time.monotonic() + within_s
        while waiting and time.monotonic() < until_s:
            waiting = [tx_id for tx_id in waiting if not self._is_settled(tx_id)]
            time.sleep(0.05)
        return len(transactions) - len(waiting)

    def _is_settled(self, tx_id: bytes) -> bool:
        with suppress(Refusal):
            told = self.child.node.get(f"/ledger/transactions/{tx_id.hex()}")
            return bool(told["state"] == "settled")
        return False

    def resident_mb(self, which: str = "VmRSS") -> float:
        """`VmRSS` now, `VmHWM` at most since `forget_peak`."""
        lines = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(which))

    def forget_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5", encoding="ascii")

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


def _event(line: str) -> dict[str, Any]:
    with suppress(ValueError):
        told = json.loads(line)
        if isinstance(told, dict) and "event" in told:
            return told
    return {"event": line, "level": "stray"}
