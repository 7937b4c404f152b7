"""`olnode bench serving`: many adapters over one base, beside the base alone and beside peft.

Random weights of two shapes: S, four layers of width 256, where each kernel call counts, and L, two
of width 2,048, as wide as a model of 1B parameters. Thirty-two rows of rank 16, thread CPU time of
one torch thread. Decoding is the engine's own loop (sampling and evidence included); peft decodes
the same rows with transformers' cache.
Why in turns of a few steps, each between two of the base: a machine's speed and its neighbours'
hunger for memory change within seconds. A ratio is of neighbours in time, by the shortest step of
each turn, and the figure is the median over the rounds; the best of few long runs gave .78 to .91
for the same code.
Classes of thirty-two rows: distinct (32 adapters), uniform (6), skewed (Zipf 1.5), identical.
`--device cuda` runs the shape of an 8B model in bf16, without peft; it says so where there is none.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from bench.protocol import AT_LEAST, AT_MOST, Budget, finish, quiet, tell
from bench.random_models import Shape, make_adapters, make_base

from node.serving.engine import (
    AdapterRef,
    EngineSettings,
    GenRequest,
    GradItem,
    Sampling,
    ScoreItem,
    Token,
)

ROWS: Final = 32
PROMPT: Final = 16
LENGTH: Final = 128  # of prompt and answer, so that attention costs much the same all along
ROUNDS: Final = 12
PEFT_ROUNDS: Final = 2  # of ours to one of peft's, which is slow and far behind
TOKENS: Final = 24  # of each row, compared with peft's
REGISTERED: Final = 10_000


S: Final = Shape("S", 4, 256, 688, 4, 4, 4)
L: Final = Shape("L", 2, 2_048, 5_504, 16, 16, 2)
EIGHT_B: Final = Shape("8B", 32, 4_096, 14_336, 32, 8, 4)


Who = Sequence[int | None]  # the adapter of each row by number; None: the base alone
BUDGETS: Final = (
    Budget("ratio_same", AT_LEAST, 0.97),
    Budget("ratio_distinct_8", AT_LEAST, 0.90),
    Budget("ratio_distinct_32", AT_LEAST, 0.90),
    Budget("vs_peft_mixed", AT_LEAST, 4),
    Budget("vs_peft_switching", AT_LEAST, 12),
    Budget("vs_peft_mixed_2048", AT_LEAST, 1.15),
    Budget("vs_peft_switching_2048", AT_LEAST, 6),
    Budget("registered", AT_LEAST, REGISTERED),
    Budget("registered_ms", AT_MOST, 100),
    Budget("ram_to_slot_ms", AT_MOST, 2),
    Budget("gradient_cost_ratio", AT_MOST, 1.2),
    Budget("check_cost_ratio", AT_MOST, 0.25),
)
CUDA_BUDGETS: Final = (Budget("ratio_distinct_32", AT_LEAST, 0.85),)


def classes() -> dict[str, list[int]]:
    """Which adapter each of the rows has, by the class of popularity."""
    chance = random.Random(0)
    zipf = [1 / (place + 1) ** 1.5 for place in range(ROWS)]
    return {
        "distinct": list(range(ROWS)),
        "uniform": [place % 6 for place in range(ROWS)],
        "skewed": chance.choices(range(ROWS), zipf, k=ROWS),
        "identical": [0] * ROWS,
    }


# --- the engine's decoding


class Rows:
    """Thirty-two rows of one engine, each with the adapter that it is told."""

    def __init__(self, base: Path, refs: Sequence[AdapterRef], *, device: str, dtype: str) -> None:
        from node.serving.slots import SlotCore

        settings = EngineSettings(
            str(base),
            rows=ROWS,
            max_model_len=LENGTH,
            slots=64,
            threads=1,
            device=device,
            dtype_class=dtype,
        )
        self.core = SlotCore(settings)
        self.refs = refs
        for ref in refs:
            self.core.load(ref)
        chance = random.Random(2)
        self.prompts = [tuple(chance.randrange(256) for _ in range(PROMPT)) for _ in range(ROWS)]
        self._begun: list[GenRequest] = []
        self._places: list[tuple[int, int] | None] = []

    def requests(self, who: Who, tokens: int) -> list[GenRequest]:
        """A greedy one for each row."""
        return [
            GenRequest(
                place.to_bytes(4, "big"),
                b"t",
                None if number is None else self.refs[number].hash,
                self.prompts[place],
                Sampling(tokens, flags=1),
            )
            for place, number in enumerate(who)
        ]

    def decode(self, who: Who, count: int) -> dict[int, list[int]]:
        """The first `count` tokens of each row, as they are served."""
        self.end()
        requests = self.requests(who, count)
        for request in requests:
            self.core.submit(request)
        tokens: dict[int, list[int]] = {place: [] for place in range(len(who))}
        while self.core.live:
            self._note(self.core.step(), tokens)
        return tokens

    def begin(self) -> None:
        """Bring all rows to their first step, each with an adapter of its own in a slot."""
        self.end()
        self._begun = self.requests(range(ROWS), LENGTH - PROMPT)
        for request in self._begun:
            self.core.submit(request)
        while self.core._decoding < ROWS:
            self.core.step()
        self.core.step()
        self._places = [self.core._live[request.id].place for request in self._begun]

    def end(self) -> None:
        """No row is left."""
        for request in self._begun:
            self.core.cancel(request.id)
        self._begun = []

    def turn(self, who: Who) -> "Turn":
        """Steps of the rows begun, with these adapters from now on: what they say is nonsense
        then, and costs what it costs."""
        from node.serving.lora import groups_of

        def aim() -> None:
            places = [None if number is None else self._places[number] for number in who]
            self.core._stack.use(groups_of(places))

        return Turn(aim, self.core.step)

    @staticmethod
    def _note(events: Sequence[tuple[bytes, Any]], tokens: dict[int, list[int]]) -> None:
        for id, event in events:
            if isinstance(event, Token):
                tokens[int.from_bytes(id, "big")].append(event.id)


def _clock(device: str) -> float:
    """CPU time of this thread; on a GPU the wall's, once it is done."""
    if device == "cpu":
        return time.thread_time()
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


