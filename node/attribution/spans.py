"""Verbatim spans: which stretches of an answer stand word for word in which records.

The completion tokens of all rows lie in one text, each row's ended by a separator, under a
suffix array. A suffix array is unique, so whoever holds the records builds the same bytes.
Only stretches that the prompt does not hold count: else a payer could pay a friend by pasting
the friend's text (design page 60 §7).
Why prefix doubling in numpy and not a library: a dependency less, and the array is the same;
a million tokens take seconds, once an index.
What this file does not know: contributions, credits, gradients.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from consensus.primitives import merkle
from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid
from node.ledger.wire.claims import PAID_MAX, SPAN_HOLDERS_MAX, Span

TOKENS_MAX: Final = 2**27  # of one text: with its suffixes 6 to 8 bytes each
SMALL_VOCABULARY: Final = 2**16 - 1  # ids are shifted by one, and 0 is the separator
TOKENS_FILE: Final = "spans-tokens.bin"
SUFFIXES_FILE: Final = "spans-suffixes.bin"
OFFSETS_FILE: Final = "spans-offsets.bin"
FILES: Final = (TOKENS_FILE, SUFFIXES_FILE, OFFSETS_FILE)
WALK_TOKENS: Final = 8  # of a stretch, before whole stretches are compared
HOLDERS_LISTED_MAX: Final = 128  # over all spans of a statement, so that it keeps within 4 KiB

Array = NDArray[Any]


class SpanText(NamedTuple):
    """`tokens` uint16 or uint32, `suffixes` int32 of the same length, `offsets` u32 by row."""

    tokens: Array
    suffixes: Array
    offsets: Array

    def files(self) -> dict[str, bytes]:
        """The three files, little-endian."""
        arrays = (self.tokens, self.suffixes, self.offsets)
        return {
            name: array.astype(array.dtype.newbyteorder("<")).tobytes()
            for name, array in zip(FILES, arrays, strict=True)
        }


def build(rows: Sequence[Sequence[int]]) -> SpanText:
    """The text of the rows' completion tokens, and its suffix array; 16 bits where all ids fit.

    Raises `Invalid` `spans.too_long` beyond 2^27 tokens.
    """
    total = sum(len(row) + 1 for row in rows)
    if total > TOKENS_MAX:
        raise Invalid("spans.too_long", tokens=total, tokens_max=TOKENS_MAX)
    largest = max((max(row, default=0) for row in rows), default=0)
    dtype = np.uint16 if largest < SMALL_VOCABULARY else np.uint32
    tokens = np.zeros(total, dtype)
    offsets = np.zeros(len(rows), np.uint32)
    start = 0
    for number, row in enumerate(rows):
        offsets[number] = start
        tokens[start : start + len(row)] = np.asarray(row, dtype) + 1
        start += len(row) + 1
    return SpanText(tokens, sort_suffixes(tokens), offsets)


def sort_suffixes(tokens: Array) -> Array:
    """int32 starts of all suffixes in order; a suffix that is another's beginning comes first.

    Prefix doubling: after round k suffixes are ranked by their first 2^k tokens.
    """
    count = len(tokens)
    _, ranks = np.unique(tokens, return_inverse=True)
    ranks = ranks.astype(np.int64) + 1  # 0 stands for what lies beyond the end
    order = np.argsort(ranks, kind="stable")
    width = 1
    while count and width < count:
        beyond = np.zeros(count, np.int64)
        beyond[: count - width] = ranks[width:]
        keys = ranks * (count + 1) + beyond
        order = np.argsort(keys, kind="stable")
        is_new = np.ones(count, np.int64)
        is_new[1:] = keys[order][1:] != keys[order][:-1]
        ranks = np.empty(count, np.int64)
        ranks[order] = np.cumsum(is_new)
        if ranks[order[-1]] == count:
            break
        width *= 2
    return order.astype(np.int32)


def spans_root(files: Mapping[str, bytes]) -> bytes:
    """RFC 6962 root over the three files' SHA-256; stands in the index header."""
    return merkle.root(sha256(files[name]) for name in FILES)


