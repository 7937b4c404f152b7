"""Every command by its own process against a real node: exit status, streams, schema, no colour.

One validator alone makes blocks, so what is sent is settled and what is refused is refused by the
ledger's own rules.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from consensus.primitives.keys import public_key
from node.config import socket_path
from node.home import make_home
from node.ledger.addresses import account_text
from node.ledger.genesis import devnet_genesis, encode_genesis
from node.ledger.wire.transactions import Transfer, encode_body, sign_transaction
from node.web.ask import Node, Unreachable

COMMAND = (sys.executable, "-c", "from node.cli.main import main; main()")
SCHEMAS = json.loads((Path(__file__).parents[1] / "vectors/cli/schemas.json").read_text())
OPEN = 10**9
SEEDS = {"node": b"\1" * 32, "validator": b"\2" * 32, "spending": b"\3" * 32}
OPERATOR = b"\4" * 32
BOB = account_text(public_key(b"\5" * 32))
START_S = 60.0
ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Ran:
    status: int
    out: str
    err: str

    @property
    def told(self) -> dict[str, Any]:
        """The one object on stdout, of a schema that we promised."""
        (line,) = self.out.splitlines()
        told: dict[str, Any] = json.loads(line)
        assert next(iter(told)) == "schema"
        assert set(SCHEMAS[told["schema"]]) <= told.keys()
        return told


def olnode(home: Path, *words: str, stdin: str = "") -> Ran:
    """One command in a process of its own, all its streams pipes."""
    ran = subprocess.run(
        [*COMMAND, "--home", str(home), *words], input=stdin, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert "\x1b" not in ran.stdout + ran.stderr, "colour in a pipe"
    assert "Traceback" not in ran.stderr
    return Ran(ran.returncode, ran.stdout, ran.stderr)


def genesis() -> bytes:
    people = {SEEDS["node"]: 100, SEEDS["spending"]: 100, OPERATOR: 1_000}
    return encode_genesis(
        devnet_genesis(
            name="cli", time_ms=time.time_ns() // 10**6,
            accounts={public_key(seed): grains * OPEN for seed, grains in people.items()},
            validators={public_key(SEEDS["validator"]): 10_000 * OPEN},
        )
    )  # fmt: skip


def new_home(home: Path) -> Path:
    chosen = {
        "profile": "devnet", "name": "n0", "roles": ["validator", "payer"],
        "p2p.listen": ["/ip4/127.0.0.1/tcp/0"],
    }  # fmt: skip
    make_home(home, genesis=genesis(), chosen=chosen, password=None, seeds=SEEDS)
    return home


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a node that runs as `olnode start`."""
    home = new_home(tmp_path_factory.mktemp("cli") / "home")
    with (home.parent / "log").open("wb") as log:
        daemon = subprocess.Popen([*COMMAND, "--home", str(home), "start"], stdout=log, stderr=log)
    try:
        wait_for_answer(home, daemon)
        first = olnode(home, "tx", "transfer", BOB, "0.000000001", "--from", "node")
        assert first.status == 0, first.err  # an idle chain makes a block in half a minute
        yield home
    finally:
        if daemon.poll() is None:
            daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(30)
        finally:
            daemon.kill()