# --- peft's


class Peft:
    """The same rows with peft: mixed in one batch, and one adapter after the other."""

    def __init__(self, base: Path, refs: Sequence[AdapterRef], prompts: Sequence[Any]) -> None:
        import torch
        from peft import PeftModel

        from node.serving.model import load_base

        torch.set_num_threads(1)
        plain = load_base(base)
        self.config = plain.config
        self.model: Any = PeftModel.from_pretrained(plain, refs[0].folder, adapter_name="a0")
        for number, ref in enumerate(refs[1:], 1):
            self.model.load_adapter(ref.folder, adapter_name=f"a{number}")
        self.model.train(False)
        self.ids = torch.tensor([list(prompt) for prompt in prompts])

    def turn(self, batches: Sequence["Batch"], tokens: int = 1) -> "Turn":
        """Some tokens of every row, batch by batch: each switch is for all of them."""

        def step() -> None:
            for batch in batches:
                batch.switch(self.model)
                for _ in range(tokens):
                    batch.step(self.model)

        return Turn(lambda: None, step, tokens)

    def mixed(self, who: Sequence[int]) -> list["Batch"]:
        """All rows at once."""
        names = [f"a{number}" for number in who]
        return [self._batch("a0", list(range(len(who))), adapter_names=names)]

    def switching(self, who: Sequence[int]) -> list["Batch"]:
        """Each adapter's rows in their turn."""
        places = {n: [at for at, other in enumerate(who) if other == n] for n in sorted(set(who))}
        return [self._batch(f"a{number}", rows) for number, rows in places.items()]

    def _batch(self, adapter: str, rows: list[int], **more: Any) -> "Batch":
        from transformers import DynamicCache

        return Batch(adapter, rows, self.ids[rows], DynamicCache(config=self.config), more)


