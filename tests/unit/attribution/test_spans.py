"""Verbatim spans are those that plain search finds, and a pasted prompt pays nobody."""

import random

import numpy as np
import pytest

from consensus.primitives.errors import Invalid
from node.attribution import spans
from node.ledger.wire.claims import (
    SPAN_HOLDERS_MAX,
    STATEMENT_BYTES_MAX,
    Span,
    Statement,
    encode_statement,
)

ROWS = [list(range(10, 30)), list(range(40, 70)), [1, 2, 3, 4, 5, 6, 7], list(range(12, 22))]


def plain_suffixes(tokens: np.ndarray) -> list[int]:
    whole = tokens.tolist()
    return sorted(range(len(whole)), key=lambda start: whole[start:])


@pytest.mark.parametrize("seed", range(20))
def test_suffixes_are_those_of_plain_sorting(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, rng.integers(1, 6), rng.integers(0, 200)).astype(np.uint16)
    assert spans.sort_suffixes(tokens).tolist() == plain_suffixes(tokens)


def test_equal_rows_and_long_repeats_are_sorted_alike() -> None:
    text = spans.build([[7] * 300, [7] * 300, [7, 8] * 100])
    assert text.suffixes.tolist() == plain_suffixes(text.tokens)


@pytest.mark.parametrize(("vocabulary", "dtype"), [(65_535, np.uint16), (65_536, np.uint32)])
def test_largest_id_of_each_width_is_kept(vocabulary: int, dtype: type) -> None:
    text = spans.build([[vocabulary - 1, 0]])
    assert text.tokens.dtype == dtype
    assert text.tokens.tolist() == [vocabulary, 1, 0]


def test_text_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "TOKENS_MAX", 6)
    spans.build([[1, 2, 3, 4, 5]])
    with pytest.raises(Invalid, match="too_long"):
        spans.build([[1, 2, 3, 4, 5, 6]])


def test_spans_name_every_holder_and_where() -> None:
    text = spans.build(ROWS)
    answer = [99, *range(12, 22), 98, *range(45, 55)]
    assert spans.find_spans(text, [], answer, 6) == (
        Span(1, 10, ((0, 2), (3, 0))),
        Span(12, 10, ((1, 5),)),
    )


def test_what_the_prompt_holds_pays_nobody() -> None:
    """Else a payer could pay a friend by pasting his text."""
    text = spans.build(ROWS)
    answer = [99, *range(12, 22), 98, *range(45, 55)]
    found = spans.find_spans(text, [5, *range(45, 55), 5], answer, 6)
    assert found == (Span(1, 10, ((0, 2), (3, 0))),)


def test_a_span_is_as_long_as_the_limit_or_none() -> None:
    text = spans.build(ROWS)
    assert spans.find_spans(text, [], [1, 2, 3, 4, 5, 6, 90], 6) == (Span(0, 6, ((2, 0),)),)
    assert spans.find_spans(text, [], [1, 2, 3, 4, 5, 90], 6) == ()


def test_no_span_reaches_over_the_end_of_a_record() -> None:
    text = spans.build([[1, 2, 3], [4, 5, 6]])
    assert spans.find_spans(text, [], [1, 2, 3, 4, 5, 6], 3) == (
        Span(0, 3, ((0, 0),)),
        Span(3, 3, ((1, 0),)),
    )


def test_common_phrase_pays_nobody() -> None:
    phrase = [1, 2, 3, 4, 5, 6]
    for count, held in ((SPAN_HOLDERS_MAX, 1), (SPAN_HOLDERS_MAX + 1, 0)):
        text = spans.build([[50 + row, *phrase] for row in range(count)])
        assert len(spans.find_spans(text, [], phrase, 6)) == held


def test_of_many_spans_the_longest_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "HOLDERS_LISTED_MAX", 3)
    text = spans.build(ROWS)
    answer = [*range(12, 20), 99, *range(40, 49), 99, *range(50, 57)]
    assert spans.find_spans(text, [], answer, 6) == (
        Span(0, 8, ((0, 2), (3, 0))),
        Span(9, 9, ((1, 0),)),
    )


