"""Sessions of a payer and a provider of which one lies, or whose messages are lost, in thousands.

A run plays deals of one pair, one after another, from one seed; a deal is one channel, from its
opening to the last grain. Lanes are used in parallel, time passes, the power of either side may
fail in the middle of a write, and the channel may be topped up or closed while answers run. What
must hold is the referee's (`session_ledger.py`) and `_end_deal`'s: page 30 §7.
What is real: the payer's journal and check of a receipt; the provider's check of an order, book,
receipts and bundler; the ledger's rules. Streams and engines are left out
(`tests/unit/wallet/test_payer.py` plays fewer with both).
"""

import hashlib
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Final

from bundle_kit import CHAIN
from ledger_kit import OPEN, PAYER, PROVIDER
from simulation.disk import PowerLost, SeededDisk
from simulation.outcomes import OK, STUCK, Outcome, Violation
from simulation.session_ledger import CLOSE_MS, SessionLedger, require
from simulation.session_payer import LyingPayer, PayerSide, torn
from simulation.session_provider import LyingProvider, ProviderSide, Reply, Running

from consensus.primitives.digest import signing_bytes
from node.ledger.wire import exchange
from node.ledger.wire.exchange import RefusedFrame, Start, Tick
from node.ledger.wire.receipts import decode_receipt
from node.ledger.wire.transactions import (
    COOP_TAG,
    CloseChannel,
    CoopClose,
    TopUpChannel,
    coop_body,
)