def decode(files: Mapping[str, bytes], rows: int) -> SpanText:
    """The text of files that the header's root has vouched for; its publisher may be anybody.

    Raises `Invalid` `spans.malformed` where lengths do not fit one another or `rows`,
    `spans.offsets` where a row does not begin behind a separator, `spans.suffixes` where what
    should be the suffix array is not: it says who holds what, so who is paid.
    """
    sizes = {name: len(files[name]) for name in FILES}
    count = sizes[SUFFIXES_FILE] // 4
    width = sizes[TOKENS_FILE] // max(1, count)
    wanted = {TOKENS_FILE: width * count, SUFFIXES_FILE: 4 * count, OFFSETS_FILE: 4 * rows}
    if width not in (2, 4) or sizes != wanted:
        raise Invalid("spans.malformed", rows=rows, **sizes)
    text = SpanText(
        np.frombuffer(files[TOKENS_FILE], f"<u{width}"),
        np.frombuffer(files[SUFFIXES_FILE], "<i4"),
        np.frombuffer(files[OFFSETS_FILE], "<u4"),
    )
    starts = np.flatnonzero(text.tokens == 0) + 1  # of what follows each separator
    if starts[-1:].tolist() != [count] or [0, *starts[:-1].tolist()] != text.offsets.tolist():
        raise Invalid("spans.offsets", rows=rows)
    if not _is_sorted(text.tokens, text.suffixes):
        raise Invalid("spans.suffixes", tokens=count)
    return text


def _is_sorted(tokens: Array, suffixes: Array) -> bool:
    """Whether `suffixes` is the suffix array: each start once, and each suffix below the next.

    Of two that begin alike, what follows their first token stands in the array too, so one look
    at two neighbours' tokens and the places of what follows is enough: linear, no sorting.
    """
    count = len(tokens)
    if suffixes.min() < 0 or suffixes.max() >= count:
        return False
    places = np.full(count + 1, -1, np.int32)
    places[suffixes] = np.arange(count, dtype=np.int32)
    if (places[:count] < 0).any():
        return False
    firsts, follow = tokens[suffixes], places[suffixes + 1]  # nothing, behind the end, is lowest
    is_less = firsts[:-1] < firsts[1:]
    is_less |= (firsts[:-1] == firsts[1:]) & (follow[:-1] < follow[1:])
    return bool(is_less.all())


def find_spans(
    text: SpanText, prompt: Sequence[int], answer: Sequence[int], min_span: int
) -> tuple[Span, ...]:
    """The maximal stretches of `answer`, of `min_span` tokens or more, that records hold and the
    prompt does not; at most 16 holders each, else it is a common phrase and pays nobody.

    The longest first (ties: the earlier) until 64 spans or 128 holders are listed; by start.
    """
    shifted = np.asarray(answer, np.int64) + 1
    asked = _joined(prompt)
    found = []
    reach = 0
    for start in range(len(answer) - min_span + 1):
        first, last, length = _longest(text, shifted[start:])
        if length < min_span or start + length <= reach:
            continue
        reach = start + length
        if _joined(answer[start:reach]) in asked:
            continue
        holders = _holders(text, first, last)
        if len(holders) <= SPAN_HOLDERS_MAX:
            found.append(Span(start, length, holders))
    return _listed(found)


def tokens_of(text: SpanText, row: int) -> list[int]:
    """The ids that the text holds of a row."""
    start = int(text.offsets[row])
    ends = np.append(text.offsets[1:], len(text.tokens))
    return [token - 1 for token in text.tokens[start : int(ends[row]) - 1].tolist()]


