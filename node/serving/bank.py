"""Adapters in memory: registered by hash, packed in RAM, and in the model's slots.

Why three steps: thousands are registered, hundreds are packed, and only those of live rows need
a slot; from RAM to a slot is one copy. Least recently used goes first, but never one that a live
row or a queued gradient refers to, nor a pinned one. Names never select anything (page 50 §4).
Why leases: what is not in RAM is read by a thread, and fetched by the host where its files are
gone; who wants it holds a lease meanwhile, and all who want the same wait for one reading.
What this file does not know: requests, how an adapter is read, where the host finds one.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from torch import Tensor

from node.serving.engine import (
    AdapterBusy,
    AdapterInfo,
    AdapterRef,
    BadAdapter,
    EngineError,
    Overloaded,
    Tier,
    UnknownAdapter,
)
from node.serving.loader import Arrival, Loader
from node.serving.lora import LoraStack
from node.serving.timing import Timing

LOADS_MAX: Final = 1_024  # adapters on their way at once; each is wanted by somebody who waits

Source = Literal["folder", "disk", "peers"]


@dataclass(slots=True, eq=False)
class Packed:
    """One adapter in RAM; `refs` counts live requests and gradient items."""

    hash: bytes
    rank: int
    bucket: int
    targets: tuple[str, ...]
    modules: dict[str, tuple[int, float]]
    flat: Tensor
    source: Source = "folder"
    refs: int = 0
    pinned: bool = False
    drained: bool = False
    slot: int | None = None
    rows: int = 0  # requests that need the slot now

    @property
    def bytes(self) -> int:
        """Size of the packed form."""
        return self.flat.numel() * self.flat.element_size()


@dataclass(slots=True, eq=False)
class Lease:
    """One user's hold on an adapter: on its way while there is neither it nor an error."""

    hash: bytes
    packed: Packed | None = None
    error: EngineError | None = None
    is_new: bool = False  # not known before: forgotten again if it does not come

    @property
    def is_waiting(self) -> bool:
        """Whether the adapter is on its way."""
        return self.packed is None and self.error is None


@dataclass(slots=True)
class _Way:
    """An adapter on its way, and who waits for it."""

    leases: list[Lease] = field(default_factory=list)
    source: Source | None = None  # other than where the reader found it
    since_s: float = 0.0


