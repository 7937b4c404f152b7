"""The signer record survives any one damage, and never comes back from nothing."""

from dataclasses import replace
from pathlib import Path

import pytest

from consensus.records import NOWHERE, SignerRecord
from node.storage.errors import Damaged, StorageError
from node.storage.signer import (
    CHECK_BYTES,
    SLOT_BYTES,
    USED_BYTES,
    CannotSign,
    SignerFile,
    create_signer,
    decode_record,
    encode_record,
)

CHAIN, KEY = b"c" * 32, b"k" * 32
FIRST = SignerRecord(1, 7, 0, b"a" * 45)
SECOND = SignerRecord(2, 7, 0, b"b" * 45, (0, b"x" * 32), (0, b"y" * 32))


def write(path: Path, *records: SignerRecord) -> bytes:
    path.unlink(missing_ok=True)
    create_signer(path, CHAIN, KEY)
    signer = SignerFile(path, CHAIN, KEY)
    for record in records:
        signer.write(record)
        signer.sync()
    signer.close()
    return path.read_bytes()


def read(path: Path) -> SignerRecord | None:
    signer = SignerFile(path, CHAIN, KEY)
    signer.close()
    return signer.record


@pytest.mark.parametrize(
    "record", [FIRST, SECOND, replace(FIRST, kind=0, body=b"p" * 48, valid=(9, b"v" * 32))]
)
def test_record_is_fixed_width_and_comes_back(record: SignerRecord) -> None:
    assert decode_record(encode_record(record)) == record
    assert len(encode_record(record)) == len(encode_record(FIRST))


def test_new_record_says_nothing_was_signed(tmp_path: Path) -> None:
    write(tmp_path / "signer")
    assert read(tmp_path / "signer") is None


def test_last_of_many_writes_is_read(tmp_path: Path) -> None:
    records = [replace(FIRST, height=h) for h in range(1, 8)]
    write(tmp_path / "signer", *records)
    assert read(tmp_path / "signer") == records[-1]


def test_record_is_never_made_again(tmp_path: Path) -> None:
    write(tmp_path / "signer", FIRST)
    with pytest.raises(StorageError, match="exists"):
        create_signer(tmp_path / "signer", CHAIN, KEY)
    assert read(tmp_path / "signer") == FIRST


def test_missing_record_means_no_signing(tmp_path: Path) -> None:
    """A start never makes one: this key may have voted elsewhere."""
    with pytest.raises(CannotSign, match="no signer record"):
        SignerFile(tmp_path / "signer", CHAIN, KEY)
    assert not (tmp_path / "signer").exists()


@pytest.mark.parametrize(
    ("chain", "key", "told"),
    [(b"d" * 32, KEY, "another chain"), (CHAIN, b"l" * 32, "another key")],
)
def test_record_of_another_chain_or_key_means_no_signing(
    tmp_path: Path, chain: bytes, key: bytes, told: str
) -> None:
    write(tmp_path / "signer", FIRST)
    with pytest.raises(CannotSign, match=told):
        SignerFile(tmp_path / "signer", chain, key)


def test_torn_newer_slot_leaves_the_older_record(tmp_path: Path) -> None:
    """What was torn was never sent: the slot is synced before the vote leaves."""
    path = tmp_path / "signer"
    before = write(path, FIRST)
    after = write(path, FIRST, SECOND)
    start = next(n for n in range(len(after)) if after[n] != before[n]) // SLOT_BYTES * SLOT_BYTES
    used = USED_BYTES + CHECK_BYTES
    for cut in range(used):
        path.write_bytes(before[:start] + after[start : start + cut] + before[start + cut :])
        assert read(path) in (FIRST, SECOND)
        path.write_bytes(
            after[: start + cut] + bytes(SLOT_BYTES - cut) + after[start + SLOT_BYTES :]
        )
        assert read(path) in (FIRST, SECOND)


def test_any_flipped_bit_costs_at_most_one_slot(tmp_path: Path) -> None:
    path = tmp_path / "signer"
    good = write(path, FIRST, SECOND)
    for slot in range(2):
        for at in range(slot * SLOT_BYTES, slot * SLOT_BYTES + USED_BYTES + CHECK_BYTES):
            data = bytearray(good)
            data[at] ^= 1 << (at % 8)
            path.write_bytes(bytes(data))
            assert read(path) in (FIRST, SECOND)


def test_two_bad_slots_mean_no_signing(tmp_path: Path) -> None:
    path = tmp_path / "signer"
    data = bytearray(write(path, FIRST, SECOND))
    data[20] ^= 1
    data[SLOT_BYTES + 20] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CannotSign, match="both slots"):
        SignerFile(path, CHAIN, KEY)
    path.write_bytes(b"")
    with pytest.raises(CannotSign, match="both slots"):
        SignerFile(path, CHAIN, KEY)


def test_unwritten_locks_are_nowhere(tmp_path: Path) -> None:
    write(tmp_path / "signer", FIRST)
    record = read(tmp_path / "signer")
    assert record is not None
    assert (record.locked, record.valid) == (NOWHERE, NOWHERE)


def test_version_of_a_newer_olnode_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "signer"
    monkeypatch.setattr("node.storage.signer.VERSION", 2)
    write(path, FIRST)
    monkeypatch.undo()
    with pytest.raises(Damaged, match="another version"):
        SignerFile(path, CHAIN, KEY)
