"""A host of one engine: what a replica does, without disk, trio and blocks.

What is durable here is what page 20 §6 makes durable: our records at `Persist`, and what was heard
before them. Signatures are keyed hashes, so that forging is as impossible as with Ed25519 and
costs 1 µs. What this file does not know: how long a message takes, and who lies.
"""

from collections.abc import Callable
from hashlib import blake2b
from random import Random
from typing import Any, Final, NamedTuple, Protocol

from simulation.engines import CHAIN_ID, header, with_signature
from simulation.outcomes import BROKEN, Violation

from consensus.certificate import PRECOMMIT, VOTE_TAG, Certificate, check_certificate, vote_body
from consensus.effects import Accuse, Broadcast, BuildPayload, Commit, Effect, Persist, SetTimer
from consensus.engine import STEP_DECIDED, Engine
from consensus.header import Header
from consensus.inputs import CaughtUp, Input, PayloadBuilt, Received, Started, TimedOut
from consensus.messages import (
    PROPOSAL_TAG,
    Message,
    Proposal,
    Status,
    Vote,
    check_proposal,
    tag_of,
)
from consensus.params import ROUNDS_AHEAD_MAX
from consensus.primitives.errors import Invalid
from consensus.records import SIGNED_PROPOSAL, SignerRecord
from consensus.round import Contradiction
from consensus.validators import ValidatorSet
from node.peering.pace import LAN, Pace

ANSWER_BYTES_MAX: Final = 1 << 16
EARLY_MAX: Final = 64  # messages of the next height
SUPPLY: Final = 10**18  # a header with another supply is of an invalid block


class Ask(NamedTuple):
    """Who has this block?"""

    block_id: bytes


class Block(NamedTuple):
    """The block that was asked for."""

    header: Header


class Decided(NamedTuple):
    """A block of an older height with what decided it."""

    header: Header
    certificate: Certificate


Packet = Message | Status | Ask | Block | Decided


class Outside(Protocol):
    """What a host can ask of the world around it."""

    rng: Random
    heights: int  # the chain ends there

    def send(self, host: "Host", packet: Packet, to: int | None = None) -> None: ...
    def after(self, delay_ms: float, act: Callable[[], None]) -> None: ...
    def validators(self, height: int) -> ValidatorSet: ...
    def note_said(self, host: "Host", message: Proposal | Vote) -> None: ...
    def note_decided(self, host: "Host", header: Header, round: int) -> None: ...
    def note_accused(self, host: "Host", accused: Accuse) -> None: ...


class Crash(Exception):
    """A host dies now, in the middle of its effects."""

    def __init__(self, host: "Host") -> None:
        super().__init__()
        self.host = host


def sign_as(key: bytes, tag: bytes, body: bytes) -> bytes:
    """The signature of a key: nobody else can make it in a simulation."""
    return blake2b(tag + body, key=key, digest_size=64).digest()


def is_valid(block: Header) -> bool:
    """What execution would say of a block."""
    return block.supply == SUPPLY


