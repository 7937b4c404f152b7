"""`keys export-validator` and `import-validator`: one key, one home that signs."""

import json
from pathlib import Path
from typing import Any

import pytest

from consensus.primitives.digest import sha256
from consensus.primitives.keys import public_key
from consensus.records import SignerRecord
from node.cli.main import run
from node.ledger.genesis import encode_genesis, make_genesis
from node.storage.journal import open_journal
from node.storage.lock import lock_home
from node.storage.signer import CannotSign

SEED = b"\7" * 32
SCHEMAS = json.loads((Path(__file__).parents[2] / "vectors/cli/schemas.json").read_text())
LAST = SignerRecord(2, 9, 3, b"b" * 45)

Capture = pytest.CaptureFixture[str]


def genesis_of(name: str) -> bytes:
    return encode_genesis(
        make_genesis(name=name, time_ms=1, accounts={}, validators={public_key(SEED): 10**13})
    )


def home_of(folder: Path, capsys: Capture, *roles: str, chain: str = "one") -> Path:
    genesis = folder.with_suffix(".genesis")
    genesis.write_bytes(genesis_of(chain))
    words = ["init", "--home", str(folder), "--profile", "devnet", "--genesis", str(genesis)]
    assert run([*words, *(word for role in roles for word in ("--role", role))]) == 0
    capsys.readouterr()
    return folder


def told(capsys: Capture, home: Path, *words: str, status: int = 0) -> dict[str, Any]:
    assert run(["--home", str(home), "-o", "json", "--yes", "keys", *words]) == status
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert set(SCHEMAS[answer["schema"]]) <= answer.keys()
    return answer


def ids(home: Path, answer: dict[str, Any]) -> tuple[bytes, bytes]:
    return bytes.fromhex(answer["chain_id"]), bytes.fromhex(answer["public_key"])


@pytest.fixture
def old(tmp_path: Path, capsys: Capture) -> Path:
    return home_of(tmp_path / "old", capsys, "validator")


@pytest.fixture
def new(tmp_path: Path, capsys: Capture) -> Path:
    return home_of(tmp_path / "new", capsys, "payer")


def test_validator_moves_with_its_last_word(tmp_path: Path, old, new, capsys: Capture) -> None:
    file = tmp_path / "moving"
    key = told(capsys, old, "show", "validator")
    chain_id = sha256(genesis_of("one"))
    journal = open_journal(old, chain_id, bytes.fromhex(key["public_key"]))
    journal.begin(9)
    journal.persist(LAST)
    journal.close()
    out = told(capsys, old, "export-validator", str(file))
    assert (out["last_height"], out["public_key"]) == (9, key["public_key"])
    assert file.stat().st_mode & 0o777 == 0o600
    back = told(capsys, new, "import-validator", str(file))
    assert ids(new, back) == ids(old, out) == (chain_id, bytes.fromhex(key["public_key"]))
    assert open_journal(new, *ids(new, back)).last == LAST
    with pytest.raises(CannotSign, match="was moved"):
        open_journal(old, *ids(old, out))


def test_node_that_runs_gives_no_validator_away(tmp_path: Path, old, capsys: Capture) -> None:
    file = tmp_path / "moving"
    with lock_home(old):
        answer = told(capsys, old, "export-validator", str(file), status=1)
    assert answer["mend"] == "olnode stop"
    assert not file.exists()
    assert (old / "signer").exists()


def test_export_asks_first(tmp_path: Path, old: Path, capsys: Capture) -> None:
    words = ["--home", str(old), "keys", "export-validator", str(tmp_path / "moving")]
    assert run(words) == 2
    assert (old / "signer").exists()


def test_file_that_cannot_be_written_silences_nobody(tmp_path: Path, old, capsys: Capture) -> None:
    there = tmp_path / "there"
    there.write_bytes(b"precious")
    told(capsys, old, "export-validator", str(there), status=1)
    told(capsys, old, "export-validator", str(tmp_path / "no" / "folder"), status=1)
    assert there.read_bytes() == b"precious"
    assert (old / "signer").exists()


def test_home_that_validates_is_not_overwritten(tmp_path: Path, old, capsys: Capture) -> None:
    other = home_of(tmp_path / "other", capsys, "validator")
    told(capsys, old, "export-validator", str(tmp_path / "moving"))
    before = (other / "signer").read_bytes(), (other / "keystore/validator.json").read_bytes()
    answer = told(capsys, other, "import-validator", str(tmp_path / "moving"), status=1)
    assert "validates already" in answer["what"]
    after = (other / "signer").read_bytes(), (other / "keystore/validator.json").read_bytes()
    assert before == after


def test_home_whose_own_validator_left_takes_in_no_other(
    tmp_path: Path, old, capsys: Capture
) -> None:
    other = home_of(tmp_path / "other", capsys, "validator")
    told(capsys, other, "export-validator", str(tmp_path / "other.moving"))
    told(capsys, old, "export-validator", str(tmp_path / "moving"))
    answer = told(capsys, other, "import-validator", str(tmp_path / "moving"), status=1)
    assert "another key" in answer["what"]
    assert not (other / "signer").exists()


def test_validator_of_another_chain_is_refused(tmp_path: Path, old, capsys: Capture) -> None:
    other = home_of(tmp_path / "other", capsys, "payer", chain="two")
    told(capsys, old, "export-validator", str(tmp_path / "moving"))
    answer = told(capsys, other, "import-validator", str(tmp_path / "moving"), status=1)
    assert "another chain" in answer["what"]
    assert not (other / "keystore/validator.json").exists()


def test_file_with_any_byte_altered_or_cut_brings_in_nobody(
    tmp_path: Path, old, new, capsys: Capture
) -> None:
    """A flipped digit in the record would let the key say its last words again."""
    file, bad = tmp_path / "moving", tmp_path / "bad"
    told(capsys, old, "export-validator", str(file))
    raw = file.read_bytes()
    for place in range(0, len(raw) - 1, 23):
        altered = bytearray(raw)
        altered[place] ^= 1
        for data in (bytes(altered), raw[:place]):
            bad.write_bytes(data)
            if json_of(data) == json_of(raw):
                continue  # only the space between the words
            told(capsys, new, "import-validator", str(bad), status=1)
            assert not (new / "signer").exists()
    told(capsys, new, "import-validator", str(file))


def json_of(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def test_operator_may_change_his_mind(tmp_path: Path, old, capsys: Capture) -> None:
    file = tmp_path / "moving"
    out = told(capsys, old, "export-validator", str(file))
    told(capsys, old, "import-validator", str(file))
    open_journal(old, *ids(old, out)).close()
