"""From a frame to the engine: admitted, kept while early, and held back until its block is judged.

Why a message waits for its block: the engine is told both together, and missing data is never
"invalid": the timeout speaks meanwhile. Why gossip is judged by shape and height alone: its
signatures are checked in the replica's own task, where each costs its author's share (page 70 §5).
What this file does not know: how frames travel, and what the engine's answers lead to.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from consensus.certificate import PRECOMMIT, PREVOTE, Certificate
from consensus.header import Header, decode_header
from consensus.inputs import PayloadBuilt, Received
from consensus.messages import (
    BLOCK,
    EVIDENCE,
    STATUS,
    Message,
    Proposal,
    Vote,
    decode_body,
    decode_status,
)
from consensus.params import ConsensusParams
from consensus.primitives.errors import Invalid
from consensus.validators import ValidatorSet
from node.ledger.wire.blocks import Block, decode_block
from node.observe import get_log
from node.peering.admission import Admission
from node.peering.agreement import Agreement
from node.peering.catchup import Catchup
from node.peering.early import Early
from node.peering.execution import Execution
from node.peering.inbox import Executed, Fetched, Heard, Means, OwnBlock
from node.peering.sending import Sender
from node.peering.topics import decode_vote_message
from node.peering.undecided import Undecided, Waiting
from node.peering.voter import Voter
from node.storage.views import Tip
from p2p.limits import PENALTIES
from p2p.network import PeerId, Verdict

log = get_log("consensus")


class Hearing:
    """What reaches the engine, and in which company.

    `stop_signing` is called when our key was heard saying what we never said.
    """

    def __init__(
        self,
        means: Means,
        *,
        voter: Voter,
        sender: Sender,
        execution: Execution,
        undecided: Undecided,
        agreement: Agreement,
        catchup: Catchup,
        get_params: Callable[[], ConsensusParams],
        judge_evidence: Callable[[bytes], Verdict],
        stop_signing: Callable[[], Awaitable[None]],
    ) -> None:
        self._means, self._chain = means, means.chain
        self._voter = voter
        self._sender = sender
        self._execution = execution
        self._undecided = undecided
        self._agreement = agreement
        self._catchup = catchup
        self._get_params = get_params
        self._judge_evidence = judge_evidence
        self._stop_signing = stop_signing
        self._early = Early()
        self.admission = Admission(self._chain.chain_id)

    def begin(self, tip: Tip) -> None:
        """Admit messages of the height after `tip`, and nothing older, from now on."""
        self._undecided.clear()
        self._early.clear()
        height = tip.height + 1
        held = self.admission.begin(height, tip.validators, tip.signers, tip.certificate)
        for frame in held:
            peer = PeerId(frame.peer)
            self._means.inbox.put(Heard(peer, frame.kind, frame.body, frame.received_ms))

    def is_called(self, validators: ValidatorSet) -> bool:
        """Whether others have begun the next height, so that it must begin here too."""
        return self._early.is_calling(validators)

    async def deliver_early(self) -> None:
        """The height has begun: what came before it, to the engine."""
        for message, received_ms, peer in self._early.take():
            if self._agreement.is_started and message.height == self._chain.height + 1:
                await self._deliver(message, received_ms, peer)

    # --- at the door

    def hear_frame(self, peer: PeerId, kind: int, body: bytes) -> None:
        """A frame from a validator's stream."""
        self._means.inbox.put(Heard(peer, kind, body, self._means.now_ms()))

    async def hear_gossip(self, gossip: Any) -> None:
        """Everything that `judge` let in, for ever."""
        async for heard in gossip:
            kind, body = decode_vote_message(heard.data)
            if kind != EVIDENCE:  # that was taken at the door
                self._means.inbox.put(Heard(heard.author, kind, body, heard.received_ms))

    def judge(self, forwarder: PeerId, author: PeerId, data: bytes) -> Verdict:
        """Shape and height of a gossiped message; evidence wholly."""
        try:
            kind, body = decode_vote_message(data)
            if kind == EVIDENCE:
                return self._judge_evidence(body)
            message = decode_body(kind, body)
        except Invalid:
            return Verdict.REJECT
        near = abs(message.height - self.admission.height) <= 1
        if not near and message.height > self.admission.height:
            # Too far ahead for us, but not for who passed it on: it is at most two below.
            self._catchup.hint(forwarder, message.height - 2)
        return Verdict.ACCEPT if near else Verdict.IGNORE

    # --- frames

    async def take_frame(self, heard: Heard) -> None:
        """One frame, to the end."""
        try:
            if heard.kind == BLOCK:
                self._take_block(heard)
            elif heard.kind == STATUS:
                self._take_status(heard)
            elif heard.kind != EVIDENCE:
                await self._take_message(heard)
        except Invalid as refusal:
            self._means.counters["refused"] += 1
            log.warning("bad consensus frame", peer=heard.peer, code=refusal.code)
            self._means.network.penalise(heard.peer, PENALTIES["malformed"], "malformed")

    def _take_status(self, heard: Heard) -> None:
        status = decode_status(heard.body)
        if status.height > self._chain.height + 1:
            self._catchup.hint(heard.peer, status.height - 1)
        else:
            self._sender.answer(heard.peer, status, self._agreement.engine)

    async def _take_message(self, heard: Heard) -> None:
        message = decode_body(heard.kind, heard.body)
        height = self.admission.height
        if message.height > height:
            self._catchup.hint(heard.peer, message.height - 1)
            if message.height == height + 1:
                self.admission.hold(heard.peer, heard.kind, heard.body, heard.received_ms)
            return
        round = self._agreement.engine.round if self._agreement.is_started else 0
        if not self.admission.admit(message, round):
            return
        if message.height < height:
            await self._agreement.feed(Received(message))  # a late precommit
            return
        if self._voter.is_double(message, self._chain.tip.validators):
            await self._stop_signing()
        if self._agreement.is_started:
            await self._deliver(message, heard.received_ms, heard.peer)
        elif not self._early.keep(message, heard.received_ms, heard.peer):
            self._means.counters["early_full"] += 1

    async def _deliver(self, message: Message, received_ms: int, peer: PeerId) -> None:
        """A checked message of the height that is being decided, to the engine."""
        if isinstance(message, Vote) or (
            isinstance(message, Certificate) and message.kind == PREVOTE
        ):
            await self._agreement.feed(Received(message))
            return
        block_id = message.block_id
        timely = isinstance(message, Proposal) and self._is_timely(message, received_ms)
        verdict = self._undecided.verdict(block_id)
        if verdict is not None:
            await self._agreement.feed(Received(message, verdict, timely))
        elif self._undecided.wait(block_id, Waiting(message, timely, peer)):
            if isinstance(message, Certificate):
                self._execution.seek(block_id)  # decided already: do not wait for anyone's turn
        else:
            self._means.counters["waiting_full"] += 1

    def _is_timely(self, proposal: Proposal, received_ms: int) -> bool:
        """Page 20 §5; asked at a first proposal only."""
        params, time_ms = self._get_params(), proposal.header.time_ms
        delay_ms = params.delay_ms * (2 + proposal.round) // 2
        is_not_ahead = time_ms <= received_ms + params.precision_ms
        return is_not_ahead and received_ms <= time_ms + params.precision_ms + delay_ms

    # --- blocks, and what execution found

    def _take_block(self, heard: Heard) -> None:
        block = decode_block(heard.body)
        header = decode_header(block.header)
        block_id = header.block_id()
        is_named = (
            self._undecided.is_waited_for(block_id)
            or block_id == self._agreement.engine.wanted()
            or self._early.has_offer_of(block_id)  # its height has not begun here
        )
        if header.height != self._chain.height + 1 or not is_named:
            self._means.counters["unasked_blocks"] += 1
            return
        if self._undecided.find(block_id) is None:
            self._undecided.put(block_id, block)
            self._execution.start(block_id, block, heard.peer)

    def take_fetched(self, event: Fetched) -> None:
        """A block that was asked for by its id."""
        if event.height != self._chain.height + 1:
            return
        self._undecided.at_work.discard(event.block_id)
        if event.block is not None:
            self._undecided.put(event.block_id, event.block)
            self._execution.start(event.block_id, event.block, None)

    async def take_verdict(self, event: Executed) -> None:
        """What execution said of a block, to the engine with all that waited for it."""
        if event.height != self._chain.height + 1:
            return
        self._undecided.at_work.discard(event.block_id)
        verdict = event.verdict
        if verdict is None:  # tried again at the next tick
            self._means.counters["lacking_forgotten"] += self._undecided.lack(event.block_id)
            return
        if not verdict.is_valid and not verdict.is_final:
            # Other bytes under the same header may be good: never a verdict on the id.
            self._means.counters["false_bytes"] += 1
            log.warning("a block's bytes are not its header's", code=verdict.code)
            self._undecided.forget(event.block_id)
            return
        if verdict.is_valid:
            waiting = self._keep_valid(decode_header(event.block.header), event.block)
        else:
            self._means.counters["invalid_blocks"] += 1
            log.warning("invalid block proposed", height=event.height, code=verdict.code)
            waiting = self._undecided.judge(event.block_id, False)
        for message, timely, _ in waiting:
            if event.height == self._chain.height + 1:
                await self._agreement.feed(Received(message, verdict.is_valid, timely))
        await self._tell_wanted(event.block_id, verdict.is_valid)

    async def _tell_wanted(self, block_id: bytes, is_valid: bool) -> None:
        """A quorum of precommits that came vote by vote needs no proposal to decide."""
        engine = self._agreement.engine
        if not self._agreement.is_started or engine.wanted() != block_id:
            return
        for round in range(engine.round + 1):
            certificate = engine.certificate(PRECOMMIT, round)
            if certificate is not None and certificate.block_id == block_id:
                await self._agreement.feed(Received(certificate, is_valid))
                return

    async def take_own_block(self, event: OwnBlock) -> None:
        """A block of ours, executed while it was made: to the engine, which proposes it."""
        if event.height != self._chain.height + 1 or not self._agreement.is_started:
            return
        if self._agreement.engine.me is None:
            return  # asked for when we still had a voice
        header = decode_header(event.built.block.header)
        self._keep_valid(header, event.built.block)
        await self._agreement.feed(PayloadBuilt(event.height, event.round, header))

    def _keep_valid(self, header: Header, block: Block) -> list[Waiting]:
        block_id = header.block_id()
        self._undecided.put(block_id, block)
        self._voter.note_block(header.height, block)
        return self._undecided.judge(block_id, True)
