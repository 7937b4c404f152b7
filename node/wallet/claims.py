"""Sketch and statement of the answers that were bought: what their shares are checked with later.

Why on the disk: an answer settles minutes after it was bought, and its money waits for a day; a
node that starts anew meanwhile would have nothing to check with, nor to show its operator.
Why a file for each, without fsync: what a crash takes is only asked of the provider again, and
the payer waits for no disk. Prompt and answer are never written.
What this file does not know: whether a claim is true, what a receipt says.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Final

from consensus.primitives.digest import HASH_BYTES
from consensus.primitives.encoding import Bytes, Record, decode, encode
from consensus.primitives.errors import Invalid
from node.ledger.rules.refuting import Claim
from node.ledger.wire.claims import ROW_BYTES, STATEMENT_BYTES_MAX
from node.observe import get_log

CLAIMS_MAX: Final = 4_096  # 2 KB each, in memory too; the oldest go
KEEP_S: Final = 2 * 86_400  # a receipt is settled within hours, and then disputed for a day
FILE_BYTES_MAX: Final = ROW_BYTES + STATEMENT_BYTES_MAX + 16  # with msgpack's lengths
MAKING: Final = ".new"  # a file that is being written, or that a crash left
NS_PER_MS: Final = 1_000_000

_SHAPE: Final = Record(Bytes(ROW_BYTES), Bytes(STATEMENT_BYTES_MAX))

log = get_log("wallet")


class Claims:
    """By receipt id, oldest first. `keep` blocks, any thread; the others only look."""

    def __init__(self, folder: Path, *, now_ms: Callable[[], int]) -> None:
        """Reads what an earlier life kept in `folder`, and deletes there what is too old, too
        many, or not whole. A folder that cannot be read or made is no reason not to start."""
        self._folder = folder
        self._now_ms = now_ms
        self._lock = Lock()
        self._held: dict[bytes, Claim] = {}
        self._stamp_ns = 0
        self.counters: Counter[str] = Counter()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._read_kept()
        except OSError as error:
            self.counters["unreadable"] += 1
            log.warning("what was kept of answers cannot be read", why=str(error))

    def find(self, receipt: bytes) -> Claim | None:
        """What the shares of that receipt were stated to follow from."""
        return self._held.get(receipt)

    def receipts(self) -> list[bytes]:
        """Ids, oldest first."""
        return list(self._held)

    def keep(self, receipt: bytes, claim: Claim) -> None:
        """Never raises: what a full disk does not take is known until the next start."""
        with self._lock:
            self._held[receipt] = claim
            stamp_ns = self._stamp_ns = max(self._now_ms() * NS_PER_MS, self._stamp_ns + 1)
            gone = self._trim()
        try:
            self._write(self._path(receipt), encode(claim), stamp_ns)
        except OSError as error:
            self.counters["unkept"] += 1
            if self.counters["unkept"] == 1:  # once: a full disk is told by others
                log.warning("sketch and statement of an answer are not kept", why=str(error))
        for old in gone:
            self._delete(self._path(old))

    def _trim(self) -> list[bytes]:
        """Forget the oldest above the limit; which they were."""
        gone = []
        while len(self._held) > CLAIMS_MAX:
            gone.append(next(iter(self._held)))
            del self._held[gone[-1]]
        return gone

    # --- the files

    def _path(self, receipt: bytes) -> Path:
        return self._folder / receipt.hex()

    def _write(self, path: Path, raw: bytes, stamp_ns: int) -> None:
        """Whole or not at all, but for a crash of the machine. Its time is ours: it tells the
        order and the age at the next start."""
        making = path.with_name(path.name + MAKING)
        try:
            descriptor = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(raw)
            os.utime(making, ns=(stamp_ns, stamp_ns))
            os.replace(making, path)
        except OSError:
            self._delete(making)
            raise

    def _delete(self, path: Path) -> None:
        """What stays is looked at again at the next start."""
        with suppress(OSError):
            path.unlink(missing_ok=True)

    def _read_kept(self) -> None:
        oldest_ns = (self._now_ms() - KEEP_S * 1_000) * NS_PER_MS
        found = sorted(self._kept_files())
        newest = found[-CLAIMS_MAX:]
        for _, path in found[: len(found) - len(newest)]:
            self._delete(path)
        for stamp_ns, path in newest:
            if stamp_ns < oldest_ns:
                self._delete(path)
            else:
                self._read(path)

    def _kept_files(self) -> Iterator[tuple[int, Path]]:
        """Time and path of each file of ours; what was never finished goes."""
        with os.scandir(self._folder) as entries:
            for entry in entries:
                name = entry.name.removesuffix(MAKING)
                if not _is_id(name) or not entry.is_file(follow_symlinks=False):
                    self.counters["foreign"] += 1
                elif entry.name != name:
                    self._delete(Path(entry.path))
                else:
                    yield entry.stat(follow_symlinks=False).st_mtime_ns, Path(entry.path)

    def _read(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                raw = file.read(FILE_BYTES_MAX + 1)
            claim = Claim(*decode(raw, _SHAPE, FILE_BYTES_MAX, "claim"))
        except OSError:
            self.counters["unreadable"] += 1
        except Invalid:
            self.counters["torn"] += 1
            self._delete(path)
        else:
            self._held[bytes.fromhex(path.name)] = claim


def _is_id(name: str) -> bool:
    """Whether a file of ours has that name: one id has one."""
    try:
        raw = bytes.fromhex(name)
    except ValueError:
        return False
    return len(raw) == HASH_BYTES and raw.hex() == name
