"""Finding peers: whom to dial and when, what to ask them about others, what to remember.

Sources in order: reserved peers, anchors of the last run, the book, bootstrap, peer exchange.
Why we dial ourselves: the library never redials, and would dial addresses that strangers told it.
Why records are signed by their own peer: an exchange can only pass on, never invent.
What this file does not know: libp2p; it is given `dial`.
"""

import os
import random
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import structlog
import trio

from p2p.addresses import Address, Reach, wide_group_of
from p2p.book import Book, Entry, read_book_file, set_book_aside, write_book_file
from p2p.counters import Counters
from p2p.errors import Misbehaving, NetworkError
from p2p.framing import decode, encode, fields
from p2p.limits import (
    ANCHORS_MAX,
    BACKOFF_FAR_S,
    BACKOFF_FIRST_S,
    BACKOFF_JITTER,
    BACKOFF_NEAR_S,
    BACKOFF_NEAR_TRIES,
    BOOK_SAVE_S,
    DIAL_S,
    DIALLER_LOOK_S,
    DIALS_AT_ONCE_MAX,
    EXCHANGE_LATE_S,
    EXCHANGE_PEERS,
    EXCHANGE_RECORDS_MAX,
    EXCHANGE_SOON_S,
    LOOKED_AT_MAX,
    OUTBOUND_MAX,
    OUTBOUND_TARGET,
    PASSED_OVER_S,
    PEERS_BYTES_MAX,
    WRONG_CHAIN_S,
)
from p2p.membership import Ask, Link, Membership
from p2p.peers import PeerId
from p2p.records import AddressRecord, Identity, read_record

log = structlog.get_logger(part="p2p")


Dial = Callable[[PeerId, Address], Awaitable[None]]


