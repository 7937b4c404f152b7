"""`olnode init`: the home of one node: folders, keys, settings, and a validator's signer record.

Why everything is asked first: nothing is written before every answer is known, and a folder that
holds anything is refused (`node/home.py`).
"""

import re
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from consensus.primitives.errors import Invalid
from node.cli.frame import frame_of, new_noun, note, pairs, usage
from node.cli.passwords import read_password
from node.ledger.addresses import account_text

app = new_noun()

TRUST: Final = re.compile(r"([0-9]{1,18}):([0-9a-f]{64})")


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
    from node.home import make_home

    frame = frame_of(ctx)
    home = frame.home
    chosen: dict[str, Any] = frame.flags(roles=role or None, name=name, **_trusted(trust))
    in_clear = config.parse(config.write_text(chosen), home=home).config.profile == "devnet"
    raw = _read_genesis(genesis)
    password = None if in_clear else read_password(password_file, "password", again=True)
    made = make_home(home, genesis=raw, chosen=chosen, password=password)
    keys = [
        {"name": key.name, "role": key.role, "account": account_text(key.public_key)}
        for key in made.keys
    ]
    chain_id = made.chain_id.hex()
    fields = {"home": str(home), "chain_id": chain_id, "keys": keys}
    rows: list[tuple[str, object]] = [("home", home), ("chain", chain_id)]
    rows += [(f"key {key['name']}", key["account"]) for key in keys]
    frame.show("init/1", fields, [*pairs(rows), "next: olnode start"])
    if in_clear:
        note("profile devnet: the keys lie in the clear; never put value on this chain")
    else:
        note("keep sealed copies: olnode keys export node FILE")


def _read_genesis(path: Path) -> bytes:
    from node.ledger.genesis import GENESIS_BYTES_MAX, decode_genesis

    try:
        if path.stat().st_size > GENESIS_BYTES_MAX:
            usage(f"{path} is larger than any genesis")
        raw = path.read_bytes()
    except OSError as error:
        usage(f"{path} cannot be read: {error.strerror}")
    try:
        decode_genesis(raw)
    except Invalid as error:
        usage(f"{path} is no genesis: {error}")
    return raw


def _trusted(trust: str | None) -> dict[str, Any]:
    if trust is None:
        return {}
    told = TRUST.fullmatch(trust)
    if told is None:
        usage("--trust is HEIGHT:BLOCK_ID, the id in 64 lower-case hex digits")
    return {"chain.trusted_height": int(told[1]), "chain.trusted_id": told[2]}
