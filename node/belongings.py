"""Reads what a home holds beside the ledger, and tells what is not as it was written.

Why here: keys, promises, receipts and models each have a reader that a start trusts; a check that
read them otherwise would find what no start minds, or pass what a start refuses.
Why the signer's record and its journal are opened as copies: opening them mends them.
What this file does not know: passwords; so a sealed key is looked at, not into.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from consensus.primitives.errors import Invalid
from node.holdings import FOLDERS, check_identity
from node.peering.blobstore import CONTENT, rotted_blobs
from node.serving import book
from node.storage.checking import Checked, Tell, good_frames
from node.storage.errors import StorageError
from node.storage.journal import open_journal
from node.storage.segments import scratch_folder
from node.storage.signer import MOVED_SUFFIX, SignerFile
from node.wallet import promises
from node.wallet.keystore import KeyFile, Keystore, KeystoreError, Role

COPY_NAME: Final = "signer.check"
GOODS: Final = (*FOLDERS.items(), (CONTENT, "datanets"))  # kind, folder of the home
GOODS_MEND: Final = (
    "nothing where a peer has it: a node that needs it fetches it anew; else make it again"
)
NOT_READ: Final = (
    "not read: keys behind their passwords, evidence/, claims/, watchtower/, packed/, peers.msgpack"
)


def check_belongings(
    home: Path,
    chain_id: bytes,
    checked: Checked,
    *,
    keystore: Keystore,
    wanted: Sequence[tuple[str, Role]],
    tell: Tell = lambda part, done: None,
) -> None:
    """Add to `checked` what is damaged beside the ledger. The caller holds the home's lock.

    `wanted`: names and roles of the keys that a start needs. Changes nothing. Models and what else
    is kept by its hash are read whole, at the disk's speed.
    """
    keys = _check_keystore(home / "keystore", keystore, wanted, checked)
    _check_signer(home, chain_id, keys, "validator" in dict(wanted).values(), checked)
    for folder, log, mend in (
        ("receipts", book.FORMAT, book.DAMAGED_MEND),
        ("payer", promises.FORMAT, promises.DAMAGED_MEND),
    ):
        for _ in good_frames(home / folder, log, folder, mend, checked):
            checked.counts[folder] += 1
    _check_goods(home, checked, tell)
    checked.notes.append(NOT_READ)


def _check_keystore(
    folder: Path, keystore: Keystore, wanted: Sequence[tuple[str, Role]], checked: Checked
) -> list[KeyFile]:
    """The keys whose files have the shape of one."""
    found = []
    for name in sorted({path.stem for path in folder.glob("*.json")} | dict(wanted).keys()):
        path = folder / f"{name}.json"
        try:
            found.append(keystore.get(name))
        except KeystoreError as error:
            aside = f"mv {path} {path}.damaged, then " if path.exists() else ""
            mend = f"{aside}olnode keys import FILE, your sealed copy"
            if name == "node":
                mend += "; without one, olnode keys add node --role node makes another peer of it"
            checked.add("keystore", error.what, mend)
    return found


# ---- what the validator's key has said


def _check_signer(
    home: Path, chain_id: bytes, keys: Sequence[KeyFile], is_wanted: bool, checked: Checked
) -> None:
    """Its record and its newest journal, by what a start asks of them."""
    path = home / "signer"
    has_moved = path.with_name(path.name + MOVED_SUFFIX).exists()
    if not path.exists() and (has_moved or not is_wanted):
        return
    key = next((key for key in keys if key.role == "validator"), None)
    if key is None:
        checked.notes.append(f"{path} was not read: it is of a key whose file cannot be read")
        return
    with _copied(home) as copy:
        try:
            signer = SignerFile(copy / "signer", chain_id, key.public_key)
            signer.close()
            open_journal(copy, chain_id, key.public_key).close()
        except StorageError as error:
            what, mend = (text.replace(str(copy), str(home)) for text in (error.told, error.mend))
            checked.add("signer", what, mend)
        else:
            if signer.bad_slots:
                told = "is damaged; its journal tells what it held, and a start writes it again"
                checked.notes.append(f"one slot of {path} {told}")


@contextmanager
def _copied(home: Path) -> Iterator[Path]:
    """A folder with the signer's record and its journal."""
    with scratch_folder(home / COPY_NAME) as copy:
        if (home / "signer").exists():
            shutil.copyfile(home / "signer", copy / "signer")
        if (home / "journal").is_dir():
            shutil.copytree(home / "journal", copy / "journal")
        yield copy


# ---- what the ledger knows by its hash


def _check_goods(home: Path, checked: Checked, tell: Tell) -> None:
    for kind, name in GOODS:
        for folder in _folders_of_hashes(home / name):
            try:
                check_identity(kind, bytes.fromhex(folder.name), folder)
            except (Invalid, OSError) as error:
                checked.add(name, f"{folder} is not what its name says: {error}", GOODS_MEND)
            checked.counts["goods"] += 1
            tell("goods", checked.counts["goods"])
    for path in rotted_blobs(home / "blobs", lambda done: tell("blobs", done)):
        checked.add("blobs", f"{path} is not what its name says", GOODS_MEND)


def _folders_of_hashes(directory: Path) -> list[Path]:
    """Those that a hash names; others are half made, or not ours."""
    found = directory.iterdir() if directory.is_dir() else ()
    return sorted(path for path in found if len(path.name) == 64 and path.is_dir())
