"""False credits that an index here shows: found, kept as proofs, brought to the ledger.

Why settled bundles are looked at again: where nobody who votes held the index, or it came later, a
lie settles; for a day its receipt can be reversed. Why a proof is a file first: it is money, and
`olnode tx fraud-proof` sends it from any machine, should this node not get through. Why some wait a
few seconds: every holder finds the same, the first proof counts, others pay a fee for nothing.
What this file does not know: how credits are recomputed, what a lie costs.
"""

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio

from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid
from node.ledger import tables
from node.ledger.rules.disputes import is_refuted
from node.ledger.state import State
from node.ledger.wire import openings
from node.ledger.wire.bundles import Bundle, check_bytes, decode_header
from node.ledger.wire.claims import sketch_hash
from node.ledger.wire.openings import Opened, ReceiptSubject, open_receipt
from node.ledger.wire.orders import ZERO_HASH
from node.ledger.wire.receipts import Credits, Receipt, decode_credits, decode_receipt
from node.ledger.wire.transactions import FraudProof, decode_fraud
from node.observe import get_log
from node.peering.auditing import IndexAuditor
from node.peering.audits import CLAIMS_MAX, Audits, StatedClaim
from node.peering.relay import RECHECKED_MAX, Found, Told, is_hidden
from node.storage.prooffiles import keep_proof
from node.storage.segments import ENDED_FOLDER, put_away
from node.storage.views import View

AUDITED_MAX: Final = 65_536  # bundles found true before they settled; the oldest are forgotten
UNSEEN_MAX: Final = 16_384  # settled ones that wait for an index, or for their provider's word
LISTED_MAX: Final = 1_024  # blocks whose bundles are listed at once: a stop waits for the thread
PROOFS_MAX: Final = 256
EARLY_MAX: Final = 64  # of them of bundles that have not settled: such lies cost nothing
SILENT_MAX: Final = 1_024  # providers that gave no answer lately
TRIES: Final = 5  # to ask a provider what it stated
ANSWER_S: Final = 10.0  # for what is asked of one bundle
QUESTION_S: Final = 0.5  # and for each question of it: a provider allows so many a second
PASS_S: Final = 30.0  # of looking, before the proofs at hand have their turn
LOOK_EVERY_S: Final = 30.0
SILENT_S_MAX: Final = 1_800.0  # LOOK_EVERY_S, and twice as long each time
PROOFS_EVERY_S: Final = 1.0  # while there is one to send
CHARGED_AGAIN_S: Final = 600.0  # each proof that the ledger refuses has cost its fee
STAGGER_S: Final = 8.0
KEEP_MS: Final = 24 * 3_600_000  # a proof whose bundle never settles
PREFIX: Final = "fraud-"
HALF_WRITTEN: Final = ".new"  # by a life that was killed
# What the ledger says once and for all of a receipt that stands settled and is not refuted.
FINAL: Final = frozenset({"tx.bad_proof", "tx.bad_value", "tx.not_found", "tx.too_early_or_late"})

RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread
Which = tuple[int, int]

MEND: Final = "none needed: it is accused"

log = get_log("refuter")


class _Unseen(NamedTuple):
    """A settled bundle, and those of its versions that nobody here has recomputed."""

    name: bytes
    provider: bytes
    versions: frozenset[Which]
    tries: int = 0


class _Silence(NamedTuple):
    """Of a provider: how often it gave no answer, and when it is asked again, by trio's clock."""

    misses: int
    again_s: float


class _Proof(NamedTuple):
    """What will be sent once its bundle has settled."""

    subject: ReceiptSubject
    payload: FraudProof
    path: Path
    found_ms: int
    is_early: bool  # found before its bundle had settled


