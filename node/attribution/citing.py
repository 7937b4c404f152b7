"""Records before a prompt: which an answer is shown, and which of them it then cites.

Why it is a function of texts, prompt and lengths alone: a provider has no choice whom to show,
and whoever holds the texts repeats the list and the citations to the bit (design page 60 §8).
Why records lose their special tokens, and say no marker: a record is a stranger's text, and one
that could end the turn, or say `[1]` itself, would speak for the user or cite another.
What this file does not know: models, receipts, how texts are fetched.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from node.attribution.datanets import Record
from node.attribution.retrieval import Library, find_citations
from node.attribution.scorers import Answer

RECORD_TOKENS_MAX: Final = 512  # of each record that is shown, its marker with it
CLEANED_MAX: Final = 8  # times that a record is read for what it must not say; more is malice

_MARKER: Final = re.compile(r"\[([1-9])\]")


class Tokenizer(Protocol):
    """What is asked of a base's tokenizer: node.attribution.tokens.TextTokenizer."""

    bos_token_id: int | None

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that no text should be able to say."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of `ids`."""
        ...


class Retrieved(NamedTuple):
    """The rows that stand before a prompt, `[1]` first, and all that the engine then reads."""

    rows: tuple[int, ...]
    prompt: tuple[int, ...]


class Citing:
    """Retrieval and citations of one index. `records`: its canonical records by row.

    Reads every text once: 4 µs and 90 bytes a word; a prompt of 30 words is looked up in
    4 ms among 20,000 records.
    """

    def __init__(self, records: Sequence[Record], tokenizer: Tokenizer, tokens_max: int) -> None:
        self._records = records
        self._tokenizer = tokenizer
        self._tokens_max = tokens_max  # prompt and answer together: the version's max_model_len
        self.text_bytes = sum(len(record.raw) for record in records)
        self._library = Library(f"{record.prompt}\n{record.completion}" for record in records)

    def retrieve(self, prompt: Sequence[int], max_out: int) -> Retrieved:
        """The best rows for a prompt of the chat template, as many as leave room for the answer.

        They stand behind the start token, where the prompt has one, and before the rest. `max_out`
        is the order's, of all choices: it is what everybody who looks again has.
        """
        room = self._tokens_max - max_out - len(prompt)
        if room <= 0:  # a prompt that no engine takes may be long, and costs its sender nothing
            return Retrieved((), tuple(prompt))
        asked = self._tokenizer.decode(prompt, skip_special_tokens=True)
        rows = self._library.retrieve(asked)
        starts = int(tuple(prompt[:1]) == (self._tokenizer.bos_token_id,))
        head, rest = tuple(prompt[:starts]), tuple(prompt[starts:])
        context: tuple[int, ...] = ()
        shown = 0
        for number, row in enumerate(rows, start=1):
            ids = self._told(number, row)
            if len(context) + len(ids) > room:
                break  # and the rest too: what is shown is always the best, without a gap
            context, shown = context + ids, number
        return Retrieved(rows[:shown], (*head, *context, *rest))

    def _told(self, number: int, row: int) -> tuple[int, ...]:
        record = self._records[row]
        text = self._cleaned(f"{record.prompt} {record.completion}".strip())
        ids = self._tokenizer.encode(f"[{number}] {text}", add_special_tokens=False)
        said = [token for token in ids if token not in self._tokenizer.special_ids]
        ending = self._tokenizer.encode("\n", add_special_tokens=False)
        return (*said[:RECORD_TOKENS_MAX], *ending)

    def _cleaned(self, text: str) -> str:
        """A record's text that says no marker, also when its special tokens are gone; what still
        does after CLEANED_MAX readings is empty. Why brackets are changed and no marker is taken
        out: what stood around it could be one then."""
        for _ in range(CLEANED_MAX):
            before, text = text, _MARKER.sub(r"(\1)", text)
            ids = self._tokenizer.encode(text, add_special_tokens=False)
            said = [token for token in ids if token not in self._tokenizer.special_ids]
            if len(said) < len(ids):
                text = self._tokenizer.decode(said, skip_special_tokens=True)
            if text == before:
                return text
        return ""

    def read(
        self, prompt: Sequence[int], answers: Sequence[Sequence[int]], rows: Sequence[int]
    ) -> Answer:
        """What was asked and said, with the words of all choices that cite the retrieved `rows`."""
        words: Counter[int] = Counter()
        for ids in answers:
            text = self._tokenizer.decode(ids, skip_special_tokens=True)
            words.update(dict(find_citations(text, rows)))
        return Answer.of(prompt, answers)._replace(cited=tuple(sorted(words.items())))
