"""The adapter tiers of one engine put together: registered, on disk, in RAM, in slots.

Why loading is a call of its own: who loads an adapter waits for it, the engine does not, so each
call's number is kept until the reading thread has brought what it asks for.
What this file does not know: requests, rows, frames.
"""

from collections.abc import Callable

from node.serving.bank import AdapterBank, Lease
from node.serving.engine import AdapterInfo, AdapterRef, EngineError, EngineSettings, TierStats
from node.serving.loader import Loader
from node.serving.lora import LoraStack
from node.serving.packed import PackedShelf
from node.serving.packing import Reader, layout_digest

Settled = tuple[int, AdapterInfo | EngineError | None]  # a call's number, and what came of it


class Tiers:
    """What the core asks of its adapters beside `bank`."""

    def __init__(self, stack: LoraStack, base: bytes, settings: EngineSettings) -> None:
        self._shelf: PackedShelf | None = None
        if settings.disk_folder:
            shelf = PackedShelf(
                settings.disk_folder,
                layout_digest(base, stack),
                settings.disk_bytes,
                settings.disk_free_bytes,
            )  # also with no budget: what earlier runs have left there goes
            self._shelf = shelf if settings.disk_bytes else None
        self._loader = Loader(Reader(stack, self._shelf).read)
        self.bank = AdapterBank(
            stack, self._loader, settings.ram_bytes, can_fetch=settings.can_fetch
        )
        self._loads: list[tuple[int, Lease, bool]] = []  # call, what it waits for, whether to pin

    def call_when_read(self, tell: Callable[[], None]) -> None:
        """`tell` is called from another thread when `poll` has something to take."""
        self._loader.call_when_read(tell)

    def begin_load(self, call: int, ref: AdapterRef, pin: bool) -> None:
        """Read, check and keep an adapter behind the engine's back; the core's `settled` tells of
        it. Raises Overloaded."""
        self._loads.append((call, self.bank.begin_load(ref), pin))

    def poll(self) -> list[Settled]:
        """Take what was read; the loads that have come to an end. Never waits."""
        self.bank.poll()
        if not self._loads:
            return []
        ended = [load for load in self._loads if not load[1].is_waiting]
        self._loads = [load for load in self._loads if load[1].is_waiting]
        return [self._end(*load) for load in ended]

    def _end(self, call: int, lease: Lease, pin: bool) -> Settled:
        try:
            return call, self.bank.end_load(lease, pin)
        except EngineError as error:
            return call, error

    def stats(self) -> TierStats:
        """What lies where, and what moved since the start."""
        bank, shelf = self.bank, self._shelf
        return TierStats(
            registered=bank.registered,
            ram_bytes=bank.ram_bytes,
            disk_bytes=0 if shelf is None else shelf.bytes,
            evictions={
                "slot": bank.evicted["slot"],
                "ram": bank.evicted["ram"],
                "disk": 0 if shelf is None else shelf.evicted,
            },
            load_times={name: timing.view() for name, timing in bank.load_seconds.items()},
            copies_rotten=0 if shelf is None else shelf.rotten,
            copies_unwritten=0 if shelf is None else shelf.unwritten,
        )
