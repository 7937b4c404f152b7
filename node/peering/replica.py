"""The one task that agrees on height after height, and the one writer of the chain.

Everything that happens goes through one inbox and is handled to the end before the next; this
file says when a height begins, what a decision leads to, and who may interrupt. A fault of ours
ends the task, and with it the daemon: halting is better than forking.
What this file does not know: what may reach the engine (`hearing.py`), how its effects are
performed (`agreement.py`), what we may sign (`voter.py`), who is told what (`sending.py`), how
blocks are found and executed (`execution.py`).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, assert_never

import trio

from consensus.effects import Commit
from consensus.header import decode_header
from consensus.inputs import CaughtUp
from consensus.messages import EVIDENCE
from consensus.params import ConsensusParams
from consensus.primitives.errors import Invalid
from consensus.round import Contradiction
from node.observe import get_log
from node.peering.agreement import Agreement
from node.peering.catchup import Catchup, Decided
from node.peering.execution import Execution, FetchBodies
from node.peering.hearing import Hearing
from node.peering.inbox import (
    Event,
    Executed,
    Fetched,
    Heard,
    Inbox,
    Means,
    Offered,
    OwnBlock,
    RunBlocking,
)
from node.peering.pace import WAN, Gate, Pace, Profile
from node.peering.proposer import Proposer
from node.peering.recalling import Recalling
from node.peering.responder import Responder
from node.peering.sending import Sender
from node.peering.streams import FindPeer, ValidatorStreams
from node.peering.topics import VOTES
from node.peering.undecided import Undecided
from node.peering.voter import Validator, Voter
from node.storage.chain import Chain
from node.storage.errors import MissingData
from node.storage.executing import FinalRefusal
from node.storage.pasts import MissingPast
from node.storage.views import Tip
from p2p.limits import TOPICS
from p2p.network import Network, PeerId, TaskStatus, Verdict

FETCH_TRIES: Final = 3  # of what decided blocks name and we lack

log = get_log("consensus")


@dataclass(frozen=True, slots=True)
class Settings:
    """The operator's choices."""

    block_interval_ms: int = 1_000
    profile: Profile = WAN
    adapts: bool = True
    doppelganger_wait_s: float = 35.0
    snapshot_every: int = 10_000  # blocks: catching up stops at these heights


@dataclass(frozen=True, slots=True)
class ReplicaStatistics:
    """Where agreement stands, and counters since the start."""

    height: int  # committed
    round: int
    step: int
    state: str  # validating, following, waiting, doubled, diverged
    live_streams: int
    counters: dict[str, int]


