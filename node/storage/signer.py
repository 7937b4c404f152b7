"""The signer record: the last thing our validator key promised, in a file of its own.

    slot, 4,096 bytes: OLSR ‖ version u8 ‖ seq u64 ‖ chain_id 32 ‖ key 32 ‖ record ‖ 8 of SHA-256

Why two slots written in turn: a torn write spoils the older one only. Why made by `olnode init`
and never by a start: a validator whose record is gone must not believe that it never voted.
Why outside database, block log and backups: restoring those must never roll this back.
What this file does not know: the private key, and whether a record may follow another.
"""

import os
from hashlib import sha256
from pathlib import Path
from typing import Final

from consensus.records import SignerRecord
from node.storage.errors import Damaged, StorageError
from node.storage.segments import read_file, sync_directory, write_at

MAGIC: Final = b"OLSR"
VERSION: Final = 1
SLOT_BYTES: Final = 4_096
SLOTS: Final = 2
MOVED_SUFFIX: Final = ".moved"  # what a record is called once its key has gone elsewhere
CHECK_BYTES: Final = 8
BODY_BYTES_MAX: Final = 64  # a vote signs 45 bytes, a proposal 48
RECORD_BYTES: Final = 1 + 8 + 4 + 1 + BODY_BYTES_MAX + 2 * (4 + 32)
USED_BYTES: Final = 4 + 1 + 8 + 32 + 32 + RECORD_BYTES


class CannotSign(StorageError):
    """Why this node must not validate; it may go on as a full node."""


def encode_record(record: SignerRecord) -> bytes:
    """Fixed width, 150 bytes; rounds are stored plus one, so that none (−1) is 0."""
    assert len(record.body) <= BODY_BYTES_MAX
    parts = [
        bytes([record.kind]),
        record.height.to_bytes(8, "big"),
        record.round.to_bytes(4, "big"),
        bytes([len(record.body)]),
        record.body.ljust(BODY_BYTES_MAX, b"\0"),
    ]
    for pol_round, block_id in (record.locked, record.valid):
        assert len(block_id) == 32
        parts.append((pol_round + 1).to_bytes(4, "big") + block_id)
    encoded = b"".join(parts)
    assert len(encoded) == RECORD_BYTES
    return encoded


def decode_record(raw: bytes) -> SignerRecord:
    """The record in bytes whose check was good."""
    assert len(raw) == RECORD_BYTES
    body_length, body_at = raw[13], 14
    locks_at = body_at + BODY_BYTES_MAX
    locked, valid = (
        (int.from_bytes(raw[at : at + 4], "big") - 1, raw[at + 4 : at + 36])
        for at in (locks_at, locks_at + 36)
    )
    return SignerRecord(
        kind=raw[0],
        height=int.from_bytes(raw[1:9], "big"),
        round=int.from_bytes(raw[9:13], "big"),
        body=raw[body_at : body_at + body_length],
        locked=locked,
        valid=valid,
    )


def create_signer(
    path: Path, chain_id: bytes, key: bytes, record: SignerRecord | None = None
) -> None:
    """Make the record of a key: one that never signed on this chain, or that `record` came with.

    Only `olnode init` and the import of a validator may. A crash leaves `record` or a damaged
    file, never a file that says nothing was signed.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise StorageError(
            f"{path} exists", why="a signer record is never made again", mend="keep it"
        ) from error
    try:
        for seq in range(SLOTS):
            write_at(descriptor, _slot(seq, chain_id, key, record), seq * SLOT_BYTES)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_directory(path.parent)


class SignerFile:
    """The open record of one key on one chain. `write` is for `journal.py` only."""

    def __init__(self, path: Path, chain_id: bytes, key: bytes) -> None:
        """Open it, or raise `CannotSign` with the reason."""
        self.path = path
        self.bad_slots = 0
        self._chain_id = chain_id
        self._key = key
        try:
            self._descriptor = os.open(path, os.O_RDWR)
        except OSError as error:
            if path.with_name(path.name + MOVED_SUFFIX).exists():
                raise CannotSign(
                    "this validator was moved to another home: this node will not validate",
                    mend="leave it so; to bring it back, olnode keys export-validator there "
                    "and olnode keys import-validator here",
                ) from error
            raise CannotSign(
                f"no signer record at {path}: this node will not validate",
                why=error.strerror or "",
                mend="olnode keys export-validator on the old machine, then olnode keys "
                "import-validator here; lost for good: unbond this key and bond a new key",
            ) from error
        try:
            self.record, self._seq = self._read(read_file(self._descriptor))
        except CannotSign:
            os.close(self._descriptor)
            raise

    def write(self, record: SignerRecord) -> None:
        """Put `record` into the slot of the older one; durable only after `sync`."""
        seq = self._seq + 1
        slot = _slot(seq, self._chain_id, self._key, record)
        write_at(self._descriptor, slot, (seq % SLOTS) * SLOT_BYTES)
        self._seq, self.record = seq, record

    def sync(self) -> None:
        """Make the slot durable. Blocks for an fsync; an `OSError` must end the process."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)

    def _read(self, data: bytes) -> tuple[SignerRecord | None, int]:
        best: tuple[SignerRecord | None, int] | None = None
        for index in range(SLOTS):
            slot = _parse(data[index * SLOT_BYTES : index * SLOT_BYTES + USED_BYTES + CHECK_BYTES])
            if slot is None:
                self.bad_slots += 1
                continue
            seq, chain_id, key, record = slot
            if chain_id != self._chain_id or key != self._key:
                raise CannotSign(
                    f"the signer record {self.path} is of another "
                    f"{'chain' if chain_id != self._chain_id else 'key'}: "
                    "this node will not validate",
                    mend="put the record of this key and chain there",
                )
            if best is None or seq > best[1]:
                best = record, seq
        if best is None:
            raise CannotSign(
                f"both slots of the signer record {self.path} are damaged: "
                "this node will not validate",
                mend="leave this key for good and bond a new one",
            )
        return best


def _slot(seq: int, chain_id: bytes, key: bytes, record: SignerRecord | None) -> bytes:
    body = bytes(RECORD_BYTES) if record is None else encode_record(record)
    used = MAGIC + bytes([VERSION]) + seq.to_bytes(8, "big") + chain_id + key + body
    assert len(used) == USED_BYTES
    return (used + sha256(used).digest()[:CHECK_BYTES]).ljust(SLOT_BYTES, b"\0")


def _parse(raw: bytes) -> tuple[int, bytes, bytes, SignerRecord | None] | None:
    used, check = raw[:USED_BYTES], raw[USED_BYTES:]
    if len(check) != CHECK_BYTES or sha256(used).digest()[:CHECK_BYTES] != check:
        return None
    if not used.startswith(MAGIC):
        return None
    if used[4] != VERSION:
        raise Damaged("the signer record is of another version", mend="use the newer olnode")
    record = used[77:]
    return (
        int.from_bytes(used[5:13], "big"),
        used[13:45],
        used[45:77],
        None if record == bytes(RECORD_BYTES) else decode_record(record),
    )
