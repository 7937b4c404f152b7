"""`olnode init`: the home of one node: folders, keys, settings, and a validator's signer record.

Why the signer record is made here and never by a start: a validator whose record is lost must not
believe that it never voted. Nothing is written before every answer is known, and a folder that
holds anything is refused.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from consensus.primitives.errors import Invalid
from node.cli.frame import HOME_VERSION, Frame, frame_of, note, pairs, usage
from node.cli.passwords import read_password
from node.ledger.addresses import account_text

app = typer.Typer()

# fmt: off
FOLDERS: Final = (
    "journal", "keystore", "run", "db", "blocks", "bundles", "snapshots", "payer",
    "models", "adapters", "indexes", "datanets", "blobs",
)
# fmt: on
GENESIS_BYTES_MAX: Final = 16 << 20


@app.command()
def init(
    ctx: typer.Context,
    genesis: Annotated[Path, typer.Option(help="the chain's genesis file")],
    role: Annotated[
        list[str] | None, typer.Option(help="validator, provider, payer, auditor; repeat")
    ] = None,
    trust: Annotated[str | None, typer.Option(help="HEIGHT:BLOCK_ID of a trusted block")] = None,
    name: Annotated[str | None, typer.Option(help="what others may call this node")] = None,
    password_file: Annotated[
        str | None, typer.Option(help="file whose first line is the password")
    ] = None,
) -> None:
    """Make a home. Refuses a folder that holds anything."""
    from node import config

    frame = frame_of(ctx)
    home = frame.home
    chosen: dict[str, Any] = frame.flags(roles=role or None, name=name, **_trusted(trust))
    settings = config.parse(config.write_text(chosen), home=home)
    raw = _read_genesis(genesis)
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        usage_of_home(home)
    in_clear = settings.config.profile == "devnet"
    password = None if in_clear else read_password(password_file, "password", again=True)

    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.chmod(0o700)
    for folder in FOLDERS:
        (home / folder).mkdir(mode=0o700)
    _write(home / "genesis", raw)
    _write(home / "config.toml", config.write_text(chosen).encode())
    keys = _make_keys(frame, settings, raw, password)
    # Last: a home without its version is not a home, so a half-made one is never started.
    _write(home / "version", f"{HOME_VERSION}\n".encode())
    fields = {"home": str(home), "chain_id": chain_id_of(raw).hex(), "keys": keys}
    frame.show("init/1", fields, _lines(home, raw, keys))
    if in_clear:
        note("profile devnet: the keys lie in the clear; never put value on this chain")
    else:
        note("keep sealed copies: olnode keys export node FILE")


def chain_id_of(genesis: bytes) -> bytes:
    """The chain that this genesis founds; raises CommandError for bytes that are no genesis."""
    from node.ledger.genesis import chain_id, decode_genesis

    return chain_id(decode_genesis(genesis))


def usage_of_home(home: Path) -> None:
    """Refuse: nothing that lies there may be overwritten."""
    from node.cli.frame import CommandError

    raise CommandError(f"{home} is not empty", mend="olnode status, or another --home")


def _read_genesis(path: Path) -> bytes:
    try:
        if path.stat().st_size > GENESIS_BYTES_MAX:
            usage(f"{path} is larger than any genesis")
        raw = path.read_bytes()
    except OSError as error:
        usage(f"{path} cannot be read: {error.strerror}")
    try:
        chain_id_of(raw)
    except Invalid as error:
        usage(f"{path} is no genesis: {error}")
    return raw


def _trusted(trust: str | None) -> dict[str, Any]:
    if trust is None:
        return {}
    height, _, block_id = trust.partition(":")
    if not height.isdecimal() or len(height) > 18:
        usage("--trust is HEIGHT:BLOCK_ID")
    return {"chain.trusted_height": int(height), "chain.trusted_id": block_id}


def _make_keys(
    frame: Frame, settings: Any, genesis: bytes, password: str | None
) -> list[dict[str, str]]:
    """The node's key, and by role a validator's with its signer record and a payer's."""
    from node.storage.signer import create_signer

    roles = settings.config.roles
    wanted = [("node", "node")]
    if "validator" in roles:
        wanted.append(("validator", "validator"))
    if "payer" in roles:
        wanted.append((settings.config.payer.spending_key, "spending"))
    store = frame.keystore(settings)
    made = []
    for name, role in wanted:
        key = store.add(name, role, password)  # type: ignore[arg-type]  # a role by name
        if role == "validator":
            create_signer(settings.home / "signer", chain_id_of(genesis), key.public_key)
        made.append({"name": name, "role": role, "account": account_text(key.public_key)})
    return made


def _lines(home: Path, genesis: bytes, keys: list[dict[str, str]]) -> list[str]:
    rows: list[tuple[str, object]] = [("home", home), ("chain", chain_id_of(genesis).hex())]
    rows += [(f"key {key['name']}", key["account"]) for key in keys]
    return [*pairs(rows), "next: olnode start"]


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