class Refuter:
    """Run `run` in a nursery. `send` returns once a block holds a transaction; raises Invalid.

    `find_held`: the versions whose index is here. `may_be_shown`: whether providers owe us sketches
    now. `account`: our own as a provider, which is not looked at.
    """

    def __init__(
        self,
        *,
        folder: Path,
        get_view: Callable[[], View],
        auditor: IndexAuditor,
        audits: Audits,
        find_held: Callable[[], frozenset[Which]],
        may_be_shown: Callable[[], bool],
        account: bytes,
        send: Callable[[FraudProof], Awaitable[None]],
        now_ms: Callable[[], int],
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        """Reads the proofs that are kept in `folder`."""
        self._folder, self._get_view = folder, get_view
        self._auditor, self._audits = auditor, audits
        self._find_held, self._held = find_held, frozenset[Which]()
        self._may_be_shown, self._account = may_be_shown, account
        self._send, self._now_ms, self._run_blocking = send, now_ms, run_blocking
        self._audited: dict[bytes, frozenset[Which]] = {}  # by hash, oldest first
        self._unseen: list[_Unseen] = []  # of which some index is here
        self._lacking: deque[_Unseen] = deque()  # of which none is
        self._silent: dict[bytes, _Silence] = {}  # by provider
        self._found: deque[Found] = deque()
        self._proofs: dict[tuple[bytes, int], _Proof] = {}
        self._told: set[tuple[bytes, int]] = set()
        self._waits: dict[tuple[bytes, int], float] = {}  # proofs that were refused, until when
        self._looked: int | None = None  # the last height whose bundles were looked at
        self._woken = trio.Event()
        self.counters: Counter[str] = Counter()
        self._read_kept()

    # --- what others tell us

    def note_commit(self, _: object) -> None:
        """A block was committed."""
        self._woken.set()

    def note_audited(self, name: bytes, versions: frozenset[Which]) -> None:
        """All credits of a bundle's receipts of these versions were recomputed, and hold."""
        self._audited[name] = versions
        while len(self._audited) > AUDITED_MAX:
            del self._audited[next(iter(self._audited))]

    def note_false(self, found: Found) -> None:
        """A receipt was found false before it settled; it may settle all the same."""
        if len(self._found) < PROOFS_MAX:
            self._found.append(found)
            self._woken.set()

    # --- looking

    async def run(self) -> None:
        """Look at what settles, prove what is false, bring it to the ledger, for ever."""
        while True:
            self._woken = trio.Event()
            while self._found:
                await self._prove(self._found.popleft(), is_early=True)
            self._note_held()
            if self._held and self._may_be_shown():
                await self._run_blocking(self._list_settled)
                await self._look_at_unseen()
            for place, proof in list(self._proofs.items()):
                await self._follow(place, proof)
            with trio.move_on_after(PROOFS_EVERY_S if self._proofs else LOOK_EVERY_S):
                await self._woken.wait()

    def _note_held(self) -> None:
        """Another index is here: what waited for it is looked at."""
        held = self._find_held()
        if held - self._held:
            waiting, self._lacking = self._lacking, deque()
            for unseen in waiting:
                self._file(unseen, held)
        self._held = held

    def _file(self, unseen: _Unseen, held: frozenset[Which]) -> None:
        """With those that can be looked at, or with those that wait for an index.

        Of the latter the oldest go first: their money is paid before an index comes.
        """
        can_look = bool(unseen.versions & held)
        if len(self._unseen if can_look else self._lacking) >= UNSEEN_MAX:
            self.counters["unseen_dropped"] += 1
            if can_look:
                return
            self._lacking.popleft()
        (self._unseen if can_look else self._lacking).append(unseen)

    def _list_settled(self) -> None:
        """Bundles of new blocks that we have not recomputed; at the start, of a window's blocks."""
        view = self._get_view()
        state = view.state()
        if self._looked is None:
            window_ms = state.parameter("challenge_window_ms")
            self._looked = view.height_at(view.tip.time_ms - window_ms)
        last = min(view.tip.height, self._looked + LISTED_MAX)
        for height in range(self._looked + 1, last + 1):
            payload = view.payload(height)
            for name in payload.bundles if payload is not None else ():
                self._note_unseen(view, state, name)
            self._looked = height

    def _note_unseen(self, view: View, state: State, name: bytes) -> None:
        found = view.find_bundle(name)
        if found is None:
            return
        header = decode_header(found.bundle.header)
        if header.provider == self._account:
            return
        seen = self._audited.get(name, frozenset())
        listed = ((model, version) for model, version, _ in header.totals)
        left = frozenset(which for which in listed if which not in seen and has_index(state, which))
        if left:
            self._file(_Unseen(name, header.provider, left), self._held)

    async def _look_at_unseen(self) -> None:
        """Each, while it can be disputed, until its provider has answered or was asked often.

        For PASS_S at most, and none of a provider that has just given no answer: who is silent
        must not keep others' lies, and the proofs that are here, waiting.
        """
        ends_s, state = trio.current_time() + PASS_S, self._get_view().state()
        waiting, self._unseen = deque(self._unseen), []
        unanswered: list[_Unseen] = []
        while waiting and not self._is_full() and trio.current_time() < ends_s:
            unseen = waiting.popleft()
            if self._is_silent(unseen.provider):
                self._unseen.append(unseen)
            elif state.has(tables.SETTLED, unseen.name):
                is_answered = await self._look_at(unseen)
                self._note_answer(unseen.provider, is_answered)
                if is_answered and self._is_full():
                    waiting.append(unseen)  # what did not fit is proved later
                elif is_answered:
                    self._file_rest(unseen)
                elif unseen.tries < TRIES:
                    unanswered.append(unseen._replace(tries=unseen.tries + 1))
        # Whoever gave no answer is asked for another bundle first: one may be all that it lacks.
        self._unseen += [*waiting, *unanswered]

    def _file_rest(self, unseen: _Unseen) -> None:
        """What of it no index here shows waits for one."""
        left = unseen.versions - self._held
        if left:
            self._file(unseen._replace(versions=left, tries=0), frozenset())

    def _is_full(self) -> bool:
        return len(self._proofs) >= PROOFS_MAX

    def _is_silent(self, provider: bytes) -> bool:
        silence = self._silent.get(provider)
        return silence is not None and silence.again_s > trio.current_time()

    def _note_answer(self, provider: bytes, is_answered: bool) -> None:
        silence = self._silent.pop(provider, None)
        if is_answered:
            return
        self.counters["unanswered"] += 1
        misses = 1 if silence is None else silence.misses + 1
        wait_s = min(SILENT_S_MAX, LOOK_EVERY_S * 2.0 ** min(misses - 1, 16))
        self._silent[provider] = _Silence(misses, trio.current_time() + wait_s)
        while len(self._silent) > SILENT_MAX:
            del self._silent[next(iter(self._silent))]

    async def _look_at(self, unseen: _Unseen) -> bool:
        """Recompute what we can of a settled bundle; False where its provider does not answer."""
        found = await self._run_blocking(self._get_view().find_bundle, unseen.name)
        if found is None:
            return True
        bundle = found.bundle
        header, answers = await self._run_blocking(answers_of, bundle)
        state = self._get_view().state()
        ours = [
            place
            for place, (receipt, credits) in enumerate(answers)
            if self._auditor.holds(receipt.model, receipt.model_version)
            and (receipt.sketch_hash != ZERO_HASH or credits)
            and not is_refuted(state, bundle.hash, place)
        ]
        if not ours:
            return True
        stated = await self._ask(header.provider, bundle.hash, ours)
        told: dict[int, Told] = {}
        for place in ours:
            receipt, credits = answers[place]
            if receipt.sketch_hash == ZERO_HASH:  # needs no word of its provider
                told[place] = (receipt, credits, StatedClaim(b"", b""))
            elif stated is not None:
                told[place] = (receipt, credits, stated[place])
        for place in await self._find_false(told):
            if self._is_full():
                break
            await self._prove(Found(bundle, place, *told[place]), is_early=False)
        if stated is None or any(is_hidden(answers[x][0], stated[x]) for x in ours):
            return False  # it may learn yet that we vote, and are owed sketches
        self.counters["rescanned"] += len(ours)
        return True

    async def _find_false(self, told: dict[int, Told]) -> list[int]:
        """The places whose claim is not what the index gives; many are rechecked with one scan."""
        places, found = list(told), list[int]()
        for first in range(0, len(places), RECHECKED_MAX):
            some = places[first : first + RECHECKED_MAX]
            findings = await self._run_blocking(self._auditor.recheck, [told[x] for x in some])
            found += [place for place, false in zip(some, findings, strict=True) if false]
        return found

    async def _ask(
        self, provider: bytes, name: bytes, places: Sequence[int]
    ) -> dict[int, StatedClaim] | None:
        """What it states, if in time: what we then compute with it is not its silence."""
        questions = -(-(places[-1] + 1 - places[0]) // CLAIMS_MAX)
        with trio.move_on_after(ANSWER_S + QUESTION_S * questions):
            return await self._audits.ask_claims(provider, (), name, places)
        return None

    # --- proving

    async def _prove(self, found: Found, *, is_early: bool) -> None:
        """Keep the proof that a receipt is false, if one row or the claim alone shows it."""
        if (found.bundle.hash, found.place) in self._proofs:
            return
        opened = await self._run_blocking(
            self._auditor.refute, found.receipt, found.credits, found.stated
        )
        if opened is None:
            self._note_unbound(found)
            return
        await self._keep_proof(found.bundle, found.place, *opened, is_early=is_early)

    def _note_unbound(self, found: Found) -> None:
        """Tell of a provider that states something else than it committed to: no proof shows it."""
        bound, stated = found.receipt.sketch_hash, found.stated
        is_shown = bool(stated.sketch) and bound != ZERO_HASH
        if is_shown and sketch_hash(stated.sketch, stated.statement) != bound:
            self.counters["unbound"] += 1
            log.warning(
                "a provider states what its receipt does not bind",
                bundle=found.bundle.hash, receipt=found.place,
            )  # fmt: skip

    async def note_proof(self, name: bytes, place: int, kind: int, opened: Opened) -> None:
        """What shows to everybody that a settled receipt is false, found by another part."""
        bundle = await self._run_blocking(self._get_view().find_bundle, name)
        if bundle is not None:
            await self._keep_proof(bundle.bundle, place, kind, opened, is_early=False)
            self._woken.set()

    async def _keep_proof(
        self, bundle: Bundle, number: int, kind: int, opened: Opened, *, is_early: bool
    ) -> None:
        place = (bundle.hash, number)
        subject = await self._run_blocking(open_receipt, bundle, number)
        if place in self._proofs:
            return
        if is_early:
            await self._make_room()
        if self._is_full():
            self.counters["proofs_full"] += 1
            return
        payload = FraudProof(
            kind, openings.encode_opening(subject), openings.encode_opening(opened)
        )
        path = self._folder / f"{PREFIX}{place[0].hex()}-{place[1]}"
        self._proofs[place] = _Proof(subject, payload, path, self._now_ms(), is_early)
        self.counters["proved"] += 1
        log.error(
            "a provider credits falsely", provider=decode_header(bundle.header).provider,
            bundle=place[0], receipt=place[1], mend=MEND,
        )  # fmt: skip
        self.counters["unkept"] += not await self._run_blocking(keep_proof, path, payload)

    async def _make_room(self) -> None:
        """Forget the oldest proof of what has not settled, where EARLY_MAX of them are here.

        Should that bundle settle after all, it is looked at like any other.
        """
        early = [place for place, proof in self._proofs.items() if proof.is_early]
        if len(early) < EARLY_MAX:
            return
        state = self._get_view().state()
        oldest = next((place for place in early if not state.has(tables.SETTLED, place[0])), None)
        if oldest is None:
            return
        self.counters["early_dropped"] += 1
        proof = self._proofs.pop(oldest)
        with suppress(OSError):  # it is read again at the next start, and dropped again
            await self._run_blocking(partial(proof.path.unlink, missing_ok=True))

    async def _follow(self, place: tuple[bytes, int], proof: _Proof) -> None:
        """One step towards the ledger; what fails is tried again at the next look."""
        view = self._get_view()
        state = view.state()
        settled = state.find(tables.SETTLED, place[0])
        if settled is None:
            is_over = view.settled_at(place[0]) or self._now_ms() > proof.found_ms + KEEP_MS
            if is_over:
                await self._end(place, proof)
            return
        if is_refuted(state, *place):
            await self._end(place, proof)
            return
        since_ms = self._now_ms() - settled.settled_ms
        if since_ms < self._stagger_ms(place):
            return
        if trio.current_time() < self._waits.get(place, float("-inf")):
            return
        try:
            await self._send(proof.payload)
        except Invalid as refusal:
            await self._note_refused(place, proof, refusal)
            return
        self.counters["accused"] += 1
        log.info("false credits are reversed", bundle=place[0], receipt=place[1])
        await self._end(place, proof)

    async def _note_refused(
        self, place: tuple[bytes, int], proof: _Proof, refusal: Invalid
    ) -> None:
        """Told once. What a block refused has cost its fee: not again soon, or not at all."""
        self.counters["failed"] += 1
        is_charged = "number" in refusal.facts
        if is_charged and refusal.code in FINAL:
            log.error(
                "the ledger takes no proof of it", bundle=place[0], receipt=place[1],
                code=refusal.code, mend=f"it is kept in {ENDED_FOLDER}/: tell the developers",
            )  # fmt: skip
            await self._end(place, proof)
            return
        if is_charged:
            self._waits[place] = trio.current_time() + CHARGED_AGAIN_S
        if place not in self._told:
            self._told.add(place)
            mend = f"olnode tx fraud-proof {proof.path}"
            log.warning("not accused yet", code=refusal.code, why=str(refusal), mend=mend)

    def _stagger_ms(self, place: tuple[bytes, int]) -> int:
        """How long after the bundle has settled: another time for each who finds it."""
        drawn = sha256(self._account, *(place[0], place[1].to_bytes(4)))[0]
        return int(drawn * STAGGER_S * 1_000) >> 8

    async def _end(self, place: tuple[bytes, int], proof: _Proof) -> None:
        del self._proofs[place]
        self._told.discard(place)
        self._waits.pop(place, None)
        await self._run_blocking(self._put_away, proof.path)

    # --- the files

    def _put_away(self, path: Path) -> None:
        try:
            put_away(path)
        except OSError as error:
            log.warning("a proof is not put away", file=str(path), why=str(error))

    def _read_kept(self) -> None:
        paths = self._folder.glob(f"{PREFIX}*")
        for path in sorted(path for path in paths if path.suffix != HALF_WRITTEN):
            if self._is_full():
                self.counters["proofs_full"] += 1
                break
            try:
                payload = decode_fraud(path.read_bytes())
                subject = openings.decode_subject(payload.kind, payload.subject)
                assert isinstance(subject, ReceiptSubject)
            except (OSError, Invalid, AssertionError, KeyError) as error:
                self.counters["unreadable"] += 1
                log.warning("a kept proof cannot be read", file=str(path), why=str(error))
                continue
            place = (subject.bundle, subject.place)
            self._proofs[place] = _Proof(subject, payload, path, self._now_ms(), is_early=True)


def has_index(state: State, which: Which) -> bool:
    """Whether a version's credits follow from an index at all."""
    version = state.find(tables.VERSION, *which)
    return version is not None and bool(version.index_root)


def answers_of(bundle: Bundle) -> tuple[Any, Sequence[tuple[Receipt, Credits]]]:
    """Header, and each receipt with its credits, in body order; raises Invalid."""
    header, parts = check_bytes(bundle)
    return header, [
        (decode_receipt(receipt), decode_credits(credits))
        for part in parts
        for receipt, credits in zip(part.receipts, part.credits, strict=True)
    ]
