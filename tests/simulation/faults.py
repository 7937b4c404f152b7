"""Engines under faults: a network, clocks and crashes from one seed, in virtual milliseconds.

Phase 1 breaks what it can (loss, doubles, order, partitions, slow links, crashes in the middle of
effects, liars of less than a third) and looks for forks at each decision; phase 2 heals all, and
everybody must decide every height within ROUNDS_TO_DECIDE rounds.
What this file does not know: trio, disks, real blocks; `campaign.py` runs those.
"""

from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from heapq import heappop, heappush
from random import Random
from typing import Final

from simulation.engines import founded
from simulation.hosts import Crash, Host, Packet, is_valid, sign_as
from simulation.liars import LIES, Mouth
from simulation.outcomes import BROKEN, FORK, OK, ROUNDS_TO_DECIDE, STUCK, Outcome, Violation

from consensus.certificate import Certificate
from consensus.effects import Accuse
from consensus.evidence import DuplicateVote
from consensus.header import Header
from consensus.messages import Proposal, Vote
from consensus.params import OLD_ROUNDS_MAX, OLD_ROUNDS_WITH_QUORUM_MAX
from consensus.validators import ValidatorSet

POWERS: Final = (
    (1, 1, 1, 1),
    (3, 3, 2, 1),
    (5, 3, 2, 1),
    (2, 2, 1),
    (1, 1, 1, 1, 1, 1, 1),
)
HEIGHTS_BROKEN: Final = 6  # at most, in phase 1
HEIGHTS_HEALED: Final = 2  # more, in phase 2
BROKEN_MS: Final = (1_500, 8_000)  # how long phase 1 lasts
HEALED_MS: Final = 120_000  # then all must have decided; ten rounds take far less
TICK_MS: Final = 400
FAULT_EVERY_MS: Final = (50, 900)
EVENTS_MAX: Final = 200_000
AMNESIA: Final = "amnesia"


