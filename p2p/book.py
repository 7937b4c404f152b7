"""The address book: whom we know, where they listen, how dialling them went; kept in one file.

Why a file and not the store: this floor may not import storage, and the book is small and may be
lost (page 70 §8). It is written whole beside the old one, fsynced, renamed. Unreadable, it is put
aside and begun anew, never a reason not to start.
What this file does not know: how to dial, who is connected.
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
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
)
from p2p.peers import KEY_BYTES, PeerId
from p2p.records import AddressRecord, Identity, read_record

BOOK_VERSION: Final = 1


@dataclass(slots=True)
class Entry:
    """One known peer. `configured` addresses come from the operator and need no record."""

    peer: PeerId
    configured: tuple[Address, ...] = ()
    record: AddressRecord | None = None
    teller: PeerId | None = None
    last_seen_ms: int = 0
    failures: int = 0
    is_anchor: bool = False
    # only of this run:
    due_s: float = 0.0
    aside_until_s: float = 0.0
    tries: int = 0

    def addresses(self, reach: Reach) -> tuple[Address, ...]:
        """All that may be dialled, the operator's own first."""
        told = self.record.usable(reach) if self.record else ()
        return self.configured + tuple(a for a in told if a not in self.configured)


class Book:
    """Entries by peer, bounded in all, per group of addresses and per teller."""

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._entries: dict[PeerId, Entry] = {}

    def find(self, peer: PeerId) -> Entry | None:
        return self._entries.get(peer)

    def entries(self) -> Iterable[Entry]:
        return self._entries.values()

    def __len__(self) -> int:
        return len(self._entries)

    def configure(self, peer: PeerId, address: Address) -> Entry:
        """An address of the operator's: kept whatever the limits say."""
        entry = self._entries.setdefault(peer, Entry(peer))
        if address not in entry.configured:
            entry.configured += (address,)
        return entry

    def learn(self, record: AddressRecord, teller: PeerId, now_ms: int) -> bool:
        """Keep a checked record if it is newer and there is room; True if it was kept."""
        entry = self._entries.get(record.peer)
        if entry is not None:
            if entry.record is not None and entry.record.seq_ms >= record.seq_ms:
                return False
            entry.record = record
            return True
        if not record.usable(self._reach) or not self._has_room(record, teller, now_ms):
            return False
        self._entries[record.peer] = Entry(
            record.peer, record=record, teller=teller, last_seen_ms=now_ms
        )
        return True

    def _has_room(self, record: AddressRecord, teller: PeerId, now_ms: int) -> bool:
        if teller != record.peer:
            told = sum(entry.teller == teller for entry in self._entries.values())
            if told >= BOOK_SOURCE_MAX:
                return False
        if self._reach == "public":
            groups = Counter(
                group_of(address.host)
                for entry in self._entries.values()
                if entry.record
                for address in entry.record.addresses
            )
            if any(groups[group_of(a.host)] >= BOOK_GROUP_MAX for a in record.addresses):
                return False
        if len(self._entries) >= BOOK_ENTRIES_MAX:
            self.forget_old(now_ms)
        return len(self._entries) < BOOK_ENTRIES_MAX

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
            del self._entries[peer]

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
            entry.record, entry.last_seen_ms, entry.failures = record, seen_ms, failures
            entry.is_anchor = bool(anchor)
        bans = []
        for ban in banned:
            key, until_ms = fields(ban, bytes, int, what="book ban")
            if len(key) != KEY_BYTES:
                raise Misbehaving("book: a ban of no peer")
            bans.append((PeerId(key), until_ms))
        return bans


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
