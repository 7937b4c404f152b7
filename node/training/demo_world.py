"""The demo's world: three small Datanets in which the right payee of each question is known.

Why our own world: a demo of attribution must show that the right contributor is paid, so every
fact is made here and given to one contributor. A base model learns the language from other
things with values drawn afresh each time; only the Datanets hold these facts. Six phrasings a
relation: four for records, two that no record has, for the test (page 50, demo recipe).
Nothing here is data from anywhere: all text comes from these templates.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from node.training.demo_texts import DOMAINS, Domain, Relation

HONEST: Final = 12  # contributors with facts of their own
COPIER: Final = 12  # gives contributor 0's records a second time
JUNK: Final = 13  # gives words without sense
CONTRIBUTORS: Final = 14
THINGS: Final = 18  # a Datanet's things, two facts each
PHRASINGS: Final = 3  # question records a fact, of the first four phrasings
HELD_BACK: Final = (4, 5)  # phrasings that no record has
PLAIN_SHARE: Final = 0.2  # of the base's text: statements without a question


@dataclass(frozen=True, slots=True)
class Fact:
    """What contributor `owner` alone knows."""

    thing: str
    relation: Relation
    value: str
    owner: int

    def answer(self) -> str:
        """The sentence that answers every question about it."""
        return self.relation.state(self.thing, self.value)

    def is_right(self, text: str) -> bool:
        """Whether `text` states the fact, in any of its three forms."""
        return text in (self.relation.state(self.thing, self.value, form) for form in range(3))

    def held_back_questions(self) -> tuple[str, ...]:
        """Questions in phrasings that no record has."""
        return tuple(self.relation.ask(self.thing, phrasing) for phrasing in HELD_BACK)


@dataclass(frozen=True, slots=True)
class DemoRecord:
    """One training record; an empty prompt means a plain statement."""

    contributor: int
    prompt: str
    completion: str
    fact: int | None


@dataclass(frozen=True, slots=True)
class DemoDatanet:
    """Records in ledger order, and the facts behind them."""

    domain: Domain
    records: tuple[DemoRecord, ...]
    facts: tuple[Fact, ...]


def things(domain: Domain, seed: int) -> list[str]:
    """The Datanet's names: each half used at most once, so no two share one."""
    order = list(range(len(domain.last)))
    random.Random(f"names:{domain.name}:{seed}").shuffle(order)
    pairs = zip(domain.first, order, strict=True)
    return [first + domain.last[at] for first, at in pairs][:THINGS]


def make_datanet(domain: Domain, seed: int) -> DemoDatanet:
    """36 facts, three to each of 12 contributors, then the copier and the junk: 168 records.

    A thing's two facts belong to two contributors, so a name alone never tells the owner.
    """
    rng = random.Random(f"datanet:{domain.name}:{seed}")
    names = things(domain, seed)
    facts: list[Fact] = []
    for i, thing in enumerate(names):
        for k, relation in enumerate(rng.sample(domain.relations, 2)):
            owner = 5 * (2 * i + k) % HONEST
            facts.append(Fact(thing, relation, rng.choice(relation.values), owner))
    records: list[DemoRecord] = []
    for owner in range(HONEST):
        for number, fact in enumerate(facts):
            if fact.owner == owner:
                records += _records_of(fact, number, rng)
    mine = [record for record in records if record.contributor == 0]
    records += [DemoRecord(COPIER, r.prompt, r.completion, r.fact) for r in mine]
    records += _junk(records, names, len(mine), rng)
    return DemoDatanet(domain, tuple(records), tuple(facts))


def _records_of(fact: Fact, number: int, rng: random.Random) -> list[DemoRecord]:
    """Three questions with the answer in its one form, and one statement in another."""
    asked = [fact.relation.ask(fact.thing, p) for p in rng.sample(range(4), PHRASINGS)]
    records = [DemoRecord(fact.owner, question, fact.answer(), number) for question in asked]
    plain = fact.relation.state(fact.thing, fact.value, 1 + number % 2)
    return [*records, DemoRecord(fact.owner, "", plain, number)]


def _junk(
    records: Sequence[DemoRecord], names: Sequence[str], count: int, rng: random.Random
) -> list[DemoRecord]:
    """Real words without sense; each fourth record also drops names, to tempt a text search."""
    words = sorted({word for record in records for word in record.completion.split()})
    made = []
    for i in range(count):
        picked = [
            rng.choice(names if i % 4 == 3 and rng.random() < 0.4 else words)
            for _ in range(rng.randint(7, 13))
        ]
        text = " ".join(picked)
        made.append(DemoRecord(JUNK, "", text[0].upper() + text[1:] + ".", None))
    return made


def base_documents(count: int, seed: int, taken: Iterable[str]) -> list[tuple[str, str]]:
    """The base's text: (question, answer), or ("", statement), never about a `taken` name.

    Values are drawn afresh each time: with fixed ones the base would learn facts instead of the
    language, and adapters then reached 2 % (page 50).
    """
    rng = random.Random(f"base:{seed}")
    pools: dict[str, list[str]] = {}
    barred = set(taken)
    for domain in DOMAINS:
        pool = [a + b for a in domain.first for b in domain.last if a + b not in barred]
        rng.shuffle(pool)
        pools[domain.name] = pool
    documents = []
    for _ in range(count):
        domain = rng.choice(DOMAINS)
        relation = rng.choice(domain.relations)
        thing = rng.choice(pools[domain.name])
        value = rng.choice(relation.values)
        if rng.random() < PLAIN_SHARE:
            documents.append(("", relation.state(thing, value, rng.randrange(3))))
        else:
            question = relation.ask(thing, rng.randrange(6))
            documents.append((question, relation.state(thing, value)))
    return documents


def demo_base_documents(count: int, seed: int) -> list[tuple[str, str]]:
    """The base's text for the demo: about everything but the three Datanets' things."""
    taken = [name for domain in DOMAINS for name in things(domain, seed)]
    return base_documents(count, seed, taken)
