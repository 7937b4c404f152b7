"""`olnode restore`: the ledger of a backup into a home that `olnode init` made.

Why it prints a block id: files show only that the validators they name agreed on that block;
whether those were the network's, another source must say. A validator signs again once the chain
has passed what its signer record holds.
Why the settings stay: they name this machine's roles, keys and ports, not those of the backup's.
"""

from pathlib import Path
from typing import Annotated

import typer

from node.cli.backup import CONFIG_NAME, SETTINGS, SNAPSHOT_NAME, show
from node.cli.frame import NOT_VERIFIED, CommandError, frame_of, new_noun, usage

app = new_noun()


@app.command()
def restore(
    ctx: typer.Context,
    folder: Path,
    trusted_id: Annotated[
        str, typer.Option(help="id of its block, 64 hex digits, from a source that you trust")
    ] = "",
) -> None:
    """Take the ledger of a backup into this home, made by `olnode init` with the same genesis.

    The home keeps its own settings.
    """
    from consensus.primitives.digest import sha256
    from node.cli.snapshot import take_in_folder
    from node.storage.ground import read_genesis
    from node.storage.snapshots import read_manifest

    frame = frame_of(ctx)
    settings = frame.initialised()
    manifest = read_manifest(folder / SNAPSHOT_NAME)
    if manifest is None:
        usage(f"{folder} holds no backup")
    genesis = read_genesis(settings.home / settings.config.chain.genesis)
    if manifest.chain_id != sha256(genesis):
        raise CommandError(
            "the backup is of another chain than this home",
            status=NOT_VERIFIED,
            mend=f"olnode init --genesis {folder / SETTINGS[0]}",
        )
    block_id = manifest.footing.header.block_id().hex()
    take_in_folder(frame, folder / SNAPSHOT_NAME, manifest, trusted_id or block_id)
    unsure = "" if trusted_id else "compare the block id with another source before you rely on it"
    show(frame, "restore/1", manifest, unsure, _unlike_settings(folder, settings.home))


def _unlike_settings(folder: Path, home: Path) -> str:
    """Where the backup's settings lie, unless the home has the same."""
    theirs, ours = folder / CONFIG_NAME, home / CONFIG_NAME
    if not theirs.is_file() or theirs.read_bytes() == ours.read_bytes():
        return ""
    return f"settings stay as they are; those of the backup lie in {theirs}"
