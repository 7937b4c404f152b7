"""Every run there is: breadth-first over all states of three engines, not a sample of them.

Why it ends: what one engine does depends only on what it was given, so its steps are worked out
once and remembered; a state of all is a tuple of small numbers. A message once said may arrive at
any time, in any order, or never, which is loss and reordering in one. A liar is no engine: whatever
its key could sign may arrive at any time, which holds every twin, and more.
Why the last engine stands in bits: what the others may hear of it depends only on what it has said,
so all its states that have said the same take one step of another engine together.
What it does not know: signatures, invalid blocks, a third round.
"""

import copy
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from simulation.engines import CHAIN_ID, SIGNATURE, founded, header, with_signature

from consensus.certificate import PRECOMMIT, PREVOTE, Certificate, make_certificate
from consensus.effects import Broadcast, BuildPayload, Commit, Effect, SetTimer
from consensus.engine import Engine
from consensus.header import Header
from consensus.inputs import Input, PayloadBuilt, Received, Started, Step, TimedOut
from consensus.messages import Message, Proposal, Vote
from consensus.records import NO_ROUND
from consensus.votes import Tally

STATES_MAX: Final = 2_000_000  # beyond it the exploration has failed, not the engine
LOCALS_MAX: Final = 1_000_000  # of one engine

Timer = tuple[int, Step]
Action = int | Timer  # the number of a message, or a timer that runs out
Others = tuple[int, ...]  # the numbers of the local states of all engines but the last
Bits = int  # a set of numbers of local states of the last engine


class Local(NamedTuple):
    """One engine as far as it matters, and where each step from here leads."""

    number: int  # among those of its place
    place: int
    engine: Engine
    timers: frozenset[Timer]
    said: frozenset[int]
    decided: bytes | None
    steps: dict[Action, int]  # action → number of the next local state
    moves: dict[frozenset[int], list[int]]  # what may arrive → numbers of the next local states


class Explored(NamedTuple):
    """What was found. `forks`: states in which two honest members decided differently."""

    states: int
    locals: int
    forks: int
    decided: int  # states in which all honest members decided


