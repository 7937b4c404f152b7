"""`olnode bench judging`: honest answers beside cheats, on a trained base with trained adapters.

The devnet's base and adapters (trained once, then from its cache). Honest receipts are made in
batches of one and sixteen, with one thread and two; cheats in batches of sixteen. Every receipt
has 48 tokens and is judged alone, as page 50 §8 does. Two kinds of text: `free`, beginnings of
sentences gone on with at temperature 1, and `low`, the Datanet's own questions at 0.3.

Of each cheat: the share that is found by the thresholds of page 50 (`found`: SUSPECT or FAIL;
`failed`: FAIL), and by each measure above one and a half times the honest maximum, in the manner of
page 50's table (`token` is the margin). A forged answer was made by a four-bit base, and has its
log-probabilities and fingerprints from one true forward: only the tokens can give it away.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Final

if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # two threads beside others: do not spin

from bench.protocol import AT_LEAST, AT_MOST, Budget, finish, quiet, tell
from cheats_kit import (
    altering,
    changed_adapter,
    coarse_base,
    cut_rank,
    forge,
    logprobs_of,
    newer_adapter,
)
from judging_kit import Asked, Auditor, Told, manifest_of, sampling_of, serve

from node.attribution.datanets import Record, encode_prompt
from node.attribution.tokens import TextTokenizer
from node.serving.engine import IGNORE_EOS, AdapterRef, EngineSettings
from node.serving.judging import Finding, Judgement, Measures

TOKENS: Final = 48
BATCH: Final = 16
ALTERED_AT: Final = 20
OPENING: Final = 4  # tokens of a sentence that is gone on with
ROOM: Final = 1.5  # over the honest maximum, as page 50's table has it
CLASSES: Final = ("fp32", "bf16")
TEXTS: Final = {"free": 1_000, "low": 300}  # temperature, in thousandths
HONEST_WAYS: Final = tuple((batch, threads) for threads in (1, 2) for batch in (1, BATCH))

# Page 50 §8: the share of single receipts caught by the best measure, free text and low entropy.
PAGE: Final[dict[str, dict[str, tuple[float | None, float | None]]]] = {
    "fp32": {
        "no_adapter": (1, 1), "other_adapter": (1, 1), "newer": (1, 1), "rank_4": (1, 1),
        "rank_7": (1, 1), "int4": (1, 1), "int8": (1, 1), "temperature": (1, 0.44),
        "altered": (1, 1), "forged": (None, 0.22),
    },
    "bf16": {
        "no_adapter": (1, 1), "other_adapter": (1, 1), "newer": (1, 1), "rank_4": (1, 1),
        "rank_7": (0.78, 0), "int4": (1, 0), "int8": (0, 0),
    },
}  # fmt: skip


def budgets() -> tuple[Budget, ...]:
    """The rates of page 50, and that no honest answer fails."""
    rates = [
        Budget(f"{dtype}_{cheat}_{text}", AT_LEAST, share)
        for dtype, rows in PAGE.items()
        for cheat, shares in rows.items()
        for text, share in zip(TEXTS, shares, strict=True)
        if share
    ]
    honest = [
        Budget("honest_receipts", AT_LEAST, 200 * len(CLASSES)),
        Budget("honest_failed", AT_MOST, 0),
    ]
    return (*honest, *rates)


@dataclass(frozen=True)
class Stage:
    """What is served: a base, the adapter that receipts claim, another one, and its records."""

    base: Path
    adapter: AdapterRef
    other: AdapterRef
    records: Sequence[Record]
    honest: int  # answers of each text
    answers: int  # of each text and cheat


# --- questions


def asked_of(stage: Stage, text: str, count: int, first: int = 0) -> list[Asked]:
    """`count` questions of one kind, with numbers from `first` on."""
    tokenizer = TextTokenizer(stage.base)
    prompts = [one.prompt for one in stage.records if one.prompt]
    answers = [one.completion for one in stage.records]
    sampling = sampling_of(
        temperature_milli=TEXTS[text], max_tokens=TOKENS, flags=IGNORE_EOS
    )  # 48 tokens, whatever is said
    asked = []
    for number in range(first, first + count):
        if text == "free":
            tokens = tuple(tokenizer.encode(answers[number % len(answers)])[:OPENING])
        else:
            tokens = encode_prompt(tokenizer, prompts[number % len(prompts)])
        asked.append(Asked(tokens, sampling, provider_nonce=number.to_bytes(32, "big")))
    return asked


# --- engines


def core_of(base: Path, dtype: str, refs: Iterable[AdapterRef]) -> Any:
    """An engine that holds these adapters."""
    from node.serving.slots import SlotCore

    core = SlotCore(EngineSettings(str(base), rows=BATCH, dtype_class=dtype, threads=1))
    for ref in refs:
        core.load(ref)
    return core


def in_batches(
    core: Any, asked: Sequence[Asked], adapter: bytes | None, size: int = BATCH, **more: Any
) -> list[Told]:
    """All answers, so many at once."""
    return [
        one
        for at in range(0, len(asked), size)
        for one in serve(core, asked[at : at + size], adapter, **more)
    ]


class Court:
    """One dtype class: the true engine, the auditor's, and every cheat's."""

    def __init__(self, stage: Stage, dtype: str, folder: Path) -> None:
        self.stage, self.dtype = stage, dtype
        source = Path(stage.adapter.folder)
        self.spoilt = {
            "other_adapter": stage.other,
            "newer": newer_adapter(
                stage.base, source, folder / "newer", stage.records, steps=2, batch=BATCH
            ),
            "rank_4": changed_adapter(source, folder / "rank4", cut_rank(4)),
            "rank_7": changed_adapter(source, folder / "rank7", cut_rank(7)),
        }
        self.core = core_of(stage.base, dtype, [stage.adapter, *self.spoilt.values()])
        true = core_of(stage.base, dtype, [stage.adapter])
        self.auditor = Auditor(true, manifest_of(true.info.base, stage.adapter.hash, dtype=dtype))
        self.coarse = {
            name: core_of(
                coarse_base(stage.base, folder / f"{dtype}-{name}", bits), dtype, [stage.adapter]
            )
            for name, bits in (("int4", 4), ("int8", 8))
        }

    def honest(self, text: str) -> list[Told]:
        """A quarter in each of the ways that a provider may choose."""
        import torch

        told, each = [], self.stage.honest // len(HONEST_WAYS)
        for place, (batch, threads) in enumerate(HONEST_WAYS):
            torch.set_num_threads(threads)
            asked = asked_of(self.stage, text, each, first=place * each)
            told += in_batches(self.core, asked, self.stage.adapter.hash, batch)
            torch.set_num_threads(1)
        return told

    def cheats(self, text: str) -> dict[str, Callable[[], list[Told]]]:
        """By name; each told as the true version."""
        asked = asked_of(self.stage, text, self.stage.answers)
        mine = self.stage.adapter.hash
        claimed = self.auditor.core.info, mine

        def served(core: Any, adapter: bytes | None, **more: Any) -> list[Told]:
            return in_batches(core, asked, adapter, claimed=claimed, **more)

        def altered() -> list[Told]:
            with altering(self.core, ALTERED_AT):
                told = served(self.core, mine)
            return [forge(self.auditor, one) for one in told]

        hotter = TEXTS[text] * 5 // 4
        found = {
            "no_adapter": lambda: served(self.core, None),
            **{
                name: lambda ref=ref: served(self.core, ref.hash)
                for name, ref in self.spoilt.items()
            },
            **{name: lambda core=core: served(core, mine) for name, core in self.coarse.items()},
            "temperature": lambda: served(self.core, mine, temperature_milli=hotter),
            "altered": altered,
            "forged": lambda: [
                forge(self.auditor, one) for one in served(self.coarse["int4"], mine)
            ],
        }
        return found

    def judged(self, told: Iterable[Told]) -> list[Judgement]:
        """Each alone."""
        return [self.auditor.judge(one) for one in told]


# --- figures


def greatest(judged: Sequence[Judgement]) -> Measures:
    """The greatest of each measure."""
    measures = [one.measures for one in judged if one.measures is not None]
    return Measures(*(max(values) for values in zip(*measures, strict=True)))


def row_of(judged: Sequence[Judgement], honest: Measures) -> dict[str, float]:
    """The shares of one cheat."""
    measures = [one.measures for one in judged if one.measures is not None]

    def above(name: str) -> float:
        limit = max(ROOM * getattr(honest, name), 1e-9)
        return round(mean(getattr(one, name) > limit for one in measures), 3)

    return {
        "found": round(mean(one.finding is not Finding.PASS for one in judged), 3),
        "failed": round(mean(one.finding is Finding.FAIL for one in judged), 3),
        "token": above("margin"),
        "logprob": above("logprob"),
        "fingerprint": above("fingerprint"),
    }


def measure_class(stage: Stage, dtype: str) -> dict[str, Any]:
    """Honest findings and one row a cheat and text."""
    with tempfile.TemporaryDirectory(prefix="olnode-bench-") as name:
        court = Court(stage, dtype, Path(name))
        tell(f"{dtype}: honest answers")
        told = {text: court.honest(text) for text in TEXTS}
        honest = {text: court.judged(ones) for text, ones in told.items()}
        every = [one for ones in honest.values() for one in ones]
        findings = {each.name: sum(one.finding is each for one in every) for each in Finding}
        table: dict[str, dict[str, dict[str, float]]] = {}
        for text in TEXTS:
            most = greatest(honest[text])
            for cheat, make in court.cheats(text).items():
                tell(f"{dtype}: {text}, {cheat}")
                row = row_of(court.judged(make()), most)
                table.setdefault(cheat, {})[text] = row
    return {
        "honest": findings,
        "honest_max": greatest(every)._asdict(),
        "nats_a_token": {
            text: round(-mean(value for one in ones for value in logprobs_of(one)), 3)
            for text, ones in told.items()
        },
        "cheats": table,
    }


def figures_of(classes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Flat where a budget is, and the tables as they are."""
    flat = {
        f"{dtype}_{cheat}_{text}": row["found"]
        for dtype, found in classes.items()
        for cheat, rows in found["cheats"].items()
        for text, row in rows.items()
    }
    honest = [found["honest"] for found in classes.values()]
    return {
        "honest_receipts": sum(sum(findings.values()) for findings in honest),
        "honest_failed": sum(findings["FAIL"] for findings in honest),
        "honest_suspect": sum(findings["SUSPECT"] for findings in honest),
        **flat,
        **classes,
    }


