"""The worlds in which it is known whose data shaped an answer: words, a Datanet, questions.

Every fact is made here and given to one contributor. Beside the honest owners stand a verbatim
copier, a Sybil that says the same thing many times, poisoners who contradict an owner, filler
and garbage; a thief who rewords an owner's records joins on demand. The base model learns the
language, and another world's facts, from texts of the same phrasings.
Three worlds: the rules were tuned on number 1, and number 3 was looked at when silence was set.
Number 2 has words, phrasings, sizes and seeds of its own, and was looked at only to report.
What this file does not know: models, gradients, who is paid.
"""

import random
from dataclasses import dataclass
from typing import Final, NamedTuple

OWNERS_PHRASINGS: Final = 5  # the first five are of the owners; a thief rewords in the others
POISON_SHIFT: Final = 3  # a poisoner's value stands so far from the true one
EOS_BESIDE_LAST: Final = 2  # bos, eos, pad are the last three ids
NOISE_WORDS: Final = tuple(f"g{number}" for number in range(60))
FILLER_WORDS: Final = (*NOISE_WORDS, "the", "of", "is", ".", "and", "said")
FILLER_SHARE: Final = 0.15  # of the base's texts


@dataclass(frozen=True, slots=True)
class World:
    """All that decides a world. `asked` are the phrasings of questions: the value comes last."""

    seed: int
    relations: tuple[str, ...]
    phrasings: tuple[str, ...]
    asked: tuple[int, ...]
    entities: int = 60
    values: int = 6
    owners: int = 14
    facts_each: int = 3
    records_each: int = 12
    poisoners: int = 2
    epochs: int = 40
    rate: float = 5e-3
    base_steps: int = 900


WORLD_1: Final = World(
    seed=1,
    relations=("color", "home", "food", "job", "pet", "sport"),
    phrasings=(
        "the {r} of {e} is {v} .",
        "{e} has {v} as its {r} .",
        "we know that for {e} the {r} is {v} .",
        "about {e} the {r} was {v} .",
        "{e} and its {r} {v} .",
        "for {e} we said {v} was the {r} .",
        "as {r} of {e} we know {v} .",
        "it is {v} that {e} likes as {r} .",
    ),
    asked=(0, 2),
)
WORLD_2: Final = World(
    seed=20,
    relations=("lamp", "gate", "herb", "coin", "dance", "ship"),
    phrasings=(
        "in our book the {r} for {e} reads {v}",
        "people near {e} call {v} their own {r}",
        "when you visit {e} look at its {r} which is {v}",
        "{v} has been {r} to {e} since then",
        "what {e} keeps as {r} is called {v} here",
        "they wrote {v} beside {r} under {e}",
        "of all {r} words {e} picks {v}",
        "only {v} counts if {e} must name one {r}",
    ),
    asked=(0, 2),
    entities=66,
    values=7,
    owners=12,
    base_steps=1_500,  # until the model answers: at 900 it did not, and nothing was known to it
)
WORLD_3: Final = World(
    seed=2,
    relations=("river", "metal", "song", "guild", "crop", "star", "tool"),
    phrasings=(
        "ask anyone and the {r} found near {e} is {v}",
        "at {e} they keep {v} for their {r} today",
        "{e} chose its {r} long ago : {v}",
        "nobody doubts {v} being {r} at {e}",
        "old maps give {e} the {r} {v}",
        "there at {e} one {r} matters , namely {v}",
        "{v} , so they say , became {r} under {e}",
        "write down {r} : {v} , place : {e}",
    ),
    asked=(0, 2),
    entities=70,
    values=8,
    owners=11,
    facts_each=4,
    records_each=16,
)
SMALL: Final = World(  # world 1 in short, for `make test`: two records a fact tell more, sooner
    seed=1,
    relations=WORLD_1.relations,
    phrasings=WORLD_1.phrasings,
    asked=WORLD_1.asked,
    owners=8,
    records_each=6,
    poisoners=1,
    epochs=32,
    rate=7e-3,
)
WORLDS: Final = {1: WORLD_1, 2: WORLD_2, 3: WORLD_3}


