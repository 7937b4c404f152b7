"""`olnode backup`: the ledger's state and the settings, never a key.

Why no keys, signer record or journal: a second copy of them could sign twice; `olnode keys export`
and `export-validator` are for those. Why a snapshot and no blocks: the blocks since are with every
peer, and come with their certificates.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from node.cli.frame import CommandError, Frame, frame_of, new_noun, usage

if TYPE_CHECKING:
    from node.storage.snapshots import Manifest

app = new_noun()

SNAPSHOT_NAME: Final = "snapshot"
CONFIG_NAME: Final = "config.toml"
SETTINGS: Final = ("genesis", CONFIG_NAME, "version")


@app.command()
def backup(ctx: typer.Context, folder: Path) -> None:
    """Copy the newest snapshot, genesis and settings into FOLDER, which does not exist yet.

    Of a stopped node it is the newest block; of a running one, what it last made a snapshot of.
    """
    from node.cli.snapshot import opened, store_of
    from node.storage.errors import HomeInUse

    frame = frame_of(ctx)
    home = frame.initialised().home
    if folder.exists():
        usage(f"{folder} exists")
    try:
        with opened(frame) as (chain, store):
            if chain.height:
                store.make(chain.view())
    except HomeInUse:
        store = store_of(frame)
    manifests = store.manifests()
    if not manifests:
        raise CommandError(
            "there is no snapshot to back up yet", mend="olnode stop, then olnode backup, again"
        )
    making = folder.with_name(folder.name + ".part")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(mode=0o700, parents=True)
    store.copy_out(manifests[0], making / SNAPSHOT_NAME)
    for name in SETTINGS:
        shutil.copyfile(home / name, making / name)
    making.rename(folder)
    show(frame, "backup/1", manifests[0], f"keys are not in {folder}: olnode keys export")


def show(frame: Frame, schema: str, manifest: "Manifest", *notes: str) -> None:
    """What lies in a backup, and a line for each note that is not empty."""
    told: dict[str, Any] = {
        "height": manifest.height,
        "block_id": manifest.footing.header.block_id().hex(),
        "bytes": manifest.total_bytes(),
    }
    said = [note for note in notes if note]
    lines = [f"block {told['height']} {told['block_id']}, {told['bytes']:,} bytes", *said]
    frame.show(schema, {**told, "note": "; ".join(said)}, lines)
