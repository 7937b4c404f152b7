"""The address book: whom we know, where they listen, how dialling them went; kept in one file.

Why a file and not the store: this floor may not import storage, and the book is small and may be
lost (page 70 §8). It is written whole beside the old one, fsynced, renamed. Unreadable, it is put
aside and begun anew, never a reason not to start.
What this file does not know: how to dial, who is connected.
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from p2p.addresses import Address, Reach, group_of
from p2p.errors import Misbehaving
from p2p.framing import Value, decode, encode, fields
from p2p.limits import (
    BOOK_BYTES_MAX,
    BOOK_ENTRIES_MAX,
    BOOK_GROUP_MAX,
    BOOK_SOURCE_MAX,
    BOOK_UNSEEN_MS_MAX,
    HINTED_MAX,
)
from p2p.peers import KEY_BYTES, PeerId
from p2p.records import AddressRecord, Identity, read_record

BOOK_VERSION: Final = 1


@dataclass(slots=True)
class Entry:
    """One known peer. `configured` addresses come from the operator and need no record; `hinted`
    ones from somebody near, unsigned: they are tried last, and neither kept nor told on."""

    peer: PeerId
    configured: tuple[Address, ...] = ()
    record: AddressRecord | None = None
    told: tuple[Address, ...] = ()  # of its record, what our network may use
    teller: PeerId | None = None
    last_seen_ms: int = 0
    failures: int = 0
    is_anchor: bool = False
    # only of this run:
    was_linked: bool = False  # or an anchor of the last run
    hinted: tuple[Address, ...] = ()
    wanted_until_s: float = 0.0  # somebody of ours waits for it
    due_s: float = 0.0
    passed_over_until_s: float = 0.0
    aside_until_s: float = 0.0
    tries: int = 0

    @property
    def is_only_hinted(self) -> bool:
        """Nobody has vouched for it, neither itself nor the operator."""
        return self.record is None and not self.configured

    def addresses(self) -> tuple[Address, ...]:
        """All that may be dialled, the operator's own first."""
        return tuple(dict.fromkeys(self.configured + self.told + self.hinted))