class Host:
    """One validator. `crash` and `restart` are the world's; a file of it survives them."""

    def __init__(self, outside: Outside, name: int, key: bytes) -> None:
        self.outside, self.name, self.key = outside, name, key
        self.chain: list[Decided] = []
        self.records: list[SignerRecord] = []  # of the height in work
        self.journal: list[Received] = []
        self.synced = 0  # so many of the journal are durable
        self.blocks: dict[bytes, Header] = {}
        self.marks = 0
        self.life = 0  # grows with each crash: timers of an earlier life are nobody's
        self.is_up = False
        self.crash_chance = 0.0  # at each record

    @property
    def height(self) -> int:
        """The height in work."""
        return len(self.chain) + 1

    @property
    def round(self) -> int:
        """The round in work."""
        return self.engine.round

    # --- life

    def restart(self) -> None:
        """Come up with what is durable, as the replica's recovery does."""
        self.is_up = True
        self.engine = Engine(CHAIN_ID, self.key)
        self.pace = Pace(LAN)
        self.early: list[tuple[int, Message]] = []
        self.start_next()

    def crash(self) -> None:
        """What was heard since the last record may be gone, and some of it may not."""
        self.is_up = False
        self.life += 1
        kept = self.outside.rng.randint(self.synced, len(self.journal))
        del self.journal[kept:]
        self.synced = kept

    def forget(self) -> None:
        """Amnesia: a validator whose files are gone, and that votes all the same."""
        self.records.clear()
        self.journal.clear()
        self.synced = 0

    def start_next(self) -> None:
        """Begin the height in work, if it has not begun and the chain does not end before it."""
        if self.height > self.outside.heights or self._is_started():
            return
        height = self.height
        validators = self.outside.validators(height)
        last = self.chain[-1].certificate if self.chain else None
        ours = [said for record in self.records if (said := self._said(record)) is not None]
        signed = self.records[-1] if self.records else None
        replayed = [Received(message) for message in ours] + self.journal
        self._feed(Started(height, validators, last, signed), is_noted=False)
        for received in replayed:
            if self.height == height:
                self._feed(received, is_noted=False)
        for message in ours:
            if self.height == height:
                self.outside.send(self, message)
        early, self.early = self.early, []
        for sender, message in early:
            self._hear_message(sender, message)

    def _is_started(self) -> bool:
        return self.engine.height == self.height and self.engine.round >= 0

    def _said(self, record: SignerRecord) -> Message | None:
        """The message of a record, signed again."""
        place = self.outside.validators(record.height).index(self.key)
        assert place is not None
        message: Proposal | Vote
        if record.kind == SIGNED_PROPOSAL:
            block = self.blocks.get(record.body[16:])
            if block is None or record.body[12:16] != bytes(4):
                return None  # offered again: its polka is not ours to make up
            message = Proposal(record.height, record.round, -1, block)
        else:
            message = Vote(record.kind, record.height, record.round, record.body[13:], place)
        return with_signature(message, sign_as(self.key, tag_of(message), record.body))

    # --- the engine's effects

    def _feed(self, given: Input, *, is_noted: bool = True) -> None:
        inputs = [given]
        while inputs:
            now = inputs.pop(0)
            if is_noted and isinstance(now, Received) and now.message.height == self.height:
                self.journal.append(now)
            for effect in self._handled(now):
                answer = self._perform(effect)
                if answer is not None:
                    inputs.append(answer)

    def _handled(self, given: Input) -> list[Effect]:
        try:
            return self.engine.handle(given)
        except Contradiction as error:
            raise Violation(BROKEN, str(error)) from error

    def _perform(self, effect: Effect) -> Input | None:
        match effect:
            case Persist(record):
                last = self.records[-1] if self.records else None
                assert last is None or record.place() > last.place()
                self.records.append(record)
                self.synced = len(self.journal)
                self._perhaps_crash()
            case Broadcast(message):
                assert self.records[-1].body == message.body(), "recorded before it is said"
                said = with_signature(message, sign_as(self.key, tag_of(message), message.body()))
                self.outside.note_said(self, said)
                self.outside.send(self, said)
                return Received(said)
            case SetTimer(height, round, step):
                delay_ms = self.pace.length_ms(round, step)
                self._later(delay_ms, lambda: self._feed(TimedOut(height, round, step)))
            case BuildPayload(height, round):
                self._later(self.outside.rng.uniform(0, 60), lambda: self._build(height, round))
            case Commit(_, round, block_id, certificate):
                self._append(Decided(self.blocks[block_id], certificate), round)
            case Accuse():
                self.outside.note_accused(self, effect)
        return None

    def _perhaps_crash(self) -> None:
        if self.crash_chance and self.outside.rng.random() < self.crash_chance:
            raise Crash(self)

    def _later(self, delay_ms: float, act: Callable[[], None]) -> None:
        life = self.life
        self.outside.after(delay_ms, lambda: act() if life == self.life else None)

    def _build(self, height: int, round: int) -> None:
        if (height, round) != (self.height, self.engine.round):
            return
        self.marks += 1
        block = header(self.key, height, (self.name + 1) * 1_000_000 + self.marks)
        self.blocks[block.block_id()] = block
        self._feed(PayloadBuilt(height, round, block))

    def _append(self, decided: Decided, round: int) -> None:
        self.outside.note_decided(self, decided.header, round)
        self.chain.append(decided)
        self.records.clear()
        self.journal.clear()
        self.synced = 0
        self._later(self.outside.rng.uniform(5, 100), self.start_next)

    # --- what comes from others

    def tick(self) -> None:
        """Re-send: tell all what we have, and ask for the block that a quorum names."""
        self.outside.send(self, self.engine.status())
        wanted = self.engine.wanted()
        if wanted is not None:
            self.outside.send(self, Ask(wanted))

    def hear(self, sender: int, packet: Packet) -> None:
        """Anything from anybody; what is false is refused here."""
        match packet:
            case Status():
                self._answer(sender, packet)
            case Ask(block_id):
                if block_id in self.blocks:
                    self.outside.send(self, Block(self.blocks[block_id]), sender)
            case Block(block):
                self.blocks[block.block_id()] = block
                self._tell_wanted(block)
            case Decided():
                self._catch_up(packet)
            case _:
                self._hear_message(sender, packet)

    def _answer(self, sender: int, status: Status) -> None:
        if status.height > len(self.chain):
            for message in self.engine.missing(status, ANSWER_BYTES_MAX):
                self.outside.send(self, message, sender)
        elif status.step != STEP_DECIDED or status.height < len(self.chain):
            decided = self.chain[status.height - 1] if status.height else self.chain[0]
            answer = decided.certificate if self.outside.rng.random() < 0.5 else decided
            self.outside.send(self, answer, sender)

    def _hear_message(self, sender: int, message: Message) -> None:
        if not self._is_started() or message.height == self.height + 1:
            if message.height >= self.height and len(self.early) < EARLY_MAX:
                self.early.append((sender, message))
                self._start_if_called(message)
            return
        if message.height == self.height - 1 and isinstance(message, Vote):
            if self._is_good(message, message.height):
                self._feed(Received(message))  # a late precommit
            return
        if message.height != self.height or not self._is_good(message, self.height):
            return
        if isinstance(message, Vote):
            self._feed(Received(message))
        elif isinstance(message, Proposal):
            self.blocks[message.block_id] = message.header
            is_timely = self.outside.rng.random() < 0.97
            self._feed(Received(message, is_valid(message.header), is_timely))
            self._tell_wanted(message.header)
        elif message.kind != PRECOMMIT:
            self._feed(Received(message))
        elif message.block_id in self.blocks:
            self._feed(Received(message, is_valid(self.blocks[message.block_id])))
        else:
            self.outside.send(self, Ask(message.block_id), sender)

    def _start_if_called(self, message: Message) -> None:
        """A signed word of our height: others have begun it, so do we."""
        if message.height == self.height and isinstance(message, Proposal):
            self._later(1, self.start_next)

    def _tell_wanted(self, block: Header) -> None:
        """A quorum that came vote by vote needs no proposal to decide."""
        block_id = block.block_id()
        if self.engine.wanted() != block_id:
            return
        for round in range(self.engine.round + 1):
            certificate = self.engine.certificate(PRECOMMIT, round)
            if certificate is not None and certificate.block_id == block_id:
                self._feed(Received(certificate, is_valid(block)))
                return

    def _catch_up(self, decided: Decided) -> None:
        block, certificate = decided
        if block.height != self.height or certificate.block_id != block.block_id():
            return
        if (certificate.kind, certificate.height) != (PRECOMMIT, block.height):
            return
        if not self._is_good(certificate, self.height):
            return
        self.blocks[certificate.block_id] = block
        self._feed(CaughtUp(block.height))
        self._append(decided, certificate.round)

    def _is_good(self, message: Message, height: int) -> bool:
        """The checks of `admission.py`, with the simulation's signatures."""
        validators = self.outside.validators(height)
        try:
            match message:
                case Vote():
                    return self._is_signed(validators, message.index, VOTE_TAG, message)
                case Proposal():
                    return self._is_good_proposal(validators, message)
                case Certificate():
                    return _is_good_certificate(validators, message)
        except Invalid:
            return False

    def _is_good_proposal(self, validators: ValidatorSet, proposal: Proposal) -> bool:
        polka, block_id = proposal.polka, proposal.block_id
        if proposal.round > self.engine.round + ROUNDS_AHEAD_MAX:
            return False
        if proposal.pol_round >= proposal.round or (proposal.pol_round >= 0) != (polka is not None):
            return False
        if polka is not None:
            if (polka.round, polka.block_id) != (proposal.pol_round, block_id):
                return False
            if not _is_good_certificate(validators, polka):
                return False
        check_proposal(proposal, validators)
        place = validators.index(validators.proposer(proposal.round))
        assert place is not None
        return self._is_signed(validators, place, PROPOSAL_TAG, proposal)

    def _is_signed(
        self, validators: ValidatorSet, index: int, tag: bytes, message: Vote | Proposal
    ) -> bool:
        if index >= len(validators):
            return False
        key = validators.members[index].key
        return message.signature == sign_as(key, tag, message.body())


def _is_good_certificate(validators: ValidatorSet, certificate: Certificate) -> bool:
    check_certificate(certificate, validators)
    body = vote_body(certificate.kind, certificate.height, certificate.round, certificate.block_id)
    signed: dict[int, Any] = certificate.by_member()
    return all(
        signature == sign_as(validators.members[member].key, VOTE_TAG, body)
        for member, signature in signed.items()
    )
