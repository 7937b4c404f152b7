"""The one task that feeds the engine, performs what it asks for, and writes the chain.

Everything that happens (a frame, a timer, an executed block, blocks from peers) goes through one
inbox and is handled to the end before the next: order is then a fact, and a journal of inputs can
be replayed. Why blocks are executed beside this task: a vote must not wait for a big block.
A fault of ours ends the task, and with it the daemon: halting is better than forking.
What this file does not know: how frames travel (`streams.py`), which are let in (`admission.py`),
what a payload holds (`proposer.py`), how long to wait (`pace.py`).
"""

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any, Final, assert_never

import trio

from consensus.certificate import PRECOMMIT, PREVOTE, Certificate, encode_certificate
from consensus.effects import (
    Accuse,
    Broadcast,
    BuildPayload,
    Commit,
    Effect,
    Persist,
    SetTimer,
)
from consensus.engine import STEP_DECIDED, Engine
from consensus.evidence import encode_evidence
from consensus.header import NIL, Header, decode_header
from consensus.inputs import CaughtUp, Input, PayloadBuilt, Received, Started, Step, TimedOut
from consensus.messages import (
    BLOCK,
    CERTIFICATE,
    EVIDENCE,
    PROPOSAL,
    STATUS,
    VOTE,
    Message,
    Proposal,
    Vote,
    decode_body,
    decode_message,
    decode_status,
    encode_frame,
    encode_message,
    encode_proposal,
    encode_status,
    encode_vote,
    signed,
)
from consensus.params import ConsensusParams
from consensus.primitives.errors import Invalid
from consensus.records import SIGNED_PROPOSAL, SignerRecord
from consensus.round import Contradiction
from node.ledger.wire.blocks import Block, decode_block, encode_block
from node.observe import get_log
from node.peering.admission import Admission
from node.peering.catchup import Catchup, Decided
from node.peering.pace import WAN, Gate, Pace, Profile, Stopwatch
from node.peering.proposer import Built, Proposer
from node.peering.responder import Responder
from node.peering.streams import FindPeer, ValidatorStreams
from node.peering.topics import VOTES, decode_vote_message, encode_vote_message
from node.peering.undecided import Undecided, Waiting
from node.storage.chain import Chain, Verdict
from node.storage.executing import MissingBodies
from node.storage.journal import Journal, Recovered
from node.storage.views import Tip
from p2p.errors import NetworkError
from p2p.limits import PENALTIES, TOPICS, TokenBucket
from p2p.network import Network, PeerId, TaskStatus
from p2p.network import Verdict as Judgement

INBOX_MAX: Final = 4_096
EARLY_MAX: Final = 1_024  # checked messages of the next height, kept until it begins
ANSWER_BYTES_MAX: Final = 64 << 10  # to one status
ANSWERS_S: Final = 4
FETCH_BODIES_TRIES: Final = 3

RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread
Sign = Callable[[bytes, bytes], bytes]  # (tag, body) → signature, chain-bound
FetchBodies = Callable[[Sequence[bytes], Sequence[PeerId]], Awaitable[Sequence[bytes]]]

log = get_log("consensus")


@dataclass(frozen=True, slots=True)
class Validator:
    """What a node needs to vote: its key, its memory, and how it signs."""

    key: bytes
    journal: Journal
    sign: Sign


@dataclass(frozen=True, slots=True)
class Settings:
    """The operator's choices."""

    block_interval_ms: int = 1_000
    profile: Profile = WAN
    adapts: bool = True
    doppelganger_wait_s: float = 35.0


@dataclass(frozen=True, slots=True)
class ReplicaStatistics:
    """Where agreement stands, and counters since the start."""

    height: int  # committed
    round: int
    step: int
    state: str  # validating, following, waiting, doubled, diverged
    live_streams: int
    counters: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Heard:
    peer: PeerId
    kind: int
    body: bytes
    received_ms: int


@dataclass(frozen=True, slots=True)
class _Executed:
    height: int
    block_id: bytes
    block: Block
    verdict: Verdict | None  # None: bodies are missing still, or we failed


@dataclass(frozen=True, slots=True)
class _OwnBlock:
    height: int
    round: int
    built: Built


@dataclass(frozen=True, slots=True)
class _Fetched:
    height: int
    block_id: bytes
    block: Block | None


@dataclass(slots=True)
class _Offered:
    """Decided blocks from peers; `done` is set when they are in the chain or refused."""

    blocks: Sequence[Decided]
    done: trio.Event
    refusal: Exception | None = None


_Event = _Heard | _Executed | _OwnBlock | _Fetched | _Offered


