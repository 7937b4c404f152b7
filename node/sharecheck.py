"""A settled receipt's shares, checked as far as this node can: by its index, or by rows of others.

Why three depths: with sketch and index all is recomputed; with the sketch alone some rows of other
nodes prove what was paid; without it only that the statement pays what was settled. A payer has
the sketch of its own answers, whoever serves the model has them of its own, a validator is shown
them. Why what is found false goes on at once: its money waits for a day.
What this file does not know: HTTP, how a proof is sent.
"""

import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import trio

from consensus.primitives.errors import Invalid
from node.attribution.attribute import Version
from node.attribution.audit import Claim, find_fraud, recheck
from node.attribution.index import Index
from node.ledger import tables
from node.ledger.rules import refuting
from node.ledger.rules.disputes import release_of
from node.ledger.rules.refuting import Release
from node.ledger.rules.reversals import Answer
from node.ledger.wire.bundles import decode_header
from node.ledger.wire.claims import decode_statement
from node.ledger.wire.openings import NormOpened, Opened, RawRows
from node.ledger.wire.receipts import credited, decode_credits, decode_receipt
from node.lightshares import AskRows, CheckedShares, Lie, check_shares
from node.peering.audits import Audits, StatedClaim
from node.storage.views import FoundReceipt, View
from node.web import answers
from p2p.errors import NetworkError
from p2p.network import PeerId

PEERS_MAX: Final = 8  # asked for rows, one after the other
CHECK_EVERY_S: Final = 10.0  # of answers bought here; each takes some 40 KB of a peer
CHECKED_MAX: Final = 64  # of the newest that were bought
TRIES: Final = 12  # of one answer, the last after 17 hours: its money waits for a day
AGAIN_S: Final = 30.0  # after the first in vain, then twice as long each time
NOTHING: Final = CheckedShares()
TRUE, FALSE, UNKNOWN = "true", "false", "unknown"

FindIndex = Callable[[int, int], tuple[Index, Version] | None]
RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread
NoteProof = Callable[[bytes, int, int, Opened], Awaitable[None]]  # bundle, place, kind, opening


class _Tried(NamedTuple):
    """How often an answer was looked at in vain, and when it is again, by trio's clock."""

    count: int  # type: ignore[assignment]  # hides tuple.count
    again_s: float


