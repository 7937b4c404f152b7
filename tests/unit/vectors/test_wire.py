"""Wire bytes are those that we promised: today's code gives each vector and reads it back."""

import hashlib
import json
from pathlib import Path
from typing import Any

import msgpack
import pytest
from vectors.agreement import agreement_examples
from vectors.example import CHAIN, Example, from_json, told
from vectors.make import COMMAND, HERE, wire_text
from vectors.market import market_examples

from consensus.primitives.keys import is_signed_by, public_key
from node.ledger.wire.transactions import TYPES

EXAMPLES: dict[str, Example] = market_examples() | agreement_examples()
TEXT = (HERE / "wire.json").read_text(encoding="utf-8")
VECTORS: dict[str, Any] = json.loads(TEXT)
PROMISED: dict[str, dict[str, Any]] = VECTORS["objects"]
CHANGED = f"new bytes? if they are meant: `{COMMAND}`, and tell it in CHANGELOG.md"
SIGNED = [name for name, row in PROMISED.items() if "signed" in row]


def test_there_is_a_vector_for_every_example() -> None:
    assert list(PROMISED) == list(EXAMPLES), CHANGED
    assert VECTORS["chain_id"] == CHAIN.hex()


def test_every_type_of_transaction_has_its_vector() -> None:
    """Mend: an example in tests/vectors/market.py, then the generator."""
    missing = {row.make.__name__ for row in TYPES} - {name.removeprefix("tx_") for name in PROMISED}
    assert missing == set(), f"no vector for {missing}: add an example, then `{COMMAND}`"


@pytest.mark.parametrize("name", EXAMPLES)
def test_todays_code_gives_the_promised_bytes(name: str) -> None:
    assert told(EXAMPLES[name]) == PROMISED.get(name), f"{name}: {CHANGED}"


@pytest.mark.parametrize("name", PROMISED)
def test_promised_bytes_are_read_back_and_written_again(name: str) -> None:
    raw, example = bytes.fromhex(PROMISED[name]["encoding"]), EXAMPLES[name]
    assert example.decode(raw) == example.value
    assert example.encode(example.decode(raw)) == raw


@pytest.mark.parametrize("name", [name for name, row in PROMISED.items() if "fields" in row])
def test_fields_packed_by_any_msgpack_are_the_encoding(name: str) -> None:
    """What another implementation needs: nothing of ours, only arrays, bytes and integers."""
    packed = msgpack.packb(from_json(PROMISED[name]["fields"]), use_bin_type=True)
    assert packed.hex() == PROMISED[name]["encoding"]


@pytest.mark.parametrize("name", SIGNED)
def test_signatures_are_over_tag_chain_and_body(name: str) -> None:
    row = PROMISED[name]["signed"]
    message, signature = bytes.fromhex(row["message"]), bytes.fromhex(row["signature"])
    assert message.startswith(b"olnode/1/" + row["tag"].encode() + b"\0" + CHAIN)
    key = public_key(bytes.fromhex(row["seed"]))
    assert is_signed_by(key, message, signature)
    assert not is_signed_by(key, message.replace(CHAIN, bytes(32)), signature)


def test_each_tag_and_no_other_is_signed_with() -> None:
    tags = {PROMISED[name]["signed"]["tag"] for name in SIGNED}
    assert tags == {"voucher", "receipt", "bundle", "offer", "tx", "vote", "proposal"}


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("order", "order_hash"),
        ("receipt", "receipt_id"),
        ("credits", "attribution_root"),
        ("bundle_header", "bundle_hash"),
        ("index_header", "index_root"),
        ("evidence_votes", "evidence_id"),
        ("light_attack", "evidence_id"),
        ("certificate", "last_commit_hash"),
    ],
)
def test_plain_hashes_are_sha256_of_the_encoding(name: str, digest: str) -> None:
    raw = bytes.fromhex(PROMISED[name]["encoding"])
    assert hashlib.sha256(raw).hexdigest() == PROMISED[name][digest]


def test_a_transaction_is_named_by_its_body_and_not_by_its_signature() -> None:
    body, _ = from_json(PROMISED["tx_Transfer"]["fields"])
    assert hashlib.sha256(body).hexdigest() == PROMISED["tx_Transfer"]["tx_id"]


@pytest.mark.parametrize("name", ["section", "payout_account", "tx_leaf", "row_leaf"])
def test_leaves_are_hashed_as_leaves(name: str) -> None:
    raw = bytes.fromhex(PROMISED[name]["encoding"])
    assert hashlib.sha256(b"\0" + raw).hexdigest() == PROMISED[name]["leaf_hash"]


def test_the_file_is_what_the_generator_writes() -> None:
    assert wire_text() == TEXT, CHANGED


def test_a_changed_byte_of_the_file_would_be_seen(tmp_path: Path) -> None:
    """The tester tested: a vector that differs in one digit is not what the code gives."""
    row = dict(PROMISED["receipt"])
    last = row["encoding"][-1]
    row["encoding"] = row["encoding"][:-1] + ("0" if last != "0" else "1")
    assert told(EXAMPLES["receipt"]) != row