def test_a_statement_of_most_spans_keeps_within_its_bytes() -> None:
    """127 floors, 44 rows and 4 citations beside them, all as large as they can be."""
    big = 2**23 - 1
    rows = [[number] * 6 for number in range(70)]
    answer = [token for number in range(70) for token in [*[number] * 6, 999]]
    most = spans.find_spans(spans.build([row for row in rows for _ in range(2)]), [], answer, 6)
    assert len(most) == 64
    listed = tuple(
        span._replace(start=2**16 + number, length=512, holders=((big - 1, 1_023), (big, 1_023)))
        for number, span in enumerate(most)
    )
    statement = Statement(
        version=1,
        index_root=bytes(32),
        floors=(127 * 127 * 1_024,) * 127,
        paid=((big, 2**63 - 1, 127 * 127 * 1_024),) * 40,
        spans=listed,
        retrieved=((big, 2**20),) * 4,
    )
    assert len(encode_statement(statement)) <= STATEMENT_BYTES_MAX


@pytest.mark.parametrize("seed", range(30))
def test_spans_are_those_of_plain_search(seed: int) -> None:
    rng = random.Random(seed)
    rows = [[rng.randrange(3) for _ in range(rng.randint(1, 30))] for _ in range(8)]
    answer = [rng.randrange(3) for _ in range(25)]
    prompt = [rng.randrange(3) for _ in range(10)]
    found = spans.find_spans(spans.build(rows), prompt, answer, 4)
    assert found == plain_spans(rows, prompt, answer, 4)


def plain_spans(
    rows: list[list[int]], prompt: list[int], answer: list[int], least: int
) -> tuple[Span, ...]:
    def place(needle: list[int], hay: list[int]) -> int | None:
        fits = (i for i in range(len(hay)) if hay[i : i + len(needle)] == needle)
        return next(fits, None)

    found, reach = [], 0
    for start in range(len(answer)):
        held: list[int] = []
        for end in range(start + 1, len(answer) + 1):
            if any(place(answer[start:end], row) is not None for row in rows):
                held = answer[start:end]
        if len(held) < least or start + len(held) <= reach:
            continue
        reach = start + len(held)
        if place(held, prompt) is None:
            places = ((number, place(held, row)) for number, row in enumerate(rows))
            holders = tuple((number, at) for number, at in places if at is not None)
            found.append(Span(start, len(held), holders))
    return tuple(found)


def test_files_come_back_and_their_root_binds_them() -> None:
    for rows in (ROWS, [*ROWS, [70_000]]):
        text = spans.build(rows)
        files = text.files()
        again = spans.decode(files, len(rows))
        assert all((a == b).all() for a, b in zip(text, again, strict=True))
        root = spans.spans_root(files)
        for name in files:
            assert spans.spans_root({**files, name: files[name][:-1] + b"\x55"}) != root


def test_holders_of_a_stretch_are_all_and_only_those() -> None:
    text = spans.build(ROWS)
    assert spans.hold_of(text, 3, 0, 10) == ((0, 2), (3, 0))
    assert spans.hold_of(text, 3, 0, 11) == ()  # over the record's end
    assert spans.hold_of(text, 3, 9, 60) == ()  # over the text's end
    common = spans.build([[1, 2, 3, 4]] * 40)
    assert len(spans.hold_of(common, 5, 0, 4)) == SPAN_HOLDERS_MAX + 1


def test_tokens_of_a_row_are_those_it_was_built_of() -> None:
    text = spans.build([*ROWS, [], [9]])
    assert [spans.tokens_of(text, row) for row in range(6)] == [*ROWS, [], [9]]


