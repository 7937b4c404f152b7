"""A validator that moves says nothing twice: its last word travels, the old home is silent."""

import shutil
from pathlib import Path

import pytest
from chain_kit import VALIDATORS
from stored_kit import GENESIS

from consensus.primitives.digest import sha256
from consensus.records import SignerRecord
from node.storage.errors import StorageError
from node.storage.ground import open_ground
from node.storage.journal import DoubleSign, open_journal
from node.storage.moving import adopt_signer, retire_signer
from node.storage.signer import SLOT_BYTES, CannotSign, SignerFile, create_signer

CHAIN, KEY = sha256(GENESIS), VALIDATORS[0].key
FIRST = SignerRecord(1, 7, 0, b"a" * 45)
LAST = SignerRecord(2, 7, 0, b"b" * 45, (0, b"x" * 32), (0, b"y" * 32))


def validating(home: Path, *records: SignerRecord) -> Path:
    home.mkdir()
    (home / "genesis").write_bytes(GENESIS)
    create_signer(home / "signer", CHAIN, KEY)
    journal = open_journal(home, CHAIN, KEY)
    for record in records:
        journal.begin(record.height)
        journal.persist(record)
    journal.close()
    return home


def fresh(home: Path) -> Path:
    home.mkdir()
    (home / "genesis").write_bytes(GENESIS)
    return home


@pytest.mark.parametrize("records", [(), (FIRST,), (FIRST, LAST)])
def test_last_word_travels_and_the_new_home_goes_on_above_it(tmp_path: Path, records) -> None:
    old, new = validating(tmp_path / "old", *records), fresh(tmp_path / "new")
    record = retire_signer(old, CHAIN, KEY)
    assert record == (records[-1] if records else None)
    adopt_signer(new, CHAIN, KEY, record)
    journal = open_journal(new, CHAIN, KEY)
    assert journal.last == record
    journal.begin(7)
    if record is not None:
        with pytest.raises(DoubleSign):
            journal.persist(SignerRecord(record.kind, 7, 0, b"z" * 45))
    journal.persist(SignerRecord(0, 7, 1, b"p" * 48))
    journal.close()


def test_old_home_is_silent_and_says_why(tmp_path: Path) -> None:
    """The node goes on as a full node."""
    old = validating(tmp_path / "old", FIRST)
    retire_signer(old, CHAIN, KEY)
    ground = open_ground(old, old / "genesis", validator_key=KEY)
    assert ground.journal is None
    assert "was moved to another home" in str(ground.why_silent)
    ground.close()
    with pytest.raises(CannotSign):
        open_journal(old, CHAIN, KEY)


def test_word_that_only_the_journal_knows_travels_too(tmp_path: Path) -> None:
    old = validating(tmp_path / "old", FIRST)
    before = (old / "signer").read_bytes()
    journal = open_journal(old, CHAIN, KEY)
    journal.begin(7)
    journal.persist(LAST)
    journal.close()
    (old / "signer").write_bytes(before)  # as if the slot had never reached the disk
    assert retire_signer(old, CHAIN, KEY) == LAST
    assert SignerFile(old / "signer.moved", CHAIN, KEY).record == LAST


def test_home_that_was_retired_gives_the_same_word_again(tmp_path: Path) -> None:
    """An export whose file was lost can be made again."""
    old = validating(tmp_path / "old", FIRST, LAST)
    assert [retire_signer(old, CHAIN, KEY) for _ in range(3)] == [LAST] * 3


def test_home_that_validates_takes_in_nobody(tmp_path: Path) -> None:
    home = validating(tmp_path / "home", FIRST)
    before = (home / "signer").read_bytes()
    with pytest.raises(StorageError, match="validates already"):
        adopt_signer(home, CHAIN, KEY, LAST)
    assert (home / "signer").read_bytes() == before