class World:
    """All hosts, the wires between them, and the order of events. Made from one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = Random(f"engines {seed}")
        self.heights = HEIGHTS_BROKEN
        self.now_ms = 0.0
        powers = POWERS[seed % len(POWERS)]
        self._sets = [founded(powers)]
        self.loss, self.double = rng.choice((0, 0.05, 0.15, 0.3)), rng.choice((0, 0, 0.2))
        self.delay_ms = rng.choice(((1, 5), (5, 60), (20, 300)))
        self.hosts = [Host(self, name, m.key) for name, m in enumerate(self._sets[0].members)]
        self.forgetful: set[int] = set()  # liars that vote on after their files were lost
        self.liars = self._choose_liars(powers)
        honest = [host.name for host in self.hosts if host.name not in self.liars]
        self._growing = (
            rng.randrange(1, HEIGHTS_BROKEN),
            rng.choice(honest),
        )  # after a height, a member
        self._sides = [0] * len(powers)
        self._slow: set[tuple[int, int]] = set()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._trace = blake2b(digest_size=32)
        self._decided: dict[int, bytes] = {}
        self.rounds: dict[int, int] = {}  # height → latest round of an honest decision
        self._said: dict[tuple[bytes, int, int, int], bytes] = {}
        self._is_healed = False
        self._has_news = False  # somebody decided in the last event

    def _choose_liars(self, powers: tuple[int, ...]) -> dict[int, Mouth]:
        """Name → its mouth; together less than a third of the power."""
        rng, room = self.rng, (sum(powers) - 1) // 3
        liars: dict[int, Mouth] = {}
        for name in rng.sample(range(len(powers)), len(powers)):
            if powers[name] > room or rng.random() < 0.3:
                continue
            room -= powers[name]
            kinds = rng.sample([*LIES, AMNESIA], rng.randrange(1, 4))
            if AMNESIA in kinds:
                kinds.remove(AMNESIA)
                self.forgetful.add(name)
            liars[name] = Mouth(kinds, rng, partial(sign_as, self.hosts[name].key))
        return liars

    # --- what hosts ask for

    def send(self, host: Host, packet: Packet, to: int | None = None) -> None:
        """To one, or to all others; a liar tells each what it likes."""
        hearers = [to] if to is not None else [o.name for o in self.hosts if o is not host]
        mouth = self.liars.get(host.name)
        for hearer in hearers:
            words = [packet]
            if mouth is not None and isinstance(packet, Vote | Proposal | Certificate):
                mouth.hear(packet)
                words = [*mouth.say(packet, hearer)]
            for word in words:
                self._carry(host.name, hearer, word)

    def after(self, delay_ms: float, act: Callable[[], None]) -> None:
        """Let `act` happen then."""
        self._count += 1
        heappush(self._events, (self.now_ms + delay_ms, self._count, act))

    def validators(self, height: int) -> ValidatorSet:
        """The set of a height; the same on all hosts, as the ledger makes it."""
        while len(self._sets) < height:
            before, decided = self._sets[-1], len(self._sets)
            after, place = self._growing
            if after == decided:
                member = before.members[place]
                before = before.changed([(member.key, member.power + 1)])
            self._sets.append(before.advanced())
        return self._sets[height - 1]

    def note_said(self, host: Host, message: Proposal | Vote) -> None:
        """An honest validator never says two things, whatever became of it in between."""
        self._trace.update(message.body())
        if host.name in self.liars:
            return
        kind = message.kind if isinstance(message, Vote) else 0
        place = host.key, message.height, message.round, kind
        if self._said.setdefault(place, message.body()) != message.body():
            raise Violation(BROKEN, f"host {host.name} said two things at {place[1:]}")

    def note_decided(self, host: Host, header: Header, round: int) -> None:
        """No two honest decisions at one height, and none for an invalid block."""
        self._trace.update(b"decided" + header.block_id())
        self._has_news = True
        if host.name in self.liars:
            return
        if not is_valid(header):
            raise Violation(BROKEN, f"host {host.name} decided an invalid block")
        if self._decided.setdefault(header.height, header.block_id()) != header.block_id():
            raise Violation(FORK, f"at height {header.height}")
        self.rounds[header.height] = max(round, self.rounds.get(header.height, 0))

    def note_accused(self, host: Host, accused: Accuse) -> None:
        """Evidence is of liars only."""
        evidence = accused.evidence
        if isinstance(evidence, DuplicateVote):
            height, index = evidence.first.height, evidence.first.index
        else:
            height, index = int.from_bytes(evidence.first_body[:8], "big"), evidence.index
        key = self.validators(height).members[index].key
        if host.name not in self.liars and key not in {self.hosts[n].key for n in self.liars}:
            raise Violation(BROKEN, "an honest validator is accused")

    # --- wires

    def _carry(self, sender: int, hearer: int, packet: Packet) -> None:
        rng = self.rng
        if not self._is_healed and rng.random() < self.loss:
            return
        low, high = (1, 5) if self._is_healed else self.delay_ms
        if (sender, hearer) in self._slow:
            high += 900
        times = 2 if not self._is_healed and rng.random() < self.double else 1
        for _ in range(times):
            self.after(rng.uniform(low, high), partial(self._arrive, sender, hearer, packet))

    def _arrive(self, sender: int, hearer: int, packet: Packet) -> None:
        host, mouth = self.hosts[hearer], self.liars.get(hearer)
        if not host.is_up or self._sides[sender] != self._sides[hearer]:
            return
        if mouth is not None and isinstance(packet, Vote | Proposal | Certificate):
            mouth.hear(packet)
        host.hear(sender, packet)

    # --- faults

    def _crash(self, host: Host) -> None:
        host.crash()
        if host.name in self.forgetful:
            host.forget()
        down_ms = self.rng.uniform(1, 50 if self._is_healed else 2_000)
        self.after(down_ms, partial(self._come_up, host))

    def _come_up(self, host: Host) -> None:
        if not host.is_up:
            host.restart()

    def _fault(self) -> None:
        if self._is_healed:
            return
        rng, names = self.rng, range(len(self.hosts))
        match rng.randrange(6):
            case 0:
                self._sides = [rng.randrange(2) for _ in names]
            case 1:
                self._sides = [0 for _ in names]
            case 2:
                self._slow = {(rng.choice(names), rng.choice(names)) for _ in range(3)}
            case 3:
                host = rng.choice(self.hosts)
                if host.is_up:
                    self._crash(host)
            case 4:
                for host in self.hosts:
                    if host.is_up:
                        self._crash(host)
            case _:
                rng.choice(self.hosts).crash_chance = rng.choice((0, 0.02, 0.2))
        self.after(rng.uniform(*FAULT_EVERY_MS), self._fault)

    def _heal(self) -> None:
        self._is_healed = True
        self._sides = [0 for _ in self.hosts]
        self._slow.clear()
        for host in self.hosts:
            host.crash_chance = 0.0

    def _tick(self, host: Host) -> None:
        if host.is_up:
            host.tick()
        self.after(TICK_MS, partial(self._tick, host))

    # --- a run

    def run(self) -> None:
        """Both phases. Raises Violation."""
        for host in self.hosts:
            self.after(self.rng.uniform(0, 100), partial(self._come_up, host))
            self.after(self.rng.uniform(0, TICK_MS), partial(self._tick, host))
        self.after(self.rng.uniform(*FAULT_EVERY_MS), self._fault)
        self._go_on(self.rng.uniform(*BROKEN_MS))
        self._check_memory()
        self._heal()
        self.heights = max(len(host.chain) for host in self.hosts) + HEIGHTS_HEALED
        for host in self.hosts:
            if host.is_up:
                host.start_next()
        begun: dict[int, int] = {}  # height → the round that its decision may have to wait for
        for host in self.hosts:
            round = host.round if host.is_up else 0
            begun[host.height] = max(round, begun.get(host.height, 0))
        self._go_on(self.now_ms + HEALED_MS)
        if not self._have_all_decided():
            raise Violation(STUCK, f"at height {min(host.height for host in self._honest())}")
        for height, round in self.rounds.items():
            first = begun.get(height, 0)
            if height >= min(begun) and round > first + ROUNDS_TO_DECIDE:
                raise Violation(STUCK, f"height {height} took until round {round}")

    def trace(self) -> bytes:
        """A hash of all that was said and decided, in order."""
        return self._trace.digest()

    def _go_on(self, until_ms: float) -> None:
        while self._events and self._events[0][0] <= until_ms:
            self.now_ms, _, act = heappop(self._events)
            try:
                act()
            except Crash as crash:
                self._crash(crash.host)
            if self._has_news and self._have_all_decided():
                return
            self._has_news = False
            assert self._count < EVENTS_MAX, "a storm of messages"
        self.now_ms = until_ms

    def _honest(self) -> list[Host]:
        return [host for host in self.hosts if host.name not in self.liars]

    def _have_all_decided(self) -> bool:
        return all(len(host.chain) == self.heights for host in self._honest())

    def _check_memory(self) -> None:
        """No liar makes an engine keep more than page 20 §4 allows."""
        for host in self.hosts:
            state = host.engine._state if host.is_up else None
            if state is None:
                continue
            rounds = len(state.book.rounds())
            if len(state.ahead) > len(self.hosts):
                raise Violation(BROKEN, f"host {host.name} keeps too much of far rounds")
            if rounds > OLD_ROUNDS_MAX + OLD_ROUNDS_WITH_QUORUM_MAX + 3:
                raise Violation(BROKEN, f"host {host.name} keeps {rounds} rounds")


def engine_run(seed: int) -> Outcome:
    """One run of engines alone, and how it ended."""
    world = World(seed)
    try:
        world.run()
    except Violation as violation:
        return Outcome(violation.end, world.trace(), violation.why)
    return Outcome(OK, world.trace())