def test_files_that_do_not_fit_are_refused() -> None:
    files = spans.build(ROWS).files()
    with pytest.raises(Invalid, match="malformed"):
        spans.decode(files, len(ROWS) + 1)
    with pytest.raises(Invalid, match="malformed"):
        spans.decode({**files, spans.TOKENS_FILE: files[spans.TOKENS_FILE] + b"\0"}, len(ROWS))
    with pytest.raises(Invalid, match="malformed"):
        spans.decode(dict.fromkeys(files, b""), 0)


def changed(name: str, at: int, value: int) -> dict[str, bytes]:
    """The files of ROWS with one number of one of them another; their root is made of these."""
    files = spans.build(ROWS).files()
    width = 2 if name == spans.TOKENS_FILE else 4
    raw = bytearray(files[name])
    raw[at * width : (at + 1) * width] = value.to_bytes(width, "little", signed=value < 0)
    return {**files, name: bytes(raw)}


@pytest.mark.parametrize(
    ("name", "at", "value", "code"),
    [
        (spans.SUFFIXES_FILE, 5, -1_000_000, "spans.suffixes"),
        (spans.SUFFIXES_FILE, 5, 2**31 - 1, "spans.suffixes"),
        (spans.SUFFIXES_FILE, 5, 0, "spans.suffixes"),  # one twice
        (spans.TOKENS_FILE, 3, 60_000, "spans.suffixes"),  # the order of another text
        (spans.TOKENS_FILE, 3, 0, "spans.offsets"),
        (spans.OFFSETS_FILE, 0, 1, "spans.offsets"),
        (spans.OFFSETS_FILE, 2, 2**32 - 1, "spans.offsets"),
    ],
)
def test_what_a_publisher_made_up_is_refused(name: str, at: int, value: int, code: str) -> None:
    """It would say who holds a stretch, or end who looks there."""
    with pytest.raises(Invalid) as refusal:
        spans.decode(changed(name, at, value), len(ROWS))
    assert refusal.value.code == code


@pytest.mark.parametrize("seed", range(20))
def test_two_suffixes_in_each_others_place_are_no_order(seed: int) -> None:
    rng = random.Random(seed)
    rows = [[rng.randrange(2) for _ in range(rng.randint(1, 12))] for _ in range(4)]
    files = spans.build(rows).files()
    spans.decode(files, len(rows))
    suffixes = np.frombuffer(files[spans.SUFFIXES_FILE], "<i4").copy()
    one, other = rng.sample(range(len(suffixes)), 2)
    suffixes[[one, other]] = suffixes[[other, one]]
    with pytest.raises(Invalid, match="suffixes"):
        spans.decode({**files, spans.SUFFIXES_FILE: suffixes.tobytes()}, len(rows))


@pytest.mark.parametrize("seed", range(20))
def test_long_stretches_are_found_as_short_ones_are(seed: int) -> None:
    """By leaps: of records that say the same again and again, with one word changed."""
    rng = random.Random(seed)
    rows = [[rng.randrange(2)] * 40 for _ in range(5)]
    for row in rows:
        row[rng.randrange(40)] = 2
    answer = [*rows[0][5:], *rows[1][: rng.randrange(40)], 7, *rows[2]]
    found = spans.find_spans(spans.build(rows), [], answer, 4)
    assert found == plain_spans(rows, [], answer, 4)
    for span in found:
        assert spans.hold_of(spans.build(rows), *span.holders[0], span.length) == span.holders


def test_one_word_over_and_over_takes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a record, and an answer like it, took 26 s of the provider for 2,000 tokens."""
    looked = [0]
    bound, compare = spans._bound, spans._compare

    def counting(of):
        def call(*given):
            looked[0] += 1
            return of(*given)

        return call

    text = spans.build([[7] * 1_000, *ROWS])
    monkeypatch.setattr(spans, "_bound", counting(bound))
    monkeypatch.setattr(spans, "_compare", counting(compare))
    assert spans.find_spans(text, [], [7] * 1_000, 6) == (Span(0, 1_000, ((0, 0),)),)
    assert looked[0] < 1_000 * (2 * spans.WALK_TOKENS + 3 * 12)