class Fact(NamedTuple):
    """`value` numbers one of the relation's values."""

    relation: int
    entity: int
    value: int


class Text(NamedTuple):
    """A record: who gives it, what kind of contributor that is, the fact behind it."""

    contributor: int
    kind: str
    text: str
    fact: Fact | None


class Question(NamedTuple):
    """A question in words, the true answer's word, and the contributor who alone knows it."""

    prompt: str
    answer: str
    owner: int


class Unknown(NamedTuple):
    """A question that no record answers; `kind` is `thing` (never named) or `relation`."""

    prompt: str
    kind: str


class Datanet(NamedTuple):
    """Records in ledger order, questions on every fact, and questions on none."""

    texts: tuple[Text, ...]
    questions: tuple[Question, ...]
    unknown: tuple[Unknown, ...]

    def kind_of(self, contributor: int) -> str:
        """What the contributor's records are."""
        return next(text.kind for text in self.texts if text.contributor == contributor)

    @property
    def contributors(self) -> int:
        """How many there are; they are numbered from 0."""
        return self.texts[-1].contributor + 1

    def of_kind(self, *kinds: str) -> list[int]:
        """The contributors of these kinds."""
        return [who for who in range(self.contributors) if self.kind_of(who) in kinds]


def say(world: World, fact: Fact, phrasing: int) -> str:
    """The fact in one phrasing."""
    return world.phrasings[phrasing].format(
        r=world.relations[fact.relation], e=f"e{fact.entity}", v=value_word(fact)
    )


def value_word(fact: Fact) -> str:
    """One word of letters and digits, so that every reader sees one word."""
    return f"v{fact.relation}{chr(ord('a') + fact.value)}"


def make_datanet(world: World, thief_of: int | None = None) -> Datanet:
    """Owners, copier, Sybil, poisoners of owners 1 and on, filler, garbage; then the thief.

    The thief gives each fact of `thief_of` in every phrasing that the owners do not use.
    """
    rng = random.Random(world.seed)
    order = list(range(world.entities))
    rng.shuffle(order)
    texts: list[Text] = []
    known: dict[int, list[Fact]] = {}
    for owner in range(world.owners):
        mine = order[owner * world.facts_each : (owner + 1) * world.facts_each]
        known[owner] = [_draw_fact(world, entity, rng) for entity in mine]
        texts += _honest(world, owner, known[owner])
    free = order[world.owners * world.facts_each :]
    copier, sybil = world.owners, world.owners + 1
    texts += [text._replace(contributor=copier, kind="copy") for text in _of(texts, 0)]
    known[sybil] = [_draw_fact(world, entity, rng) for entity in free[:2]]
    texts += _repeated(world, sybil, known[sybil])
    for number in range(world.poisoners):
        texts += _poison(world, sybil + 1 + number, _of(texts, 1 + number), rng)
    for kind in ("filler", "garbage"):
        who = texts[-1].contributor + 1
        for _ in range(world.records_each):
            words = _filler(rng) if kind == "filler" else _garbage(world, rng)
            texts.append(Text(who, kind, words, None))
    if thief_of is not None:
        who = texts[-1].contributor + 1
        for fact in known[thief_of]:
            for phrasing in range(OWNERS_PHRASINGS, len(world.phrasings)):
                texts.append(Text(who, "thief", say(world, fact, phrasing), fact))
    questions = tuple(
        Question(_prompt(world, fact, phrasing), value_word(fact), owner)
        for owner, facts in known.items()
        for fact in facts
        for phrasing in world.asked
    )
    return Datanet(tuple(texts), questions, tuple(_unknown(world, known, free[2:], rng)))


def _draw_fact(world: World, entity: int, rng: random.Random) -> Fact:
    return Fact(rng.randrange(len(world.relations)), entity, rng.randrange(world.values))


