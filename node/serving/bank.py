"""Adapters in memory: registered by hash, packed in RAM, and in the model's slots.

Why three steps: thousands are registered, hundreds are packed, and only those of live rows need
a slot; from RAM to a slot is one copy. Least recently used goes first, but never one that a live
row or a queued gradient refers to, nor a pinned one. Names never select anything (page 50 §4).
What this file does not know: requests, how an adapter came to this disk.
"""

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor

from node.serving.adapters import read_adapter
from node.serving.engine import (
    AdapterBusy,
    AdapterInfo,
    AdapterRef,
    BadAdapter,
    Overloaded,
    Tier,
    UnknownAdapter,
)
from node.serving.lora import LoraStack


@dataclass(slots=True, eq=False)
class Packed:
    """One adapter in RAM; `refs` counts live requests and gradient items."""

    hash: bytes
    rank: int
    bucket: int
    targets: tuple[str, ...]
    modules: dict[str, tuple[int, float]]
    flat: Tensor
    refs: int = 0
    pinned: bool = False
    drained: bool = False
    slot: int | None = None
    rows: int = 0  # requests that need the slot now

    @property
    def bytes(self) -> int:
        """Size of the packed form."""
        return self.flat.numel() * self.flat.element_size()


class AdapterBank:
    """Load, refer to, put into slots, forget."""

    def __init__(self, stack: LoraStack, ram_bytes: int) -> None:
        self._stack = stack
        self._ram_bytes_max = ram_bytes
        self._known: dict[bytes, AdapterRef] = {}
        self._packed: OrderedDict[bytes, Packed] = OrderedDict()
        self._slots: dict[int, OrderedDict[int, Packed]] = {}  # bucket → slot → who, oldest first
        self.slot_loads = 0

    @property
    def in_ram(self) -> int:
        """How many are packed."""
        return len(self._packed)

    @property
    def in_slots(self) -> int:
        """How many are in a slot."""
        return sum(len(slots) for slots in self._slots.values())

    def load(self, ref: AdapterRef, pin: bool) -> AdapterInfo:
        """Read, check and pack; raises BadAdapter, WrongBase, Overloaded."""
        packed = self._packed.get(ref.hash) or self._read(ref)
        self._known[ref.hash] = ref
        pinned = sum(p.bytes for p in self._packed.values() if p.pinned and p is not packed)
        if pin and pinned + packed.bytes > self._ram_bytes_max // 2:
            raise Overloaded(what="pinned adapters")
        packed.pinned = packed.pinned or pin
        packed.drained = False
        return _info(packed)

    def infos(self) -> list[AdapterInfo]:
        """Every adapter that is known, with its tier."""
        return [
            AdapterInfo(hash, 0, 0, (), 0, "disk") if packed is None else _info(packed)
            for hash in self._known
            for packed in (self._packed.get(hash),)
        ]

    def unload(self, hash: bytes, drain: bool) -> None:
        """Forget; raises UnknownAdapter, or AdapterBusy unless `drain` (then when unused)."""
        if hash not in self._known:
            raise UnknownAdapter(adapter=hash.hex())
        packed = self._packed.get(hash)
        if packed is not None and packed.refs:
            if not drain:
                raise AdapterBusy(adapter=hash.hex())
            packed.drained = True
        else:
            self._drop(hash)
        del self._known[hash]

    def refer(self, hash: bytes) -> Packed:
        """Count one more user; reads it again if it was evicted. Raises as `load` does."""
        ref = self._known.get(hash)
        if ref is None:
            raise UnknownAdapter(adapter=hash.hex())
        packed = self._packed.get(hash) or self._read(ref)
        self._packed.move_to_end(hash)
        packed.refs += 1
        return packed

    def release(self, packed: Packed) -> None:
        """One user less."""
        assert packed.refs > 0
        packed.refs -= 1
        if packed.drained and not packed.refs:
            self._drop(packed.hash)

    def can_take_slot(self, hash: bytes) -> bool:
        """Whether a row with this adapter could start now."""
        packed = self._packed[hash]
        return packed.slot is not None or self._free_slot(packed.bucket) is not None

    def take_slot(self, packed: Packed) -> int:
        """The adapter's slot, filled if need be; `leave_slot` when the request has ended."""
        if packed.slot is None:
            slot = self._free_slot(packed.bucket)
            assert slot is not None, "the scheduler asked first"
            slots = self._slots.setdefault(packed.bucket, OrderedDict())
            old = slots.pop(slot, None)
            if old is not None:
                old.slot = None
            self._stack.fill(packed.bucket, slot, packed.flat, frozenset(packed.modules))
            slots[slot] = packed
            packed.slot = slot
            self.slot_loads += 1
        self._slots[packed.bucket].move_to_end(packed.slot)
        packed.rows += 1
        return packed.slot

    def leave_slot(self, packed: Packed) -> None:
        """One request less needs the slot; it stays filled until another wants it."""
        assert packed.rows > 0
        packed.rows -= 1

    def _free_slot(self, bucket: int) -> int | None:
        slots = self._slots.get(bucket, OrderedDict())
        if len(slots) < self._stack.slots:
            return next(slot for slot in range(self._stack.slots) if slot not in slots)
        return next((slot for slot, packed in slots.items() if not packed.rows), None)

    def _read(self, ref: AdapterRef) -> Packed:
        file = read_adapter(ref.folder)
        if file.hash != ref.hash:
            raise BadAdapter(key="hash", value=file.hash.hex())
        flat = self._stack.pack(file)
        packed = Packed(file.hash, file.rank, file.bucket, file.targets, dict(file.modules), flat)
        self._make_room(packed.bytes)
        self._packed[file.hash] = packed
        return packed

    def _make_room(self, wanted: int) -> None:
        held = sum(packed.bytes for packed in self._packed.values())
        for packed in list(self._packed.values()):
            if held + wanted <= self._ram_bytes_max:
                return
            if not packed.refs and not packed.pinned:
                held -= packed.bytes
                self._drop(packed.hash)
        if held + wanted > self._ram_bytes_max:
            raise Overloaded(what="adapters in memory")

    def _drop(self, hash: bytes) -> None:
        packed = self._packed.pop(hash, None)
        if packed is not None and packed.slot is not None:
            del self._slots[packed.bucket][packed.slot]
            packed.slot = None


def _info(packed: Packed) -> AdapterInfo:
    tier: Tier = "ram" if packed.slot is None else "slot"
    return AdapterInfo(packed.hash, packed.rank, packed.bucket, packed.targets, packed.bytes, tier)
