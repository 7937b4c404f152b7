"""How far honest machines differ on the answers of one version: thresholds for its receipts.

Why measured for each version: what rounding does to a margin or a fingerprint depends on the
weights. Answers are made in every way a provider may make them (alone and in a batch, with one
thread and with several) and run again as an auditor would; SUSPECT begins at one and a half times
the greatest difference, and never below the table of page 50 §8. FAIL keeps the table's distance.
What this file does not know: receipts, who publishes, where the report is kept.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from consensus.primitives.digest import domain_hash, sha256
from consensus.primitives.encoding import encode
from node.attribution.datanets import Record, encode_prompt
from node.attribution.tokens import TextTokenizer
from node.serving.adapters import read_adapter
from node.serving.engine import (
    AdapterRef,
    EngineSettings,
    Finish,
    GenRequest,
    Sampling,
    Score,
    ScoreItem,
    Token,
)
from node.serving.judging import TABLE, Bounds, Measures, measure
from node.serving.manifest import DTYPES
from node.serving.verify import choice_evidence
from node.training.finetune import TrainingError

VERSION: Final = 1
ANSWERS_MIN: Final = 64
ROOM: Final = 1.5  # over the greatest honest difference
BATCH: Final = 16
TOKENS: Final = 48
TEMPERATURE_MILLI: Final = 1_000
MILLION: Final = 1_000_000
BILLION: Final = 1_000_000_000  # measured values are kept finer than thresholds
_U32_MAX: Final = 2**32 - 1


class Way(NamedTuple):
    """How some answers were made: so many at once, with so many threads."""

    batch: int
    threads: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """`measured`: for each way its answers' margin, log-probability and fingerprint differences."""

    base: bytes
    adapter: bytes
    dtype_class: str
    build: bytes
    measured: tuple[tuple[Way, tuple[Measures, ...]], ...]

    @property
    def answers(self) -> int:
        """How many answers were run again."""
        return sum(len(found) for _, found in self.measured)

    @property
    def greatest(self) -> Measures:
        """The greatest of each measure."""
        every = [one for _, found in self.measured for one in found]
        return Measures(*(max(values) for values in zip(*every, strict=True)))

    @property
    def threshold(self) -> tuple[int, int, int, int, int, int, int]:
        """The manifest's row: class, then SUSPECT and FAIL of each measure in millionths."""
        table: Bounds = TABLE[self.dtype_class]
        row = [DTYPES.index(self.dtype_class)]
        for bound, greatest in zip(table, self.greatest, strict=True):
            suspect = max(bound.suspect, ROOM * greatest)
            row += [_millionths(suspect), _millionths(suspect * bound.fail / bound.suspect)]
        return tuple(row)  # type: ignore[return-value]  # seven by construction

    def encode(self) -> bytes:
        """Canonical bytes: the evidence that a manifest's `report` names by their SHA-256."""
        return encode(
            (
                VERSION,
                self.base,
                self.adapter,
                self.dtype_class.encode(),
                self.build,
                self.threshold,
                [
                    (*way, [tuple(_billionths(value) for value in one) for one in found])
                    for way, found in self.measured
                ],
            )
        )

    def hash(self) -> bytes:
        """SHA-256 of the encoding."""
        return sha256(self.encode())


