"""The engine with its host's duties done: told everything in order, its effects performed in order.

Why a promise is durable before its message leaves, and the message counted only after that: what
has left this machine can never be unsaid, whatever crashes next (page 20 §6).
What this file does not know: where messages come from, when a height may begin, and how a decided
block becomes part of the chain: the replica, its one writer, is asked to commit it.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import assert_never

import trio

from consensus.certificate import PREVOTE
from consensus.effects import (
    Accuse,
    Broadcast,
    BuildPayload,
    Commit,
    Effect,
    Persist,
    SetTimer,
)
from consensus.engine import Engine
from consensus.evidence import Evidence, encode_evidence
from consensus.header import NIL
from consensus.inputs import Input, Received, Started, Step, TimedOut
from consensus.messages import EVIDENCE, Proposal, Vote, decode_message
from consensus.validators import ValidatorSet
from node.ledger.wire.blocks import decode_block
from node.observe import get_log
from node.peering.alarms import Alarms
from node.peering.execution import Execution
from node.peering.inbox import Means
from node.peering.pace import Pace, Stopwatch
from node.peering.sending import Sender
from node.peering.undecided import Undecided
from node.peering.voter import Voter
from node.storage.journal import Recovered

log = get_log("consensus")


class Agreement:
    """Agreement on the height after the chain's, once `start` was called for it.

    `commit` makes a decided block part of the chain; it calls `stop` before it returns.
    `on_accuse` is given the encoded evidence of a validator that said two things.
    """

    def __init__(
        self,
        means: Means,
        *,
        voter: Voter,
        sender: Sender,
        execution: Execution,
        undecided: Undecided,
        pace: Pace,
        commit: Callable[[Commit], Awaitable[None]],
        on_accuse: Callable[[bytes], None],
    ) -> None:
        self._means, self._chain = means, means.chain
        self._voter = voter
        self._sender = sender
        self._execution = execution
        self._undecided = undecided
        self._pace = pace
        self._commit = commit
        self._on_accuse = on_accuse
        self._stopwatch = Stopwatch(pace)
        self._alarms = Alarms(resend_s=pace.profile.resend_ms / 1_000)
        self._is_replaying = False
        self.engine = Engine(self._chain.chain_id, None)
        self.is_started = False

    # --- a height begins and ends

    def stop(self) -> None:
        """The chain has moved: this height is over."""
        self.is_started = False
        self._alarms.stop()

    async def start(self, key: bytes | None) -> None:
        """Begin the next height as `key`, where the journal says that we were; None: follow.

        Called again at the same height it begins anew, as another.
        """
        tip = self._chain.tip
        height = tip.height + 1
        if self.engine.me != key or self.is_started:
            self.engine = Engine(self._chain.chain_id, key)
        recovered = await self._voter.recover(height)
        self.is_started = True
        now_s = trio.current_time()
        self._alarms.start(now_s)
        self._stopwatch.begin(Step.PROPOSE, now_s)
        record = recovered.signed if recovered is not None and key is not None else None
        await self.feed(Started(height, tip.validators, tip.certificate, record))
        if recovered is not None and not recovered.is_empty:
            await self._replay(recovered, height, tip.validators)

    async def _replay(self, recovered: Recovered, height: int, validators: ValidatorSet) -> None:
        """Everything that the journal holds of this height; a union, whose order is free."""
        for raw in recovered.blocks:
            block = decode_block(raw)
            verdict = await self._execution.execute_now(block)
            if verdict is not None and verdict.is_valid:
                self._undecided.put(verdict.block_id, block)
                self._undecided.judge(verdict.block_id, True)
        said = [
            self._voter.say_again(record, validators, self._undecided.find)
            for record in recovered.promises
        ]
        ours = [message for message in said if message is not None]
        messages = [Received(message) for message in ours]
        messages += [
            Received(decode_message(noted.raw), noted.valid, noted.timely)
            for noted in recovered.messages
        ]
        self._means.counters["replayed"] += len(messages)
        self._is_replaying = True
        try:
            for received in messages:
                if self._chain.height + 1 == height:
                    await self.feed(received)
        finally:
            self._is_replaying = False
        if self._chain.height + 1 == height and self.engine.me is not None:
            for message in ours:
                self._sender.send(message)

    # --- time

    def next_s(self) -> float:
        """When a timer or the tick falls due."""
        return self._alarms.next_s()

    async def ring(self) -> None:
        """Tell the engine which timers have run out, and ask others for what we lack."""
        now_s = trio.current_time()
        while (timed_out := self._alarms.take_due(now_s)) is not None:
            self._means.counters["timeouts"] += timed_out.round == self.engine.round
            await self.feed(timed_out)
        if self.is_started and self._alarms.is_tick(now_s):
            self._ask_for_more()

    def _ask_for_more(self) -> None:
        """Tell all validators what we have, and fetch the blocks that messages wait for."""
        self._sender.tell_status(self.engine.status())
        for block_id in self._undecided.ids_without_verdict():
            self._execution.seek(block_id)
        wanted = self.engine.wanted()
        for block_id in self._undecided.ids_without_bytes() + ([wanted] if wanted else []):
            self._execution.seek(block_id)

    def _set_timer(self, height: int, round: int, step: Step) -> None:
        now_s = trio.current_time()
        if step == Step.PROPOSE:
            self._stopwatch.begin(step, now_s)
        due_s = now_s + self._pace.length_ms(round, step) / 1_000
        self._alarms.set(due_s, TimedOut(height, round, step))

    # --- the engine

    async def feed(self, given: Input) -> None:
        """Tell the engine, and perform all that follows.

        Raises `Contradiction` when a quorum decided what we were told is invalid.
        """
        inputs: deque[Input] = deque([given])
        while inputs:
            now = inputs.popleft()
            if isinstance(now, Received) and self.is_started and not self._is_replaying:
                self._voter.note(now)
            for effect in self.engine.handle(now):
                answer = await self._perform(effect)
                if answer is not None:
                    inputs.append(answer)

    async def _perform(self, effect: Effect) -> Input | None:
        match effect:
            case Persist(record):
                await self._voter.persist(record)
            case Broadcast(message):
                return Received(self._broadcast(message))
            case SetTimer(height, round, step):
                self._set_timer(height, round, step)
            case BuildPayload(height, round):
                self._execution.begin_build(height, round, self.engine.last_certificate)
            case Commit():
                self._stopwatch.reach(Step.PRECOMMIT, trio.current_time())
                await self._commit(effect)
            case Accuse(evidence):
                await self._accuse(evidence)
            case _:
                assert_never(effect)
        return None

    def _broadcast(self, message: Proposal | Vote) -> Proposal | Vote:
        said = self._voter.sign(message)
        if isinstance(message, Vote):
            self._time_steps(message)
        self._sender.send(said)
        return said

    def _time_steps(self, vote: Vote) -> None:
        now_s = trio.current_time()
        ended, begun = (
            (Step.PROPOSE, Step.PREVOTE) if vote.kind == PREVOTE else (Step.PREVOTE, Step.PRECOMMIT)
        )
        if vote.block_id != NIL:
            self._stopwatch.reach(ended, now_s)
        self._stopwatch.begin(begun, now_s)

    async def _accuse(self, evidence: Evidence) -> None:
        self._means.counters["accused"] += 1
        raw = encode_evidence(evidence)
        log.warning("a validator said two things", evidence=raw)
        self._on_accuse(raw)
        await self._sender.publish(EVIDENCE, raw)
