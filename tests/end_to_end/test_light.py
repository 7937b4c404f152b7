"""A light client of a real node: headers over libp2p, then a proof checked from them, offline."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundle_kit import party

from node.home import make_home
from node.ledger.addresses import account_text
from node.ledger.genesis import devnet_genesis, encode_genesis
from node.ledger.wire.transactions import Transfer, encode_body, sign_transaction
from node.storage.lightfile import LightFile
from node.web.ask import Node, Refusal, Unreachable
from p2p.peers import peer_id_text

OPEN = 10**9
START_S = 30.0
VALIDATOR, FAUCET = party("light end to end validator"), party("light end to end faucet")
COMMAND = [sys.executable, "-P", "-c", "from node.cli.main import main; main()"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def genesis() -> Any:
    return devnet_genesis(
        name="light",
        time_ms=time.time_ns() // 1_000_000 - 1_000,
        accounts={FAUCET.key: 1_000 * OPEN, VALIDATOR.key: 100 * OPEN},
        validators={VALIDATOR.key: 20 * OPEN},
    )


class Full:
    """A full node as a process; the validator, or one that follows it and bears witness."""

    def __init__(
        self, home: Path, genesis_raw: bytes, name: str, bootstrap: tuple[str, ...] = ()
    ) -> None:
        self.port, self.log_path = free_port(), home.with_suffix(".log")
        peer = party(f"light end to end {name}")
        self.address = f"/ip4/127.0.0.1/tcp/{self.port}/p2p/{peer_id_text(peer.key)}"
        chosen = {
            "profile": "devnet",
            "roles": ["payer" if bootstrap else "validator"],
            "p2p.listen": [f"/ip4/127.0.0.1/tcp/{self.port}"],
            "p2p.bootstrap": list(bootstrap),
        }
        seeds = {"node": peer.seed, "validator": VALIDATOR.seed}
        made = make_home(home, genesis=genesis_raw, chosen=chosen, password=None, seeds=seeds)
        self.node = Node(made.settings.socket_path, timeout_s=10)
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "--home", str(home), "start"], stdout=log, stderr=log
            )

    def wait_for_height(self, height: int) -> None:
        end_s = time.monotonic() + START_S
        while time.monotonic() < end_s:
            try:
                if self.node.get("/status")["height"] >= height:
                    return
            except (Unreachable, Refusal):
                assert self.process.poll() is None, self.log_path.read_text("utf-8")
            time.sleep(0.05)
        raise AssertionError(f"no height {height}: " + self.log_path.read_text("utf-8"))

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        finally:
            self.process.kill()


class Running:
    """A chain of one validator, a witness beside it, and the home of a light client."""

    def __init__(self, folder: Path) -> None:
        self.genesis = genesis()
        raw = encode_genesis(self.genesis)
        self.full = Full(folder / "full", raw, "node")
        self.witness = Full(folder / "witness", raw, "witness", (self.full.address,))
        self.light_home = folder / "light"
        chosen = {"profile": "devnet", "roles": ["payer"]}
        make_home(self.light_home, genesis=raw, chosen=chosen, password=None)

    @property
    def sources(self) -> tuple[str, ...]:
        return ("--witness", self.full.address, "--witness", self.witness.address)

    def pay(self, nonce: int) -> None:
        body = encode_body(
            FAUCET.key,
            nonce=nonce,
            max_fee=OPEN,
            valid_until_ms=time.time_ns() // 1_000_000 + 60_000,
            payload=Transfer(VALIDATOR.key, OPEN, b""),
        )
        raw = sign_transaction(self.genesis.chain_id, FAUCET.seed, body)
        self.full.node.post_bytes("/ledger/transactions", raw)

    def light(self, *words: str) -> tuple[int, dict[str, Any]]:
        """(exit status, the object printed) of a command in the light client's home."""
        run = subprocess.run(
            [*COMMAND, "--home", str(self.light_home), "-o", "json", *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert run.stdout, run.stderr
        return run.returncode, json.loads(run.stdout)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    made = Running(tmp_path_factory.mktemp("light"))
    try:
        made.full.wait_for_height(0)
        made.pay(0)
        made.witness.wait_for_height(1)
        yield made
    finally:
        made.witness.stop()
        made.full.stop()


def test_light_client_follows_real_nodes_and_verifies_offline(running: Running) -> None:
    """From the genesis, again from its file, and a proof checked by what it kept."""
    status, first = running.light("light", *running.sources, "--once")
    assert (status, first["schema"]) == (0, "olnode.light/1")
    assert first["height"] >= 1
    running.pay(1)
    running.witness.wait_for_height(first["height"] + 1)
    status, second = running.light("light", *running.sources, "--once")
    assert (status, second["kept"]) == (0, first["kept"] + 1)
    assert len(second["confirmed"]) == 1
    blocks = LightFile(running.light_home, running.genesis.chain_id).load()
    assert blocks[-1].block_id.hex() == second["block_id"]
    checkpoint = running.witness.node.get("/light/checkpoint")
    assert checkpoint == {name: second[name] for name in ("height", "block_id")}

    account = account_text(FAUCET.key)
    raw = running.full.node.get_bytes(f"/light/accounts/{account}/proof")
    (running.light_home / "proof").write_bytes(raw)
    status, verdict = running.light("verify", str(running.light_home / "proof"))
    assert (status, verdict.get("verified")) == (0, True)
