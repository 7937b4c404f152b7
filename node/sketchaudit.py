"""Sketch audits: an answer's sketch made again from its texts, and compared with the committed one.

Why by a node that serves the version: a sketch takes base, both checkpoints, the index's basis and
an engine, and who serves has them all. Why the texts come from outside: the ledger has hashes only,
so the payer, or the provider, shows them to whom it wants looked.
What this file does not know: HTTP, how a sketch is made, what a finding costs.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import trio

from consensus.primitives.errors import Invalid
from node.attribution.attribute import credits_of
from node.attribution.index import Index
from node.attribution.tolerance import (
    TOLERANCES,
    Verdict,
    cosine_ppm,
    halves,
    judge_sketch,
    moved_bps,
)
from node.holdings import HeldModel
from node.ledger.amounts import BPS
from node.ledger.rules import shares
from node.ledger.rules.refuting import NO_CLAIM
from node.ledger.wire.claims import ROW_BYTES, Statement, decode_statement
from node.ledger.wire.orders import PRIVATE
from node.ledger.wire.receipts import COMPLETE, Receipt, decode_credits, decode_receipt
from node.serving.attributing import Attributed
from node.serving.manifest import DTYPES
from node.storage.views import View
from node.wallet.disclosure import Disclosure, check_disclosure
from node.web import answers

NO_SKETCH_WORD: Final = "no_sketch"  # of a receipt that states none where there is one

NOTHING_ALIKE: Final = (0, 0, BPS, 0)  # cosines, shares moved, swing: nothing was compared

NO_ENGINE_MEND: Final = 'a node with roles = ["provider"] that holds the model'

Attribute = Callable[
    [int, int, Sequence[int], Sequence[Sequence[int]], int], Awaitable[Attributed]
]  # model, version, prompt, answers: token ids; the order's max_out
RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread


class SketchAuditor:
    """`attribute` makes a sketch as for an answer of this node, and raises Invalid while its engine
    is away; None: it has none. `find_held` is what is here of a (model, version)."""

    def __init__(
        self,
        *,
        take_view: Callable[[], View],
        attribute: Attribute | None,
        find_held: Callable[[int, int], HeldModel | None],
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        self._take_view, self._attribute = take_view, attribute
        self._find_held, self._run_blocking = find_held, run_blocking

    async def audit(self, receipt_id: bytes, told: Disclosure) -> answers.SketchAudit | None:
        """What the texts say of a settled receipt's sketch; None for one that is not settled.

        Raises Invalid `disclosure.…` where they are not the receipt's, `audit.private` for an
        order without attribution, `audit.no_index` where the version's is not here,
        `audit.not_ready` where no sketch could be made now, `audit.no_engine` without one.
        """
        if self._attribute is None:
            raise Invalid("audit.no_engine", mend=NO_ENGINE_MEND)
        view = self._take_view()
        found = await self._run_blocking(view.find_receipt, receipt_id)
        if found is None:
            return None
        receipt = decode_receipt(found.receipt)
        order = check_disclosure(told, receipt)
        if order.flags & PRIVATE:
            raise Invalid("audit.private", why="its order wanted no attribution")
        held = self._find_held(receipt.model, receipt.model_version)
        if held is None or held.index is None:
            raise Invalid("audit.no_index", model=receipt.model, version=receipt.model_version)
        dtype = DTYPES[held.manifest.gradient_dtype]
        is_claimed = receipt.sketch_hash != NO_CLAIM
        if is_claimed and len(told.sketch) != ROW_BYTES:  # a hash is of whatever was signed
            return _told(receipt_id, held, Verdict.FAIL, "sketch", NOTHING_ALIKE, dtype)
        own = await self._attribute(
            receipt.model, receipt.model_version, told.prompt, told.answers, order.max_out
        )
        if not own.sketch and (is_claimed or own.is_passing):
            raise Invalid("audit.not_ready", why="the engine made no sketch; ask again")
        if not is_claimed:
            return _unclaimed(receipt_id, held, receipt, own, dtype)
        index = held.index.index
        try:
            mine, stated = (_statement_of(index, made) for made in (own, told))
        except Invalid:  # what a receipt binds may be anything
            return _told(receipt_id, held, Verdict.FAIL, "sketch", NOTHING_ALIKE, dtype)
        if credits_of(index, stated) != decode_credits(found.credits):
            return _told(receipt_id, held, Verdict.FAIL, "credits", NOTHING_ALIKE, dtype)
        moved, swing = _differ(index, mine, stated)
        pairs = zip(halves(own.sketch), halves(told.sketch), strict=True)
        early, middle = (cosine_ppm(*pair) for pair in pairs)
        verdict = judge_sketch(own.sketch, told.sketch, moved, swing, dtype)
        why = "" if verdict is Verdict.PASS else "sketch"
        return _told(receipt_id, held, verdict, why, (early, middle, moved, swing), dtype)


def _statement_of(index: Index, made: Attributed | Disclosure) -> Statement:
    """Raises Invalid for what is no statement of this index."""
    statement = decode_statement(made.statement)
    shares.check_statement(statement, index.header, index.root)
    return statement


def _differ(index: Index, one: Statement, other: Statement) -> tuple[int, int]:
    """Basis points that would go to somebody else, were as much paid by both as by who pays more;
    and by how many more of the gradient's part it does.

    Apart, as how much is paid swings by hundreds between two honest machines where the highest
    score lies near the threshold, and so does who would share what is not paid.
    """
    levels = [shares.standing_bps(each, index.header.rows) for each in (one, other)]
    moved = moved_bps(*(credits_of(index, each, max(levels)) for each in (one, other)))
    return moved, abs(levels[0] - levels[1])


def _unclaimed(
    receipt_id: bytes, held: HeldModel, receipt: Receipt, own: Attributed, dtype: str
) -> answers.SketchAudit:
    """A receipt without a sketch is right where none can be made, and where the worker was lost
    midway, which leaves the answer partial (page 60 §5)."""
    if not own.sketch:
        return _told(receipt_id, held, Verdict.PASS, "", (0, 0, 0, 0), dtype)
    verdict = Verdict.FAIL if receipt.status == COMPLETE else Verdict.SUSPECT
    moved = moved_bps(own.credits, ())
    return _told(receipt_id, held, verdict, NO_SKETCH_WORD, (0, 0, moved, 0), dtype)


def _told(
    receipt_id: bytes,
    held: HeldModel,
    verdict: Verdict,
    why: str,
    measured: tuple[int, int, int, int],
    dtype: str,
) -> answers.SketchAudit:
    tolerance = TOLERANCES[dtype]
    return answers.SketchAudit(
        receipt_id, held.name, held.version, verdict.name.lower(), why, *measured,
        dtype, tolerance.mille * 1_000, tolerance.moved_bps, tolerance.swing_bps,
    )  # fmt: skip