class Replica:
    """Consensus of one node. `validator` None: it follows and never votes.

    `find_peer`: validator key → its node. `fetch_bodies(hashes, peers)` gets bundle bodies into
    the chain's store and returns those nobody had. `on_commit` is called after each block,
    `on_accuse` with evidence that our engine found, `judge_evidence` with what gossip brings.
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
        judge_evidence: Callable[[bytes], Verdict] = lambda evidence: Verdict.IGNORE,
        may_promise: Callable[[], bool] = lambda: True,
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        self._network, self._chain, self._proposer = network, chain, proposer
        self._fetch_bodies, self._now_ms = fetch_bodies, now_ms
        self._settings = settings or Settings()
        self._get_params = get_params
        self._on_commit, self._on_accuse = on_commit, on_accuse
        self._judge_evidence = judge_evidence
        self._run_blocking = run_blocking
        self.counters: Counter[str] = Counter()
        self._inbox = Inbox(self.counters)
        self._committed = trio.Condition()
        self._is_diverged = False
        self._catching_up = trio.CancelScope()
        self._nursery: trio.Nursery
        self._undecided = Undecided()
        self._means = Means(
            network, chain, self._inbox, self.counters, now_ms, self._spawn, run_blocking
        )
        self._streams = ValidatorStreams(
            network=network,
            find_peer=find_peer,
            on_frame=lambda *frame: self._hearing.hear_frame(*frame),  # made below
        )
        self.catchup = Catchup(
            network=network,
            get_height=lambda: chain.height,
            take=self._take_decided,
            end_every=self._settings.snapshot_every,
            on_doubt=self._weigh_doubt,
        )
        self._find_peer = find_peer
        self._recalling = Recalling(network=network, pasts=chain.pasts, counters=self.counters)
        self._responder = Responder(
            get_view=chain.view, find_undecided=self._undecided.find, run_blocking=run_blocking
        )
        self._voter = Voter(
            validator,
            sync_bodies=chain.bundles.sync,
            run_blocking=run_blocking,
            may_promise=may_promise,
        )
        self._sender = Sender(self._means, streams=self._streams, undecided=self._undecided)
        self._execution = self._make_execution()
        self._agreement = self._make_agreement()
        self._hearing = self._make_hearing()

    def _make_execution(self) -> Execution:
        return Execution(
            self._means,
            undecided=self._undecided,
            proposer=self._proposer,
            catchup=self.catchup,
            fetch_bodies=self._fetch_bodies,
            fetch_past=self._recalling.fetch,
            find_validators=self._streams.find_others,
        )

    def _make_agreement(self) -> Agreement:
        return Agreement(
            self._means,
            voter=self._voter,
            sender=self._sender,
            execution=self._execution,
            undecided=self._undecided,
            pace=Pace(self._settings.profile, adapts=self._settings.adapts),
            commit=self._commit,
            on_accuse=self._on_accuse,
        )

    def _make_hearing(self) -> Hearing:
        return Hearing(
            self._means,
            voter=self._voter,
            sender=self._sender,
            execution=self._execution,
            undecided=self._undecided,
            agreement=self._agreement,
            catchup=self.catchup,
            get_params=self._get_params,
            judge_evidence=self._judge_evidence,
            stop_signing=self._stop_signing,
        )

    def _spawn(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._nursery.start_soon(function, *arguments)

    # --- for others

    @property
    def height(self) -> int:
        """Height of the newest committed block."""
        return self._chain.height

    def wake(self) -> None:
        """There may be work for a block: the pools have changed."""
        self._inbox.wake()

    async def accuse(self, evidence: bytes) -> None:
        """What a light client brought: judged as gossip is, and told on if it is new."""
        if self._judge_evidence(evidence) is Verdict.ACCEPT:
            await self._sender.publish(EVIDENCE, evidence)

    async def wait_height(self, height: int) -> None:
        """Until block `height` is committed."""
        async with self._committed:
            while self._chain.height < height:
                await self._committed.wait()

    def statistics(self) -> ReplicaStatistics:
        """Where agreement stands."""
        counters = self.counters + self._streams.counters
        counters += self._hearing.admission.counters
        counters.update({f"catchup_{name}": n for name, n in self.catchup.counters.items()})
        return ReplicaStatistics(
            height=self._chain.height,
            round=self._agreement.engine.round,
            step=int(self._agreement.engine.step),
            state=self._state_word(),
            live_streams=self._streams.live_count(),
            counters=dict(counters),
        )

    def _state_word(self) -> str:
        if self._is_diverged:
            return "diverged"
        if self._voter.is_doubled:
            return "doubled"
        key = self._voter.key
        if key is None or self._chain.tip.validators.index(key) is None:
            return "following"
        return "validating" if self._signing_key() is not None else "waiting"

    def _signing_key(self) -> bytes | None:
        """Our key, if it may sign the next height now."""
        return self._voter.signing_key(self._chain.height + 1, trio.current_time())

    # --- the task

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Agree for ever. Ends only by a cancel or by a fault of ours."""
        gossip = self._network.subscribe(VOTES, self._hearing.judge, TOPICS[VOTES])
        self._responder.serve(self._network)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            now_s = trio.current_time()
            self._voter.votes_from_s = now_s + self._settings.doppelganger_wait_s
            self._gate = Gate(interval_s=self._settings.block_interval_ms / 1_000, now_s=now_s)
            self._begin_next(self._chain.tip)
            await nursery.start(self._streams.run)
            nursery.start_soon(self._hearing.hear_gossip, gossip)
            nursery.start_soon(self._catch_up)
            await self._resume()
            task_status.started()
            await self._loop()

    async def _catch_up(self) -> None:
        with self._catching_up:
            await self.catchup.run()

    async def _resume(self) -> None:
        """A journal with frames: we were in the middle of this height, so it begins at once."""
        try:
            if await self._voter.has_begun(self._chain.height + 1):
                await self._start_height()
        except Contradiction as error:
            self._diverge(error)  # as before the restart

    async def _loop(self) -> None:
        while True:
            await self._inbox.wait_until(self._next_look_s())
            await trio.lowlevel.checkpoint()
            try:
                if not self._is_diverged:
                    await self._agreement.ring()
                while self._inbox:
                    await self._handle(self._inbox.take())
                    await self._pass_gate()
                await self._pass_gate()
                await self._begin_to_vote()
                await self._fall_silent()
            except Contradiction as error:
                self._diverge(error)

    def _next_look_s(self) -> float:
        if self._is_diverged:
            return float("inf")
        now_s = trio.current_time()
        if self._agreement.is_started:
            look_s = self._agreement.next_s()
        else:
            look_s = self._gate.next_s(now_s, self._heartbeat_s())
        votes_from_s = self._voter.votes_from_s
        return min(look_s, votes_from_s) if now_s < votes_from_s else look_s

    def _weigh_doubt(self, givers: frozenset[PeerId]) -> None:
        """Bytes that more than a third of the power gives alike were given by an honest member."""
        validators = self._chain.tip.validators
        power = sum(
            member.power for member in validators.members if self._find_peer(member.key) in givers
        )
        if validators.is_third(power):
            self._diverge(Contradiction(f"block {self._chain.height + 1} is refused here alone"))

    def _diverge(self, error: Exception) -> None:
        """Stop agreeing for good: reads, answers and gossip go on."""
        self._is_diverged = True
        self._catching_up.cancel()
        self.counters["diverged"] += 1
        log.error(
            "a quorum decided what is invalid here; consensus has stopped",
            why=str(error),
            mend="compare the block with other nodes: this disk is at fault, or > 1/3 of the power",
        )

    async def _handle(self, event: Event) -> None:
        if self._is_diverged:
            if isinstance(event, Offered):
                event.done.set()
            return
        match event:
            case Heard():
                await self._hearing.take_frame(event)
            case Executed():
                await self._hearing.take_verdict(event)
            case OwnBlock():
                self._proposer.drop(event.built.choice)
                await self._hearing.take_own_block(event)
            case Fetched():
                self._hearing.take_fetched(event)
            case Offered():
                await self._append_decided(event)
            case _:
                assert_never(event)

    # --- heights begin

    def _begin_next(self, tip: Tip) -> None:
        """After the tip has moved: admit messages of the next height, and nothing older."""
        self._agreement.stop()
        self._voter.forget()
        self._streams.set_members(tip.validators.powers(), self._voter.key)
        self._hearing.begin(tip)

    def _heartbeat_s(self) -> float:
        return self._get_params().heartbeat_ms / 1_000

    def _has_work(self) -> bool:
        return self._proposer.has_work(self._now_ms())

    async def _pass_gate(self) -> None:
        if self._agreement.is_started or self._is_diverged:
            return
        if self._hearing.is_called(self._chain.tip.validators) or self._gate.is_open(
            trio.current_time(), self._heartbeat_s(), self._has_work
        ):
            await self._start_height()

    async def _start_height(self) -> None:
        await self._agreement.start(self._signing_key())
        await self._hearing.deliver_early()

    async def _begin_to_vote(self) -> None:
        """The doppelganger wait is over: recover again, with our key."""
        is_following = self._agreement.is_started and self._agreement.engine.me is None
        if is_following and not self._is_diverged and self._signing_key() is not None:
            await self._start_height()

    async def _fall_silent(self) -> None:
        """What we promise can no longer be kept: go on at this height without our key."""
        is_voting = self._agreement.is_started and self._agreement.engine.me is not None
        if is_voting and not self._is_diverged and self._signing_key() is None:
            await self._start_height()

    async def _stop_signing(self) -> None:
        if self._voter.is_doubled:
            return
        self._voter.is_doubled = True
        log.error(
            "our validator key signs elsewhere too: this node signs nothing any more",
            mend="stop the other node, then restart this one",
        )
        if self._agreement.is_started:
            await self._start_height()

    # --- blocks are decided, here or elsewhere

    async def _commit(self, effect: Commit) -> None:
        if self._chain.executed_block(effect.block_id) is None:
            # Pushed out of the cache by others of this height.
            await self._execution.execute_again(effect.block_id)
        async with self._execution.writer:
            tip = await self._run_blocking(self._chain.commit, effect.block_id, effect.certificate)
        self._voter.end(tip.height)
        self.counters["committed"] += 1
        assert tip.header is not None
        log.info(
            "block committed",
            height=tip.height,
            round=effect.round,
            id=tip.block_id,
            # From the proposer's clock, as it began to build, to ours: true as far as both are.
            took_ms=self._now_ms() - tip.header.time_ms,
        )
        if tip.header.proposer == self._voter.key:
            self._sender.tell_decision(effect.certificate)
        await self._follow_tip(tip)

    async def _follow_tip(self, tip: Tip) -> None:
        self._gate.close(trio.current_time())
        self._begin_next(tip)
        self._proposer.review(self._now_ms())
        self._on_commit(tip)
        async with self._committed:
            self._committed.notify_all()

    async def _take_decided(self, blocks: Sequence[Decided]) -> None:
        """The door of `catchup`: returns when the blocks are in the chain; raises `Invalid`."""
        for _ in range(FETCH_TRIES):
            missing = [name for block, _ in blocks for name in self._chain.missing_bodies(block)]
            if missing:
                peers = [view.peer for view in self._network.peers() if view.admitted]
                await self._fetch_bodies(missing, peers)
            offered = Offered(blocks, trio.Event())
            self._inbox.put(offered)
            await offered.done.wait()
            if offered.refusal is None:
                return
            if isinstance(offered.refusal, MissingPast):
                await self._recalling.fetch(offered.refusal.heights)
            elif not isinstance(offered.refusal, MissingData):
                raise offered.refusal
        self.counters["data_missing"] += 1

    async def _append_decided(self, event: Offered) -> None:
        height = self._chain.height
        try:
            news = [pair for pair in event.blocks if decode_header(pair[0].header).height > height]
            if news:
                async with self._execution.writer:
                    await self._run_blocking(self._chain.commit_many, news)
        except FinalRefusal as refusal:
            self._diverge(refusal)
        except (Invalid, MissingData) as refusal:
            event.refusal = refusal
        tip = self._chain.tip
        if tip.height > height:
            self.counters["caught_up"] += tip.height - height
            log.info("caught up", height=tip.height, blocks=tip.height - height)
            await self._agreement.feed(CaughtUp(tip.height))
            await self._follow_tip(tip)
        event.done.set()
