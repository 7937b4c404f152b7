"""Reads every block, body and key once more while the chain goes on, a little at a time.

Why: a disk loses bytes without a word, and what is found while peers still have the rest can be
fetched again. Why in steps: a pass over a large chain takes days at the rate that an operator
allows, must not hold up a block, and goes on after a restart where it was.
Why bodies by the blocks that name them: one that is gone stands in no list of what is here.
What this file does not know: the clock, peers, and what becomes of what it finds.
"""

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from consensus.header import Header
from consensus.primitives.encoding import U8, U63, Bytes, Record, decode, encode
from consensus.primitives.errors import Invalid
from node.ledger import tree
from node.ledger.wire.blocks import decode_block, decode_payload
from node.storage import keyspace
from node.storage.blocklog import BlockRecord
from node.storage.bundlestore import BundleStore
from node.storage.checking import FETCHED, SCRUB_NAME, Finding, check_record
from node.storage.errors import FRESH_HOME, Damaged, DatabaseDamaged
from node.storage.segments import write_durably
from node.storage.views import View

VERSION: Final = 1
STEP_BYTES: Final = 256 << 10  # some 5 ms
CHECKED_IN: Final = 100  # one key of the state in so many is looked up in the tree
KEY_BYTES_MAX: Final = 1 << 10
FILE_BYTES_MAX: Final = KEY_BYTES_MAX + 64

_PROGRESS: Final = Record(U8, U63, Bytes(KEY_BYTES_MAX), U63)


class Progress(NamedTuple):
    """How far a pass is: the next height, then the next key; both empty before its first step."""

    height: int = 0
    key: bytes = b""
    ended_ms: int = 0  # when the last whole pass was over; 0: never

    @property
    def is_begun(self) -> bool:
        """Whether a pass is under way."""
        return bool(self.height or self.key)


class Step(NamedTuple):
    """What one step read and found. `lost`: bodies that peers may have."""

    bytes_read: int
    findings: tuple[Finding, ...] = ()
    lost: tuple[bytes, ...] = ()


def load_progress(home: Path) -> Progress:
    """What a scrub before this start has left; from the beginning where there is nothing good."""
    with suppress(OSError, Invalid):
        raw = (home / SCRUB_NAME).read_bytes()
        version, height, key, ended_ms = decode(raw, _PROGRESS, FILE_BYTES_MAX, "scrub")
        if version == VERSION:
            return Progress(height, key, ended_ms)
    return Progress()


def save_progress(home: Path, progress: Progress) -> None:
    """Keep it for the next start. Blocks for an fsync; raises OSError."""
    write_durably(home / SCRUB_NAME, encode((VERSION, *progress)))


def lost_body(name: bytes) -> Finding:
    """What is to be told of a body that nobody has given again."""
    return Finding("bundles", f"the body of bundle {name.hex()} cannot be read", FETCHED)


class Scrub:
    """One pass in steps, from `progress` on. One user; the chain may go on meanwhile."""

    def __init__(
        self,
        take_view: Callable[[], View],
        bundles: BundleStore,
        chain_id: bytes,
        bodies_from: Callable[[], int],
        progress: Progress,
    ) -> None:
        """`bodies_from`: of older blocks the bodies may have been dropped; it rises meanwhile."""
        self._take_view = take_view
        self._bundles = bundles
        self._chain_id = chain_id
        self._bodies_from = bodies_from
        self._before: Header | None = None
        self.progress = progress
        self.is_over = False

    def step(self) -> Step:
        """Read on, some STEP_BYTES. Blocks; raises `DatabaseDamaged`, which must end the node."""
        view = self._take_view()
        if self.progress.key:
            return self._step_keys(view)
        return self._step_blocks(view)

    def end(self, now_ms: int) -> None:
        """Note that the pass is over: the next one begins from the beginning."""
        assert self.is_over
        self.progress = Progress(ended_ms=now_ms)

    # -- blocks, and the bodies that they name

    def _step_blocks(self, view: View) -> Step:
        done, findings, lost = 0, list[Finding](), list[bytes]()
        height, bodies_from = max(self.progress.height, view.earliest), self._bodies_from()
        while height <= view.height and done < STEP_BYTES:
            try:
                record = view.head(height)
                if record is None:
                    raise DatabaseDamaged(f"block {height} is missing in the database")
                done += len(record.block) + len(record.certificate)
                self._before = check_record(record, self._before, self._chain_id)
                if height >= max(bodies_from, view.earliest_whole):
                    done += self._read_bodies(record, lost)
            except DatabaseDamaged:
                raise
            except (Damaged, Invalid) as error:
                self._before = None
                findings.append(Finding("blocks", f"block {height}: {error}", FRESH_HOME))
            height += 1
        is_last = height > view.height
        self.progress = self.progress._replace(height=height, key=b"\x00" if is_last else b"")
        return Step(done, tuple(findings), tuple(lost))

    def _read_bodies(self, record: BlockRecord, lost: list[bytes]) -> int:
        names = decode_payload(decode_block(record.block).payload).bundles
        found = {name: self._bundles.get(name) for name in names}
        missing = [name for name, bundle in found.items() if bundle is None]
        if missing and record.height >= self._bodies_from():  # else dropped while we read
            lost += missing
        return sum(len(bundle.header) + len(bundle.body) for bundle in found.values() if bundle)

    # -- keys

    def _step_keys(self, view: View) -> Step:
        done, last = 0, b""
        checker = tree.Checker(view.base.read_node, view.base.tree_root)
        for key, value in view.reader.scan(self.progress.key, b"\xff"):
            done, last = done + len(key) + len(value), key
            if key.startswith(keyspace.STATE) and random.randrange(CHECKED_IN) == 0:
                _check_in_tree(checker, key[len(keyspace.STATE) :], value)
            if done >= STEP_BYTES:
                break
        self.is_over = done < STEP_BYTES
        self.progress = self.progress._replace(key=last + b"\x00" if last else self.progress.key)
        return Step(done)


def _check_in_tree(checker: tree.Checker, key: bytes, value: bytes) -> None:
    try:
        checker.check(key, value)
    except (Invalid, tree.MissingNode) as error:
        why = str(error)
        raise DatabaseDamaged("a record of the state is not in its tree", why=why) from error
