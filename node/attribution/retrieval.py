"""Retrieval citations: which records are put before a prompt, and which of them an answer cites.

The list is integer BM25 over the canonical records, so a provider cannot choose whom to
retrieve: any holder of the records recomputes it. A citation proves that a record was offered
and that the answer names it, not that it shaped the answer (design page 60 §8).
Why words and not tokens are counted: every holder of the text counts them alike, without the
base's tokenizer.
What this file does not know: models, credits, how records are fetched.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from node.attribution.clusters import normalise
from node.ledger.rules.shares import apportion
from node.ledger.wire.claims import RETRIEVED_MAX

TIMES_MAX: Final = 3  # of one word in a record: saying it more often is worth no more
RARITY_SCALE: Final = 16

# No space before the first: a long stretch of it would be looked through from each of its places.
_MARKERS: Final = re.compile(r"\[[1-9]\](?:\s*\[[1-9]\])*")
_MARKER: Final = re.compile(r"\[([1-9])\]")
_SENTENCE_END: Final = re.compile(r"[.!?](?=\s)|\n")


class Library:
    """The canonical records' words, by row."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._postings: dict[str, list[tuple[int, int]]] = {}
        self._rows = 0
        for row, text in enumerate(texts):
            for word, times in Counter(normalise(text)).items():
                self._postings.setdefault(word, []).append((row, min(times, TIMES_MAX)))
            self._rows = row + 1

    def retrieve(self, prompt: str) -> tuple[int, ...]:
        """At most 4 rows, the best first (ties: the lower row); none that shares no rare word.

        Score: Σ over the prompt's distinct words of min(times, 3) × 16·bit_length(N // df),
        where a word that more than half of the records hold counts nothing.
        """
        scores: Counter[int] = Counter()
        for word in set(normalise(prompt)):
            holders = self._postings.get(word, [])
            rarity = RARITY_SCALE * (self._rows // max(1, len(holders))).bit_length()
            if rarity > RARITY_SCALE:
                for row, times in holders:
                    scores[row] += times * rarity
        ranked = sorted(scores, key=lambda row: (-scores[row], row))
        return tuple(ranked[:RETRIEVED_MAX])


def find_citations(answer: str, retrieved: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """((row, words), …) by row: each sentence's words, split over the rows it is marked with.

    A sentence ends before its markers `[1]` to `[4]`, which stand inside or behind its full
    stop. Markers of what was not retrieved count nothing; nor does a sentence without words.
    """
    words: Counter[int] = Counter()
    start = 0
    for marks in _MARKERS.finditer(answer):
        sentence = _last_sentence(answer[start : marks.start()])
        start = marks.end()
        numbers = {int(number) for number in _MARKER.findall(marks.group())}
        rows = sorted(retrieved[number - 1] for number in numbers if number <= len(retrieved))
        total = len(normalise(sentence))
        for row, part in apportion([(row, 1) for row in rows], total):
            words[row] += part
    return tuple(sorted((row, count) for row, count in words.items() if count))


def _last_sentence(text: str) -> str:
    """What stands before the markers, back to the end of the sentence before it."""
    body = text.rstrip()
    inner = body.rstrip(".!?")  # its own full stop may stand before the markers
    ends = [match.end() for match in _SENTENCE_END.finditer(inner)]
    return inner[ends[-1] :] if ends else inner
