"""Why an answer paid whom, record by record: what its provider stated, held against the ledger.

The ledger knows contributions and shares; which record earned them stands in the provider's
statement, which it gives to anyone. It is believed only where the shares that follow from it are
the settled ones and its rows are rows of the committed index.
What this file does not know: HTTP, how a statement was made.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import trio

from consensus.primitives.errors import Invalid
from node.attribution.attribute import Explanation, Place, credits_of, explain
from node.attribution.datanets import Record, parse_records
from node.attribution.index import Index
from node.holdings import Holdings
from node.ledger import tables
from node.ledger.rules import shares
from node.ledger.rules.refuting import NO_CLAIM
from node.ledger.state import State
from node.ledger.wire import claims
from node.ledger.wire.bundles import decode_header
from node.ledger.wire.claims import Statement, decode_statement
from node.ledger.wire.receipts import BPS, credited, decode_credits, decode_receipt
from node.peering.blobstore import CONTENT
from node.storage.views import FoundReceipt, View
from node.web import answers
from p2p.errors import NetworkError

FETCH_S: Final = 5.0  # for the texts of all records; without them the shares are told all the same

AskStatement = Callable[[bytes, bytes, int], Awaitable[bytes]]  # provider, bundle, place in it


class Reasons:
    """Explains settled receipts of the versions whose index this node holds."""

    def __init__(
        self,
        *,
        take_view: Callable[[], View],
        holdings: Holdings,
        find_own: Callable[[bytes], bytes | None],  # the statement of a receipt of ours, by id
        ask_statement: AskStatement,
    ) -> None:
        self._take_view, self._holdings = take_view, holdings
        self._find_own, self._ask_statement = find_own, ask_statement

    async def find_shares(self, receipt_id: bytes) -> answers.Shares | None:
        """The records that a settled receipt paid; None for a receipt that is not settled.

        Raises Invalid `shares.no_index` where this node does not hold the version's index,
        `shares.no_statement` where its provider does not give one that fits the ledger.
        """
        view = self._take_view()
        found = view.find_receipt(receipt_id)
        if found is None:
            return None
        receipt, state = decode_receipt(found.receipt), view.state()
        held = self._holdings.find_index(receipt.model, receipt.model_version)
        if held is None:
            raise Invalid("shares.no_index", model=receipt.model, version=receipt.model_version)
        model = state.get(tables.MODEL, receipt.model).name.decode("ascii")
        why: Explanation | None = None
        statement = await self._statement_if_any(view, found, receipt_id, held.index)
        if statement is not None:
            earning = {number for number, _ in credited(decode_credits(found.credits))}
            earning |= {number for _, number, _ in statement.paid}
            why = explain(statement, held.index, await self._texts(state, earning))
        records = () if why is None else _paid_records(state, why)
        return answers.Shares(
            receipt=receipt_id,
            model=model,
            version=receipt.model_version,
            index_rows=held.index.header.rows,
            floor=None if why is None else why.floor,
            threshold=None if why is None else why.tau // shares.SCALE,
            records=records,
            fund_share_bps=BPS - sum(record.share_bps for record in records),
        )

    async def _statement_if_any(
        self, view: View, found: FoundReceipt, receipt_id: bytes, index: Index
    ) -> Statement | None:
        """What the provider stated; None where it stated nothing, or pays nobody and is away: why
        nobody is paid is asked as well, but needs no proof."""
        if decode_credits(found.credits):
            return await self._statement(view, found, receipt_id, index)
        if decode_receipt(found.receipt).sketch_hash == NO_CLAIM:
            return None
        try:
            return await self._statement(view, found, receipt_id, index)
        except Invalid:  # `shares.no_statement`
            return None

    async def _statement(
        self, view: View, found: FoundReceipt, receipt_id: bytes, index: Index
    ) -> Statement:
        """What the provider stated, if it is what the ledger settled."""
        raw = self._find_own(receipt_id)
        bundle = view.find_bundle(found.bundle_hash)
        try:
            if raw is None and bundle is not None:
                provider = decode_header(bundle.bundle.header).provider
                raw = await self._ask_statement(provider, found.bundle_hash, found.index)
            statement = decode_statement(raw or b"")
            shares.check_statement(statement, index.header, index.root)
        except (NetworkError, Invalid) as error:
            raise Invalid("shares.no_statement", why=str(error)[:200]) from error
        rows = [(row, number) for row, number, _ in statement.paid]
        if any(index.contribution_of(row) != number for row, number in rows):
            raise Invalid("shares.no_statement", why="it names rows of others")
        if credits_of(index, statement) != decode_credits(found.credits):
            raise Invalid("shares.no_statement", why="it pays otherwise than the ledger")
        return statement

    async def _texts(self, state: State, contributions: Iterable[int]) -> dict[Place, Record]:
        """The records of contributions, as far as they are here or come soon enough."""
        texts: dict[Place, Record] = {}
        with trio.move_on_after(FETCH_S):
            for number in sorted(contributions):
                about = state.find(tables.CONTRIBUTION, number)
                if about is None:  # an index may name anything where nothing is paid
                    continue
                content, size = about.content_hash, about.size_bytes
                try:
                    folder = await self._holdings.fetch(CONTENT, content, size)
                    raw = await trio.Path(folder / "content").read_bytes()
                    records = await trio.to_thread.run_sync(parse_records, raw)
                except (NetworkError, Invalid, OSError):
                    continue  # the shares are told without the words
                texts.update({(number, place): record for place, record in enumerate(records)})
        return texts


def _paid_records(state: State, why: Explanation) -> tuple[answers.PaidRecord, ...]:
    told = []
    for row in why.rows:
        contribution = state.find(tables.CONTRIBUTION, row.contribution)
        if contribution is None:  # an index may name anything where nothing is paid
            continue
        datanet = state.get(tables.DATANET, contribution.datanet)
        told.append(
            answers.PaidRecord(
                contribution=row.contribution,
                contributor=contribution.contributor,
                datanet=datanet.name.decode("ascii"),
                position=row.position,
                share_bps=row.bps,
                gradient_bps=row.parts[claims.GRADIENT],
                span_bps=row.parts[claims.SPAN],
                citation_bps=row.parts[claims.RETRIEVAL],
                score_bps=row.score_bps,
                text=row.snippet,
            )
        )
    return tuple(told)
