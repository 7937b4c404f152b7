"""A small chain whose model has a real index, a provider that lies about credits, and who shows it.

`Court` settles answers whose claim is honest or twisted by one of `LIES`, and brings fraud proofs
that the product's own `find_fraud` makes of the index.
"""

from collections.abc import Callable
from pathlib import Path

from attribution_kit import mix_rows, sound_rows, write_index
from bundle_kit import Party
from chain_kit import CREATOR, TinyChain

from node.attribution.attribute import NO_SKETCH, Version, attribute
from node.attribution.audit import Claim, find_fraud
from node.attribution.index import Index
from node.ledger import tables
from node.ledger.execute import Outcome
from node.ledger.rules import shares
from node.ledger.wire import claims
from node.ledger.wire import transactions as wire
from node.ledger.wire.bundles import Bundle
from node.ledger.wire.claims import Statement
from node.ledger.wire.openings import Opened, encode_opening, open_receipt

ROWS = 200
FEE = 27_309_200
OWNERS = [1 + 3 * row // ROWS for row in range(ROWS)]  # of the story's three contributions
Lie = Callable[[Statement], Statement]


def lower_floors(statement: Statement) -> Statement:
    """A lower threshold, so that noise is paid."""
    return statement._replace(floors=tuple(floor // 2 for floor in statement.floors))


def raise_score(statement: Statement) -> Statement:
    """One share is larger than it should be."""
    first, *rest = statement.paid
    return statement._replace(paid=((first[0], first[1], first[2] + 50_000), *rest))


def leave_out(statement: Statement) -> Statement:
    """A row that should be paid is not."""
    return statement._replace(paid=statement.paid[1:])


def pay_a_friend(statement: Statement) -> Statement:
    """The row is another's."""
    first, *rest = statement.paid
    friend = first[1] % 3 + 1
    return statement._replace(paid=((first[0], friend, first[2]), *rest))


def invent_a_row(statement: Statement) -> Statement:
    """A row is paid that the answer does not point at."""
    numbers = {row for row, _, _ in statement.paid}
    row = next(row for row in range(77, ROWS) if row not in numbers)
    paid = (*statement.paid, (row, OWNERS[row], 400_000))
    return statement._replace(paid=tuple(sorted(paid)))


LIES: dict[str, Lie] = {
    lie.__name__: lie for lie in (lower_floors, raise_score, leave_out, pay_a_friend, invent_a_row)
}


class Court:
    """One provider, one channel; answers settle a bundle each."""

    def __init__(self, folder: Path, chain: TinyChain | None = None) -> None:
        self.index = Index.open(*write_index(folder, sound_rows(ROWS), OWNERS))
        self.chain = chain or TinyChain()
        self.chain.tell_story(index_root=self.index.root)
        published_ms = self.chain.state().get(tables.VERSION, 1, 1).published_ms
        self.version = Version(self.chain.chain_id, 1, 1, published_ms)
        self.session = self.chain.open_channel()
        self.bundles = 0

    def sketch(self, number: int = 0) -> bytes:
        """Of an answer that points at two rows."""
        one, other = self.index.rows[9 + number], self.index.rows[150 - number]
        return mix_rows([(1.0, one), (0.6, other)], seed=9 + number)

    def claim(self, lie: Lie | None = None, number: int = 0, sketch: bytes | None = None) -> Claim:
        """Consistent in itself; honest, or what `lie` makes of it."""
        sketch = self.sketch(number) if sketch is None else sketch
        statement = attribute(self.index, self.sketch(number), self.version).statement
        statement = lie(statement) if lie else statement
        raw = claims.encode_statement(statement)
        credits = shares.credits_of(statement, ROWS)
        return Claim(claims.sketch_hash(sketch, raw), credits, sketch, raw)

    def answer(self, claim: Claim, **fields: object) -> None:
        """One more answer of the next bundle."""
        made = {
            "model": 1, "model_version": 1, "tokens_in": 812, "tokens_out": 143, "fee": FEE,
            "sketch_hash": claim.sketch_hash,
        } | fields  # fmt: skip
        self.session.serve(claim.credits, **made)

    def settle(self, *given: Claim, later_ms: int = 1_000) -> Bundle:
        """A block with one bundle of these answers."""
        for claim in given:
            self.answer(claim)
        self.bundles += 1
        bundle = self.chain.bundle(self.session, self.bundles)
        self.chain.block(bundles=(bundle,), later_ms=later_ms)
        return bundle

    def opening(self, claim: Claim) -> tuple[int, Opened]:
        """What refutes it."""
        found = find_fraud(self.index, self.version, claim)
        assert found is not None
        return found

    def proof(self, bundle: Bundle, claim: Claim, place: int = 0) -> wire.FraudProof:
        """Of one receipt."""
        kind, opened = self.opening(claim)
        return proof_of(kind, bundle, place, opened)

    def accuse(
        self, payload: wire.FraudProof, who: Party = CREATOR, later_ms: int = 1_000
    ) -> Outcome:
        """A block with the proof."""
        return self.chain.block(self.chain.tx(who, payload), later_ms=later_ms)

    def code(self, payload: wire.FraudProof, later_ms: int = 1_000) -> int:
        """What a block with the proof would say; nothing is kept."""
        outcome = self.chain.execute(self.chain.tx(CREATOR, payload), later_ms=later_ms)
        return outcome.codes[0]


def proof_of(kind: int, bundle: Bundle, place: int, opened: Opened) -> wire.FraudProof:
    """With the subject that the bundle gives."""
    subject = open_receipt(bundle, place)
    return wire.FraudProof(kind, encode_opening(subject), encode_opening(opened))


UNBOUND = Claim(NO_SKETCH, ((1, 10_000),), b"", b"")