def hold_of(text: SpanText, row: int, place: int, length: int) -> tuple[tuple[int, int], ...]:
    """Who holds the `length` tokens from `place` in `row`, as a span lists them.

    Nothing where they do not lie within that row; 17 holders of what more than 16 hold.
    """
    start = int(text.offsets[row]) + place
    stretch = text.tokens[start : start + length]
    if len(stretch) < length or not stretch.all():
        return ()
    first, last, _ = _longest(text, stretch)
    return _holders(text, first, last)


def _listed(found: list[Span]) -> tuple[Span, ...]:
    kept: list[Span] = []
    holders = 0
    for span in sorted(found, key=lambda span: (-span.length, span.start)):
        if len(kept) < PAID_MAX and holders + len(span.holders) <= HOLDERS_LISTED_MAX:
            kept.append(span)
            holders += len(span.holders)
    return tuple(sorted(kept))


def _joined(ids: Sequence[int]) -> str:
    return " " + " ".join(map(str, ids)) + " "


def _longest(text: SpanText, needle: Array) -> tuple[int, int, int]:
    """(first, beyond the last, length): the suffixes that share most of `needle`'s beginning.

    A few tokens one by one, which is as far as most stretches are held; then by leaps, or an
    answer of one token over and over, and a record like it, would take minutes.
    """
    first, last, length = 0, len(text.suffixes), 0
    for token in needle[:WALK_TOKENS].tolist():
        low = _bound(text, first, last, length, token)
        high = _bound(text, low, last, length, token + 1)
        if low == high:
            return first, last, length
        first, last, length = low, high, length + 1
    return _leap(text, needle, first, last) if length == WALK_TOKENS else (first, last, length)


def _leap(text: SpanText, needle: Array, first: int, last: int) -> tuple[int, int, int]:
    """The same of suffixes `first` to `last`, comparing whole stretches with `needle`.

    Where it would stand among them, one of its two neighbours shares the most, and both are seen.
    """
    longest = 0

    def is_below(place: int) -> bool:
        nonlocal longest
        shared, is_less = _compare(text, place, needle)
        longest = max(longest, shared)
        return is_less

    _first_not(is_below, first, last)
    head = needle[:longest]
    low = _first_not(lambda place: _compare(text, place, head)[1], first, last)
    high = _first_not(lambda place: _compare(text, place, head)[0] == longest, low, last)
    return low, high, longest


def _first_not(is_so: Callable[[int], bool], first: int, last: int) -> int:
    """The first number that is not so, of `first` to `last`; those that are come first."""
    while first < last:
        middle = (first + last) // 2
        if is_so(middle):
            first = middle + 1
        else:
            last = middle
    return first


def _compare(text: SpanText, at: int, needle: Array) -> tuple[int, bool]:
    """How many tokens the suffix shares with `needle`, and whether it comes before it."""
    place = int(text.suffixes[at])
    stretch = text.tokens[place : place + len(needle)]
    differs = stretch != needle[: len(stretch)]
    shared = int(differs.argmax())
    if differs[shared]:
        return shared, bool(stretch[shared] < needle[shared])
    return len(stretch), len(stretch) < len(needle)


def _bound(text: SpanText, first: int, last: int, depth: int, token: int) -> int:
    """The first of suffixes `first` to `last`, alike in `depth` tokens, whose next is ≥ `token`."""
    while first < last:
        middle = (first + last) // 2
        place = int(text.suffixes[middle]) + depth
        if place >= len(text.tokens) or text.tokens[place] < token:
            first = middle + 1
        else:
            last = middle
    return first


def _holders(text: SpanText, first: int, last: int) -> tuple[tuple[int, int], ...]:
    """((row, first place in it), …) by row; more than 16 only to show that there are."""
    places = np.sort(text.suffixes[first:last]).astype(np.int64)
    rows = np.searchsorted(text.offsets, places, "right") - 1
    unique, where = np.unique(rows, return_index=True)
    starts = places[where] - text.offsets[unique].astype(np.int64)
    pairs = zip(unique.tolist(), starts.tolist(), strict=True)
    return tuple(pair for pair, _ in zip(pairs, range(SPAN_HOLDERS_MAX + 1), strict=False))