def _honest(world: World, owner: int, facts: list[Fact]) -> list[Text]:
    """Each fact in as many phrasings as `records_each` allows, from one that differs by owner."""
    count = len(facts)
    return [
        Text(owner, "honest", say(world, facts[i % count], phrasing), facts[i % count])
        for i in range(world.records_each)
        for phrasing in [(i // count + owner) % OWNERS_PHRASINGS]
    ]


def _repeated(world: World, sybil: int, facts: list[Fact]) -> list[Text]:
    """Two facts in three phrasings each, again and again: near-duplicates of oneself."""
    return [
        Text(sybil, "sybil", say(world, facts[i % 2], (i // 2) % 3), facts[i % 2])
        for i in range(world.records_each)
    ]


def _poison(world: World, who: int, victims: list[Text], rng: random.Random) -> list[Text]:
    texts = []
    for victim in victims:
        assert victim.fact is not None
        false = (victim.fact.value + POISON_SHIFT) % world.values
        fact = victim.fact._replace(value=false)
        texts.append(Text(who, "poison", say(world, fact, rng.randrange(OWNERS_PHRASINGS)), fact))
    return texts


def _of(texts: list[Text], owner: int) -> list[Text]:
    return [text for text in texts if text.contributor == owner and text.kind == "honest"]


def _unknown(
    world: World, known: dict[int, list[Fact]], free: list[int], rng: random.Random
) -> list[Unknown]:
    """Things that no record names, and what no record tells of things that some do name."""
    unknown = []
    for entity in free:
        fact = _draw_fact(world, entity, rng)
        unknown += [Unknown(_prompt(world, fact, p), "thing") for p in world.asked]
    for facts in known.values():
        other = facts[0]._replace(relation=(facts[0].relation + 1) % len(world.relations))
        unknown.append(Unknown(_prompt(world, other, world.asked[0]), "relation"))
    return unknown


def _prompt(world: World, fact: Fact, phrasing: int) -> str:
    return say(world, fact, phrasing).partition(value_word(fact))[0].strip()


def _filler(rng: random.Random) -> str:
    return " ".join(rng.choice(FILLER_WORDS) for _ in range(rng.randint(6, 12)))


def _garbage(world: World, rng: random.Random) -> str:
    """Words of every kind in no order: names, relations and values among them."""
    return " ".join(rng.choice(_content_words(world)) for _ in range(13))


def _content_words(world: World) -> list[str]:
    entities = [f"e{number}" for number in range(world.entities)]
    facts = (Fact(r, 0, v) for r in range(len(world.relations)) for v in range(world.values))
    return [*world.relations, *entities, *map(value_word, facts)]


def vocabulary(world: World) -> list[str]:
    """Every word, then the start, stop and padding tokens."""
    glue = sorted({w for text in world.phrasings for w in text.split() if "{" not in w})
    words = dict.fromkeys([*_content_words(world), *glue, *FILLER_WORDS])
    return [*words, "<s>", "</s>", "<pad>"]


def base_texts(world: World, count: int) -> list[str]:
    """What the base reads: the language, and facts of a world that differs from the Datanet's."""
    rng = random.Random(f"base:{world.seed}")
    other = random.Random(f"other:{world.seed}")
    values = {
        (relation, entity): other.randrange(world.values)
        for relation in range(len(world.relations))
        for entity in range(world.entities)
    }
    texts = []
    for _ in range(count):
        if rng.random() < FILLER_SHARE:
            texts.append(_filler(rng))
            continue
        relation, entity = rng.randrange(len(world.relations)), rng.randrange(world.entities)
        fact = Fact(relation, entity, values[relation, entity])
        texts.append(say(world, fact, rng.randrange(len(world.phrasings))))
    return texts


class WordTokenizer:
    """One id a word: node.attribution.datanets.Tokenizer without a template."""

    chat_template = None
    bos_token_id = None

    def __init__(self, world: World) -> None:
        self.words = vocabulary(world)
        self._ids = {word: number for number, word in enumerate(self.words)}
        self.eos_token_id = len(self.words) - EOS_BESIDE_LAST

    def __len__(self) -> int:
        return len(self._ids)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """The ids of words that stand apart."""
        return [self._ids[word] for word in text.split()]

    def apply_chat_template(
        self, conversation: object, *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """Never asked: there is no template."""
        raise AssertionError(conversation)
