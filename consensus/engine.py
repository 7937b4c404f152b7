"""The engine: one input in, the effects it has out, and nothing else happens.

It sees block ids and headers, never payloads; every message it is given has been checked, and
every block executed, by the host. Determinism is the whole point: same inputs, same effects, on
every machine, so that a run can be replayed from a journal or from a seed.
What this file does not know: the rules themselves (`round.py`), keys, disks, peers, time.
"""

from dataclasses import dataclass
from typing import assert_never

from consensus.certificate import PRECOMMIT, PREVOTE, Certificate, make_certificate
from consensus.effects import Accuse, Effect, SetTimer
from consensus.inputs import CaughtUp, Input, PayloadBuilt, Received, Started, Step, TimedOut
from consensus.messages import Message, Proposal, Status, Vote, encode_message
from consensus.records import NO_ROUND, NOWHERE, Point, SignerRecord
from consensus.round import (
    Offer,
    RoundState,
    say_proposal,
    settle,
    start_round,
    take_offer,
    take_vote,
    time_out,
)

STEP_DECIDED = 3  # in a `Status`, behind the three steps of a round


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """Counters since the engine was made."""

    inputs: int
    ignored: int  # of another height or round, or after the decision
    decided: int
    rounds: int  # started
    accused: int


class Engine:
    """Agreement on one height after another. `me` is our key, or None to follow without voting."""

    def __init__(self, chain_id: bytes, me: bytes | None) -> None:
        self.chain_id = chain_id
        self.me = me
        self._height = 0  # while there is no state: the last height we heard of
        self._state: RoundState | None = None
        self._last: Certificate | None = None
        self._last_votes: dict[int, bytes] = {}  # late precommits for the block of `_last`
        self._inputs = self._ignored = self._decided = self._rounds = self._accused = 0

    # --- what can be seen

    @property
    def height(self) -> int:
        """The height being decided, or decided last; 0 before the first `Started`."""
        return self._height

    @property
    def round(self) -> int:
        """The round, or −1."""
        return NO_ROUND if self._state is None else self._state.round

    @property
    def step(self) -> Step:
        """The step of the round."""
        return Step.PROPOSE if self._state is None else self._state.step

    @property
    def locked(self) -> Point:
        """(round, block id) of our lock, or (−1, NIL)."""
        return NOWHERE if self._state is None else self._state.locked

    @property
    def valid(self) -> Point:
        """(round, block id) of the latest polka we know, or (−1, NIL)."""
        return NOWHERE if self._state is None else self._state.valid

    @property
    def decided(self) -> Point | None:
        """(round, block id) of the decision, once there is one."""
        return None if self._state is None else self._state.decided

    def certificate(self, kind: int, round: int) -> Certificate | None:
        """The polka or commit of a round, from votes or as received; None if there is none."""
        if self._state is None:
            return None
        book = self._state.book
        quorums = book.polkas if kind == PREVOTE else book.decisions
        found = quorums.get(round)
        return book.certificate(kind, round, found[0]) if found else None

    def last_certificate(self) -> Certificate | None:
        """The fullest precommits seen for height−1; None at height 1."""
        if self._last is None or not self._last_votes:
            return self._last
        signed = {**self._last_votes, **self._last.by_member()}
        last = self._last
        size = 8 * len(last.bitmap)  # only the bytes count, and they are those of the set
        return make_certificate(PRECOMMIT, last.height, last.round, last.block_id, signed, size)

    def wanted(self) -> bytes | None:
        """A block that a quorum names and nobody told us about: the host asks peers for it."""
        state = self._state
        if state is None or state.decided is not None:
            return None
        for quorums in (state.book.decisions, state.book.polkas):
            for round in sorted(quorums, reverse=True):
                for block_id in quorums[round]:
                    if block_id not in state.told:
                        return block_id
        return None

    # --- what happens

    def handle(self, given: Input) -> list[Effect]:
        """Everything that follows from one input, in the order it must be performed.

        Raises `Contradiction` when a quorum decided a block that we were told is invalid.
        """
        self._inputs += 1
        match given:
            case Started():
                effects = self._start(given)
            case Received():
                effects = self._receive(given)
            case TimedOut():
                effects = self._time_out(given)
            case PayloadBuilt():
                effects = self._propose(given)
            case CaughtUp():
                return self._catch_up(given)
            case _:
                assert_never(given)
        state = self._state
        if state is not None and state.decided is None:
            effects += settle(state)
            self._decided += state.decided is not None
        self._rounds += sum(
            isinstance(effect, SetTimer) and effect.step == Step.PROPOSE for effect in effects
        )
        return effects

    def _start(self, given: Started) -> list[Effect]:
        assert given.height > self._height or self._state is None, "a height begins once"
        assert (given.last_certificate is None) == (given.height == 1)
        self._keep_last(given)
        state = RoundState(given.height, given.validators, self.me)
        self._height, self._state = given.height, state
        signed = given.signed
        if signed is None:
            return start_round(state, 0)
        assert signed.height == given.height
        return _resume(state, signed)

    def _keep_last(self, given: Started) -> None:
        """Our own book of the height just decided may know more signers than the host does."""
        before, self._last = self._state, given.last_certificate
        self._last_votes = {}
        if before is None or before.decided is None or self._last is None:
            return
        round, block_id = before.decided
        if (self._last.height, self._last.round, self._last.block_id) != (
            before.height,
            round,
            block_id,
        ):
            return
        full = before.book.certificate(PRECOMMIT, round, block_id)
        assert full is not None
        self._last_votes = full.by_member()

    def _receive(self, given: Received) -> list[Effect]:
        message, state = given.message, self._state
        if state is None or message.height != self._height:
            if isinstance(message, Vote):
                self._take_late(message)
            else:
                self._ignored += 1
            return []
        if state.decided is not None and not _is_precommit(message):
            self._ignored += 1
            return []
        match message:
            case Vote():
                evidence = take_vote(state, message)
            case Proposal():
                evidence = take_offer(state, Offer(message, given.valid, given.timely))
            case Certificate():
                evidence = None
                state.book.add_certificate(message)
                if message.kind == PRECOMMIT and state.decided is None:
                    state.tell(message.block_id, given.valid)
            case _:
                assert_never(message)
        if evidence is None:
            return []
        self._accused += 1
        return [Accuse(evidence)]

    def _take_late(self, vote: Vote) -> None:
        """A precommit of height−1 makes its certificate fuller; all else is too late."""
        last = self._last
        if last is None or (vote.kind, vote.height, vote.round, vote.block_id) != (
            PRECOMMIT,
            last.height,
            last.round,
            last.block_id,
        ):
            self._ignored += 1
            return
        self._last_votes.setdefault(vote.index, vote.signature)

    def _time_out(self, given: TimedOut) -> list[Effect]:
        state = self._state
        if state is None or state.decided is not None or given.height != self._height:
            self._ignored += 1
            return []
        return time_out(state, given.round, given.step)

    def _propose(self, given: PayloadBuilt) -> list[Effect]:
        state = self._state
        if (
            state is None
            or state.decided is not None
            or (given.height, given.round) != (state.height, state.round)
            or state.step != Step.PROPOSE  # our timer was faster: what follows a vote is no offer
            or state.said >= (state.round, 0)
        ):
            self._ignored += 1
            return []
        assert state.is_proposer
        assert given.header.chain_id == self.chain_id
        assert given.header.height == state.height
        return say_proposal(state, Proposal(state.height, state.round, NO_ROUND, given.header))

    def _catch_up(self, given: CaughtUp) -> list[Effect]:
        if given.height >= self._height:
            self._height, self._state = given.height, None
            self._last, self._last_votes = None, {}
        else:
            self._ignored += 1
        return []

    # --- helping others

    def status(self) -> Status:
        """What we have of this round, for a peer that may have more."""
        state = self._state
        if state is None:
            return Status(self._height, 0, STEP_DECIDED, False, b"", b"")
        step = STEP_DECIDED if state.decided is not None else int(state.step)
        return Status(
            state.height,
            state.round,
            step,
            state.round in state.offers,
            state.book.bitmap(PREVOTE, state.round),
            state.book.bitmap(PRECOMMIT, state.round),
        )

    def missing(self, status: Status, bytes_max: int) -> list[Message]:
        """What a peer at our height lacks and we have, the weightiest first, ≤ `bytes_max`.

        A commit certificate if we decided; else what moves it in its round, and to ours.
        """
        state = self._state
        if state is None or status.height != state.height or status.step == STEP_DECIDED:
            return []
        if state.decided is not None:
            found: list[Message] = [self._commit_certificate(state)]
        else:
            found = _lacking(state, status, status.round)
            if status.round < state.round:
                bare = Status(state.height, state.round, 0, False, b"", b"")
                found += _lacking(state, bare, state.round)
        kept: list[Message] = []
        for message in found:
            bytes_max -= len(encode_message(message))
            if bytes_max < 0:
                break
            kept.append(message)
        return kept

    def _commit_certificate(self, state: RoundState) -> Certificate:
        assert state.decided is not None
        round, block_id = state.decided
        certificate = state.book.certificate(PRECOMMIT, round, block_id)
        assert certificate is not None
        return certificate

    # --- for tests and counters

    def snapshot(self) -> tuple[object, ...]:
        """The whole state as a hashable value: equal snapshots behave equally ever after."""
        state = self._state
        if state is None:
            return (self._height, None)
        offers = tuple(
            (round, offer.proposal.body(), offer.valid, offer.timely)
            for round, offer in sorted(state.offers.items())
        )
        ahead = tuple(
            (member, (message.proposal if isinstance(message, Offer) else message).body())
            for member, message in sorted(state.ahead.items())
        )
        return (
            state.height,
            state.round,
            int(state.step),
            state.locked,
            state.valid,
            state.decided,
            state.said,
            (state.has_prevote_timer, state.has_precommit_timer, state.has_seen_polka),
            tuple(sorted(state.told.items())),
            offers,
            ahead,
            state.book.snapshot(),
        )

    def statistics(self) -> EngineStatistics:
        """Counters since the start."""
        return EngineStatistics(
            self._inputs, self._ignored, self._decided, self._rounds, self._accused
        )


def _resume(state: RoundState, signed: SignerRecord) -> list[Effect]:
    """Begin where we last spoke, with the locks of that moment, and never say that again."""
    state.round = signed.round
    state.step = Step(signed.kind)
    state.locked, state.valid = signed.locked, signed.valid
    state.said = (signed.round, signed.kind)
    if state.step == Step.PROPOSE:
        return [SetTimer(state.height, state.round, Step.PROPOSE)]
    return []  # the timers of the other steps come with the votes that are replayed


def _is_precommit(message: Message) -> bool:
    return not isinstance(message, Proposal) and message.kind == PRECOMMIT


def _lacking(state: RoundState, status: Status, round: int) -> list[Message]:
    found: list[Message] = []
    offer = state.offers.get(round)
    if offer is not None and not status.has_proposal:
        found.append(offer.proposal)
    for kind, theirs in ((PRECOMMIT, status.precommits), (PREVOTE, status.prevotes)):
        have = int.from_bytes(theirs, "little")
        found += [vote for vote in state.book.votes(kind, round) if not have >> vote.index & 1]
    return found