def trained_stage(honest: int, answers: int, threads: int) -> Stage:
    """The devnet's goods: the first Datanet's adapter, and the second's as another."""
    from node.devnet.goods import cache_folder, make_goods
    from node.training.finetune import FINAL

    goods = make_goods(
        cache_folder(), threads, lambda what, done, total: done == total and tell(what)
    )
    mine, other = goods.goods[:2]
    records = [record for given in mine.contributions[:12] for record in given]
    return Stage(
        goods.base,
        AdapterRef(mine.adapter.final, mine.adapter.folder_of(FINAL)),
        AdapterRef(other.adapter.final, other.adapter.folder_of(FINAL)),
        records,
        honest,
        answers,
    )


def main() -> None:
    """The command line of `olnode bench judging`."""
    parser = argparse.ArgumentParser(prog="olnode bench judging")
    parser.add_argument("--honest", type=int, default=104, help="answers of each text and class")
    parser.add_argument("--answers", type=int, default=48, help="of each text, class and cheat")
    parser.add_argument("--threads", type=int, default=2, help="to train with, if need be")
    given = parser.parse_args()
    quiet()
    import torch

    stage = trained_stage(given.honest, given.answers, given.threads)
    torch.set_num_threads(1)
    finish(figures_of({dtype: measure_class(stage, dtype) for dtype in CLASSES}), budgets())


if __name__ == "__main__":
    main()
