"""The protocol `audit`: what providers state for receipts, and rows of indices, asked and told.

Why statements go to anybody and sketches to few: a statement follows from public rows, a sketch may
tell of a prompt (page 60 §5). Why rows are opened for anybody: they are public, and whoever checks
shares needs some of them, never the index.
What this file does not know: whether what is stated is true.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

import trio

from consensus.primitives.encoding import (
    U8,
    U16,
    U32,
    Bytes,
    Either,
    H,
    ListOf,
    Record,
    decode,
    encode,
)
from consensus.primitives.errors import Invalid
from node.ledger import tables
from node.ledger.rules.refuting import open_row
from node.ledger.state import State
from node.ledger.wire.bundles import Bundle, check_bytes
from node.ledger.wire.claims import HEADER_BYTES_MAX, LEAF_BYTES
from node.ledger.wire.exchange import SKETCH_BYTES, STATEMENT_BYTES_MAX
from node.ledger.wire.openings import PATH_MAX, RawRows
from node.ledger.wire.receipts import Receipt, decode_receipt, receipt_id
from p2p.errors import Code, Misbehaving, NetworkError, Refused
from p2p.limits import PENALTIES, PROTOCOLS
from p2p.network import Network, PeerId

CLAIMS_MAX: Final = 64  # receipts in one request
ROWS_MAX: Final = 256  # rows in one request
TRIES: Final = 3
WAIT_S: Final = 1.0
BUSY_TRIES: Final = 4  # of one question, for a peer that says when it answers again
BUSY_S_MAX: Final = 2.0  # and is waited for so long each time
ONE, ROWS, SOME = 1, 2, 4  # kinds of questions

RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread

_ONE: Final = Record(U8, H, U16)
_ROWS: Final = Record(U8, H, ListOf(U32, ROWS_MAX, 1))
_SOME: Final = Record(U8, H, U16, U16)
_CLAIM: Final = Record(Bytes(STATEMENT_BYTES_MAX), Either(0, SKETCH_BYTES))
_CLAIMS: Final = ListOf(_CLAIM, CLAIMS_MAX)
_OPENED: Final = Record(
    Bytes(HEADER_BYTES_MAX),
    ListOf(Record(Bytes(LEAF_BYTES, LEAF_BYTES), ListOf(H, PATH_MAX)), ROWS_MAX),
)


class StatedClaim(NamedTuple):
    """What a provider states for one receipt; empty where it has no sketch."""

    statement: bytes
    sketch: bytes


FindStated = Callable[[bytes], StatedClaim | None]  # of our own receipts, by id
OpenRows = Callable[[bytes, Sequence[int]], RawRows | None]  # of an index held here, by its root


class Audits:
    """Asks and answers. `find_stated`: what we stated ourselves, None where we are no provider.

    `find_bundle`: of the bodies held here. `may_see_sketch`: whether a peer is a current
    validator's. `open_rows` blocks; it raises IndexError for a row that the index does not have.
    """

    def __init__(
        self,
        *,
        network: Network,
        get_state: Callable[[], State],
        find_bundle: Callable[[bytes], Bundle | None],
        find_stated: FindStated,
        may_see_sketch: Callable[[PeerId, Receipt], bool],
        open_rows: OpenRows,
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        self._network, self._get_state, self._find_bundle = network, get_state, find_bundle
        self._find_stated, self._may_see_sketch = find_stated, may_see_sketch
        self._open_rows, self._run_blocking = open_rows, run_blocking
        self.counters: Counter[str] = Counter()

    def serve(self) -> None:
        """Answer from now on."""
        self._network.serve("audit", self.answer, PROTOCOLS["audit"])

    # --- asking

    async def ask_claims(
        self, provider: bytes, sources: Sequence[PeerId], name: bytes, places: Sequence[int]
    ) -> dict[int, StatedClaim] | None:
        """Statements and sketches of receipts of bundle `name`, from the provider or who gave the
        bundle; None if nobody gives them. Places ascend."""
        record = self._get_state().find(tables.PROVIDER, provider)
        peers = [PeerId(record.peer_key)] if record is not None else []
        peers += [peer for peer in sources if peer not in peers]
        for attempt in range(TRIES):
            if attempt:
                await trio.sleep(WAIT_S * attempt)
            for peer in peers:
                try:
                    return await self.claims_from(peer, name, places)
                except NetworkError:
                    self.counters["audit_failed"] += 1
                except Invalid:
                    self.counters["audit_malformed"] += 1
                    self._network.penalise(peer, PENALTIES["malformed"], "malformed")
        return None

    async def claims_from(
        self, peer: PeerId, name: bytes, places: Sequence[int]
    ) -> dict[int, StatedClaim]:
        """The same from one peer; raises NetworkError or Invalid."""
        found: dict[int, StatedClaim] = {}
        first, end = places[0], places[-1] + 1
        for start in range(first, end, CLAIMS_MAX):
            count = min(CLAIMS_MAX, end - start)
            claims = await self._ask_on(peer, (SOME, name, start, count), _CLAIMS)
            if len(claims) != count:
                raise Invalid("audit.count", count=len(claims))
            for place, (statement, sketch) in enumerate(claims, start=start):
                found[place] = StatedClaim(statement, sketch)
        return found

    async def ask_statement(self, provider: bytes, name: bytes, place: int) -> bytes:
        """What a provider stated for the receipt at `place` of bundle `name`; empty: it had none.

        Anybody may ask while the provider keeps it (page 60 §5). Raises NetworkError or Invalid.
        """
        record = self._get_state().find(tables.PROVIDER, provider)
        if record is None:
            raise Invalid("audit.unknown_provider", provider=provider)
        statement, _ = await self._ask(PeerId(record.peer_key), (ONE, name, place), _CLAIM)
        return bytes(statement)

    async def ask_rows(self, peer: PeerId, root: bytes, rows: Sequence[int]) -> RawRows:
        """Rows of the index of that root, each proven by it; raises NetworkError or Invalid.

        At most `ROWS_MAX`. Other rows than were asked for are Invalid `audit.rows`.
        """
        header, opened = await self._ask(peer, (ROWS, root, tuple(rows)), _OPENED)
        numbers = [open_row(root, header, leaf, path).leaf.number for leaf, path in opened]
        if numbers != list(rows):
            raise Invalid("audit.rows", rows=numbers)
        return RawRows(header, opened)

    async def _ask_on(self, peer: PeerId, question: tuple[Any, ...], shape: Any) -> Any:
        """The same of one of many questions, which are more than its rate allows at once."""
        for _ in range(BUSY_TRIES):
            try:
                return await self._ask(peer, question, shape)
            except Refused as refusal:
                if not refusal.retry_ms:
                    raise
                self.counters["audit_waited"] += 1
                await trio.sleep(min(BUSY_S_MAX, refusal.retry_ms / 1_000))
        return await self._ask(peer, question, shape)

    async def _ask(self, peer: PeerId, question: tuple[Any, ...], shape: Any) -> Any:
        limits = PROTOCOLS["audit"]
        raw = await self._network.request(
            peer,
            "audit",
            encode(question),
            timeout_s=limits.timeout_s,
            bytes_max=limits.reply_max,
        )
        return decode(raw, shape, limits.reply_max, "audit")

    # --- answering

    async def answer(self, peer: PeerId, body: bytes) -> bytes:
        """[1, bundle, index] → [statement, sketch or empty]; [4, bundle, from, count] → many;
        [2, index root, [row…]] → [header, [[leaf, path]…]]."""
        kind = body[1] if len(body) > 1 else None
        if kind == ONE:
            _, name, index = _decoded(body, _ONE)
            (claim,) = await self._run_blocking(self._stated, peer, name, index, 1)
            return encode(claim)
        if kind == SOME:
            _, name, start, count = _decoded(body, _SOME)
            if not 1 <= count <= CLAIMS_MAX:
                raise Misbehaving(f"{count} claims asked for")
            return encode(await self._run_blocking(self._stated, peer, name, start, count))
        if kind == ROWS:
            _, root, rows = _decoded(body, _ROWS)
            return encode(await self._run_blocking(self._opened, root, rows))
        raise Misbehaving("no such question of an audit")

    def _stated(self, peer: PeerId, name: bytes, start: int, count: int) -> list[StatedClaim]:
        bundle = self._find_bundle(name)
        if bundle is None:
            raise Refused(Code.NOT_FOUND)
        _, parts = check_bytes(bundle)
        receipts = [raw for part in parts for raw in part.receipts][start : start + count]
        if len(receipts) != count:
            raise Refused(Code.NOT_FOUND)
        claims = []
        for raw in receipts:
            stated = self._find_stated(receipt_id(raw))
            if stated is None:
                raise Refused(Code.NOT_FOUND)
            sketch = stated.sketch if self._may_see_sketch(peer, decode_receipt(raw)) else b""
            claims.append(StatedClaim(stated.statement, sketch))
        return claims

    def _opened(self, root: bytes, rows: Sequence[int]) -> RawRows:
        try:
            opened = self._open_rows(root, rows)
        except IndexError:
            raise Misbehaving("no such row") from None
        if opened is None:
            raise Refused(Code.NOT_FOUND)
        return opened


def _decoded(body: bytes, shape: Any) -> Any:
    try:
        return decode(body, shape, PROTOCOLS["audit"].request_max, "audit.request")
    except Invalid as refusal:
        raise Misbehaving(str(refusal)) from None