class Discovery:
    """The dialler, the exchange and the book of one node; outlives restarts of libp2p."""

    def __init__(
        self,
        *,
        identity: Identity,
        chain_id: bytes,
        members: Membership,
        counters: Counters,
        ask: Ask,
        reach: Reach,
        bootstrap: Iterable[Address],
        book_path: Path | None,
        is_denied: Callable[[PeerId, str], bool],
        is_in_use: Callable[[PeerId], bool],
        now_ms: Callable[[], int],
        through_relays: bool = False,
        outbound_target: int = OUTBOUND_TARGET,
    ) -> None:
        self._identity = identity
        self._chain_id = chain_id
        self._members = members
        self._counters = counters
        self._ask = ask
        self._reach = reach
        self._path = book_path
        self._is_denied = is_denied
        self._is_in_use = is_in_use
        self._now_ms = now_ms
        self._through_relays = through_relays
        self._target = outbound_target
        self._rng = random.Random(os.urandom(8))
        self._book = Book(reach)
        self._dialling: set[PeerId] = set()
        self._anchors: frozenset[PeerId] = frozenset()  # of this run
        self._news = trio.Event()
        self._curious: set[PeerId] = set()  # admitted just now: ask them at once
        self._curiosity = trio.Event()
        self._load()
        for address in bootstrap:
            assert address.peer is not None
            if address.peer != identity.key:
                self._book.configure(address.peer, address)
        members.on_record.append(self._learn)
        members.on_admitted.append(self._note_admitted)
        members.on_wrong_chain.append(self._set_aside)

    def add(self, peer: PeerId, address: Address) -> None:
        """The operator names a peer: dialled at once, whatever became of earlier tries."""
        entry = self._book.configure(peer, address)
        entry.due_s = entry.aside_until_s = 0.0
        entry.failures, entry.tries = 0, len(entry.configured) - 1
        self._news.set()

    def want(self, peer: PeerId, addresses: tuple[Address, ...], seconds: float) -> bool:
        """One of ours waits for `peer`: dialled at once, beyond the target, where we know it to
        be and where it says itself. Over OUTBOUND_MAX one that was wanted earlier goes; False
        where all of these are in use."""
        entry = self._book.find(peer)
        if addresses and (entry is None or not entry.hinted):
            self.hint(peer, addresses)
        entry = self._book.find(peer)
        if entry is None:
            return True  # nowhere to dial it, but it may come itself
        if not self._make_room():
            self._counters.queue_dropped["wanted", "full"] += 1
            return False
        entry.wanted_until_s = trio.current_time() + seconds
        entry.due_s = entry.aside_until_s = 0.0
        self._news.set()
        return True

    def _make_room(self) -> bool:
        """Whether there is room for one more; the oldest links, as many as the target, stay."""
        if self._outbound() < OUTBOUND_MAX:
            return True
        ours = [link for link in self._members.links() if self._is_outbound(link)]
        ours.sort(key=lambda link: link.since_s)
        free = [link.peer for link in ours[self._target :] if not self._is_in_use(link.peer)]
        if not free:
            return False
        leaving = free[0]
        known = self._book.find(leaving)
        if known is not None:
            known.wanted_until_s = 0.0
        self._members.part_from(leaving)
        return True

    def hint(self, peer: PeerId, addresses: tuple[Address, ...]) -> None:
        """Somebody near says where `peer` listens: unsigned, so it is only tried."""
        if peer == self._identity.key:
            return
        if self._book.hint(peer, addresses, self._now_ms()):
            self._news.set()
        else:
            self._counters.queue_dropped["hints", "shed"] += 1

    def drop_hint(self, peer: PeerId) -> None:
        """It has said goodbye to those near it."""
        self._book.drop_hint(peer)

    def known(self) -> int:
        return len(self._book)

    async def run(self, dial: Dial) -> None:
        """Dial, exchange and save until cancelled; saves once more then."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_dialling, dial, nursery)
                nursery.start_soon(self._keep_exchanging)
                nursery.start_soon(self._keep_saving)
        finally:
            self._dialling.clear()
            with trio.CancelScope(shield=True):
                await self._save()

    # --- what others tell

    def _learn(self, record: AddressRecord, teller: PeerId) -> None:
        if record.peer == self._identity.key:
            return
        if self._book.learn(record, teller, self._now_ms()):
            self._news.set()
        entry = self._book.find(record.peer)
        if entry is not None and teller == record.peer:
            entry.last_seen_ms = self._now_ms()

    def _note_admitted(self, peer: PeerId) -> None:
        entry = self._book.find(peer)
        if entry is not None:
            entry.failures = 0
        self._curious.add(peer)
        self._curiosity.set()

    def _set_aside(self, peer: PeerId) -> None:
        """It is on another chain: no use to dial it for an hour."""
        entry = self._book.find(peer)
        if entry is not None:
            entry.aside_until_s = trio.current_time() + WRONG_CHAIN_S

    async def answer_peers(self, peer: PeerId, body: bytes) -> bytes:
        """`peers`: [max] → [record…] of peers seen lately, connected ones first."""
        (count,) = fields(decode(body, PEERS_BYTES_MAX), int, what="peers")
        if not 0 < count <= EXCHANGE_RECORDS_MAX:
            raise Misbehaving("peers: count")
        now_ms = self._now_ms()
        linked = [link.record for link in self._members.links() if link.admitted and link.record]
        others = [e.record for e in self._book.entries() if e.record and not e.failures]
        found: dict[PeerId, AddressRecord] = {}
        for record in self._shuffled(linked) + self._shuffled(others):
            if record.peer != peer and record.is_fresh(now_ms) and record.is_tellable(self._reach):
                found.setdefault(record.peer, record)
        return encode(tuple(record.value for record in list(found.values())[:count]))

    def _shuffled(self, records: list[AddressRecord]) -> list[AddressRecord]:
        return self._rng.sample(records, len(records))

    # --- asking

    async def _keep_exchanging(self) -> None:
        while True:
            soon = self._outbound() < self._target
            wait_s = self._rng.uniform(*EXCHANGE_SOON_S) if soon else EXCHANGE_LATE_S
            with trio.move_on_after(wait_s):
                await self._curiosity.wait()
            self._curiosity = trio.Event()
            asked = [peer for peer in self._curious if self._members.is_admitted(peer)]
            self._curious.clear()
            if not asked:
                admitted = [link.peer for link in self._members.links() if link.admitted]
                asked = self._rng.sample(admitted, min(EXCHANGE_PEERS, len(admitted)))
            async with trio.open_nursery() as nursery:
                for peer in asked:
                    nursery.start_soon(self._exchange, peer)

    async def _exchange(self, peer: PeerId) -> None:
        try:
            raw = await self._ask(
                peer,
                "peers",
                encode((EXCHANGE_RECORDS_MAX,)),
                timeout_s=5,
                bytes_max=PEERS_BYTES_MAX,
            )
            records = decode(raw, PEERS_BYTES_MAX)
            if type(records) is not tuple or len(records) > EXCHANGE_RECORDS_MAX:
                raise Misbehaving("peers: more than asked for")
            for value in records:
                record = read_record(value, self._identity, self._chain_id, self._now_ms())
                self._members.learn_record(record, peer)
                await trio.lowlevel.checkpoint()  # a signature each: 64 in a row take too long
        except Misbehaving:
            self._members.blame(peer, "malformed")
        except NetworkError:
            pass  # asked again later

    # --- dialling

    async def _keep_dialling(self, dial: Dial, nursery: trio.Nursery) -> None:
        while True:
            self._news = trio.Event()
            self._note_anchors()
            for entry, address in self._due():
                self._dialling.add(entry.peer)
                nursery.start_soon(self._try, dial, entry, address)
            with trio.move_on_after(DIALLER_LOOK_S):
                await self._news.wait()

    def _due(self) -> list[tuple[Entry, Address]]:
        """Whom to dial now, the most wanted first."""
        now_s = trio.current_time()
        wanted = self._outbound() + len(self._dialling)
        is_full = wanted >= self._target
        candidates = [
            entry
            for entry in self._book.entries()
            if entry.due_s <= now_s
            and ((not is_full and entry.passed_over_until_s <= now_s) or self._is_needed(entry))
        ]
        linked = {wide_group_of(x.host) for x in self._members.links() if x.outbound}
        taken = set(linked)
        due: list[tuple[Entry, Address]] = []
        looked_at = 0
        for entry in sorted(candidates, key=self._rank):
            is_needed = self._is_needed(entry)
            if len(self._dialling) + len(due) >= DIALS_AT_ONCE_MAX or looked_at >= LOOKED_AT_MAX:
                break
            if not self._may_dial(entry, now_s) or (not is_needed and wanted >= self._target):
                continue
            looked_at += 1
            address = self._find_address(entry)
            if address is None:
                self._pass_over(entry, now_s)
                continue
            group = wide_group_of(address.host)
            if self._reach == "public" and not is_needed and not entry.configured:
                if group in linked:
                    self._pass_over(entry, now_s)
                if group in taken:
                    continue
                taken.add(group)
            wanted += not is_needed
            due.append((entry, address))
        return due

    def _pass_over(self, entry: Entry, now_s: float) -> None:
        """Else each look goes through a whole book of them; the jitter keeps them from returning
        all in one. Whom we need is looked at all the same."""
        wait_s = PASSED_OVER_S * self._rng.uniform(1 - BACKOFF_JITTER, 1 + BACKOFF_JITTER)
        entry.passed_over_until_s = now_s + wait_s

    def _is_needed(self, entry: Entry) -> bool:
        """Beyond the target, and wherever it is: reserved, or one of ours waits for it."""
        is_wanted = entry.wanted_until_s > trio.current_time()
        return is_wanted or self._members.is_reserved(entry.peer)

    def _rank(self, entry: Entry) -> tuple[bool, bool, int]:
        return (
            not self._is_needed(entry),
            not entry.is_anchor,
            entry.failures,
        )

    def _may_dial(self, entry: Entry, now_s: float) -> bool:
        if entry.aside_until_s > now_s or entry.peer in self._dialling:
            return False
        return not (self._members.find_link(entry.peer) or self._members.is_banned(entry.peer))

    def _find_address(self, entry: Entry) -> Address | None:
        """Where to dial `entry`, if anywhere."""
        is_relay_fine = self._through_relays and self._is_needed(entry)
        addresses = [
            address
            for address in entry.addresses()
            if not self._is_denied(entry.peer, address.host)
            and (address.relay is None or is_relay_fine)
        ]
        return addresses[entry.tries % len(addresses)] if addresses else None

    async def _try(self, dial: Dial, entry: Entry, address: Address) -> None:
        entry.tries += 1
        most_s = BACKOFF_NEAR_S if self._is_near(entry) else BACKOFF_FAR_S
        try:
            with trio.fail_after(DIAL_S):
                await dial(entry.peer, address)
            self._counters.dials["ok"] += 1
            entry.failures = 0
            entry.was_linked = True
            entry.last_seen_ms = self._now_ms()
        except (NetworkError, trio.TooSlowError):
            self._counters.dials["failed"] += 1
            entry.failures += 1
        finally:
            self._dialling.discard(entry.peer)
        wait_s = min(most_s, BACKOFF_FIRST_S * 2.0 ** min(entry.failures, 16))
        wait_s *= self._rng.uniform(1 - BACKOFF_JITTER, 1 + BACKOFF_JITTER)
        entry.due_s = trio.current_time() + wait_s

    def _is_near(self, entry: Entry) -> bool:
        """Those whom we would miss: a book full of the dead must not be tried twice a minute."""
        if self._members.is_reserved(entry.peer) or entry.configured:
            return True
        return entry.was_linked and entry.failures < BACKOFF_NEAR_TRIES

    def _note_anchors(self) -> None:
        """The longest outbound links, for the next run. Nobody linked: those before still count,
        or a stop, which ends links before it saves, would forget them all."""
        outbound = sorted(
            (link for link in self._members.links() if link.outbound and not link.relayed),
            key=lambda x: x.since_s,
        )
        if outbound:
            self._anchors = frozenset(link.peer for link in outbound[:ANCHORS_MAX])

    def _outbound(self) -> int:
        return sum(map(self._is_outbound, self._members.links()))

    def _is_outbound(self, link: Link) -> bool:
        """One of those that the target counts."""
        is_direct = link.outbound and not link.relayed
        return is_direct and not self._members.is_reserved(link.peer)

    # --- the book's file

    def _load(self) -> None:
        raw = read_book_file(self._path) if self._path else None
        if raw is None or self._path is None:
            return
        now_ms = self._now_ms()
        try:
            bans = self._book.unpack(raw, self._identity, self._chain_id, now_ms)
        except Misbehaving as error:
            log.warning("book unreadable, begun anew", why=str(error))
            self._counters.faults["book_unreadable"] += 1
            self._book = Book(self._reach)
            set_book_aside(self._path)
            return
        self._bans_ms = bans

    _bans_ms: Iterable[tuple[PeerId, int]] = ()

    def restore_bans(self) -> None:
        """Inside trio: bans of the last run go on where they stood."""
        now_ms = self._now_ms()
        left = [(peer, (until - now_ms) / 1_000) for peer, until in self._bans_ms if until > now_ms]
        self._members.scores.restore(left, trio.current_time())
        self._bans_ms = ()

    async def _keep_saving(self) -> None:
        while True:
            await trio.sleep(BOOK_SAVE_S)
            await self._save()

    async def _save(self) -> None:
        if self._path is None:
            return
        for entry in self._book.entries():
            entry.is_anchor = entry.peer in self._anchors if self._anchors else entry.is_anchor
        self._book.forget_old(self._now_ms())
        now_ms = self._now_ms()
        bans = self._members.scores.bans(trio.current_time())
        raw = self._book.pack(
            (peer, now_ms + round(left_s * 1_000)) for peer, left_s in bans.items()
        )
        try:
            await trio.to_thread.run_sync(write_book_file, self._path, raw)
        except OSError as error:
            self._counters.faults["book_unwritten"] += 1
            log.warning("book not written", why=str(error))
