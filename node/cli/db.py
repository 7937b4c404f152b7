"""`olnode db`: the files that the ledger lies in: check, scrub, rebuild, prune, their sizes.

Why there is no repair: LevelDB's own left holes or wrong values nearly always. The database is an
index of the block log and is made again from it; what the logs lost, peers have. Checking and
rebuilding need the home to themselves: stop the node first.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from node.cli.frame import DAMAGED, CommandError, frame_of, new_noun, table
from node.config import Settings

if TYPE_CHECKING:
    from node.storage.ground import Ground

app = new_noun("Check, scrub, rebuild, prune and size up the files of the ledger.")

COUNTED: Final = ("blocks", "bundles", "keys", "snapshots", "receipts", "goods", "bytes")
LEDGER: Final = ("blocks", "heads", "bundles", "db", "snapshots", "past")
FOLDERS: Final = (*LEDGER, "blobs", "receipts", "journal")


@app.command()
def check(ctx: typer.Context) -> None:
    """Read everything and compare it with its checksums, hashes and roots; changes nothing.

    The ledger, what this node signed and was promised, its models and their indexes. Keys are
    looked at without their passwords: that they open, a start tells.
    """
    from consensus.primitives.digest import sha256
    from node.belongings import check_belongings
    from node.home import wanted_keys
    from node.observe import seldom
    from node.storage.chain import BODIES_KEPT_MS
    from node.storage.checking import check_home
    from node.storage.ground import read_genesis
    from node.storage.lock import lock_home

    frame = frame_of(ctx)
    settings = frame.initialised()
    chain_id = sha256(read_genesis(settings.home / settings.config.chain.genesis))
    kept_ms = None if settings.config.storage.archive else BODIES_KEPT_MS
    tell = seldom(_tell_read)
    with lock_home(settings.home):
        checked = check_home(settings.home, chain_id, tell, bodies_kept_ms=kept_ms)
        check_belongings(
            settings.home,
            chain_id,
            checked,
            keystore=frame.keystore(settings),
            wanted=wanted_keys(settings),
            tell=tell,
        )
    told = {"height": checked.height, **{name: checked.counts[name] for name in COUNTED}}
    rows = [finding._asdict() for finding in checked.findings]
    lines = [", ".join(f"{checked.counts[name]:,} {name}" for name in COUNTED) + " read"]
    if rows:
        lines += table(("part", "what", "mend"), [tuple(row.values()) for row in rows])
    else:
        lines.append("everything that was read is as it was written")
    lines += checked.notes
    frame.show("db.check/1", {**told, "findings": rows, "notes": checked.notes}, lines)
    if rows:
        raise typer.Exit(DAMAGED)


@app.command()
def scrub(ctx: typer.Context) -> None:
    """Read all blocks, bodies and keys as a running node does by itself each `scrub_days`, but now
    and at full speed. Opens the ledger as a start does, so it mends what a start mends."""
    from node.observe import seldom
    from node.storage.adopting import DB_NAME
    from node.storage.checking import Finding
    from node.storage.errors import DatabaseDamaged
    from node.storage.scrubbing import Progress, lost_body
    from node.storage.store import suspect

    frame = frame_of(ctx)
    settings, tell = frame.initialised(), seldom(_tell_read)
    read, findings, ground = 0, list[Finding](), _open(settings)
    try:
        height, steps = ground.chain.height, ground.chain.steps
        scrub = ground.chain.scrub(Progress(), is_archive=settings.config.storage.archive)
        while not scrub.is_over:
            step = scrub.step()
            read += step.bytes_read
            findings += [*step.findings, *map(lost_body, step.lost)]
            tell("bytes", read)
    except DatabaseDamaged as damage:
        suspect(settings.home / DB_NAME, damage.told)
        what, mend = damage.what, damage.mend
        raise CommandError(what, status=DAMAGED, mend=mend, why=damage.why) from damage
    finally:
        ground.close()
    rows = [finding._asdict() for finding in findings]
    lines = [*steps, f"{height:,} blocks, their bodies and all keys: {read:,} bytes read"]
    if rows:
        lines += table(("part", "what", "mend"), [tuple(row.values()) for row in rows])
    else:
        lines.append("everything is as it was written")
    told = {"height": height, "bytes": read, "steps": steps, "findings": rows}
    frame.show("db.scrub/1", told, lines)
    if rows:
        raise typer.Exit(DAMAGED)


@app.command()
def rebuild(
    ctx: typer.Context,
    force: Annotated[
        bool, typer.Option("--force", help="also where the block log ends below the database")
    ] = False,
) -> None:
    """Make the database again from the block log; the old one stays as db.damaged.

    Refused where the chain would fall back by it; what cannot be made again is put back.
    """
    from node.storage.rebuilding import rebuilding

    frame = frame_of(ctx)
    settings = frame.initialised()
    with rebuilding(settings.home, may_fall_back=force) as aside:
        ground = _open(settings)
    height, steps = ground.chain.height, ground.chain.steps
    ground.close()
    told = {"height": height, "aside": str(aside or ""), "steps": steps}
    lines = [*steps, f"the old one lies in {aside}" if aside else "there was no old one"]
    frame.show("db.rebuild/1", told, lines)


@app.command()
def prune(ctx: typer.Context) -> None:
    """Drop now what the settings let a running node drop by and by; headers and certificates stay.

    Bundle bodies past the challenge window and a week unless `storage.archive`, payloads of blocks
    as old if `storage.prune_payloads`, versions of the state beyond `storage.keep_versions`,
    snapshots beyond `storage.snapshots_kept`.
    """
    from node.storage.opening import SNAPSHOTS_NAME
    from node.storage.snapshots import SnapshotStore

    frame = frame_of(ctx)
    settings = frame.initialised()
    storage, home = settings.config.storage, settings.home
    before, ground = _all_bytes(home), _open(settings)
    try:
        chain = ground.chain
        snapshots = SnapshotStore(home / SNAPSHOTS_NAME, storage.snapshots_kept)
        view = chain.view()
        oldest = snapshots.oldest_height(view.earliest)
        gone = {
            "bodies": 0 if storage.archive else chain.prune_bodies(oldest),
            "payloads": 0,
            "nodes": chain.prune_tree(),
            "snapshots": snapshots.prune(view.needed_snapshot),
        }
        oldest = snapshots.oldest_height(view.earliest)
        while storage.prune_payloads and (moved := chain.prune_payloads(oldest)):
            gone["payloads"] += moved
    finally:
        ground.close()
    if gone["payloads"]:
        _open(settings).close()  # an opening drops the files that nobody looks into any more
    freed = max(0, before - _all_bytes(home))  # opening a small one writes more than it drops
    lines = [f"{number:,} {name}" for name, number in gone.items()]
    frame.show("db.prune/1", {**gone, "freed_bytes": freed}, [*lines, f"{freed:,} bytes freed"])


@app.command()
def size(ctx: typer.Context) -> None:
    """Bytes and files by folder; the node may run."""
    frame = frame_of(ctx)
    home = frame.initialised().home
    rows = [{"folder": name, **_measured(home / name)} for name in FOLDERS]
    lines = table(
        ("folder", "files", "bytes"), [(row["folder"], row["files"], row["bytes"]) for row in rows]
    )
    frame.show("db.size/1", {"folders": rows}, lines)


def _open(settings: Settings) -> "Ground":
    """The ledger, opened as a start does."""
    from node.observe import seldom
    from node.storage.ground import open_ground

    storage, tell = settings.config.storage, seldom(_tell_read)
    return open_ground(
        settings.home,
        settings.home / settings.config.chain.genesis,
        keep_versions=storage.keep_versions,
        cache_bytes=storage.cache_mb << 20,
        tell=lambda height, last: tell(f"blocks up to {last:,}", height),
    )


def _all_bytes(home: Path) -> int:
    return sum(_measured(home / name)["bytes"] for name in LEDGER)


def _measured(folder: Path) -> dict[str, int]:
    sizes = []
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                sizes.append(path.stat().st_size)
        except FileNotFoundError:  # a running node drops and renames files
            continue
    return {"files": len(sizes), "bytes": sum(sizes)}


def _tell_read(part: str, done: int) -> None:
    sys.stderr.write(f"{part}: {done:,} read\n")
