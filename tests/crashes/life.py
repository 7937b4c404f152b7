"""The life of one validator over real files: it agrees, settles and promises until it is killed.

    python tests/crashes/life.py      reads plans, a JSON object a line, and tells what happened

Each life is forked from a process that has everything imported and nothing open, which is why a
campaign of a thousand takes minutes. Before each of its operations on a file a life may find that
this was its last: SIGKILL then, with half of a write done if the plan says so. What it has told
was durable when it was told; the next life must find it.
"""

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest import mock

from crashes.judging import Told, find_faults
from crashes.story import KEEP_VERSIONS, VALIDATOR, Step, small_files, told

from consensus.certificate import PRECOMMIT, PREVOTE
from consensus.records import SIGNED_PROPOSAL, SignerRecord
from node.ledger.wire.blocks import encode_block
from node.storage.errors import StorageError
from node.storage.ground import Ground, open_ground
from node.storage.snapshots import SnapshotStore
from node.storage.store import LevelKV

SNAPSHOT_EVERY: Final = 10
CATCH_UP: Final = 4  # blocks under one sync
ROUND: Final = 0
KEPT_MS: Final = -(10**12)  # as if no body were young enough to be needed
FILE_CALLS: Final = ("fdatasync", "fsync", "ftruncate", "replace", "rename", "unlink")


@dataclass(frozen=True)
class Plan:
    """Where a life takes place, how it ends, and what the lives before it told."""

    home: str
    last_operation: int = 0  # SIGKILL instead of this one; 0: only who reads us may kill
    tears: bool = False  # it is half done, if it is a write
    blocks: int = 1_000  # then it ends by itself
    prunes: bool = False  # old bodies and payloads, with each snapshot; the same for all of a home
    catches_up: bool = False  # decided blocks, several under one sync, without a vote
    told: dict[str, Any] = field(default_factory=lambda: asdict(Told()))


class Operations:
    """Counts what is done to files, and ends the process instead of one of them."""

    def __init__(self, last: int, tears: bool) -> None:
        self._last = last
        self._tears = tears
        self._done = 0
        self._lock = threading.Lock()  # the signer's sync is in a thread of its own

    @contextmanager
    def counted(self) -> Iterator[None]:
        """All calls to the system that change files, and the database's writes."""
        calls = {name: partial(self._do, name, getattr(os, name)) for name in FILE_CALLS}
        calls["pwrite"] = partial(self._write, os.pwrite)
        write = LevelKV.write

        def write_counted(store: LevelKV, *arguments: Any) -> None:
            self._do("database", write, store, *arguments)

        with mock.patch.multiple("os", **calls), mock.patch.object(LevelKV, "write", write_counted):
            yield

    def _do(self, name: str, real: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if self._is_last():
            _die(name)
        return real(*arguments, **named)

    def _write(self, real: Callable[..., int], descriptor: int, data: bytes, offset: int) -> int:
        if self._is_last():
            if self._tears:
                real(descriptor, bytes(data)[: self._last * 7_919 % len(data)], offset)
            _die("pwrite")
        return real(descriptor, data, offset)

    def _is_last(self) -> bool:
        with self._lock:
            self._done += 1
            return self._done == self._last


def _die(at: str) -> None:
    say("dying", at=at)
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()  # in another thread than the main one it may take a moment


def say(what: str, **facts: Any) -> None:
    """One line to who reads us, at once."""
    os.write(1, json.dumps({"what": what, **facts}).encode() + b"\n")


def live(plan: Plan) -> None:
    """Open, be judged, go on with the story to its end."""
    steps = told()
    with small_files(), all_is_old(), Operations(plan.last_operation, plan.tears).counted():
        try:
            ground = open_home(Path(plan.home))
        except StorageError as error:
            say("refused", why=str(error))
            return
        snapshots = SnapshotStore(Path(plan.home) / "snapshots")
        whole_from = snapshots.oldest_height() if plan.prunes else 0
        faults = find_faults(Path(plan.home), ground, Told(**plan.told), whole_from)
        say("judged", height=ground.chain.height, **faults._asdict())
        go = catch_up if plan.catches_up else agree
        last = ground.chain.height + plan.blocks
        go(ground, steps[:last], partial(keep_snapshot, ground, snapshots, plan.prunes))
        ground.close()
    say("finished")


def all_is_old() -> AbstractContextManager[object]:
    """The challenge window and the week after it are over for every block."""
    return mock.patch("node.storage.chain.BODIES_KEPT_MS", KEPT_MS)


def open_home(home: Path) -> Ground:
    """As the daemon does."""
    return open_ground(home, home / "genesis", validator_key=VALIDATOR, keep_versions=KEEP_VERSIONS)


def agree(ground: Ground, steps: Sequence[Step], keep: Callable[[], None]) -> None:
    """Block after block as a validator: bodies, promises, commit."""
    chain, journal = ground.chain, ground.journal
    assert journal is not None
    for step in steps[chain.height :]:
        height, block_id = chain.height + 1, step.block_id
        journal.begin(height)
        for bundle in step.bundles:
            chain.bundles.append(bundle)
        journal.block(encode_block(step.block))
        promise(ground, SIGNED_PROPOSAL, height, block_id)
        verdict = chain.execute(step.block)
        assert verdict.is_valid, verdict
        promise(ground, PREVOTE, height, block_id)
        chain.bundles.sync()
        promise(ground, PRECOMMIT, height, block_id)
        chain.commit(block_id, step.certificate)
        journal.end()
        say("committed", height=height)
        keep()


def promise(ground: Ground, kind: int, height: int, block_id: bytes) -> None:
    """Give our word, unless a life before this one has."""
    journal = ground.journal
    assert journal is not None
    record = SignerRecord(kind, height, ROUND, block_id)
    if journal.last is not None and journal.last.place() > record.place():
        return
    journal.persist(record)
    journal.sign(record, lambda tag, body: body)
    say("promised", place=record.place(), body=record.body.hex())


def catch_up(ground: Ground, steps: Sequence[Step], keep: Callable[[], None]) -> None:
    """Decided blocks as from a peer; what comes next is above any promise."""
    chain = ground.chain
    while chain.height < len(steps):
        some = steps[chain.height : chain.height + CATCH_UP]
        for step in some:
            for bundle in step.bundles:
                chain.bundles.append(bundle)
        chain.commit_many([(step.block, step.certificate) for step in some])
        say("committed", height=chain.height)
        keep()


def keep_snapshot(ground: Ground, snapshots: SnapshotStore, prunes: bool) -> None:
    """Now and then, and drop what is older, as the daemon does."""
    chain = ground.chain
    if chain.height % SNAPSHOT_EVERY:
        return
    snapshots.make(chain.view())
    snapshots.prune()
    say("kept", height=chain.height)
    if prunes:
        chain.prune_bodies(snapshots.oldest_height())
        chain.prune_payloads(snapshots.oldest_height())


def main() -> None:
    """Fork a life for each plan; tell how it ended."""
    told()
    say("ready")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _live_and_exit(Plan(**json.loads(line)))
        say("living", pid=child)
        _, status = os.waitpid(child, 0)
        say("ended", killed=os.WIFSIGNALED(status), status=status)


def _live_and_exit(plan: Plan) -> None:
    try:
        live(plan)
    except BaseException:  # noqa: BLE001  # a fork must never go on as its parent
        say("failed", why=traceback.format_exc())
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
