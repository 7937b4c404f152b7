"""Our own word: what this key has promised, what it may sign, and whether it speaks elsewhere.

Why a node may have a key and not use it: for a while after a start another machine may still run
under it, a restored chain may lie behind what it has signed, and once it was heard saying what
this machine never said, it signs nothing at all.
What this file does not know: what is worth saying, and to whom.
"""

from collections.abc import Callable
from dataclasses import dataclass

from consensus.certificate import PRECOMMIT, Certificate
from consensus.header import NIL, decode_header
from consensus.inputs import Received
from consensus.messages import Message, Proposal, Vote, encode_message, signed
from consensus.records import SIGNED_PROPOSAL, SignerRecord
from consensus.validators import ValidatorSet
from node.ledger.wire.blocks import Block, encode_block
from node.peering.inbox import RunBlocking
from node.storage.journal import Journal, Recovered

Sign = Callable[[bytes, bytes], bytes]  # (tag, body) → signature, chain-bound


@dataclass(frozen=True, slots=True)
class Validator:
    """What a node needs to vote: its key, its memory, and how it signs."""

    key: bytes
    journal: Journal
    sign: Sign


class Voter:
    """The voice of one node. `validator` None: it has no key, and says nothing.

    `sync_bodies` makes all bundle bodies durable; it blocks, as the journal does, so both are
    called through `run_blocking`. `may_promise`: whether what we promise now can be kept.
    """

    def __init__(
        self,
        validator: Validator | None,
        *,
        sync_bodies: Callable[[], None],
        run_blocking: RunBlocking,
        may_promise: Callable[[], bool] = lambda: True,
    ) -> None:
        self._validator = validator
        self._may_promise = may_promise
        self._sync_bodies = sync_bodies
        self._run_blocking = run_blocking
        self._recovered: Recovered | None = None  # looked into, not yet handed over
        self._own_bodies: set[bytes] = set()  # all that our key said at this height
        self._record: SignerRecord | None = None
        self.votes_from_s = 0.0
        self.is_doubled = False

    @property
    def key(self) -> bytes | None:
        """Our validator key, whether it may sign or not."""
        return None if self._validator is None else self._validator.key

    def signing_key(self, height: int, now_s: float) -> bytes | None:
        """Our key, if it may sign `height` now."""
        is_silent = self.is_doubled or now_s < self.votes_from_s or not self._may_promise()
        return None if is_silent or not self._may_journal(height) else self.key

    def _may_journal(self, height: int) -> bool:
        return self._validator is not None and self._validator.journal.may_sign(height)

    # --- a height begins and ends

    def forget(self) -> None:
        """Another height is the next one now."""
        self._own_bodies.clear()
        self._recovered = None

    async def has_begun(self, height: int) -> bool:
        """Whether the journal holds anything of `height`: we were in the middle of it."""
        if self._validator is None or not self._may_journal(height):
            return False
        self._recovered = await self._run_blocking(self._validator.journal.begin, height)
        return not self._recovered.is_empty

    async def recover(self, height: int) -> Recovered | None:
        """What the journal holds of `height`, which is its height from now on; None without one."""
        recovered, self._recovered = self._recovered, None
        self._record = None
        if self._validator is not None and recovered is None and self._may_journal(height):
            recovered = await self._run_blocking(self._validator.journal.begin, height)
        if recovered is not None:
            self._own_bodies.update(promise.body for promise in recovered.promises)
            if recovered.signed is not None:
                self._own_bodies.add(recovered.signed.body)
        return recovered

    def end(self, height: int) -> None:
        """`height` is durable in the chain."""
        if self._validator is not None and self._validator.journal.height == height:
            self._validator.journal.end()

    # --- what we are told

    def note(self, received: Received) -> None:
        """Into the journal, before the engine sees it."""
        if self._validator is None or received.message.height != self._validator.journal.height:
            return
        self._validator.journal.message(
            encode_message(received.message), valid=received.valid, timely=received.timely
        )

    def note_block(self, height: int, block: Block) -> None:
        """A valid block of the height being decided, into the journal."""
        if self._validator is not None and self._validator.journal.height == height:
            self._validator.journal.block(encode_block(block))

    def is_double(self, message: Message, validators: ValidatorSet) -> bool:
        """Whether our key said in `message` what this machine never said: it runs elsewhere too."""
        if self._validator is None or isinstance(message, Certificate):
            return False
        if isinstance(message, Vote):
            speaker = validators.members[message.index].key
        else:
            speaker = validators.proposer(message.round)
        if speaker != self._validator.key or message.body() in self._own_bodies:
            return False
        last = self._validator.journal.last
        return last is None or last.body != message.body()

    # --- what we say

    async def persist(self, record: SignerRecord) -> None:
        """Make a promise durable; nothing is signed before."""
        assert self._validator is not None
        if record.kind == PRECOMMIT and record.body[13:] != NIL:
            # No precommit for a block whose bodies might die with us.
            await self._run_blocking(self._sync_bodies)
        await self._run_blocking(self._validator.journal.persist, record)
        self._record = record

    def sign(self, message: Proposal | Vote) -> Proposal | Vote:
        """The message with our signature. Its record was the last one made durable."""
        assert self._validator is not None
        assert self._record is not None
        assert self._record.body == message.body(), "recorded before it is signed"
        self._own_bodies.add(message.body())
        return signed(message, self._validator.journal.sign(self._record, self._validator.sign))

    def say_again(
        self,
        record: SignerRecord,
        validators: ValidatorSet,
        find_block: Callable[[bytes], Block | None],
    ) -> Message | None:
        """The message of a record, signed again: Ed25519 gives the same bytes."""
        assert self._validator is not None
        place = validators.index(self._validator.key)
        if place is None:
            return None
        message: Vote | Proposal
        if record.kind == SIGNED_PROPOSAL:
            block = find_block(record.body[16:])
            if block is None or record.body[12:16] != bytes(4):
                return None  # offered again: its polka is not ours to make up
            header = decode_header(block.header)
            message = Proposal(record.height, record.round, -1, header)
        else:
            message = Vote(record.kind, record.height, record.round, record.body[13:], place)
        assert message.body() == record.body
        return signed(message, self._validator.journal.sign(record, self._validator.sign))
