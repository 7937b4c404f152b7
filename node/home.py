"""The home of one node: its folders, files and keys, made once and never over anything.

Why the signer record is made here and never by a start: a validator whose record is lost must not
believe that it never voted. The version is written last, so a half-made home is never started.
What this file does not know: how a person is asked, what the parts keep in their folders.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from node.config import HOME_VERSION, Settings, parse, write_text
from node.ledger.genesis import decode_genesis
from node.storage.signer import create_signer
from node.wallet.keystore import KeyFile, Keystore, Role

# fmt: off
FOLDERS: Final = (
    "journal", "keystore", "run", "db", "blocks", "bundles", "snapshots", "payer", "receipts",
    "evidence", "models", "adapters", "indexes", "datanets", "blobs",
)
# fmt: on


class HomeError(Exception):
    """The home cannot be made there; nothing was written."""

    exit_status = 1

    def __init__(self, what: str, *, mend: str) -> None:
        super().__init__(what)
        self.what = what
        self.mend = mend


@dataclass(frozen=True, slots=True)
class NewHome:
    """A home that was made: its settings, its chain, its keys."""

    settings: Settings
    chain_id: bytes
    keys: tuple[KeyFile, ...]


def make_home(
    home: Path,
    *,
    genesis: bytes,
    chosen: Mapping[str, Any],
    password: str | None,
    seeds: Mapping[str, bytes] | None = None,
) -> NewHome:
    """Make a home with the settings `chosen` (dotted keys that differ from the defaults).

    `seeds` gives keys by name; the others are random. Raises ConfigError, HomeError for a folder
    that holds anything, or `Invalid` for bytes that are no genesis: all before a byte is written.
    """
    settings = parse(write_text(dict(chosen)), home=home)
    chain_id = decode_genesis(genesis).chain_id
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise HomeError(f"{home} is not empty", mend="olnode status, or another --home")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.chmod(0o700)
    for folder in FOLDERS:
        (home / folder).mkdir(mode=0o700)
    _write(home / "genesis", genesis)
    _write(home / "config.toml", write_text(dict(chosen)).encode())
    keys = _make_keys(settings, chain_id, password, seeds or {})
    _write(home / "version", f"{HOME_VERSION}\n".encode())
    return NewHome(settings, chain_id, keys)


def keystore_of(settings: Settings) -> Keystore:
    """The keys of a home; a devnet's lie in the clear."""
    in_clear = settings.config.profile == "devnet"
    return Keystore(settings.home / "keystore", in_clear=in_clear)


def wanted_keys(settings: Settings) -> list[tuple[str, Role]]:
    """Name and role of each key that a start needs: the node's, and by role a validator's and a
    payer's."""
    roles = settings.config.roles
    wanted: list[tuple[str, Role]] = [("node", "node")]
    if "validator" in roles:
        wanted.append(("validator", "validator"))
    if "payer" in roles:
        wanted.append((settings.config.payer.spending_key, "spending"))
    return wanted


def _make_keys(
    settings: Settings, chain_id: bytes, password: str | None, seeds: Mapping[str, bytes]
) -> tuple[KeyFile, ...]:
    """Those of `wanted_keys`, a validator's with its signer record."""
    store = keystore_of(settings)
    made = []
    for name, role in wanted_keys(settings):
        key = store.add(name, role, password, seeds.get(name))
        if role == "validator":
            create_signer(settings.home / "signer", chain_id, key.public_key)
        made.append(key)
    return tuple(made)


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
