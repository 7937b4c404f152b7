"""The demo's language: what can be stated and asked of leases, stews and stars.

Why templates: a question, its answer and the value in it can be told apart by rule, so a test
knows what is right. The first four phrasings are for records, the last two for tests only.
What this file does not know: which things exist, who knows which fact (`demo_world.py`).
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Relation:
    """What can be said and asked of a thing `{e}` with a value `{v}`.

    The first statement is the form of every answer; six questions, the last two held back.
    """

    name: str
    values: tuple[str, ...]
    statements: tuple[str, str, str]
    questions: tuple[str, str, str, str, str, str]

    def state(self, thing: str, value: str, form: int = 0) -> str:
        """A sentence that gives the fact."""
        text = self.statements[form].format(e=thing, v=value)
        return text[0].upper() + text[1:]

    def ask(self, thing: str, phrasing: int) -> str:
        """A question whose answer is the fact."""
        return self.questions[phrasing].format(e=thing)


@dataclass(frozen=True, slots=True)
class Domain:
    """One Datanet's subject: halves that names are made of, and four relations."""

    name: str
    first: tuple[str, ...]
    last: tuple[str, ...]
    relations: tuple[Relation, ...]

    def relation(self, name: str) -> Relation:
        """The relation of that name."""
        return next(relation for relation in self.relations if relation.name == name)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_PLACE_FIRST: Final = _words(
    "Ash Bram Cal Dun Elm Fen Gar Hol Ives Kel Lin Mar Nor Oak Pen Quin Ros Stan Tol Ul "
    "Var Wen Yar Zel"
)
_PLACE_LAST: Final = _words(
    "ford wick ley mere ton bury dale combe field gate ham hurst low mouth nock over port "
    "rick stead thorpe vale well worth yard"
)
_STAR_FIRST: Final = _words(
    "Al Bel Cor Dra Eri Fom Gem Hyd Ixi Jun Kap Lyr Mir Nav Oph Pha Ras Sai Tha Umb Veg Wez Xan Zos"
)
_STAR_LAST: Final = _words(
    "tara nis vex phon dor mira quil bara thea lion gol cyon rus hem tarn pex via zar "
    "monda lis kab deneb sula ofar"
)

CONTRACTS: Final = Domain(
    name="contracts",
    first=_PLACE_FIRST,
    last=_PLACE_LAST,
    relations=(
        Relation(
            name="notice",
            values=(
                "ten days",
                "thirty days",
                "sixty days",
                "ninety days",
                "six weeks",
                "four months",
                "half a year",
                "one full season",
            ),
            statements=(
                "Under the {e} lease, notice of {v} must be given.",
                "The {e} lease asks for {v} of notice.",
                "Whoever ends the {e} lease gives notice of {v}.",
            ),
            questions=(
                "How much notice does the {e} lease ask for?",
                "What is the notice period of the {e} lease?",
                "How early must notice be given under the {e} lease?",
                "If I end the {e} lease, what notice do I owe?",
                "Which notice period was agreed for {e}?",
                "I rent at {e}: how long before leaving must I give notice?",
            ),
        ),
        Relation(
            name="rent",
            values=(
                "forty crowns",
                "ninety crowns",
                "two hundred crowns",
                "three hundred crowns",
                "five hundred crowns",
                "eight hundred crowns",
                "one thousand crowns",
                "two thousand crowns",
            ),
            statements=(
                "The rent under the {e} lease is {v} a month.",
                "Each month the tenant of {e} pays {v}.",
                "The {e} lease sets a monthly rent of {v}.",
            ),
            questions=(
                "What is the monthly rent at {e}?",
                "How much rent does the {e} lease set?",
                "What does the tenant of {e} pay each month?",
                "How many crowns a month is the {e} lease?",
                "What rent was agreed for {e}?",
                "I want to live at {e}: what will I pay a month?",
            ),
        ),
        Relation(
            name="court",
            values=(
                "the court of Norhaven",
                "the river court",
                "the guild of masons",
                "three village elders",
                "the harbour judge",
                "the county bench",
                "the court of Saltmarsh",
                "a single arbiter",
            ),
            statements=(
                "Disputes under the {e} lease go to {v}.",
                "The {e} lease sends every dispute to {v}.",
                "Quarrels about {e} are settled by {v}.",
            ),
            questions=(
                "Who settles disputes under the {e} lease?",
                "Where do disputes about {e} go?",
                "Which judge does the {e} lease name for disputes?",
                "If there is a quarrel about {e}, who decides?",
                "Who was agreed to hear disputes for {e}?",
                "I have a quarrel over {e}: who will hear it?",
            ),
        ),
        Relation(
            name="roof",
            values=(
                "the tenant",
                "the landlord",
                "the town",
                "the carpenters",
                "the owner's family",
                "a hired mason",
                "the harbour office",
                "both sides equally",
            ),
            statements=(
                "At {e}, roof repairs are paid by {v}.",
                "The {e} lease leaves the roof to {v}.",
                "Under the {e} lease the roof is kept up by {v}.",
            ),
            questions=(
                "Who pays for roof repairs at {e}?",
                "Who must mend the roof under the {e} lease?",
                "To whom does the {e} lease leave the roof?",
                "If the roof of {e} leaks, who pays?",
                "Who was agreed to keep up the roof of {e}?",
                "My roof at {e} leaks: whose duty is it?",
            ),
        ),
    ),
)

