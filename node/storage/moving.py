"""A validator changes its home: its last word travels, and the old home keeps a mark of that.

Why the mark is the record itself under another name: the old home can then neither sign nor forget,
and an export whose file was lost can be made again. Why a home takes in nobody while it holds a
record or words of an unknown key: two records of one key are how a key signs twice.
Two homes can still be given the same export; each then waits and listens for its own key before
it signs (page 20 §6). What this file does not know: the private key, and the file that travels.
"""

import os
from pathlib import Path

from consensus.records import SignerRecord
from node.storage.errors import StorageError
from node.storage.journal import open_journal
from node.storage.segments import sync_directory
from node.storage.signer import MOVED_SUFFIX, SignerFile, create_signer

SIGNER_NAME = "signer"


def retire_signer(home: Path, chain_id: bytes, key: bytes) -> SignerRecord | None:
    """The key's last word; from here on this home signs nothing with it. Durable on return.

    The caller holds `lock_home(home)`. Again on a home that was retired: the same word. Raises
    `CannotSign` when no file surely holds it: then it cannot travel either.
    """
    path, mark = home / SIGNER_NAME, _mark(home)
    if not path.exists() and mark.exists():
        return _record_in(mark, chain_id, key)
    journal = open_journal(home, chain_id, key)  # it may know a later word than the slots
    last = journal.last
    journal.close()
    signer = SignerFile(path, chain_id, key)
    if last is not None and last != signer.record:
        signer.write(last)
        signer.sync()
    signer.close()
    os.replace(path, mark)
    sync_directory(home)
    return last


def adopt_signer(home: Path, chain_id: bytes, key: bytes, record: SignerRecord | None) -> None:
    """Let `key` sign from this home, above `record`. Durable on return.

    The caller holds `lock_home(home)`. Raises `StorageError` for a home that validates already,
    or whose own past knows a later word or another key; nothing is written then.
    """
    check_adoption(home, chain_id, key, record)
    create_signer(home / SIGNER_NAME, chain_id, key, record)
    _mark(home).unlink(missing_ok=True)
    sync_directory(home)


def check_adoption(home: Path, chain_id: bytes, key: bytes, record: SignerRecord | None) -> None:
    """Raise `StorageError` unless `adopt_signer` would take this key in."""
    if (home / SIGNER_NAME).exists():
        raise StorageError(
            f"{home} validates already", why="it has a signer record", mend="use another home"
        )
    if not _mark(home).exists():
        if any((home / "journal").glob("*.log")):
            raise StorageError(
                f"{home}/journal holds words of a key whose signer record is gone",
                mend="use a fresh home: olnode init",
            )
        return
    before = _record_in(_mark(home), chain_id, key)
    if before is not None and (record is None or record.place() < before.place()):
        raise StorageError(
            "this export is older than what the key has said from this home",
            why=f"height {0 if record is None else record.height}, here {before.height}",
            mend="olnode keys export-validator where the key signed last",
        )


def _mark(home: Path) -> Path:
    return home / (SIGNER_NAME + MOVED_SUFFIX)


def _record_in(mark: Path, chain_id: bytes, key: bytes) -> SignerRecord | None:
    signer = SignerFile(mark, chain_id, key)
    signer.close()
    return signer.record
