"""Small homes that together hold every kind of file, and all that can be read from one.

`lived` from genesis on: segments, tables, a snapshot, a journal, trusted light blocks. `begun`
began with a snapshot and keeps a block from before it, as evidence made it. `pruned` is the first
after its old payloads were dropped: its database can be made again from its own snapshot only.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from accused_kit import HEIGHT, Accused
from crashes.campaign import END, Lives
from crashes.life import Plan, all_is_old, open_home
from crashes.story import CHAIN_ID, EVERYTHING, digest, new_home, small_files, told
from stored_kit import GENESIS

from consensus.certificate import PRECOMMIT, PREVOTE
from consensus.primitives.errors import Invalid
from consensus.records import SIGNED_PROPOSAL
from node.storage import keyspace
from node.storage.errors import Damaged
from node.storage.ground import Ground, open_ground
from node.storage.lightfile import LightFile
from node.storage.signer import CannotSign
from node.storage.snapshots import SnapshotStore, check_chunk, verify_manifest
from node.storage.views import View

BLOCKS: Final = 24
PRUNED_BELOW: Final = 10  # height of the older snapshot
KINDS: Final = {  # of files, and where they lie
    "blocks": "blocks/*",
    "heads": "heads/*",
    "bundles": "bundles/*",
    "table": "db/*.ldb",
    "log": "db/*.log",
    "manifest": "db/MANIFEST-*",
    "current": "db/CURRENT",
    "snapshot": "snapshots/*/*",
    "journal": "journal/*.log",
    "signer": "signer",
    "past": "past/*",
    "light": "light.msgpack",
    "genesis": "genesis",
}


class Reading(NamedTuple):
    """What a home gave: every part by its name, and what its opening said beside it."""

    parts: dict[str, Any]  # a `Loud` where reading one failed by name
    said: tuple[str, ...]


class Loud(NamedTuple):
    """A part that could not be read, in words."""

    why: str


def lived(folder: Path) -> Path:
    """A home that has lived from genesis on, and twice: tables, a log and a MANIFEST with edits."""
    home = new_home(folder / "lived")
    _live(home, BLOCKS // 2)
    with small_files():
        ground = open_home(home)
        view = ground.chain.view()
        shown = [view.light_block(height) for height in range(1, BLOCKS // 2, 4)]
        LightFile(home, CHAIN_ID).save([block for block in shown if block is not None])
        ground.close()
    _live(home, BLOCKS - BLOCKS // 2)
    return home


def _live(home: Path, blocks: int) -> None:
    with Lives() as lives:
        for event in lives.live(Plan(str(home), END, blocks=blocks)):
            assert event["what"] not in ("failed", "refused"), event


def pruned(folder: Path) -> Path:
    """A home that has lived, and dropped old payloads."""
    home = Path(shutil.copytree(folder / "lived", folder / "pruned"))
    with small_files(), all_is_old():
        ground = open_home(home)
        assert ground.chain.prune_payloads(PRUNED_BELOW) == PRUNED_BELOW - 1
        ground.close()
        open_home(home).close()  # drops the files
    return home


def begun(folder: Path) -> Path:
    """A home that began with a snapshot, and has judged an offence from before it."""
    home = folder / "begun"
    Accused(folder / "source").caught_up(home).close()
    (home / "genesis").write_bytes(GENESIS)
    return home


def read_home(home: Path) -> Reading:
    """Open a home as the daemon does, and read all of it. Raises `StorageError` for a refusal."""
    with small_files(), ExitStack() as closing:
        ground = open_home(home) if (home / "signer").exists() else _follow(home)
        closing.callback(ground.close)
        parts = {name: _read(read) for name, read in _parts(home, ground)}
        said = [step for step in ground.chain.steps if not step.startswith("chain: ")]
        if ground.why_silent is not None:
            said.append(str(ground.why_silent))
        if ground.journal is not None and ground.journal.cut_bytes:
            said.append("journal: cut")
        if ground.chain.bundles.damaged_count:
            said.append("bundle bodies: damaged")
    return Reading(parts, tuple(said))


def _follow(home: Path) -> Ground:
    return open_ground(home, home / "genesis")


def _read(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (Damaged, Invalid, CannotSign) as error:
        return Loud(str(error))


def _parts(home: Path, ground: Ground) -> Iterator[tuple[str, Callable[[], Any]]]:
    chain, view = ground.chain, ground.chain.view()
    is_pruned = (home / "heads").exists()
    yield "height", lambda: chain.height
    # Of a pruned home only the state is the same after the database was made again.
    tables = (keyspace.STATE, keyspace.after(keyspace.STATE)) if is_pruned else EVERYTHING
    yield "database", lambda: digest(view.reader, *tables)
    for height in range(view.earliest, max(chain.height, BLOCKS) + 1):
        yield f"block {height}", partial(view.head, height)
    for step in told()[:BLOCKS] if (home / "signer").exists() else ():
        for bundle in step.bundles:
            yield f"body {bundle.hash.hex()}", partial(chain.bundles.get, bundle.hash)
    yield "light", lambda: LightFile(home, chain.chain_id).load()
    yield "past", partial(chain.pasts.find, HEIGHT)
    store = SnapshotStore(home / "snapshots")
    for height in range(1, BLOCKS + 1):
        yield f"snapshot {height}", partial(_snapshot, store, view, height)
    if (home / "signer").exists():
        yield "promise", lambda: ground.journal and ground.journal.last
        yield from _journal_parts(ground)


def _journal_parts(ground: Ground) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each for itself: a torn journal gives fewer of them."""
    journal = ground.journal
    found = journal and journal.begin(BLOCKS)
    promises = {record.place(): record for record in found.promises} if found else {}
    for kind in (SIGNED_PROPOSAL, PREVOTE, PRECOMMIT):
        yield f"journal promise {kind}", partial(promises.get, (BLOCKS, 0, kind))
    yield "journal block", lambda: found and (found.blocks or None)
    yield "journal end", lambda: found and (found.is_ended or None)


def _snapshot(store: SnapshotStore, view: View, height: int) -> Any:
    """As its readers take it: believed for nothing that its header and hashes do not show."""
    manifest = store.find(height)
    if manifest is None:
        return None
    verify_manifest(manifest, view.header(height) or manifest.footing.header)
    chunks = [store.chunk(height, index) for index in range(len(manifest.chunks))]
    for mark, raw in zip(manifest.chunks, chunks, strict=True):
        check_chunk(mark, raw or b"")
    return manifest, chunks
