"""The file in which a validator travels: its key, sealed as it is, and the last word it said.

Order: the old home is silenced before the file exists, so a crash in between leaves a key that
signs nowhere, and exporting again makes the file. The new home gets the key first and the
record last: only with the record may it sign.
What this file does not know: how the operator is asked, and what the record says.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from consensus.primitives.digest import sha256
from consensus.records import SignerRecord
from node.home import HomeError
from node.storage.lock import lock_home
from node.storage.moving import adopt_signer, check_adoption, retire_signer
from node.storage.signer import RECORD_BYTES, decode_record, encode_record
from node.wallet.keystore import KeyFile, Keystore, KeystoreError, read_public

VALIDATOR_NAME: Final = "validator"  # of its key in every home
WHAT: Final = "olnode validator"
VERSION: Final = 1
FILE_BYTES_MAX: Final = 8_192
CHECK_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Moved:
    """A validator that was written to a file or taken in from one."""

    key: KeyFile
    chain_id: bytes
    last_height: int  # of its last word; 0 if it never said one


def export_validator(home: Path, genesis: Path, store: Keystore, target: Path) -> Moved:
    """Silence the home's validator for good, then write it to `target`, which must not exist.

    `genesis`: the chain's file; `store`: the home's keys. Raises HomeError, KeystoreError, or
    `StorageError`: `HomeInUse` while the node runs.
    """
    key, chain_id = store.get(VALIDATOR_NAME), _chain_id(genesis)
    if target.exists() or not target.parent.is_dir():
        raise HomeError(f"{target} cannot be written", mend="name a new file in a folder there is")
    with lock_home(home):
        record = retire_signer(home, chain_id, key.public_key)
        _write(target, _encode(store.packed(VALIDATOR_NAME), chain_id, record))
    return Moved(key, chain_id, 0 if record is None else record.height)


def import_validator(home: Path, genesis: Path, store: Keystore, source: Path) -> Moved:
    """Let the validator in `source` sign from the home; nothing is ever overwritten.

    Raises HomeError for a file that is not whole or of another chain, KeystoreError or
    `StorageError` for a home that has another validator, or a later word of this one.
    """
    packed, chain_id, record = _read(source)
    if chain_id != _chain_id(genesis):
        raise HomeError(
            f"{source} is of another chain than {home}", mend="use a home of that chain"
        )
    told = read_public(packed)
    if told.role != "validator":
        raise HomeError(f"{source} holds a {told.role} key", mend="olnode keys import")
    with lock_home(home):
        check_adoption(home, chain_id, told.public_key, record)
        if all(known.public_key != told.public_key for known in store.list()):
            store.import_packed(packed, VALIDATOR_NAME)
        key = store.get(VALIDATOR_NAME)
        if key.public_key != told.public_key:
            raise KeystoreError(
                f"the key named {VALIDATOR_NAME} here is another one", mend="use a fresh home"
            )
        adopt_signer(home, chain_id, key.public_key, record)
    return Moved(key, chain_id, 0 if record is None else record.height)


def _chain_id(genesis: Path) -> bytes:
    try:
        return sha256(genesis.read_bytes())
    except OSError as error:
        raise HomeError(f"{genesis} cannot be read: {error.strerror}", mend="olnode init") from None


def _encode(packed: bytes, chain_id: bytes, record: SignerRecord | None) -> bytes:
    fields = {
        "what": WHAT,
        "version": VERSION,
        "chain_id": chain_id.hex(),
        "record": "" if record is None else encode_record(record).hex(),
        "key": json.loads(packed),
    }
    return json.dumps({**fields, "check": _check(fields)}, indent=1).encode() + b"\n"


def _check(fields: Mapping[str, Any]) -> str:
    """A file that was cut or mistyped must not pass for a key that said less than it did."""
    return sha256(json.dumps(fields, sort_keys=True).encode())[:CHECK_BYTES].hex()


def _read(source: Path) -> tuple[bytes, bytes, SignerRecord | None]:
    """Key file, chain id, last word; raises HomeError unless every byte of meaning is there."""
    try:
        raw = source.read_bytes()
    except OSError as error:
        raise HomeError(
            f"{source} cannot be read: {error.strerror}", mend="check the path"
        ) from None
    try:
        if len(raw) > FILE_BYTES_MAX:
            raise ValueError("too large")
        fields = dict(json.loads(raw))
        check = fields.pop("check")
        if (fields["what"], fields["version"], check) != (WHAT, VERSION, _check(fields)):
            raise ValueError("what, version or check")
        packed = json.dumps(fields["key"]).encode()
        record = bytes.fromhex(fields["record"])
        chain_id = bytes.fromhex(fields["chain_id"])
        if len(record) not in (0, RECORD_BYTES):
            raise ValueError("record")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise HomeError(
            f"{source} is not a whole export of a validator ({type(error).__name__})",
            mend="olnode keys export-validator once more in the old home",
        ) from None
    return packed, chain_id, decode_record(record) if record else None


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
