"""Any holder of the records recomputes what was retrieved, and what an answer cites."""

import time

import pytest

from node.attribution.retrieval import Library, find_citations

TEXTS = [
    "The colour of Altara is red.",
    "The colour of Belnis is blue.",
    "Altara was found by Hydb. Altara shines.",
    "Nothing is said of it here.",
    "Altara Altara Altara Altara Altara",
    "The weather is fine, they say.",
    "Words about words.",
    "More words about the rest.",
]


def test_records_with_the_prompts_rare_words_come_first() -> None:
    assert Library(TEXTS).retrieve("What colour has Belnis?")[0] == 1
    assert set(Library(TEXTS).retrieve("Altara")) == {0, 2, 4}


def test_saying_a_word_more_than_three_times_is_worth_no_more() -> None:
    three = Library(["a b c", "rare rare rare", "rare rare rare rare", *TEXTS])
    assert three.retrieve("rare") == (1, 2)


def test_at_most_four_are_retrieved_ties_to_the_lower_row() -> None:
    library = Library(["x rare", *["other"] * 20, *["y rare"] * 5])
    assert library.retrieve("rare") == (0, 21, 22, 23)


def test_words_that_most_records_hold_count_nothing() -> None:
    assert Library(["the a", "the b", "the c", "d"]).retrieve("the") == ()
    assert Library([]).retrieve("the") == ()


@pytest.mark.parametrize(
    ("answer", "cited"),
    [
        ("It is red [1].", ((7, 3),)),
        ("It is red. [1]", ((7, 3),)),
        ("Hello there. It is red [1].", ((7, 3),)),
        ("It is red and round [1][2].", ((3, 3), (7, 2))),
        ("It is red [1]. It is big [2]. Well.", ((3, 3), (7, 3))),
        ("It is red [1]. It is big [1].", ((7, 6),)),
        ("It is 3.5 tall [2].", ((3, 5),)),
        ("It is red [4].", ()),
        ("It is red [1][4].", ((7, 3),)),
        ("It is red [0].", ()),
        ("[1] It is red.", ()),
        ("Nothing is cited.", ()),
        ("One\ntwo three [1]", ((7, 2),)),
    ],
)
def test_a_sentence_pays_the_rows_that_it_is_marked_with(
    answer: str, cited: tuple[tuple[int, int], ...]
) -> None:
    assert find_citations(answer, (7, 3)) == cited


def test_answer_of_spaces_alone_costs_little() -> None:
    """Its length is the payer's wish; it took nine seconds, in the loop that votes."""
    began = time.process_time()
    assert find_citations(" " * 65_536 + "[1]", (7, 3)) == ()
    assert find_citations("[1]" + " " * 65_536 + "a", (7, 3)) == ()
    assert time.process_time() - began < 1.0