class AdapterBank:
    """Load, refer to, put into slots, forget.

    `can_fetch`: whether a host takes `wanted` and answers by `found` or `missing`.
    """

    def __init__(
        self, stack: LoraStack, loader: Loader[Packed], ram_bytes: int, *, can_fetch: bool = False
    ) -> None:
        self._stack, self._loader = stack, loader
        self._ram_bytes_max = ram_bytes
        self._can_fetch = can_fetch
        self._known: dict[bytes, AdapterRef] = {}
        self._facts: dict[bytes, AdapterInfo] = {}  # of those that were read once, as on disk
        self._packed: OrderedDict[bytes, Packed] = OrderedDict()
        self._ways: dict[bytes, _Way] = {}
        self._wanted: list[bytes] = []
        self._slots: dict[int, OrderedDict[int, Packed]] = {}  # bucket → slot → who, oldest first
        self.ram_bytes = 0
        self.slot_loads = 0
        self.evicted: Counter[str] = Counter()  # by tier
        self.load_seconds: dict[str, Timing] = {  # by where it was loaded from
            name: Timing() for name in ("ram", "disk", "folder", "peers")
        }

    @property
    def registered(self) -> int:
        """How many are known."""
        return len(self._known)

    @property
    def in_ram(self) -> int:
        """How many are packed."""
        return len(self._packed)

    @property
    def in_slots(self) -> int:
        """How many are in a slot."""
        return sum(len(slots) for slots in self._slots.values())

    @property
    def is_loading(self) -> bool:
        """Whether any is on its way."""
        return bool(self._ways)

    def register(self, ref: AdapterRef) -> None:
        """Know where an adapter lies, and read it when it is first wanted: thousands at once."""
        self._known[ref.hash] = ref

    def infos(self) -> list[AdapterInfo]:
        """Every adapter that is known, with its tier."""
        return [
            self._facts.get(hash, AdapterInfo(hash, 0, 0, (), 0, "disk"))
            if packed is None
            else _info(packed)
            for hash in self._known
            for packed in (self._packed.get(hash),)
        ]

    def bucket_of(self, hash: bytes) -> int:
        """The bucket of an adapter that was read once, else 0."""
        facts = self._facts.get(hash)
        return 0 if facts is None else facts.bucket

    # --- into RAM

    def want(self, hash: bytes) -> Lease:
        """A lease on an adapter; what is not in RAM is asked for. Raises UnknownAdapter,
        Overloaded."""
        ref = self._known.get(hash)
        if ref is None:
            raise UnknownAdapter(adapter=hash.hex())
        packed = self._packed.get(hash)
        if packed is not None:
            self._packed.move_to_end(hash)
            packed.refs += 1
            return Lease(hash, packed)
        way = self._ways.get(hash)
        if way is None:
            if len(self._ways) >= LOADS_MAX:
                raise Overloaded(what="adapters on their way", retry_after_s=1)
            way = self._ways[hash] = _Way(since_s=time.monotonic())
            self._loader.ask(ref)
        lease = Lease(hash)
        way.leases.append(lease)
        return lease

    def give_back(self, lease: Lease) -> None:
        """One user less, whether the adapter has come or not; its loading goes on."""
        if lease.packed is not None:
            self.release(lease.packed)
        elif lease.error is None:
            self._ways[lease.hash].leases.remove(lease)

    def refer(self, hash: bytes) -> Packed:
        """As `want`, and waits; for callers with nothing else to do. Raises as `load` does."""
        lease = self.want(hash)
        self.wait(lease)
        if lease.error is not None:
            raise lease.error
        assert lease.packed is not None
        return lease.packed

    def release(self, packed: Packed) -> None:
        """One user less."""
        assert packed.refs > 0
        packed.refs -= 1
        if packed.drained and not packed.refs:
            self._drop(packed)

    def wait(self, lease: Lease) -> None:
        """Until the adapter has come, or has not. Never with a host that fetches."""
        while lease.is_waiting:
            self._loader.wait()
            self.poll()

    def poll(self) -> bool:
        """Take what was read; whether there was anything. Never waits."""
        arrivals = self._loader.arrivals()
        for arrival in arrivals:
            self._arrive(arrival)
        return bool(arrivals)

    def begin_load(self, ref: AdapterRef) -> Lease:
        """A lease on an adapter that need not be known yet; end it by `end_load`."""
        is_new = ref.hash not in self._known
        self._known[ref.hash] = ref
        try:
            lease = self.want(ref.hash)
        except Overloaded:
            if is_new:
                del self._known[ref.hash]
            raise
        lease.is_new = is_new
        return lease

    def end_load(self, lease: Lease, pin: bool) -> AdapterInfo:
        """What has come of `begin_load`; raises BadAdapter, WrongBase, Overloaded, Unsupported."""
        if lease.error is not None:
            if lease.is_new and lease.hash not in self._ways:
                self._known.pop(lease.hash, None)
            raise lease.error
        packed = lease.packed
        assert packed is not None, "wait first"
        try:
            pinned = sum(p.bytes for p in self._packed.values() if p.pinned and p is not packed)
            if pin and pinned + packed.bytes > self._ram_bytes_max // 2:
                raise Overloaded(what="pinned adapters")
            packed.pinned = packed.pinned or pin
            packed.drained = False
            return _info(packed)
        finally:
            self.release(packed)

    def load(self, ref: AdapterRef, pin: bool) -> AdapterInfo:
        """`begin_load`, wait, `end_load`."""
        lease = self.begin_load(ref)
        self.wait(lease)
        return self.end_load(lease, pin)

    def unload(self, hash: bytes, drain: bool) -> None:
        """Forget; raises UnknownAdapter, or AdapterBusy unless `drain` (then when unused)."""
        if hash not in self._known:
            raise UnknownAdapter(adapter=hash.hex())
        packed, way = self._packed.get(hash), self._ways.get(hash)
        is_used = (packed is not None and packed.refs) or (way is not None and way.leases)
        if is_used and not drain:
            raise AdapterBusy(adapter=hash.hex())
        del self._known[hash]
        self._facts.pop(hash, None)
        if packed is not None and is_used:
            packed.drained = True
        elif packed is not None:
            self._drop(packed)

    # --- from elsewhere

    def wanted(self) -> list[bytes]:
        """What the host shall fetch, since last asked: files that are gone, or not as they were."""
        wanted, self._wanted = self._wanted, []
        return wanted

    def found(self, ref: AdapterRef) -> None:
        """The host has it: read it now."""
        if ref.hash in self._ways:
            if ref.hash in self._known:  # else it was unloaded meanwhile
                self._known[ref.hash] = ref
            self._loader.ask(ref)

    def missing(self, hash: bytes, why: str) -> None:
        """The host could not get it: who waits is told."""
        way = self._ways.pop(hash, None)
        if way is not None:
            self._refuse(way, UnknownAdapter(adapter=hash.hex(), why=why))

    def _arrive(self, arrival: Arrival[Packed]) -> None:
        hash, outcome = arrival.ref.hash, arrival.outcome
        way = self._ways.get(hash)
        if way is None:  # told of twice by the host
            return
        if isinstance(outcome, BadAdapter) and self._can_fetch and way.source is None:
            way.source = "peers"  # once; what comes back bad is bad
            self._wanted.append(hash)
            return
        del self._ways[hash]
        if isinstance(outcome, EngineError):
            self._refuse(way, outcome)
            return
        took_s = time.monotonic() - way.since_s if way.source else arrival.took_s
        self.load_seconds[way.source or outcome.source].note(took_s)
        if hash in self._known or way.leases:
            self._admit(outcome, way)

    def _admit(self, packed: Packed, way: _Way) -> None:
        try:
            self._make_room(packed.bytes)
        except Overloaded as error:
            self._refuse(way, error)
            return
        self._facts[packed.hash] = replace(_info(packed), tier="disk")
        self._packed[packed.hash] = packed
        self.ram_bytes += packed.bytes
        packed.drained = packed.hash not in self._known
        for lease in way.leases:
            packed.refs += 1
            lease.packed = packed

    @staticmethod
    def _refuse(way: _Way, error: EngineError) -> None:
        for lease in way.leases:
            lease.error = error

    def _make_room(self, wanted: int) -> None:
        """Evict the longest unused until `wanted` bytes fit, all or none; raises Overloaded."""
        over = self.ram_bytes + wanted - self._ram_bytes_max
        evicted = []
        for packed in self._packed.values():
            if over <= 0:
                break
            if not packed.refs and not packed.pinned:
                over -= packed.bytes
                evicted.append(packed)
        if over > 0:
            raise Overloaded(what="adapters in memory", retry_after_s=1)
        for packed in evicted:
            self._drop(packed)
            self.evicted["ram"] += 1

    def _drop(self, packed: Packed) -> None:
        del self._packed[packed.hash]
        self.ram_bytes -= packed.bytes
        if packed.slot is not None:
            del self._slots[packed.bucket][packed.slot]
            packed.slot = None

    # --- into slots

    def can_take_slot(self, packed: Packed) -> bool:
        """Whether a row with this adapter could start now."""
        return packed.slot is not None or next(self._free_slots(packed.bucket), None) is not None

    def take_slot(self, packed: Packed) -> int:
        """The adapter's slot, filled if need be; `leave_slot` when the request has ended."""
        if packed.slot is None:
            self._fill_slot(packed)
        assert packed.slot is not None
        self._slots[packed.bucket].move_to_end(packed.slot)
        packed.rows += 1
        return packed.slot

    def _fill_slot(self, packed: Packed) -> None:
        began_s = time.monotonic()
        slot = next(self._free_slots(packed.bucket))  # the scheduler asked first
        slots = self._slots.setdefault(packed.bucket, OrderedDict())
        old = slots.pop(slot, None)
        if old is not None:
            old.slot = None
            self.evicted["slot"] += 1
        self._stack.fill(packed.bucket, slot, packed.flat, frozenset(packed.modules))
        slots[slot] = packed
        packed.slot = slot
        self.slot_loads += 1
        self.load_seconds["ram"].note(time.monotonic() - began_s)

    def leave_slot(self, packed: Packed) -> None:
        """One request less needs the slot; it stays filled until another wants it."""
        assert packed.rows > 0
        packed.rows -= 1

    def _free_slots(self, bucket: int) -> Iterator[int]:
        """Slots that no row needs: the never filled, then the longest unused."""
        slots = self._slots.get(bucket, OrderedDict())
        if len(slots) < self._stack.slots[bucket]:
            yield from (slot for slot in range(self._stack.slots[bucket]) if slot not in slots)
        yield from (slot for slot, packed in slots.items() if not packed.rows)


def _info(packed: Packed) -> AdapterInfo:
    tier: Tier = "ram" if packed.slot is None else "slot"
    return AdapterInfo(packed.hash, packed.rank, packed.bucket, packed.targets, packed.bytes, tier)
