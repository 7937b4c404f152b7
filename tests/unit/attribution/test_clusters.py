"""Near-duplicates join the earliest canonical record, and MinHash finds what brute force finds."""

import random

import pytest

from node.attribution import clusters


def brute_force(texts: list[clusters.Text]) -> list[int]:
    """The rule itself: compare with every canonical text, earliest first."""
    canonical: list[int] = []
    leaders = []
    for number, text in enumerate(texts):
        near = (other for other in canonical if clusters.is_near(texts[other], text))
        leader = next(near, number)
        leaders.append(leader)
        if leader == number:
            canonical.append(number)
    return leaders


def read_all(*texts: str) -> list[clusters.Text]:
    return [clusters.read("", text) for text in texts]


TEN = "one two three four five six seven eight nine ten"  # 8 shingles


@pytest.mark.parametrize(
    ("desc", "texts", "leaders"),
    [
        ("verbatim", [TEN, TEN], [0, 0]),
        ("case and punctuation do not count", [TEN, "ONE, two; " + TEN[8:] + "!"], [0, 0]),
        ("a word more: 8 of 9 shingles", [TEN, TEN + " eleven"], [0, 0]),
        ("two words more: 8 of 10, at the limit", [TEN, TEN + " eleven twelve"], [0, 0]),
        ("three words more: 8 of 11", [TEN, TEN + " a b c"], [0, 1]),
        ("a word in the middle replaced: 5 of 11", [TEN, TEN.replace("five", "5")], [0, 1]),
        ("two words: only if equal", ["good day", "good day.", "good night"], [0, 0, 2]),
        ("no words at all are alike", ["!", "?"], [0, 0]),
    ],
)
def test_nearness(desc: str, texts: list[str], leaders: list[int]) -> None:
    assert clusters.find_leaders(read_all(*texts)) == leaders, desc


def test_chain_of_bridges_joins_no_victim_to_a_thief() -> None:
    """b is near a, c near b but not a: c stays its own, as only canonical texts attract."""
    a, b, c = TEN, TEN + " x y", TEN + " x y z w"
    texts = read_all(a, b, c)
    assert clusters.is_near(texts[1], texts[2])
    assert clusters.find_leaders(texts) == [0, 0, 2]


def test_earliest_canonical_wins() -> None:
    first, second = TEN + " a b", "zero " + TEN + " c"
    both = read_all(first, second, TEN)
    assert not clusters.is_near(both[0], both[1])
    assert clusters.is_near(both[0], both[2])
    assert clusters.is_near(both[1], both[2])
    assert clusters.find_leaders(both) == [0, 1, 0]


def test_prompt_is_part_of_the_text() -> None:
    assert clusters.read("Who?", "Ann.").words == ("who", "ann")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ﬁne ① Ⅷ", ("fine", "1", "viii")),
        ("a_b-c'd", ("a", "b", "c", "d")),
        ("Straße ÉTÉ", ("straße", "été")),
        ("12.5%", ("12", "5")),
        ("\U0001f600 smile", ("smile",)),  # not in Unicode 3.2
    ],
)
def test_normal_form(text: str, words: tuple[str, ...]) -> None:
    assert clusters.normalise(text) == words


def test_min_hash_finds_what_brute_force_finds_on_2000_records() -> None:
    chance = random.Random("clusters")
    words = [f"w{i}" for i in range(400)]
    texts: list[list[str]] = []
    for _ in range(2_000):
        if texts and chance.random() < 0.5:  # a copy with up to four words changed
            text = list(chance.choice(texts))
            for _ in range(chance.randint(0, 4)):
                text[chance.randrange(len(text))] = chance.choice(words)
        else:
            text = [chance.choice(words) for _ in range(chance.randint(1, 60))]
        texts.append(text)
    read = read_all(*(" ".join(text) for text in texts))
    leaders = clusters.find_leaders(read)
    assert leaders == brute_force(read)
    assert 200 < sum(leader != number for number, leader in enumerate(leaders)) < 1_500