class ShareChecker:
    """`find_claim`: what this node knows of a receipt by itself, as its payer or its provider.

    `note_proof` gets what shows a lie to every validator, `note_inflated` a row that no honest
    builder of an index makes.
    """

    def __init__(
        self,
        *,
        chain_id: bytes,
        take_view: Callable[[], View],
        find_claim: Callable[[bytes], StatedClaim | None],
        find_index: FindIndex,
        audits: Audits,
        find_sources: Callable[[], Sequence[PeerId]],
        note_proof: NoteProof,
        note_inflated: Callable[[tuple[int, int], NormOpened], None] = lambda which, opened: None,
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        self._chain_id, self._take_view = chain_id, take_view
        self._find_claim, self._find_index = find_claim, find_index
        self._audits = audits
        self._find_sources, self._note_proof = find_sources, note_proof
        self._note_inflated = note_inflated
        self._run_blocking = run_blocking
        self.counters: Counter[str] = Counter()

    async def run(self, find_bought: Callable[[], Sequence[bytes]]) -> None:
        """Check answers that this node bought once they have settled, one at a time, for ever: its
        fee comes back where one is a lie, as long as the money waits."""
        tried: dict[bytes, _Tried] = {}
        while True:
            await trio.sleep(CHECK_EVERY_S)
            bought = find_bought()[-CHECKED_MAX:]
            tried = {receipt: tried.get(receipt, _Tried(0, -math.inf)) for receipt in bought}
            for receipt, (count, again_s) in tried.items():
                if count < TRIES and again_s <= trio.current_time():
                    now = await self._check_own(receipt, count)
                    if now is not None:
                        tried[receipt] = now
                        break

    async def _check_own(self, receipt: bytes, count: int) -> _Tried | None:
        """When to look again, after `count` tries in vain; None where it has not settled yet.

        A provider that is away, or the only one to have the rows, may come back."""
        try:
            told = await self.check(receipt)
        except Invalid as refusal:
            self.counters[refusal.code] += 1
            return _Tried(count + 1, trio.current_time() + AGAIN_S * 2.0**count)
        if told is None:
            return None
        self.counters[told.verdict] += 1
        return _Tried(TRIES, math.inf)

    async def check(self, receipt_id: bytes) -> answers.ShareCheck | None:
        """What holds of a settled receipt's shares; None for one that is not settled.

        Raises Invalid `shares.no_statement` where nobody gives a claim that the receipt binds,
        `shares.no_rows` where nobody opens rows of the version's index.
        """
        view = self._take_view()
        found = await self._run_blocking(view.find_receipt, receipt_id)
        if found is None:
            return None
        receipt = decode_receipt(found.receipt)
        answer = Answer(receipt, decode_credits(found.credits))
        which = (receipt.model, receipt.model_version)
        release = release_of(view.state(), self._chain_id, which)
        claim = await self._claim(view, found, receipt_id, answer)
        if receipt.sketch_hash != refuting.NO_CLAIM and not claim.sketch:
            # Nothing binds a statement alone: it may be another one than was committed to.
            return self._told(view, receipt_id, answer, UNKNOWN, "claim.hidden")
        try:
            held = await self._check_here(answer, claim)
            if held is None:
                provider = await self._provider(view, found)
                first = () if provider is None else (provider,)
                held = await self._check_there(release, answer, claim, first)
        except Lie as lie:
            if isinstance(lie.opened, NormOpened):  # of the index, not of this receipt
                self._note_inflated(which, lie.opened)
            else:
                await self._note_proof(found.bundle_hash, found.index, lie.kind, lie.opened)
            return self._told(view, receipt_id, answer, FALSE, lie.word)
        return self._told(view, receipt_id, answer, TRUE, "", held)

    async def _claim(
        self, view: View, found: FoundReceipt, receipt_id: bytes, answer: Answer
    ) -> StatedClaim:
        """Our own knowledge, or what the provider gives; raises Invalid `shares.no_statement`."""
        nothing = StatedClaim(b"", b"")
        if answer.receipt.sketch_hash == refuting.NO_CLAIM:
            return nothing
        own = self._find_claim(receipt_id)
        if own is not None:
            return own
        peer = await self._provider(view, found)
        if peer is None:
            raise Invalid("shares.no_statement", why="its provider is not known")
        try:
            told = await self._audits.claims_from(peer, found.bundle_hash, [found.index])
        except (NetworkError, Invalid) as error:
            raise Invalid("shares.no_statement", why=str(error)[:200]) from error
        return told[found.index]

    async def _provider(self, view: View, found: FoundReceipt) -> PeerId | None:
        """The peer of who gave the answer: it has the index, or could not have served."""
        bundle = await self._run_blocking(view.find_bundle, found.bundle_hash)
        if bundle is None:
            return None
        name = decode_header(bundle.bundle.header).provider
        provider = view.state().find(tables.PROVIDER, name)
        return None if provider is None else PeerId(provider.peer_key)

    async def _check_here(self, answer: Answer, claim: StatedClaim) -> CheckedShares | None:
        """All of it by the index that is here, None without; raises Lie, or Invalid
        `shares.no_statement` for a claim that the receipt does not bind."""
        found = self._find_index(answer.receipt.model, answer.receipt.model_version)
        if found is None:
            return None
        told = Claim(answer.receipt.sketch_hash, answer.credits, claim.sketch, claim.statement)
        finding = await self._run_blocking(recheck, *found, told)
        if finding is not None:
            fraud = await self._run_blocking(find_fraud, *found, told)
            if fraud is None:
                raise Invalid("shares.no_statement", why=finding.code)
            raise Lie(finding.code, *fraud)
        rows = found[0].header.rows
        stated = decode_statement(claim.statement) if claim.statement else None
        return CheckedShares(rows, 0 if stated is None else len(stated.paid), 0, rows)

    async def _check_there(
        self, release: Release, answer: Answer, claim: StatedClaim, first: Sequence[PeerId]
    ) -> CheckedShares:
        """By rows of the first peer that opens them, whoever it is: the root proves each.

        Raises Lie or Invalid.
        """
        told, why = refuting.Claim(claim.sketch, claim.statement), "no peer has them"
        peers = dict.fromkeys((*first, *self._find_sources()))
        asks: list[AskRows] = [
            partial(self._audits.ask_rows, peer, release.index_root)
            for peer in list(peers)[:PEERS_MAX]
        ]
        for ask in asks or [_ask_nobody]:  # where nothing is claimed, none is needed
            try:
                return await check_shares(release, answer, told, ask, _pick)
            except (NetworkError, Invalid) as error:
                if isinstance(error, Invalid) and error.code == "opening.claim":
                    raise Invalid("shares.no_statement", why=error.code) from None
                why = str(error)[:200]
        raise Invalid("shares.no_rows", why=why)

    def _told(
        self,
        view: View,
        receipt_id: bytes,
        answer: Answer,
        verdict: str,
        why: str,
        held: CheckedShares = NOTHING,
    ) -> answers.ShareCheck:
        receipt = answer.receipt
        name = view.state().get(tables.MODEL, receipt.model).name.decode("ascii")
        return answers.ShareCheck(
            receipt=receipt_id,
            model=name,
            version=receipt.model_version,
            credits=len(credited(answer.credits)),
            verdict=verdict,
            why=why,
            index_rows=held.index_rows,
            paid_rows=held.paid,
            panel_rows=held.panel,
            drawn_rows=held.drawn,
        )


def _pick(rows: Sequence[int], count: int) -> Sequence[int]:
    """By chance that no provider can foresee."""
    return random.SystemRandom().sample(rows, min(count, len(rows)))


async def _ask_nobody(rows: Sequence[int]) -> RawRows:
    raise Invalid("shares.no_rows", why="no peer is connected")
