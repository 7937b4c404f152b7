"""Commands called as a program calls them, on a home of a devnet: for all tests of cli."""

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from bundle_kit import Party, party
from chain_kit import accusation
from unit.web.behind import ALICE, ID, Behind, served

from consensus.primitives.digest import signing_bytes
from consensus.primitives.keys import public_key
from node.cli.main import run
from node.ledger.addresses import account_of
from node.ledger.genesis import encode_genesis, make_genesis
from node.ledger.parameters import DAY_MS
from node.ledger.wire import openings
from node.ledger.wire.receipts import COMPLETE, decode_receipt
from node.ledger.wire.transactions import (
    FraudProof,
    Payload,
    coop_body,
    decode_transaction,
    encode_fraud,
)
from node.web import answers

SEED = b"\7" * 32
GENESIS = encode_genesis(
    make_genesis(
        name="test",
        time_ms=1,
        accounts={public_key(SEED): 10**9},
        validators={public_key(SEED): 10**13},
    )
)

SCHEMAS = json.loads((Path(__file__).parents[2] / "vectors/cli/schemas.json").read_text())

HASH = "ab" * 32
RECORDS = b'{"text":"one"}\n{"text":"two"}\n'

DATANET = answers.DatanetAnswer(
    1, "facts", ALICE, 2, 1, 3, 1, "open", 1, ("CC0-1.0",), 10_000, DAY_MS
)
ACCEPTED = answers.ContributionAnswer(1, ALICE, ID, 3, "accepted", 0)
SNAPSHOT = answers.SnapshotAnswer(1, "facts", ID, 1, 3, 1)
MODEL = answers.ModelAnswer(
    1, "facts-1", 1, ALICE, ID, ID, "facts", 3, 10, 20, 10**6, 0, 0, "active", 0
)

PAYER, PROVIDER = party("payer"), party("provider")
PAID = 7 * 10**9
CHANNEL = answers.ChannelAnswer(
    bytes.fromhex(HASH), PAYER.key, PAYER.key, PROVIDER.key, PROVIDER.key, PAYER.key,
    10**10, PAID, "open", 1, 0,
)  # fmt: skip

SERVER = answers.ProviderAnswer(ALICE, ALICE, ALICE, ALICE, "active", True, 7, 10**9, 1, 0)

FRAUD = encode_fraud(
    FraudProof(
        openings.NORM,
        openings.encode_opening(openings.VersionSubject(1, 1)),
        openings.encode_opening(openings.NormOpened(b"header", bytes(1_044), (b"\1" * 32,))),
    )
)

Capture = pytest.CaptureFixture[str]


def told(capsys: Capture, home: Path, *words: str, status: int = 0) -> dict[str, Any]:
    """The object that a command prints with -o json."""
    assert run(["--home", str(home), "-o", "json", *words]) == status
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    promised = SCHEMAS[answer["schema"]]
    assert set(promised) <= answer.keys(), "a field that is gone raises the schema's number"
    return answer


async def asked(
    capsys: Capture, behind: Behind, home: Path, *words: str, status: int = 0
) -> dict[str, Any]:
    """The same with a daemon behind the home's socket, started and stopped for this call."""
    behind.drain = trio.Event()
    async with served(behind, home / "run"):
        return await trio.to_thread.run_sync(lambda: told(capsys, home, *words, status=status))


def ledger_of(*accounts: bytes, **parts: Any) -> Behind:
    """A node whose ledger has one of each thing, and money on these accounts."""
    rows = {"datanets": (DATANET,), "contributions": (ACCEPTED,)}
    more = {"snapshots": (SNAPSHOT,), "models": (MODEL,), "channel": CHANNEL, "provider": SERVER}
    return Behind(**{**rows, **more, "accounts": {ALICE, *accounts}, **parts})


def consent_of(side: str, who: Party, paid: int = PAID) -> bytes:
    """What `coop-close --sign-only` writes for a side of CHANNEL."""
    message = signing_bytes(b"coop", ID, coop_body(CHANNEL.channel, paid))
    told = {"channel": HASH, "paid": str(paid), "side": side}
    return json.dumps({**told, "signature": who.sign(message).hex()}).encode()


def receipt_of(status: str) -> bytes:
    """What `infer -o json` printed of one request: one of two receipts that a provider signed."""
    pair = accusation(ID, CHANNEL.channel, PROVIDER)
    two = {"partial": pair[:2], "complete": pair[2:]}
    if decode_receipt(pair.receipt_a).status == COMPLETE:
        two = {"partial": pair[2:], "complete": pair[:2]}
    body, signature = two[status]
    receipt = {"body": body.hex(), "signature": signature.hex()}
    return json.dumps({"schema": "olnode.infer/1", "answer": "", "receipt": receipt}).encode()


def sent(behind: Behind) -> list[bytes]:
    """The transactions that reached the node."""
    return [one for one in behind.asked if isinstance(one, bytes)]


def offered(behind: Behind) -> list[tuple[int, bytes, Path]]:
    """What the node was asked to serve to peers."""
    return [one for one in behind.asked if isinstance(one, tuple) and isinstance(one[-1], Path)]


async def signed(capsys: Capture, home: Path, *words: str) -> tuple[Payload, bytes]:
    """(what the wire decodes, who signed) of a call that may sign with any key of the home."""
    keys = [account_of(key["account"]) for key in told(capsys, home, "keys", "list")["keys"]]
    asked_of = ledger_of(*keys)
    await asked(capsys, asked_of, home, "tx", *words)
    (raw,) = sent(asked_of)
    tx = decode_transaction(raw)
    return tx.payload, tx.sender


def key_of(capsys: Capture, home: Path, name: str) -> bytes:
    return account_of(told(capsys, home, "keys", "show", name)["account"])
