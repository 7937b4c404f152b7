"""From an adapter on disk to its packed form in RAM: the disk tier first, then its own folder.

Why the folder is read at most once: what was packed is kept on the disk tier, written behind the
reader's back, so that who waits for an adapter does not wait for the disk to be sure of a copy.
What this file does not know: who wants the adapter, what else lies in RAM.
"""

import sys
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from consensus.primitives.digest import sha256
from node.serving.adapters import BUCKETS, read_adapter
from node.serving.bank import Packed
from node.serving.engine import AdapterRef, BadAdapter
from node.serving.lora import LoraStack
from node.serving.packed import Copy, PackedShelf

WRITES_WAITING_MAX: Final = 8  # packed adapters that are held in memory until they are written


class Reader:
    """Reads for one stack; `shelf` None: there is no disk tier."""

    def __init__(self, stack: LoraStack, shelf: PackedShelf | None) -> None:
        self._stack, self.shelf = stack, shelf
        self._writes = ThreadPoolExecutor(1, thread_name_prefix="packed")
        self._writing = threading.BoundedSemaphore(WRITES_WAITING_MAX)

    def read(self, ref: AdapterRef) -> Packed:
        """Raises BadAdapter, also for a folder that is not there or cannot be read, WrongBase,
        Unsupported. Blocks."""
        copy = None if self.shelf is None else self.shelf.read(ref.hash)
        if copy is not None:
            return self._of_copy(ref.hash, copy)
        try:
            file = read_adapter(ref.folder)
        except OSError as error:
            raise BadAdapter(key=ref.folder, why=str(error.strerror)) from None
        if file.hash != ref.hash:
            raise BadAdapter(key="hash", value=file.hash.hex())
        flat = self._stack.pack(file)
        targets = _shared(file.targets)
        packed = Packed(file.hash, file.rank, file.bucket, targets, dict(file.modules), flat)
        self._keep(packed)
        return packed

    def _of_copy(self, hash: bytes, copy: Copy) -> Packed:
        self._stack.check_slots(copy.bucket)  # it may be from a time of a larger budget
        flat = self._stack.from_bytes(copy.raw)
        targets = _shared({name.rsplit(".", 1)[-1] for name in copy.modules})
        modules = dict(copy.modules)
        return Packed(hash, copy.rank, copy.bucket, targets, modules, flat, source="disk")

    def _keep(self, packed: Packed) -> None:
        """Have it written; with too many waiting it is not, and read from its folder once more."""
        if self.shelf is not None and self._writing.acquire(blocking=False):
            self._writes.submit(self._write, self.shelf, packed)

    def _write(self, shelf: PackedShelf, packed: Packed) -> None:
        try:
            raw = self._stack.to_bytes(packed.flat)
            shelf.write(packed.hash, Copy(packed.rank, packed.bucket, packed.modules, raw))
        finally:
            self._writing.release()


def _shared(names: Iterable[str]) -> tuple[str, ...]:
    """Sorted; the same words in thousands of adapters are kept once."""
    return tuple(sys.intern(name) for name in sorted(names))


def layout_digest(base: bytes, stack: LoraStack) -> bytes:
    """How packed numbers lie: it follows from base, dtype and buckets."""
    return sha256(base, str(stack.dtype).encode(), repr(BUCKETS).encode())