class Replica:
    """Consensus of one node. `validator` None: it follows and never votes.

    `find_peer`: validator key → its node. `fetch_bodies(hashes, peers)` gets bundle bodies into
    the chain's store and returns those nobody had. `on_commit` is called after each block.
    """

    def __init__(
        self,
        *,
        network: Network,
        chain: Chain,
        proposer: Proposer,
        validator: Validator | None,
        find_peer: FindPeer,
        fetch_bodies: FetchBodies,
        now_ms: Callable[[], int],
        settings: Settings | None = None,
        get_params: Callable[[], ConsensusParams] = ConsensusParams,
        on_commit: Callable[[Tip], None] = lambda tip: None,
        on_accuse: Callable[[bytes], None] = lambda evidence: None,
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        self._network, self._chain, self._proposer = network, chain, proposer
        self._validator = validator
        self._find_peer = find_peer
        self._fetch_bodies = fetch_bodies
        self._now_ms = now_ms
        self._settings = settings or Settings()
        self._get_params = get_params
        self._on_commit, self._on_accuse = on_commit, on_accuse
        self._run_blocking = run_blocking
        self.counters: Counter[str] = Counter()
        self._engine = Engine(chain.chain_id, None)
        self._admission = Admission(chain.chain_id)
        self._undecided = Undecided()
        self._pace = Pace(self._settings.profile, adapts=self._settings.adapts)
        self._stopwatch = Stopwatch(self._pace)
        self._streams = ValidatorStreams(
            network=network, find_peer=find_peer, on_frame=self._hear_frame
        )
        self.catchup = Catchup(
            network=network, get_height=lambda: chain.height, take=self._take_decided
        )
        self._responder = Responder(
            get_view=chain.view, find_undecided=self._undecided.find, run_blocking=run_blocking
        )
        self._inbox: deque[_Event] = deque()
        self._arrived = trio.Event()
        self._alarms: list[tuple[float, int, TimedOut]] = []
        self._alarm_count = 0
        self._resend_at_s = 0.0
        self._writer = trio.Lock()  # one thread at a time executes or commits
        self._early: list[tuple[Message, int, PeerId]] = []
        self._called_by: set[int] = set()  # members heard at the next height
        self._has_early_proposal = False
        self._is_started = False
        self._is_diverged = False
        self._is_doubled = False
        self._is_replaying = False
        self._recovered: Recovered | None = None
        self._own_bodies: set[bytes] = set()  # all that our key said at this height
        self._record: SignerRecord | None = None
        self._votes_from_s = 0.0
        self._answers: dict[PeerId, TokenBucket] = {}
        self._committed = trio.Condition()

    # --- for others

    @property
    def height(self) -> int:
        """Height of the newest committed block."""
        return self._chain.height

    def wake(self) -> None:
        """There may be work for a block: the pools have changed."""
        self._arrived.set()

    async def wait_height(self, height: int) -> None:
        """Until block `height` is committed."""
        async with self._committed:
            while self._chain.height < height:
                await self._committed.wait()

    def statistics(self) -> ReplicaStatistics:
        """Where agreement stands."""
        counters = self.counters + self._streams.counters
        counters += self._admission.counters
        counters.update({f"catchup_{name}": n for name, n in self.catchup.counters.items()})
        return ReplicaStatistics(
            height=self._chain.height,
            round=self._engine.round,
            step=int(self._engine.step),
            state=self._state_word(),
            live_streams=self._streams.live_count(),
            counters=dict(counters),
        )

    def _state_word(self) -> str:
        if self._is_diverged:
            return "diverged"
        if self._is_doubled:
            return "doubled"
        if self._validator is None or self._chain.tip.validators.index(self._validator.key) is None:
            return "following"
        return "validating" if self._signing_key() is not None else "waiting"

    # --- the task

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Agree for ever. Ends only by a cancel or by a fault of ours."""
        gossip = self._network.subscribe(VOTES, self._judge, TOPICS[VOTES])
        self._responder.serve(self._network)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            now_s = trio.current_time()
            self._votes_from_s = now_s + self._settings.doppelganger_wait_s
            self._gate = Gate(interval_s=self._settings.block_interval_ms / 1_000, now_s=now_s)
            self._begin_next()
            await nursery.start(self._streams.run)
            nursery.start_soon(self._hear_gossip, gossip)
            nursery.start_soon(self.catchup.run)
            await self._look_into_journal()
            task_status.started()
            await self._loop()

    async def _loop(self) -> None:
        while True:
            if not self._inbox:
                with trio.move_on_at(self._next_look_s()):
                    await self._arrived.wait()
            self._arrived = trio.Event()
            await trio.lowlevel.checkpoint()
            try:
                await self._ring_alarms()
                while self._inbox:
                    await self._handle(self._inbox.popleft())
                    await self._pass_gate()
                await self._pass_gate()
                await self._begin_to_vote()
            except Contradiction as error:
                self._diverge(error)

    def _put(self, event: _Event) -> None:
        if len(self._inbox) >= INBOX_MAX and isinstance(event, _Heard):
            self.counters["inbox_full"] += 1
            return
        self._inbox.append(event)
        self._arrived.set()

    def _diverge(self, error: Contradiction) -> None:
        self._is_diverged = True
        self.counters["diverged"] += 1
        log.error(
            "a quorum decided what is invalid here; consensus has stopped",
            why=str(error),
            mend="olnode doctor: either this disk and software are at fault, or > 1/3 of the power",
        )

    async def _handle(self, event: _Event) -> None:
        if self._is_diverged:
            if isinstance(event, _Offered):
                event.done.set()
            return
        match event:
            case _Heard():
                await self._take_frame(event)
            case _Executed():
                await self._take_verdict(event)
            case _OwnBlock():
                await self._take_own_block(event)
            case _Fetched():
                self._take_fetched(event)
            case _Offered():
                await self._append_decided(event)
            case _:
                assert_never(event)

    # --- heights begin and end

    def _begin_next(self) -> None:
        """After the tip has moved: admit messages of the next height, and nothing older."""
        tip = self._chain.tip
        self._is_started = False
        self._alarms.clear()
        self._undecided.clear()
        self._early.clear()
        self._called_by.clear()
        self._own_bodies.clear()
        self._has_early_proposal = False
        self._recovered = None
        self._streams.set_members(tip.validators.powers(), self._key())
        held = self._admission.begin(tip.height + 1, tip.validators, tip.signers, tip.certificate)
        for frame in held:
            self._put(_Heard(PeerId(frame.peer), frame.kind, frame.body, frame.received_ms))

    def _key(self) -> bytes | None:
        return None if self._validator is None else self._validator.key

    def _signing_key(self) -> bytes | None:
        """Our key, if it may sign the next height now."""
        if self._validator is None or self._is_doubled:
            return None
        if trio.current_time() < self._votes_from_s:
            return None
        if not self._validator.journal.may_sign(self._chain.height + 1):
            return None
        return self._validator.key

    async def _look_into_journal(self) -> None:
        """A journal with frames: we were in the middle of this height, so it begins at once."""
        if self._validator is None or not self._validator.journal.may_sign(self._chain.height + 1):
            return
        journal = self._validator.journal
        self._recovered = await self._run_blocking(journal.begin, self._chain.height + 1)
        if not self._recovered.is_empty:
            await self._start_height()

    async def _pass_gate(self) -> None:
        if self._is_started or self._is_diverged:
            return
        now_s = trio.current_time()
        is_called = self._has_early_proposal or self._chain.tip.validators.is_third(
            sum(self._chain.tip.validators.members[place].power for place in self._called_by)
        )
        heartbeat_s = self._get_params().heartbeat_ms / 1_000
        if is_called or self._gate.is_open(now_s, heartbeat_s, self._has_work):
            await self._start_height()

    def _has_work(self) -> bool:
        return self._proposer.has_work(self._now_ms())

    async def _begin_to_vote(self) -> None:
        """The doppelganger wait is over: recover again, with our key."""
        if self._is_started and self._engine.me is None and self._signing_key() is not None:
            self._recovered = None
            await self._start_height()

    async def _start_height(self) -> None:
        tip, key = self._chain.tip, self._signing_key()
        height = tip.height + 1
        if self._engine.me != key or self._is_started:
            self._engine = Engine(self._chain.chain_id, key)
        recovered = self._recovered
        if self._validator is not None and recovered is None and self._may_journal():
            recovered = await self._run_blocking(self._validator.journal.begin, height)
        self._recovered = None
        self._is_started = True
        self._record = None
        self._alarms.clear()
        self._resend_at_s = trio.current_time() + self._settings.profile.resend_ms / 1_000
        record = recovered.signed if recovered is not None and key is not None else None
        if recovered is not None:
            self._own_bodies.update(promise.body for promise in recovered.promises)
            if recovered.signed is not None:
                self._own_bodies.add(recovered.signed.body)
        self._stopwatch.begin(Step.PROPOSE, trio.current_time())
        await self._feed(Started(height, tip.validators, tip.certificate, record))
        if recovered is not None and not recovered.is_empty:
            await self._replay(recovered)
        early, self._early = self._early, []
        for message, received_ms, peer in early:
            if self._is_started and message.height == self._chain.height + 1:
                await self._deliver(message, received_ms, peer)

    def _may_journal(self) -> bool:
        return self._validator is not None and self._validator.journal.may_sign(
            self._chain.height + 1
        )

    async def _replay(self, recovered: Recovered) -> None:
        """Everything that the journal holds of this height; a union, whose order is free."""
        height = self._chain.height + 1
        for raw in recovered.blocks:
            block = decode_block(raw)
            verdict = await self._execute_now(block)
            if verdict is not None and verdict.is_valid:
                self._undecided.put(verdict.block_id, block)
                self._undecided.judge(verdict.block_id, True)
        ours = [self._said(record) for record in recovered.promises]
        messages = [Received(message) for message in ours if message is not None]
        messages += [
            Received(decode_message(noted.raw), noted.valid, noted.timely)
            for noted in recovered.messages
        ]
        self.counters["replayed"] += len(messages)
        self._is_replaying = True
        try:
            for received in messages:
                if self._chain.height + 1 == height:
                    await self._feed(received)
        finally:
            self._is_replaying = False
        if self._chain.height + 1 == height and self._engine.me is not None:
            for message in ours:
                if message is not None:
                    self._send(message)

    def _said(self, record: SignerRecord) -> Message | None:
        """The message of a record, signed again: Ed25519 gives the same bytes."""
        assert self._validator is not None
        place = self._chain.tip.validators.index(self._validator.key)
        if place is None or record.height != self._chain.height + 1:
            return None
        message: Vote | Proposal
        if record.kind == SIGNED_PROPOSAL:
            block = self._undecided.find(record.body[16:])
            if block is None or record.body[12:16] != bytes(4):
                return None  # offered again: its polka is not ours to make up
            header = decode_header(block.header)
            message = Proposal(record.height, record.round, -1, header)
        else:
            message = Vote(record.kind, record.height, record.round, record.body[13:], place)
        assert message.body() == record.body
        return signed(message, self._validator.journal.sign(record, self._validator.sign))

    # --- the engine's effects

    async def _feed(self, given: Input) -> None:
        inputs: deque[Input] = deque([given])
        while inputs:
            now = inputs.popleft()
            if isinstance(now, Received):
                self._note(now)
            for effect in self._engine.handle(now):
                answer = await self._perform(effect)
                if answer is not None:
                    inputs.append(answer)

    def _note(self, received: Received) -> None:
        """Into the journal, before the engine sees it."""
        if self._validator is None or self._is_replaying or not self._is_started:
            return
        if received.message.height == self._validator.journal.height:
            self._validator.journal.message(
                encode_message(received.message), valid=received.valid, timely=received.timely
            )

    async def _perform(self, effect: Effect) -> Input | None:
        match effect:
            case Persist(record):
                await self._persist(record)
            case Broadcast(message):
                return Received(self._broadcast(message))
            case SetTimer(height, round, step):
                self._set_timer(height, round, step)
            case BuildPayload(height, round):
                self._nursery.start_soon(self._build, height, round)
            case Commit():
                await self._commit(effect)
            case Accuse(evidence):
                self.counters["accused"] += 1
                raw = encode_evidence(evidence)
                log.warning("a validator said two things", evidence=raw)
                self._on_accuse(raw)
                await self._publish(EVIDENCE, raw)
            case _:
                assert_never(effect)
        return None

    async def _persist(self, record: SignerRecord) -> None:
        assert self._validator is not None
        if record.kind == PRECOMMIT and record.body[13:] != NIL:
            # No precommit for a block whose bodies might die with us.
            await self._run_blocking(self._chain.bundles.sync)
        await self._run_blocking(self._validator.journal.persist, record)
        self._record = record

    def _broadcast(self, message: Proposal | Vote) -> Proposal | Vote:
        assert self._validator is not None
        assert self._record is not None
        assert self._record.body == message.body(), "recorded before it is signed"
        said = signed(message, self._validator.journal.sign(self._record, self._validator.sign))
        self._own_bodies.add(message.body())
        self._time_steps(message)
        self._send(said)
        return said

    def _time_steps(self, message: Proposal | Vote) -> None:
        now_s = trio.current_time()
        if isinstance(message, Proposal):
            return
        ended, begun = (
            (Step.PROPOSE, Step.PREVOTE)
            if message.kind == PREVOTE
            else (Step.PREVOTE, Step.PRECOMMIT)
        )
        if message.block_id != NIL:
            self._stopwatch.reach(ended, now_s)
        self._stopwatch.begin(begun, now_s)

    def _send(self, message: Message) -> None:
        """To every validator; and by gossip where a direct way is missing, or for followers."""
        place = message.height, message.round
        self._streams.send_to_all(encode_message(message), place)
        if isinstance(message, Proposal):
            block = self._undecided.find(message.block_id)
            if block is not None and message.pol_round < 0:
                self._streams.send_to_all(encode_frame(BLOCK, encode_block(block)), place)
            self._nursery.start_soon(self._publish, PROPOSAL, encode_proposal(message))
        elif isinstance(message, Vote) and not self._streams.are_all_live():
            self._nursery.start_soon(self._publish, VOTE, encode_vote(message))

    async def _publish(self, kind: int, body: bytes) -> None:
        try:
            await self._network.publish(VOTES, encode_vote_message(kind, body))
        except NetworkError:
            self.counters["gossip_failed"] += 1  # the second path only: the streams go on

    def _set_timer(self, height: int, round: int, step: Step) -> None:
        now_s = trio.current_time()
        if step == Step.PROPOSE:
            self._stopwatch.begin(step, now_s)
        due_s = now_s + self._pace.length_ms(round, step) / 1_000
        self._alarm_count += 1
        heappush(self._alarms, (due_s, self._alarm_count, TimedOut(height, round, step)))

    async def _commit(self, effect: Commit) -> None:
        if self._chain.executed_block(effect.block_id) is None:
            block = self._undecided.find(effect.block_id)
            assert block is not None, "told valid, so it was here"
            await self._execute_now(block)  # pushed out of the cache by others of this height
        async with self._writer:
            tip = await self._run_blocking(self._chain.commit, effect.block_id, effect.certificate)
        if self._may_end_journal(tip.height):
            assert self._validator is not None
            self._validator.journal.end()
        self._stopwatch.reach(Step.PRECOMMIT, trio.current_time())
        self.counters["committed"] += 1
        assert tip.header is not None
        log.info("block committed", height=tip.height, round=effect.round, id=tip.block_id)
        if tip.header.proposer == self._key():
            raw = encode_certificate(effect.certificate)
            self._nursery.start_soon(self._publish, CERTIFICATE, raw)
        await self._follow_tip(tip)

    def _may_end_journal(self, height: int) -> bool:
        return self._validator is not None and self._validator.journal.height == height

    async def _follow_tip(self, tip: Tip) -> None:
        self._gate.close(trio.current_time())
        self._begin_next()
        self._proposer.review(self._now_ms())
        self._on_commit(tip)
        async with self._committed:
            self._committed.notify_all()

    # --- time

    def _next_look_s(self) -> float:
        now_s = trio.current_time()
        if self._is_diverged:
            return float("inf")
        looks = [self._alarms[0][0]] if self._alarms else []
        if self._is_started:
            looks.append(self._resend_at_s)
        else:
            looks.append(self._gate.next_s(now_s, self._get_params().heartbeat_ms / 1_000))
        if now_s < self._votes_from_s:
            looks.append(self._votes_from_s)
        return min(looks)

    async def _ring_alarms(self) -> None:
        now_s = trio.current_time()
        while self._alarms and self._alarms[0][0] <= now_s and not self._is_diverged:
            _, _, timed_out = heappop(self._alarms)
            self.counters["timeouts"] += timed_out.round == self._engine.round
            await self._feed(timed_out)
        if self._is_started and self._resend_at_s <= now_s and not self._is_diverged:
            self._resend_at_s = now_s + self._settings.profile.resend_ms / 1_000
            self._ask_for_more()

    def _ask_for_more(self) -> None:
        """Tell all validators what we have, and fetch the blocks that messages wait for."""
        status = self._engine.status()
        frame = encode_frame(STATUS, encode_status(status))
        self._streams.send_to_all(frame, (status.height, status.round))
        for block_id in self._undecided.ids_without_verdict():
            self._seek(block_id)
        wanted = self._engine.wanted()
        for block_id in self._undecided.ids_without_bytes() + ([wanted] if wanted else []):
            self._seek(block_id)

    # --- building

    async def _build(self, height: int, round: int) -> None:
        tip = self._chain.tip
        if tip.height + 1 != height:
            return
        # Our clock may be behind the parent's: wait until it is past it.
        await trio.sleep(max(0, tip.time_ms + 1 - self._now_ms()) / 1_000)
        picked = self._proposer.pick()
        certificate = self._engine.last_certificate()
        async with self._writer:
            if self._chain.height + 1 != height:
                return
            time_ms = max(self._now_ms(), tip.time_ms + 1)
            try:
                built: Built = await self._run_blocking(
                    self._proposer.build, picked, time_ms, certificate
                )
            except (Invalid, MissingBodies) as refusal:
                self.counters["own_refused"] += 1
                log.error("own payload refused", why=str(refusal), mend="report this as a bug")
                built = await self._run_blocking(self._proposer.build_empty, time_ms, certificate)
        self._put(_OwnBlock(height, round, built))

    async def _take_own_block(self, event: _OwnBlock) -> None:
        self._proposer.drop(event.built.choice)
        if event.height != self._chain.height + 1 or not self._is_started:
            return
        header = decode_header(event.built.block.header)
        self._keep_valid(header, event.built.block)
        await self._feed(PayloadBuilt(event.height, event.round, header))

    def _keep_valid(self, header: Header, block: Block) -> list[Waiting]:
        block_id = header.block_id()
        self._undecided.put(block_id, block)
        if self._validator is not None and self._validator.journal.height == header.height:
            self._validator.journal.block(encode_block(block))
        return self._undecided.judge(block_id, True)

    # --- frames

    def _hear_frame(self, peer: PeerId, kind: int, body: bytes) -> None:
        self._put(_Heard(peer, kind, body, self._now_ms()))

    async def _hear_gossip(self, gossip: Any) -> None:
        async for heard in gossip:
            kind, body = decode_vote_message(heard.data)
            if kind == EVIDENCE:
                self._on_accuse(body)
            else:
                self._put(_Heard(heard.author, kind, body, heard.received_ms))

    def _judge(self, forwarder: PeerId, author: PeerId, data: bytes) -> Judgement:
        """Shape and height; signatures are checked in our own task (page 70 §5)."""
        try:
            kind, body = decode_vote_message(data)
            if kind == EVIDENCE:
                return Judgement.ACCEPT
            message = decode_body(kind, body)
        except Invalid:
            return Judgement.REJECT
        near = abs(message.height - self._admission.height) <= 1
        return Judgement.ACCEPT if near else Judgement.IGNORE

    async def _take_frame(self, heard: _Heard) -> None:
        try:
            if heard.kind == BLOCK:
                self._take_block(heard)
            elif heard.kind == STATUS:
                self._answer(heard)
            elif heard.kind != EVIDENCE:
                await self._take_message(heard)
        except Invalid as refusal:
            self.counters["refused"] += 1
            log.warning("bad consensus frame", peer=heard.peer, code=refusal.code)
            self._network.penalise(heard.peer, PENALTIES["malformed"], "malformed")

    async def _take_message(self, heard: _Heard) -> None:
        message = decode_body(heard.kind, heard.body)
        height = self._admission.height
        if message.height > height:
            self.catchup.hint(heard.peer, message.height - 1)
            if message.height == height + 1:
                self._admission.hold(heard.peer, heard.kind, heard.body, heard.received_ms)
            return
        round = self._engine.round if self._is_started else 0
        if not self._admission.admit(message, round):
            return
        if message.height < height:
            await self._feed(Received(message))  # a late precommit
            return
        if self._is_of_our_double(message):
            await self._stop_signing()
        if self._is_started:
            await self._deliver(message, heard.received_ms, heard.peer)
        else:
            self._keep_early(message, heard)

    def _is_of_our_double(self, message: Message) -> bool:
        """Our key said what this machine never said: it runs elsewhere too."""
        key, validators = self._key(), self._chain.tip.validators
        if key is None or isinstance(message, Certificate):
            return False
        if isinstance(message, Vote):
            speaker = validators.members[message.index].key
        else:
            speaker = validators.proposer(message.round)
        if speaker != key or message.body() in self._own_bodies:
            return False
        journal = self._validator.journal if self._validator is not None else None
        last = journal.last if journal is not None else None
        return last is None or last.body != message.body()

    async def _stop_signing(self) -> None:
        if self._is_doubled:
            return
        self._is_doubled = True
        log.error(
            "our validator key signs elsewhere too: this node signs nothing any more",
            mend="stop the other node, then restart this one",
        )
        if self._is_started:
            self._recovered = None
            await self._start_height()

    def _keep_early(self, message: Message, heard: _Heard) -> None:
        if len(self._early) >= EARLY_MAX:
            self.counters["early_full"] += 1
            return
        self._early.append((message, heard.received_ms, heard.peer))
        match message:
            case Vote():
                self._called_by.add(message.index)
            case Proposal():
                self._has_early_proposal = True
            case Certificate():
                self._called_by.update(message.signers())

    async def _deliver(self, message: Message, received_ms: int, peer: PeerId) -> None:
        """A checked message of the height that is being decided, to the engine."""
        if isinstance(message, Vote) or (
            isinstance(message, Certificate) and message.kind == PREVOTE
        ):
            await self._feed(Received(message))
            return
        block_id = message.block_id
        timely = isinstance(message, Proposal) and self._is_timely(message, received_ms)
        verdict = self._undecided.verdict(block_id)
        if verdict is not None:
            await self._feed(Received(message, verdict, timely))
        elif self._undecided.wait(block_id, Waiting(message, timely, peer)):
            if isinstance(message, Certificate):
                self._seek(block_id)  # it is decided already: do not wait for anyone's turn
        else:
            self.counters["waiting_full"] += 1

    def _is_timely(self, proposal: Proposal, received_ms: int) -> bool:
        """Page 20 §5; asked at a first proposal only."""
        params, time_ms = self._get_params(), proposal.header.time_ms
        delay_ms = params.delay_ms * (2 + proposal.round) // 2
        is_not_ahead = time_ms <= received_ms + params.precision_ms
        return is_not_ahead and received_ms <= time_ms + params.precision_ms + delay_ms

    def _take_block(self, heard: _Heard) -> None:
        block = decode_block(heard.body)
        header = decode_header(block.header)
        block_id = header.block_id()
        is_named = self._undecided.is_waited_for(block_id) or block_id == self._engine.wanted()
        # Before the height begins its proposal waits among the early ones.
        is_named = is_named or any(
            isinstance(message, Proposal) and message.block_id == block_id
            for message, _, _ in self._early
        )
        if header.height != self._chain.height + 1 or not is_named:
            self.counters["unasked_blocks"] += 1
            return
        if self._undecided.find(block_id) is None:
            self._undecided.put(block_id, block)
            self._start_execution(block_id, block, heard.peer)

    # --- blocks: fetch, execute, tell

    def _seek(self, block_id: bytes) -> None:
        """Execute a block, or fetch it first; one task per id."""
        if block_id in self._undecided.at_work or self._undecided.verdict(block_id) is not None:
            return
        block = self._undecided.find(block_id)
        if block is not None:
            self._start_execution(block_id, block, None)
            return
        self._undecided.at_work.add(block_id)
        peers = [PeerId(peer) for peer in self._undecided.sources(block_id)]
        self._nursery.start_soon(self._fetch, self._chain.height + 1, block_id, peers)

    def _start_execution(self, block_id: bytes, block: Block, source: PeerId | None) -> None:
        if block_id in self._undecided.at_work:
            return
        self._undecided.at_work.add(block_id)
        self._nursery.start_soon(self._execute, block_id, block, source)

    def _validator_peers(self) -> list[PeerId]:
        keys = [key for key in self._chain.tip.validators.powers() if key != self._key()]
        return [peer for key in keys if (peer := self._find_peer(key)) is not None]

    async def _fetch(self, height: int, block_id: bytes, peers: list[PeerId]) -> None:
        self.counters["block_fetches"] += 1
        peers += self._validator_peers()
        block = await self.catchup.fetch_block(block_id, peers)
        self._put(_Fetched(height, block_id, block))

    def _take_fetched(self, event: _Fetched) -> None:
        if event.height != self._chain.height + 1:
            return
        self._undecided.at_work.discard(event.block_id)
        if event.block is not None:
            self._undecided.put(event.block_id, event.block)
            self._start_execution(event.block_id, event.block, None)

    async def _execute(self, block_id: bytes, block: Block, source: PeerId | None) -> None:
        height = decode_header(block.header).height
        verdict: Verdict | None = None
        try:
            missing = self._chain.missing_bodies(block)
            if missing:
                peers = ([source] if source is not None else []) + self._validator_peers()
                missing = tuple(await self._fetch_bodies(missing, peers))
            if not missing:
                verdict = await self._execute_now(block)
        except Invalid as refusal:  # the payload is none: other bytes may stand under this id
            verdict = Verdict(block_id, is_valid=False, is_final=False, code=refusal.code)
        self._put(_Executed(height, block_id, block, verdict))

    async def _execute_now(self, block: Block) -> Verdict | None:
        """The verdict; None when bodies are missing, or when we failed ourselves."""
        height = decode_header(block.header).height
        async with self._writer:
            if height != self._chain.height + 1:
                return None
            try:
                verdict: Verdict = await self._run_blocking(
                    self._chain.execute, block, self._proposer.known()
                )
            except MissingBodies:
                self.counters["bodies_missing"] += 1
                return None
            except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
                # Our own failure on a proposal is no verdict: we do not vote for it, and if it
                # is decided all the same, committing it fails again and ends the process.
                self.counters["own_failures"] += 1
                log.error(
                    "a proposed block could not be executed",
                    height=height,
                    exc_info=error,
                    mend="report this as a bug",
                )
                return None
        return verdict

    async def _take_verdict(self, event: _Executed) -> None:
        if event.height != self._chain.height + 1:
            return
        self._undecided.at_work.discard(event.block_id)
        verdict = event.verdict
        if verdict is None:
            return  # tried again at the next tick
        if not verdict.is_valid and not verdict.is_final:
            # Other bytes under the same header may be good: never a verdict on the id.
            self.counters["false_bytes"] += 1
            log.warning("a block's bytes are not its header's", code=verdict.code)
            self._undecided.forget(event.block_id)
            return
        if verdict.is_valid:
            waiting = self._keep_valid(decode_header(event.block.header), event.block)
        else:
            self.counters["invalid_blocks"] += 1
            log.warning("invalid block proposed", height=event.height, code=verdict.code)
            waiting = self._undecided.judge(event.block_id, False)
        for message, timely, _ in waiting:
            if event.height == self._chain.height + 1:
                await self._feed(Received(message, verdict.is_valid, timely))
        await self._tell_wanted(event.block_id, verdict.is_valid)

    async def _tell_wanted(self, block_id: bytes, is_valid: bool) -> None:
        """A quorum of precommits that came vote by vote needs no proposal to decide."""
        if not self._is_started or self._engine.wanted() != block_id:
            return
        for round in range(self._engine.round + 1):
            certificate = self._engine.certificate(PRECOMMIT, round)
            if certificate is not None and certificate.block_id == block_id:
                await self._feed(Received(certificate, is_valid))
                return

    # --- status, and blocks decided elsewhere

    def _answer(self, heard: _Heard) -> None:
        """Send a validator what its status lacks; a certificate if it is behind."""
        status, tip, peer = decode_status(heard.body), self._chain.tip, heard.peer
        if status.height > tip.height + 1:
            self.catchup.hint(peer, status.height - 1)
            return
        now_s = trio.current_time()
        bucket = self._answers.setdefault(peer, TokenBucket(ANSWERS_S, ANSWERS_S, now_s))
        if not bucket.take(now_s):
            self.counters["answers_dropped"] += 1
            return
        if status.height == tip.height + 1:
            for message in self._engine.missing(status, ANSWER_BYTES_MAX):
                self._send_to(peer, message)
            return
        certificate = (
            tip.certificate if status.height == tip.height else self._certificate(status.height)
        )
        if certificate is not None and status.step != STEP_DECIDED:
            self._send_to(peer, certificate)
        if status.height < tip.height:
            ours = self._engine.status()
            frame = encode_frame(STATUS, encode_status(ours))
            self._streams.send(peer, frame, (ours.height, ours.round))

    def _certificate(self, height: int) -> Certificate | None:
        return self._chain.certificate(height) if height >= 1 else None

    def _send_to(self, peer: PeerId, message: Message) -> None:
        self._streams.send(peer, encode_message(message), (message.height, message.round))

    async def _take_decided(self, blocks: Sequence[Decided]) -> None:
        """The door of `catchup`: returns when the blocks are in the chain; raises `Invalid`."""
        for _ in range(FETCH_BODIES_TRIES):
            missing = [name for block, _ in blocks for name in self._chain.missing_bodies(block)]
            if missing:
                peers = [view.peer for view in self._network.peers() if view.admitted]
                await self._fetch_bodies(missing, peers)
            offered = _Offered(blocks, trio.Event())
            self._put(offered)
            await offered.done.wait()
            if offered.refusal is None:
                return
            if not isinstance(offered.refusal, MissingBodies):
                raise offered.refusal
        self.counters["bodies_missing"] += 1

    async def _append_decided(self, event: _Offered) -> None:
        height = self._chain.height
        news = [pair for pair in event.blocks if decode_header(pair[0].header).height > height]
        try:
            if news:
                async with self._writer:
                    await self._run_blocking(self._chain.commit_many, news)
        except (Invalid, MissingBodies) as refusal:
            event.refusal = refusal
        tip = self._chain.tip
        if tip.height > height:
            self.counters["caught_up"] += tip.height - height
            log.info("caught up", height=tip.height, blocks=tip.height - height)
            await self._feed(CaughtUp(tip.height))
            await self._follow_tip(tip)
        event.done.set()