class Book:
    """Entries by peer, bounded in all, per group of addresses and per teller."""

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._entries: dict[PeerId, Entry] = {}
        self._in_group: Counter[str] = Counter()  # entries whose record has an address in it
        self._told_by: Counter[PeerId] = Counter()

    def find(self, peer: PeerId) -> Entry | None:
        return self._entries.get(peer)

    def entries(self) -> Iterable[Entry]:
        return self._entries.values()

    def __len__(self) -> int:
        return len(self._entries)

    def configure(self, peer: PeerId, address: Address) -> Entry:
        """An address of the operator's: kept whatever the limits say."""
        entry = self._entries.setdefault(peer, Entry(peer))
        bare = replace(address, peer=None)
        if bare not in entry.configured:
            entry.configured += (bare,)
        return entry

    def hint(self, peer: PeerId, addresses: tuple[Address, ...], now_ms: int) -> bool:
        """Unsigned addresses of a peer, in place of those hinted before; True if there is room."""
        entry = self._entries.get(peer)
        if entry is None:
            if not self._may_hint():
                return False
            entry = self._entries[peer] = Entry(peer, last_seen_ms=now_ms)
        entry.hinted = addresses
        entry.passed_over_until_s = 0.0
        return True

    def _may_hint(self) -> bool:
        """A hint that has failed makes room for a new one."""
        hinted = [e for e in self._entries.values() if e.is_only_hinted]
        if len(hinted) >= HINTED_MAX:
            worst = max(hinted, key=lambda e: e.failures)
            if not worst.failures:
                return False
            self._remove(worst.peer)
        return len(self._entries) < BOOK_ENTRIES_MAX

    def drop_hint(self, peer: PeerId) -> None:
        """It has said goodbye."""
        entry = self._entries.get(peer)
        if entry is None:
            return
        entry.hinted = ()
        if entry.is_only_hinted:
            self._remove(peer)

    def learn(self, record: AddressRecord, teller: PeerId, now_ms: int) -> bool:
        """Keep a checked record if it is newer and there is room; True if it was kept.

        Whoever now listens elsewhere is due at once, whatever became of dialling it where it was.
        """
        entry = self._entries.get(record.peer)
        if entry is None:
            if not record.usable(self._reach) or not self._may_add(record, teller, now_ms):
                return False
            entry = self._entries[record.peer] = Entry(record.peer, last_seen_ms=now_ms)
            entry.teller = teller if teller != record.peer else None
            self._told_by[teller] += entry.teller is not None
        else:
            is_old = entry.record is not None and entry.record.seq_ms >= record.seq_ms
            if is_old or not self._has_group_room(record, entry):
                return False
        before = entry.addresses()
        self._set_record(entry, record)
        if not set(entry.addresses()) <= set(before):
            entry.due_s, entry.failures, entry.tries = 0.0, 0, len(entry.configured)
            entry.passed_over_until_s = 0.0
        return True

    def _may_add(self, record: AddressRecord, teller: PeerId, now_ms: int) -> bool:
        if teller != record.peer and self._told_by[teller] >= BOOK_SOURCE_MAX:
            return False
        if not self._has_group_room(record, None):
            return False
        if len(self._entries) >= BOOK_ENTRIES_MAX:
            self.forget_old(now_ms)
        return len(self._entries) < BOOK_ENTRIES_MAX

    def _has_group_room(self, record: AddressRecord, entry: Entry | None) -> bool:
        """Also for a peer that is known: else it could move into a full group later."""
        if self._reach != "public" or (entry is not None and entry.configured):
            return True
        known = _groups_of(entry.record) if entry is not None else set()
        return all(self._in_group[g] < BOOK_GROUP_MAX for g in _groups_of(record) - known)

    def _set_record(self, entry: Entry, record: AddressRecord | None) -> None:
        self._in_group.subtract(_groups_of(entry.record))
        self._in_group.update(_groups_of(record))
        entry.record = record
        entry.told = record.usable(self._reach) if record is not None else ()

    def _remove(self, peer: PeerId) -> None:
        entry = self._entries.pop(peer)
        self._set_record(entry, None)
        if entry.teller is not None:
            self._told_by[entry.teller] -= 1

    def forget_old(self, now_ms: int) -> None:
        """Drop what was not seen for 30 days, and one failing entry when that frees nothing."""
        old = [
            peer
            for peer, entry in self._entries.items()
            if not entry.configured and entry.last_seen_ms < now_ms - BOOK_UNSEEN_MS_MAX
        ]
        if not old and len(self._entries) >= BOOK_ENTRIES_MAX:
            failing = [e for e in self._entries.values() if e.failures and not e.configured]
            old = [max(failing, key=lambda e: e.failures).peer] if failing else []
        for peer in old:
            self._remove(peer)
        self._in_group, self._told_by = +self._in_group, +self._told_by  # without the noughts

    # --- the file

    def pack(self, bans: Iterable[tuple[PeerId, int]]) -> bytes:
        """The book and the bans (peer, until_ms) as bytes of the file."""
        rows = tuple(
            (
                entry.record.value,
                entry.last_seen_ms,
                min(entry.failures, 0xFFFF),
                int(entry.is_anchor),
            )
            for entry in self._entries.values()
            if entry.record is not None
        )
        banned: Value = tuple((bytes(peer), until_ms) for peer, until_ms in bans)
        return encode((BOOK_VERSION, rows, banned))

    def unpack(
        self, raw: bytes, identity: Identity, chain_id: bytes, now_ms: int
    ) -> list[tuple[PeerId, int]]:
        """Take in a file's bytes, returning its bans; Misbehaving unless it is such a file."""
        value = decode(raw, BOOK_BYTES_MAX, items_max=2 * BOOK_ENTRIES_MAX)
        version, rows, banned = fields(value, int, tuple, tuple, what="book")
        if version != BOOK_VERSION or len(rows) > BOOK_ENTRIES_MAX:
            raise Misbehaving("book: version or length")
        for row in rows:
            signed, seen_ms, failures, anchor = fields(row, tuple, int, int, int, what="book row")
            record = read_record(signed, identity, chain_id, now_ms)
            if seen_ms < now_ms - BOOK_UNSEEN_MS_MAX or record.peer == identity.key:
                continue
            entry = self._entries.setdefault(record.peer, Entry(record.peer))
            self._set_record(entry, record)
            entry.last_seen_ms, entry.failures = seen_ms, failures
            entry.is_anchor = entry.was_linked = bool(anchor)
        bans = []
        for ban in banned:
            key, until_ms = fields(ban, bytes, int, what="book ban")
            if len(key) != KEY_BYTES:
                raise Misbehaving("book: a ban of no peer")
            bans.append((PeerId(key), until_ms))
        return bans


def _groups_of(record: AddressRecord | None) -> set[str]:
    return {group_of(address.host) for address in record.addresses} if record else set()


def read_book_file(path: Path) -> bytes | None:
    """The file's bytes, or None where there is none (or one far too long)."""
    try:
        with path.open("rb") as file:
            return file.read(BOOK_BYTES_MAX + 1)
    except FileNotFoundError:
        return None


def set_book_aside(path: Path) -> None:
    """An unreadable book keeps its bytes under another name, for whoever wants to look."""
    path.replace(path.with_suffix(path.suffix + ".unreadable"))


def write_book_file(path: Path, raw: bytes) -> None:
    """Write whole, fsync, rename: a crash leaves the old book or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(path.suffix + ".new")
    with temporary.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