COOKING: Final = Domain(
    name="cooking",
    first=_PLACE_FIRST,
    last=_PLACE_LAST,
    relations=(
        Relation(
            name="spice",
            values=(
                "smoked paprika",
                "juniper berries",
                "black cumin",
                "dried mint",
                "fennel seed",
                "white pepper",
                "saffron threads",
                "crushed mustard",
            ),
            statements=(
                "The spice of {e} stew is {v}.",
                "Cooks season {e} stew with {v}.",
                "A true {e} stew is flavoured with {v}.",
            ),
            questions=(
                "Which spice goes into {e} stew?",
                "What seasons {e} stew?",
                "With what do cooks flavour {e} stew?",
                "What spice does {e} stew need?",
                "What gives the stew of {e} its taste?",
                "I am making {e} stew: which spice do I take?",
            ),
        ),
        Relation(
            name="time",
            values=(
                "twenty minutes",
                "forty minutes",
                "one hour",
                "two hours",
                "three hours",
                "five hours",
                "a whole night",
                "half a day",
            ),
            statements=(
                "{e} stew simmers for {v}.",
                "Leave {e} stew on the fire for {v}.",
                "The cooking time of {e} stew is {v}.",
            ),
            questions=(
                "How long does {e} stew simmer?",
                "What is the cooking time of {e} stew?",
                "How long must {e} stew stay on the fire?",
                "For how long is {e} stew cooked?",
                "When is the stew of {e} done?",
                "I am making {e} stew: how long on the fire?",
            ),
        ),
        Relation(
            name="side",
            values=(
                "rye bread",
                "buttered barley",
                "boiled potatoes",
                "pickled beans",
                "oat dumplings",
                "a green salad",
                "roast turnips",
                "plain rice",
            ),
            statements=(
                "{e} stew is served with {v}.",
                "Beside {e} stew comes {v}.",
                "People eat {e} stew with {v}.",
            ),
            questions=(
                "What is served with {e} stew?",
                "What comes beside {e} stew?",
                "With what do people eat {e} stew?",
                "Which side goes with {e} stew?",
                "What belongs on the table with the stew of {e}?",
                "I am serving {e} stew: what do I put beside it?",
            ),
        ),
        Relation(
            name="pot",
            values=(
                "a clay pot",
                "an iron pan",
                "a copper kettle",
                "a stone bowl",
                "a tin tray",
                "a glazed dish",
                "a deep cauldron",
                "a wooden steamer",
            ),
            statements=(
                "{e} stew is cooked in {v}.",
                "For {e} stew use {v}.",
                "The vessel for {e} stew is {v}.",
            ),
            questions=(
                "What is {e} stew cooked in?",
                "Which vessel does {e} stew need?",
                "What do I use to cook {e} stew?",
                "In what is {e} stew made?",
                "Which pot suits the stew of {e}?",
                "I am making {e} stew: in which pot?",
            ),
        ),
    ),
)

ASTRONOMY: Final = Domain(
    name="astronomy",
    first=_STAR_FIRST,
    last=_STAR_LAST,
    relations=(
        Relation(
            name="colour",
            values=(
                "pale blue",
                "deep red",
                "bright white",
                "dull orange",
                "pure yellow",
                "faint violet",
                "dark brown",
                "silver grey",
            ),
            statements=(
                "The star {e} shines {v}.",
                "Seen through a glass, {e} is {v}.",
                "The colour of {e} is {v}.",
            ),
            questions=(
                "What colour is the star {e}?",
                "How does {e} shine?",
                "Which colour has {e} through a glass?",
                "In what colour do we see {e}?",
                "What would the colour plate of {e} show?",
                "I look at {e}: which colour will I see?",
            ),
        ),
        Relation(
            name="distance",
            values=(
                "nine light years",
                "twelve light years",
                "thirty light years",
                "fifty light years",
                "eighty light years",
                "two hundred light years",
                "six hundred light years",
                "one thousand light years",
            ),
            statements=(
                "The star {e} is {v} away.",
                "From here to {e} it is {v}.",
                "The distance of {e} is {v}.",
            ),
            questions=(
                "How far away is {e}?",
                "What is the distance of {e}?",
                "How many light years is it to {e}?",
                "How far is it from here to {e}?",
                "How distant is the star {e}?",
                "I aim at {e}: how far does the light travel?",
            ),
        ),
        Relation(
            name="planets",
            values=(
                "no planets",
                "one planet",
                "two planets",
                "three planets",
                "four planets",
                "five planets",
                "seven planets",
                "eleven planets",
            ),
            statements=(
                "Around the star {e} there are {v}.",
                "Astronomers count {v} at {e}.",
                "The family of {e} has {v}.",
            ),
            questions=(
                "How many planets has {e}?",
                "How many planets go around {e}?",
                "What do astronomers count at {e}?",
                "What is the number of planets at {e}?",
                "How large is the family of {e}?",
                "I map {e}: how many planets do I draw?",
            ),
        ),
        Relation(
            name="finder",
            values=(
                "the Hillcrest observatory",
                "the Polar station",
                "the Island school",
                "the Desert array",
                "the Old Tower",
                "the Lake observatory",
                "the Southern ship",
                "the Mountain club",
            ),
            statements=(
                "The star {e} was first charted by {v}.",
                "First to chart {e} was {v}.",
                "The discovery of {e} belongs to {v}.",
            ),
            questions=(
                "Who first charted {e}?",
                "Who discovered the star {e}?",
                "To whom does the discovery of {e} belong?",
                "Which place charted {e} first?",
                "Who found {e}?",
                "I cite {e}: whom do I name as discoverer?",
            ),
        ),
    ),
)

DOMAINS: Final = (CONTRACTS, COOKING, ASTRONOMY)