class Batch:
    """Rows that peft decodes together; the first step fills their prompts."""

    def __init__(
        self, adapter: str, rows: list[int], ids: Any, cache: Any, more: dict[str, Any]
    ) -> None:
        self._adapter, self._rows, self._ids = adapter, rows, ids
        self._cache, self._more = cache, more
        self._made: list[Any] = []

    def switch(self, model: Any) -> None:
        """Its adapter is the model's from now on."""
        if model.active_adapter != self._adapter:
            model.set_adapter(self._adapter)

    def step(self, model: Any) -> None:
        """One token of every row."""
        import torch

        with torch.inference_mode():
            out = model(
                input_ids=self._ids, past_key_values=self._cache, logits_to_keep=1, **self._more
            )
            self._ids = out.logits[:, -1].argmax(-1, keepdim=True)
        self._made.append(self._ids[:, 0])

    def tokens(self) -> dict[int, list[int]]:
        """What each row has said so far."""
        import torch

        return dict(zip(self._rows, torch.stack(self._made, 1).tolist(), strict=True))


# --- figures


class Turn(NamedTuple):
    """A configuration: what comes before its steps, and one step of all rows; `tokens` of each."""

    ready: Callable[[], None]
    step: Callable[[], object]
    tokens: int = 1

    def seconds(self, steps: int, device: str) -> float:
        """A token's, of the shortest step, as others' hunger only lengthens one; after a step
        that is not counted, by which matrices are gathered and caches are warm."""
        self.ready()
        self.step()
        took_s = []
        for _ in range(steps // self.tokens):
            began_s = _clock(device)
            self.step()
            took_s.append(_clock(device) - began_s)
        return min(took_s) / self.tokens


def measure_shape(
    shape: Shape,
    rounds: int,
    *,
    steps: int,
    with_peft: bool,
    device: str = "cpu",
    dtype: str = "fp32",
) -> dict[str, Any]:
    """`base`: its seconds a step; of each class, the base's seconds by its own; of peft's two
    ways, its seconds by those of `distinct`; `tokens_equal`: the share, None without peft."""
    with tempfile.TemporaryDirectory(prefix="olnode-bench-") as name:
        folder = Path(name)
        tell(f"{shape.name}: a base of {shape.layers} layers of {shape.hidden}, {ROWS} adapters")
        make_base(folder / "base", shape, dtype)
        refs = make_adapters(folder / "base", folder, ROWS)
        rows = Rows(folder / "base", refs, device=device, dtype=dtype)
        turns = {kind: rows.turn(who) for kind, who in classes().items()}
        turns["distinct_8"] = rows.turn([place % 8 for place in range(ROWS)])
        found: dict[str, Any] = _in_turns(rows, turns, rounds, steps)
        if with_peft:
            peft = Peft(folder / "base", refs, rows.prompts)
            found |= _beside_peft(rows, peft, -(-rounds // PEFT_ROUNDS), steps)
        return found


def _beside_peft(rows: Rows, peft: Peft, rounds: int, steps: int) -> dict[str, float]:
    """Both ways' seconds by ours, with thirty-two adapters; `tokens_equal`: the share."""
    distinct = classes()["distinct"]
    tokens = rows.decode(distinct, TOKENS)
    mixed, switching = peft.mixed(distinct), peft.switching(distinct)
    turns = {
        "distinct": rows.turn(distinct),
        "peft_mixed": peft.turn(mixed),
        "peft_switching": peft.turn(switching, steps),
    }
    ratios = _in_turns(rows, turns, rounds, steps)
    equal = [
        _common(tokens[place], said)
        for batch in (*mixed, *switching)
        for place, said in batch.tokens().items()
    ]
    found = {name: ratios["distinct"] / ratios[name] for name in ("peft_mixed", "peft_switching")}
    return {**found, "tokens_equal": statistics.mean(equal)}


def _in_turns(rows: Rows, turns: Mapping[str, Turn], rounds: int, steps: int) -> dict[str, float]:
    """Medians over the rounds: `base`, its seconds a step; of each configuration, the seconds of
    the base just before and after it by its own."""
    base, device = rows.turn([None] * ROWS), rows.core.info.device
    found: dict[str, list[float]] = {"base": [], **{name: [] for name in turns}}
    fit = (LENGTH - PROMPT) // ((steps + 1) * (2 * len(turns) + 1))  # rounds that the rows last
    for number in range(rounds):
        tell(f"round {number + 1} of {rounds}")
        if number % fit == 0:
            rows.begin()
        before_s = base.seconds(steps, device)
        for name, turn in turns.items():
            took_s = turn.seconds(steps, device)
            after_s = base.seconds(steps, device)
            found[name].append((before_s + after_s) / 2 / took_s)
            found["base"].append(after_s)
            before_s = after_s
    return {name: statistics.median(many) for name, many in found.items()}


def _common(one: Sequence[int], other: Sequence[int]) -> float:
    """The share of equal tokens, as far as both go."""
    pairs = list(zip(one, other, strict=False))
    return sum(a == b for a, b in pairs) / len(pairs)


def measure_costs(answers: int = 16, tokens: int = 48) -> dict[str, float]:
    """On S: a gradient and a check beside making the answer; a slot filled; many registered."""
    with tempfile.TemporaryDirectory(prefix="olnode-bench-") as name:
        folder = Path(name)
        make_base(folder / "base", S)
        refs = make_adapters(folder / "base", folder, ROWS)
        rows = Rows(folder / "base", refs, device="cpu", dtype="fp32")
        costs = {**_background_costs(rows, answers, tokens), "ram_to_slot_ms": _slot_ms(rows)}
        return {**costs, **_registering(folder, rows)}


def _background_costs(rows: Rows, answers: int, tokens: int) -> dict[str, float]:
    """Best of three: generating in a batch and alone, two checkpoints' gradients, and a check."""
    best = dict.fromkeys(("batch", "alone", "gradients", "check"), float("inf"))
    core = rows.core
    core._background._load_projector = lambda folder: _Projector()
    requests = rows.requests([place % ROWS for place in range(answers)], tokens)
    for _ in range(3):
        made, took_s = _timed(partial(_generate, core, requests))
        best["batch"] = min(best["batch"], took_s)
        _, took_s = _timed(lambda: [_generate(core, [request]) for request in requests])
        best["alone"] = min(best["alone"], took_s)
        items = [
            GradItem((rows.refs[0].hash, rows.refs[1].hash), r.prompt, (made[r.id],), "index")
            for r in requests
        ]
        scores = [ScoreItem(r.adapter, r.prompt, made[r.id], r.sampling) for r in requests]
        for name, add in (
            ("gradients", partial(core.add_gradients, 0, items)),
            ("check", partial(core.add_scores, 0, scores)),
        ):
            _, took_s = _timed(partial(_run_all, core, add, answers))
            best[name] = min(best[name], took_s)
    return {
        "gradient_cost_ratio": round(best["gradients"] / 2 / best["batch"], 3),
        "check_cost_ratio": round(best["check"] / best["alone"], 3),
    }


class _Projector:
    """In place of an index's: what follows the gradient is attribution's to measure."""

    def rows(self, half: int, gradients: Any) -> Any:
        import torch

        count = len(next(iter(gradients.values())))
        return torch.ones((count, 512), dtype=torch.int8)


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    began_s = time.thread_time()
    found = run()
    return found, time.thread_time() - began_s


def _generate(core: Any, requests: Sequence[GenRequest]) -> dict[bytes, tuple[int, ...]]:
    for request in requests:
        core.submit(request)
    ids: dict[bytes, list[int]] = {request.id: [] for request in requests}
    while core.live:
        for id, event in core.step():
            if isinstance(event, Token):
                ids[id].append(event.id)
    return {id: tuple(made) for id, made in ids.items()}


def _run_all(core: Any, add: Callable[[], None], count: int) -> None:
    add()
    made = 0
    while made < count:
        core.step()
        made += len(core.made())


def _slot_ms(rows: Rows) -> float:
    """Milliseconds from packed in RAM to a slot: the median over the adapters."""
    bank, took = rows.core._bank, []
    for ref in rows.refs:
        packed = bank.refer(ref.hash)
        began_s = time.perf_counter()
        rows.core._stack.fill(packed.bucket, 0, packed.flat, frozenset(packed.modules))
        took.append(1_000 * (time.perf_counter() - began_s))
        bank.release(packed)
    return round(sorted(took)[len(took) // 2], 3)


def _registering(folder: Path, rows: Rows, count: int = REGISTERED) -> dict[str, float]:
    """Adapters that differ by their scale alone, linked to one file of weights: their hashes are
    taken first, as a node has them from the ledger."""
    from node.serving.adapters import read_adapter

    source = Path(rows.refs[0].folder)
    settings = json.loads((source / "adapter_config.json").read_text())
    refs = []
    for number in range(count):
        target = folder / f"many{number}"
        target.mkdir()
        os.link(source / "adapter_model.safetensors", target / "adapter_model.safetensors")
        text = json.dumps({**settings, "lora_alpha": 100 + number})
        (target / "adapter_config.json").write_text(text)
        refs.append(target)
    known = [AdapterRef(read_adapter(target).hash, str(target)) for target in refs]
    began_s = time.perf_counter()
    for ref in known:
        rows.core.register(ref)
    took_s = time.perf_counter() - began_s
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "registered": len(rows.core.adapters()) - len(rows.refs),
        "registered_ms": round(1_000 * took_s, 1),
    }


def figures_of(small: dict[str, Any], large: dict[str, Any]) -> dict[str, Any]:
    """Ratios of throughput: to the base alone at L, to peft at both."""
    return {
        "ratio_same": round(large["identical"], 3),
        "ratio_distinct_8": round(large["distinct_8"], 3),
        "ratio_distinct_32": round(large["distinct"], 3),
        "vs_peft_mixed": round(small["peft_mixed"], 2),
        "vs_peft_switching": round(small["peft_switching"], 2),
        "vs_peft_mixed_2048": round(large["peft_mixed"], 2),
        "vs_peft_switching_2048": round(large["peft_switching"], 2),
        "classes": {
            kind: {"S": round(small[kind], 3), "L": round(large[kind], 3)} for kind in classes()
        },
        "tokens_equal_peft": {"S": small["tokens_equal"], "L": large["tokens_equal"]},
        "ms_a_step_base": {"S": round(1e3 * small["base"], 2), "L": round(1e3 * large["base"], 1)},
    }


def large_model_figures(shape: Shape, rounds: int, device: str) -> dict[str, Any]:
    """In bf16, beside its base alone."""
    found = measure_shape(
        shape, rounds, steps=shape.steps, with_peft=False, device=device, dtype="bf16"
    )
    names = ("identical", "distinct_8", "uniform", "skewed")
    return {
        "ratio_distinct_32": round(found["distinct"], 3),
        **{f"ratio_{name}": round(found[name], 3) for name in names},
        "ms_a_step_base": round(1e3 * found["base"], 2),
    }


def main() -> None:
    """The command line of `olnode bench serving`."""
    parser = argparse.ArgumentParser(prog="olnode bench serving")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each configuration")
    given = parser.parse_args()
    quiet()
    import torch

    torch.set_num_threads(1)
    if given.device == "cuda":
        if not torch.cuda.is_available():
            sys.exit("no GPU is here: olnode bench serving without --device")
        finish(large_model_figures(EIGHT_B, given.rounds, "cuda"), CUDA_BUDGETS)
        return
    small = measure_shape(S, given.rounds, steps=S.steps, with_peft=True)
    large = measure_shape(L, given.rounds, steps=L.steps, with_peft=True)
    finish({**figures_of(small, large), **measure_costs()}, BUDGETS)


if __name__ == "__main__":
    main()