def calibrate(
    base: str | os.PathLike[str],
    adapter: str | os.PathLike[str] | None,
    questions: Sequence[Record],
    on_answer: Callable[[int, int], None] = lambda done, total: None,
    *,
    answers: int = ANSWERS_MIN,
    tokens: int = TOKENS,
    dtype_class: str = "fp32",
    device: str = "cpu",
    threads: Sequence[int] = (1, 2),
) -> Calibration:
    """Answer `answers` questions in each way and run every answer again. Blocks for minutes.

    Questions are used again when they are fewer. Raises TrainingError where there are none or
    `answers` is below ANSWERS_MIN ÷ the number of ways, BadAdapter, WrongBase, Unsupported.
    """
    ways = [Way(batch, count) for count in threads for batch in (1, BATCH)]
    if not questions or answers * len(ways) < ANSWERS_MIN:
        raise TrainingError(f"a calibration takes questions and at least {ANSWERS_MIN} answers")
    bench = _Bench(base, adapter, questions, tokens, dtype_class, device)
    measured = []
    for number, way in enumerate(ways):
        found = []
        for one in bench.measure(way, answers):
            found.append(one)
            on_answer(number * answers + len(found), len(ways) * answers)
        measured.append((way, tuple(found)))
    info = bench.core.info
    return Calibration(info.base, bench.adapter or b"", dtype_class, info.build, tuple(measured))


class _Bench:
    """One engine that is provider and auditor in turn."""

    def __init__(
        self,
        base: str | os.PathLike[str],
        adapter: str | os.PathLike[str] | None,
        questions: Sequence[Record],
        tokens: int,
        dtype_class: str,
        device: str,
    ) -> None:
        from node.serving.slots import SlotCore

        settings = EngineSettings(
            os.fspath(base), rows=BATCH, dtype_class=dtype_class, device=device
        )
        self.core = SlotCore(settings)
        self.adapter: bytes | None = None
        if adapter is not None:
            self.adapter = read_adapter(adapter).hash
            self.core.load(AdapterRef(self.adapter, os.fspath(adapter)), pin=True)
        tokenizer = TextTokenizer(base)
        longest = self.core.info.max_model_len - tokens
        self._prompts = [encode_prompt(tokenizer, one.prompt)[-longest:] for one in questions]
        self._sampling = Sampling(tokens, temperature_milli=TEMPERATURE_MILLI)

    def measure(self, way: Way, answers: int) -> Iterator[Measures]:
        """`answers` made this way, each with what running it again tells."""
        for start in range(0, answers, way.batch):
            _use_threads(way.threads)
            made = self._generate(range(start, min(start + way.batch, answers)))
            _use_threads(1)
            for number, (ids, finish) in made.items():
                yield self._again(number, ids, finish)

    def _generate(self, numbers: Sequence[int]) -> dict[int, tuple[list[int], Finish]]:
        for number in numbers:
            request = GenRequest(
                _name(number),
                b"calibration",
                self.adapter,
                self._prompts[number % len(self._prompts)],
                self._sampling,
                _seed(number),
            )
            self.core.submit(request)
        ids: dict[int, list[int]] = {number: [] for number in numbers}
        made: dict[int, tuple[list[int], Finish]] = {}
        while len(made) < len(numbers):
            for name, event in self.core.step():
                number = int.from_bytes(name, "big")
                if isinstance(event, Token):
                    ids[number].append(event.id)
                else:
                    made[number] = ids[number], event
        return made

    def _again(self, number: int, ids: Sequence[int], finish: Finish) -> Measures:
        (ending,) = finish.choices
        prompt = self._prompts[number % len(self._prompts)]
        slack = TABLE[self.core.info.dtype_class].margin.suspect
        item = ScoreItem(self.adapter, prompt, tuple(ids), self._sampling, _seed(number), 0, slack)
        self.core.add_scores(0, [item])
        made: list[Any] = []
        while not made:
            self.core.step()
            made = self.core.made()
        ((_, _, score),) = made
        assert isinstance(score, Score)
        choice = choice_evidence(ids, ending.logprobs, ending.fingerprints, ending.reason)
        return measure(choice, score)


def _use_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


def _name(number: int) -> bytes:
    return number.to_bytes(4, "big")


def _seed(number: int) -> bytes:
    return domain_hash(b"calibration", _name(number))


def _millionths(value: float) -> int:
    return min(_U32_MAX, math.ceil(value * MILLION))


def _billionths(value: float) -> int:
    return min(_U32_MAX, math.ceil(value * BILLION))