VILLAINS: Final = ("payer", "wire", "provider", "payer", "wire")  # by seed; a provider is dear
SESSIONS: Final = 100  # of one run
LANES: Final = 4
STEPS: Final = 120  # of a deal, at most
CAPS: Final = (OPEN // 100, OPEN // 50)  # some eight to sixteen holds
EVIL: Final = {"payer": 0.25, "provider": 0.1, "wire": 0.2}  # how often a villain is one
PAUSES_MS: Final = (*[0] * 12, 200, 1_000, 1_000, 6_000, 40_000)
LONG_PAUSES_MS: Final = (900_000, 3_000_000)
LOOK_MS: Final = 31_000  # between two looks of a bundler that waits for something
IDLE_LOOK_MS: Final = 300_000
DELAY_MS: Final = 60_000  # of a bundle, at most
ENDS_MAX: Final = 30  # looks at a channel that ought to end, of up to 25 minutes each
HOLDS_LOST: Final = "payer's loss in holds"
GRAINS_LOST: Final = "provider's loss in grains"
POWER_OPERATIONS: Final = 5  # of a disk, until it fails


class Play:
    """One run."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = rng = Random(f"session {seed}")
        self.villain = villain = VILLAINS[seed % len(VILLAINS)]
        self.disk = SeededDisk(folder, rng)
        self.ledger = ledger = SessionLedger(villain)
        make_payer = LyingPayer if villain == "payer" else PayerSide
        make_provider = LyingProvider if villain == "provider" else ProviderSide
        self.payer = make_payer(folder / "payer", ledger, rng, LANES)
        self.provider = make_provider(folder / "provider", ledger, rng)
        self.counts = ledger.counts
        self.loss_max = 0.0  # of the payer, in what was at risk
        self.provider_loss_max = 0
        self.trace = hashlib.sha256()
        self.streams: set[int] = set()  # lanes whose request has both ends
        self.late_ticks: list[Tick] = []
        self.is_over = False

    def run(self) -> None:
        """All deals; raises Violation."""
        while self.counts["sessions"] < SESSIONS:
            self._start_deal()
            for _ in range(STEPS):
                if self.is_over and not self.streams:
                    break
                try:
                    self._play_a_step()
                except PowerLost as lost:
                    self.counts["power lost"] += 1
                    self._restart(lost.home.name)
            self._end_deal()

    def facts(self) -> tuple[tuple[str, float], ...]:
        """What happened how often, and the largest losses."""
        losses = {HOLDS_LOST: self.loss_max, GRAINS_LOST: self.provider_loss_max}
        return (*self.counts.items(), *losses.items())

    def close(self) -> None:
        """Let go of the disk."""
        self.payer.close()
        self.provider.close()

    def _start_deal(self) -> None:
        cap = self.rng.randrange(*CAPS)
        self.channel = self.ledger.open_channel(cap)
        self.payer.start_deal(self.channel, cap)
        self.streams.clear()
        self.late_ticks.clear()
        self.is_over = False
        self.consent: CoopClose | None = None

    def _is_evil(self, who: str) -> bool:
        return who == self.villain and self.rng.random() < EVIL[who]

    def _play_a_step(self) -> None:
        rng = self.rng
        pauses = LONG_PAUSES_MS if rng.random() < 0.02 else PAUSES_MS
        self._pass_time(rng.choice(pauses))
        self._step(rng.randrange(LANES))
        if rng.random() < 0.08:
            rng.choice(TURNS)(self)

    # ---- time

    def _pass_time(self, by_ms: int) -> None:
        """To the end of it, with a look at all that happens between."""
        ledger, provider = self.ledger, self.provider
        until_ms = ledger.now_ms + by_ms
        while ledger.now_ms < until_ms:
            look_ms = LOOK_MS if provider.is_waiting else IDLE_LOOK_MS
            stop_ms = min(until_ms, ledger.now_ms + look_ms)
            end_ms = provider.next_end_ms()
            if end_ms is not None:
                stop_ms = max(ledger.now_ms, min(stop_ms, end_ms))
            ledger.now_ms = stop_ms
            for number in provider.overdue():
                self._finish(number)
            self._look()

    def _look(self) -> None:
        """The bundler's, and then a block."""
        for bundle in self.provider.turn():
            if isinstance(self.provider, LyingProvider):
                self.provider.bundles.append(bundle)
            if not self._is_evil("wire"):
                self.ledger.offer(bundle)
            elif self.rng.random() < 0.5:
                self.ledger.offer(bundle, self.rng.randrange(DELAY_MS))
        self.ledger.block()

    # ---- one step of a lane

    def _step(self, number: int) -> None:
        payer = self.payer
        if number in self.streams:
            self._stream(number)
        elif number in payer.wanted and self.rng.random() < 0.8:
            self._send(number, payer.again(number))
        elif not self.is_over:
            if number in payer.wanted:
                payer.give_up(number)
            start = payer.order(number)
            if start is not None:
                self._send(number, start)
            elif self.rng.random() < 0.2:
                self.is_over = True  # its lanes are left, or its cap is full

    def _send(self, number: int, start: Start) -> None:
        """The first frame of a stream, and what comes of it."""
        payer, provider, true = self.payer, self.provider, start
        self.counts["sessions"] += 1
        if isinstance(payer, LyingPayer):
            if self._is_evil("payer"):
                start = payer.lie(start)
            payer.starts.append(true)
        elif self._is_evil("wire"):
            if self.rng.random() < 0.7:
                return
            start = torn(self.rng, start)
        if isinstance(provider, LyingProvider):
            provider.saw(start.voucher, start.signature)
            if self._is_evil("provider"):
                return
        answer = provider.take_start(start)
        match answer:
            case Running():
                self.counts["served"] += 1
                self._begin(number, answer)
            case RefusedFrame():
                self._take_refusal(number, answer, is_lie=start != true)
            case Reply():
                self.counts["again"] += 1
                self._send_reply(number, answer)

    def _take_refusal(self, number: int, frame: RefusedFrame, *, is_lie: bool) -> None:
        self.counts["refused"] += 1
        if frame.code == exchange.OVER_LIMITS:
            self.counts["over the cap"] += 1
            self.is_over |= self.rng.random() < 0.2
        if self.villain != "payer" or not is_lie:
            self.payer.take_refusal(number, frame)

    def _begin(self, number: int, running: Running) -> None:
        wanted = self.payer.wanted.get(number)
        is_its = wanted is not None and wanted.named == running.job.order_hash
        frames = self.provider.deliver(running)
        if is_its and running.job.lane.number == number:
            self.streams.add(number)
            self.payer.take_tokens(number, frames)

    def _stream(self, number: int) -> None:
        """The next frame of either side, or the stream's end."""
        running = self.provider.running[number]
        if self._is_evil("wire") or (self.villain == "payer" and self.rng.random() < 0.1):
            self.streams.discard(number)
            self.provider.finish(number)  # kept, and lost on its way
            return
        if running.tick_until_ms is None:
            self._finish(number)
        elif self.payer.wanted[number].wants_tick:
            self._tick(number)

    def _tick(self, number: int) -> None:
        payer, provider = self.payer, self.provider
        tick: Tick | None = payer.tick(number)
        assert tick is not None
        if isinstance(payer, LyingPayer):
            payer.ticks.append(tick)
            if self._is_evil("payer"):
                tick = payer.misstated(tick)
                if self.rng.random() < 0.5:
                    self.streams.discard(number)  # it takes what comes, and says nothing more
        elif self._is_evil("wire"):
            tick = None
        if isinstance(provider, LyingProvider) and tick is not None:
            provider.saw(tick.voucher, tick.signature)
            if self._is_evil("provider"):
                return
        if tick is not None:
            self.counts["ticks"] += 1
            frames = provider.take_tick(number, tick)
            if number in self.streams:
                payer.take_tokens(number, frames)

    def _finish(self, number: int) -> None:
        """The provider signs; who is still there takes it."""
        provider = self.provider
        is_there = number in self.streams
        self.streams.discard(number)
        running = provider.running[number]
        reply = provider.finish(number)
        if isinstance(provider, LyingProvider):
            if reply is not None:
                provider.replies.append(reply)
            if self._is_evil("provider"):
                reply = provider.forge(running, reply)
        if is_there and reply is not None:
            self.counts["partial"] += not running.is_all_said
            self._send_reply(number, reply)

    def _send_reply(self, number: int, reply: Reply) -> None:
        payer = self.payer
        if self._is_evil("wire") or number not in payer.wanted:
            return
        if self.villain == "payer" and not self._is_its(number, reply):
            return  # to a replay of its own
        tick = payer.take_reply(number, reply)
        if tick is None:
            self.counts["caught"] += 1
            self.is_over = True
            return
        if isinstance(payer, LyingPayer):
            payer.ticks.append(tick)
            if self._is_evil("payer"):
                tick = payer.misstated(tick)
        if isinstance(self.provider, LyingProvider) and tick is not None:
            self.provider.saw(tick.voucher, tick.signature)
        if tick is not None and self._is_evil("wire"):
            self.late_ticks.append(tick)
        elif tick is not None:
            self.provider.take_bare(self.channel, tick)

    def _is_its(self, number: int, reply: Reply) -> bool:
        named = decode_receipt(reply.finished.receipt).order_hash
        return named == self.payer.wanted[number].named

    # ---- what may happen beside

    def _restart(self, who: str) -> None:
        """The power of one side is off, then on: it knows what its disk says."""
        side = self.payer if who == "payer" else self.provider
        cut, self.streams = sorted(self.streams), set()
        self.disk.crash(side.folder)
        side.close()
        self.disk.revive(side.folder)
        if who == "payer":
            self.payer.forget_orders()
        side.open()
        if who == "payer":
            self._cut_off(cut)

    def _cut_off(self, lanes: list[int]) -> None:
        """The provider's end of streams whose payer is gone; its own power may fail meanwhile."""
        try:
            for number in lanes:
                self.provider.finish(number)
        except PowerLost:
            self._restart("provider")

    def _restart_one(self) -> None:
        self.counts["restarts"] += 1
        self._restart(self.rng.choice(("payer", "provider")))

    def _fail_power_soon(self) -> None:
        side = self.rng.choice((self.payer, self.provider))
        self.disk.fail_after(side.folder, self.rng.randrange(POWER_OPERATIONS))

    def _prune(self) -> None:
        """A provider that keeps nothing longer than it must, and starts anew."""
        self.counts["pruned"] += self.provider.book.prune(self.ledger.now_ms)
        self._restart("provider")

    def _late_tick(self) -> None:
        if self.late_ticks:
            tick = self.late_ticks.pop(self.rng.randrange(len(self.late_ticks)))
            self.counts["late"] += 1
            self.provider.take_bare(self.channel, tick)

    def _acknowledge_beside(self) -> None:
        """A liar's: a bare voucher while its next order runs."""
        payer = self.payer
        if isinstance(payer, LyingPayer) and self.streams:
            number = self.rng.choice(sorted(self.streams))
            self.provider.take_bare(self.channel, payer.acknowledge(number))

    def _second_order(self) -> None:
        """A liar's: another order in a lane whose request runs."""
        payer = self.payer
        if isinstance(payer, LyingPayer) and self.streams:
            number = self.rng.choice(sorted(self.streams))
            running = payer.wanted[number]
            start = payer.order(number)
            payer.wanted[number], second = running, payer.wanted[number]
            payer.lost.setdefault((number, second.purchase.seq), []).append(second)
            if start is not None:
                self.counts["second orders"] += 1
                answer = self.provider.take_start(start)
                if isinstance(answer, Running):
                    self.provider.deliver(answer)

    def _fall_silent(self) -> None:
        """A payer's, whose stream stays open: the engine takes the time that the order gives."""
        if self.villain == "payer" and self.streams:
            self.counts["silences"] += 1
            self.streams.discard(self.rng.choice(sorted(self.streams)))
            self._pass_time(self.rng.choice(LONG_PAUSES_MS))

    def _top_up(self) -> None:
        self.ledger.send(PAYER, TopUpChannel(self.channel, self.rng.randrange(1, OPEN // 200)))

    def _close(self) -> None:
        if self.rng.random() < 0.3:
            self.ledger.send(PAYER, CloseChannel(self.channel))
            self.is_over = self.villain != "payer"

    def _consent(self) -> None:
        """Both sides agree to an end; whoever serves serves no more."""
        is_honest = self.villain != "provider"
        if self.rng.random() < 0.3 or (is_honest and self.provider.is_waiting):
            return
        paid, referee = self.ledger.referee.paid, self.ledger.referee
        message = signing_bytes(COOP_TAG, CHAIN, coop_body(self.channel, paid))
        referee.note_consent(PAYER.key, paid)
        referee.note_consent(PROVIDER.key, paid)
        made = CoopClose(self.channel, PAYER.sign(message), PROVIDER.sign(message))
        self.consent, self.is_over = made, True

    def _forge_consent(self) -> None:
        """One side signs for both, or for another sum."""
        if self.villain == "wire":
            return
        paid, villain = self.ledger.referee.paid, PAYER if self.villain == "payer" else PROVIDER
        message = signing_bytes(COOP_TAG, CHAIN, coop_body(self.channel, paid))
        own = villain.sign(message)
        self.ledger.send(villain, CoopClose(self.channel, own, own))

    def _claim_some(self) -> None:
        """A liar's: early, again, or too late."""
        if isinstance(self.provider, LyingProvider):
            self.provider.try_all(self.channel, self.rng.sample(range(LANES), 1))

    # ---- the end of a deal

    def _end_deal(self) -> None:
        """Until the channel is closed and settled by whoever still can; then who lost what."""
        self.disk.repair()
        provider, ledger, referee = self.provider, self.ledger, self.ledger.referee
        if self.consent is not None:
            ledger.send(PAYER, self.consent)
        elif self.rng.random() < 0.8:
            ledger.send(PAYER, CloseChannel(self.channel))
        self._pass_time(1)
        for _ in range(ENDS_MAX):
            if referee.is_closed:
                break
            self._claim_all(0.3)
            self._pass_time(self.rng.choice((12_000, 1_500_000)))
            if referee.closes_ms is not None and not provider.is_waiting:
                self._pass_time(self.rng.choice((0, CLOSE_MS - 60_000)))
                self._claim_all(0.5)
                self._order_at_the_end(referee.closes_ms)
                self._pass_time(max(0, referee.closes_ms - ledger.now_ms))
            elif not provider.is_waiting or self.villain == "provider":
                ledger.send(PROVIDER, CloseChannel(self.channel))
        else:
            raise Violation(STUCK, "what was served is never settled")
        self._claim_all(1)
        self._pass_time(1)
        self._account()

    def _order_at_the_end(self, closes_ms: int) -> None:
        """A liar's: what is served now cannot be settled any more."""
        if self.villain != "payer" or self.rng.random() < 0.5:
            return
        self._pass_time(max(0, closes_ms - 2 - self.ledger.now_ms))
        for number in range(LANES):
            start = self.payer.order(number)
            if start is not None:
                self._send(number, start)
            if number in self.streams:
                self._finish(number)

    def _claim_all(self, chance: float) -> None:
        if isinstance(self.provider, LyingProvider) and self.rng.random() < chance:
            self.provider.try_all(self.channel, list(range(LANES)))

    def _account(self) -> None:
        """Page 30 §7: the payer's loss ≤ one hold a request in flight, the provider's 0."""
        referee = self.ledger.referee
        self.trace.update(repr((referee.paid, referee.cap, len(referee.served))).encode())
        if self.villain != "payer":
            for number in range(LANES):
                loss, at_risk = self.payer.loss(number)
                self.loss_max = max(self.loss_max, loss / at_risk if at_risk else 0)
                require(loss <= at_risk, "the payer loses more than one hold")
        if self.villain != "provider":
            loss = referee.unpaid()
            self.provider_loss_max = max(self.provider_loss_max, loss)
            require(loss == 0, f"the provider loses {loss}")
        self.counts["deals"] += 1


TURNS: Final = (
    Play._restart_one,
    Play._fail_power_soon,
    Play._prune,
    Play._late_tick,
    Play._acknowledge_beside,
    Play._acknowledge_beside,
    Play._second_order,
    Play._second_order,
    Play._fall_silent,
    Play._top_up,
    Play._close,
    Play._consent,
    Play._forge_consent,
    Play._claim_some,
)


def session_run(seed: int) -> Outcome:
    """One run in a folder of its own, and how it ended."""
    with TemporaryDirectory(prefix="olnode-sessions-") as name:
        play = Play(Path(name), seed)
        with play.disk.mounted():
            try:
                play.run()
            except Violation as violation:
                return Outcome(violation.end, play.trace.digest(), violation.why, play.facts())
            finally:
                play.close()
        return Outcome(OK, play.trace.digest(), facts=play.facts())