def wait_for_answer(home: Path, daemon: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and daemon.poll() is None:
        with suppress(Unreachable):
            Node(socket_path(home)).get("/status")
            return
        time.sleep(0.1)
    pytest.fail((home.parent / "log").read_text("utf-8", "replace")[-4_000:])


READS = [
    ("status",),
    ("earnings", "--account", BOB),
    ("earnings", "--since", "1", "--by", "day"),
    ("query", "account", account_text(public_key(OPERATOR))),
    ("query", "block"),
    ("query", "models"),
    ("query", "datanets"),
    ("query", "validators"),
    ("query", "params"),
    ("peers", "list"),
    ("keys", "list"),
    ("keys", "show", "node"),
    ("config", "show"),
    ("config", "validate"),
    ("version",),
]


@pytest.mark.parametrize("words", READS, ids=" ".join)
def test_read_tells_people_and_programs_on_stdout_alone(home: Path, words: tuple[str, ...]) -> None:
    for_people = olnode(home, *words)
    for_programs = olnode(home, *words, "-o", "json")
    assert (for_people.status, for_people.err) == (0, "")
    assert (for_programs.status, for_programs.err) == (0, "")
    assert for_people.out.strip()
    noun = words[0] if words[0] in ("status", "earnings", "version") else ".".join(words[:2])
    assert for_programs.told["schema"] == f"olnode.{noun}/1"


def test_transfer_is_settled_and_found_again(home: Path, tmp_path: Path) -> None:
    sent = olnode(home, "tx", "transfer", BOB, "1.5", "--from", "spending", "-o", "json")
    assert (sent.status, sent.err) == (0, "")
    assert (sent.told["state"], sent.told["code"]) == ("settled", 0)
    found = olnode(home, "query", "account", BOB, "-o", "json").told
    assert int(found["balance"]) == 1_500_000_000 + 1
    for words in (("tx", "show"), ("query", "tx")):
        shown = olnode(home, *words, sent.told["transaction"], "-o", "json").told
        assert (shown["type_name"], shown["height"]) == ("Transfer", sent.told["height"])


def test_what_is_proved_is_verified_without_the_node(home: Path, tmp_path: Path) -> None:
    """Each file from the running node, then by the genesis alone; one there already is kept."""
    sent = olnode(home, "tx", "transfer", BOB, "0.5", "--from", "spending", "-o", "json").told
    height = str(sent["height"])
    subjects = [
        ("account", BOB, "holds"),
        ("account", BOB, "holds", "--height", height),
        ("channel", "00" * 32, "is absent"),
        ("contribution", "1", "is absent"),
        ("tx", sent["transaction"], "Transfer of "),
    ]
    for number, (kind, subject, shows, *more) in enumerate(subjects):
        file = tmp_path / f"{number}.proof"
        made = olnode(home, "prove", kind, subject, str(file), *more, "-o", "json")
        assert made.status == 0, made.err
        assert shows in " ".join(made.told["shown"])
        assert made.told["bytes"] == file.stat().st_size
        checked = olnode(tmp_path, "verify", str(file), "--genesis", str(home / "genesis"))
        assert (checked.status, checked.out.endswith("VERIFIED\n")) == (0, True)
    again = olnode(home, "prove", "account", BOB, str(tmp_path / "0.proof"))
    assert (again.status, "is there already" in again.err) == (2, True)
    changed = olnode(
        home, "prove", "account", BOB, str(tmp_path / "no"), "--height", "1", "-o", "json"
    )
    assert (changed.status, changed.told["code"]) == (1, "ledger.record_changed")
    assert not (tmp_path / "no").exists()


def test_signed_elsewhere_is_sent_here(home: Path, tmp_path: Path) -> None:
    file = str(tmp_path / "tx")
    words = ("tx", "transfer", BOB, "1", "--from", "spending", "--offline", file)
    made = olnode(home, *words)
    assert (made.status, "next: olnode tx send" in made.err) == (0, True)
    sent = olnode(home, "tx", "send", file)
    assert (sent.status, sent.out.startswith("done in block ")) == (0, True)
    again = olnode(home, "tx", "send", file)
    assert (again.status, "nonce" in again.err) == (1, True)


REFUSED = [  # words, exit status, code
    (("tx", "transfer", BOB, "100000", "--from", "spending"), 5, "tx.insufficient"),
    (("tx", "transfer", BOB, "1", "--from", "spending", "--max-fee", "5000"), 5, "tx.cannot_pay"),
    (("tx", "transfer", BOB, "1", "--from", "spending", "--max-fee", "0"), 1, "tx.max_fee"),
    (("tx", "close-channel", "00" * 32, "--from", "spending"), 1, "tx.not_found"),
    (("query", "account", BOB.replace("1", "2", 1)), 2, None),
    (("query", "block", "999999"), 1, "block.not_found"),
    (("query", "tx", "00" * 32), 1, "transaction.not_found"),
    (("query", "receipt", "00" * 32), 1, "receipt.not_found"),
    (("infer", "no-such-model", "why?"), 1, "payer.unknown_model"),
    (("infer", "no-such-model@7", "why?"), 1, "payer.unknown_model"),
]


@pytest.mark.parametrize(("words", "status", "code"), REFUSED, ids=lambda x: str(x)[:40])
def test_refusal_has_its_code_and_exit_status(
    home: Path, words: tuple[str, ...], status: int, code: str | None
) -> None:
    ran = olnode(home, *words, "-o", "json")
    assert ran.status == ran.told["exit"] == status
    assert code is None or ran.told["code"] == code
    assert ran.err.startswith("olnode: ")


def test_transaction_of_another_chain_is_refused(home: Path, tmp_path: Path) -> None:
    """Its signature binds the chain: what is signed for a test moves nothing of value."""
    body = encode_body(
        public_key(OPERATOR), 0, OPEN, time.time_ns() // 10**6 + 600_000,
        Transfer(public_key(OPERATOR), 1, b""),
    )  # fmt: skip
    (tmp_path / "tx").write_bytes(sign_transaction(b"\7" * 32, OPERATOR, body))
    ran = olnode(home, "tx", "send", str(tmp_path / "tx"), "-o", "json")
    assert (ran.status, ran.told["code"]) == (1, "tx.signature")
    (tmp_path / "junk").write_bytes(b"\x90")
    ran = olnode(home, "tx", "send", str(tmp_path / "junk"), "-o", "json")
    assert (ran.status, ran.told["code"].startswith("tx.")) == (1, True)


def test_second_process_on_one_home_is_refused_and_the_first_goes_on(home: Path) -> None:
    ran = olnode(home, "start")
    assert ran.status == 1
    assert re.search(r"another olnode uses this directory: .*\(pid \d+\)", ran.err)
    assert "mend: olnode stop" in ran.err
    assert olnode(home, "status", "--ready").status == 0


def test_json_stays_whole_where_the_reader_closes_the_pipe_early(home: Path) -> None:
    line = " ".join([sys.executable, "-c", f"'{COMMAND[2]}'", "--home", str(home)])
    for words in ("query params", "query block 1 -o json"):
        ran = subprocess.run(
            ["sh", "-c", f"{line} {words} | head -c 1"], capture_output=True, check=False
        )
        assert (len(ran.stdout), ran.stderr) == (1, b"")


# --- homes that cannot be started


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return new_home(tmp_path / "home")


def test_start_without_a_home_says_how_to_make_one(tmp_path: Path) -> None:
    ran = olnode(tmp_path / "none", "start")
    assert (ran.status, ran.out) == (3, "")
    assert "mend: olnode init" in ran.err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[p2p]\nmdsn = true\n", 'unknown key "mdsn", did you mean "mdns"?'),
        ("[p2p\n", "config.toml"),
        ("[p2p]\nmax_connections = 'many'\n", "max_connections"),
        ("\x00", "config.toml"),
    ],
)
def test_damaged_config_is_78_and_nothing_is_touched(other: Path, text: str, what: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in other.rglob("*")}
    (other / "config.toml").write_text(text)
    for words in (("start",), ("status",), ("keys", "list"), ("config", "validate")):
        ran = olnode(other, *words)
        assert ran.status == 78, words
        assert what in ran.err
        assert ran.out == ""
    after = {path: path.stat().st_mtime_ns for path in other.rglob("*")}
    assert {path for path in before if before[path] != after.get(path)} == {other / "config.toml"}


