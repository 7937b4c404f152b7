"""From an answer to its credits: gradients in the engine, then the exact scan of the index.

Why the float part stays in the worker: only the 1,024 bytes of the sketch come out, and from them
on every node computes the same (page 60 §4, §5). No sketch means no credits: the data part then
goes to the model's fund, never to whom we like.
What this file does not know: receipts, money, where an index came from.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import trio

from consensus.primitives.errors import Invalid
from node.attribution.attribute import NO_SKETCH, Version, attribute
from node.attribution.citing import Citing, Retrieved
from node.attribution.index import Index
from node.attribution.scorers import Answer
from node.ledger.wire.receipts import Credits
from node.serving.engine import Engine, EngineError, EngineLost, GradItem, Overloaded

RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread

NOTHING_CREDITED: Final[Credits] = ()


@dataclass(frozen=True, slots=True)
class HeldIndex:
    """An opened index, its folder, and the version it belongs to."""

    index: Index
    folder: str
    version: Version
    citing: Citing | None = None  # where the index's mix has citations and its texts are here


class Attributed(NamedTuple):
    """What a receipt commits to; without a sketch all but the hash is empty, and `why` says why.

    `is_passing`: another time there may be one, for the engine was lost or too busy.
    """

    credits: Credits
    sketch: bytes
    statement: bytes
    sketch_hash: bytes
    why: str = ""

    @property
    def is_passing(self) -> bool:
        return self.why in (EngineLost.code, Overloaded.code)


UNATTRIBUTED: Final = Attributed(NOTHING_CREDITED, b"", b"", NO_SKETCH)


class Attributor:
    """Attributes answers of the versions whose index `find_index` knows."""

    def __init__(
        self,
        *,
        engine: Engine,
        find_index: Callable[[int, int], HeldIndex | None],
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        self._engine = engine
        self._find_index = find_index
        self._run_blocking = run_blocking
        self.counters: Counter[str] = Counter()

    async def retrieve(
        self, model: int, version: int, prompt: Sequence[int], max_out: int
    ) -> Retrieved:
        """What the engine reads in place of `prompt`: records first, where the version cites."""
        held = self._find_index(model, version)
        if held is None or held.citing is None:
            return Retrieved((), tuple(prompt))
        found: Retrieved = await self._run_blocking(held.citing.retrieve, prompt, max_out)
        self.counters["retrieved"] += len(found.rows)
        return found

    async def attribute(
        self,
        model: int,
        version: int,
        prompt: Sequence[int],
        answers: Sequence[Sequence[int]],
        retrieved: Sequence[int] = (),
    ) -> Attributed:
        """Credits, sketch and statement; `UNATTRIBUTED` without index, gradient or answer.

        `prompt` as the payer gave it; `retrieved`: the rows whose records
        stood before it.
        """
        held = self._find_index(model, version)
        spoken = tuple(tuple(ids) for ids in answers if ids)
        if held is None or not spoken:
            return self._without("no_index" if held is None else "no_answer")
        header = held.index.header
        item = GradItem(
            checkpoints=(header.early, header.middle),
            prompt=tuple(prompt),
            answers=spoken,
            index_folder=held.folder,
        )
        try:
            (sketch,) = await self._engine.gradients((item,))
        except EngineError as error:
            return self._without(error.code)
        if not sketch.data:
            return self._without(sketch.error or "no_gradient")
        said = Answer.of(prompt, spoken)
        if held.citing is not None:
            said = await self._run_blocking(held.citing.read, prompt, spoken, retrieved)
        try:
            found = await self._run_blocking(
                attribute, held.index, sketch.data, held.version, None, said
            )
        except Invalid as error:  # norms out of bounds: an honest receipt then has no sketch
            return self._without(error.code)
        self.counters["attributed"] += 1
        return Attributed(found.credits, found.sketch, found.statement_bytes, found.sketch_hash)

    def _without(self, why: str) -> Attributed:
        self.counters[f"without.{why}"] += 1
        return UNATTRIBUTED._replace(why=why)
