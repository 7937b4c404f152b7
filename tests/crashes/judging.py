"""What a home must hold after a kill: all that was told, nothing else, and nothing that differs.

Why `lost` and `different` apart: the first breaks a promise to who was told, the second would fork
a network. Everything is compared, down to the last key of the database, so that nothing is missed
because nobody asked for it.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from crashes.story import Step, digest_but_places, told
from ledger_kit import supply_is_whole

from consensus.records import SignerRecord
from node.ledger import tree
from node.ledger.wire.blocks import decode_block, decode_payload
from node.storage import keyspace
from node.storage.ground import Ground
from node.storage.journal import DoubleSign, Journal
from node.storage.snapshots import SnapshotStore, check_chunk
from node.storage.views import View


@dataclass
class Told:
    """What the lives of one home have told: it was durable by then."""

    height: int = 0  # committed
    place: tuple[int, int, int] | None = None  # of the last promise
    body: str = ""
    snapshot: int = 0

    def __post_init__(self) -> None:
        if self.place is not None:
            height, round_number, kind = self.place  # JSON knows no tuples
            self.place = height, round_number, kind

    def take(self, event: dict[str, Any]) -> None:
        """Note what a life said."""
        match event["what"]:
            case "committed" | "judged":  # what a life has opened, it shows
                self.height = max(self.height, event["height"])
            case "promised":
                height, round_number, kind = event["place"]
                self.place, self.body = (height, round_number, kind), event["body"]
            case "kept":
                self.snapshot = event["height"]


class Faults(NamedTuple):
    """What is not as it should be, in words; both empty: all is well."""

    lost: tuple[str, ...]
    different: tuple[str, ...]


def find_faults(home: Path, ground: Ground, before: Told, whole_from: int) -> Faults:
    """Judge an open home by what was told of it. Older blocks than `whole_from` may be pruned."""
    assert ground.journal is not None, ground.why_silent
    lost = (*_lost_of(ground, before, whole_from), *_lost_snapshot(home, before))
    return Faults(lost, tuple(_different(ground, whole_from)))


def _lost_of(ground: Ground, before: Told, whole_from: int) -> Iterator[str]:
    chain, journal = ground.chain, ground.journal
    if chain.height < before.height:
        yield f"blocks {chain.height + 1} to {before.height}"
    for step in told()[max(0, whole_from - 1) : chain.height]:
        for bundle in step.bundles:
            if chain.bundles.get(bundle.hash) != bundle:
                yield f"the body of bundle {bundle.hash.hex()}"
    if before.place is not None:
        assert journal is not None
        yield from _lost_promise(journal, before.place, bytes.fromhex(before.body))


def _lost_promise(journal: Journal, place: tuple[int, int, int], body: bytes) -> Iterator[str]:
    last = journal.last
    if last is None or last.place() < place:
        yield f"the promise {place}"
    elif last.place() == place and last.body != body:
        yield f"the body of the promise {place}"
    height, round_number, kind = place
    if journal.height != height:
        journal.begin(height)
    for other in (b"another", body + b"?"):
        with suppress(DoubleSign):
            journal.persist(SignerRecord(kind, height, round_number, other))
            yield f"that {place} was promised: another body could be"


def _lost_snapshot(home: Path, before: Told) -> Iterator[str]:
    store = SnapshotStore(home / "snapshots")
    found = store.find(before.snapshot)
    if before.snapshot and found is None:
        yield f"the snapshot of block {before.snapshot}"
    for manifest in store.manifests():
        for index, mark in enumerate(manifest.chunks):
            raw = store.chunk(manifest.height, index)
            if raw is None:
                yield f"chunk {index} of snapshot {manifest.height}"
            else:
                check_chunk(mark, raw)


def _different(ground: Ground, whole_from: int) -> Iterator[str]:
    chain, view = ground.chain, ground.chain.view()
    steps = told()[: chain.height]
    yield from _different_blocks(view, steps, whole_from)
    if steps and digest_but_places(view.reader) != steps[-1].database:
        yield f"the database of height {chain.height}"
    if _root_anew(view) != tree.root_hash(view.base.tree_root):
        yield f"the state of height {chain.height} is not its root's"
    if not supply_is_whole(chain.state()):
        yield "the totals do not add up to the supply"


def _different_blocks(view: View, steps: tuple[Step, ...], whole_from: int) -> Iterator[str]:
    settled: set[bytes] = set()
    for height, step in enumerate(steps, start=1):
        record, block = view.head(height), step.block
        if view.is_pruned(height) and height < whole_from:
            block = block._replace(payload=b"")
        if record is None or decode_block(record.block) != block:
            yield f"block {height}"
            continue
        bundles = decode_payload(step.block.payload).bundles
        if settled.intersection(bundles):
            yield f"block {height} settles a bundle again"
        settled.update(bundles)


def _root_anew(view: View) -> bytes:
    """The root of every record of the state."""
    builder = tree.Builder(view.height)
    for key, value in view.reader.scan(keyspace.STATE, keyspace.after(keyspace.STATE)):
        builder.add(key[len(keyspace.STATE) :], value)
    for _ in builder.nodes():
        pass  # only the root is wanted
    assert builder.record is not None
    return tree.root_hash(builder.record)
