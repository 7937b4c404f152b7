"""From an answer to its credits; whatever is missing on the way, the answer still has a receipt."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
from attribution_kit import CITING, VERSION, mix_rows, sound_rows, write_index
from exchange_kit import at_once

from node.attribution.attribute import NO_SKETCH, attribute
from node.attribution.citing import Retrieved
from node.attribution.index import Index
from node.attribution.scorers import Answer
from node.ledger.wire.claims import decode_statement, sketch_hash
from node.serving.attributing import UNATTRIBUTED, Attributor, HeldIndex
from node.serving.engine import EngineLost, GradItem, Overloaded, Sketch

PROMPT, ANSWERS = (5, 6, 7), ((8, 9), (), (10,))


class Engine:
    """Gives one sketch, or fails as it is told."""

    def __init__(self, sketch: Sketch | Exception) -> None:
        self.sketch = sketch
        self.items: list[GradItem] = []

    async def gradients(self, items: tuple[GradItem, ...]) -> list[Sketch]:
        await trio.lowlevel.checkpoint()
        self.items += items
        if isinstance(self.sketch, Exception):
            raise self.sketch
        return [self.sketch]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("index")
    return Index.open(*write_index(folder, sound_rows(40), plain=CITING))


@pytest.fixture
def make(index: Index) -> Callable[..., Attributor]:
    def make_attributor(
        sketch: Sketch | Exception, knows: bool = True, citing: Any = None
    ) -> Attributor:
        held = HeldIndex(index, "/folder", VERSION, citing)
        engine: Any = Engine(sketch)
        return Attributor(
            engine=engine,
            find_index=lambda model, version: (
                held if knows and (model, version) == (3, 2) else None
            ),
            run_blocking=at_once,
        )

    return make_attributor


def leaning(index: Index) -> bytes:
    """A sketch that points at row 7."""
    return mix_rows([(3.0, index.rows[7])])


async def test_credits_are_what_the_exact_scan_gives(
    make: Callable[..., Attributor], index: Index
) -> None:
    attributor, sketch = make(Sketch(leaning(index))), leaning(index)
    found = await attributor.attribute(3, 2, PROMPT, ANSWERS)
    wanted = attribute(index, sketch, VERSION)
    assert (found.credits, found.statement) == (wanted.credits, wanted.statement_bytes)
    assert sum(share for _, share in found.credits) == 10_000
    assert found.sketch_hash == sketch_hash(sketch, found.statement)
    assert attributor.counters == {"attributed": 1}


async def test_gradient_is_asked_of_the_indexs_checkpoints_and_of_what_was_said(
    make: Callable[..., Attributor], index: Index
) -> None:
    attributor = make(Sketch(leaning(index)))
    await attributor.attribute(3, 2, PROMPT, ANSWERS)
    (item,) = attributor._engine.items
    assert item.checkpoints == (index.header.early, index.header.middle)
    assert (item.prompt, item.answers) == (PROMPT, ((8, 9), (10,))), "an empty choice said nothing"
    assert item.index_folder == "/folder"


MISSING = {
    "no_index": (Sketch(b""), {"knows": False}, ANSWERS),
    "no_answer": (Sketch(b""), {}, ((), ())),
    "engine.overloaded": (Overloaded(retry_after_s=1), {}, ANSWERS),
    "engine.lost": (EngineLost(), {}, ANSWERS),
    "not_finite": (Sketch(b"", "not_finite"), {}, ANSWERS),
    "no_gradient": (Sketch(b""), {}, ANSWERS),
    "sketch.malformed": (Sketch(bytes(1_024)), {}, ANSWERS),
}


@pytest.mark.parametrize("why", sorted(MISSING))
async def test_without_a_sound_sketch_nobody_is_credited(
    make: Callable[..., Attributor], why: str
) -> None:
    """The data part then goes to the model's fund, never to whom the provider likes."""
    sketch, options, answers = MISSING[why]
    attributor = make(sketch, **options)
    found = await attributor.attribute(3, 2, PROMPT, answers)
    assert found == UNATTRIBUTED._replace(why=why)
    assert found.is_passing == why.startswith("engine.")
    assert (found.credits, found.sketch, found.statement) == ((), b"", b"")
    assert found.sketch_hash == NO_SKETCH
    assert attributor.counters == {f"without.{why}": 1}


async def test_fault_of_ours_is_not_taken_for_a_missing_sketch(
    make: Callable[..., Attributor],
) -> None:
    with pytest.raises(ZeroDivisionError):
        await make(ZeroDivisionError()).attribute(3, 2, PROMPT, ANSWERS)


# --- versions whose answers cite


class Shown:
    """Shows row 2 to every prompt, and finds it cited by whoever was shown it."""

    def retrieve(self, prompt: tuple[int, ...], max_out: int) -> Retrieved:
        return Retrieved((2,), (max_out, *prompt))

    def read(self, prompt: tuple[int, ...], answers: Any, rows: tuple[int, ...]) -> Answer:
        return Answer.of(prompt, answers)._replace(cited=tuple((row, 3) for row in rows))


async def test_engine_reads_records_first_and_the_sketch_is_of_the_prompt_alone(
    make: Callable[..., Attributor], index: Index
) -> None:
    attributor = make(Sketch(leaning(index)), citing=Shown())
    found = await attributor.retrieve(3, 2, PROMPT, 90)
    assert found == ((2,), (90, *PROMPT))
    made = await attributor.attribute(3, 2, PROMPT, ANSWERS, found.rows)
    assert decode_statement(made.statement).retrieved == ((2, 3),)
    (item,) = attributor._engine.items
    assert item.prompt == PROMPT


async def test_version_that_cites_nothing_is_asked_as_it_is(
    make: Callable[..., Attributor], index: Index
) -> None:
    for attributor in (make(Sketch(b"")), make(Sketch(b""), knows=False)):
        assert await attributor.retrieve(3, 2, PROMPT, 90) == ((), PROMPT)
