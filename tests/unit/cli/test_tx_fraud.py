"""`olnode tx fraud-proof`: the proof that a node kept, and files that accuse nobody."""

from pathlib import Path

import pytest
from unit.cli.calls import FRAUD, Capture, asked, key_of, ledger_of, sent, signed

from node.ledger.wire.transactions import decode_fraud, encode_fraud

PROOF = decode_fraud(FRAUD)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "fraud"
    path.write_bytes(FRAUD)
    return path


async def test_proof_is_sent_as_it_was_kept_by_the_spending_key(
    home: Path, capsys: Capture, file: Path
) -> None:
    payload, sender = await signed(capsys, home, "fraud-proof", str(file))
    assert payload == PROOF
    assert sender == key_of(capsys, home, "spending")


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"", "accuses nobody: fraud.malformed"),
        (b"\x90", "accuses nobody: fraud.malformed"),
        (FRAUD + b"\0", "accuses nobody: fraud."),
        (encode_fraud(PROOF._replace(kind=5)), "accuses nobody: kind 5 is not settled yet"),
        (encode_fraud(PROOF._replace(subject=b"\x90")), "accuses nobody: opening.malformed"),
        (encode_fraud(PROOF._replace(opened=b"")), "accuses nobody: opening.malformed"),
    ],
)
async def test_file_that_holds_no_proof_is_told(
    home: Path, alice: bytes, capsys: Capture, file: Path, raw: bytes, what: str
) -> None:
    file.write_bytes(raw)  # noqa: ASYNC240
    asked_of = ledger_of(alice)
    answer = await asked(capsys, asked_of, home, "tx", "fraud-proof", str(file), status=2)
    assert what in answer["what"]
    assert sent(asked_of) == []
