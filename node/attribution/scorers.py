"""The scorers that a mix may name: each finds its part of a statement, and refutes a false one.

Why one interface: a model declares in its index's header which scorers share the data part, and
by how much; the rest of the node asks the mix and knows none of them. All are exact: what they
state is repeated to the bit by whoever has index, sketch and answer. Comparison methods that are
not (DataInf, TRAK, text search) live in the bench and cannot be named.
Who holds the index alone cannot say what an answer contains, but can say whether what is stated
of the records is true: design page 60 §9.
What this file does not know: credits, money, how a sketch was made.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np

from node.attribution.index import Index
from node.attribution.score import Scores
from node.attribution.spans import find_spans, hold_of
from node.ledger.rules import shares
from node.ledger.wire import claims
from node.ledger.wire.claims import Statement

BETWEEN_ANSWERS: Final = -2  # no token: no span reaches from one choice into the next


class Answer(NamedTuple):
    """What was asked and said. `cited`: ((row, words), …) of retrieval.find_citations."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    cited: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> "Answer":
        """All choices of one answer, one behind the other."""
        tokens: list[int] = []
        for ids in answers:
            tokens += [*ids, BETWEEN_ANSWERS]
        return cls(tuple(prompt), tuple(tokens[:-1]))


class Asked(NamedTuple):
    """One answer as the scorers see it. Without `answer` only the gradient part can be found."""

    scores: Scores  # of its sketch, by row
    seed: bytes  # of the panel
    answer: Answer | None


class Scorer(Protocol):
    """One way to tell which rows shaped an answer."""

    name: str

    def add(self, index: Index, asked: Asked, statement: Statement) -> Statement:
        """`statement` with this scorer's entries."""
        ...

    def refute(self, index: Index, statement: Statement) -> str | None:
        """Why what is stated of the records is not true, as far as the index alone shows it."""
        ...


class Gradient:
    """LoRA-EK: the rows whose gradients point where the answer's does."""

    name = "gradient"

    def add(self, index: Index, asked: Asked, statement: Statement) -> Statement:
        """Floors of the panel, and the rows above the threshold."""
        n = index.header.rows
        scores = asked.scores
        seats = shares.draw_panel(asked.seed, n)
        floors = tuple(np.abs(scores[list(seats)]).tolist())
        tau = shares.threshold(floors, n)
        above = np.flatnonzero(scores > tau // shares.SCALE)
        candidates = ((row, int(scores[row])) for row in above.tolist())
        paid = shares.choose_paid(candidates, tau, shares.paid_cap(index.header.mix))
        listed = tuple((row, index.contribution_of(row), s) for row, s in paid)
        return statement._replace(floors=floors, paid=listed)

    def refute(self, index: Index, statement: Statement) -> str | None:
        """Needs the sketch: audit.recheck compares all of it."""
        return None


class Verbatim:
    """Stretches of the answer that stand word for word in records, and not in the prompt."""

    name = "span"

    def add(self, index: Index, asked: Asked, statement: Statement) -> Statement:
        """The spans of the answer."""
        if asked.answer is None or index.spans is None:
            return statement
        answer, least = asked.answer, index.header.min_span
        return statement._replace(
            spans=find_spans(index.spans, answer.prompt, answer.tokens, least)
        )

    def refute(self, index: Index, statement: Statement) -> str | None:
        """A stretch must lie within its records, and be held by them and no others."""
        assert index.spans is not None
        for number, span in enumerate(statement.spans):
            row, place = span.holders[0]
            if hold_of(index.spans, row, place, span.length) != span.holders:
                return f"span {number} is not held so"
        return None


class Citation:
    """Records that were put before the prompt and that the answer names."""

    name = "retrieval"

    def add(self, index: Index, asked: Asked, statement: Statement) -> Statement:
        """The words of the sentences that cite each record."""
        return (
            statement if asked.answer is None else statement._replace(retrieved=asked.answer.cited)
        )

    def refute(self, index: Index, statement: Statement) -> str | None:
        """Needs prompt and answer: any holder of the records repeats the list."""
        return None


SCORERS: Final[dict[int, Scorer]] = {
    claims.GRADIENT: Gradient(),
    claims.SPAN: Verbatim(),
    claims.RETRIEVAL: Citation(),
}