class Explorer:
    """All runs of members with these powers, in rounds 0..round_max; `liar` says anything."""

    def __init__(self, powers: tuple[int, ...], liar: int | None, round_max: int) -> None:
        self.validators = founded(powers)
        self.round_max = round_max
        self.liar = liar
        honest = [place for place in range(len(powers)) if place != liar]
        *self._first, self._last = honest
        self._locals: dict[int, list[Local]] = {place: [] for place in honest}
        self._numbers: dict[object, int] = {}
        self._messages: list[Message] = []
        self._message_numbers: dict[object, int] = {}
        self._all_heard: dict[tuple[frozenset[int], ...], frozenset[int]] = {}
        self._said_alike: dict[frozenset[int], Bits] = defaultdict(int)  # of the last engine
        self._own = {} if liar is None else self._liar_blocks(liar)

    def run(self) -> Explored:
        """Explore to the end. Raises AssertionError beyond STATES_MAX."""
        start = tuple(self._begin(place) for place in self._first)
        seen: dict[Others, Bits] = defaultdict(int)
        front = {start: 1 << self._begin(self._last)}
        while front:
            new: dict[Others, Bits] = defaultdict(int)
            for others, bits in front.items():
                seen[others] |= bits
                self._go_on(others, bits, new)
            front = {others: bits & ~seen[others] for others, bits in new.items()}
            front = {others: bits for others, bits in front.items() if bits}
        states = sum(bits.bit_count() for bits in seen.values())
        assert states <= STATES_MAX, "too many states to explore"
        return Explored(states, sum(map(len, self._locals.values())), *self._decisions(seen))

    def _decisions(self, seen: dict[Others, Bits]) -> tuple[int, int]:
        """In how many states two decided differently, and in how many all decided."""
        alike: dict[bytes | None, Bits] = defaultdict(int)
        for local in self._locals[self._last]:
            alike[local.decided] |= 1 << local.number
        forks = decided = 0
        for others, bits in seen.items():
            firsts = [local.decided for local in self._others(others)]
            for last, mask in alike.items():
                count = (bits & mask).bit_count()
                forks += count * (len({*firsts, last} - {None}) > 1)
                decided += count * (None not in (*firsts, last))
        return forks, decided

    # --- one step of all

    def _others(self, numbers: Others) -> list[Local]:
        return [self._locals[place][at] for place, at in zip(self._first, numbers, strict=True)]

    def _go_on(self, others: Others, bits: Bits, new: dict[Others, Bits]) -> None:
        """Add to `new` all states one step after those of `others` with each of `bits`."""
        firsts = self._others(others)
        said = [local.said for local in firsts]
        lasts = self._locals[self._last]
        while bits:
            local = lasts[_lowest(bits)]
            alike = bits & self._said_alike[local.said]
            bits ^= alike
            heard = self._heard((*said, local.said))
            for at, first in enumerate(firsts):
                for number in self._moves(first, heard):
                    new[*others[:at], number, *others[at + 1 :]] |= alike
            while alike:
                place = _lowest(alike)
                alike ^= 1 << place
                for number in self._moves(lasts[place], heard):
                    new[others] |= 1 << number

    def _moves(self, local: Local, heard: frozenset[int]) -> list[int]:
        """The numbers of those states in which one step of this engine may end."""
        moves = local.moves.get(heard)
        if moves is None:
            actions = (*local.timers, *sorted(heard - local.said))
            steps = () if local.decided is not None else actions
            moves = list(dict.fromkeys(self._step(local, action) for action in steps))
            local.moves[heard] = moves
        return moves

    def _heard(self, said: tuple[frozenset[int], ...]) -> frozenset[int]:
        """All that may arrive when this much has been said by each."""
        heard = self._all_heard.get(said)
        if heard is None:
            heard = said[0].union(*said[1:])
            if self.liar is not None:
                heard |= {self._number(lie) for lie in self._lies_of(self.liar, heard)}
            self._all_heard[said] = heard
        return heard

    # --- one step of one engine

    def _begin(self, place: int) -> int:
        engine = Engine(CHAIN_ID, self.validators.members[place].key)
        empty = Local(0, place, engine, frozenset(), frozenset(), None, {}, {})
        return self._settle(empty, engine, Started(1, self.validators, None))

    def _step(self, local: Local, action: Action) -> int:
        after = local.steps.get(action)
        if after is None:
            after = local.steps[action] = self._do(local, action)
        return after

    def _do(self, local: Local, action: Action) -> int:
        given: Input
        if isinstance(action, int):
            given = Received(self._messages[action])
        else:
            given = TimedOut(1, *action)
            local = local._replace(timers=local.timers - {action})
        return self._settle(local, copied(local.engine), given)

    def _settle(self, local: Local, engine: Engine, given: Input) -> int:
        """The number of the state after `given`; `engine` is ours to change."""
        timers, said, inputs = set(local.timers), set(local.said), [given]
        while inputs:
            for effect in engine.handle(inputs.pop(0)):
                inputs += self._perform(local.place, effect, timers, said)
        live = frozenset(timer for timer in timers if self._is_live(engine, timer))
        decided = None if engine.decided is None else engine.decided[1]
        rest = engine.snapshot() if decided is None else decided
        key = (local.place, rest, live, frozenset(said))
        number = self._numbers.get(key)
        if number is None:
            known = self._locals[local.place]
            number = self._numbers[key] = len(known)
            assert number < LOCALS_MAX, "too many states of one engine"
            after = Local(number, local.place, engine, live, frozenset(said), decided, {}, {})
            known.append(after)
            if local.place == self._last:
                self._said_alike[after.said] |= 1 << number
        return number

    def _perform(
        self, place: int, effect: Effect, timers: set[Timer], said: set[int]
    ) -> list[Input]:
        match effect:
            case Broadcast(message):
                signed = with_signature(message, SIGNATURE)
                said.add(self._number(signed))
                return [Received(signed)]
            case SetTimer(_, round, step):
                timers.add((round, step))
            case BuildPayload(height, round):
                me = self.validators.members[place].key
                mark = 10 * place + round + 1
                return [PayloadBuilt(height, round, header(me, height, mark))]
            case Commit():
                said.add(self._number(effect.certificate))  # a decided node answers with it
        return []

    def _is_live(self, engine: Engine, timer: Timer) -> bool:
        """Whether it can still do something, in the rounds that we look at."""
        round, step = timer
        if engine.decided is not None or round != engine.round:
            return False
        return step == engine.step if step != Step.PRECOMMIT else round < self.round_max

    def _number(self, message: Message) -> int:
        key: object = message
        if isinstance(message, Proposal):
            key = message.body(), message.polka
        number = self._message_numbers.get(key)
        if number is None:
            number = self._message_numbers[key] = len(self._messages)
            self._messages.append(message)
        return number

    # --- the liar

    def _liar_blocks(self, liar: int) -> dict[int, tuple[Header, Header]]:
        """Two different blocks in each round that is the liar's."""
        me = self.validators.members[liar].key
        return {
            round: (header(me, 1, 1_000 + 2 * round), header(me, 1, 1_001 + 2 * round))
            for round in range(self.round_max + 1)
            if self.validators.proposer(round) == me
        }

    def _lies_of(self, liar: int, said: frozenset[int]) -> Iterator[Message]:
        """All that its key can sign, given what others have said."""
        messages = [self._messages[number] for number in sorted(said)]
        offers = [message for message in messages if isinstance(message, Proposal)]
        headers = {offer.block_id: offer.header for offer in offers}
        headers |= {block.block_id(): block for pair in self._own.values() for block in pair}
        for round in range(self.round_max + 1):
            for kind in (PREVOTE, PRECOMMIT):
                for block_id in headers:
                    yield Vote(kind, 1, round, block_id, liar, SIGNATURE)
        for round, pair in self._own.items():
            for block in pair:
                yield Proposal(1, round, NO_ROUND, block, None, SIGNATURE)
            for polka in self._polkas(liar, messages, headers, round):
                block = headers[polka.block_id]
                yield Proposal(1, round, polka.round, block, polka, SIGNATURE)

    def _polkas(
        self, liar: int, messages: list[Message], headers: dict[bytes, Header], below: int
    ) -> Iterator[Certificate]:
        votes = [m for m in messages if isinstance(m, Vote) and m.kind == PREVOTE]
        for round in range(below):
            for block_id in headers:
                signed = {
                    v.index: SIGNATURE for v in votes if (v.round, v.block_id) == (round, block_id)
                }
                signed[liar] = SIGNATURE
                power = sum(self.validators.members[member].power for member in signed)
                if self.validators.is_quorum(power):
                    yield make_certificate(
                        PREVOTE, 1, round, block_id, signed, len(self.validators)
                    )


def _lowest(bits: Bits) -> int:
    return (bits & -bits).bit_length() - 1


def copied(engine: Engine) -> Engine:
    """An engine that goes its own way from here; `deepcopy` takes twenty times as long."""
    twin: Any = copy.copy(engine)
    state: Any = copy.copy(twin._state)
    for name in ("offers", "headers", "told", "ahead", "accused"):
        setattr(state, name, copy.copy(getattr(state, name)))
    book = state.book = copy.copy(state.book)
    book._tallies = {place: _copied_tally(tally) for place, tally in book._tallies.items()}
    book.polkas = {round: list(ids) for round, ids in book.polkas.items()}
    book.decisions = {round: list(ids) for round, ids in book.decisions.items()}
    twin._state = state
    result: Engine = twin
    return result


def _copied_tally(tally: Tally) -> Tally:
    twin = Tally()
    twin.power = tally.power
    twin.first, twin.powers, twin.accused = {**tally.first}, {**tally.powers}, {*tally.accused}
    twin.signatures = {block_id: {**by} for block_id, by in tally.signatures.items()}
    return twin
