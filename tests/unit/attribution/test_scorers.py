"""A mix shares the data part as its index declares; what is stated of records can be refuted."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from attribution_kit import MIXED, VERSION, mix_rows, sound_rows, write_index

from node.attribution import spans
from node.attribution.attribute import Attribution, attribute, explain
from node.attribution.audit import Claim, Finding, recheck
from node.attribution.index import Index, IndexInvalid
from node.attribution.scorers import SCORERS, Answer
from node.ledger.rules import shares
from node.ledger.wire import claims
from node.ledger.wire.claims import Span, Statement

PHRASE = [1, 2, 3, 4, 5, 6, 7, 8]
ROWS = 60


def completions() -> list[list[int]]:
    """Row 40 alone holds the phrase; the others have tokens of their own."""
    made = [[100 + 20 * row + place for place in range(12)] for row in range(ROWS)]
    made[40] = [*made[40][:3], *PHRASE, 9]
    return made


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index.open(*write_index(tmp_path, sound_rows(ROWS), completions=completions()))


def answered(index: Index, answer: Answer | None, leaning: float = 1.0) -> Attribution:
    return attribute(index, mix_rows([(leaning, index.rows[9])]), VERSION, answer=answer)


def test_each_scorer_gets_the_part_that_the_mix_declares(index: Index) -> None:
    made = answered(index, Answer((), (0, *PHRASE, 0)))
    assert made.statement.spans == (Span(1, 8, ((40, 3),)),)
    credits = dict(made.credits)
    assert credits[1 + 40 // 4] == 3_000
    assert sum(credits.values()) == 10_000
    assert credits[1 + 9 // 4] > 6_000


def test_scorer_that_finds_nothing_leaves_its_part_to_the_others(index: Index) -> None:
    assert dict(answered(index, Answer((), (0, 0))).credits)[1 + 9 // 4] > 9_000
    assert answered(index, Answer((), tuple(PHRASE)), leaning=0.0).credits == ((11, 10_000),)
    assert answered(index, Answer((), ()), leaning=0.0).credits == ()


def test_pasted_text_pays_nobody(index: Index) -> None:
    pasted = answered(index, Answer((5, *PHRASE, 5), (0, *PHRASE, 0)))
    assert pasted.credits == answered(index, None).credits


def test_no_span_reaches_from_one_choice_into_the_next(index: Index) -> None:
    whole = Answer.of([], [[0, *PHRASE]])
    torn = Answer.of([], [PHRASE[:4], PHRASE[4:]])
    assert len(answered(index, whole).statement.spans) == 1
    assert answered(index, torn).statement.spans == ()


def test_explanation_shows_rows_that_spans_alone_pay(index: Index) -> None:
    told = explain(answered(index, Answer((), tuple(PHRASE))).statement, index)
    by_row = {row.row: row for row in told.rows}
    assert (by_row[40].bps, by_row[40].score) == (3_000, 0)
    assert by_row[40].parts == (0, 3_000, 0)
    assert all(sum(row.parts) == row.bps for row in told.rows)
    assert sum(row.bps for row in told.rows) == 10_000


def claim_of(index: Index, made: Attribution, statement: Statement) -> Claim:
    raw = claims.encode_statement(statement)
    credits = shares.credits_of(statement, ROWS, MIXED, index.contribution_of)
    return Claim(claims.sketch_hash(made.sketch, raw), credits, made.sketch, raw)


def audit(index: Index, change: Callable[[Statement], Statement], answer: Answer | None) -> str:
    made = answered(index, Answer((), (0, *PHRASE, 0)))
    claim = claim_of(index, made, change(made.statement))
    finding = recheck(index, VERSION, claim, answer=answer)
    return "" if finding is None else finding.code


def moved(row: int, place: int, length: int = 8) -> Callable[[Statement], Statement]:
    return lambda s: s._replace(spans=(Span(1, length, ((row, place),)),))


def without(statement: Statement) -> Statement:
    return statement._replace(spans=())


def test_honest_claim_stands_with_and_without_the_answer(index: Index) -> None:
    for answer in (None, Answer((), (0, *PHRASE, 0))):
        assert audit(index, lambda statement: statement, answer) == ""


@pytest.mark.parametrize(
    ("desc", "change"),
    [
        ("beyond the record's end", moved(40, 8)),
        ("beyond the text's end", moved(59, 400)),
        ("not all holders", lambda s: s._replace(spans=(Span(1, 8, ((40, 3), (41, 3))),))),
    ],
)
def test_false_word_on_records_falls_to_the_index_alone(
    index: Index, desc: str, change: Callable[[Statement], Statement]
) -> None:
    assert audit(index, change, None) == "claim.records", desc


@pytest.mark.parametrize("change", [without, moved(9, 0), moved(40, 3, 7)])
def test_false_word_on_the_answer_falls_to_who_has_it(
    index: Index, change: Callable[[Statement], Statement]
) -> None:
    assert audit(index, change, None) == ""
    assert audit(index, change, Answer((), (0, *PHRASE, 0))) == "claim.scores"


def test_lie_about_a_score_falls_in_a_mix_too(index: Index) -> None:
    def raised(statement: Statement) -> Statement:
        (row, contribution, score), *rest = statement.paid
        return statement._replace(paid=((row, contribution, score + 1), *rest))

    assert audit(index, raised, None) == "claim.scores"


def test_credits_that_a_mix_does_not_give_are_found(index: Index) -> None:
    made = answered(index, Answer((), (0, *PHRASE, 0)))
    claim = claim_of(index, made, made.statement)._replace(credits=((3, 10_000),))
    assert recheck(index, VERSION, claim) == Finding(
        "claim.credits", "the statement pays otherwise"
    )


def test_every_scorer_of_a_mix_is_known_by_its_number() -> None:
    assert {number: scorer.name for number, scorer in SCORERS.items()} == {
        claims.GRADIENT: "gradient",
        claims.SPAN: "span",
        claims.RETRIEVAL: "retrieval",
    }


def test_citations_are_stated_as_they_were_found(index: Index) -> None:
    answer = Answer((), (), cited=((3, 12), (8, 4)))
    empty = Statement(1, index.root, (), (), (), ())
    stated = SCORERS[claims.RETRIEVAL].add(index, asked(answer), empty)
    assert stated.retrieved == ((3, 12), (8, 4))


def asked(answer: Answer) -> "object":
    from node.attribution.scorers import Asked

    return Asked(np.zeros(ROWS, np.int32), bytes(32), answer)


# --- an index with spans on disk


def test_index_names_all_its_files(index: Index, tmp_path: Path) -> None:
    assert set(spans.FILES) < set(index.contents)
    assert all(path.is_file() for path in index.contents.values())


@pytest.mark.parametrize("name", spans.FILES)
def test_changed_or_lost_span_file_is_refused(tmp_path: Path, name: str) -> None:
    folder, root = write_index(tmp_path, sound_rows(ROWS), completions=completions())
    for desc, code in (("changed", "index.spans_root"), ("lost", "index.missing")):
        copy = tmp_path / desc
        shutil.copytree(folder, copy)
        raw = (copy / name).read_bytes()
        (copy / name).write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        if desc == "lost":
            (copy / name).unlink()
        with pytest.raises(IndexInvalid) as refusal:
            Index.open(copy, root)
        assert refusal.value.code == code


def test_rows_and_texts_of_unequal_number_are_refused(tmp_path: Path) -> None:
    folder, root = write_index(tmp_path, sound_rows(ROWS), completions=completions()[:-1])
    with pytest.raises(IndexInvalid) as refusal:
        Index.open(folder, root)
    assert refusal.value.code == "index.spans"


# --- the integers of the mix


def state(spans: tuple[Span, ...], retrieved: tuple[tuple[int, int], ...] = ()) -> Statement:
    return Statement(1, bytes(32), (10,) * 60, (), spans, retrieved)


def test_spans_weigh_by_length_and_rarity() -> None:
    """Of 60 rows: held by one, 16·5 a token; by two, 16·4, half for each."""
    one, two = Span(0, 8, ((4, 0),)), Span(9, 8, ((5, 0), (6, 2)))
    weights = dict(shares.span_weights(state((one, two)), 60))
    assert weights == {4: 8 * 80 * 720_720, 5: 4 * 64 * 720_720, 6: 4 * 64 * 720_720}


def test_only_the_twenty_heaviest_rows_of_spans_are_paid() -> None:
    many = tuple(Span(10 * n, 6 + (n == 20), ((n, 0),)) for n in range(21))
    assert [row for row, _ in shares.span_weights(state(many), 60)] == [*range(19), 20]


def test_three_scorers_share_by_largest_remainder() -> None:
    mix = ((0, 5_000), (1, 3_000), (2, 2_000))
    statement = state((Span(0, 8, ((4, 0),)),), ((7, 2), (9, 1)))
    assert shares.row_shares(statement, 60, mix) == [(4, 6_000), (7, 2_667), (9, 1_333)]
    assert shares.credits_of(statement, 60, mix, lambda row: row // 8) == ((0, 8_667), (1, 1_333))


@pytest.mark.parametrize("seed", range(20))
def test_any_mix_sums_to_the_whole_in_at_most_64_credits(seed: int) -> None:
    random = np.random.default_rng(seed)
    mix = ((0, 4_000), (1, 3_000), (2, 3_000))
    rows = random.choice(1_000, 64, replace=False).tolist()
    paid = tuple(sorted((row, 1, int(random.integers(2_000, 10**6))) for row in rows[:40]))
    held = tuple(
        Span(20 * n, int(random.integers(6, 20)), tuple((int(r), 0) for r in sorted(holders)))
        for n in range(30)
        for holders in [random.choice(1_000, random.integers(1, 5), replace=False)]
    )
    cited = tuple(sorted((row, int(random.integers(1, 50))) for row in rows[40:44]))
    statement = Statement(1, bytes(32), (200,) * 127, paid, held, cited)
    parts = shares.row_shares(statement, 1_000, mix)
    assert sum(bps for _, bps in parts) == 10_000
    assert len(parts) <= claims.PAID_MAX
