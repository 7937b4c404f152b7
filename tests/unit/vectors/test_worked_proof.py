"""The worked proof of ARCHITECTURE.md is the file that the code makes, and it proves its payout."""

import hashlib
import re

import msgpack
import pytest
from vectors.make import COMMAND, DOCUMENT, document_text
from vectors.worked_proof import BLOCK_ID, LEAF, TRUST, VALIDATOR, lines, proof

from consensus.primitives.errors import Invalid
from consensus.primitives.keys import is_signed_by
from node import light
from node.ledger.proofs import encode_proof

LINE = re.compile(r" *(\d+)  ([0-9a-f]+)(?: {2,}\S.*)?")


def document_lines() -> list[str]:
    _, worked, _ = document_text(DOCUMENT.read_text(encoding="utf-8"))
    return worked.splitlines()


def document_bytes() -> bytes:
    found = [LINE.fullmatch(line) for line in document_lines()]
    assert all(found)
    return bytes.fromhex("".join(match[2] for match in found if match))


def test_the_document_shows_what_the_code_makes() -> None:
    assert document_lines() == lines(), f"`{COMMAND}` writes it anew"


def test_offsets_count_the_bytes() -> None:
    at = 0
    for line in document_lines():
        match = LINE.fullmatch(line)
        assert match
        assert int(match[1]) == at
        at += len(match[2]) // 2
    assert at == len(encode_proof(proof()))


def test_the_documents_bytes_prove_an_eighth_of_an_open() -> None:
    report = light.verify_file(document_bytes(), TRUST)
    (checked,) = report.proofs
    assert checked.shown == LEAF
    assert LEAF.amount == 125_000_000
    assert checked.block_id == BLOCK_ID


def sha(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def climb(here: bytes, index: int, size: int, path: list[bytes]) -> bytes:
    """RFC 6962 upwards: an odd node at the right edge moves up as it is."""
    rest = iter(path)
    while size > 1:
        if index % 2:
            here = sha(b"\1", next(rest), here)
        elif index + 1 < size:
            here = sha(b"\1", here, next(rest))
        index, size = index // 2, (size + 1) // 2
    assert next(rest, None) is None
    return here


def test_whoever_follows_the_document_by_hand_comes_to_the_signature() -> None:
    """The steps of section 7, with msgpack, SHA-256 and Ed25519 alone."""
    _, _, chain_id, height, field, value, field_path, body, link = msgpack.unpackb(document_bytes())
    leaf, index, size, path = msgpack.unpackb(body)
    assert climb(sha(b"\0", leaf), index, size, path) == value
    block_id = climb(sha(b"\0", bytes([field]), value), field, 18, field_path)
    kind, at, round, signed_id, bitmap, signature = msgpack.unpackb(link)
    assert (at, signed_id, bitmap) == (height, block_id, b"\1")
    vote = bytes([kind]) + at.to_bytes(8) + round.to_bytes(4) + signed_id
    assert is_signed_by(VALIDATOR.key, b"olnode/1/vote\0" + chain_id + vote, signature)
    _, _, _, _, weight, total, part, amount, _ = msgpack.unpackb(leaf)
    assert amount == part * int.from_bytes(weight) // int.from_bytes(total)


@pytest.mark.parametrize("flip", [1, 0x80])
def test_no_byte_of_it_can_be_changed(flip: int) -> None:
    """But for the count of leaves, which is told and not bound: what is shown stays the same."""
    raw = document_bytes()
    for place in range(len(raw)):
        damaged = raw[:place] + bytes([raw[place] ^ flip]) + raw[place + 1 :]
        report = light.examine(damaged, TRUST)
        assert isinstance(report.refusal, Invalid) or report.proofs[0].shown == LEAF, place
