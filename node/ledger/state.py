"""The state as typed records over `read`, with layers that can be rolled back.

Why layers: a transaction that fails must leave nothing behind but its fee, so each runs in a
`trial()`. Why `changes()` is net and sorted: the tree and the disk see each key once, in an
order that no node can differ in.
What this file does not know: the rules, the disk, the time.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeVar, cast

from consensus.primitives.encoding import INT_MAX
from consensus.primitives.errors import Invalid
from node.ledger import tables
from node.ledger.amounts import checked
from node.ledger.purses import Purse, PurseKind
from node.ledger.tables import KeyPart, Table

R = TypeVar("R")

TOTALS_NAME: Final = b"totals"
SUPPLY_NAME: Final = b"supply"
LAYERS_MAX: Final = 4  # block, transaction, and two for rules that try something


class Base(NamedTuple):
    """The state after the last block. All four are of one moment (one database snapshot).

    `scan(start, stop)` yields flat (key, value) in key order, stop excluded. `read_node` reads
    a node of the tree by its node key; `tree_root` is the root record of the last block.
    """

    read: Callable[[bytes], bytes | None]
    scan: Callable[[bytes, bytes], Iterable[tuple[bytes, bytes]]]
    read_node: Callable[[bytes], bytes | None]
    tree_root: bytes = b""


EMPTY_BASE: Final = Base(lambda _: None, lambda *_: (), lambda _: None)


class _Known(NamedTuple):
    """What a layer holds under a flat key: a record, or None when it was removed."""

    table: Table[Any]
    record: Any


class State:
    """Records by table and key. Not for sharing: one block, one State."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self._read_raw: dict[bytes, bytes | None] = {}
        self._read: dict[bytes, _Known] = {}
        self._layers: list[dict[bytes, _Known]] = [{}]

    # ---- records

    def find(self, table: Table[R], *key: KeyPart) -> R | None:
        """The record, or None."""
        return self._lookup(table, table.flat_key(key))

    def get(self, table: Table[R], *key: KeyPart) -> R:
        """The record that must be there: its absence is our own fault."""
        record = self.find(table, *key)
        assert record is not None, f"no {table.name} {key!r}"
        return record

    def has(self, table: Table[Any], *key: KeyPart) -> bool:
        """Whether there is a record."""
        return self.find(table, *key) is not None

    def put(self, table: Table[R], key: tuple[KeyPart, ...], record: R) -> None:
        """Write a record whole. Amounts of purses are changed by `move` only."""
        self._layers[-1][table.flat_key(key)] = _Known(table, record)

    def remove(self, table: Table[Any], *key: KeyPart) -> None:
        """Delete a record; one that is not there stays so."""
        self._layers[-1][table.flat_key(key)] = _Known(table, None)

    def scan(
        self, table: Table[R], *prefix: KeyPart, below: int | None = None
    ) -> list[tuple[tuple[bytes, ...], R]]:
        """All (key parts as bytes, record) under `prefix`, in key order.

        `below` ends the scan before that number in the key part after the prefix.
        """
        start = table.flat_key(prefix)
        stop = _after(start) if below is None else table.flat_key((*prefix, below))
        found: dict[bytes, Any] = {}
        for key, raw in self.base.scan(start, stop):
            if key not in self._read:
                self._read_raw[key], self._read[key] = raw, _Known(table, table.decode(raw))
            found[key] = self._read[key].record
        for layer in self._layers:
            for key, known in layer.items():
                if start <= key < stop:
                    found[key] = known.record
        return [
            (table.parts_of(key), cast("R", found[key]))
            for key in sorted(found)
            if found[key] is not None
        ]

    def _lookup(self, table: Table[R], key: bytes) -> R | None:
        for layer in reversed(self._layers):
            if key in layer:
                return cast("R | None", layer[key].record)
        known = self._read.get(key)
        if known is None:
            raw = self._raw(key)
            known = _Known(table, None if raw is None else table.decode(raw))
            self._read[key] = known
        return cast("R | None", known.record)

    def _raw(self, key: bytes) -> bytes | None:
        if key not in self._read_raw:
            self._read_raw[key] = self.base.read(key)
        return self._read_raw[key]

    # ---- layers

    @contextmanager
    def trial(self) -> Iterator[None]:
        """What is written inside counts only if no exception leaves the block."""
        assert len(self._layers) < LAYERS_MAX, "trials nested too deep"
        self._layers.append({})
        try:
            yield
        except BaseException:
            self._layers.pop()
            raise
        top = self._layers.pop()
        self._layers[-1].update(top)

    def changes(self) -> list[tuple[bytes, bytes | None]]:
        """Net (flat key, value or None when deleted) against the base, sorted by key."""
        assert len(self._layers) == 1, "a trial is open"
        changed = []
        for key, known in sorted(self._layers[0].items()):
            raw = None if known.record is None else known.table.encode(known.record)
            if raw != self._raw(key):
                changed.append((key, raw))
        return changed

    # ---- money

    def held(self, purse: Purse) -> int:
        """Grains in a purse."""
        record = self.find(purse.kind.table, *purse.key)
        return 0 if record is None else purse.kind.held(record)

    def move(self, source: Purse, target: Purse, amount: int) -> None:
        """Take `amount` grains from one purse to another; into `purses.BURN`: off the supply.

        Raises `Invalid` `tx.insufficient` when the source holds less. Records must exist but
        for accounts, bonds, funds, pools, stakes and maturing entries, which begin at zero.
        """
        with self.gathering(target) as take:
            take(source, amount)

    @contextmanager
    def gathering(self, target: Purse) -> Iterator[Callable[[Purse, int], None]]:
        """Many moves into one purse by `take(source, amount)`, each with the rules of `move`.

        Why: a bundle takes from hundreds of channels. What it took reaches `target`, and the
        totals, once: when the block ends without an exception.
        """
        taken: dict[str, int] = {}  # by the totals that it left

        def take(source: Purse, amount: int) -> None:
            assert 0 <= amount <= INT_MAX
            if amount == 0:
                return
            kind = source.kind
            key = kind.table.flat_key(source.key)
            record = self._lookup(kind.table, key)
            held = 0 if record is None else kind.held(record)
            if held < amount:
                raise Invalid("tx.insufficient", needed=amount, held=held)
            self._set(kind, key, kind.changed(record, -amount))
            assert kind.total is not None, "nothing is taken from what is burnt"
            taken[kind.total] = taken.get(kind.total, 0) + amount

        yield take
        if taken:
            self._credit(target, taken)

    def _credit(self, target: Purse, taken: Mapping[str, int]) -> None:
        """The other half of `gathering`: `taken` is by the field of the totals that it left."""
        amount, totals = sum(taken.values()), self.totals()
        left = {name: checked(getattr(totals, name) - by) for name, by in taken.items()}
        totals = totals._replace(**left)
        name = target.kind.total
        if name is None:
            self.set_counter(SUPPLY_NAME, self.counter(SUPPLY_NAME) - amount)
        else:
            self._change(target, amount)
            totals = totals._replace(**{name: checked(getattr(totals, name) + amount)})
        self.put(tables.TOTALS, (TOTALS_NAME,), totals)

    def issue(self, target: Purse, amount: int) -> None:
        """Make grains out of nothing: genesis only, whose sum is checked against the supply."""
        totals = self.totals()._asdict()
        assert target.kind.total is not None
        if amount:
            self._change(target, amount)
        totals[target.kind.total] = checked(totals[target.kind.total] + amount)
        self.put(tables.TOTALS, (TOTALS_NAME,), tables.Totals(**totals))
        self.set_counter(SUPPLY_NAME, checked(self.counter(SUPPLY_NAME) + amount))

    def _change(self, purse: Purse, by: int) -> None:
        kind = purse.kind
        key = kind.table.flat_key(purse.key)
        record = self._lookup(kind.table, key)
        if record is None:
            record = kind.empty
            assert record is not None, f"no {kind.name} {purse.key!r}"
        self._set(kind, key, kind.changed(record, by))

    def _set(self, kind: PurseKind, key: bytes, record: Any) -> None:
        held = kind.held(record)
        assert held >= 0
        is_gone = held == 0 and kind.table in (tables.MATURING, tables.COUNTER)
        self._layers[-1][key] = _Known(kind.table, None if is_gone else record)

    def totals(self) -> tables.Totals:
        """Grains per kind of place."""
        return self.find(tables.TOTALS, TOTALS_NAME) or tables.Totals()

    def supply(self) -> int:
        """All grains there are."""
        return self.counter(SUPPLY_NAME)

    # ---- short ways that every rule needs

    def account(self, key: bytes) -> tables.Account:
        """The account, all zero when the ledger has never seen it."""
        return self.find(tables.ACCOUNT, key) or tables.Account()

    def parameter(self, name: str) -> int:
        """The value of a parameter of one number."""
        (value,) = self.parameter_values(name)
        return value

    def parameter_values(self, name: str) -> tuple[int, ...]:
        """The values of a parameter (`split_bps`: seven)."""
        return self.get(tables.PARAMETER, name.encode()).values

    def counter(self, name: bytes) -> int:
        """A named number of the singletons, 0 when absent."""
        found = self.find(tables.COUNTER, name)
        return 0 if found is None else found.value

    def set_counter(self, name: bytes, value: int) -> None:
        """Write a named number; 0 removes it."""
        if value:
            self.put(tables.COUNTER, (name,), tables.Counter(checked(value)))
        else:
            self.remove(tables.COUNTER, name)

    def next_number(self, name: bytes) -> int:
        """The next number of `name`, from 1."""
        number = self.counter(name) + 1
        self.set_counter(name, number)
        return number

    def add_due(self, due_ms: int, kind: int, reference: bytes) -> None:
        """Have `kind` done to `reference` in the first block at or after `due_ms`."""
        self.put(tables.DUE, (checked(due_ms), kind, reference), tables.Due())


def _after(prefix: bytes) -> bytes:
    """The first key behind all that begin with `prefix` (table bytes are below 255)."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1])