def test_damaged_block_log_ends_a_start_with_seven(other: Path) -> None:
    (other / "blocks" / "000001").write_bytes(b"")
    (other / "blocks" / "000003").write_bytes(b"")
    ran = olnode(other, "start")
    assert ran.status == 7
    assert "a segment is missing" in ran.err
    assert "mend: " in ran.err


def test_damaged_key_file_is_told_by_its_name(other: Path) -> None:
    (other / "keystore" / "node.json").write_text("{")
    for words in (("keys", "list"), ("start",)):
        ran = olnode(other, *words)
        assert (ran.status, "node" in ran.err, ran.out) == (1, True, "")


def test_asking_a_node_that_is_not_there_is_four(other: Path) -> None:
    for words in (("status",), ("stop",), ("query", "block"), ("infer", "m", "p"), ("earnings",)):
        ran = olnode(other, *words)
        assert (ran.status, ran.out) == (4, ""), words
        assert "mend: olnode start" in ran.err


def test_node_ends_in_order_and_keeps_what_was_settled(tmp_path: Path) -> None:
    """By `olnode stop`, by the service manager, by Ctrl-C: each ends with 0 and loses nothing."""
    home = new_home(tmp_path / "home")
    for how in ("stop", "SIGTERM", "SIGINT"):
        with (home.parent / "log").open("wb") as log:
            daemon = subprocess.Popen(
                [*COMMAND, "--home", str(home), "start"], stdout=log, stderr=log
            )
        try:
            wait_for_answer(home, daemon)
            if how == "stop":
                assert olnode(home, "tx", "transfer", BOB, "1", "--from", "node").status == 0
            found = olnode(home, "query", "account", BOB, "-o", "json").told
            assert found["balance"] == str(OPEN)
            if how == "stop":
                ran = olnode(home, "stop", "-o", "json")
                assert (ran.status, ran.err, ran.told["stopped"]) == (0, "", True)
            else:
                os.kill(daemon.pid, getattr(signal, how))
            assert daemon.wait(30) == 0
        finally:
            daemon.kill()
        assert not socket_path(home).exists()