def test_home_with_words_of_an_unknown_key_takes_in_nobody(tmp_path: Path) -> None:
    home = validating(tmp_path / "home", FIRST)
    (home / "signer").unlink()
    with pytest.raises(StorageError, match="words of a key"):
        adopt_signer(home, CHAIN, KEY, LAST)
    assert not (home / "signer").exists()


def test_validator_comes_back_with_what_it_said_elsewhere(tmp_path: Path) -> None:
    old, new = validating(tmp_path / "old", FIRST), fresh(tmp_path / "new")
    adopt_signer(new, CHAIN, KEY, retire_signer(old, CHAIN, KEY))
    journal = open_journal(new, CHAIN, KEY)
    journal.begin(7)
    journal.persist(LAST)
    journal.close()
    adopt_signer(old, CHAIN, KEY, retire_signer(new, CHAIN, KEY))
    assert open_journal(old, CHAIN, KEY).last == LAST
    assert not (old / "signer.moved").exists()


def test_stale_export_is_refused_by_a_home_that_knows_better(tmp_path: Path) -> None:
    old = validating(tmp_path / "old", FIRST, LAST)
    retire_signer(old, CHAIN, KEY)
    for stale in (None, FIRST):
        with pytest.raises(StorageError, match="older than"):
            adopt_signer(old, CHAIN, KEY, stale)
    assert not (old / "signer").exists()
    adopt_signer(old, CHAIN, KEY, LAST)


def test_home_of_another_validator_takes_in_nobody(tmp_path: Path) -> None:
    old = validating(tmp_path / "old", FIRST)
    retire_signer(old, CHAIN, KEY)
    with pytest.raises(StorageError, match="another key"):
        adopt_signer(old, CHAIN, VALIDATORS[1].key, LAST)


def test_validator_whose_last_word_is_unsure_does_not_move(tmp_path: Path) -> None:
    old = validating(tmp_path / "old", FIRST, LAST)
    data = bytearray((old / "signer").read_bytes())
    data[20] ^= 1
    data[SLOT_BYTES + 20] ^= 1
    (old / "signer").write_bytes(bytes(data))
    with pytest.raises(CannotSign):
        retire_signer(old, CHAIN, KEY)
    assert (old / "signer").exists()


@pytest.mark.parametrize("cut", [0, 1, 100, SLOT_BYTES, SLOT_BYTES + 100, 2 * SLOT_BYTES])
def test_crash_while_a_home_takes_in_a_key_never_leaves_it_without_its_word(
    tmp_path: Path, cut: int
) -> None:
    new = fresh(tmp_path / "new")
    adopt_signer(new, CHAIN, KEY, LAST)
    (new / "signer").write_bytes((new / "signer").read_bytes()[:cut])
    try:
        found = SignerFile(new / "signer", CHAIN, KEY).record
    except CannotSign:
        return
    assert found == LAST


def test_restored_ledger_never_lets_a_validator_sign_twice(tmp_path: Path) -> None:
    """Backups hold database and blocks; signer record and journal are not in them."""
    home = validating(tmp_path / "home")
    ground = open_ground(home, home / "genesis", validator_key=KEY)
    ground.close()
    backup = tmp_path / "backup"
    for name in ("db", "blocks", "bundles"):
        shutil.copytree(home / name, backup / name)
    ground = open_ground(home, home / "genesis", validator_key=KEY)
    assert ground.journal is not None
    ground.journal.begin(1)
    ground.journal.persist(SignerRecord(1, 1, 0, b"v" * 45))
    ground.close()
    for name in ("db", "blocks", "bundles"):
        shutil.rmtree(home / name)
        shutil.copytree(backup / name, home / name)
    ground = open_ground(home, home / "genesis", validator_key=KEY)
    assert ground.journal is not None
    ground.journal.begin(1)
    with pytest.raises(DoubleSign):
        ground.journal.persist(SignerRecord(1, 1, 0, b"w" * 45))
    ground.close()
