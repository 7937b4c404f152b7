"""`olnode snapshot`: the ledger's state as files: make, list, export, import.

Why import asks for a block id: files prove nothing about which block the network agreed on, so the
operator names one, read from a source of trust. Creating and importing need the home to
themselves: stop the node first. What is imported was checked whole, by the rebuilt state tree.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli.frame import NOT_VERIFIED, CommandError, Frame, frame_of, new_noun, table, usage

if TYPE_CHECKING:
    from node.storage.chain import Chain
    from node.storage.snapshots import Manifest, SnapshotStore

app = new_noun("Make, list, export, import snapshots of the ledger's state.")


@app.command()
def create(ctx: typer.Context) -> None:
    """Make a snapshot of the newest block; the node is stopped."""
    frame = frame_of(ctx)
    with opened(frame) as (chain, store):
        if not chain.height:
            usage("there is no block yet", "olnode start")
        made = store.make(chain.view()) or store.find(chain.height)
        assert made is not None
        _show(frame, "snapshot.create/1", [made])


@app.command(name="list")
def list_snapshots(ctx: typer.Context) -> None:
    """The snapshots of this home, newest first."""
    frame = frame_of(ctx)
    _show(frame, "snapshot.list/1", store_of(frame).manifests())


@app.command()
def export(ctx: typer.Context, height: int, folder: Path) -> None:
    """Copy the snapshot of block HEIGHT into FOLDER, which does not exist yet."""
    frame = frame_of(ctx)
    store = store_of(frame)
    manifest = store.find(height)
    if manifest is None:
        usage(f"there is no snapshot of block {height}", "olnode snapshot list")
    if folder.exists():
        usage(f"{folder} exists")
    store.copy_out(manifest, folder)
    _show(frame, "snapshot.export/1", [manifest])


@app.command(name="import")
def import_snapshot(
    ctx: typer.Context,
    folder: Path,
    trusted_id: Annotated[str, typer.Option(help="id of its block, 64 hex digits")],
) -> None:
    """Start this home from the snapshot in FOLDER, if its block is the one you trust."""
    from node.storage.snapshots import read_manifest

    frame = frame_of(ctx)
    manifest = read_manifest(folder)
    if manifest is None:
        usage(f"{folder} holds no snapshot")
    take_in_folder(frame, folder, manifest, trusted_id)
    _show(frame, "snapshot.import/1", [manifest])


def take_in_folder(frame: Frame, folder: Path, manifest: "Manifest", trusted_id: str) -> None:
    """Start the home from a snapshot in `folder`, whose manifest was read; CommandError if not."""
    from consensus.primitives.errors import Invalid
    from node.storage.adopting import take_in
    from node.storage.snapshots import verify_manifest

    header = manifest.footing.header
    if header.block_id().hex() != trusted_id.lower():
        raise CommandError(
            f"the snapshot is of block {header.block_id().hex()}, not of the one you trust",
            status=NOT_VERIFIED,
            mend="ask the source of your trust for the id at this height, or get another snapshot",
        )
    with opened(frame) as (chain, store):
        if header.chain_id != chain.chain_id:
            raise CommandError("the snapshot is of another chain", status=NOT_VERIFIED)
        if header.height <= chain.height:
            usage(f"this home is at block {chain.height}, the snapshot at {header.height}")
        try:
            verify_manifest(manifest, header)
            store.copy_in(manifest, folder)
            take_in(frame.home, store, manifest)
        except Invalid as refusal:
            raise CommandError(
                "the snapshot is not what its header says",
                status=NOT_VERIFIED,
                why=str(refusal),
                code=refusal.code,
                mend="get another copy",
            ) from refusal
    with opened(frame) as (chain, _):
        assert chain.height == header.height


def store_of(frame: Frame) -> "SnapshotStore":
    """The snapshots of the home; whoever runs."""
    from node.storage.opening import SNAPSHOTS_NAME
    from node.storage.snapshots import SnapshotStore

    settings = frame.initialised()
    return SnapshotStore(settings.home / SNAPSHOTS_NAME, settings.config.storage.snapshots_kept)


@contextmanager
def opened(frame: Frame) -> Iterator[tuple["Chain", "SnapshotStore"]]:
    """The home's chain and snapshots, for this process alone."""
    from node.storage.ground import open_ground

    settings = frame.initialised()
    storage = settings.config.storage
    ground = open_ground(
        settings.home,
        settings.home / settings.config.chain.genesis,
        keep_versions=storage.keep_versions,
        cache_bytes=storage.cache_mb << 20,
    )
    try:
        yield ground.chain, store_of(frame)
    finally:
        ground.close()


def _show(frame: Frame, schema: str, found: "list[Manifest]") -> None:
    head = ("height", "block", "chunks", "bytes")
    rows: list[dict[str, Any]] = [
        {
            "height": manifest.height,
            "block_id": manifest.footing.header.block_id().hex(),
            "state_root": manifest.state_root.hex(),
            "chunks": len(manifest.chunks),
            "bytes": manifest.total_bytes(),
        }
        for manifest in found
    ]
    lines = [(row["height"], row["block_id"], row["chunks"], row["bytes"]) for row in rows]
    frame.show(schema, {"snapshots": rows}, table(head, lines))
