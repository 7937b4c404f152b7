"""Copies, junk, poison and more of one's own data do not pay: the lines of page 60 §11.

Each attack joins the small world's Datanet, an adapter is trained on all of it, an index built, and
every question asked and paid by the node's own code. `make test` has four attackers at once on four
victims, `-m slow` each alone. Splitting over accounts: tests/unit/ledger/test_shares.py, to the
basis point.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from bench.attribution_world import (
    NOISE_WORDS,
    OWNERS_PHRASINGS,
    POISON_SHIFT,
    SMALL,
    Datanet,
    Fact,
    Text,
    make_datanet,
    say,
)

pytestmark = pytest.mark.ml

VICTIM = 3  # neither copied nor poisoned by the world itself
TIMES = 4
WORDS_ADDED = 3
JUNK_RECORDS = 48
PREFIXED_WORDS = 8


def noise(chance: random.Random, words: int) -> str:
    return " ".join(chance.choice(NOISE_WORDS) for _ in range(words))


def facts_of(texts: Sequence[Text]) -> list[Fact]:
    return list(dict.fromkeys(text.fact for text in texts if text.fact is not None))


def copies(mine: Sequence[Text], chance: random.Random) -> list[str]:
    return [text.text for text in mine] * TIMES


def copies_with_a_mark_moved(mine: Sequence[Text], chance: random.Random) -> list[str]:
    made = []
    for text in mine:
        words = [word for word in text.text.split() if word != "."]
        made.append(" ".join([*words[:2], ".", *words[2:]]))
    return made


def copies_with_words_added(mine: Sequence[Text], chance: random.Random) -> list[str]:
    return [f"{text.text} {noise(chance, WORDS_ADDED)}" for text in mine]


def paraphrases(mine: Sequence[Text], chance: random.Random) -> list[str]:
    others = range(OWNERS_PHRASINGS, len(SMALL.phrasings))
    return [say(SMALL, fact, phrasing) for fact in facts_of(mine) for phrasing in others]


def junk(mine: Sequence[Text], chance: random.Random) -> list[str]:
    return [noise(chance, chance.randint(6, 12)) for _ in range(JUNK_RECORDS)]


def poison(mine: Sequence[Text], chance: random.Random) -> list[str]:
    false = [
        fact._replace(value=(fact.value + POISON_SHIFT) % SMALL.values) for fact in facts_of(mine)
    ]
    return [say(SMALL, fact, phrasing) for fact in false for phrasing in SMALL.asked]


def prefixes(mine: Sequence[Text], chance: random.Random) -> list[str]:
    names = [f"e{fact.entity}" for fact in facts_of(mine)] * 2
    return [f"{name} {noise(chance, PREFIXED_WORDS)}" for name in names]


Attack = Callable[[Sequence[Text], random.Random], list[str]]
ATTACKS: dict[Attack, float] = {  # → the most of all pay that the attacker may get
    copies: 0.01,
    copies_with_a_mark_moved: 0.01,
    copies_with_words_added: 0.01,
    junk: 0.01,
    prefixes: 0.01,
    poison: 0.03,
    paraphrases: 0.03,
}
AT_ONCE = {copies: 3, copies_with_words_added: 4, poison: 5, prefixes: 6}


@pytest.fixture(scope="module")
def honest() -> Datanet:
    return make_datanet(SMALL)


def parts_of(base: Any, datanet: Datanet, home: Path) -> Any:
    """What all questions pay: (questions, contributors)."""
    from bench.attribution import pay
    from bench.attribution_study import study

    return pay(study(base, datanet, home), datanet).parts


def attacked(datanet: Datanet, attacks: dict[Attack, int]) -> Datanet:
    """With one more contributor for each attack on its victim, behind all others."""
    texts, chance = list(datanet.texts), random.Random("gaming")
    for number, (attack, victim) in enumerate(attacks.items()):
        mine = [text for text in datanet.texts if text.contributor == victim]
        who = datanet.contributors + number
        texts += [Text(who, "attack", line, None) for line in attack(mine, chance)]
    return datanet._replace(texts=tuple(texts))


def shares_of_attackers(
    base: Any, honest: Datanet, attacks: dict[Attack, int], home: Path
) -> list[float]:
    """Of all questions' pay, in the attacks' order."""
    parts = parts_of(base, attacked(honest, attacks), home)
    return parts.mean(0)[honest.contributors :].tolist()  # type: ignore[no-any-return]


def test_thieves_spammers_and_poisoners_earn_nothing(
    small_base: Any, honest: Datanet, tmp_path: Path
) -> None:
    found = shares_of_attackers(small_base, honest, AT_ONCE, tmp_path)
    for attack, share in zip(AT_ONCE, found, strict=True):
        assert share <= ATTACKS[attack], attack.__name__


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_attack_does_not_pay(
    small_base: Any, honest: Datanet, attack: Attack, tmp_path: Path
) -> None:
    (share,) = shares_of_attackers(small_base, honest, {attack: VICTIM}, tmp_path)
    assert share <= ATTACKS[attack]


@pytest.mark.slow
def test_own_data_four_times_pays_no_more_than_once(
    small_base: Any, honest: Datanet, tmp_path: Path
) -> None:
    texts = list(honest.texts)
    mine = [text for text in texts if text.contributor == VICTIM]
    behind = texts.index(mine[-1]) + 1
    texts[behind:behind] = mine * (TIMES - 1)
    once = parts_of(small_base, honest, tmp_path / "once")
    often = parts_of(small_base, honest._replace(texts=tuple(texts)), tmp_path / "often")
    assert often[:, VICTIM].mean() <= once[:, VICTIM].mean() + 0.01
